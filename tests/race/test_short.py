"""The race's short form, run as a user runs it. Says nothing about times."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perf.race import measure, report
from perf.race.contestants import CONTESTANTS
from perf.race.contestants.omen import OmenDB
from perf.race.queries import RELATIVE_ERROR_MAX, Answer
from perf.race.rows import MAIN

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("omendb", "victoria", "duckdb")
OURS = {row.key for row in MAIN} - {"single_lazy"}
THEIRS = OURS - {"export_arrow", "range_named"}
UNASKED = {"single", "disk", "memory", "fair", "mixed"}
"""Rows without an answer of their own: counted afterwards, or asked like another row."""


def _require_programs():
    missing = [name for name in ("wrk", "victoria-metrics") if shutil.which(name) is None]
    if missing:
        text = f"not installed: {', '.join(missing)}"
        assert "CI" not in os.environ, text
        pytest.skip(text)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    _require_programs()
    place = tmp_path_factory.mktemp("race")
    command = [sys.executable, "-m", "perf.race", "--short", "--datasets", "main"]
    command += ["--contestants", ",".join(KEYS), "--output", str(place), "--directory", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((place / "race.json").read_text()), (place / "race.md").read_text()


@pytest.mark.timeout(900)
def test_nothing_fails_and_no_answer_is_wrong(outcome):
    race, _ = outcome

    assert race["failures"] == {}


def test_every_row_is_measured(outcome):
    race, _ = outcome
    measured = {key: {row for row, found in race["samples"]["main"].items() if key in found} for key in KEYS}

    assert measured["omendb"] == OURS
    assert measured["victoria"] == THEIRS
    assert measured["duckdb"] == CONTESTANTS["duckdb"].rows - {"disk"}  # its files are OmenDB's
    for found in race["samples"]["main"].values():
        for samples in found.values():
            assert all(sample["value"] > 0 for sample in samples)


def test_every_answer_was_compared_before_it_was_timed(outcome):
    race, _ = outcome

    for row, found in race["samples"]["main"].items():
        if row not in UNASKED:
            differences = race["differences"]["main"][row]
            assert differences.keys() >= found.keys(), row
            assert all(0 <= difference <= RELATIVE_ERROR_MAX for difference in differences.values()), row


def test_acknowledgements_are_counted_in_syncs(outcome):
    race, _ = outcome
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")

    syncs = int(race["contestants"]["omendb"]["syncs"].split()[0])
    assert syncs >= measure.PROBED_POSTS


def test_the_document_has_every_row_and_contestant(outcome):
    race, text = outcome

    for row in MAIN:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row.title} |"))
        assert line.count("|") == len(KEYS) + 6
    for key in KEYS:
        assert report.title(race, key) in text


class _Liar(OmenDB):
    """Adds a hundredth to one value of every answer."""

    key = "liar"
    datasets = ("main",)
    rows = frozenset({"windows_all", "disk"})

    def answer(self, query):
        right = super().answer(query)
        value = right.value.copy()
        value[len(value) // 2] += 0.01
        return Answer(right.series, right.timestamp, value)

    def time(self, query):
        raise AssertionError("a wrong answer was timed")


@pytest.mark.timeout(900)
def test_a_contestant_with_wrong_answers_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setitem(measure.CONTESTANTS, "liar", _Liar)
    plan = measure.Plan(rounds=1, seconds=1, shape=(5, 100), datasets=("main",), paths=10, checked=5)

    race = measure.Race(plan, ["liar"], tmp_path)
    race.run()
    results = race.results

    assert "windows_all" not in results.samples.get("main", {})
    assert "wrong answer: row" in results.failures["main"]["reads"]["liar"]
