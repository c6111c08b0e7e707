"""What sustained ingest costs OmenDB's readers and its disk: `make race-ingest`.

Reads are measured on a settled store, while rows come in at a steady rate, right after that (the store as
ingest has left it), and after a collection. One connection asks, so that the figures are those of a reader,
not of how dozens of them share the cores; the ratio to the settled store is what matters. What the
server writes to the disk is counted by the kernel (`write_bytes` of /proc/PID/io), from the first row of
ingest until the background work is done: log, flushes, merges and everything else.

    python -m perf.race.ingest --rates 100000,500000 --seconds 30
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from perf.race import load
from perf.race.__main__ import machine
from perf.race.contestants.omen import OmenDB
from perf.race.data import BASE_MS, STEP_MS, Dataset, line_bodies, regular
from perf.race.measure import BATCH_ROWS, say
from perf.race.process import wait_quiet
from perf.race.queries import Query
from perf.race.report import fill as fill_marks

POINT_BYTES = 24
"""A point in memory: series, timestamp, value."""
ASKED = 2_000
QUIET_SECONDS_MAX = 120.0
ROWS = 100


@dataclass
class Rate:
    """What was found at one rate of ingest.

    Attributes
    ----------
    rows_per_second : float
        As they were acknowledged.
    reads : dict
        By state of the store: requests a second of one connection, of old rows and of new ones.
    write_amplification : float
        Bytes written to the disk for each byte of points.
    """

    rows_per_second: float = 0.0
    reads: dict[str, tuple[float, float]] = field(default_factory=dict)
    write_amplification: float = 0.0
    segments: dict[str, int] = field(default_factory=dict)


class Store:
    """A server with a settled data set, and readers of it."""

    def __init__(self, root: Path, series: int, rows_per_series: int, seconds: float) -> None:
        self.seconds = seconds
        self.settled = regular("settled", series, rows_per_series)
        self.paths = root / "paths"
        directory = root / "store"
        directory.mkdir()
        self.server = OmenDB(directory)
        self.server.start()
        load.send_bodies(self.server.port, self.server.write_path, line_bodies(self.settled, BATCH_ROWS), 2)
        self.server.settle()
        self.chance = random.Random(series)

    def read(self, dataset: Dataset, rows_there: int, seconds: float | None = None) -> float:
        """Return requests a second of one connection that asks for 100 rows of a series, by its labels."""
        paths = []
        for _ in range(ASKED):
            first = BASE_MS + STEP_MS * self.chance.randint(0, max(rows_there - ROWS, 0))
            series = self.chance.randrange(dataset.series_count)
            paths.append(self.server.named_path(Query(dataset.name, first, first + STEP_MS * ROWS, series)))
        self.paths.write_text("\n".join(paths) + "\n")
        rate = load.wrk(self.server.port, 1, seconds or self.seconds, "get", str(self.paths), "1")
        assert rate.errors == 0, f"{rate.errors} requests failed"
        return rate.per_second

    def segments(self) -> int:
        """Return how many segments there are."""
        return int(json.loads(load.get(self.server.port, "/admin/stats"))["segments"])

    def written_bytes(self) -> int:
        """Return what the server has had written to the disk so far."""
        fields = dict(
            line.split(": ") for line in Path(f"/proc/{self.server.pid}/io").read_text().splitlines()
        )
        return int(fields["write_bytes"])


def measure(rows_per_second: int, seconds: float, root: Path, series: int, rows_per_series: int) -> Rate:
    """Measure one rate on a server of its own."""
    found = Rate()
    each = max(seconds / 10, 1.0)
    store = Store(root, series, rows_per_series, each)
    try:
        rows = -(-int(rows_per_second * seconds) // series)
        live = replace(regular("live", series, rows, seed=3), name="live")
        bodies = line_bodies(live, BATCH_ROWS)
        old = rows_per_series
        quiet = [store.read(store.settled, old) for _ in range(3)]
        # Before any row of ingest there is nothing new to read: the old rows stand for it.
        found.reads["settled"] = (statistics.median(quiet),) * 2
        found.segments["settled"] = store.segments()
        before = store.written_bytes()
        sender = load.start_sending(
            store.server.port,
            store.server.write_path,
            bodies,
            connections=2,
            per_second=rows_per_second / BATCH_ROWS,
            seconds_max=seconds,
        )
        began = time.monotonic()
        time.sleep(seconds / 5)
        during: list[tuple[float, float]] = []
        while time.monotonic() - began < seconds - 2 * each - 1:
            there = int((time.monotonic() - began) / seconds * rows) // 2
            during.append((store.read(store.settled, old), store.read(live, there)))
        sent = sender.result()
        found.rows_per_second = sent.per_second * BATCH_ROWS
        found.reads["during ingest"] = tuple(np.median(during, axis=0).tolist())
        found.reads["right after"] = (store.read(store.settled, old, 1), store.read(live, rows, 1))
        found.segments["right after"] = store.segments()
        wait_quiet(store.server.pid, QUIET_SECONDS_MAX)
        stored = sent.requests * BATCH_ROWS
        found.write_amplification = (store.written_bytes() - before) / (POINT_BYTES * stored)
        found.reads["at rest"] = (store.read(store.settled, old), store.read(live, rows))
        found.segments["at rest"] = store.segments()
        store.server.settle()
        found.reads["after a collection"] = (store.read(store.settled, old), store.read(live, rows))
        found.segments["after a collection"] = store.segments()
        return found
    finally:
        store.server.stop()
        shutil.rmtree(root / "store", ignore_errors=True)


def table(rates: list[Rate]) -> str:
    """Return the rates as Markdown."""
    lines = [
        "| rows/s in | store | segments | reads/s: old rows | new rows | of settled: old | new |",
        "|---|---|---|---|---|---|---|",
    ]
    for rate in rates:
        base = rate.reads["settled"][0]
        for state, (old, new) in rate.reads.items():
            segments = rate.segments.get(state, "-")
            lines.append(
                f"| {rate.rows_per_second:,.0f} | {state} | {segments} | {old:,.0f} | {new:,.0f} "
                f"| {old / base:.2f} | {new / base:.2f} |"
            )
    amplified = "; ".join(
        f"{rate.write_amplification:.2f} at {rate.rows_per_second:,.0f} rows/s" for rate in rates
    )
    lines += ["", f"Bytes written to the disk for each of the {POINT_BYTES} bytes of a point: {amplified}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rates", default="100000,500000", help="rows a second")
    parser.add_argument("--seconds", type=float, default=30, help="of ingest at each rate")
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=10_000, help="of each series, settled before")
    parser.add_argument(
        "--write", type=Path, nargs="*", default=[], help="documents with the mark `race:ingest`"
    )
    parser.add_argument("--output", type=Path, default=Path("build"), help="where ingest.* go")
    parser.add_argument("--directory", type=Path, help="where the servers' directories are made")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="omendb-ingest-", dir=options.directory))
    try:
        rates = []
        for rate in map(int, options.rates.split(",")):
            say(f"{rate:,} rows a second for {options.seconds:g} s")
            rates.append(measure(rate, options.seconds, root, options.series, options.rows))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    found = {**machine("perf.race.ingest"), "rates": [asdict(rate) for rate in rates]}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "ingest.json").write_text(json.dumps(found, indent=1) + "\n")
    text = f"{found['machine']}; commit {found['commit']}; `{found['command']}`\n\n{table(rates)}"
    (options.output / "ingest.md").write_text(text + "\n")
    for document in options.write:
        say(f"{document}: {fill_marks(document, 'race:ingest', text)} parts written")
    print(text)


if __name__ == "__main__":
    main()
