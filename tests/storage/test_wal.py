"""The log: what is appended and synced comes back, in order, whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.errors import DiskFullError, WalFailedError
from omendb.model import Batch, make_batch
from omendb.storage.fs import OsFileSystem
from omendb.storage.wal import ReplayedFile, Wal, replay
from tests.storage.faulty_fs import FaultyFileSystem

int64 = st.integers(-(2**63), 2**63 - 1)
points = st.lists(
    st.tuples(st.integers(0, 2**63 - 1), int64, st.floats(allow_nan=False, allow_infinity=False)),
    min_size=1,
    max_size=20,
)


def batch_of(rows) -> Batch:
    return make_batch(*(list(column) for column in zip(*rows, strict=True)))


def replayed(directory, first_file=1, covered=0):
    files: list[ReplayedFile] = []
    records = [
        (record.sequence, *(column.tolist() for column in record.batch))
        for record in replay(OsFileSystem(), directory, first_file, covered, files)
    ]
    return records, files


@given(batches=st.lists(points, max_size=8), rotations=st.sets(st.integers(0, 7)))
def test_replay_returns_what_was_appended(tmp_path_factory, batches, rotations) -> None:
    directory = tmp_path_factory.mktemp("wal")
    wal = Wal(OsFileSystem(), directory, 1, 1)
    wal.make_file()
    for position, rows in enumerate(batches):
        wal.append(batch_of(rows))
        if position in rotations:
            wal.rotate()
    wal.sync()
    wal.close()

    records, _ = replayed(directory)

    expected = [
        (position + 1, *(column.tolist() for column in batch_of(rows)))
        for position, rows in enumerate(batches)
    ]
    assert records == expected


def test_one_series_is_written_once(tmp_path) -> None:
    wal = Wal(OsFileSystem(), tmp_path, 1, 1)
    before = wal.bytes
    wal.append(make_batch(7, np.arange(1000), np.ones(1000)))

    assert wal.bytes - before < 16 * 1000 + 100
    assert replayed(tmp_path)[0][0][1] == [7] * 1000


def test_replay_skips_what_segments_hold(tmp_path) -> None:
    wal = Wal(OsFileSystem(), tmp_path, 1, 1)
    for number in range(5):
        wal.append(make_batch(1, number, 1.0))

    records, _ = replayed(tmp_path, covered=3)

    assert [record[0] for record in records] == [4, 5]


def test_files_before_the_first_needed_are_removed(tmp_path) -> None:
    wal = Wal(OsFileSystem(), tmp_path, 1, 1)
    wal.append(make_batch(1, 1, 1.0))
    wal.rotate()
    wal.append(make_batch(1, 2, 1.0))
    wal.rotate()

    assert wal.first_file_after(1) == 2
    wal.remove_before(wal.first_file_after(1))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002.wal", "00000003.wal"]
    assert [record[0] for record in replayed(tmp_path, first_file=2, covered=1)[0]] == [2]


def test_disk_full_takes_the_record_back_and_later_appends_work(tmp_path) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    wal = Wal(fs, tmp_path, 1, 1)
    wal.append(make_batch(1, 1, 1.0))
    fs.fail("write", "ENOSPC", partial=True)
    with pytest.raises(DiskFullError):
        wal.append(make_batch(1, [2, 3, 4], [1.0, 2.0, 3.0]))
    fs.heal()
    wal.append(make_batch(1, 5, 1.0))
    wal.sync()

    records, _ = replayed(tmp_path)

    assert [(record[0], record[2]) for record in records] == [(1, [1]), (2, [5])]


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_nothing_is_written_after_an_io_error(tmp_path, operation) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    wal = Wal(fs, tmp_path, 1, 1)
    wal.append(make_batch(1, 1, 1.0))
    wal.sync()
    fs.fail(operation, "EIO")
    with pytest.raises(WalFailedError):
        wal.append(make_batch(1, 2, 1.0))
        wal.sync()
    fs.heal()

    with pytest.raises(WalFailedError):
        wal.append(make_batch(1, 3, 1.0))
    with pytest.raises(WalFailedError):
        wal.sync()


def test_rotation_without_space_goes_on_in_the_old_file(tmp_path) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    wal = Wal(fs, tmp_path, 1, 1)
    wal.append(make_batch(1, 1, 1.0))
    fs.fail("create", "ENOSPC")
    assert wal.rotate() is False
    fs.heal()
    wal.append(make_batch(1, 2, 1.0))

    assert [record[0] for record in replayed(tmp_path)[0]] == [1, 2]
    assert wal.rotate() is True
