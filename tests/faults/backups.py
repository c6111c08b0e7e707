"""Backups under load, crashed, and stores damaged at random and repaired; each decided by a seed.

The short form is in `tests/storage/test_backup.py` and `test_repair.py`; `soak` is the long one.
"""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from omendb.config import Settings
from omendb.engine import Engine
from omendb.errors import CorruptionError, OmenError
from omendb.model import make_batch
from omendb.storage import backup, repair
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from omendb.storage.restore import restore
from omendb.storage.verify import verify
from tests.faults.crash import LostDataError, read_all
from tests.faults.model_fs import ModelFileSystem
from tests.storage.faulty_fs import FaultyFileSystem

FS = OsFileSystem()


def rows_of(directory: Path) -> dict[tuple[int, int], float]:
    """What a data directory holds, as a start shows it."""
    store, _ = open_store(FS, directory, Settings())
    try:
        return read_all(store)
    finally:
        store.wal.close()
        store.release()


def check_under_load(directory: Path, seed: int, *, backups: int, links: bool) -> int:
    """Take copies of a store under load and compare each; return how many were compared."""
    rng = random.Random(seed)
    writers, keys = 3, 40
    acknowledged, submitted = [-1] * writers, [-1] * writers
    stop = threading.Event()
    failures: list[BaseException] = []
    fs = FaultyFileSystem(OsFileSystem())
    if not links:
        fs.fail("link", "EXDEV")
    settings = Settings(retrain_threshold=1_000, flush_interval_ms=1_000)
    bounds = []
    with Engine(directory / "db", settings, fs=fs) as db:

        def write(writer: int) -> None:
            number = 0
            while not stop.is_set():
                submitted[writer] = number
                # New keys in each batch make the memtable grow; the first `keys` are written every time.
                times = np.concatenate([np.arange(keys), [1_000_000 + number]])
                db.insert(writer, times, np.full(keys + 1, float(number)))
                acknowledged[writer] = number
                number += 1

        def maintain() -> None:
            while not stop.is_set():
                db.gc()
                db.retrain()

        def guarded(function, *arguments) -> None:
            try:
                function(*arguments)
            except BaseException as error:
                failures.append(error)
                stop.set()

        threads = [threading.Thread(target=guarded, args=(write, n)) for n in range(writers)]
        threads.append(threading.Thread(target=guarded, args=(maintain,)))
        for thread in threads:
            thread.start()
        try:
            for number in range(backups):
                stop.wait(rng.random() * 0.2)
                before = list(acknowledged)
                report = db.backup(directory / f"copy-{number}", verify=number % 2 == 0)
                bounds.append((before, list(submitted), report))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert min(acknowledged) > 10
    for number, (before, after, report) in enumerate(bounds):
        assert report.linked == links or not report.segments
        restore(FS, directory / f"copy-{number}", directory / f"back-{number}")
        rows = rows_of(directory / f"back-{number}")
        assert rows == rows_of(directory / f"copy-{number}")
        for writer in range(writers):
            mine = {time: value for (series, time), value in rows.items() if series == writer}
            held = int(max(mine.values(), default=-1.0))
            assert before[writer] <= held <= after[writer], (seed, number, writer)
            expected = {time: float(held) for time in range(keys)} if held >= 0 else {}
            expected |= {1_000_000 + n: float(n) for n in range(held + 1)}
            assert mine == expected, (seed, number, writer)
    return len(bounds)


DB, COPY = Path("/db"), Path("/db/backups/copy")
SETTINGS = Settings(max_error=8)


def crash_during_a_backup(
    seed: int, broken: set[str] | None = None, *, links: bool = True
) -> tuple[int, int]:
    """Crash after every operation of a backup; return the images and those that hold the whole backup.

    Raises
    ------
    LostDataError
        The source is harmed, or something that is no backup looks like one.
    """
    fs = ModelFileSystem()
    if not links:
        fs.link = refuse_links
    store, _ = open_store(fs, DB, SETTINGS, partition_rows=60, segment_rows_max=40)
    rng = np.random.default_rng(seed)
    for step in range(5):
        batch = make_batch(rng.integers(0, 4, 30), rng.integers(0, 40, 30), rng.integers(0, 99, 30) / 4)
        sequence = store.append(batch)
        store.sync()
        store.apply(batch, sequence)
        if step in (1, 3):
            store.freeze()
        if step == 1:
            store.flush_oldest()
    expected = read_all(store)
    fs.broken = broken or set()
    counts = [0, 0]

    def check(image: ModelFileSystem, place: str) -> None:
        counts[0] += 1
        image.on_operation = None
        try:
            source, _ = open_store(image, DB, SETTINGS)
            harmed = read_all(source) != expected
        except (OmenError, OSError) as error:
            raise LostDataError(f"{place}: the source cannot be opened: {error}") from error
        if harmed:
            raise LostDataError(f"{place}: the source is harmed")
        if not image.exists(COPY):
            return
        counts[1] += 1
        try:
            backup.check_backup(image, COPY)
            (info,) = backup.list_backups(image, COPY.parent)
            copied, _ = open_store(image, COPY, SETTINGS)
            whole = read_all(copied) == expected and info.name == "copy"
        except (OmenError, OSError, ValueError) as error:
            raise LostDataError(f"{place}: half a backup: {error}") from error
        if not whole:
            raise LostDataError(f"{place}: the backup holds other rows")

    points = 0

    def crash(operation: str) -> None:
        nonlocal points
        points += 1
        for number, image in enumerate(fs.images(seed * 1_000 + points, 10)):
            check(image, f"seed {seed}, point {points} ({operation}), image {number}")

    fs.on_operation = crash
    store.backup(COPY, 0.0)
    fs.on_operation = None
    for image in fs.images(seed, 5):
        if not image.exists(COPY):
            raise LostDataError(f"seed {seed}: a backup that was acknowledged is gone")
        check(image, f"seed {seed}, after the end")
    return counts[0], counts[1]


def refuse_links(source, target) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link", str(target))


def repair_random_damage(directory: Path, seed: int, *, flips: int = 4) -> dict[str, int]:
    """Damage a store at random places, repair it, and compare.

    Every row is written several times, so that the repaired store may hold any value that a row ever had, or
    lack it, and nothing else; rows beyond the count that the plan gave must be as they were.

    Returns
    -------
    dict
        Counts: damaged places, repairs, refusals, rows compared.
    """
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    store, _ = open_store(FS, directory, Settings(), partition_rows=60_000, segment_rows_max=30_000)
    written: dict[tuple[int, int], set[float]] = {}
    for step in range(rng.randrange(3, 9)):
        count = rng.choice([5, 300, 40_000])
        batch = make_batch(
            numbers.integers(0, 5, count), numbers.integers(0, 30_000, count), np.full(count, float(step))
        )
        sequence = store.append(batch)
        store.sync()
        store.apply(batch, sequence)
        for key in zip(batch.series_id.tolist(), batch.timestamp.tolist(), strict=True):
            written.setdefault(key, set()).add(float(step))
        if rng.random() < 0.4:
            store.freeze()
            if rng.random() < 0.7:
                while store.flush_oldest() is not None:
                    pass
    store.wal.close()
    store.release()
    expected = rows_of(directory)
    files = [p for p in directory.rglob("*") if p.is_file() and p.name != "LOCK" and p.stat().st_size]
    damaged: list[Path] = []
    for _ in range(rng.randrange(1, flips + 1)):
        path = rng.choice(files)
        data = bytearray(path.read_bytes())
        how = rng.random()
        if how < 0.8 and data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how < 0.9:
            del data[rng.randrange(len(data) + 1) :]
        else:
            data += bytes(rng.randrange(1, 100))
        path.write_bytes(data)
        damaged.append(path)
    counts = {"places": len(damaged), "repairs": 0, "refusals": 0, "rows": 0}
    try:
        plan = repair.examine(FS, directory)
    except CorruptionError as error:
        if "MANIFEST" not in error.path:
            raise
        counts["refusals"] += 1
        return counts
    repair.carry_out(FS, directory, plan)
    findings = verify(FS, directory).findings
    assert findings == [], (seed, findings)
    found = rows_of(directory)
    assert found.keys() <= expected.keys(), seed
    wrong = [key for key, value in found.items() if value not in written[key]]
    assert wrong == [], (seed, wrong[:3])
    changed = sum(found.get(key) != value for key, value in expected.items())
    # How many rows a record held that cannot be read is not known, nor that it was there if it was the last.
    unseen = 40_000 * len(damaged) if any(path.suffix == ".wal" for path in damaged) else 0
    assert changed <= plan.lost_rows + unseen, (seed, changed, plan.lost_rows)
    counts["repairs"] += 1
    counts["rows"] += len(found)
    return counts


def soak(seed: int, seconds: float) -> dict[str, int]:
    """Do all of it again and again, with one seed after the other.

    Returns
    -------
    dict
        Counts: copies compared under load, crash images of a backup, damaged places, repairs, refusals,
        rows compared after repairs.
    """
    print(f"backups and repairs: seed {seed}", flush=True)
    counts = {"copies": 0, "images": 0, "places": 0, "repairs": 0, "refusals": 0, "rows": 0}
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        directory = Path(tempfile.mkdtemp(prefix="omendb-backups-"))
        try:
            counts["copies"] += check_under_load(directory / "load", seed, backups=6, links=seed % 2 == 0)
            counts["images"] += crash_during_a_backup(seed, links=seed % 2 == 0)[0]
            for number in range(5):
                done = repair_random_damage(directory / f"damaged-{number}", seed * 5 + number)
                for name, count in done.items():
                    counts[name] += count
        finally:
            shutil.rmtree(directory)
        seed += 1
    return counts
