"""How the cost of OmenDB's queries grows with points and series: `make race-scaling`.

Point and range queries are to cost the same however much is stored; scans are to cost in proportion to the
rows that they read. Writes JSON, a Markdown table and a plot.

    python -m perf.race.scaling --points 1000000,10000000,100000000 --series 1000,10000,100000
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from perf.race import load
from perf.race.__main__ import machine
from perf.race.contestants.base import LOAD_CONNECTIONS
from perf.race.contestants.omen import OmenDB
from perf.race.data import BASE_MS, HALF_STEP_MS, STEP_MS, Float64s, Int64s
from perf.race.measure import READ_CONNECTIONS, say
from perf.race.process import cpu_seconds
from perf.race.queries import Answer, Query, compare
from perf.race.report import fill as fill_marks

BODY_ROWS = 100_000
BODIES_HELD = 50
CHECKED = 100
PATHS = 5_000
NAME = "scaling"
MEASURES = {
    "point": ("one point, 32 connections", "CPU µs"),
    "range_100": ("100-row range, 32 connections", "CPU µs"),
    "windows_100": ("100 rows into 10 means, 32 connections", "CPU µs"),
    "scan_each": ("10 means for each series", "ms"),
    "scan_merged": ("10 means over all series", "ms"),
}


@dataclass
class Size:
    """What was found at one size.

    Attributes
    ----------
    per_second, cpu_us, p99_ms : dict
        By measure: requests a second, CPU time of the server for one request, 99th percentile.
    scan_ms : dict
        By measure: median time of a scan of everything.
    """

    points: int
    series: int
    load_per_second: float
    per_second: dict[str, float]
    cpu_us: dict[str, float]
    p99_ms: dict[str, float]
    scan_ms: dict[str, float]
    disk_bytes_per_point: float
    memory_mb: float


def value_of(series: Int64s, row: Int64s) -> Float64s:
    """Return the value of a row: two decimals, and known without keeping it."""
    return ((series * 7_919 + row * 104_729) % 90_000 + 10_000) / 100.0


def bodies(series_count: int, rows_per_series: int) -> Iterator[bytes]:
    """Make columns in the order of time."""
    total = series_count * rows_per_series
    for first in range(0, total, BODY_ROWS):
        place = np.arange(first, min(first + BODY_ROWS, total), dtype=np.int64)
        row, series = np.divmod(place, series_count)
        columns = {
            "series_id": series,
            "timestamp": BASE_MS + HALF_STEP_MS + STEP_MS * row,
            "value": value_of(series, row),
        }
        yield orjson.dumps(columns, option=orjson.OPT_SERIALIZE_NUMPY)


def fill(server: OmenDB, series_count: int, rows_per_series: int) -> float:
    """Load a server; return the points per second of the sending alone."""
    seconds, held = 0.0, []
    made = bodies(series_count, rows_per_series)
    while held := list(itertools.islice(made, BODIES_HELD)):
        started = time.perf_counter()
        load.send_bodies(server.port, "/insert", held, LOAD_CONNECTIONS)
        seconds += time.perf_counter() - started
    return series_count * rows_per_series / seconds


def measure(points: int, series_count: int, seconds: float, root: Path) -> Size:
    """Measure one size on a server of its own."""
    rows_per_series = points // series_count
    directory = root / f"{points}-{series_count}"
    directory.mkdir()
    server = OmenDB(directory)
    chance = random.Random(points + series_count)
    try:
        server.start()
        rate = fill(server, series_count, rows_per_series)
        server.settle()
        stored = server.count(NAME)
        assert stored == series_count * rows_per_series, f"{stored:,} points are stored"
        size = Size(points, series_count, rate, {}, {}, {}, {}, server.disk_bytes() / points, 0)
        for name, rows in (("point", 1), ("range_100", 100), ("windows_100", 100)):
            if rows <= rows_per_series:
                step = STEP_MS * 10 if name == "windows_100" else None
                _many(
                    server, size, name, _queries(chance, series_count, rows_per_series, rows, step), seconds
                )
        span = STEP_MS * rows_per_series
        for name in ("scan_each", "scan_merged"):
            query = Query(NAME, BASE_MS, BASE_MS + span, step=span // 10, merged=name == "scan_merged")
            windows = len(server.answer(query).value)
            assert windows == 10 * (1 if query.merged else series_count), f"{windows} windows"
            times = [server.time(query)]
            while sum(times) < seconds and len(times) < 30:
                times.append(server.time(query))
            size.scan_ms[name] = statistics.median(times) * 1000
        size.memory_mb = server.memory_bytes() / 1e6
        return size
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _queries(
    chance: random.Random, series_count: int, rows_per_series: int, rows: int, step: int | None
) -> list[Query]:
    queries = []
    for _ in range(PATHS):
        first = BASE_MS + STEP_MS * chance.randint(0, rows_per_series - rows)
        queries.append(Query(NAME, first, first + STEP_MS * rows, chance.randrange(series_count), step))
    return queries


def _many(server: OmenDB, size: Size, name: str, queries: list[Query], seconds: float) -> None:
    for query in queries[:CHECKED]:
        first = (query.start - BASE_MS) // STEP_MS
        row = np.arange(first, (query.stop - BASE_MS) // STEP_MS, dtype=np.int64)
        series = np.full(len(row), query.series, dtype=np.int64)
        right = Answer(series, BASE_MS + HALF_STEP_MS + STEP_MS * row, value_of(series, row))
        if query.step is not None:
            means = right.value.reshape(-1, 10).mean(axis=1)
            right = Answer(series[::10], query.start + query.step * np.arange(len(means)), means)
        compare(server.answer(query), right, exact=query.step is None)
    file = server.directory.with_suffix(".paths")
    file.write_text("\n".join(map(server.path, queries)) + "\n")
    cpu = cpu_seconds(server.pid)
    rate = load.wrk(server.port, READ_CONNECTIONS, seconds, "get", str(file), "1")
    cpu = cpu_seconds(server.pid) - cpu
    assert rate.errors == 0, f"{rate.errors} requests failed"
    size.per_second[name] = rate.per_second
    size.cpu_us[name] = cpu / rate.requests * 1e6
    size.p99_ms[name] = rate.p99_ms


def table(sizes: list[Size]) -> str:
    """Return the sizes as Markdown."""
    lines = [
        "| points | series | load points/s | "
        + " | ".join(f"{title}: {unit}" for title, unit in MEASURES.values())
        + " | bytes/point | RssAnon MB |",
        "|---|---|---|" + "---|" * (len(MEASURES) + 2),
    ]
    for size in sizes:
        figures = [size.cpu_us.get(name, size.scan_ms.get(name)) for name in MEASURES]
        shown = ["-" if figure is None else f"{figure:,.1f}" for figure in figures]
        cells = [f"{size.points:,}", f"{size.series:,}", f"{size.load_per_second:,.0f}", *shown]
        cells += [f"{size.disk_bytes_per_point:.1f}", f"{size.memory_mb:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(sizes: list[Size], file: Path) -> None:
    """Draw each measure over the number of points, a line for each number of series."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "scaling"
    from matplotlib import pyplot as plt

    figure, places = plt.subplots(1, len(MEASURES), figsize=(3 * len(MEASURES), 3.2))
    for axes, (name, (title, unit)) in zip(places, MEASURES.items(), strict=True):
        for series in sorted({size.series for size in sizes}):
            chosen = [size for size in sizes if size.series == series]
            found = [(size.points, size.cpu_us.get(name, size.scan_ms.get(name))) for size in chosen]
            known = [(points, value) for points, value in found if value is not None]
            if known:
                axes.plot(*zip(*known, strict=True), marker="o", markersize=3, label=f"{series:,} series")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("points", fontsize=8)
        axes.set_ylabel(unit, fontsize=8)
        axes.tick_params(labelsize=7)
        if name in ("point", "range_100", "windows_100"):
            axes.set_ylim(5, 500)
    places[0].legend(fontsize=7)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--points", type=_numbers, default="1000000,10000000,100000000")
    parser.add_argument("--series", type=_numbers, default="1000,10000,100000")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument(
        "--write", type=Path, nargs="*", default=[], help="documents with the mark `race:scaling`"
    )
    parser.add_argument("--output", type=Path, default=Path("build"), help="where scaling.* go")
    parser.add_argument("--plot", type=Path, help="a further copy of the plot")
    parser.add_argument("--directory", type=Path, help="where the servers' directories are made")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="omendb-scaling-", dir=options.directory))
    sizes: list[Size] = []
    try:
        for series in options.series:
            for points in options.points:
                say(f"{points:,} points of {series:,} series")
                sizes.append(measure(points, series, options.seconds, root))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {**machine("perf.race.scaling"), "sizes": [asdict(size) for size in sizes]}
    (options.output / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.output / "scaling.md").write_text(table(sizes) + "\n")
    for place in (options.output / "scaling.svg", options.plot):
        if place is not None:
            plot(sizes, place)
    text = f"{found['machine']}; commit {found['commit']}; `{found['command']}`\n\n{table(sizes)}"
    for document in options.write:
        say(f"{document}: {fill_marks(document, 'race:scaling', text)} parts written")
    print(text)


if __name__ == "__main__":
    main()
