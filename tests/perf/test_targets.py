"""The runbook's targets, held against made-up figures: what is read, computed and decided, without a clock."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from omendb.metrics import Metrics
from perf import targets
from perf.targets import (
    CPU,
    ERRORS,
    HEADING,
    INSERT,
    MEMORY,
    QUERY,
    THROUGHPUT,
    Phase,
    Reading,
    Scrape,
    judge,
    quantile,
    read_targets,
    status,
)

RUNBOOK = targets.RUNBOOK.read_text()
GOOD = {QUERY: 2.0, INSERT: 3.0, THROUGHPUT: 20_000.0, MEMORY: 10.0, CPU: 60.0, ERRORS: 0.0}


def readings(**changed):
    """Good readings of every metric; `changed` are named by the constants above."""
    figures = {**GOOD, **{getattr(targets, name): figure for name, figure in changed.items()}}
    return {metric: [Reading(figure, "made up")] for metric, figure in figures.items()}


def reached(found):
    return {verdict.metric: verdict.reached for verdict in judge(read_targets(RUNBOOK), found)}


def test_the_targets_are_those_of_the_runbook():
    found = {metric: tuple(target) for metric, target in read_targets(RUNBOOK).items()}

    assert found == {
        QUERY: ("< 100ms", "<", 100.0, "ms"),
        INSERT: ("< 50ms", "<", 50.0, "ms"),
        THROUGHPUT: ("> 10K QPS", ">", 10_000.0, "QPS"),
        MEMORY: ("< 80%", "<", 80.0, "%"),
        CPU: ("< 70%", "<", 70.0, "%"),
        ERRORS: ("< 0.1%", "<", 0.1, "%"),
    }


def test_a_changed_runbook_changes_the_target():
    changed = read_targets(RUNBOOK.replace("| < 50ms |", "| < 2.5 ms |"))

    assert changed[INSERT].bound == 2.5
    assert not changed[INSERT].reached_by(2.5)
    assert changed[INSERT].reached_by(2.4)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (HEADING, "### Something else", HEADING),
        ("| Metric | Target | Alert", "| Name | Aim | Alert", "no table"),
        ("| Error Rate | < 0.1% | > 1% |\n", "", ERRORS),
        ("| CPU Usage | < 70%", "| Disk Usage | < 70%", "Disk Usage"),
        ("| > 10K QPS |", "| plenty |", "plenty"),
        ("| < 50ms |", "| < 50% |", INSERT),
    ],
)
def test_a_table_that_is_not_understood_is_refused(old, new, named):
    assert old in RUNBOOK
    with pytest.raises(ValueError, match=named.replace("(", r"\(").replace(")", r"\)")):
        read_targets(RUNBOOK.replace(old, new))


BEFORE = [(1.0, 5.0), (2.0, 5.0), (4.0, 9.0), (math.inf, 10.0)]


@pytest.mark.parametrize(
    ("grown", "fraction", "expected"),
    [
        ([100, 100, 100, 100], 0.95, 0.95),  # all in the first bucket, which begins at 0
        ([0, 0, 100, 100], 0.5, 3.0),  # in the middle of a bucket
        ([50, 90, 100, 100], 0.95, 3.0),  # 90 below 2, half of the ten up to 4
        ([50, 95, 100, 100], 0.95, 2.0),  # on a bound
        ([50, 95, 96, 200], 0.95, math.inf),  # beyond the last bound
        ([1, 1, 1, 1], 0.95, 0.95),
    ],
)
def test_quantiles_of_what_buckets_grew_by(grown, fraction, expected):
    after = [(bound, count + more) for (bound, count), more in zip(BEFORE, grown, strict=True)]

    assert quantile(BEFORE, after, fraction) == pytest.approx(expected)


def test_a_quantile_of_nothing_is_not_a_number():
    assert math.isnan(quantile(BEFORE, BEFORE, 0.95))


def test_a_quantile_is_in_the_bucket_of_the_true_one():
    random = np.random.default_rng(7)
    bounds = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, math.inf]
    for _ in range(50):
        observed = random.exponential(random.uniform(0.1, 1), random.integers(1, 400))
        after = [(bound, float(np.count_nonzero(observed <= bound))) for bound in bounds]
        zero = [(bound, 0.0) for bound in bounds]
        true = float(np.quantile(observed, 0.95, method="inverted_cdf"))
        above = int(np.searchsorted(bounds, true))

        estimate = quantile(zero, after, 0.95)

        assert (bounds[above - 1] if above else 0) < estimate <= bounds[above]


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ([(1.0, 0.0), (2.0, 0.0), (4.0, 0.0), (math.inf, 0.0)], "less than before"),
        ([(1.0, 5.0), (3.0, 5.0), (4.0, 9.0), (math.inf, 10.0)], "differ"),
        ([(1.0, 5.0)], "differ"),
    ],
)
def test_buckets_of_another_run_are_refused(after, reason):
    with pytest.raises(ValueError, match=reason):
        quantile(BEFORE, after, 0.95)


def test_good_figures_pass():
    verdicts = judge(read_targets(RUNBOOK), readings())

    assert {verdict.metric: verdict.word for verdict in verdicts} == {
        **dict.fromkeys(GOOD, "pass"),
        CPU: "reported",
    }
    assert status(verdicts) == 0


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("QUERY", 100.0),  # a bound itself is not below it
        ("INSERT", 50.01),
        ("THROUGHPUT", 10_000.0),
        ("MEMORY", 80.0),
        ("ERRORS", 0.1),
        ("QUERY", math.nan),
        ("THROUGHPUT", math.nan),
        ("INSERT", math.inf),
    ],
)
def test_one_bad_figure_fails_its_target_alone(name, figure):
    verdicts = judge(read_targets(RUNBOOK), readings(**{name: figure}))

    assert [verdict.metric for verdict in verdicts if verdict.reached is False] == [getattr(targets, name)]
    assert status(verdicts) == 1


def test_cpu_usage_is_reported_however_large():
    verdicts = judge(read_targets(RUNBOOK), readings(CPU=99.0))

    (cpu,) = [verdict for verdict in verdicts if verdict.metric == CPU]
    assert (cpu.measured, cpu.reached) == (99.0, None)
    assert status(verdicts) == 0


def test_what_was_not_measured_fails():
    found = readings()
    del found[MEMORY]
    found[ERRORS] = []

    assert [metric for metric, good in reached(found).items() if good is False] == [MEMORY, ERRORS]


@pytest.mark.parametrize(
    ("metric", "figures", "worst"),
    [
        (QUERY, [3.0, 120.0, 5.0], 120.0),
        (THROUGHPUT, [30_000.0, 9_000.0, 40_000.0], 9_000.0),
        (QUERY, [3.0, math.nan, 120.0], math.nan),
        (THROUGHPUT, [3.0, 20_000.0, math.nan], math.nan),
    ],
)
def test_the_worst_reading_decides_and_is_named(metric, figures, worst):
    found = readings()
    found[metric] = [Reading(figure, f"phase of {figure}") for figure in figures]

    (verdict,) = [each for each in judge(read_targets(RUNBOOK), found) if each.metric == metric]

    assert verdict.measured == pytest.approx(worst, nan_ok=True)
    assert (verdict.source, verdict.readings, verdict.reached) == (f"phase of {worst}", len(figures), False)


@pytest.fixture
def phase():
    """A mixed phase of ten seconds, as a real registry shows it: 950 queries, 99 inserts, one of them refused."""
    metrics = Metrics()
    usage = [200.0]
    metrics.add_gauges(
        lambda: [("omendb_memory_usage_bytes", "", usage[0]), ("omendb_memory_limit_bytes", "", 1_000.0)]
    )

    def scrape(seconds, cpu):
        found = Scrape.parse(metrics.render().decode(), seconds)
        found.values["process_cpu_seconds_total"] = cpu
        return found

    for _ in range(1_000):  # before the phase: not to be counted
        metrics.query_duration.observe(5.0)
        metrics.query_failures_total.inc()
    before = scrape(100.0, 3.0)
    for _ in range(950):
        metrics.query_duration.observe(0.0015)
    for _ in range(99):
        metrics.insert_duration.observe(0.03)
    metrics.insert_failures_total.inc()
    usage[0] = 250.0
    client = {
        "query": {"requests": 950, "seconds": 10.0, "p95_ms": 7.0, "errors": 0},
        "insert": {"requests": 100, "seconds": 10.0, "p95_ms": 40.0, "errors": 1},
    }
    return Phase("mixed", client, before, scrape(110.0, 11.0))


def test_the_readings_of_a_phase(phase, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)

    found = {metric: [each.figure for each in listed] for metric, listed in phase.readings().items()}

    assert found[THROUGHPUT] == [pytest.approx(104.9)]  # the refused insert is not counted
    assert found[CPU] == [pytest.approx(20.0)]  # 8 of 40 seconds
    assert found[ERRORS] == [pytest.approx(100 / 1_050), pytest.approx(100 / 1_050)]
    assert found[QUERY] == [7.0, pytest.approx(1.95)]  # 95 % of the bucket from 1 to 2 ms
    assert found[INSERT] == [40.0, pytest.approx(48.5)]  # of the bucket from 20 to 50 ms
    assert phase.before.memory_percent == pytest.approx(20.0)
    assert phase.after.memory_percent == pytest.approx(25.0)


def test_a_phase_without_an_answer_fails(phase):
    for found in phase.client.values():
        found.update(requests=0, errors=3, p95_ms=0.0)
    silent = Phase("mixed", phase.client, phase.before, replace(phase.before, seconds=110.0))

    verdicts = reached({**silent.readings(), MEMORY: [Reading(1.0, "")]})

    # A client that was never answered has measured 0 ms; the server's histograms know better.
    assert verdicts == {
        QUERY: False,
        INSERT: False,
        THROUGHPUT: False,
        MEMORY: True,
        CPU: None,
        ERRORS: False,
    }


def test_the_tables_and_the_json_say_what_was_found(phase):
    found = {**readings(QUERY=math.inf), MEMORY: []}
    verdicts = judge(read_targets(RUNBOOK), found)

    lines = targets.table(verdicts).splitlines()
    written = json.loads(json.dumps(targets.results(verdicts, [phase], found), allow_nan=False))

    assert [line.split() for line in lines[1:3]] == [
        ["Query", "Latency", "(p95)", "<", "100ms", "inf", "ms", "FAIL", "1:", "made", "up"],
        ["Insert", "Latency", "(p95)", "<", "50ms", "3.00", "ms", "pass", "1:", "made", "up"],
    ]
    assert "saturates the machine on purpose" in lines[-1]
    assert [(each["metric"], each["measured"], each["verdict"]) for each in written["targets"][:1]] == [
        (QUERY, None, "FAIL")
    ]
    assert written["client"]["mixed"]["insert"]["errors"] == 1
    assert [line.split()[:3] for line in targets.details([phase]).splitlines()[1:]] == [
        ["mixed", "query", "95"],
        ["mixed", "insert", "10"],
    ]


def test_settings_of_the_machine_are_named():
    settings = {
        "batch_size": {"value": 10, "source": "environment", "live": True},
        "port": {"value": 1, "source": "command_line", "live": False},
        "max_error": {"value": 64, "source": "default", "live": True},
    }

    assert targets.not_as_shipped(settings) == ["not as shipped: batch_size = 10 from environment"]
