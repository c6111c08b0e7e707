"""A backup equals the store at one moment, whatever happens meanwhile; a damaged one is refused."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest

import omendb
from omendb.config import Settings
from omendb.engine import Engine
from omendb.errors import (
    AlreadyExistsError,
    CorruptionError,
    DiskFullError,
    InvalidRequestError,
    OmenError,
    WalFailedError,
)
from omendb.model import make_batch
from omendb.storage import backup
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from omendb.storage.restore import restore
from omendb.storage.verify import verify
from tests.faults.backups import COPY, DB, SETTINGS, check_under_load, crash_during_a_backup, rows_of
from tests.faults.crash import LostDataError, read_all
from tests.faults.model_fs import ModelFileSystem
from tests.storage.conftest import Shelf
from tests.storage.faulty_fs import FaultyFileSystem

FS = OsFileSystem()


def content(directory) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def filled(shelf):
    """Two segments, a frozen memtable with its WAL file, and an active one."""
    for seed in (1, 2):
        shelf.insert_random(seed)
        shelf.flush()
    shelf.insert_random(3)
    shelf.store.freeze()
    shelf.insert_random(4)
    return shelf


def test_a_backup_is_a_data_directory_with_the_same_rows(filled, tmp_path) -> None:
    record = filled.store.backup(tmp_path / "copy", 12.5)

    report = verify(FS, tmp_path / "copy")
    assert (report.findings, report.warnings) == ([], [])
    assert report.rows == record.rows == filled.store.snapshot.segment_rows + 2 * 700
    assert record.bytes == report.bytes
    assert record.linked
    assert record.unix_seconds == 12.5
    assert backup.read_record(FS, tmp_path / "copy") == record
    assert rows_of(tmp_path / "copy") == filled.expected
    filled.check()


def test_segments_are_links_and_the_log_is_not(filled, tmp_path) -> None:
    filled.store.backup(tmp_path / "copy", 0.0)

    for path in (tmp_path / "copy" / "data").iterdir():
        assert path.samefile(filled.directory / "data" / path.name)
    for path in (tmp_path / "copy" / "wal").iterdir():
        assert path.stat().st_nlink == 1


def test_what_comes_later_is_not_in_it_and_does_not_disturb_it(filled, tmp_path) -> None:
    filled.store.backup(tmp_path / "copy", 0.0)
    expected, before = dict(filled.expected), content(tmp_path / "copy")

    filled.insert_random(5)
    filled.flush()
    while filled.store.compact(everything=True) is not None:
        pass
    filled.store.retrain()
    filled.reopen(clean=True)

    assert content(tmp_path / "copy") == before
    assert rows_of(tmp_path / "copy") == expected
    filled.check()


def test_using_a_backup_does_not_disturb_the_source(filled, tmp_path) -> None:
    filled.store.backup(tmp_path / "copy", 0.0)
    other = Shelf(tmp_path / "copy")
    other.expected = dict(filled.expected)
    other.insert_random(9)
    other.flush()
    while other.store.compact(everything=True) is not None:
        pass
    other.reopen(clean=True)
    other.check()

    filled.check()
    filled.reopen(clean=False)
    filled.check()


def test_an_empty_store_can_be_backed_up(shelf, tmp_path) -> None:
    record = shelf.store.backup(tmp_path / "copy", 0.0)

    assert (record.rows, record.sequence) == (0, 0)
    assert rows_of(tmp_path / "copy") == {}


def test_records_that_were_not_synced_when_it_began_are_left_out(shelf, tmp_path) -> None:
    """The cut is at a record's end, also while the next one is being written."""
    shelf.insert(1, 1, 1.0)
    batch = make_batch(1, np.arange(100), np.zeros(100))
    pin = backup.Backup.pin

    def append_first(made, *arguments) -> None:
        shelf.store.append(batch)
        pin(made, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backup.Backup, "pin", append_first)
        record = shelf.store.backup(tmp_path / "copy", 0.0)

    assert record.rows == 1
    report = verify(FS, tmp_path / "copy")
    assert (report.warnings, report.rows) == ([], 1)


def test_a_file_system_without_links_gets_copies(tmp_path) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    shelf = Shelf(tmp_path / "db", fs)
    shelf.insert_random(1)
    shelf.flush()
    shelf.insert_random(2)
    fs.fail("link", "EXDEV")
    finish = backup.Backup.finish

    def flush_first(made, *arguments, **options):
        # Everything it still has to copy is removed from the source.
        shelf.flush()
        assert shelf.store.compact(everything=True) is not None
        return finish(made, *arguments, **options)

    expected = dict(shelf.expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backup.Backup, "finish", flush_first)
        record = shelf.store.backup(tmp_path / "copy", 0.0, check=True)

    assert not record.linked
    assert rows_of(tmp_path / "copy") == expected
    for path in (tmp_path / "copy" / "data").iterdir():
        assert path.stat().st_nlink == 1


@pytest.mark.parametrize(
    ("operation", "only"),
    [
        ("link", "/copy"),
        ("create", "/copy"),
        ("write", "/copy"),
        ("sync", "/copy"),
        ("sync_directory", "/copy"),
        ("rename", "/copy"),
        ("map", "/wal/"),
    ],
)
def test_a_failed_backup_leaves_nothing_and_the_next_one_succeeds(tmp_path, operation, only) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    shelf = Shelf(tmp_path / "db", fs)
    shelf.insert_random(1)
    shelf.flush()
    shelf.insert_random(2)
    fs.fail(operation, "EIO", only=only)
    with pytest.raises(OSError):
        shelf.store.backup(tmp_path / "copy", 0.0)
    fs.heal()

    assert [p.name for p in tmp_path.iterdir()] == ["db"]
    shelf.insert_random(3)
    shelf.store.backup(tmp_path / "copy", 0.0)
    assert rows_of(tmp_path / "copy") == shelf.expected


def test_a_damaged_segment_is_found_when_the_backup_is_verified(filled, tmp_path) -> None:
    path = next((filled.directory / "data").glob("*.parquet"))
    flip(path, path.stat().st_size // 2)

    with pytest.raises(CorruptionError, match=path.name):
        filled.store.backup(tmp_path / "copy", 0.0, check=True)

    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "copy.backup.tmp").exists()


def test_a_damaged_log_is_never_backed_up(filled, tmp_path) -> None:
    for path in sorted((filled.directory / "wal").glob("*.wal")):
        flip(path, path.stat().st_size - 10)
        with pytest.raises(CorruptionError, match=path.name):
            filled.store.backup(tmp_path / "copy", 0.0)
        flip(path, path.stat().st_size - 10)
        assert not (tmp_path / "copy").exists()


def flip(path: Path, offset: int) -> None:
    """Change a byte in a file of its own, so that links of it stay as they are."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.unlink()
    path.write_bytes(data)


def test_the_record_of_version_1_is_read() -> None:
    """Written by version 1, and never anew: a change of the format adds a directory."""
    golden = Path(__file__).parent / "golden" / "backup-v1"

    assert backup.read_record(FS, golden) == backup.Record(
        manifest_version=3,
        sequence=3,
        unix_seconds=1795558245.5,
        rows=2408,
        segments=1,
        bytes=45210,
        linked=True,
        log=[backup.LogFile(2, 272, "00c0ffee00c0ffee")],
    )


# Restoring.


def test_a_restored_copy_equals_the_source_and_shares_nothing_with_it(filled, tmp_path) -> None:
    record = filled.store.backup(tmp_path / "copy", 0.0)

    done = restore(FS, tmp_path / "copy", tmp_path / "back")

    assert (done.rows, done.bytes, done.replaced) == (record.rows, record.bytes, None)
    for path in (tmp_path / "back").rglob("*"):
        assert path.is_dir() or path.stat().st_nlink == 1
    assert rows_of(tmp_path / "back") == filled.expected


def test_a_stopped_store_can_be_restored_too(filled, tmp_path) -> None:
    filled.store.close()

    restore(FS, filled.directory, tmp_path / "back")

    assert rows_of(tmp_path / "back") == filled.expected


def test_every_damage_of_a_backup_is_refused_before_anything_is_changed(filled, tmp_path) -> None:
    filled.store.backup(tmp_path / "copy", 0.0)
    rng = random.Random(7)

    for path in sorted(p for p in (tmp_path / "copy").rglob("*") if p.is_file() and p.name != "LOCK"):
        whole = path.read_bytes()
        offsets = {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(3))}
        damaged = [whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :] for offset in offsets]
        damaged += [whole[: rng.randrange(len(whole))], b""]
        for data in damaged:
            path.unlink()
            path.write_bytes(data)
            if path.suffix == ".lix":
                # A cache: it is mended at the first start, and loses nothing.
                restore(FS, tmp_path / "copy", tmp_path / "back")
                assert rows_of(tmp_path / "back") == filled.expected
                remove(tmp_path / "back")
                continue
            with pytest.raises(OmenError, match=path.name):
                restore(FS, tmp_path / "copy", tmp_path / "back")
            assert not (tmp_path / "back").exists()
        path.unlink()
        if path.name != "BACKUP" and path.suffix != ".lix":
            with pytest.raises((OmenError, OSError), match=path.name if path.suffix else "manifest"):
                restore(FS, tmp_path / "copy", tmp_path / "back")
        path.write_bytes(whole)
    restore(FS, tmp_path / "copy", tmp_path / "back")


def remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    directory.rmdir()


def test_a_directory_that_is_not_empty_is_replaced_only_by_force(filled, tmp_path) -> None:
    filled.store.backup(tmp_path / "copy", 0.0)
    other = Shelf(tmp_path / "other")
    other.insert(1, 1, 1.0)
    other.store.close()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    before = content(tmp_path / "other")

    with pytest.raises(AlreadyExistsError, match="not empty"):
        restore(FS, tmp_path / "copy", tmp_path / "other")
    assert content(tmp_path / "other") == before

    done = restore(FS, tmp_path / "copy", tmp_path / "other", force=True)

    assert done.replaced == tmp_path / "other" / "replaced-1"
    assert rows_of(tmp_path / "other") == filled.expected
    assert rows_of(tmp_path / "other" / "replaced-1") == {(1, 1): 1.0}
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


def test_a_store_can_be_put_back_to_a_backup_below_it(tmp_path) -> None:
    with omendb.open(tmp_path / "db") as db:
        db.insert(1, [1, 2], [1.0, 2.0])
        made = Path(db.backup_as("good").path)
        db.insert(1, [1, 2], [-1.0, -1.0])

    restore(FS, made, tmp_path / "db", force=True)

    assert rows_of(tmp_path / "db") == {(1, 1): 1.0, (1, 2): 2.0}
    with pytest.raises(InvalidRequestError):
        restore(FS, made, made, force=True)


def test_a_restore_without_space_is_refused_by_the_start_and_may_be_repeated(filled, tmp_path) -> None:
    filled.store.backup(tmp_path / "copy", 0.0)
    fs = FaultyFileSystem(OsFileSystem())
    fs.fail("write", "ENOSPC", only="/back/", after=3)
    with pytest.raises(OSError):
        restore(fs, tmp_path / "copy", tmp_path / "back")
    fs.heal()

    with pytest.raises(CorruptionError, match="manifest is missing"):
        rows_of(tmp_path / "back")
    restore(fs, tmp_path / "copy", tmp_path / "back", force=True)
    assert rows_of(tmp_path / "back") == filled.expected


def test_a_restore_into_too_little_space_is_refused_at_once(filled, tmp_path) -> None:
    filled.store.backup(tmp_path / "copy", 0.0)
    fs = FaultyFileSystem(OsFileSystem())
    fs.free_bytes = lambda path: 100

    with pytest.raises(DiskFullError):
        restore(fs, tmp_path / "copy", tmp_path / "back")

    assert [p.name for p in (tmp_path / "back").iterdir()] == []


def test_a_backup_on_a_read_only_file_system_can_be_restored(filled, tmp_path, monkeypatch) -> None:
    filled.store.backup(tmp_path / "copy", 0.0)
    opened = os.open

    def refuse(path, flags, *arguments, **options):
        if (tmp_path / "copy") in Path(path).parents and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    restore(FS, tmp_path / "copy", tmp_path / "back")

    assert not (tmp_path / "copy" / "LOCK").exists()
    assert rows_of(tmp_path / "back") == filled.expected


# The engine.


def test_names_are_names_and_never_paths(tmp_path) -> None:
    with omendb.open(tmp_path / "db") as db:
        for name in (
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/tmp/x",
            "a\x00b",
            "x" * 101,
            "-x",
            "a b",
            "x.tmp",
            "é",
            "x\n",
        ):
            with pytest.raises(InvalidRequestError) as refused:
                db.backup_as(name)
            assert refused.value.field == "name"
        assert not (tmp_path / "db" / "backups").exists()
        db.backup_as("monday")
        with pytest.raises(AlreadyExistsError):
            db.backup_as("monday")
        first, second = db.backup_as().name, db.backup_as().name
        assert first != second
        assert [info.name for info in db.backups().backups] == ["monday", first, second]


def test_backups_are_no_part_of_the_store(tmp_path) -> None:
    with omendb.open(tmp_path / "db") as db:
        db.insert(1, [1, 2], [1.0, 2.0])
        db.flush()
        made = Path(db.backup_as().path)
        db.insert(1, 3, 3.0)
        db.gc()
        figures = db.stats()
    before = content(made)
    assert verify(FS, tmp_path / "db").warnings == []

    with omendb.open(tmp_path / "db") as db:
        assert db.stats().record_count == figures.record_count == 3
        assert [info.path for info in db.backups().backups] == [str(made)]
        (gauge,) = [v for n, _, v in db._gauges() if n == "omendb_last_backup_timestamp_seconds"]
        assert gauge == db.backups().backups[0].unix_seconds > 0
    assert content(made) == before


def test_what_a_crash_left_of_a_backup_goes_with_the_next_one(tmp_path) -> None:
    with omendb.open(tmp_path / "db") as db:
        db.insert(1, 1, 1.0)
        made = Path(db.backup_as("a").path)
        made.rename(made.with_name("b.backup.tmp"))
        assert db.backups().backups == []

        db.backup_as("c")

        assert [p.name for p in made.parent.iterdir()] == ["c"]


def test_a_backup_without_space_is_507_and_no_reason_to_stop(tmp_path) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    with Engine(tmp_path / "db", fs=fs) as db:
        db.insert(1, 1, 1.0)
        fs.fail("write", "ENOSPC", only="/backups/")
        with pytest.raises(DiskFullError):
            db.backup_as()
        db.insert(1, 2, 1.0)
        fs.heal()
        assert db.backup_as().rows == 2


def test_with_a_sync_interval_what_was_acknowledged_is_synced_first(tmp_path) -> None:
    with omendb.open(tmp_path / "db", sync_interval_ms=60_000) as db:
        db.insert(1, [1, 2], [1.0, 2.0])
        assert db.backup(tmp_path / "copy").rows == 2
    assert rows_of(tmp_path / "copy") == {(1, 1): 1.0, (1, 2): 2.0}


def test_a_log_that_cannot_be_synced_ends_the_store_and_not_a_backup(tmp_path) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    db = Engine(tmp_path / "db", Settings(sync_interval_ms=60_000), fs=fs)
    db.start()
    try:
        db.insert(1, 1, 1.0)
        fs.fail("sync", "EIO", only=".wal")
        with pytest.raises(WalFailedError):
            db.backup_as()
        assert db.failed.is_set()
        assert db.backups().backups == []
    finally:
        fs.heal()
        db.close()


def test_a_copy_taken_under_load_is_the_store_of_one_moment(tmp_path) -> None:
    """Writers, flushes, merges and refits go on.

    Each writer inserts batches of a series of its own, with the batch's number as the value, over the same
    keys: so that a copy shows for each writer which batch it holds, and whether it holds it whole.
    """
    seed = int(os.environ.get("OMENDB_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"seed {seed}")
    copies = check_under_load(tmp_path, seed, backups=8, links=True)
    assert copies == 8
    assert check_under_load(tmp_path / "without-links", seed, backups=4, links=False) == 4


# Crashes.


@pytest.mark.parametrize("links", [True, False])
def test_a_crash_during_a_backup_leaves_a_whole_one_or_none(links) -> None:
    images = whole = 0
    for seed in range(3):
        more, more_whole = crash_during_a_backup(seed, links=links)
        images, whole = images + more, whole + more_whole

    print(f"{images} images, {whole} with the backup")
    assert images > 500
    assert whole > 10


@pytest.mark.parametrize(
    "bug",
    [
        "sync:.wal",
        "sync:MANIFEST",
        "sync:BACKUP",
        "sync_directory:/db/backups/copy.backup.tmp/wal",
        "sync_directory:/db/backups/copy.backup.tmp/data",
        "sync_directory:/db/backups",
    ],
)
def test_a_missing_sync_of_a_backup_is_found(bug) -> None:
    with pytest.raises(LostDataError):
        for seed in range(6):
            crash_during_a_backup(seed, {bug})


def test_a_crash_during_a_restore_leaves_nothing_that_looks_whole() -> None:
    fs = ModelFileSystem()
    store, _ = open_store(fs, DB, SETTINGS)
    for number in range(3):
        batch = make_batch(number, np.arange(30), np.arange(30) / 2)
        store.append(batch)
        store.sync()
        store.apply(batch, number + 1)
        store.freeze()
        if number == 0:
            store.flush_oldest()
    expected = read_all(store)
    store.backup(COPY, 0.0)
    target = Path("/back")
    outcomes = {"refused": 0, "empty": 0, "whole": 0}
    points = 0

    def crash(operation: str) -> None:
        nonlocal points
        points += 1
        for number, image in enumerate(fs.images(points, 10)):
            place = f"point {points} ({operation}), image {number}"
            try:
                restored, found = open_store(image, target, SETTINGS)
            except CorruptionError:
                outcomes["refused"] += 1
                continue
            rows = read_all(restored)
            assert rows == expected or (rows == {} and found.created), place
            outcomes["empty" if found.created else "whole"] += 1

    fs.on_operation = crash
    restore(fs, COPY, target)

    assert min(outcomes.values()) > 0, outcomes
