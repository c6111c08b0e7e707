"""A server killed at any moment comes back with everything that it acknowledged, and nothing that it refused.

The short form; ``killing.soak(seed, seconds)`` is the long one. A failure names the seed and the round.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import urllib3

from tests.faults.killing import KINDS, Killing, Ledger, LostDataError, Write, memory_cgroup
from tests.serving import PROGRAM, READY_SECONDS, free_port, start_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def killing(tmp_path: Path) -> Killing:
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    return Killing(tmp_path / "data", seed)


def test_killed_servers_come_back_with_what_they_acknowledged(killing: Killing) -> None:
    for kind in KINDS:
        killing.round(kind)
    counts = killing.finish()

    print(dict(counts))
    assert counts["kills"] >= len(KINDS)
    assert counts["rows_acknowledged"] > 0


def test_a_server_killed_for_its_memory_comes_back_with_what_it_acknowledged(tmp_path: Path) -> None:
    with memory_cgroup() as cgroup:
        if cgroup is None:
            pytest.skip("no memory cgroup (v1) can be made here")
        killing = Killing(tmp_path / "data", 1, cgroup)
        killing.round("oom")
        counts = killing.finish()

    assert counts["kills"] == 1


def test_sigterm_while_the_store_starts_is_an_orderly_stop(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with start_server(data_dir) as server:
        server.post("/insert", [{"series_id": 1, "timestamp": 2, "value": 3.5}])
        server.kill()
    metrics_port = free_port()
    arguments = [f"--data-dir={data_dir}", "--host=127.0.0.1", f"--port={free_port()}"]
    process = subprocess.Popen([PROGRAM, "serve", *arguments, f"--metrics-port={metrics_port}"])
    try:
        give_up = time.monotonic() + READY_SECONDS
        while not _answers(f"http://127.0.0.1:{metrics_port}/health"):
            assert time.monotonic() < give_up
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(30)

    with start_server(data_dir) as server:
        assert server.get("/query")["count"] == 1


def _answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, retries=False, timeout=5).status == 200
    except urllib3.exceptions.HTTPError:
        return False


# The tester, tested: what each of these servers would show is found.


def write(number: int, *, writer: int = 0, rows: int = 3) -> Write:
    value = np.arange(rows, dtype=np.float64) + number * 100
    return Write(writer, np.zeros(rows, np.int64), np.arange(rows), value)


def rows_of(*writes: Write) -> tuple[list[int], list[int], list[float]]:
    last = writes[-1]
    return last.series.tolist(), last.timestamp.tolist(), last.value.tolist()


def lost(ledger: Ledger) -> tuple[list[int], list[int], list[float]]:
    ledger.begin(write(1))
    ledger.acknowledge(write(1))
    return [], [], []


def older(ledger: Ledger) -> tuple[list[int], list[int], list[float]]:
    for number in (1, 2):
        ledger.begin(write(number))
        ledger.acknowledge(write(number))
    return rows_of(write(1))


def refused(ledger: Ledger) -> tuple[list[int], list[int], list[float]]:
    ledger.begin(write(1))
    ledger.refuse(write(1))
    return rows_of(write(1))


def torn(ledger: Ledger) -> tuple[list[int], list[int], list[float]]:
    ledger.begin(write(1))
    return rows_of(write(1, rows=2))


def twice(ledger: Ledger) -> tuple[list[int], list[int], list[float]]:
    ledger.begin(write(1, rows=1))
    ledger.acknowledge(write(1, rows=1))
    return [0, 0], [0, 0], [100.0, 100.0]


def foreign(ledger: Ledger) -> tuple[list[int], list[int], list[float]]:
    return [10**6], [0], [1.0]


@pytest.mark.parametrize("defect", [lost, older, refused, torn, twice, foreign])
def test_a_defect_is_found(defect: Callable[[Ledger], tuple[list[int], list[int], list[float]]]) -> None:
    ledger = Ledger()
    shown = defect(ledger)

    with pytest.raises(LostDataError):
        ledger.settle(*shown, place="here")


@pytest.mark.parametrize("stored", [True, False])
def test_a_request_without_an_answer_may_be_there_or_not_and_stays_so(*, stored: bool) -> None:
    ledger = Ledger()
    ledger.begin(write(1))
    ledger.settle(*(rows_of(write(1)) if stored else ([], [], [])), place="here")

    with pytest.raises(LostDataError):
        ledger.settle(*([], [], []) if stored else rows_of(write(1)), place="here")
