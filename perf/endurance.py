"""Whether a server stays as it is: mixed load for a long time, with maintenance and restarts.

    python perf/endurance.py --minutes 30 --json endurance.json --svg endurance.svg

Writers insert single points and batches, overwrite, and keep within a bounded set of keys, so that a store
that gives space back stays flat; readers ask for ranges and windows. Every now and then the index is
retrained, the store compacted, or the server stopped and started again on the same data (a quarter of the
restarts by kill -9). Each few seconds a sample is taken of the process (memory, descriptors, maps), the
directory (bytes on disk, of the log) and the latencies since the last sample. At the end the medians of the
first and the last quarter stand side by side. Ends non-zero when a request failed that nothing explains: what
a restart or a shortage of memory refuses is repeated, and counted apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts a script's directory first: there `perf/http.py` would be taken for the standard `http`.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import urllib3

if TYPE_CHECKING:
    from collections.abc import Callable

READY_SECONDS = 300
STEP = 1_000


class Server:
    """`omendb serve` on free ports, again and again on the same directory."""

    def __init__(self, directory: Path, options: list[str]) -> None:
        self.directory = directory
        self.port, self.metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ready = threading.Event()
        self.log = (directory.parent / "server.log").open("ab")
        self._options = options
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        program = str(Path(sys.executable).with_name("omendb"))
        command = [program, "serve", f"--data-dir={self.directory}", "--host=127.0.0.1"]
        command += [f"--port={self.port}", f"--metrics-port={self.metrics_port}", *self._options]
        process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        give_up = time.monotonic() + READY_SECONDS
        while time.monotonic() < give_up and process.poll() is None:
            try:
                if urllib3.request("GET", self.url + "/ready", retries=False, timeout=5).status == 200:
                    self.ready.set()
                    return process
            except urllib3.exceptions.HTTPError:
                pass
            time.sleep(0.02)
        process.kill()
        raise SystemExit(f"the server did not get ready, see {self.log.name}")

    def restart(self, *, kill: bool) -> float:
        """End the process and start another; return the seconds until it is ready."""
        self.ready.clear()
        self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        self.process.wait(READY_SECONDS)
        started = time.monotonic()
        self.process = self._start()
        return time.monotonic() - started

    def stop(self) -> None:
        """End it for good."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(READY_SECONDS)
        finally:
            self.process.kill()
            self.log.close()


class Load:
    """Threads that ask and insert; latencies by kind since the last sample."""

    def __init__(self, server: Server, series: int, rows: int) -> None:
        self.server = server
        self.series, self.rows = series, rows
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._pool = urllib3.PoolManager(maxsize=32, retries=False, timeout=120)
        self._lock = threading.Lock()  # protects the counts and the latencies
        self._latencies: dict[str, list[float]] = defaultdict(list)

    def take_latencies(self) -> dict[str, list[float]]:
        """Return the latencies since the last call."""
        with self._lock:
            taken, self._latencies = self._latencies, defaultdict(list)
        return taken

    def call(self, kind: str, method: str, path: str, body: object = None) -> None:
        """Do one request, again and again until it is answered."""
        data = None if body is None else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        while not self.stop.is_set():
            if not self.server.ready.wait(1):
                continue
            started = time.perf_counter()
            try:
                response = self._pool.request(method, self.server.url + path, body=data)
            except urllib3.exceptions.HTTPError:
                # Cut off by a restart: sending it again is always safe.
                with self._lock:
                    self.counts["cut_off"] += 1
                time.sleep(0.05)
                continue
            with self._lock:
                if response.status == 200:
                    self._latencies[kind].append(1e3 * (time.perf_counter() - started))
                    self.counts[kind] += 1
                    return
                self.counts[f"status_{response.status}"] += 1
                if response.status != 503:
                    self.failures.append(f"{kind}: {response.status} {response.data[:200]!r}")
                    return
            time.sleep(0.1)

    def fill(self) -> None:
        """Insert every key once, so that the store is as large from the start as it may get."""
        rows = np.arange(self.rows) * STEP
        for series in range(self.series):
            self.call("fill", "POST", "/insert", {"series_id": series, "timestamp": rows, "value": rows / 8})

    def work(self, number: int, seed: int, pause: float) -> None:
        """Do a mix of requests until `stop`."""
        rng = np.random.default_rng([seed, number])
        done = 0
        while not self.stop.is_set():
            series = int(rng.integers(self.series))
            start = int(rng.integers(self.rows)) * STEP
            kind = rng.random()
            if kind < 0.35:
                point = {"series_id": series, "timestamp": start, "value": round(rng.normal(), 3)}
                self.call("insert_one", "POST", "/insert", point)
            elif kind < 0.55:
                # All of it in order of time, then over and over again.
                rows = (done * 500 + np.arange(500)) % self.rows
                done += 1
                value = np.round(rng.normal(20, 5, 500), 2)
                columns = {"series_id": series, "timestamp": rows * STEP, "value": value}
                self.call("insert_batch", "POST", "/insert", columns)
            elif kind < 0.85:
                end = start + 100 * STEP
                path = f"/query?series_id={series}&start={start}&end={end}&format=columns"
                self.call("range", "GET", path)
            else:
                end = start + 10_000 * STEP
                path = f"/query?series_id={series}&start={start}&end={end}&step={100 * STEP}&agg=mean,max"
                self.call("windows", "GET", path)
            if pause:
                self.stop.wait(pause)


def free_port() -> int:
    """Return a port that nothing listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def sample(server: Server, load: Load, seconds: float) -> dict[str, float]:
    """Look at the process and its directory."""
    base = Path(f"/proc/{server.process.pid}")
    status = dict(line.split(":", 1) for line in (base / "status").read_text().splitlines())
    files = [path for path in server.directory.rglob("*") if path.is_file()]
    found: dict[str, float] = {
        "seconds": round(seconds, 1),
        "rss_anon_mb": int(status["RssAnon"].split()[0]) / 1024,
        "rss_file_mb": int(status["RssFile"].split()[0]) / 1024,
        "descriptors": len(list((base / "fd").iterdir())),
        "maps": (base / "maps").read_text().count("\n"),
        "threads": int(status["Threads"]),
        "disk_mb": 0.0,
        "wal_mb": 0.0,
        "files": len(files),
    }
    for path in files:
        try:
            size = path.stat().st_size / 1e6
        except FileNotFoundError:
            continue  # compacted away meanwhile
        found["disk_mb"] += size
        if path.suffix == ".wal":
            found["wal_mb"] += size
    for kind, latencies in load.take_latencies().items():
        latencies.sort()
        found[f"{kind}_per_second"] = len(latencies)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            found[f"{kind}_{name}_ms"] = latencies[int(share * (len(latencies) - 1))]
    return found


def run(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Keep a server busy, and return samples and events."""
    server = Server(directory, [f"--retrain-threshold={options.retrain_threshold}"])
    load = Load(server, options.series, options.rows)
    threads = [
        threading.Thread(target=load.work, args=(number, options.seed, options.pause), daemon=True)
        for number in range(options.threads)
    ]
    rng = np.random.default_rng(options.seed)
    samples: list[dict[str, float]] = []
    events: list[dict[str, Any]] = []
    actions: dict[str, Callable[[], object]] = {
        "gc": lambda: load.call("gc", "POST", "/admin/gc"),
        "retrain": lambda: load.call("retrain", "POST", "/admin/retrain-index"),
        "restart": lambda: server.restart(kill=False),
        "kill": lambda: server.restart(kill=True),
    }
    names = ["gc", "retrain", "gc", "retrain", "restart", "gc", "retrain", "kill"]
    try:
        load.fill()
        load.take_latencies()
        for thread in threads:
            thread.start()
        started = last = time.monotonic()
        next_action = started + options.action_seconds
        while (now := time.monotonic()) - started < 60 * options.minutes:
            if now >= next_action:
                name = names[len(events) % len(names)]
                begun = time.monotonic()
                actions[name]()
                event = {"seconds": round(begun - started, 1), "event": name}
                events.append({**event, "took": round(time.monotonic() - begun, 3)})
                next_action = time.monotonic() + options.action_seconds * float(rng.uniform(0.5, 1.5))
            time.sleep(max(0.0, last + options.sample_seconds - time.monotonic()))
            last, passed = time.monotonic(), time.monotonic() - last
            taken = sample(server, load, last - started)
            for name in [name for name in taken if name.endswith("_per_second")]:
                taken[name] = round(taken[name] / passed, 1)
            samples.append({name: round(value, 3) for name, value in taken.items()})
    finally:
        load.stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(130)
        server.stop()
    return {"samples": samples, "events": events, "counts": dict(load.counts), "failures": load.failures}


def quarters(samples: list[dict[str, float]]) -> list[tuple[str, float, float]]:
    """Return the medians of the first and the last quarter of each figure.

    The first tenth is left out: caches fill then.
    """
    settled = samples[len(samples) // 10 :]
    quarter = max(len(settled) // 4, 1)
    names = sorted({name for one in settled for name in one} - {"seconds"})
    rows: list[tuple[str, float, float]] = []
    for name in names:
        first = [one[name] for one in settled[:quarter] if name in one]
        last = [one[name] for one in settled[-quarter:] if name in one]
        if first and last:
            rows.append((name, statistics.median(first), statistics.median(last)))
    return rows


def draw(result: dict[str, Any]) -> str:
    """Draw every figure over time as SVG; restarts are red lines, maintenance grey ones."""
    charts = [
        ("memory, MB", ["rss_anon_mb", "rss_file_mb"]),
        ("disk, MB", ["disk_mb", "wal_mb"]),
        ("descriptors, maps, threads", ["descriptors", "maps", "threads"]),
        ("single inserts, ms", ["insert_one_p50_ms", "insert_one_p95_ms", "insert_one_p99_ms"]),
        ("batches of 500, ms", ["insert_batch_p50_ms", "insert_batch_p95_ms", "insert_batch_p99_ms"]),
        ("ranges of 100 rows, ms", ["range_p50_ms", "range_p95_ms", "range_p99_ms"]),
        ("100 windows of 100 rows, ms", ["windows_p50_ms", "windows_p95_ms", "windows_p99_ms"]),
        ("requests a second", ["insert_one_per_second", "insert_batch_per_second", "range_per_second"]),
    ]
    colours = ["#1f77b4", "#ff7f0e", "#2ca02c"]
    samples, width, height = result["samples"], 900, 150
    until = max(samples[-1]["seconds"], 1.0)
    size = f'width="{width + 80}" height="{len(charts) * (height + 40)}"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for position, (title, names) in enumerate(charts):
        top = position * (height + 40) + 25
        highest = max((one.get(name, 0.0) for one in samples for name in names), default=0.0) or 1.0
        out.append(f'<text x="60" y="{top - 8}" font-weight="bold">{title}</text>')
        out.append(f'<rect x="60" y="{top}" width="{width}" height="{height}" fill="none" stroke="#ccc"/>')
        out.append(f'<text x="55" y="{top + 10}" text-anchor="end">{highest:.4g}</text>')
        out.append(f'<text x="55" y="{top + height}" text-anchor="end">0</text>')
        out.append(f'<text x="{60 + width}" y="{top + height + 12}" text-anchor="end">{until:.0f} s</text>')
        for event in result["events"]:
            x = 60 + width * event["seconds"] / until
            colour = "#d62728" if event["event"] in ("restart", "kill") else "#ddd"
            line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}" stroke="{colour}"/>'
            out.append(line)
        for number, name in enumerate(names):
            points = " ".join(
                f"{60 + width * one['seconds'] / until:.1f},{top + height * (1 - one[name] / highest):.1f}"
                for one in samples
                if name in one
            )
            colour = colours[number]
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
            x = 60 + 160 * (number + 1)
            out.append(f'<text x="{x}" y="{top - 8}" fill="{colour}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> int:
    """Run, print the comparison, write the files asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=8, help="clients")
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds that a client waits after a request"
    )
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--rows", type=int, default=20_000, help="keys of each series")
    parser.add_argument("--retrain-threshold", type=int, default=500_000)
    parser.add_argument("--sample-seconds", type=float, default=3.0)
    parser.add_argument("--action-seconds", type=float, default=20.0, help="between maintenance or restarts")
    parser.add_argument("--directory", type=Path, help="where to make the store; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write all samples there")
    parser.add_argument("--svg", type=Path, help="draw them there")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.minutes} minutes", flush=True)
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        result = run(options, Path(name) / "data")
    result["options"] = {key: str(value) for key, value in vars(options).items()}
    result["cpus"] = os.cpu_count()
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(draw(result))
    print(f"{'median of':<28} {'first quarter':>14} {'last quarter':>14}  ratio")
    for name, first, last in quarters(result["samples"]):
        print(f"{name:<28} {first:>14.3f} {last:>14.3f}  {last / first if first else 1.0:.2f}")
    events = Counter(event["event"] for event in result["events"])
    print(f"requests {result['counts']}; events {dict(events)}; failures {len(result['failures'])}")
    for failure in result["failures"][:5]:
        print(failure)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
