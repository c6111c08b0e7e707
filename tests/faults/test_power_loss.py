"""The power goes, and the disk fails, under real system calls (P1, P2, P6).

The file system forgets what was not synced (`lossy_fuse`), or an ext4's disk forgets blocks that were not
flushed (`block_log`). The long form: ``python -m tests.faults.power``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import omendb
from omendb.errors import CorruptionError, DiskFullError, WalFailedError
from tests.faults import block_log, power
from tests.faults.crash import LostDataError
from tests.faults.mounts import mounted_fuse, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.mounts import FuseProcess


@pytest.fixture
def lossy(tmp_path: Path) -> Iterator[FuseProcess]:
    """Return a mounted file system that loses and fails on demand."""
    require(fuse=True)
    with mounted_fuse(power.LOSSY, tmp_path / "mount") as fuse:
        yield fuse


def recovered(lossy: FuseProcess, target: Path, seed: int) -> list[int]:
    """Timestamps that are there after a power loss now."""
    lossy.ask("image", directory=str(target), seed=seed)
    with omendb.open(target / "db") as db:
        return db.query().timestamp.tolist()


@pytest.mark.parametrize("seed", [1])
def test_power_loss_at_random_moments_loses_nothing_acknowledged(tmp_path, seed) -> None:
    require(fuse=True)

    counts = power.lose_power(tmp_path, seed)

    print(f"seed {seed}: {counts}")
    assert counts["power_images"] > 20
    assert counts["power_unsynced"] > 10
    assert counts["power_rows"] > 1_000


@pytest.mark.parametrize("bug", ["fdatasync", "fsync"])
def test_a_missing_sync_of_a_file_or_a_directory_is_found(tmp_path, bug) -> None:
    require(fuse=True)
    with pytest.raises(LostDataError):
        power.lose_power(tmp_path, 1, bug=bug)


@pytest.mark.parametrize("block_bytes", [1024, 4096])
def test_power_loss_below_ext4_loses_nothing_acknowledged(tmp_path, block_bytes) -> None:
    require(fuse=True, loop=True)

    counts = power.lose_blocks(tmp_path, block_bytes, block_bytes=block_bytes)

    print(f"seed {block_bytes}: {counts}")
    assert counts["block_images"] == 10
    assert counts["block_flushes"] > 40
    assert counts["block_rows"] > 100


def test_a_missing_sync_is_found_below_ext4(tmp_path) -> None:
    require(fuse=True, loop=True)
    with pytest.raises(LostDataError):
        power.lose_blocks(tmp_path, 1, images=20, bug="fdatasync")


def test_a_disk_that_lies_is_found(tmp_path) -> None:
    """The one case that nobody above can save: a device that takes half of a write and calls it done."""
    require(fuse=True, loop=True)
    with pytest.raises(LostDataError):
        power.fail_device(tmp_path, 1, lie=True)


@pytest.mark.parametrize(("seed", "block_bytes"), [(1, 1024), (2, 4096)])
def test_a_disk_that_fails_keeps_what_was_acknowledged(tmp_path, seed, block_bytes) -> None:
    require(fuse=True, loop=True)

    counts = power.fail_device(tmp_path, seed, block_bytes=block_bytes)

    print(f"seed {seed}: {counts}")
    assert counts["failed_disk_writes"] > 0
    assert counts["failed_disk_rows"] > 10


def test_a_request_of_the_disk_is_taken_or_fails_as_a_whole(tmp_path) -> None:
    """What the tests of failing disks rest on: a request in two pieces could make a disk lie."""
    require(fuse=True, loop=True)
    size = (power.REQUEST_KIB - 4) << 10
    data = mmap.mmap(-1, size)  # direct I/O wants memory that begins at a page
    data.write(b"whole..." * (size // 8))
    with power.logged_disk(tmp_path, 16, 1024) as (host, mount):
        descriptor = os.open(mount / "file", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        try:
            os.posix_fallocate(descriptor, 0, 128 << 10)
            # Also across the edges of pages, which is where FUSE cuts what goes through the page cache.
            starts = [kib << 10 for kib in range(8)]
            for start in starts:
                assert os.pwrite(descriptor, data, start) == size
            host.ask("fail", after=0, lie=False)
            with pytest.raises(OSError, match="Input/output error"):
                os.pwrite(descriptor, data, 1024)
        finally:
            os.close(descriptor)

    entries = block_log.read(tmp_path / power.LOG)
    ours = [(entry.kind, len(entry.data)) for entry in entries if b"whole..." in entry.data]
    assert ours == [(block_log.WRITE, size)] * len(starts) + [(block_log.FAILED, size)]
    assert len({entry.offset % 4096 for entry in entries if len(entry.data) == size}) == 4
    assert max(len(entry.data) for entry in entries) <= power.REQUEST_KIB << 10


@pytest.mark.parametrize("block_bytes", [1024, 4096])
@pytest.mark.parametrize("rows", [1, 500])  # in the log's last block, and in new ones
def test_a_sync_that_succeeds_though_the_journal_failed_acknowledges_nothing(
    tmp_path, rows, block_bytes
) -> None:
    """Another program's sync takes an insert's changes along, and fails: ours then has nothing to wait for."""
    require(fuse=True, loop=True)

    with power.logged_disk(tmp_path, 16, block_bytes) as (host, mount):
        insert_while_another_sync_fails(host, mount, rows)

    with power.after_failure(tmp_path, "a journal that failed") as (after, _):
        assert stored(after / "db") == [0]


def insert_while_another_sync_fails(host: FuseProcess, mount: Path, rows: int) -> None:
    mark = b"held bac"  # a value, as the log holds it
    with omendb.open(mount / "db") as db, ThreadPoolExecutor(1) as pool:
        db.insert(1, 0, 0.0)
        host.ask("hold", data=mark.hex())
        try:
            values = np.full(rows, np.frombuffer(mark, "<f8")[0])
            insert = pool.submit(db.insert, 1, np.arange(1, rows + 1), values)
            until(lambda: host.ask("count")["waiting"] > 0)
            (mount / "other").mkdir()
            host.ask("fail", after=0, lie=False)
            with pytest.raises(OSError, match="Input/output error"):
                sync_directory(mount)
        finally:
            host.ask("release")

        with pytest.raises(WalFailedError):
            insert.result(60)
        with pytest.raises(WalFailedError):
            db.insert(1, 99, 1.0)
        assert db.query().timestamp.tolist() == [0]


def stored(directory: Path) -> list[int]:
    with omendb.open(directory) as db:
        return db.query().timestamp.tolist()


def open_files(directory: Path) -> list[str]:
    """Return the files below a directory that this process has open."""
    files: list[str] = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            files.append(str(descriptor.readlink()))
    return [file for file in files if Path(file).is_relative_to(directory)]


def until(true: Callable[[], bool]) -> None:
    """Wait for something that comes, for a minute at most."""
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("operation", "after"), [("fsync", 0), ("write", 0), ("fsync", 3), ("write", 3)])
def test_failure_of_the_log_ends_all_acknowledgements(lossy, tmp_path, operation, after) -> None:
    with omendb.open(lossy.directory / "db") as db:
        db.insert(1, 0, 0.0)
        lossy.ask("fail", operation=operation, error="EIO", after=after, only=".wal")
        acknowledged = 1
        with pytest.raises(WalFailedError):
            for acknowledged in range(1, after + 2):
                db.insert(1, acknowledged, 1.0)
        assert acknowledged == after + 1
        # The disk works again, but what it holds is no longer known: nobody may be told otherwise.
        assert lossy.ask("heal")["hits"] == 1
        with pytest.raises(WalFailedError):
            db.insert(1, 99, 1.0)
        assert db.failed.is_set()
        assert db.query().timestamp.tolist() == list(range(acknowledged))
    assert open_files(lossy.directory) == []

    for seed in range(5):
        there = recovered(lossy, tmp_path / f"image{seed}", seed)
        assert there in (list(range(acknowledged)), list(range(acknowledged + 1))), f"seed {seed}"


def test_short_writes_are_completed(lossy, tmp_path) -> None:
    lossy.ask("fail", operation="write", error="short", sticky=True, only="db/")
    stamps = np.arange(5_000)
    with omendb.open(lossy.directory / "db") as db:
        db.insert(1, stamps, stamps / 4)
        db.flush()
        db.insert(1, 5_000, 0.0)
        assert lossy.ask("count")["hits"] > 10

    assert recovered(lossy, tmp_path / "image", 0) == list(range(5_001))


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_or_quota_refuses_inserts_until_it_is_over(lossy, tmp_path, error) -> None:
    with omendb.open(lossy.directory / "db") as db:
        db.insert(1, 0, 0.0)
        for operation in ("write", "create"):
            lossy.ask("fail", operation=operation, error=error, sticky=True, only="db/")
        for _ in range(3):
            with pytest.raises(DiskFullError):
                db.insert(1, np.arange(1, 1_000), np.zeros(999))
        with pytest.raises(DiskFullError):
            db.flush()
        assert db.query().count == 1
        assert recovered(lossy, tmp_path / "full", 2) == [0]
        assert lossy.ask("heal")["hits"] > 3

        db.insert(1, 1_000, 1.0)
        db.flush()

        assert db.query().timestamp.tolist() == [0, 1_000]
    assert recovered(lossy, tmp_path / "image", 0) == [0, 1_000]


@pytest.mark.parametrize("operation", ["fsync", "rename", "fsyncdir", "write", "create"])
def test_a_failed_flush_is_repeated_and_leaves_nothing_behind(lossy, operation) -> None:
    with omendb.open(lossy.directory / "db") as db:
        db.insert(1, np.arange(100), np.ones(100))
        lossy.ask("fail", operation=operation, error="EIO", only="db/data")
        # Whoever comes first gets the error: this thread, or the background's, which tries again later.
        with contextlib.suppress(omendb.errors.OmenError):
            db.flush()

        db.flush()

        assert lossy.ask("heal")["hits"] == 1
        assert db.query().count == 100
        assert len(list((lossy.directory / "db" / "data").iterdir())) == 2


READ_ALL = """
import sys, omendb
with omendb.open(sys.argv[1]) as db:
    print("open", flush=True)
    sys.stdin.readline()
    found = db.query()
    print(found.count, float(found.value.sum()), flush=True)
"""


def test_a_read_error_never_shows_as_a_wrong_value(lossy) -> None:
    """An error, or the end of the process by SIGBUS: a map knows no other way. Never a value."""
    with omendb.open(lossy.directory / "db") as db:
        db.insert(1, np.arange(50_000), np.ones(50_000))
    with pytest.raises(CorruptionError, match="parquet"):
        lossy.ask("fail", operation="read", error="EIO", sticky=True, only=".parquet")
        omendb.open(lossy.directory / "db")
    lossy.ask("heal")
    codes: list[int] = []
    for healthy in (False, True):
        process = subprocess.Popen(
            [sys.executable, "-c", READ_ALL, str(lossy.directory / "db")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            if not healthy:
                lossy.ask("fail", operation="read", error="EIO", sticky=True, only=".parquet")
            output, _ = process.communicate("go\n", timeout=60)
            lossy.ask("heal")
        finally:
            process.kill()
            process.wait(30)
        assert output == ("50000 50000.0\n" if healthy else ""), output
        codes.append(process.returncode)
    assert codes[0] != 0
    assert codes[1] == 0
