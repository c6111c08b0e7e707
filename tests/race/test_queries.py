"""What the race holds the contestants' answers against."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from perf.race.data import STEP_MS, jittered, label, line_bodies, real, regular
from perf.race.queries import Answer, Query, WrongAnswerError, compare, right_answer

DATASETS = [regular("main", 7, 50), jittered("jitter", 7, 50)]


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
@pytest.mark.parametrize("series", [None, 3])
@pytest.mark.parametrize(("step", "merged"), [(None, False), (70_000, False), (70_000, True)])
def test_right_answer_is_that_of_plain_loops(dataset, series, step, merged):
    start, stop = dataset.start + 3 * STEP_MS, dataset.start + 31 * STEP_MS
    query = Query(dataset.name, start, stop, series, step, merged)
    groups = {}
    for name, time, value in zip(dataset.series, dataset.timestamp, dataset.value, strict=True):
        if start <= time < stop and series in (None, name):
            window = time if step is None else start + (time - start) // step * step
            groups.setdefault((0 if merged else name, window), []).append(value)

    found = right_answer(dataset, query).sorted()

    keys = sorted(groups)
    assert list(zip(found.series, found.timestamp, strict=True)) == keys
    np.testing.assert_allclose(found.value, [np.mean(groups[key]) for key in keys], rtol=1e-13)
    if step is None:
        assert found.value.tolist() == [groups[key][0] for key in keys]


def test_jittered_points_stay_in_their_slots_and_some_arrive_late():
    dataset = jittered("jitter", 20, 2_000)

    slots = (dataset.timestamp - dataset.start) // STEP_MS
    assert np.array_equal(slots, np.tile(np.arange(2_000), 20))
    late = np.diff(dataset.timestamp[dataset.arrival[dataset.series[dataset.arrival] == 5]]) < 0
    assert 0.03 < late.mean() < 0.06
    assert np.array_equal(np.sort(dataset.arrival), np.arange(dataset.rows))


def test_values_have_two_decimals_and_three_digits_before_them():
    values = regular("main", 10, 5_000).value

    assert values.min() >= 100
    assert values.max() < 1000
    assert np.array_equal(np.rint(values * 100) / 100, values)


@pytest.mark.parametrize("dataset", [*DATASETS, real()], ids=lambda dataset: dataset.name)
def test_line_protocol_holds_the_points_in_order_of_arrival(dataset):
    lines = b"".join(line_bodies(dataset, 64)).decode().splitlines()

    assert len(lines) == dataset.rows
    for row, line in zip(dataset.arrival[:500].tolist(), lines, strict=False):
        name, value, time = line.split(" ")
        assert name == f"{dataset.name},series={label(int(dataset.series[row]))}"
        assert float(value.removeprefix("value=")) == dataset.value[row]
        assert int(time) == dataset.timestamp[row]


def _answer():
    return Answer(np.array([1, 1, 2]), np.array([10, 20, 10]), np.array([1.5, 2.5, 3.5]))


def test_equal_answers_differ_by_nothing():
    assert compare(_answer(), _answer(), exact=True) == 0


@pytest.mark.parametrize(
    ("column", "wrong", "message"),
    [
        ("series", [1, 1, 3], "row 2 has series 3 instead of 2"),
        ("timestamp", [10, 21, 10], "row 1 has timestamp 21 instead of 20"),
        ("value", [1.5, 2.5, np.nan], "row 2 has value"),
        ("value", [1.5, 2.5, 3.6], "row 2 has value"),
        ("value", [1.5, np.nextafter(2.5, 3), 3.5], "row 1 has value"),
    ],
)
def test_other_answers_are_wrong(column, wrong, message):
    with pytest.raises(WrongAnswerError, match=message):
        compare(replace(_answer(), **{column: np.array(wrong)}), _answer(), exact=True)


def test_missing_rows_are_wrong():
    short = Answer(*(getattr(_answer(), name)[:2] for name in ("series", "timestamp", "value")))

    with pytest.raises(WrongAnswerError, match="2 rows instead of 3"):
        compare(short, _answer(), exact=True)


def test_means_may_differ_in_their_last_bits_only():
    near = replace(_answer(), value=np.array([1.5, np.nextafter(2.5, 3), 3.5]))
    far = replace(_answer(), value=np.array([1.5, 2.5 * (1 + 1e-9), 3.5]))

    assert 0 < compare(near, _answer(), exact=False) < 1e-15
    with pytest.raises(WrongAnswerError, match="row 1 has value"):
        compare(far, _answer(), exact=False)
