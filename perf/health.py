"""How fast health, readiness and metrics answer while the server is busy.

    python perf/health.py
    python perf/health.py --seconds 30 --points 20000000

Starts a server of its own, loads points, and asks `/health`, `/ready` and `/metrics` on the metrics port and
`/health` on the HTTP port, each over a new connection as a probe does, one after the other: first in peace,
then while `wrk` inserts over 64 connections and queries over 64 more, then with compactions (`/admin/gc`)
under way as well. Prints percentiles and the largest time, in milliseconds. Client, load and server share
the machine; `--json` writes the figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts a script's directory first: there `http.py` would be taken for the standard `http`.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import argparse
import json
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import urllib3

from perf.http import FIRST_TIMESTAMP, SCRIPT, Bench, machine, run_server

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_MS = 100.0


class Probes:
    """Asks four addresses in turn, and keeps the times."""

    def __init__(self, url: str, metrics_url: str) -> None:
        self._targets = {
            "health (metrics port)": metrics_url + "/health",
            "ready (metrics port)": metrics_url + "/ready",
            "metrics": metrics_url + "/metrics",
            "health (HTTP port)": url + "/health",
        }

    def ask(self, seconds: float, pause_seconds: float = 0.02) -> dict[str, list[float]]:
        """Return the times of each address, in milliseconds."""
        times: dict[str, list[float]] = {name: [] for name in self._targets}
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for name, address in self._targets.items():
                started = time.perf_counter()
                with urllib3.PoolManager(retries=False, timeout=30) as pool:
                    status = pool.request("GET", address, headers={"connection": "close"}).status
                times[name].append((time.perf_counter() - started) * 1e3)
                if status != 200:
                    raise SystemExit(f"{address}: {status}")
                time.sleep(pause_seconds)
        return times


def load(bench: Bench, workload: str, seconds: float) -> subprocess.Popen[bytes]:
    """Start a workload over 64 connections."""
    bench.round += 1
    command = [
        "wrk",
        "-t1",
        "-c64",
        f"-d{int(seconds) + 1}s",
        "--timeout",
        "30s",
        "-s",
        str(SCRIPT),
        bench.url,
    ]
    numbers = (bench.options.series, bench.rows_per_series, FIRST_TIMESTAMP, bench.round)
    command += ["--", workload, *map(str, numbers)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def compact(url: str, stop: threading.Event) -> None:
    """Collect garbage until told to stop: a flush and a merge of everything, each time."""
    while not stop.is_set():
        urllib3.request("POST", url + "/admin/gc", timeout=600, retries=False)


def phases(bench: Bench, probes: Probes, seconds: float) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Yield each situation with its times."""
    yield "idle", probes.ask(seconds)
    stop = threading.Event()
    for name, merging in (("64 insert, 64 query", False), ("64 insert, 64 query, compaction", True)):
        running = [load(bench, workload, seconds) for workload in ("insert_one", "range_100")]
        collector = threading.Thread(target=compact, args=(bench.url, stop))
        if merging:
            collector.start()
        yield name, probes.ask(seconds)
        stop.set()
        if merging:
            collector.join()
        for process in running:
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-dir", help="where the server's directory is made")
    parser.add_argument("--points", type=int, default=5_000_000, help="points to load")
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=15, help="measured time of each situation")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    head = {**machine(), "command": " ".join(["python", "perf/health.py", *sys.argv[1:]])}
    for name, value in head.items():
        print(f"{name}: {value}")
    results: dict[str, dict[str, dict[str, float]]] = {}
    with run_server(options.data_dir) as server:
        bench = Bench(server.url, options)
        bench.load()
        print(f"\n{'':34}{'':24}{'asked':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}")
        for situation, times in phases(bench, Probes(server.url, server.metrics_url), options.seconds):
            results[situation] = {}
            for name, found in times.items():
                p50, p95, p99 = np.percentile(found, (50, 95, 99))
                figures = {"p50": p50, "p95": p95, "p99": p99, "max": max(found), "asked": len(found)}
                results[situation][name] = {key: float(value) for key, value in figures.items()}
                print(f"{situation:34}{name:24}{len(found):8}{p50:9.1f}{p95:9.1f}{p99:9.1f}{max(found):9.1f}")
    worst = max(figures["max"] for named in results.values() for figures in named.values())
    print(
        f"\nslowest answer {worst:.1f} ms: {'under' if worst < LIMIT_MS else 'NOT under'} {LIMIT_MS:.0f} ms"
    )
    if options.json:
        Path(options.json).write_text(json.dumps({**head, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
