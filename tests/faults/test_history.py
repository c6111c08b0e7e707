"""What many threads see of one store is what one after the other could have seen (P1, P2, P8).

The long form: ``soak`` of `tests.faults.history`, in ``make soak``.
"""

from __future__ import annotations

import threading
import time

import pytest

from omendb.model import Batch
from tests.faults.history import (
    GROUP_SERIES,
    GROUP_TIMESTAMPS,
    INFINITY,
    ROWS_SERIES,
    History,
    Read,
    Scan,
    ViolationError,
    Write,
    check,
    engine_client,
    http_client,
    row_value,
    run,
)

KEYS = GROUP_SERIES * GROUP_TIMESTAMPS


def test_threads_in_this_process(tmp_path) -> None:
    with engine_client(tmp_path / "db") as client:
        history = run(client, 1, 4)

    check(history)
    assert min(len(history.writes), len(history.reads)) > 20
    assert min(len(history.scans), history.maintenance) > 0


def test_threads_over_http(tmp_path) -> None:
    with http_client(tmp_path / "db") as client:
        history = run(client, 2, 4)

    check(history)
    assert min(len(history.writes), len(history.reads)) > 20
    assert min(len(history.scans), history.maintenance) > 0


# The checker is tested: histories by hand.


def seen(version: int, start: float, end: float) -> Read:
    return Read(0, (float(version),) * KEYS if version else (), start, end)


def row(timestamp: int) -> tuple[int, int, float]:
    return ROWS_SERIES, timestamp, row_value(ROWS_SERIES, timestamp)


WRITES = [Write(0, 1, 1, 2), Write(0, 2, 3, 4), Write(0, 3, 5, INFINITY)]
ADDED = [(ROWS_SERIES, 1, 1.0, 2.0), (ROWS_SERIES, 2, 3.0, 4.0), (ROWS_SERIES, 3, 5.0, INFINITY)]


def test_good_histories_pass() -> None:
    reads = [
        seen(0, 0, 0.5),
        seen(0, 0, 1.5),
        seen(1, 1.5, 9),
        seen(2, 3.5, 3.6),
        seen(1, 3.5, 6),
        seen(2, 4.5, 5),
        seen(3, 5.5, 6),
        seen(3, 7, 8),
    ]
    scans = [
        Scan((), 0, 1.5),
        Scan((row(1),), 2.5, 3.5),
        Scan((row(1), row(2)), 3.5, 9),
        Scan((row(1), row(2), row(3)), 4.5, 9),
        Scan((row(1), row(2)), 6, 9),
    ]

    check(History(writes=WRITES, added=ADDED, reads=reads, scans=scans))


@pytest.mark.parametrize(
    ("rule", "reads"),
    [
        ("not fresh", [seen(0, 2.5, 2.6)]),
        ("not fresh", [seen(1, 4.5, 9)]),
        ("not real", [seen(1, 0, 0.9)]),
        ("not real", [seen(3, 4.1, 4.9)]),
        ("not forward", [seen(1, 1.1, 1.2), seen(0, 1.3, 1.4)]),
        ("not forward", [seen(3, 5.1, 5.2), seen(2, 5.3, 5.4)]),
        ("not whole", [Read(0, (1.0,) * (KEYS - 1) + (2.0,), 3, 4)]),
        ("not whole", [Read(0, (1.0,) * (KEYS - 1), 3, 4)]),
    ],
)
def test_bad_reads_are_found(rule, reads) -> None:
    with pytest.raises(ViolationError, match=rule):
        check(History(writes=WRITES, reads=reads))


@pytest.mark.parametrize(
    ("rule", "scan"),
    [
        ("acknowledged before", Scan((), 2.5, 9)),
        ("acknowledged before", Scan((row(2),), 4.5, 9)),
        ("more than once", Scan((row(1), row(1)), 2.5, 9)),
        ("out of order", Scan((row(2), row(1)), 4.5, 9)),
        ("nobody wrote", Scan((row(1), row(2), row(4)), 4.5, 9)),
        ("nobody wrote", Scan((row(1), row(2)), 2.1, 2.9)),
        ("nobody wrote", Scan(((ROWS_SERIES, 1, 0.0),), 2.5, 3)),
    ],
)
def test_bad_scans_are_found(rule, scan) -> None:
    with pytest.raises(ViolationError, match=rule):
        check(History(added=ADDED, scans=[scan]))


# ... and engines with a bug.


def history_with(tmp_path, plant) -> History:
    with engine_client(tmp_path / "db") as client:
        plant(client.engine._store)
        return run(client, 3, 1.5)


def test_an_answer_before_the_rows_are_visible_is_found(tmp_path) -> None:
    def plant(store) -> None:
        apply, lock = store.apply, threading.Lock()
        waiting: list[tuple[Batch, int]] = []

        def apply_late(batch, sequence) -> None:
            # Each batch is applied when the next one comes.
            with lock:
                waiting.append((batch, sequence))
                if len(waiting) > 1:
                    apply(*waiting.pop(0))

        store.apply = apply_late

    history = history_with(tmp_path, plant)

    with pytest.raises(ViolationError, match=r"not fresh|acknowledged before"):
        check(history)


def test_a_request_that_is_applied_in_two_parts_is_found(tmp_path) -> None:
    def plant(store) -> None:
        apply = store.apply

        def apply_in_parts(batch, sequence) -> None:
            middle = len(batch.timestamp) // 2
            for part in (slice(0, middle), slice(middle, None)):
                apply(Batch(*(column[part] for column in batch)), sequence)
                time.sleep(0.001)

        store.apply = apply_in_parts

    history = history_with(tmp_path, plant)

    with pytest.raises(ViolationError, match="not whole"):
        check(history)


def test_a_view_that_lags_behind_is_found(tmp_path) -> None:
    with engine_client(tmp_path / "db") as client:
        values, kept = client.values, {}

        def values_of_before(series):
            before = kept.get(series[0])
            kept[series[0]] = values(series)
            return kept[series[0]] if before is None else before

        client.values = values_of_before  # type: ignore[method-assign]
        history = run(client, 4, 1)

    with pytest.raises(ViolationError, match=r"not fresh|not forward"):
        check(history)
