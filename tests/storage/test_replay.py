"""Short records are replayed in bulk: what comes out, and what damage means, is as one at a time."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest

import omendb
from omendb.errors import CorruptionError
from omendb.model import make_batch
from omendb.storage.fs import OsFileSystem
from omendb.storage.wal import Wal, replay

SIZES = [1, 1, 3, 12, 1, 2, 40, 40, 1, 1, 1, 9]  # short ones in runs, long ones between


def write(directory, sizes=SIZES, rotate_after=()) -> None:
    directory.mkdir(exist_ok=True)
    wal = Wal(OsFileSystem(), directory, 1, 1)
    row = 0
    for position, size in enumerate(sizes):
        series = 7 if position % 3 == 0 else np.arange(row, row + size) % 5
        wal.append(make_batch(series, np.arange(row, row + size), np.arange(row, row + size) / 4))
        wal.sync()
        row += size
        if position in rotate_after:
            wal.rotate()
    wal.close()


def outcome(directory, rows_at_once: int, covered: int = 0, first_file: int = 1):
    """Return the rows and the last sequence, or what the error says."""
    rows: list[tuple[int, int, float]] = []
    expected = covered + 1
    try:
        for record in replay(OsFileSystem(), directory, first_file, covered, [], rows_at_once):
            assert max(record.first_sequence, covered + 1) == expected
            assert len(record.batch.timestamp) <= max(rows_at_once, 40)
            expected = record.sequence + 1
            rows += zip(*(column.tolist() for column in record.batch), strict=True)
    except CorruptionError as error:
        return str(error)
    return rows, expected


@pytest.mark.parametrize("rows_at_once", [2, 5, 16, 1000])
def test_rows_are_the_same_as_one_record_at_a_time(tmp_path, rows_at_once) -> None:
    write(tmp_path, rotate_after={4, 9})
    for covered in range(len(SIZES) + 1):
        assert outcome(tmp_path, rows_at_once, covered) == outcome(tmp_path, 1, covered)
    assert len(outcome(tmp_path, rows_at_once)[0]) == sum(SIZES)


def test_every_damaged_byte_and_every_cut_means_the_same(tmp_path, caplog) -> None:
    caplog.set_level(logging.CRITICAL)
    write(tmp_path / "a", [1, 1, 2, 1, 1])
    whole = (tmp_path / "a" / "00000001.wal").read_bytes()
    damages = [whole[:size] for size in range(len(whole))]
    damages += [whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :] for at in range(len(whole))]
    kinds = set()
    for damaged in damages:
        found = []
        for rows_at_once in (1, 1000):
            (tmp_path / "a" / "00000001.wal").write_bytes(damaged)  # a replay cuts it
            found.append(outcome(tmp_path / "a", rows_at_once))
        assert found[0] == found[1]
        kinds.add(type(found[0]))
    assert kinds == {str, tuple}


def test_what_recovery_did_is_in_the_gauges(tmp_path) -> None:
    with omendb.open(tmp_path / "db") as db:
        db.insert(1, np.arange(3_000), np.zeros(3_000))
    next((tmp_path / "db" / "data").glob("*.lix")).write_bytes(b"damaged")
    with omendb.open(tmp_path / "db") as db:
        for timestamp in range(5):
            db.insert([2, 3], [timestamp, timestamp], [1.0, 2.0])
        assert _gauges(db)["omendb_recovery_rebuilt_indexes"] == 1
        assert _gauges(db)["omendb_unclean_start"] == 0
        # As a crash leaves it: nothing is flushed, nothing marked clean.
        shutil.copytree(tmp_path / "db", tmp_path / "crashed")

    with omendb.open(tmp_path / "crashed") as again:
        gauges = _gauges(again)

    assert gauges["omendb_unclean_start"] == 1
    assert gauges["omendb_recovery_replayed_records"] == 5
    assert gauges["omendb_recovery_replayed_rows"] == 10
    assert gauges["omendb_recovery_rebuilt_indexes"] == 0
    assert 0 < gauges["omendb_recovery_seconds"] < 3_600


def _gauges(engine) -> dict[str, float]:
    return {name: value for name, _, value in engine._gauges()}
