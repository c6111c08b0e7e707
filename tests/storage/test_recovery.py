"""Opening what a crash, a careless operator or a bad disk left."""

from __future__ import annotations

import pytest

from omendb.errors import CorruptionError
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store


def refused(shelf) -> CorruptionError:
    shelf.store.wal.close()
    shelf.store.release()
    with pytest.raises(CorruptionError) as error:
        open_store(OsFileSystem(), shelf.directory, shelf.settings)
    return error.value


def filled(shelf):
    shelf.insert_random(1)
    shelf.flush()
    shelf.insert_random(2)
    return shelf


def test_a_missing_manifest_is_no_new_store(shelf) -> None:
    filled(shelf)
    (shelf.directory / "MANIFEST").unlink()

    error = refused(shelf)

    assert "the manifest is missing" in str(error)
    assert any((shelf.directory / "data").iterdir())


def test_a_missing_manifest_beside_records_is_no_new_store(shelf) -> None:
    shelf.insert_random(1)
    (shelf.directory / "MANIFEST").unlink()

    assert "the manifest is missing" in str(refused(shelf))


def test_a_missing_segment_is_named(shelf) -> None:
    filled(shelf)
    path = next((shelf.directory / "data").glob("*.parquet"))
    path.unlink()

    assert refused(shelf).path == str(path)


def test_a_missing_log_is_named(shelf) -> None:
    filled(shelf)
    for path in (shelf.directory / "wal").iterdir():
        path.unlink()

    assert ".wal" in refused(shelf).path


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut", "foreign", "empty"])
def test_a_damaged_learned_index_is_rebuilt(shelf, damage) -> None:
    filled(shelf)
    shelf.flush()
    paths = sorted((shelf.directory / "data").glob("*.lix"))
    whole = paths[0].read_bytes()
    if damage == "missing":
        paths[0].unlink()
    elif damage == "flipped":
        paths[0].write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    elif damage == "cut":
        paths[0].write_bytes(whole[:-9])
    elif damage == "foreign":
        paths[0].write_bytes(paths[1].read_bytes())
    else:
        paths[0].write_bytes(b"")

    shelf.reopen(clean=False)

    assert shelf.recovery.rebuilt_indexes == 1
    shelf.check()
    shelf.reopen(clean=False)
    assert shelf.recovery.rebuilt_indexes == 0


def test_files_that_nothing_names_are_removed_and_foreign_ones_left_alone(shelf) -> None:
    filled(shelf)
    data = shelf.directory / "data"
    for name in ("00000099.parquet", "00000099-00000100.lix", "00000101.parquet.tmp", "notes.txt"):
        (data / name).write_bytes(b"x")

    shelf.reopen(clean=False)

    assert shelf.recovery.removed_files == 3
    assert (data / "notes.txt").exists()
    shelf.check()


def test_a_first_start_that_crashed_is_started_again(shelf) -> None:
    shelf.store.wal.close()
    shelf.store.release()
    (shelf.directory / "MANIFEST").unlink()

    shelf.store = shelf._open()

    shelf.insert_random(1)
    shelf.check()


def test_every_flipped_byte_of_the_manifest_is_noticed(shelf) -> None:
    filled(shelf)
    shelf.store.wal.close()
    shelf.store.release()
    path = shelf.directory / "MANIFEST"
    whole = path.read_bytes()
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x20]) + whole[offset + 1 :])
        with pytest.raises(CorruptionError) as error:
            open_store(OsFileSystem(), shelf.directory, shelf.settings)
        assert error.value.path == str(path)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptionError):
            open_store(OsFileSystem(), shelf.directory, shelf.settings)
