"""Stores written by earlier versions stay readable: one directory for each version of the formats.

`golden/v1` was left by a process that was killed: one flush of a regular, an irregular and two extreme series,
then two records in the log. `golden/v2` was left in the same way: logs and manifests of version 2, with names of
series in a file and in the log. They are never written anew; a change of a format adds a directory.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from omendb.config import Settings
from omendb.executor import Scan
from omendb.jit import layout
from omendb.query import make_range_query
from omendb.series import FIRST_ID, Name
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from omendb.storage.verify import verify

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(GOLDEN / "v1", tmp_path / "v1")
    return tmp_path / "v1"


def test_version_1_passes_the_check(copy) -> None:
    report = verify(OsFileSystem(), copy)

    assert (report.findings, report.warnings) == ([], [])
    assert report.rows == 2_402 + 6


def test_version_1_is_read(copy) -> None:
    store, recovery = open_store(OsFileSystem(), copy, Settings())
    rows = Scan(store.snapshot, make_range_query()).columns()
    store.release()

    n, many = np.arange(400), np.arange(2_000)
    first = many / 4
    first[[0, -1]] = 100.0, 200.0
    expected = [
        *zip([1] * 2_000, (many * 10).tolist(), first.tolist(), strict=True),
        *zip([2] * 400, rows.timestamp[2_000:2_400].tolist(), (n / 8).tolist(), strict=True),
        (3, -(2**63), 1.5),
        (4, 7, 0.25),
        *((5, t, float(t)) for t in (1, 2, 3)),
        (2**63 - 1, 2**63 - 1, -2.5),
    ]
    assert (
        list(zip(rows.series_id.tolist(), rows.timestamp.tolist(), rows.value.tolist(), strict=True))
        == expected
    )
    assert (np.diff(rows.timestamp[2_000:2_400]) > 0).all()
    assert (recovery.clean, recovery.replayed_records, recovery.rebuilt_indexes) == (False, 2, 0)
    kinds = {int(shape) & 0xFF for shape in store.snapshot.segments[0].index.runs[:, layout.RUN_SHAPE]}
    assert kinds == {layout.KIND_NONE, layout.KIND_KNOTS, layout.KIND_PIECES}


# `golden/compressed` was left in the same way, with compressed segments: an index of version 2, a manifest of version 2,
# values in a dictionary and values in pages without one, and a plain segment over them.


@pytest.fixture
def compressed(tmp_path):
    shutil.copytree(GOLDEN / "compressed", tmp_path / "compressed")
    return tmp_path / "compressed"


def test_compressed_passes_the_check(compressed) -> None:
    report = verify(OsFileSystem(), compressed)

    assert (report.findings, report.warnings) == ([], [])
    assert report.rows == 25_002 + 300 + 3


def test_compressed_is_read(compressed) -> None:
    store, recovery = open_store(OsFileSystem(), compressed, Settings())
    rows = Scan(store.snapshot, make_range_query()).columns()
    kinds = [segment.entry.is_compressed for segment in store.snapshot.segments]
    store.release()

    n = np.arange(20_000)
    expected = dict(
        zip(((1, t) for t in (n * 10).tolist()), (n**3 * 40503 % 65537 % 50 / 4).tolist(), strict=True)
    )
    expected |= {(1, 10 * k + 5): k / 2 for k in range(300)}
    expected |= {(1, 0): 100.0, (3, -(2**63)): 1.5, (3, 7): -0.0, (4, 1): 0.5, (5, 2): 0.25}
    times = np.cumsum(np.arange(5_000) % 7 + 1)
    values = np.sqrt(np.arange(5_000))
    expected |= dict(zip(((2, t) for t in times.tolist()), values.tolist(), strict=True))
    keys = list(zip(rows.series_id.tolist(), rows.timestamp.tolist(), strict=True))
    assert dict(zip(keys, rows.value.tolist(), strict=True)) == expected
    assert keys == sorted(expected)
    assert (recovery.clean, recovery.replayed_records, recovery.rebuilt_indexes) == (False, 2, 0)
    assert kinds.count(True) >= 2
    assert kinds.count(False) == 1


@pytest.fixture
def copy_2(tmp_path):
    shutil.copytree(GOLDEN / "v2", tmp_path / "v2")
    return tmp_path / "v2"


def test_version_2_passes_the_check(copy_2) -> None:
    report = verify(OsFileSystem(), copy_2)

    assert (report.findings, report.warnings) == ([], [])
    assert report.rows == 4 + 2


def test_version_2_is_read(copy_2) -> None:
    store, recovery = open_store(OsFileSystem(), copy_2, Settings())
    rows = Scan(store.snapshot, make_range_query()).columns()
    named = [store.catalog.name(FIRST_ID + position) for position in range(store.catalog.visible)]
    store.release()

    assert (recovery.clean, recovery.replayed_records, recovery.rebuilt_indexes) == (False, 2, 0)
    assert named == [
        Name("cpu", (("host", "a"), ("region", "eu")), "usage"),
        Name("cpu", (("host", "b"), ("region", "eu")), "usage"),
        Name("m 1", (("t,2", "v=3"),), "f 4"),
        Name("mem", (("host", "a"),), "free"),
    ]
    start = 1_700_000_000_000_000_000
    assert list(zip(rows.series_id.tolist(), rows.timestamp.tolist(), rows.value.tolist(), strict=True)) == [
        (7, 5, 9.0),
        (FIRST_ID, start, 1.5),
        (FIRST_ID + 1, start, 2.5),
        (FIRST_ID + 1, start + 10**9, 3.5),
        (FIRST_ID + 2, start, -0.25),
        (FIRST_ID + 3, start + 10**9, 1e9),
    ]
