"""The loop of the background threads, without a store."""

from __future__ import annotations

import threading
from pathlib import Path

from omendb import flusher
from omendb.errors import CorruptionError, OmenError
from omendb.lifecycle import Lifecycle


class Woken(threading.Event):
    """Never waits, and notes how long it should have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return True


def waits_of(*errors: OmenError) -> list[float | None]:
    """Let a work fail with these errors, one after the other, and then end the loop."""
    lifecycle, wanted, left = Lifecycle(Path("db")), Woken(), list(errors)

    def step() -> None:
        if left:
            raise left.pop(0)
        lifecycle.close()

    flusher._repeat("work", step, wanted, lifecycle)
    return wanted.waits


def test_what_fails_again_and_again_waits_longer_and_longer() -> None:
    assert waits_of(*[OmenError("full")] * 6) == [None, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]


def test_damage_that_stays_does_not_keep_a_processor_busy() -> None:
    """Damage that is remembered is left alone; of what was just written there is nothing to remember."""
    damage = CorruptionError("db/data/00000009.parquet.tmp", 4, "block 0 does not match its checksum")

    assert waits_of(damage, damage, damage) == [None, 1.0, 2.0, 4.0]
