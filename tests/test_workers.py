"""Parts are worked on in threads, and come back in order."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from omendb.errors import ClosedError
from omendb.workers import NICENESS, Workers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(2)
    yield workers
    workers.close()


def test_results_come_in_order_whatever_is_done_first(workers: Workers) -> None:
    second = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second.wait(30)
        if item == 1:
            second.set()
        return item * item

    assert list(workers.map(work, range(50))) == [item * item for item in range(50)]


def test_parts_run_beside_each_other(workers: Workers) -> None:
    together = threading.Barrier(2, timeout=30)

    assert len(list(workers.map(lambda _: together.wait(), range(4)))) == 4


def test_items_are_taken_only_a_few_ahead(workers: Workers) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = workers.map(str, items())
    assert taken == []
    for index in range(20):
        assert next(results) == str(index)
        assert len(taken) <= index + workers.threads + 1


def test_errors_come_in_their_turn(workers: Workers) -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    results = workers.map(work, range(9))

    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_what_has_not_begun_is_given_up_when_nobody_waits(workers: Workers) -> None:
    may_end = threading.Event()
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        if item:
            assert may_end.wait(30)

    results = workers.map(work, range(100))
    next(results)
    del results
    may_end.set()
    workers._pool.shutdown(wait=True)

    assert len(begun) <= workers.threads + 1


def test_closed_workers_take_nothing(workers: Workers) -> None:
    workers.close()

    with pytest.raises(ClosedError):
        next(workers.map(str, [1]))


def test_the_threads_let_others_go_first(workers: Workers) -> None:
    def niceness(_: int) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert set(workers.map(niceness, range(4))) == {max(NICENESS, mine)}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine
