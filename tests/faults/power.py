"""Power losses under an engine that works: what was acknowledged is there afterwards, and nothing else.

One seed decides what is inserted; where the power goes depends on the machine's timing, so an image that
fails is kept, and named with its seed. Two kinds of disk: `lossy_fuse` forgets what was not synced, at the
level of files; `block_log` does so at the level of blocks, under a real ext4.

`soak` runs all for a time: ``python -m tests.faults.power --minutes 10 --seed 1``; with ``--failing-disks 100``
that many disks fail, and nothing else is done.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import omendb
from omendb.config import Settings
from omendb.errors import CorruptionError, OmenError
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from tests.faults import block_log
from tests.faults.crash import LostDataError, read_all
from tests.faults.mounts import mounted_fuse, mounted_image, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omendb.engine import Engine
    from omendb.model import Batch
    from tests.faults.mounts import FuseProcess

LOSSY = "tests.faults.lossy_fuse"
RETRAIN_THRESHOLD = 1_000
CHILD_SECONDS = 60  # a limit against hanging
EMPTY, LOG = "empty.img", "blocks.log"
REQUEST_KIB = 64  # the longest request of a loop device; FUSE takes up to 1 MiB in one piece
DELAY_SECONDS = 0.003  # the longest that a write of a disk that fails takes
FAILED = 3  # the child's exit status when the store was not to be used any more


def batch(seed: int, number: int) -> Batch:
    """Return the rows of one insert; keys come again, so that order shows."""
    rng = np.random.default_rng((seed, number))
    count = int(rng.choice([1, 7, 60, 500]))
    return omendb.model.make_batch(
        rng.integers(0, 5, count), rng.integers(0, 400, count), rng.integers(0, 1 << 20, count) / 4
    )


class Expected:
    """What the store holds after so many inserts."""

    def __init__(self, seed: int) -> None:
        self.count = 0
        self.rows: dict[tuple[int, int], float] = {}
        self._seed = seed

    def advance(self, count: int) -> dict[tuple[int, int], float]:
        """Return the rows after `count` inserts, from the first again when it was further already."""
        if count < self.count:
            self.count, self.rows = 0, {}
        while self.count < count:
            rows = batch(self._seed, self.count)
            keys = zip(rows.series_id.tolist(), rows.timestamp.tolist(), strict=True)
            self.rows.update(zip(keys, rows.value.tolist(), strict=True))
            self.count += 1
        return self.rows


def check(directory: Path, expected: Expected, acknowledged: int, what: str) -> tuple[int, int]:
    """Recover a store and compare it with what was acknowledged.

    Returns
    -------
    tuple of int
        Inserts and rows that are there.

    Raises
    ------
    LostDataError
    """
    if acknowledged == 0 and not (directory / "MANIFEST").exists():
        return 0, 0  # the power went during the first start; whatever is there is checked by the next one
    try:
        store, _ = open_store(OsFileSystem(), directory, Settings(max_error=8))
        rows = read_all(store)
        store.wal.close()
        store.release()
    except (OmenError, OSError, AssertionError) as error:
        raise LostDataError(f"{what}: cannot be recovered: {error}") from error
    # The insert under way may be there or not, but as a whole.
    for count in (acknowledged, acknowledged + 1):
        if rows == expected.advance(count):
            return count, len(rows)
    wanted = expected.advance(acknowledged)
    wrong = [key for key, value in wanted.items() if rows.get(key) != value]
    raise LostDataError(
        f"{what}: of {len(wanted)} acknowledged rows {len(wrong)} are missing or wrong, e.g. {wrong[:3]}; "
        f"{len(rows)} rows are there"
    )


@contextlib.contextmanager
def inserting(
    mount: Path, seed: int, first: int, database: Path, count: int, bug: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the child that inserts from number `first` on and acknowledges on the mount.

    `bug` plants one: the name of a function of `os` that does nothing then.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.power", "child"]
        + [str(item) for item in (mount, database, seed, first, count, bug)],
        cwd=Path(__file__).parents[2],
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait(30)


def maintain(db: Engine, choice: float) -> None:
    """Now and then flush, compact or refit; on a disk that fails these fail too, and inserting goes on."""
    with contextlib.suppress(OmenError):
        if choice < 0.03:
            db.flush()
        elif choice < 0.05:
            db.gc()
        elif choice < 0.06:
            db.retrain()


def child(mount: Path, database: Path, seed: int, first: int, count: int, bug: str) -> None:
    """Insert, acknowledge, and have everything that the engine does done in between."""
    if bug:
        setattr(os, bug, lambda _descriptor: None)
    logging.disable(logging.CRITICAL)
    chooser = random.Random(seed + first)
    answers = os.open(mount / "ack", os.O_WRONLY | os.O_CREAT)
    number = first
    try:
        while number < first + count:
            with omendb.open(database, retrain_threshold=RETRAIN_THRESHOLD, max_error=8) as db:
                for _ in range(chooser.randrange(20, 120)):
                    rows = batch(seed, number)
                    db.insert(rows.series_id, rows.timestamp, rows.value)
                    number += 1
                    os.pwrite(answers, number.to_bytes(8, "little"), 0)
                    maintain(db, chooser.random())
                    if number >= first + count:
                        break
    except CorruptionError:
        raise
    except (OmenError, OSError):
        os._exit(FAILED)
    os.close(answers)


def lose_power(
    directory: Path, seed: int, *, rounds: int = 2, inserts: int = 60, every: int = 12, bug: str = ""
) -> dict[str, int]:
    """Lose the power of a lossy file system many times, and go on with one of the images each round.

    Raises
    ------
    LostDataError
    """
    counts = {"power_images": 0, "power_rows": 0, "power_unsynced": 0}
    chooser = random.Random(seed)
    expected = Expected(seed)
    base: Path | None = None
    done = 0
    for round_number in range(rounds):
        mount, images = directory / "mount", directory / f"images{round_number}"
        arguments = [] if base is None else [str(base), str(done)]
        with mounted_fuse(LOSSY, mount, *arguments) as fuse:
            fuse.ask("images", directory=str(images), seed=chooser.getrandbits(30), every=every)
            with inserting(mount, seed, done, mount / "db", inserts, bug) as process:
                # Some rounds are cut off by a killed process as well, some run to their end.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(chooser.choice([1.5, CHILD_SECONDS]))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    process.wait(30)
                else:
                    assert process.returncode == 0, f"seed {seed}: the child ended with {process.returncode}"
            last = fuse.ask("image", directory=str(images / "last"), seed=chooser.getrandbits(30) + 2)
            taken = [*fuse.ask("images", directory=str(images), seed=0)["images"], last]
        going_on = chooser.choice([image for image in taken if image["acknowledged"]] or taken)
        for image in taken:
            what = f"seed {seed}, round {round_number}, image {image}"
            place = Path(image["directory"])
            if image is going_on:
                base = directory / f"base{round_number}"
                shutil.copytree(place, base)
            if not (place / "db").is_dir():
                if image["acknowledged"]:
                    raise LostDataError(f"{what}: the data directory is missing")
                continue
            there, rows = check(place / "db", expected, image["acknowledged"], what)
            if image is going_on:
                done = there
            counts["power_images"] += 1
            counts["power_rows"] += rows
            counts["power_unsynced"] += image["unsynced_files"] > 0 or image["lost_names"] > 0
            shutil.rmtree(place)
    return counts


def lose_blocks(
    directory: Path,
    seed: int,
    *,
    inserts: int = 40,
    images: int = 10,
    size_mib: int = 16,
    block_bytes: int = 1024,
    bug: str = "",
) -> dict[str, int]:
    """Lose the power of a disk with an ext4 on it, at the level of its blocks.

    Raises
    ------
    LostDataError
    """
    expected = Expected(seed)
    chooser = random.Random(seed)
    with (
        logged_disk(directory, size_mib, block_bytes) as (host, mount),
        inserting(host.directory, seed, 0, mount / "db", inserts, bug) as process,
    ):
        process.wait(CHILD_SECONDS)
        assert process.returncode == 0, f"seed {seed}: the child ended with {process.returncode}"
    counts = {"block_images": 0, "block_rows": 0, "block_writes": 0, "block_flushes": 0}
    entries = block_log.read(directory / LOG)
    counts["block_writes"] = sum(entry.kind == block_log.WRITE for entry in entries)
    counts["block_flushes"] = sum(entry.kind == block_log.FLUSH for entry in entries)
    for image in block_log.images(directory / EMPTY, entries, chooser, images):
        what = f"seed {seed}, {block_bytes}-byte blocks, {image.name}"
        copy = directory / "crash.img"
        copy.write_bytes(image.content)
        with mounted_image(copy, directory / "crash") as crashed:
            if (crashed / "db").is_dir():
                _, rows = check(crashed / "db", expected, image.acknowledged, what)
                counts["block_rows"] += rows
            elif image.acknowledged:
                raise LostDataError(f"{what}: the data directory is missing")
        counts["block_images"] += 1
    return counts


def fail_device(
    directory: Path, seed: int, *, block_bytes: int = 1024, lie: bool = False, size_mib: int = 16
) -> dict[str, int]:
    """Let a disk under an ext4 fail from some write on, and read what it holds in a new life.

    With `lie` the disk takes half of each write and calls that a success: nothing that runs above can notice.

    Raises
    ------
    LostDataError
    """
    chooser = random.Random(seed)
    with logged_disk(directory, size_mib, block_bytes) as (host, mount):
        host.ask("delay", seconds=DELAY_SECONDS, seed=seed)
        with inserting(host.directory, seed, 0, mount / "db", 100_000) as process:
            while host.ask("count")["acknowledged"] < 10:
                assert process.poll() is None, f"seed {seed}: the child ended with {process.returncode}"
                time.sleep(0.02)
            host.ask("fail", after=chooser.randrange(200), lie=lie)
            process.wait(CHILD_SECONDS)
            # Under a lie it may end because it cannot read what it has written.
            expected = (FAILED, 1) if lie else (FAILED,)
            assert process.returncode in expected, f"seed {seed}: the child ended with {process.returncode}"
        hits = host.ask("count")["hits"]
    what = f"seed {seed}, {block_bytes}-byte blocks, a disk that fails"
    with after_failure(directory, what) as (after, acknowledged):
        _, rows = check(after / "db", Expected(seed), acknowledged, what)
    return {"failed_disks": 1, "failed_disk_rows": rows, "failed_disk_writes": hits}


@contextlib.contextmanager
def logged_disk(directory: Path, size_mib: int, block_bytes: int) -> Iterator[tuple[FuseProcess, Path]]:
    """Mount an ext4 on a disk whose writes are logged; yields the disk's process and the mount."""
    empty = directory / EMPTY
    block_log.make_image(empty, size_mib, block_bytes)
    with (
        mounted_fuse("tests.faults.block_log", directory / "host", str(empty), str(directory / LOG)) as host,
        mounted_image(host.directory / "disk.img", directory / "mount") as mount,
    ):
        keep_writes_whole(host.directory / "disk.img")
        yield host, mount


@contextlib.contextmanager
def after_failure(directory: Path, what: str) -> Iterator[tuple[Path, int]]:
    """Mount what a logged disk took, in a new life; yields the mount and the last answer to the client.

    Raises
    ------
    LostDataError
    """
    image = block_log.final(directory / EMPTY, block_log.read(directory / LOG))
    copy = directory / "after.img"
    copy.write_bytes(image.content)
    with contextlib.ExitStack() as stack:
        try:
            after = stack.enter_context(mounted_image(copy, directory / "after"))
        except AssertionError as error:
            raise LostDataError(f"{what}: its file system cannot be mounted: {error}") from error
        yield after, image.acknowledged


def keep_writes_whole(file: Path) -> None:
    """Let each request of the loop device of `file` reach FUSE in one piece, and fail as a whole.

    Through the page cache FUSE cuts a write at the edge of a page that it does not hold. When the first piece
    is taken and the second fails, that is a short write, which a loop device reports as a success
    (``lo_complete_rq`` of Linux' drivers/block/loop.c): the disk would lie. Direct I/O is not cut below the
    size of a FUSE request, and any error in it is an error of the whole.
    """
    for found in Path("/sys/block").glob("loop*/loop/backing_file"):
        if found.read_text().strip() == str(file):
            device = found.parents[1]
            run("losetup", "--direct-io=on", f"/dev/{device.name}")
            assert (found.parent / "dio").read_text().strip() == "1", "the loop device does no direct I/O"
            (device / "queue" / "max_sectors_kb").write_text(str(REQUEST_KIB))
            return
    raise AssertionError(f"no loop device has {file}")


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Make a directory for a while; it stays when something was lost in it."""
    directory = Path(tempfile.mkdtemp(prefix="omendb-power-"))
    try:
        yield directory
    except LostDataError:
        print(f"{directory} is kept", flush=True)
        raise
    except BaseException:
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)


def fail_devices(seed: int, runs: int) -> dict[str, int]:
    """Let `runs` disks fail, one a seed; blocks of 1024 and 4096 bytes take turns.

    Raises
    ------
    LostDataError
    """
    counts: Counter[str] = Counter()
    for number in range(seed, seed + runs):
        with workspace() as directory:
            counts.update(fail_device(directory, number, block_bytes=[1024, 4096][number % 2]))
    return dict(counts)


def soak(seed: int, seconds: float) -> dict[str, int]:
    """Lose power until the time is over.

    Raises
    ------
    LostDataError
    """
    print(f"power: seed {seed}", flush=True)
    counts: dict[str, int] = {}
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        block_bytes = [1024, 4096][seed % 2]
        with workspace() as directory:
            done = lose_power(directory, seed, rounds=4, inserts=300, every=25)
        with workspace() as directory:
            done |= lose_blocks(directory, seed, inserts=150, images=40, size_mib=32, block_bytes=block_bytes)
        with workspace() as directory:
            done |= fail_device(directory, seed, block_bytes=block_bytes)
        counts = {name: counts.get(name, 0) + count for name, count in done.items()}
        seed += 1
    return counts


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        mount, database, seed, first, count, bug = sys.argv[2:]
        child(Path(mount), Path(database), int(seed), int(first), int(count), bug)
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--failing-disks", type=int, help="so many of these alone, one a seed")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if arguments.failing_disks:
        print(fail_devices(arguments.seed, arguments.failing_disks))
        return 0
    print(soak(arguments.seed, 60 * arguments.minutes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
