"""The race's result as Markdown and as a plot.

    python -m perf.race.report build/race.json --write docs/benchmarks.md --plot docs/race.svg

writes the parts between the marks ``<!-- race:NAME -->`` and ``<!-- /race:NAME -->`` of a document; the names
are `head`, `table`, `others` (the other data sets), `contestants` and `details`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf.race.rows import DATASET_TITLES, WRITES, Row, rows_of

OMENDB, BASE, LAZY = "omendb", "victoria", "omendb-lazy"
SAME_WORK = {"single_lazy": "single", "export_arrow": "export_json", "range_named": "range_100"}
"""Rows that are held against another row of VictoriaMetrics."""
Samples = list[dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """What a contestant reached in a row."""

    value: float
    low: float
    high: float
    samples: int


def cell(race: dict[str, Any], dataset: str, row: Row, key: str) -> Cell | None:
    """Return the median over the rounds (of the memory: the largest), or None."""
    samples: Samples = race["samples"].get(dataset, {}).get(row.key, {}).get(key, [])
    if not samples or failure(race, dataset, row.key, key):
        return None
    values = [float(sample["value"]) for sample in samples]
    middle = max(values) if row.key == "memory" else statistics.median(values)
    return Cell(middle, min(values), max(values), len(values))


def failure(race: dict[str, Any], dataset: str, row: str, key: str) -> str | None:
    """Return why a contestant has no figure in a row, when it tried."""
    failures = race["failures"].get(dataset, {})
    reason: str | None = failures.get(row, {}).get(key)
    if reason is None and not race["samples"].get(dataset, {}).get(row, {}).get(key):
        reason = failures.get("writes" if row in WRITES else "reads", {}).get(key)
    return reason


def _ours(row: Row) -> str:
    return row.by or (LAZY if row.key == "single_lazy" else OMENDB)


def ratio(race: dict[str, Any], dataset: str, row: Row) -> float | None:
    """Return how many times better than VictoriaMetrics OmenDB is, or None."""
    ours = cell(race, dataset, row, _ours(row))
    same = next(other for other in rows_of(dataset) if other.key == SAME_WORK.get(row.key, row.key))
    theirs = cell(race, dataset, same, BASE)
    if ours is None or theirs is None or not ours.value or not theirs.value:
        return None
    return ours.value / theirs.value if row.more_is_better else theirs.value / ours.value


def verdict(race: dict[str, Any], dataset: str, row: Row) -> tuple[str, bool | None]:
    """Say what was to be reached, and whether it was."""
    ours = cell(race, dataset, row, _ours(row))
    if row.limit is not None:
        return f"≤ {number(row.limit)} {row.unit}", None if ours is None else ours.value <= row.limit
    if row.target is None:
        return "", None
    found = ratio(race, dataset, row)
    reached = None if found is None else found >= row.target
    wanted = f"{row.target:g}x"
    if row.tail is not None:
        wanted += f", {row.tail.removesuffix('_ms')} below theirs"
        tails = [tail(race, dataset, row.key, key, row.tail) for key in (OMENDB, BASE)]
        if reached and tails[0] is not None and tails[1] is not None:
            reached = tails[0] < tails[1]
    return wanted, reached


def tail(race: dict[str, Any], dataset: str, row: str, key: str, name: str) -> float | None:
    """Return the median over the rounds of another figure of the samples."""
    samples: Samples = race["samples"].get(dataset, {}).get(row, {}).get(key, [])
    values = [float(sample[name]) for sample in samples if name in sample]
    return statistics.median(values) if values else None


def number(value: float) -> str:
    """Write a figure with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def head(race: dict[str, Any]) -> str:
    """Say where and how it was measured."""
    return (
        f"{race['machine']}; commit {race['commit']}; `{race['command']}`, {race['date']}, "
        f"{race['minutes']:.0f} minutes. Medians of {race['plan']['rounds']} rounds in which the contestants "
        "take turns, each alone on the machine, with the load generator beside it. Every answer was compared "
        "with the right one before anything was timed."
    )


def _contestants(race: dict[str, Any], dataset: str) -> list[str]:
    present = set()
    for row in rows_of(dataset):
        for key in race["contestants"]:
            if cell(race, dataset, row, key) is not None or failure(race, dataset, row.key, key):
                present.add(key)
    return [key for key in race["contestants"] if key in present and key != LAZY]


def table(race: dict[str, Any], dataset: str = "main") -> str:
    """Return the table of a data set: medians, the ratio, and whether it is what was to be reached."""
    keys = _contestants(race, dataset)
    targets = dataset == "main"
    titles = [title(race, key) for key in keys]
    heads = ["work", "unit", *titles, "ratio", *(["to reach", "reached"] if targets else [])]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---|" * (len(heads) - 2)]
    notes: list[str] = []
    for row in rows_of(dataset):
        values = [_text(race, dataset, row, key, notes) for key in keys]
        found = ratio(race, dataset, row)
        wanted, reached = verdict(race, dataset, row)
        shown = "" if found is None else f"{found:.2f}x"
        cells = [row.title, row.unit, *values, shown]
        if targets:
            cells += [wanted, "" if not wanted else {True: "yes", False: "**no**", None: "?"}[reached]]
        lines.append("| " + " | ".join(cells) + " |")
    if notes:
        lines += [
            "",
            *[
                f"[{place + 1}] {note}" + ("  " if place + 1 < len(notes) else "")
                for place, note in enumerate(notes)
            ],
        ]
    return "\n".join(lines)


def _text(race: dict[str, Any], dataset: str, row: Row, key: str, notes: list[str]) -> str:
    if row.key == "single_lazy" and key == OMENDB:
        key = LAZY
    found = cell(race, dataset, row, key)
    if found is not None:
        return number(found.value)
    reason = failure(race, dataset, row.key, key)
    if reason is None:
        return "-"
    note = f"{title(race, key)}: {reason}".replace("|", "\\|").replace("<", "&lt;")
    if note not in notes:
        notes.append(note)
    return f"[{notes.index(note) + 1}]"


def title(race: dict[str, Any], key: str) -> str:
    """Return a contestant's name with its version."""
    found = race["contestants"][key]
    return f"{found['title']} {found['version']}" if found.get("version") else str(found["title"])


def details(race: dict[str, Any]) -> str:
    """Return medians, spread, percentiles and CPU time of every row."""
    lines = [
        "| data | work | contestant | unit | median | lowest | highest | rounds "
        "| p50 ms | p95 ms | p99 ms | CPU µs | sender cores |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for dataset in race["samples"]:
        for row in rows_of(dataset):
            for key in race["contestants"]:
                found = cell(race, dataset, row, key)
                if found is None:
                    continue
                more = [
                    tail(race, dataset, row.key, key, name)
                    for name in ("p50_ms", "p95_ms", "p99_ms", "cpu_us", "sender_cpu")
                ]
                figures = [number(found.value), number(found.low), number(found.high), str(found.samples)]
                figures += ["" if value is None else number(value) for value in more]
                name = race["contestants"][key]["title"]
                lines.append("| " + " | ".join([dataset, row.title, name, row.unit, *figures]) + " |")
    return "\n".join(lines)


def contestants(race: dict[str, Any]) -> str:
    """Return what each contestant promises, and how it was set up."""
    lines = [
        "| contestant | an answer to a write means | counted | settings beside the defaults "
        "| bytes/point | RssAnon MB |",
        "|---|---|---|---|---|---|",
    ]
    rows = {row.key: row for row in rows_of("main")}
    for key, found in race["contestants"].items():
        if found.get("missing"):
            lines.append(f"| {found['title']} | not here: {found['missing']} | | | | |")
            continue
        figures = [cell(race, "main", rows[name], key) for name in ("disk", "memory")]
        shown = ["-" if figure is None else number(figure.value) for figure in figures]
        lines.append(
            f"| {title(race, key)} | {found['acknowledges']} | {found.get('syncs', '')} "
            f"| {found['settings']} | {shown[0]} | {shown[1]} |"
        )
    return "\n".join(lines)


def blocks(race: dict[str, Any]) -> dict[str, str]:
    """Return all parts by name."""
    others = "\n\n".join(
        f"{DATASET_TITLES[name][0].upper()}{DATASET_TITLES[name][1:]}:\n\n{table(race, name)}"
        for name in race["samples"]
        if name != "main"
    )
    return {
        "head": head(race),
        "table": table(race),
        "others": others,
        "details": details(race),
        "contestants": contestants(race),
    }


def markdown(race: dict[str, Any]) -> str:
    """Return everything as one document."""
    parts = blocks(race)
    main = f"{parts['table']}\n\n" if "main" in race["samples"] else ""
    return (
        f"# Race\n\n{parts['head']}\n\n{main}{parts['others']}\n\n## Contestants\n\n"
        f"{parts['contestants']}\n\n## Details\n\n{parts['details']}\n"
    )


def write_into(document: Path, race: dict[str, Any]) -> int:
    """Replace the parts that a document has marks for; return how many."""
    return sum(fill(document, f"race:{name}", part) for name, part in blocks(race).items())


def fill(document: Path, mark: str, part: str) -> int:
    """Replace what stands between ``<!-- MARK -->`` and ``<!-- /MARK -->``; return how often."""
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    text, count = pattern.subn(lambda match: f"{match[1]}{part}\n{match[2]}", document.read_text())
    document.write_text(text)
    return count


def plot(race: dict[str, Any], file: Path) -> None:
    """Draw how many times faster than VictoriaMetrics every contestant is, row by row, on a log scale."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "race"
    from matplotlib import pyplot as plt

    rows = [
        row
        for row in rows_of("main")
        if row.key not in ("disk", "memory", "start", "single_lazy", "export_arrow")
    ]
    keys = [key for key in _contestants(race, "main") if key != BASE]
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(rows) + 1.4))
    height = 0.8 / max(len(keys), 1)
    for place, key in enumerate(keys):
        spots, lengths = [], []
        for index, row in enumerate(rows):
            ours, theirs = cell(race, "main", row, key), cell(race, "main", row, BASE)
            if ours is None or theirs is None or not ours.value or not theirs.value:
                continue
            spots.append(index + (place - (len(keys) - 1) / 2) * height)
            lengths.append(ours.value / theirs.value if row.more_is_better else theirs.value / ours.value)
        axes.barh(spots, [length - 1 for length in lengths], height, left=1, label=title(race, key))
    for index, row in enumerate(rows):
        if row.target is not None:
            axes.plot([row.target] * 2, [index - 0.42, index + 0.42], color="black", linewidth=1.2)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times better than VictoriaMetrics (log scale); black lines: to reach", fontsize=8)
    axes.legend(fontsize=7)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("result", type=Path, help="what the race wrote as JSON")
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="documents with marks to fill")
    parser.add_argument("--plot", type=Path, help="where the plot goes, as SVG")
    options = parser.parse_args()
    race = json.loads(options.result.read_text())
    for document in options.write:
        print(f"{document}: {write_into(document, race)} parts written")
    if options.plot:
        plot(race, options.plot)
    if not options.write and not options.plot:
        print(markdown(race))


if __name__ == "__main__":
    main()
