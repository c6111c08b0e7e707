"""The offline check finds every kind of damage, and changes nothing."""

from __future__ import annotations

import pytest

from omendb.errors import LockedError, OmenError
from omendb.storage.fs import OsFileSystem
from omendb.storage.verify import verify


@pytest.fixture
def closed(shelf):
    """A store with two segments and a log, as a crash leaves it."""
    shelf.insert_random(1)
    shelf.flush()
    for seed in (2, 3):
        shelf.insert_random(seed, rows=50)
    shelf.store.wal.close()
    shelf.store.release()
    return shelf.directory


def content(directory) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_whole_store_has_no_findings_and_is_left_as_it_was(closed) -> None:
    before = content(closed)

    report = verify(OsFileSystem(), closed)

    assert report.findings == []
    assert report.warnings == []
    assert report.files == len([path for path in before if not path.endswith("LOCK")])
    assert report.bytes == sum(map(len, before.values()))
    assert content(closed) == before


@pytest.mark.parametrize("kind", ["MANIFEST", "data/*.parquet", "wal/*.wal"])
def test_every_damaged_file_is_named(closed, kind) -> None:
    for path in closed.glob(kind):
        whole = path.read_bytes()
        # The log's last record has no successor to vouch for it.
        stop = len(whole) if kind != "wal/*.wal" else len(whole) - 50 * 24 - 48
        for offset in range(0, stop, max(1, stop // 60)):
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
            report = verify(OsFileSystem(), closed)
            assert [finding.path for finding in report.findings] == [str(path)], offset
        path.write_bytes(whole)


def test_what_the_next_start_mends_is_a_warning(closed) -> None:
    index = next(closed.glob("data/*.lix"))
    index.write_bytes(index.read_bytes()[:-1])
    (closed / "data" / "00000077.parquet").write_bytes(b"x")
    log = max(closed.glob("wal/*.wal"))
    log.write_bytes(log.read_bytes()[:-5])

    report = verify(OsFileSystem(), closed)

    assert report.findings == []
    assert len(report.warnings) == 3
    assert any("torn tail" in warning for warning in report.warnings)


def test_a_store_in_use_and_a_directory_of_something_else_are_refused(shelf, tmp_path) -> None:
    with pytest.raises(LockedError):
        verify(OsFileSystem(), shelf.directory)
    with pytest.raises(OmenError, match="no data directory"):
        verify(OsFileSystem(), tmp_path / "nothing")
