"""The store as a whole: what was inserted is what is read, whatever happened in between."""

from __future__ import annotations

import gc

import pytest

from omendb.errors import CorruptionError, LockedError, WalFailedError
from omendb.storage import manifest
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from tests.storage.conftest import Shelf
from tests.storage.faulty_fs import FaultyFileSystem


def names(shelf, directory="data") -> set[str]:
    return {path.name for path in (shelf.directory / directory).iterdir()}


def named(shelf) -> set[str]:
    """What the manifest on disk names."""
    loaded = manifest.load(OsFileSystem(), shelf.directory)
    assert loaded is not None
    return {f"{e.number:08d}.parquet" for e in loaded.segments} | {
        f"{e.number:08d}-{e.index.number:08d}.lix" for e in loaded.segments
    }


def test_rows_survive_every_kind_of_stop(shelf) -> None:
    for seed in range(6):
        shelf.insert_random(seed)
        if seed % 2:
            shelf.flush()
        shelf.reopen(clean=seed % 3 == 0)
        assert shelf.recovery.clean == (seed % 3 == 0)
        shelf.check()


def test_later_writes_win_in_memtable_segments_and_merges(shelf) -> None:
    shelf.insert(1, [10, 20, 30], [1.0, 2.0, 3.0])
    shelf.flush()
    shelf.insert(1, [20, 20], [4.0, 5.0])
    shelf.check()
    shelf.flush()
    shelf.insert(1, 30, 6.0)
    shelf.check()
    shelf.flush()
    shelf.check()
    shelf.store.compact(everything=True)
    shelf.check()

    assert shelf.rows() == {(1, 10): 1.0, (1, 20): 5.0, (1, 30): 6.0}


def test_compaction_drops_superseded_rows_and_their_files(shelf) -> None:
    for seed in range(4):
        shelf.insert_random(seed)
        shelf.flush()
    before = shelf.store.snapshot.segment_rows

    work = shelf.store.compact(everything=True)

    shelf.check()
    assert work.rows_in - work.rows_out == before - len(shelf.expected)
    assert shelf.store.snapshot.segment_rows == len(shelf.expected)
    assert names(shelf) == named(shelf)
    assert shelf.store.compact(everything=True) is None


def test_background_compaction_bounds_the_generations(shelf) -> None:
    for seed in range(30):
        shelf.insert_random(seed, rows=100)
        shelf.flush()
        while shelf.store.compact() is not None:
            pass
        shelf.check()

    assert len({s.entry.last_sequence for s in shelf.store.snapshot.segments}) <= 6


def test_a_large_partition_is_cut_and_later_rows_go_where_they_belong(shelf) -> None:
    for seed in range(8):
        shelf.insert_random(seed, rows=1500, series=9, span=100_000)
        shelf.flush()
        while shelf.store.compact() is not None:
            pass
    while shelf.store.compact(everything=True) is not None:
        pass

    shelf.check()
    boundaries = shelf.store.boundaries
    assert boundaries
    for segment in shelf.store.snapshot.segments:
        entry = segment.entry
        assert entry.rows <= 500
        assert not any(entry.first_timestamp < b <= entry.last_timestamp for b in boundaries)
    shelf.insert_random(99, rows=400, span=100_000)
    shelf.flush()
    shelf.check()
    shelf.reopen(clean=False)
    shelf.check()


def test_a_partition_of_one_timestamp_is_never_cut(shelf) -> None:
    for seed in range(4):
        shelf.insert(list(range(seed * 1500, seed * 1500 + 1500)), [7] * 1500, [1.0] * 1500)
        shelf.flush()
        while shelf.store.compact(everything=True) is not None:
            pass

    shelf.check()
    assert shelf.store.boundaries == []


def test_readers_keep_removed_segments_until_they_are_done(shelf) -> None:
    shelf.insert_random(1)
    shelf.flush()
    shelf.insert_random(2)
    shelf.flush()
    held = shelf.store.snapshot
    values = [segment.value for segment in held.segments]
    sums = [value.sum() for value in values]

    shelf.store.compact(everything=True)

    assert shelf.store.removed_mapped_bytes > 0
    assert [value.sum() for value in values] == sums
    del held, values
    gc.collect()
    assert shelf.store.removed_mapped_bytes == 0


def test_retrain_refits_every_segment_and_keeps_the_rows(shelf) -> None:
    for seed in range(3):
        shelf.insert_random(seed)
        shelf.flush()
    shelf.store.settings = shelf.settings.with_changes(max_error=2)

    shelf.store.retrain()

    shelf.check()
    assert {segment.index.max_error for segment in shelf.store.snapshot.segments} == {2}
    assert names(shelf) == named(shelf)
    shelf.reopen(clean=False)
    assert {segment.index.max_error for segment in shelf.store.snapshot.segments} == {2}
    shelf.check()


def test_flushed_log_files_are_removed(shelf) -> None:
    for seed in range(3):
        shelf.insert_random(seed)
        shelf.flush()

    assert len(names(shelf, "wal")) == 1
    shelf.reopen(clean=True)
    assert len(names(shelf, "wal")) == 1
    assert shelf.store.wal.bytes < 100


def test_two_owners_are_refused(shelf) -> None:
    with pytest.raises(LockedError):
        open_store(OsFileSystem(), shelf.directory, shelf.settings)


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename", "sync_directory", "map"])
@pytest.mark.parametrize("task", ["flush", "compact", "retrain"])
def test_a_failed_task_changes_nothing_and_may_be_tried_again(tmp_path, operation, task) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    shelf = Shelf(tmp_path / "db", fs)
    for seed in range(3):
        shelf.insert_random(seed)
        shelf.flush()
    shelf.insert_random(9)
    shelf.store.freeze()
    run = {
        "flush": shelf.store.flush_oldest,
        "compact": lambda: shelf.store.compact(everything=True),
        "retrain": shelf.store.retrain,
    }[task]
    fs.fail(operation, "ENOSPC", only="/data/" if operation != "sync_directory" else "/data")
    try:
        with pytest.raises((OSError, CorruptionError)):
            run()
    except BaseException:
        if (task, operation) != ("retrain", "map"):
            raise
    shelf.check()
    # What was written for nothing is gone: a full disk does not get fuller with every attempt.
    assert names(shelf) == named(shelf)
    fs.heal()

    run()

    shelf.check()
    shelf.reopen(clean=False)
    shelf.check()
    assert names(shelf) == named(shelf)


@pytest.mark.parametrize("operation", ["rename", "sync_directory"])
def test_a_manifest_that_may_or_may_not_be_published_stops_the_store(tmp_path, operation) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    shelf = Shelf(tmp_path / "db", fs)
    shelf.insert_random(1)
    shelf.store.freeze()
    # Two segments and their indexes come first.
    fs.fail(
        operation,
        "EIO",
        only="MANIFEST" if operation == "rename" else "",
        after=0 if operation == "rename" else 4,
    )
    with pytest.raises(WalFailedError):
        shelf.store.flush_oldest()
    fs.heal()

    with pytest.raises(WalFailedError):
        shelf.insert(1, 1, 1.0)
    shelf.reopen(clean=False)
    shelf.check()
