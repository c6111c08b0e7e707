"""Runs a store on the model file system and crashes it after every operation.

One seed decides the whole run: what is inserted, what happens between, which images are made. `Run` counts
what it checked, so that a test can tell that it checked something.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omendb.config import Settings
from omendb.errors import OmenError
from omendb.executor import Scan
from omendb.model import make_batch
from omendb.query import make_range_query
from omendb.series import FIRST_ID, write_key
from omendb.storage.recovery import open_store
from tests.faults.model_fs import ModelFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = Path("/db")
SETTINGS = Settings(max_error=8)


class LostDataError(AssertionError):
    """A crash showed something other than what was acknowledged."""


class Run:
    """One seeded run.

    Parameters
    ----------
    seed : int
    random_images : int
        Random images a crash point, beside the systematic ones.
    steps : int
        Inserts, flushes, merges, refits and restarts.
    broken : set of str
        Bugs to plant; see `ModelFileSystem.broken`.
    store_bug : callable, optional
        Is called with each store that is opened, to plant a bug in it.
    nested : float
        Share of the images whose recovery is crashed in turn, after every operation.

    Attributes
    ----------
    points, images : int
        Crash points; distinct images recovered.
    """

    def __init__(
        self,
        seed: int,
        *,
        random_images: int = 6,
        steps: int = 14,
        broken: set[str] | None = None,
        store_bug: Callable[[Any], None] | None = None,
        nested: float = 0.02,
    ) -> None:
        self.points = 0
        self.images = 0
        self._seed = seed
        self._random_images = random_images
        self._steps = steps
        self._store_bug = store_bug
        self._nested = nested
        self._random = random.Random(seed)
        self._fs = ModelFileSystem()
        self._fs.broken = broken or set()
        self._fs.on_operation = self._crash
        self._seen: set[tuple[int, int, int]] = set()
        self._acknowledged: dict[tuple[int, int], float] = {}
        self._under_way: dict[tuple[int, int], float] = {}
        self._keys: dict[int, bytes] = {}  # of the ids that named series were given
        self._kept: list[object] = []  # so that no identity is used twice
        # Of its own, so that seeds go on to make the runs that they made.
        self._compress = random.Random(seed + 1)

    def run(self) -> Run:
        """Do the steps, crashing after every operation of each.

        Raises
        ------
        LostDataError
        """
        store, _ = self._open(self._fs)
        for step in range(self._steps):
            choice = self._random.random()
            if choice < 0.5 or step < 2:
                self._insert(store)
            elif choice < 0.75:
                store.freeze()
                while store.flush_oldest() is not None:
                    pass
            elif choice < 0.87:
                store.settings = SETTINGS.with_changes(enable_compression=self._compress.random() < 0.5)
                store.compact(everything=True)
            elif choice < 0.93:
                store.retrain()
            else:
                if self._random.random() < 0.5:
                    store.close()
                else:
                    self._reopen_after_kill()
                store, _ = self._open(self._fs)
        store.close()
        return self

    def _open(self, fs: ModelFileSystem):
        store, found = open_store(fs, DIRECTORY, SETTINGS, partition_rows=60, segment_rows_max=40)
        if self._store_bug is not None and fs is self._fs:
            self._store_bug(store)
        return store, found

    def _reopen_after_kill(self) -> None:
        """Go on with what a killed process leaves."""
        left = self._fs.after_crash_of_process()
        left.broken, left.on_operation = self._fs.broken, self._crash
        self._fs.on_operation = None
        self._fs = left

    def _insert(self, store) -> None:
        count = self._random.choice([1, 3, 30])
        rng = np.random.default_rng(self._random.getrandbits(32))
        batch = make_batch(
            rng.integers(0, 4, count), rng.integers(0, 40, count), rng.integers(0, 1000, count) / 4
        )
        if self._random.random() < 0.5:
            # Named series, one of them new now and then.
            names = [b"m,n=%d f" % rng.integers(0, 2 + 2 * len(self._keys)) for _ in range(count)]
            ids = store.catalog.give_ids(names, names)
            self._keys |= dict(zip(ids.tolist(), names, strict=True))
            batch = batch._replace(series_id=ids)
        keys = zip(batch.series_id.tolist(), batch.timestamp.tolist(), strict=True)
        self._under_way = {**self._acknowledged, **dict(zip(keys, batch.value.tolist(), strict=True))}
        sequence = store.append(batch)
        store.sync()
        # From here on the client may have its answer.
        self._acknowledged = self._under_way
        store.apply(batch, sequence)

    def _crash(self, operation: str) -> None:
        self.points += 1
        for number, image in enumerate(
            self._fs.images(self._seed * 1_000_003 + self.points, self._random_images)
        ):
            # The same disk is right or wrong depending on what was acknowledged by then.
            print_of = (image.fingerprint(), id(self._acknowledged), id(self._under_way))
            if print_of in self._seen:
                continue
            self._seen.add(print_of)
            self._kept += [self._acknowledged, self._under_way]
            self.images += 1
            self._check(image, f"seed {self._seed}, point {self.points} ({operation}), image {number}")

    def _check(self, image: ModelFileSystem, place: str, *, deeper: bool = True) -> None:
        if deeper and self._random.random() < self._nested:
            # The recovery itself is crashed, and what that leaves is recovered again.
            def crash_again(operation: str) -> None:
                for number, second in enumerate(image.images(self._seed, 2)):
                    self.images += 1
                    self._check(second, f"{place}, then {operation}, image {number}", deeper=False)

            image.on_operation = crash_again
        try:
            store, _ = self._open(image)
            rows = read_all(store)
            # Once a series, not once a row: names were a quarter of the time of an image.
            named = {series for series, _ in rows if series >= FIRST_ID}
            names = {series: write_key(store.catalog.name(series)) for series in named}
        except KeyError as error:
            raise LostDataError(f"{place}: series {error} has points, but no name") from error
        except (OmenError, OSError, AssertionError) as error:
            raise LostDataError(f"{place}: cannot be recovered: {error}") from error
        wrong = {series: name for series, name in names.items() if name != self._keys[series]}
        if wrong:
            raise LostDataError(f"{place}: series have the names of others: {wrong}")
        if rows not in (self._acknowledged, self._under_way):
            missing = {key for key in self._acknowledged if rows.get(key) != self._acknowledged[key]}
            raise LostDataError(
                f"{place}: {len(missing)} acknowledged rows missing or wrong, e.g. {sorted(missing)[:3]}; "
                f"{len(rows)} rows there, {len(self._acknowledged)} acknowledged"
            )


def read_all(store) -> dict[tuple[int, int], float]:
    rows: dict[tuple[int, int], float] = {}
    for chunk in Scan(store.snapshot, make_range_query()).chunks():
        keys = zip(chunk.series_id.tolist(), chunk.timestamp.tolist(), strict=True)
        rows.update(zip(keys, chunk.value.tolist(), strict=True))
    return rows


def soak(seed: int, seconds: float) -> dict[str, int]:
    """Crash seeded runs until the time is over.

    Returns
    -------
    dict
        Numbers of runs, crash points and images.

    Raises
    ------
    LostDataError
    """
    print(f"crash points: seed {seed}", flush=True)
    counts = {"runs": 0, "crash_points": 0, "images": 0}
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        # Long runs have seen more, short ones are read faster: both, in turn.
        steps = (12, 12, 12, 30)[counts["runs"] % 4]
        run = Run(seed + counts["runs"], random_images=40, steps=steps, nested=0.03).run()
        counts["runs"] += 1
        counts["crash_points"] += run.points
        counts["images"] += run.images
    return counts
