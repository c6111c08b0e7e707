"""While hostile clients do their worst, a normal one gets right answers; then memory and files are back."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import pytest

from tests.faults import hostile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serving import RunningServer

SEED = 20_262


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with hostile.attacked_server(tmp_path_factory.mktemp("hostile")) as server:
        yield server
        log = server.log.read_text()
        assert "ERROR" not in log
        assert "Traceback" not in log


@pytest.mark.parametrize("name", hostile.ATTACKS)
def test_normal_client_is_served_during(name: str, attacked: RunningServer) -> None:
    count, normal = hostile.attack(attacked, name, random.Random(f"{name} {SEED}"))

    assert count > 0
    assert normal.rounds >= 2 * hostile.ROUNDS
    print(f"{count} connections or requests, slowest round {normal.slowest_seconds:.3f} s")


# The tester is tested.


def test_finds_a_server_that_ends(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(arena: hostile.Arena) -> int:
        arena.server.kill()
        arena.normal.wait_rounds()
        return 1

    monkeypatch.setitem(hostile.ATTACKS, "kill", kill)

    with pytest.raises(AssertionError, match="the normal client failed"):
        hostile.attack(server, "kill", random.Random(SEED))


def test_finds_files_that_stay_open(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as left_open:

        def leave_open(arena: hostile.Arena) -> int:
            return len(left_open.enter_context(arena.connections(100)))

        monkeypatch.setitem(hostile.ATTACKS, "leave_open", leave_open)
        monkeypatch.setattr(hostile, "DEADLINE_SECONDS", 5)

        with pytest.raises(AssertionError, match=r"^\(\d+, 1\d\d, \d+, \d+\)"):
            hostile.attack(server, "leave_open", random.Random(SEED))
