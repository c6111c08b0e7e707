"""The questions of the race, the right answers, and how answers are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perf.race.data import Dataset, Float64s, Int64s

RELATIVE_ERROR_MAX = 1e-10
"""By which means may differ: contestants add in different orders. Stored values must be equal."""


@dataclass(frozen=True)
class Query:
    """Rows, or means of windows, of one series or of all.

    Attributes
    ----------
    start, stop : int
        Milliseconds, half-open.
    series : int or None
        None: all series.
    step : int or None
        Length of the windows, which begin at `start`; None asks for the rows themselves.
    merged : bool
        One window over all series together instead of one for each.
    even : bool
        Every series has equally many points in every window, so that the mean of means is the mean.
    """

    dataset: str
    start: int
    stop: int
    series: int | None = None
    step: int | None = None
    merged: bool = False
    even: bool = False


@dataclass(frozen=True)
class Answer:
    """Rows ascending by (series, timestamp); a window is named by its first millisecond.

    `series` is 0 throughout when all series were merged.
    """

    series: Int64s
    timestamp: Int64s
    value: Float64s

    def sorted(self) -> Answer:
        """Return the same rows in order."""
        order = np.lexsort((self.timestamp, self.series))
        return Answer(self.series[order], self.timestamp[order], self.value[order])


class WrongAnswerError(Exception):
    """A contestant's answer is not the right one."""


def right_answer(dataset: Dataset, query: Query) -> Answer:
    """Answer a query from the data itself."""
    rows = _selected(dataset, query)
    series, time, value = dataset.series[rows], dataset.timestamp[rows], dataset.value[rows]
    if query.step is None:
        return Answer(series, time, value)
    window = query.start + (time - query.start) // query.step * query.step
    if query.merged:
        order = np.argsort(window, kind="stable")
        series, window, value = np.zeros_like(series), window[order], value[order]
    first = np.flatnonzero(np.append(True, (np.diff(series) != 0) | (np.diff(window) != 0)))
    if not len(value):
        return Answer(series, window, value)
    counts = np.diff(np.append(first, len(value)))
    return Answer(series[first], window[first], np.add.reduceat(value, first) / counts)


def _selected(dataset: Dataset, query: Query) -> Int64s:
    low, high = 0, dataset.rows
    if query.series is not None:
        low, high = int(dataset.offsets[query.series]), int(dataset.offsets[query.series + 1])
    time = dataset.timestamp[low:high]
    return low + np.flatnonzero((time >= query.start) & (time < query.stop))


def compare(found: Answer, right: Answer, exact: bool) -> float:
    """Return the largest relative difference of the values.

    Raises
    ------
    WrongAnswerError
        Other rows, or other values than `exact` (or the sum's rounding) allows.
    """
    if len(found.value) != len(right.value):
        raise WrongAnswerError(f"{len(found.value):,} rows instead of {len(right.value):,}")
    for name in ("series", "timestamp"):
        wrong = np.flatnonzero(getattr(found, name) != getattr(right, name))
        if len(wrong):
            row = int(wrong[0])
            raise WrongAnswerError(
                f"row {row} has {name} {getattr(found, name)[row]} instead of {getattr(right, name)[row]}"
            )
    if not len(right.value):
        return 0.0
    # NaN must not pass: every comparison below is false for it.
    error = np.abs(found.value - right.value)
    relative = np.where(error == 0, 0.0, error / np.maximum(np.abs(right.value), 1e-300))
    bound = 0.0 if exact else RELATIVE_ERROR_MAX
    wrong = np.flatnonzero(~(relative <= bound))
    if len(wrong):
        row = int(wrong[0])
        raise WrongAnswerError(f"row {row} has value {found.value[row]!r} instead of {right.value[row]!r}")
    return float(relative.max())
