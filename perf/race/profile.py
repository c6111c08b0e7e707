"""Where OmenDB's time goes in each workload of the race: `make race-profile`.

Runs a workload against a loaded server, reads what the kernel knows of its threads, and samples the server
twice: its CPU time by native function with Linux' perf, and its Python functions with py-spy, the time of
kernels and of C counted for the Python function that calls them. Compiled kernels have no names for perf; the
last table says which they are.

    python -m perf.race.profile --workload range_100 --workload bulk
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perf.race import load
from perf.race.__main__ import machine
from perf.race.contestants.omen import OmenDB
from perf.race.data import Dataset, line_bodies, regular
from perf.race.measure import BATCH_ROWS, READ_CONNECTIONS, SINGLE_CONNECTIONS, WINDOW_MS, say
from perf.race.queries import Query
from perf.race.report import fill

RATE = 250
WORKLOADS = (
    "single",
    "bulk",
    "range_100",
    "range_1000",
    "windows_one",
    "windows_all",
    "merged",
    "windows_short",
    "export_json",
    "export_arrow",
)
WAITING = ("Condition.wait", "EpollSelector.select", "_PollLikeSelector.select", "_worker ", "Committer.run ")
"""Functions in which threads wait for work. py-spy takes some of these waits for work."""
_PROJECT = Path(__file__).resolve().parents[2] / "omendb"


class ProfilerError(Exception):
    """A profiler cannot do its work."""


class Workload:
    """Keeps a server busy in one way until it is told to stop."""

    def __init__(self, name: str, server: OmenDB, dataset: Dataset, seconds: float, root: Path) -> None:
        self.name = name
        self.server = server
        self.dataset = dataset
        self.seconds = seconds
        self.root = root
        self.over = threading.Event()

    def run(self) -> None:
        """Send requests for `seconds`, and a little longer."""
        dataset, name = self.dataset, self.name
        step = (dataset.stop - dataset.start) // 100
        whole = Query(dataset.name, dataset.start, dataset.stop)
        if name == "single":
            path, template = self.server.row_template()
            load.wrk(
                self.server.port,
                SINGLE_CONNECTIONS,
                self.seconds,
                "post",
                path,
                template,
                "1000",
                "1500000000",
            )
        elif name == "bulk":
            self._bulk()
        elif name in ("range_100", "range_1000"):
            self._paths(_ranges(dataset, 100 if name == "range_100" else 1_000))
        elif name == "windows_one":
            every = range(dataset.series_count)
            self._paths([Query(dataset.name, dataset.start, dataset.stop, series, step) for series in every])
        elif name == "export_arrow":
            self._repeat(self.server.arrow_path(whole))
        elif name == "export_json":
            self._repeat(self.server.path(whole))
        elif name == "windows_short":
            stop = min(dataset.start + WINDOW_MS, dataset.stop)
            self._repeat(self.server.path(Query(dataset.name, dataset.start, stop, step=WINDOW_MS // 10)))
        else:
            query = Query(dataset.name, dataset.start, dataset.stop, step=step, merged=name == "merged")
            self._repeat(self.server.path(query))

    def _bulk(self) -> None:
        bodies = line_bodies(self.dataset, BATCH_ROWS)
        while not self.over.is_set():
            sender = load.start_sending(
                self.server.port, self.server.write_path, bodies, connections=2, seconds_max=self.seconds
            )
            sender.result()

    def _paths(self, queries: list[Query]) -> None:
        file = self.root / "paths"
        file.write_text("\n".join(map(self.server.path, queries)) + "\n")
        load.wrk(self.server.port, READ_CONNECTIONS, self.seconds, "get", str(file), "1")

    def _repeat(self, path: str) -> None:
        while not self.over.is_set():
            load.time_get(self.server.port, path)


def _ranges(dataset: Dataset, rows: int) -> list[Query]:
    step = (dataset.stop - dataset.start) // dataset.rows_per_series
    rows = min(rows, dataset.rows_per_series)
    starts = range(0, dataset.rows_per_series - rows + 1, max((dataset.rows_per_series - rows) // 5, 1))
    return [
        Query(dataset.name, dataset.start + step * first, dataset.start + step * (first + rows), series)
        for series in range(dataset.series_count)
        for first in starts
    ]


def sample_functions(pid: int, seconds: float, file: Path) -> Counter[str]:
    """Sample the Python threads with py-spy; return how often each function was the innermost one."""
    command = [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(pid), "--nolineno"]
    command += [
        "--duration",
        str(round(seconds)),
        "--rate",
        str(RATE),
        "--format",
        "raw",
        "--output",
        str(file),
    ]
    _run("py-spy", command, seconds)
    times: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        frames, _, count = line.rpartition(" ")
        inner = frames.rpartition(";")[2]
        if inner and not inner.startswith(WAITING):
            times[_short(inner)] += int(count)
    return times


def sample_symbols(pid: int, seconds: float, file: Path) -> Counter[str]:
    """Sample the process' CPU time with Linux' perf; return how often each native function was met."""
    command = ["perf", "record", "-e", "cpu-clock", "-F", str(4 * RATE), "-p", str(pid), "-o", str(file)]
    _run("perf", [*command, "--", "sleep", str(round(seconds))], seconds)
    script = _run("perf", ["perf", "script", "-i", str(file), "-F", "ip,sym,dso"], seconds)
    times: Counter[str] = Counter()
    for line in script.splitlines():
        address_and_symbol, _, binary = line.strip().rpartition(" (")
        symbol = address_and_symbol.partition(" ")[2].partition("+0x")[0]
        binary = Path(binary.rstrip(")")).name
        if binary.startswith(("[JIT]", "perf-", "[unknown]", "//anon", "anon")):
            times["compiled kernels"] += 1
        elif symbol in ("", "[unknown]"):
            times[f"{binary} (no symbols)"] += 1
        elif binary in ("[kernel.kallsyms]", "[guest.kernel.kallsyms]"):
            times["Linux: " + symbol] += 1
        else:
            times[f"{binary}: {symbol}"] += 1
    return times


@dataclass(frozen=True)
class ThreadTime:
    """What a thread did, of a second.

    Attributes
    ----------
    runs, waits : float
        On a processor; ready to run, and waiting for one.
    user : float
        The part of `runs` outside of the kernel.
    sleeps, stopped : float
        How often it went to sleep by itself; how often another one took the processor from it.
    """

    name: str
    runs: float
    waits: float
    user: float
    sleeps: float
    stopped: float


def sample_threads(pid: int, seconds: float, names: dict[int, str]) -> list[ThreadTime]:
    """Return what the threads did in the next seconds; those that use a hundredth of a core or more."""
    before = {tid: _thread_figures(pid, tid) for tid in _threads(pid)}
    time.sleep(seconds)
    found = []
    for tid in _threads(pid):
        if tid not in before:
            continue
        comm, *figures = _thread_figures(pid, tid)
        runs, waits, user, sleeps, stopped = (
            (new - old) / seconds for new, old in zip(figures, before[tid][1:], strict=True)
        )
        if runs >= 0.01:
            name = names.get(tid) or (comm if comm.startswith("tokio") else "answers (granian's)")
            found.append(ThreadTime(name, runs, waits, min(user, runs), sleeps, stopped))
    return sorted(found, key=lambda thread: -thread.runs)


def _threads(pid: int) -> list[int]:
    return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]


def _thread_figures(pid: int, tid: int) -> tuple[str, float, float, float, float, float]:
    place = Path(f"/proc/{pid}/task/{tid}")
    try:
        runs, waits, _ = (place / "schedstat").read_text().split()
        stat = (place / "stat").read_text().rpartition(")")[2].split()
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    except OSError:  # it has ended
        return "", 0.0, 0.0, 0.0, 0.0, 0.0
    user = int(stat[11]) / os.sysconf("SC_CLK_TCK")
    switches = [float(status[f"{kind}_ctxt_switches"]) for kind in ("voluntary", "nonvoluntary")]
    return status["Name"].strip(), int(runs) / 1e9, int(waits) / 1e9, user, switches[0], switches[1]


def python_threads(pid: int) -> dict[int, str]:
    """Return the names of Python's threads by their numbers."""
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--json", "--pid", str(pid)]
    return {
        int(thread["os_thread_id"]): str(thread["thread_name"] or "")
        for thread in json.loads(_run("py-spy", command, 10))
        if thread.get("os_thread_id") is not None
    }


def thread_table(threads: list[ThreadTime]) -> str:
    """Return what the threads did as Markdown."""
    lines = [
        "| thread | runs, cores | of it in user mode | waits for a core | sleeps/s | stopped/s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {thread.name} | {thread.runs:.2f} | {thread.user:.2f} | {thread.waits:.2f} "
        f"| {thread.sleeps:,.0f} | {thread.stopped:,.0f} |"
        for thread in threads
    ]
    return "\n".join(lines)


def _run(name: str, command: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, check=False)
    except FileNotFoundError as error:
        raise ProfilerError(f"{name} is not installed") from error
    if done.returncode:
        raise ProfilerError(f"{name} failed: {done.stdout[-300:]}{done.stderr[-600:]}")
    return done.stdout


def _short(frame: str) -> str:
    text = frame.replace(str(_PROJECT), "omendb")
    return text if len(text) <= 90 else text[:87] + "..."


def table(title: str, times: Counter[str], rows: int) -> str:
    """Return what takes most, in percent of all samples."""
    total = max(sum(times.values()), 1)
    lines = [f"| {title}, {total:,} samples | |", "|---|---|"]
    shown = times.most_common(rows)
    lines += [f"| `{where}` | {count / total:.1%} |" for where, count in shown]
    lines.append(f"| all others | {(sum(times.values()) - sum(count for _, count in shown)) / total:.1%} |")
    return "\n".join(lines)


def profile(
    name: str, dataset: Dataset, seconds: float, root: Path
) -> tuple[list[ThreadTime], Counter[str], Counter[str]]:
    """Profile one workload on a server of its own: threads, native functions, then Python's."""
    directory = root / name
    directory.mkdir()
    server = OmenDB(directory)
    try:
        server.start()
        if name not in ("single", "bulk"):
            server.load(dataset)
            server.settle()
        workload = Workload(name, server, dataset, 3 * seconds + 6, root)
        failures: list[BaseException] = []
        runner = threading.Thread(target=_keep_failure(workload.run, failures))
        runner.start()
        try:
            time.sleep(1)
            threads = sample_threads(server.pid, seconds / 2, python_threads(server.pid))
            symbols = sample_symbols(server.pid, seconds, root / f"{name}.perf")
            functions = sample_functions(server.pid, seconds, root / f"{name}.spy")
        finally:
            workload.over.set()
            runner.join()
        if failures:
            raise failures[0]
        return threads, symbols, functions
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _keep_failure(work: Callable[[], None], failures: list[BaseException]) -> Callable[[], None]:
    def run() -> None:
        try:
            work()
        except (load.RequestError, OSError, subprocess.SubprocessError) as error:
            failures.append(error)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="some of them only")
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rows", type=int, default=12, help="functions shown of each workload")
    parser.add_argument(
        "--write", type=Path, nargs="*", default=[], help="documents with the mark `race:profile`"
    )
    parser.add_argument("--output", type=Path, default=Path("build"), help="where profile.md goes")
    parser.add_argument("--directory", type=Path, help="where the servers' directories are made")
    options = parser.parse_args()
    dataset = regular("main", options.series, options.points // options.series)
    head = machine("perf.race.profile")
    parts = [f"{head['machine']}; commit {head['commit']}; `{head['command']}`"]
    root = Path(tempfile.mkdtemp(prefix="omendb-profile-", dir=options.directory))
    try:
        for name in options.workload or WORKLOADS:
            say(name)
            try:
                threads, symbols, functions = profile(name, dataset, options.seconds, root)
                parts.append(f"`{name}`\n\n{thread_table(threads)}")
                parts.append(table("CPU time by native function", symbols, options.rows))
                parts.append(
                    table("Python functions, with what they call in C and kernels", functions, options.rows)
                )
            except (load.RequestError, ProfilerError, OSError) as error:
                parts.append(f"`{name}`: {' '.join(str(error).split())[:300]}")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    options.output.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(parts) + "\n"
    (options.output / "profile.md").write_text(text)
    for document in options.write:
        say(f"{document}: {fill(document, 'race:profile', text.strip())} parts written")
    print(text)


if __name__ == "__main__":
    main()
