"""Tables, ratios and verdicts of a made-up race."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.race import report
from perf.race.rows import MAIN

ROWS = {row.key: row for row in MAIN}


@pytest.fixture
def race():
    """OmenDB and VictoriaMetrics in two rounds."""

    def contestant(title, version):
        return {"title": title, "version": version, "acknowledges": "a", "settings": "none", "missing": None}

    return {
        "machine": "a machine",
        "commit": "abc",
        "command": "python -m perf.race",
        "date": "today",
        "minutes": 3.0,
        "plan": {"rounds": 3},
        "contestants": {
            "omendb": contestant("OmenDB", "1.0"),
            "victoria": contestant("VictoriaMetrics", "1.79.5"),
            "omendb-lazy": contestant("OmenDB, lazy", "1.0"),
            "omendb-other": contestant("OmenDB, compressed", "1.0"),
        },
        "samples": {
            "main": {
                "single": {
                    "omendb": [{"value": value, "p95_ms": 2.0} for value in (80.0, 90.0, 70.0)],
                    "victoria": [{"value": 100.0, "p95_ms": 5.0}],
                },
                "single_lazy": {"omendb-lazy": [{"value": 95.0}]},
                "windows_all": {"omendb": [{"value": 20.0}], "victoria": [{"value": 100.0}]},
                "merged": {"omendb": [{"value": 50.0}], "victoria": [{"value": 100.0}]},
                "export_json": {"victoria": [{"value": 100.0}]},
                "export_arrow": {"omendb": [{"value": 10.0}]},
                "memory": {"omendb": [{"value": 100.0}, {"value": 260.0}, {"value": 90.0}]},
                "disk": {
                    "omendb": [{"value": 16.0}],
                    "omendb-other": [{"value": 1.5}],
                    "victoria": [{"value": 1.0}],
                },
            }
        },
        "failures": {"main": {"range_100": {"victoria": "wrong answer: 1 row instead of 2"}}},
        "differences": {},
    }


@pytest.mark.parametrize(
    ("row", "ratio", "reached"),
    [
        ("single", 0.8, True),  # more requests are better
        ("single_lazy", 0.95, True),  # against their `single`
        ("windows_all", 5.0, True),  # fewer milliseconds are better
        ("merged", 2.0, False),  # 3x was to be reached
        ("export_arrow", 10.0, True),  # against their JSON
        ("memory", None, False),  # the largest counts, not the median
        ("disk", pytest.approx(0.667, abs=1e-3), True),  # a limit of its own, for the other setting
        ("export_json", None, None),  # nothing of ours: no verdict
        ("range_100", None, None),
    ],
)
def test_ratio_and_verdict(race, row, ratio, reached):
    assert report.ratio(race, "main", ROWS[row]) == ratio
    assert report.verdict(race, "main", ROWS[row])[1] is reached


def test_a_tail_above_theirs_is_a_row_not_reached(race):
    for sample in race["samples"]["main"]["single"]["omendb"]:
        sample["p95_ms"] = 5.5

    assert report.verdict(race, "main", ROWS["single"]) == ("0.75x, p95 below theirs", False)


def test_a_failure_stands_in_the_table_with_its_reason(race):
    table = report.table(race)

    line = next(line for line in table.splitlines() if line.startswith("| 100-row range of one series"))
    assert "[1]" in line
    assert "[1] VictoriaMetrics 1.79.5: wrong answer: 1 row instead of 2" in table


def test_figures_of_a_row_that_failed_once_do_not_count(race):
    race["samples"]["main"]["range_100"] = {"victoria": [{"value": 5.0}]}

    assert report.cell(race, "main", ROWS["range_100"], "victoria") is None


def test_the_page_of_benchmarks_has_a_mark_for_every_part(race):
    page = Path(__file__).resolve().parents[2].joinpath("docs", "benchmarks.md").read_text()

    for name in [*report.blocks(race), "scaling", "ingest", "profile"]:
        assert page.count(f"<!-- race:{name} -->\n") == page.count(f"<!-- /race:{name} -->\n") == 1, name


def test_parts_are_written_between_their_marks(race, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- race:table -->\nold\n<!-- /race:table -->\nafter\n")

    assert report.write_into(document, race) == 1
    first = document.read_text()
    report.write_into(document, race)

    assert document.read_text() == first
    assert first == f"before\n<!-- race:table -->\n{report.table(race)}\n<!-- /race:table -->\nafter\n"
    assert all(row.title in first for row in MAIN)
