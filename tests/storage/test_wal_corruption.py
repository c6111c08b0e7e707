"""Damage to the log: a torn tail is cut, anything else stops the start and names the place."""

from __future__ import annotations

import pytest

from omendb.errors import CorruptionError
from omendb.model import make_batch
from omendb.storage import format  # noqa: A004
from omendb.storage.fs import OsFileSystem
from omendb.storage.wal import Wal
from tests.storage.test_wal import replayed

RECORDS = 4


def write(directory, *, synced: bool = True) -> list[int]:
    """Write a file of four records; the offsets at which they start."""
    wal = Wal(OsFileSystem(), directory, 1, 1)
    starts = []
    for number in range(RECORDS):
        starts.append(wal.bytes)
        wal.append(make_batch([1, 2], [number, number], [0.5, 1.5]))
        if synced:
            wal.sync()
    wal.close()
    return starts


def test_every_truncation_keeps_the_records_before_it(tmp_path) -> None:
    starts = write(tmp_path)
    path = tmp_path / "00000001.wal"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])

        records, _ = replayed(tmp_path)

        complete = sum(stop <= size for stop in [*starts[1:], len(whole)])
        assert [record[0] for record in records] == list(range(1, complete + 1)), size
        # A file without a whole header is emptied, and then made anew.
        header = format.WAL_FILE_HEADER.size
        kept = [header, *starts[1:], len(whole)][complete] if size >= header else 0
        assert path.stat().st_size in (size, kept), size


def test_a_damaged_header_is_no_file_that_was_never_finished(tmp_path) -> None:
    write(tmp_path)
    path = tmp_path / "00000001.wal"
    for size in (33, 4_096):
        path.write_bytes(bytes(size))
        with pytest.raises(CorruptionError, match="file header") as error:
            replayed(tmp_path)
        assert error.value.path == str(path)


def test_every_flipped_byte_of_synced_records_is_noticed(tmp_path) -> None:
    starts = write(tmp_path)
    path = tmp_path / "00000001.wal"
    whole = path.read_bytes()
    for offset in range(len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x40
        path.write_bytes(damaged)
        if offset < starts[-1]:
            # A later record says that these had been synced.
            with pytest.raises(CorruptionError) as error:
                replayed(tmp_path)
            assert error.value.path == str(path)
            at = 0 if offset < starts[0] else max(start for start in starts if start <= offset)
            assert error.value.offset <= max(at, offset)
            assert path.read_bytes() == damaged
        else:
            # Nothing follows the last record, so that it looks like one that was never finished.
            records, _ = replayed(tmp_path)
            assert [record[0] for record in records] == [1, 2, 3]


def test_a_hole_in_records_that_were_never_synced_is_a_torn_tail(tmp_path) -> None:
    starts = write(tmp_path, synced=False)
    path = tmp_path / "00000001.wal"
    damaged = bytearray(path.read_bytes())
    # A crash may keep a later page of the file and lose an earlier one.
    damaged[starts[1] : starts[2]] = bytes(starts[2] - starts[1])
    path.write_bytes(damaged)

    records, _ = replayed(tmp_path)

    assert [record[0] for record in records] == [1]
    assert path.stat().st_size == starts[1]


def test_a_damaged_end_of_an_older_file_stops_the_start(tmp_path) -> None:
    wal = Wal(OsFileSystem(), tmp_path, 1, 1)
    wal.append(make_batch(1, 1, 1.0))
    wal.rotate()
    wal.close()
    path = tmp_path / "00000001.wal"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(CorruptionError, match="cannot be read") as error:
        replayed(tmp_path)

    assert error.value.path == str(path)
    assert error.value.offset == format.WAL_FILE_HEADER.size


def test_a_missing_file_stops_the_start(tmp_path) -> None:
    wal = Wal(OsFileSystem(), tmp_path, 1, 1)
    for number in range(3):
        wal.append(make_batch(1, number, 1.0))
        wal.rotate()
    (tmp_path / "00000002.wal").unlink()

    with pytest.raises(CorruptionError, match="missing"):
        replayed(tmp_path)


def test_missing_records_stop_the_start(tmp_path) -> None:
    write(tmp_path)
    (tmp_path / "00000001.wal").rename(tmp_path / "x")
    wal = Wal(OsFileSystem(), tmp_path, 1, 7)
    wal.append(make_batch(1, 1, 1.0))

    with pytest.raises(CorruptionError, match="records are missing"):
        replayed(tmp_path, covered=3)


def test_a_file_that_was_never_finished_being_created_is_ignored(tmp_path) -> None:
    write(tmp_path)
    for content in (b"", b"OMEN", bytes(32)):
        (tmp_path / "00000002.wal").write_bytes(content)

        records, files = replayed(tmp_path)

        assert len(records) == RECORDS
        assert [file.number for file in files] == [1]


def test_a_newer_version_is_refused(tmp_path) -> None:
    write(tmp_path)
    path = tmp_path / "00000001.wal"
    data = path.read_bytes()
    head = format.WAL_FILE_HEADER.pack(format.WAL_MAGIC, 99, 0, 1, 0)[:-8]
    path.write_bytes(head + format.checksum(head).to_bytes(8, "little") + data[len(head) + 8 :])

    with pytest.raises(CorruptionError, match="version 99"):
        replayed(tmp_path)
