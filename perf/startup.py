"""Where the time of a start goes: the interpreter, imports, compiled kernels, the store.

    python perf/startup.py                      # 10 M points
    python perf/startup.py --points 1000000 --rounds 3

Kernels are compiled first, unless they are in the cache already: nothing is compiled in a start that is
measured, which is checked.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts a script's directory first: there `http.py` would be taken for the standard `http`.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import argparse
import os
import platform
import re
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter

import numpy as np

PROGRAM = str(Path(sys.executable).with_name("omendb"))
PACKAGES_SHOWN = 8
READY_SECONDS = 120


def load(directory: Path, points: int) -> None:
    """Make a settled store."""
    import omendb

    series = 1_000
    rows = points // series
    with omendb.open(directory) as store:
        for first in range(0, series, 100):
            ids = np.repeat(np.arange(first, first + 100), rows)
            timestamps = np.tile(1_700_000_000_000 + 10_000 * np.arange(rows), 100)
            store.insert(ids, timestamps, (ids + timestamps) % 1_000 / 4)
        store.gc()


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def imports() -> Counter[str]:
    """Return the milliseconds that the modules of each package took to import, by themselves."""
    command = [sys.executable, "-X", "importtime", "-c", "import omendb.cli.serve, omendb.server.serve"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    times: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        found = re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", line)
        if found:
            times[found[2].partition(".")[0]] += int(found[1])
    return times


def kernels() -> str:
    """Return what the program says of its kernels."""
    done = subprocess.run([PROGRAM, "warmup"], check=True, capture_output=True, text=True)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def to_first_answer(directory: Path) -> tuple[float, float]:
    """Start a server; return the seconds until `/ready` says so, and until a query was answered."""
    port = free_port()
    command = [PROGRAM, "serve", "--data-dir", str(directory), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--metrics-port", str(free_port())]
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if time.perf_counter() - started > READY_SECONDS or server.poll() is not None:
                    raise SystemExit("the server did not become ready") from None
                time.sleep(0.002)
        ready = time.perf_counter() - started
        urllib.request.urlopen(f"http://127.0.0.1:{port}/query?series_id=7&limit=100", timeout=30).read()
        return ready, time.perf_counter() - started
    finally:
        server.terminate()
        server.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    kernels()
    said = kernels()
    if " 0 compiled" not in said:
        raise SystemExit(f"kernels were compiled although they should be in the cache: {said}")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; {said}")
    with tempfile.TemporaryDirectory(prefix="omendb-startup-") as directory:
        load(Path(directory, "store"), options.points)
        bare = statistics.median(seconds_of([sys.executable, "-c", "pass"]) for _ in range(options.rounds))
        imported = [
            seconds_of([sys.executable, "-c", "import omendb.cli.serve, omendb.server.serve"])
            for _ in range(options.rounds)
        ]
        empty, full = (
            [to_first_answer(Path(directory, name)) for _ in range(options.rounds)]
            for name in ("empty", "store")
        )
    print(f"the interpreter alone            {bare * 1e3:6.0f} ms")
    print(f"with everything imported         {statistics.median(imported) * 1e3:6.0f} ms")
    for title, found in (("an empty store", empty), (f"{options.points:,} points", full)):
        ready, answered = (statistics.median(times) * 1e3 for times in zip(*found, strict=True))
        print(f"{title:<24} ready   {ready:6.0f} ms, first answer {answered:6.0f} ms")
    print("imports, by package, without those that they import:")
    for package, microseconds in imports().most_common(PACKAGES_SHOWN):
        print(f"  {package:<24} {microseconds / 1e3:6.0f} ms")


if __name__ == "__main__":
    main()
