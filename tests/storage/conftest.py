"""A store to work on, and what it should hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from omendb.config import Settings
from omendb.executor import Scan
from omendb.model import make_batch
from omendb.query import make_range_query
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store

if TYPE_CHECKING:
    from omendb.storage.store import Store


class Shelf:
    """A store with small segments and partitions, beside a dict of what was put into it."""

    def __init__(self, directory, fs=None) -> None:
        self.directory = directory
        self.fs = fs or OsFileSystem()
        self.expected: dict[tuple[int, int], float] = {}
        self.settings = Settings(max_error=8)
        self.recovery = None
        self.store: Store = self._open()

    def _open(self) -> Store:
        store, self.recovery = open_store(
            self.fs, self.directory, self.settings, partition_rows=2_000, segment_rows_max=500
        )
        return store

    def insert(self, series, timestamp, value) -> None:
        batch = make_batch(series, timestamp, value)
        sequence = self.store.append(batch)
        self.store.sync()
        self.store.apply(batch, sequence)
        keys = zip(batch.series_id.tolist(), batch.timestamp.tolist(), strict=True)
        self.expected.update(zip(keys, batch.value.tolist(), strict=True))

    def insert_random(self, seed: int, rows: int = 700, series: int = 5, span: int = 1000) -> None:
        rng = np.random.default_rng(seed)
        self.insert(
            rng.integers(0, series, rows), rng.integers(0, span, rows), rng.normal(size=rows).round(2)
        )

    def flush(self) -> None:
        self.store.freeze()
        while self.store.flush_oldest() is not None:
            pass

    def reopen(self, *, clean: bool) -> None:
        if clean:
            self.store.close()
        else:
            self.store.wal.close()
            self.store.release()
        self.store = self._open()

    def rows(self, **query) -> dict[tuple[int, int], float]:
        found: dict[tuple[int, int], float] = {}
        scan = Scan(self.store.snapshot, make_range_query(**query))
        for chunk in scan.chunks(333):
            keys = list(zip(chunk.series_id.tolist(), chunk.timestamp.tolist(), strict=True))
            assert keys == sorted(set(keys))
            assert not found or keys[0] > max(found)
            found.update(zip(keys, chunk.value.tolist(), strict=True))
        return found

    def check(self) -> None:
        assert self.rows() == self.expected
        scan = Scan(self.store.snapshot, make_range_query())
        assert scan.count() == len(self.expected)


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    return Shelf(tmp_path / "db")
