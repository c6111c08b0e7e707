"""Repair drops what it said it would drop and nothing else, and the store starts afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omendb.config import Settings
from omendb.errors import CorruptionError, OmenError
from omendb.model import make_batch
from omendb.storage import repair
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from omendb.storage.verify import verify
from tests.faults.backups import repair_random_damage
from tests.faults.crash import read_all
from tests.faults.model_fs import ModelFileSystem
from tests.storage.faulty_fs import FaultyFileSystem

FS = OsFileSystem()
BLOCK = 8192
ROWS = 3 * BLOCK + 100  # of the big segment: four blocks, the last one short

Rows = dict[tuple[int, int], float]


class Damaged:
    """A store as a crash leaves it: a big segment, a small one, and a log of two files, three records each.

    Attributes
    ----------
    big, small : Path
    logs : list of Path
    rows : dict
        What it holds.
    records : list of dict
        What each record of the log brought, in order.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rows: Rows = {}
        self.records: list[Rows] = []
        store, _ = open_store(FS, directory, Settings())

        def insert(series, timestamp, value) -> Rows:
            batch = make_batch(series, timestamp, value)
            sequence = store.append(batch)
            store.sync()
            store.apply(batch, sequence)
            keys = zip(batch.series_id.tolist(), batch.timestamp.tolist(), strict=True)
            brought = dict(zip(keys, batch.value.tolist(), strict=True))
            self.rows.update(brought)
            return brought

        half = ROWS // 2
        insert(np.repeat([1, 2], [half, ROWS - half]), np.arange(ROWS) * 10, np.arange(ROWS) / 4)
        store.freeze()
        store.flush_oldest()
        insert(7, np.arange(50), np.arange(50) / 2)
        store.freeze()
        store.flush_oldest()
        for number in range(6):
            self.records.append(insert([3, 4], [number, number], [float(number), -1.0]))
            if number == 2:
                store.freeze()
        store.wal.close()
        store.release()
        self.big, self.small = sorted((directory / "data").glob("*.parquet"))
        self.logs = sorted((directory / "wal").glob("*.wal"))
        self.entries = store._manifest.segments
        assert len(self.logs) == 2

    def plan(self) -> repair.Plan:
        """Examine it, and make sure that this changes nothing."""
        before = content(self.directory)
        plan = repair.examine(FS, self.directory)
        assert content(self.directory) == before
        return plan

    def repair(self) -> repair.Plan:
        """Repair it; afterwards it is whole, and keeps what it took out."""
        plan = self.plan()
        repair.carry_out(FS, self.directory, plan)
        report = verify(FS, self.directory)
        assert (report.findings, report.warnings) == ([], [])
        assert repair.examine(FS, self.directory).is_empty
        return plan

    def read(self) -> Rows:
        """Start it, as often as an operator would; it holds the same each time."""
        found = []
        for _ in range(3):
            store, _ = open_store(FS, self.directory, Settings())
            found.append(read_all(store))
            batch = make_batch(99, 1, 1.0)
            sequence = store.append(batch)
            store.sync()
            store.apply(batch, sequence)
            store.wal.close()
            store.release()
        for rows in found[1:]:
            assert rows.pop((99, 1)) == 1.0
            assert rows == found[0]
        return found[0]

    @property
    def quarantine(self) -> dict[str, bytes]:
        return content(self.directory / "quarantine")


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "LOCK"
    }


def flip(path: Path, offset: int) -> bytes:
    """Damage a byte; return the damaged file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)
    return bytes(data)


@pytest.fixture
def store(tmp_path) -> Damaged:
    return Damaged(tmp_path / "db")


def test_a_whole_store_needs_no_repair(store) -> None:
    plan = store.repair()

    assert plan.is_empty
    assert plan.lost_rows == 0
    assert not (store.directory / "quarantine").exists()
    assert store.read() == store.rows


@pytest.mark.parametrize("column", ["timestamp", "value"])
@pytest.mark.parametrize("block", [0, 1, 3])
def test_undamaged_blocks_of_a_segment_are_kept(store, column, block) -> None:
    entry = store.entries[0]
    offset = entry.timestamp_offset if column == "timestamp" else entry.value_offset
    damaged = flip(store.big, offset + 8 * (block * BLOCK + 50))
    lost = range(block * BLOCK, min((block + 1) * BLOCK, ROWS))
    half = ROWS // 2

    plan = store.repair()

    assert [damage.path for damage in plan.segments] == [str(store.big)]
    assert plan.segments[0].kept_rows == ROWS - len(lost)
    assert plan.lost_rows == len(lost)
    by_series = {series: [10 * row for row in lost if (row < half) == (series == 1)] for series in (1, 2)}
    for loss in plan.losses:
        times = by_series.pop(loss.first_series)
        assert loss.rows == len(times)
        assert loss.first_timestamp in range(times[0] - 9, times[0] + 1)
        assert loss.last_timestamp in range(times[-1], times[-1] + 10)
    assert not any(by_series.values())
    gone = {(1 if row < half else 2, 10 * row) for row in lost}
    assert store.read() == {key: value for key, value in store.rows.items() if key not in gone}
    assert store.quarantine[store.big.name] == damaged
    assert set(store.quarantine) == {
        store.big.name,
        store.big.stem + f"-{store.entries[0].index.number:08d}.lix",
    }


@pytest.mark.parametrize("place", ["head", "footer", "end"])
def test_a_segment_with_damaged_headers_loses_nothing(store, place) -> None:
    flip(
        store.big,
        {"head": 1, "footer": store.entries[0].bytes - 30, "end": store.entries[0].bytes - 1}[place],
    )

    plan = store.repair()

    assert plan.segments[0].kept_rows == ROWS
    assert plan.lost_rows == 0
    assert store.read() == store.rows


def test_a_truncated_segment_keeps_the_blocks_that_are_there(store) -> None:
    entry = store.entries[0]
    data = store.big.read_bytes()
    store.big.write_bytes(data[: entry.value_offset + 8 * (2 * BLOCK + 7)])

    plan = store.repair()

    assert plan.segments[0].kept_rows == 2 * BLOCK
    assert plan.lost_rows == ROWS - 2 * BLOCK
    expected = [store.rows[key] for key in sorted(store.rows) if key[0] in (1, 2)][: 2 * BLOCK]
    read = store.read()
    assert [read[key] for key in sorted(read) if key[0] in (1, 2)] == expected


def test_a_missing_segment_is_lost_and_counted_by_series(store) -> None:
    store.big.unlink()
    half = ROWS // 2

    plan = store.repair()

    assert plan.segments[0].kept_rows == 0
    assert plan.losses == [
        repair.Loss(1, 1, half, 0, 10 * (half - 1)),
        repair.Loss(2, 2, ROWS - half, 10 * half, 10 * (ROWS - 1)),
    ]
    assert store.read() == {key: value for key, value in store.rows.items() if key[0] not in (1, 2)}


def test_a_segment_damaged_together_with_its_index_is_lost_and_bounded_by_the_manifest(store) -> None:
    entry = store.entries[0]
    flip(store.big, entry.value_offset)
    flip(next(store.directory.glob(f"data/{store.big.stem}-*.lix")), 200)

    plan = store.repair()

    assert plan.losses == [repair.Loss(1, 2, ROWS, 0, 10 * (ROWS - 1))]
    assert store.read() == {key: value for key, value in store.rows.items() if key[0] not in (1, 2)}
    assert len(store.quarantine) == 2


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_a_damaged_index_is_rebuilt(store, how) -> None:
    path = next(store.directory.glob(f"data/{store.small.stem}-*.lix"))
    if how == "flipped":
        flip(path, 150)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()

    plan = store.repair()

    assert [entry.number for entry, _ in plan.indexes] == [store.entries[1].number]
    assert plan.lost_rows == 0
    assert not path.exists()
    assert store.read() == store.rows
    assert not (store.directory / "quarantine").exists()


def test_unnamed_files_are_removed_and_foreign_ones_left(store) -> None:
    (store.directory / "data" / "00000077.parquet").write_bytes(b"x")
    (store.directory / "data" / "00000078.parquet.tmp").write_bytes(b"x")
    (store.directory / "data" / "readme.txt").write_bytes(b"mine")

    plan = store.repair()

    assert plan.unnamed == ["00000077.parquet", "00000078.parquet.tmp"]
    names = {path.name for path in (store.directory / "data").iterdir()}
    assert "readme.txt" in names
    assert not names & {*plan.unnamed}
    assert store.read() == store.rows


def before_record(store: Damaged, kept: int) -> Rows:
    """What the store holds up to a record of the log."""
    expected = {key: value for key, value in store.rows.items() if key[0] not in (3, 4)}
    for brought in store.records[:kept]:
        expected.update(brought)
    return expected


RECORD = 48 + 2 * 24


@pytest.mark.parametrize("part", [0, 10, 47, 60, RECORD - 1])
@pytest.mark.parametrize("record", range(5))
def test_a_log_is_cut_at_its_first_damaged_record(store, record, part) -> None:
    path = store.logs[record // 3]
    damaged = flip(path, 32 + (record % 3) * RECORD + part)
    whole = {log.name: log.read_bytes() for log in store.logs}

    plan = store.repair()

    log = plan.log
    assert log is not None
    assert (log.path, log.offset) == (str(path), 32 + (record % 3) * RECORD)
    assert log.records == 5 - record
    assert log.unreadable_bytes == RECORD
    assert plan.lost_rows == 2 * (5 - record)
    assert [loss.first_series for loss in plan.losses] == [3, 4]
    assert (plan.losses[0].first_timestamp, plan.losses[0].last_timestamp) == (record + 1, 5)
    assert store.quarantine[path.name] == damaged
    assert store.quarantine == {name: whole[name] for name in store.quarantine}
    assert len(store.quarantine) == 2 - record // 3
    assert store.read() == before_record(store, record)


@pytest.mark.parametrize(("file", "kept"), [(0, 0), (1, 3)])
@pytest.mark.parametrize("how", ["header", "cut in the header", "missing", "empty"])
def test_a_log_file_that_cannot_be_used_ends_the_log(store, file, kept, how) -> None:
    path = store.logs[file]
    data = path.read_bytes()
    if how == "header":
        flip(path, 20)
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:20] if how == "cut in the header" else b"")
    if file == 1 and how in ("cut in the header", "empty", "missing"):
        # Nothing tells it from a file that was never finished being created: no damage to be seen.
        assert store.plan().log is None
        return

    plan = store.repair()

    assert plan.log is not None
    assert plan.log.path == str(path)
    assert plan.log.offset == 0
    assert plan.log.records == {"header": 6 - kept}.get(how, 3)
    assert store.read() == before_record(store, kept)
    assert len(store.quarantine) == (2 - file) - (how == "missing")


def test_a_file_cut_at_a_records_end_is_a_gap_and_ends_the_log(store) -> None:
    path = store.logs[0]
    path.write_bytes(path.read_bytes()[: 32 + 2 * RECORD])

    plan = store.repair()

    assert plan.log is not None
    assert plan.log.path == str(store.logs[1])
    assert store.read() == before_record(store, 2)


def test_a_missing_log_directory_is_an_empty_log(store) -> None:
    for path in store.logs:
        path.unlink()
    (store.directory / "wal").rmdir()

    store.repair()

    assert store.read() == before_record(store, 0)


def test_a_torn_tail_is_left_to_the_start(store) -> None:
    path = store.logs[1]
    path.write_bytes(path.read_bytes()[:-5])

    assert store.plan().is_empty
    assert store.read() == before_record(store, 5)


def test_everything_at_once(store) -> None:
    flip(store.big, store.entries[0].value_offset)
    flip(next(store.directory.glob(f"data/{store.small.stem}-*.lix")), 150)
    flip(store.logs[1], 32 + 50)
    (store.directory / "data" / "00000077.parquet").write_bytes(b"x")

    plan = store.repair()

    assert len(plan.segments) == len(plan.indexes) == len(plan.unnamed) == 1
    expected = before_record(store, 3)
    for row in range(BLOCK):
        del expected[1, 10 * row]
    assert store.read() == expected


def test_a_second_repair_keeps_what_the_first_one_kept(store) -> None:
    first = flip(store.logs[1], 32 + 2 * RECORD - 5)
    store.repair()
    second = flip(store.logs[1], 32 + 5)
    store.logs[1].write_bytes(second + b"\0" * 10)
    # A torn tail now: make it damage by a later record that vouches for it.
    store.logs[1].write_bytes(second + first[32 + 2 * RECORD :])

    store.repair()

    kept = store.quarantine
    assert kept[store.logs[1].name] == first
    assert len(kept) == 2


@pytest.mark.parametrize("offset", [0, 20, 200, -5])
def test_a_damaged_manifest_is_refused_with_what_to_do(store, offset) -> None:
    path = store.directory / "MANIFEST"
    flip(path, offset % path.stat().st_size)
    before = content(store.directory)

    with pytest.raises(CorruptionError, match="restore a backup"):
        repair.examine(FS, store.directory)
    path.unlink()
    with pytest.raises(OmenError, match="restore a backup"):
        repair.examine(FS, store.directory)

    before.pop("MANIFEST")
    assert content(store.directory) == before


def test_a_log_of_a_later_version_is_not_taken_for_damage(store) -> None:
    from omendb.storage import format as layouts

    data = bytearray(store.logs[0].read_bytes())
    data[8] = layouts.WAL_VERSION + 1
    data[24:32] = layouts.checksum(bytes(data[:24])).to_bytes(8, "little")
    store.logs[0].write_bytes(data)

    with pytest.raises(CorruptionError, match="version 3 is not known"):
        store.plan()


def test_the_start_names_the_command(store) -> None:
    flip(store.logs[0], 40)

    with pytest.raises(CorruptionError, match=f"`omendb repair {store.directory}`"):
        open_store(FS, store.directory, Settings())


def test_a_file_system_without_links_quarantines_copies(store) -> None:
    damaged = flip(store.big, store.entries[0].value_offset)
    fs = FaultyFileSystem(FS)
    fs.fail("link", "EPERM")

    repair.carry_out(fs, store.directory, repair.examine(fs, store.directory))

    assert store.quarantine[store.big.name] == damaged
    assert len(store.read()) == len(store.rows) - BLOCK


def test_a_crash_during_a_repair_loses_nothing_more() -> None:
    """Repaired again, each disk that a crash may leave holds the same rows, and the same damaged files."""
    directory = Path("/db")
    fs = ModelFileSystem()
    store, _ = open_store(fs, directory, Settings())
    for number in range(6):
        batch = make_batch(number, np.arange(20), np.arange(20) / 2)
        sequence = store.append(batch)
        store.sync()
        store.apply(batch, sequence)
        if number < 2 or number == 3:
            store.freeze()
        if number < 2:
            store.flush_oldest()
    entry = store.snapshot.segments[0].entry
    segment = directory / "data" / f"{entry.number:08d}.parquet"
    logs = [directory / "wal" / name for name in fs.names(directory / "wal")][-2:]
    for path, offset in ((segment, entry.value_offset), (logs[0], 32 + 10)):
        data = bytearray(fs.read(path))
        data[offset] ^= 1
        fs._names[str(path)].durable = bytes(data)
        fs._names[str(path)].content = data
    kept = {path.name: fs.read(path) for path in (segment, *logs)}
    images = points = 0

    def crash(operation: str) -> None:
        nonlocal images, points
        points += 1
        for number, image in enumerate(fs.images(points, 16)):
            images += 1
            place = f"point {points} ({operation}), image {number}"
            repair.carry_out(image, directory, repair.examine(image, directory))
            opened, _ = open_store(image, directory, Settings())
            assert read_all(opened) == {(1, time): time / 2 for time in range(20)}, place
            quarantine = directory / "quarantine"
            found = [image.read(quarantine / name) for name in image.names(quarantine)]
            assert all(data in found for data in kept.values()), place

    fs.on_operation = crash
    repair.carry_out(fs, directory, repair.examine(fs, directory))

    print(f"{images} images of {points} points")
    assert images > 200


def test_random_damage_is_repaired_or_refused(tmp_path) -> None:
    """Nothing that was never written shows, and no more is missing than was said."""
    counts = {"places": 0, "repairs": 0, "refusals": 0, "rows": 0}
    for seed in range(12):
        for name, count in repair_random_damage(tmp_path / str(seed), seed).items():
            counts[name] += count

    print(f"seeds 0 to 11: {counts}")
    assert counts["repairs"] > 5
    assert counts["rows"] > 10_000
