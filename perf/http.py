"""How fast the server answers over HTTP: `wrk` against a server of its own, or one that runs already.

    python perf/http.py                          # load 10 M points, run every workload
    python perf/http.py --compare                # inserts into an empty store against a full one
    python perf/http.py --workload range_100 --points 1000000 --seconds 5
    python perf/http.py --url http://127.0.0.1:3000 --no-load
    python perf/http.py --compare-logs           # queries with a log line each, and without

`wrk` is Debian's package of that name. Client and server share the machine: leave it alone meanwhile.
A workload is warmed up for a second and then measured; percentiles are wrk's, over all requests of the
measured time. Rows a second count the rows inserted or answered.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts a script's directory first: there this file would be taken for the standard `http`.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from socket import socket
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson
import urllib3

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).with_name("workloads.lua")
FIRST_TIMESTAMP = 1_700_000_000_000
STEP = 1_000
LOAD_ROWS = 50_000
READY_SECONDS = 300

ROWS_PER_REQUEST = {
    "insert_one": 1,
    "insert_array_64": 64,
    "insert_columns_64": 64,
    "insert_array_1000": 1_000,
    "insert_columns_1000": 1_000,
    "range_100": 100,
    "range_1000": 1_000,
    "windows": 100,
}
INSERTS = [name for name in ROWS_PER_REQUEST if name.startswith("insert")]


@dataclass
class Result:
    """One workload, measured.

    Attributes
    ----------
    store : str
        ``full`` (loaded) or ``empty``.
    requests_per_second, rows_per_second : float
    p50_ms, p95_ms, p99_ms, max_ms : float
        Latency of a request.
    errors : int
        Requests without an answer, and answers of status 400 and above.
    """

    workload: str
    store: str
    requests_per_second: float
    rows_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    errors: int


class Bench:
    """One server, and what was loaded into it."""

    def __init__(self, url: str, options: argparse.Namespace) -> None:
        self.url = url
        self.options = options
        self.rows_per_series = 0
        self.round = 0

    def load(self) -> float:
        """Insert the points in order of time, all series at each moment; return points a second."""
        series_count: int = self.options.series
        self.rows_per_series = max(self.options.points // series_count, 1)
        moments = max(LOAD_ROWS // series_count, 1)
        pool = urllib3.PoolManager(maxsize=4, retries=False, timeout=600)

        def insert(first: int) -> int:
            rows = np.arange(first, min(first + moments, self.rows_per_series))
            columns = {
                "series_id": np.tile(np.arange(series_count), len(rows)),
                "timestamp": np.repeat(FIRST_TIMESTAMP + rows * STEP, series_count),
                "value": np.round(np.random.default_rng(first).normal(20, 5, len(rows) * series_count), 2),
            }
            body = orjson.dumps(columns, option=orjson.OPT_SERIALIZE_NUMPY)
            while True:
                answer = pool.request("POST", self.url + "/insert", body=body)
                if answer.status != 503:  # memory is short: the server asks to come back
                    break
                time.sleep(float(answer.headers.get("retry-after", "1")))
            if answer.status != 200:
                raise SystemExit(f"load: {answer.status} {answer.data!r}")
            return int(orjson.loads(answer.data)["inserted"])

        started = time.perf_counter()
        done = 0
        with ThreadPoolExecutor(2) as threads:
            for count in threads.map(insert, range(0, self.rows_per_series, moments)):
                done += count
                progress(f"loaded {done:,} points")
        rate = done / (time.perf_counter() - started)
        progress("")
        stored = self.stats()["record_count"]
        print(f"loaded {done:,} points at {rate:,.0f} a second; the store counts {stored:,}")
        self.settle()
        return rate

    def settle(self) -> None:
        """Wait until flushes and compactions of the load are done, for a minute at most."""
        before: tuple[int, ...] = ()
        quiet = 0
        for _ in range(60):
            stats = self.stats()
            now = tuple(stats[name] for name in ("segments", "memtable_rows", "data_bytes"))
            quiet = quiet + 1 if now == before else 0
            if quiet == 3:
                break
            before = now
            time.sleep(1)
        print(f"segments {before[0]}, rows in memory {before[1]:,}, bytes on disk {before[2]:,}")

    def stats(self) -> dict[str, Any]:
        """Return ``/admin/stats``."""
        answer = urllib3.request("GET", self.url + "/admin/stats", timeout=600)
        assert answer.status == 200, answer.data
        stats = orjson.loads(answer.data)
        assert isinstance(stats, dict)
        return stats

    def measure(self, workload: str, store: str, seconds: int | None = None) -> Result:
        """Warm a workload up, then measure it; without the warming up when `seconds` are given."""
        progress(f"{workload} ({store})")
        if seconds is None:
            self._wrk(workload, 1)
            seconds = self.options.seconds
        found = self._wrk(workload, seconds)
        rate = found["requests"] / found["seconds"]
        return Result(
            workload,
            store,
            rate,
            rate * ROWS_PER_REQUEST[workload],
            found["p50_ms"],
            found["p95_ms"],
            found["p99_ms"],
            found["max_ms"],
            found["errors"],
        )

    def _wrk(self, workload: str, seconds: int) -> dict[str, Any]:
        return self.finish(self.start(workload, seconds, self.options.connections), seconds)

    def start(self, workload: str, seconds: int, connections: int) -> subprocess.Popen[str]:
        """Start a workload, to run beside others; each is given timestamps of its own."""
        self.round += 1
        options = self.options
        command = ["wrk", f"-t{options.threads}", f"-c{connections}", f"-d{seconds}s"]
        command += ["--timeout", "30s", "-s", str(SCRIPT), self.url, "--", workload]
        numbers = (options.series, self.rows_per_series, FIRST_TIMESTAMP, self.round)
        command += map(str, numbers)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, process: subprocess.Popen[str], seconds: int) -> dict[str, Any]:
        """Wait for a workload; return what ``done`` of `SCRIPT` says."""
        with process:
            try:
                output, complaint = process.communicate(timeout=seconds + 60)
            except BaseException:
                process.kill()
                raise
        for line in output.splitlines():
            if line.startswith("RESULT "):
                found = json.loads(line.removeprefix("RESULT "))
                assert isinstance(found, dict)
                return found
        raise SystemExit(f"wrk failed: {output}{complaint}")


class Server(NamedTuple):
    """A running server."""

    url: str
    metrics_url: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process so far, of user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def own_server(options: argparse.Namespace) -> Iterator[str]:
    """Start a server on a directory of its own; stop it and remove the directory at the end."""
    with run_server(options.data_dir) as server:
        yield server.url


@contextlib.contextmanager
def run_server(parent: str | None, *arguments: str, piped: bool = False) -> Iterator[Server]:
    """Start a server with more arguments; its log goes to a file, or through a pipe that is read."""
    directory = tempfile.mkdtemp(prefix="omendb-perf-", dir=parent)
    port, metrics_port = free_port(), free_port()
    command = [str(Path(sys.executable).with_name("omendb")), "serve", "--data-dir", directory]
    command += ["--host", "127.0.0.1", "--port", str(port), "--metrics-port", str(metrics_port), *arguments]
    log = Path(directory, "log")
    with log.open("wb") as stream:
        output = subprocess.PIPE if piped else stream
        server = subprocess.Popen(command, stdout=output, stderr=stream if piped else subprocess.STDOUT)
    if piped:
        Thread(target=swallow, args=(server.stdout,), daemon=True).start()
    try:
        wait_ready(server, f"http://127.0.0.1:{port}")
        yield Server(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}", server.pid)
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    except BaseException:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(2)  # it may be about to end, and be the reason
        print(f"server status {server.poll()}, end of its log:\n{log.read_text()[-5000:]}")
        raise
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(directory)


def swallow(stream: IO[bytes]) -> None:
    """Read a stream to its end, as whoever collects logs does."""
    while os.read(stream.fileno(), 1 << 20):
        pass


def compare_logs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure queries with a log line each and without, in turn, on one server; print as it goes."""
    found: list[dict[str, Any]] = []
    workloads = options.workload or ["range_100"]
    with tempfile.TemporaryDirectory(prefix="omendb-perf-config-") as config_dir:
        setting = Path(config_dir, "log_queries")
        setting.write_text("off")
        with run_server(options.data_dir, "--config-dir", config_dir, piped=True) as server:
            bench = Bench(server.url, options)
            bench.load()
            print(
                f"\n{'workload':16}{'log_queries':>12}{'requests/s':>12}{'CPU us a request':>18}{'p95 ms':>9}"
            )
            for workload in workloads:
                for mode in options.rounds * ("all", "off"):
                    setting.write_text(mode)
                    while get_json(server.url + "/admin/config")["log_queries"]["value"] != mode:
                        time.sleep(0.1)
                    bench.measure(workload, "full", 1)
                    before = server.cpu_seconds()
                    result = bench.measure(workload, "full", options.seconds)
                    asked = result.requests_per_second * options.seconds
                    micros = (server.cpu_seconds() - before) * 1e6 / asked
                    found.append({**asdict(result), "log_queries": mode, "cpu_us_per_request": micros})
                    rate, p95 = result.requests_per_second, result.p95_ms
                    print(f"{workload:16}{mode:>12}{rate:12,.0f}{micros:18.2f}{p95:9.2f}")
                print(f"{workload}: {difference(workload, found)}")
            dropped = next(
                line
                for line in urllib3.request("GET", server.metrics_url + "/metrics").data.decode().splitlines()
                if line.startswith("omendb_log_lines_dropped_total ")
            )
            print(dropped)
    return found


def difference(workload: str, found: list[dict[str, Any]]) -> str:
    """Say what lines cost, by the medians of the rounds."""

    def median(mode: str, key: str) -> float:
        return statistics.median(
            r[key] for r in found if (r["workload"], r["log_queries"]) == (workload, mode)
        )

    with_lines, without = (median(mode, "cpu_us_per_request") for mode in ("all", "off"))
    kept = median("all", "requests_per_second") / median("off", "requests_per_second")
    return (
        f"a line costs {with_lines - without:.2f} us of CPU, {with_lines / without - 1:.1%} more; "
        f"{1 - kept:.1%} of the requests a second are lost"
    )


def get_json(url: str) -> dict[str, Any]:
    """Return the JSON that is answered to a GET."""
    answer = urllib3.request("GET", url, timeout=600)
    assert answer.status == 200, answer.data
    found = orjson.loads(answer.data)
    assert isinstance(found, dict)
    return found


def wait_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Wait until the server is ready."""
    started = time.perf_counter()
    while server.poll() is None and time.perf_counter() - started < READY_SECONDS:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            if urllib3.request("GET", url + "/ready", retries=False, timeout=1).status == 200:
                print(f"ready after {time.perf_counter() - started:.2f} s")
                return
        time.sleep(0.05)
    raise SystemExit("the server did not become ready")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def progress(text: str) -> None:
    """Show what is being done, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def machine() -> dict[str, object]:
    """Describe what the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=SCRIPT.parent
    )
    return {
        "machine": f"{model}, {os.cpu_count()} CPUs, "
        f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "command": " ".join(["python", "perf/http.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip() or "none",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
    }


def table(results: list[Result]) -> str:
    """Lay the results out for reading."""
    lines = [
        f"{'workload':16}{'store':7}{'requests/s':>12}{'rows/s':>13}"
        f"{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}{'errors':>8}"
    ]
    for result in results:
        rates = f"{result.requests_per_second:12,.0f}{result.rows_per_second:13,.0f}"
        times = "".join(
            f"{value:9.2f}" for value in (result.p50_ms, result.p95_ms, result.p99_ms, result.max_ms)
        )
        lines.append(f"{result.workload:16}{result.store:7}{rates}{times}{result.errors:8}")
    return "\n".join(lines)


def comparison(results: list[Result]) -> str:
    """Say how the full store does against the empty one."""
    empty = {result.workload: result for result in results if result.store == "empty"}
    return "\n".join(
        f"{full.workload}: the full store does "
        f"{full.requests_per_second / empty[full.workload].requests_per_second:.0%} of the empty one"
        for full in results
        if full.store == "full" and full.workload in empty
    )


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", help="a running server, instead of one of its own")
    parser.add_argument("--data-dir", help="where the own server's directory is made")
    parser.add_argument("--points", type=int, default=10_000_000, help="points to load")
    parser.add_argument("--series", type=int, default=1_000, help="series they belong to")
    parser.add_argument("--seconds", type=int, default=10, help="measured time of a workload")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, choices=(1, 2), help="wrk's threads")
    parser.add_argument("--workload", action="append", choices=list(ROWS_PER_REQUEST))
    parser.add_argument("--no-load", action="store_true", help="the points are there already")
    parser.add_argument("--empty", action="store_true", help="inserts into an empty store only")
    parser.add_argument("--compare", action="store_true", help="inserts: empty store, then full")
    parser.add_argument("--compare-logs", action="store_true", help="log_queries all against off, in turn")
    parser.add_argument("--rounds", type=int, default=3, help="of --compare-logs: all, off, all, off, ...")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - for stdout")
    options = parser.parse_args()
    if options.url and (options.empty or options.compare or options.compare_logs):
        parser.error("--empty, --compare and --compare-logs start servers of their own: leave --url out")
    return options


def main() -> None:
    options = parse_options()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    head = machine()
    for name, value in head.items():
        print(f"{name}: {value}")
    if options.compare_logs:
        found = compare_logs(options)
        if options.json:
            write_json(options.json, {**head, "options": vars(options), "results": found})
        return
    workloads = options.workload or list(ROWS_PER_REQUEST)
    results: list[Result] = []
    load_rate = None
    if options.empty or options.compare:
        with own_server(options) as url:
            bench = Bench(url, options)
            results += [bench.measure(name, "empty") for name in workloads if name in INSERTS]
    if not options.empty:
        own = contextlib.nullcontext(options.url) if options.url else own_server(options)
        with own as url:
            bench = Bench(url, options)
            if options.no_load:
                bench.rows_per_series = options.points // options.series
            else:
                load_rate = bench.load()
            # Reads first: they are to be measured on what was loaded.
            for name in sorted(workloads, key=INSERTS.__contains__):
                results.append(bench.measure(name, "full"))
    progress("")
    print()
    print(table(results))
    if options.compare:
        print()
        print(comparison(results))
    if options.json:
        everything = {
            **head,
            "options": vars(options),
            "load_points_per_second": load_rate,
            "results": [asdict(result) for result in results],
        }
        write_json(options.json, everything)


def write_json(target: str, found: dict[str, Any]) -> None:
    """Write the results to a file, or to standard output: ``-``."""
    text = json.dumps(found, indent=2)
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text + "\n")


if __name__ == "__main__":
    main()
