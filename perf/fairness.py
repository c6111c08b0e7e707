"""How long light queries take while heavy ones run.

    python perf/fairness.py                              # 10 M points, every kind of heavy query
    python perf/fairness.py --points 1000000 --rounds 1 --seconds 3
    python perf/fairness.py --url http://127.0.0.1:3000  # a server that holds such points already

Light queries (100 rows of one series) come at a fixed rate over a few connections, from a process of their
own; their time counts from the moment they were due, so that a server that stalls is charged for all that
wait. Heavy clients ask one heavy query after the other. Light queries alone and beside each kind of heavy
query are measured in turns, round after round; the table holds the medians of the rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts a script's directory first: there `http.py` would be taken for the standard `http`.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import selectors
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.synchronize import Event

FIRST_TIMESTAMP = 1_700_000_000
STEP = 10
LIGHT_ROWS = 100
READY_SECONDS = 600
DRAIN_SECONDS = 30


@dataclass
class Figures:
    """Light queries beside one kind of heavy query.

    Attributes
    ----------
    heavy : str
    p50_ms, p95_ms, p99_ms, max_ms : float
        Of a light query, from the moment at which it was due.
    heavy_per_second : float
    """

    heavy: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    heavy_per_second: float


def heavy_queries(rows: int) -> dict[str, str]:
    """Return the heavy queries over series of `rows` rows."""
    end = FIRST_TIMESTAMP + STEP * rows - 1
    windows = f"/query?start={FIRST_TIMESTAMP}&end={end}&step={STEP * max(rows // 100, 1)}"
    return {
        "none": "",
        "100 windows a series": windows,
        "100 windows of all series": f"{windows}&by=",
        "all rows, JSON": "/query",
        "all rows, Arrow": "/query?format=arrow",
    }


def load(directory: Path, series: int, rows: int) -> None:
    """Make a store of regular series with two decimals, settled."""
    import omendb

    random = np.random.default_rng(1)
    timestamps = FIRST_TIMESTAMP + STEP * np.arange(rows)
    block = max(500_000 // rows, 1)
    with omendb.open(directory) as store:
        for first in range(0, series, block):
            count = min(block, series - first)
            values = np.round(100 + np.cumsum(random.normal(size=(count, rows)), axis=1), 2)
            ids = np.repeat(np.arange(first, first + count), rows)
            store.insert(ids, np.tile(timestamps, count), values.ravel())
        store.gc()


@contextlib.contextmanager
def own_server(options: argparse.Namespace) -> Iterator[str]:
    """Load a store, serve it, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="omendb-perf-", dir=options.data_dir) as directory:
        load(Path(directory, "store"), options.series, options.points // options.series)
        port, metrics_port = free_port(), free_port()
        program = str(Path(sys.executable).with_name("omendb"))
        command = [program, "serve", "--data-dir", str(Path(directory, "store")), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--metrics-port", str(metrics_port)]
        with Path(directory, "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_ready(server, url)
            yield url
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(server: subprocess.Popen[bytes], url: str) -> None:
    started = time.monotonic()
    while server.poll() is None and time.monotonic() - started < READY_SECONDS:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{url}/ready", timeout=5).close()
            return
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 80))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def head(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: perf\r\n\r\n".encode()


class LightConnection:
    """One connection with at most one request under way; what comes too early for it waits its turn."""

    def __init__(self, url: str) -> None:
        self.socket = connect(url)
        self.waiting: deque[float] = deque()
        self.answer = b""

    def received(self) -> bool:
        """Read what is there; return whether the answer is whole."""
        piece = self.socket.recv(1 << 18)
        if not piece:
            raise SystemExit("the server closed a connection")
        self.answer += piece
        start, found, body = self.answer.partition(b"\r\n\r\n")
        if not found:
            return False
        if not start.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"light query: {start[:80]!r}")
        length = next(line for line in start.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) < int(length.partition(b":")[2]):
            return False
        self.answer = b""
        return True


def ask_light(url: str, options: argparse.Namespace) -> list[float]:
    """Ask light queries at a fixed rate; return how long each took, in seconds."""
    random = np.random.default_rng(2)
    rows = options.points // options.series
    offsets = max(rows - LIGHT_ROWS, 0) + 1

    def request() -> bytes:
        start = FIRST_TIMESTAMP + STEP * int(random.integers(offsets))
        end = start + STEP * LIGHT_ROWS - 1
        return head(f"/query?series_id={random.integers(options.series)}&start={start}&end={end}")

    connections = [LightConnection(url) for _ in range(options.connections)]
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    took: list[float] = []
    started = time.perf_counter()
    total = int(options.rate * options.seconds)
    asked = 0
    while len(took) < total:
        now = time.perf_counter()
        while asked < total and started + asked / options.rate <= now:
            connection = min(connections, key=lambda connection: len(connection.waiting))
            connection.waiting.append(started + asked / options.rate)
            if len(connection.waiting) == 1:
                connection.socket.sendall(request())
            asked += 1
        due = started + asked / options.rate if asked < total else now + 1
        for key, _ in selector.select(max(due - time.perf_counter(), 0)):
            connection = key.data
            if connection.received():
                took.append(time.perf_counter() - connection.waiting.popleft())
                if connection.waiting:
                    connection.socket.sendall(request())
        if now - started > options.seconds + DRAIN_SECONDS:
            raise SystemExit(f"{total - len(took)} light queries were not answered")
    for connection in connections:
        connection.socket.close()
    return took


def ask_heavy(url: str, path: str, stop: Event, done: Any) -> None:  # noqa: ANN401
    """Ask one heavy query after the other, and count them."""
    buffer = bytearray(1 << 20)
    while not stop.is_set():
        connection = connect(url)
        connection.sendall(head(path).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        first = connection.recv(1 << 16)
        if not first.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"heavy query: {first[:200]!r}")
        while connection.recv_into(buffer):
            if stop.is_set():
                break
        else:
            with done.get_lock():
                done.value += 1
        connection.close()


def measure(url: str, heavy: str, path: str, options: argparse.Namespace) -> Figures:
    """Measure light queries beside one kind of heavy query."""
    stop = multiprocessing.Event()
    done = multiprocessing.Value("q", 0)
    clients = [
        multiprocessing.Process(target=ask_heavy, args=(url, path, stop, done), daemon=True)
        for _ in range(options.heavy if path else 0)
    ]
    for client in clients:
        client.start()
    time.sleep(0.5)
    before = done.value
    began = time.perf_counter()
    with multiprocessing.Pool(1) as pool:
        took = pool.apply(ask_light, (url, options))
    per_second = (done.value - before) / (time.perf_counter() - began)
    stop.set()
    for client in clients:
        client.join()
    p50, p95, p99 = (float(value) * 1e3 for value in np.percentile(took, [50, 95, 99]))
    return Figures(heavy, p50, p95, p99, max(took) * 1e3, per_second)


def median(figures: list[Figures]) -> Figures:
    """Return the medians of several rounds."""
    names = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "heavy_per_second")
    values = {name: statistics.median(getattr(figure, name) for figure in figures) for name in names}
    return Figures(figures[0].heavy, **values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", help="a running server with such points, instead of one of its own")
    parser.add_argument("--data-dir", help="where the own server's directory is made")
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=1_000, help="light queries a second")
    parser.add_argument("--connections", type=int, default=16, help="that light queries come over")
    parser.add_argument("--heavy", type=int, default=2, help="clients with heavy queries")
    parser.add_argument("--seconds", type=float, default=5, help="measured time of each kind and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args()
    queries = heavy_queries(options.points // options.series)
    rounds: dict[str, list[Figures]] = {name: [] for name in queries}
    own = contextlib.nullcontext(options.url) if options.url else own_server(options)
    with own as url:
        for _ in range(options.rounds):
            for name, path in queries.items():
                rounds[name].append(measure(url, name, path, options))
    results = [median(figures) for figures in rounds.values()]
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    print(
        f"{options.rate:g} light queries a second over {options.connections} connections, "
        f"{options.heavy} heavy clients, medians of {options.rounds} rounds of {options.seconds:g} s"
    )
    print(f"{'heavy query':27}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}{'heavy/s':>9}")
    for result in results:
        print(
            f"{result.heavy:27}{result.p50_ms:9.2f}{result.p95_ms:9.2f}{result.p99_ms:9.2f}"
            f"{result.max_ms:9.1f}{result.heavy_per_second:9.2f}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
