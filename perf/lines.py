"""How fast line protocol comes in: the parser on one core, and ``POST /write`` over HTTP.

    python perf/lines.py                        # parser, then HTTP, with 1,000 and 100,000 series
    python perf/lines.py --only parser
    python perf/lines.py --only http --series 1000 --seconds 10

Rows are as a loader sends them: one field, three tags, two decimals, nanoseconds; each batch goes through
the series in order. HTTP: a server of its own on an empty directory, 2 connections that each send batches of
10,000 rows one after the other; every answer says that its rows are on stable storage. Client and server
share the machine; the bodies are made before the clock starts. CPU seconds are the server's, for a million
rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts a script's directory first: there `http.py` would be taken for the standard `http`.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import argparse
import contextlib
import http.client
import json
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from socket import socket
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = 10_000
FIRST_TIMESTAMP = 1_700_000_000_000_000_000
READY_SECONDS = 300


@dataclass
class Result:
    """One measurement.

    Attributes
    ----------
    what : str
    series, rows : int
    rows_per_second : float
    cpu_seconds_per_million : float
    """

    what: str
    series: int
    rows: int
    rows_per_second: float
    cpu_seconds_per_million: float


def make_batches(series: int, count: int, first_row: int, seed: int) -> list[bytes]:
    """Make bodies of `ROWS` lines each, that go on through the series where the one before stopped."""
    generator = np.random.default_rng(seed)
    keys = [
        b"cpu,host=host_%05d,region=eu-west-%d,rack=r%02d usage_user" % (n, n % 3, n % 40)
        for n in range(series)
    ]
    bodies: list[bytes] = []
    row = first_row
    for _ in range(count):
        values = generator.integers(0, 10_000, ROWS).tolist()
        lines: list[bytes] = []
        for value in values:
            time_ = FIRST_TIMESTAMP + row // series * 10_000_000_000
            lines.append(b"%s=%d.%02d %d\n" % (keys[row % series], value // 100, value % 100, time_))
            row += 1
        bodies.append(b"".join(lines))
    return bodies


def measure_parser(series: int, seconds: float) -> Result:
    """Measure reading bodies into columns with ids, all series known, on one core."""
    from omendb.server import line_protocol
    from omendb.storage.catalog import Catalog

    catalog = Catalog()
    bodies = make_batches(series, max(series // ROWS, 20), 0, 1)
    for body in bodies:
        line_protocol.decode(body, 1, 0, catalog)
    rounds = 0
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        for body in bodies:
            line_protocol.decode(body, 1, 0, catalog)
        rounds += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rows = rounds * len(bodies) * ROWS
    return Result("parser, one core", series, rows, rows / cpu, cpu * 1e6 / rows)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_server(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a server on an empty directory; yield its process and port."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("omendb")), "serve", "--host", "127.0.0.1"]
    command += ["--data-dir", str(directory), "--port", str(port), "--metrics-port", str(free_port())]
    with (directory.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        give_up = time.monotonic() + READY_SECONDS
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request("GET", "/ready")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            finally:
                connection.close()
            if time.monotonic() > give_up or process.poll() is not None:
                raise SystemExit((directory.parent / "server.log").read_text())
            time.sleep(0.1)
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def measure_http(series: int, seconds: float, connections: int, batches: int) -> Result:
    """Measure durable writes of new points of known series."""
    directory = Path(tempfile.mkdtemp(prefix="omendb-lines-"))
    try:
        (directory / "db").mkdir()
        with running_server(directory / "db") as (process, port):
            warm = make_batches(series, max(series // ROWS, 4), 0, 1)
            post(port, warm)
            first = len(warm) * ROWS
            loads = [
                make_batches(series, batches, first + n * batches * ROWS, 2 + n) for n in range(connections)
            ]
            written = [0] * connections
            until = [0.0]

            def send(number: int) -> None:
                written[number] = post(port, loads[number], until[0])

            threads = [threading.Thread(target=send, args=(n,)) for n in range(connections)]
            cpu, started = cpu_seconds(process.pid), time.monotonic()
            until[0] = started + seconds
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wall, cpu = time.monotonic() - started, cpu_seconds(process.pid) - cpu
    finally:
        shutil.rmtree(directory)
    rows = sum(written)
    return Result(f"POST /write, {connections} connections", series, rows, rows / wall, cpu * 1e6 / rows)


def post(port: int, bodies: list[bytes], until: float = float("inf")) -> int:
    """Send bodies one after the other, until the time is over; return the rows that were acknowledged."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    rows = 0
    for body in bodies:
        if time.monotonic() > until:
            break
        connection.request("POST", "/write", body)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 204:
            raise SystemExit(f"status {answer.status}")
        rows += ROWS
    connection.close()
    return rows


def main() -> None:
    """Measure, print, and write the figures to ``perf/results``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("parser", "http"))
    parser.add_argument("--series", type=int, action="append", help="default: 1000 and 100000")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=2)
    parser.add_argument("--batches", type=int, default=1_500, help="for each connection, at most")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results/lines.json")
    options = parser.parse_args()
    results: list[Result] = []
    print("| what | series | rows | rows/s | CPU s per 1 M rows |")
    print("|---|---|---|---|---|")
    for series in options.series or [1_000, 100_000]:
        if options.only != "http":
            results.append(measure_parser(series, options.seconds))
            show(results[-1])
        if options.only != "parser":
            results.append(measure_http(series, options.seconds, options.connections, options.batches))
            show(results[-1])
    options.json.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "command": " ".join(sys.argv),
    }
    options.json.write_text(json.dumps(facts | {"results": [asdict(r) for r in results]}, indent=1) + "\n")


def show(result: Result) -> None:
    """Print a row of the table."""
    print(
        f"| {result.what} | {result.series:,} | {result.rows:,} | {result.rows_per_second:,.0f} "
        f"| {result.cpu_seconds_per_million:.3f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
