"""Compressed segments: the same answers, standard Parquet for everybody else, and never a wrong value."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

from omendb import executor, merged
from omendb.config import Settings
from omendb.errors import CorruptionError
from omendb.executor import Scan, WindowScan
from omendb.merged import window_scan
from omendb.model import AGGREGATES, Columns
from omendb.query import make_range_query, make_window_query
from omendb.short_query import answer_short
from omendb.storage import decoded_cache, manifest, repair, scratch
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from omendb.storage.restore import restore
from omendb.storage.segment import open_segment, rebuild_index
from omendb.storage.segment_writer import choose_encoding, write_segment
from omendb.storage.verify import verify
from omendb.workers import Workers

ENCODINGS = ["PLAIN", "BYTE_STREAM_SPLIT", "RLE_DICTIONARY"]
MEBIBYTE = 1 << 20


def walk(series: int, rows: int, seed: int = 1, sigma: float = 0.5) -> Columns:
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, sigma, (series, rows))
    return Columns(
        np.repeat(np.arange(series, dtype=np.int64), rows),
        np.tile(np.arange(rows, dtype=np.int64) * 10, series) + 1_000,
        np.round(np.cumsum(steps, axis=1), 2).ravel(),
    )


def values_of(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    if kind == "repeated":
        return rng.integers(0, 50, count) / 4
    if kind == "one":
        return np.full(count, -0.0)
    if kind == "zeros of both signs":
        return np.where(rng.random(count) < 0.5, 0.0, -0.0)
    if kind == "extremes":
        return rng.choice([np.inf, -np.inf, 5e-324, -1.7e308, 0.1, np.nan], count)
    if kind == "nan of many kinds":
        return rng.integers(0x7FF0000000000001, 0x7FF000000000000F, count).view(np.float64)
    return rng.normal(size=count)


def write(directory, rows: Columns, **options):
    fs = OsFileSystem()
    entry = write_segment(fs, directory, (1, 2), rows, 64, (1, 1), compressed=True, **options)
    return fs, entry, directory / "00000001.parquet"


def same(left: Columns, right: Columns) -> bool:
    return (
        np.array_equal(left.series_id, right.series_id)
        and np.array_equal(left.timestamp, right.timestamp)
        and np.array_equal(left.value.view(np.int64), right.value.view(np.int64))
    )


@pytest.mark.parametrize("count", [1, 2, 8_191, 8_192, 8_193, 50_000])
@pytest.mark.parametrize(
    "kind", ["repeated", "one", "zeros of both signs", "extremes", "nan of many kinds", "normal"]
)
def test_rows_come_back_bit_by_bit(tmp_path, count, kind) -> None:
    ids = np.sort(np.random.default_rng(1).integers(0, 7, count)) * 1_000_003
    rows = Columns(ids, np.arange(count, dtype=np.int64) ** 2 - 5_000, values_of(kind, count))
    fs, entry, _ = write(tmp_path, rows)

    segment = open_segment(fs, tmp_path, entry)

    assert entry.is_compressed
    assert same(segment.columns(), rows)
    np.testing.assert_array_equal(segment.sample_timestamps(7), rows.timestamp[::7])


@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        (walk(20, 10_000).value, "RLE_DICTIONARY"),
        (np.random.default_rng(1).normal(size=50_000), "BYTE_STREAM_SPLIT"),
        (np.tile(np.random.default_rng(1).normal(size=2_000), 30), "RLE_DICTIONARY"),
        (np.repeat(np.random.default_rng(1).normal(size=20_000), 3), "PLAIN"),
    ],
)
def test_the_encoding_follows_the_values(tmp_path, values, encoding) -> None:
    count = len(values)
    rows = Columns(np.zeros(count, dtype=np.int64), np.arange(count, dtype=np.int64), values)
    fs, entry, path = write(tmp_path, rows)

    assert choose_encoding(values) == encoding
    assert encoding in pq.read_metadata(path).row_group(0).column(2).encodings
    assert same(open_segment(fs, tmp_path, entry).columns(), rows)


def test_arrow_duckdb_and_polars_read_a_compressed_segment(tmp_path) -> None:
    import duckdb
    import polars

    rows = walk(10, 5_000)
    _, _, path = write(tmp_path, rows)

    table = pq.read_table(path, page_checksum_verification=True)
    frame = polars.read_parquet(path)
    relation = duckdb.sql(f"SELECT count(*), sum(value), min(timestamp) FROM '{path}'")
    count, total, first = relation.fetchall()[0]

    assert pq.read_metadata(path).metadata[b"omendb.format"] == b"2"
    assert not any(field.nullable for field in table.schema)
    for name in ("series_id", "timestamp", "value"):
        np.testing.assert_array_equal(table[name].to_numpy(), getattr(rows, name))
        np.testing.assert_array_equal(frame[name].to_numpy(), getattr(rows, name))
    assert (count, first) == (50_000, 1_000)
    assert total == pytest.approx(rows.value.sum())


def test_a_random_walk_takes_at_most_two_bytes_a_row(tmp_path) -> None:
    rows = walk(200, 10_000)
    _, entry, _ = write(tmp_path, rows)

    assert entry.bytes + entry.index.bytes <= 2.0 * rows.count


def test_every_flipped_byte_is_noticed(tmp_path) -> None:
    rows = walk(3, 9_000)
    fs, entry, path = write(tmp_path, rows)
    whole = path.read_bytes()
    for offset in [*range(0, entry.bytes, 97), *range(200), *range(entry.bytes - 1_000, entry.bytes)]:
        path.unlink()
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :])

        with pytest.raises(CorruptionError) as error:
            open_segment(fs, tmp_path, entry).columns()
        assert error.value.path == str(path)


def test_a_rebuilt_index_equals_the_first(tmp_path) -> None:
    fs, entry, _ = write(tmp_path, walk(5, 9_000))
    first = open_segment(fs, tmp_path, entry).index

    again = rebuild_index(fs, tmp_path, entry, 64)

    assert again.binding == first.binding
    for name in ("runs", "knots", "pieces", "series_knots", "timestamp_checksums", "value_checksums"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    for left, right in zip(again.pages, first.pages, strict=True):
        np.testing.assert_array_equal(left, right)


class Pair:
    """Two stores of the same rows, one of them compressed, with a cache of one mebibyte: eight blocks."""

    def __init__(self, directory, rows: Columns, late: Columns | None = None) -> None:
        self.stores = []
        for compressed in (False, True):
            store, _ = open_store(
                OsFileSystem(),
                directory / str(compressed),
                Settings(enable_compression=compressed),
                segment_rows_max=100_000,
            )
            store.cache.set_limit(MEBIBYTE)
            for part in (rows, late):
                if part is None:
                    continue
                sequence = store.append(part)
                store.sync()
                store.apply(part, sequence)
                store.freeze()
                store.flush_oldest()
                if part is rows:
                    while store.compact(everything=True) is not None:
                        pass
            self.stores.append(store)
        self.plain, self.compressed = self.stores

    def close(self) -> None:
        for store in self.stores:
            store.wal.close()
            store.release()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    late = Columns(
        np.repeat(np.array([3, 77], dtype=np.int64), 500),
        np.tile(np.arange(500, dtype=np.int64) * 300, 2) + 1_000,
        np.arange(1_000) * 0.5,
    )
    whole = walk(30, 10_000)
    long = walk(1, 300_000, seed=3)
    rows = Columns(
        np.concatenate([whole.series_id, long.series_id + 77]),
        np.concatenate([whole.timestamp, long.timestamp]),
        np.concatenate([whole.value, long.value]),
    )
    both = Pair(tmp_path_factory.mktemp("pair"), rows, late)
    yield both
    both.close()


def ask_rows(snapshot, *query) -> tuple:
    found = Scan(snapshot, make_range_query(*query)).columns()
    return found.series_id.tobytes(), found.timestamp.tobytes(), found.value.tobytes()


def test_the_two_stores_are_what_they_should_be(pair) -> None:
    assert {s.entry.is_compressed for s in pair.plain.snapshot.segments} == {False}
    assert {s.entry.is_compressed for s in pair.compressed.snapshot.segments} == {False, True}
    assert sum(s.entry.is_compressed for s in pair.compressed.snapshot.segments) > 3


def test_range_queries_answer_the_same(pair) -> None:
    rng = np.random.default_rng(5)
    for number in range(300):
        series = [int(rng.choice([*range(31), 77, 78]))] if number % 3 else None
        start = int(rng.integers(0, 3_000_000 if number % 2 else 101_000))
        end = start + int(rng.choice([0, 10, 1_000, 100_000, 2_000_000]))
        limit = None if number % 5 else int(rng.integers(1, 2_000))

        plain, compressed = (ask_rows(s.snapshot, start, end, series, limit) for s in pair.stores)

        assert plain == compressed, (start, end, series, limit)


def ask_windows(snapshot, step, *query):
    return WindowScan(snapshot, make_window_query(step, AGGREGATES, *query)).windows()


@pytest.mark.parametrize("step", [30, 900_000, 2**40])
def test_windows_wider_than_the_cache_answer_the_same_and_stay_within_it(pair, step) -> None:
    for series in ([77], None):
        for by in ("series_id", ""):
            query = make_window_query(step, AGGREGATES, None, None, series, by=by)
            plain, compressed = (window_scan(s.snapshot, query).windows() for s in pair.stores)

            np.testing.assert_array_equal(plain.timestamp, compressed.timestamp)
            for name in ("count", "min", "max", "first", "last"):
                np.testing.assert_array_equal(plain.columns[name], compressed.columns[name])
            for name in ("sum", "mean", "stddev"):
                np.testing.assert_allclose(plain.columns[name], compressed.columns[name], rtol=1e-9)
    assert pair.compressed.cache.figures().bytes <= 2 * MEBIBYTE


@pytest.mark.parametrize("series", [None, [3], [29], [77], [0, 29, 77]])
@pytest.mark.parametrize("bounds", [(None, None), (5_000, 60_000), (990_000, 2_500_000)])
def test_counts_and_windows_answer_the_same(pair, series, bounds) -> None:
    counts = [Scan(s.snapshot, make_range_query(*bounds, series)).count() for s in pair.stores]
    assert counts[0] == counts[1]
    for step in (10, 1_000, 10_000_000):
        plain, compressed = (ask_windows(s.snapshot, step, *bounds, series) for s in pair.stores)

        np.testing.assert_array_equal(plain.series_id, compressed.series_id)
        np.testing.assert_array_equal(plain.timestamp, compressed.timestamp)
        settled = ~np.isin(plain.series_id, [3, 77])
        for name in AGGREGATES:
            np.testing.assert_array_equal(plain.columns[name][settled], compressed.columns[name][settled])
            # Where sources overlap, the last bits depend on where an answer is cut into pieces.
            np.testing.assert_allclose(plain.columns[name], compressed.columns[name], rtol=1e-12, atol=1e-9)


def test_a_short_range_decodes_a_block_or_two(pair) -> None:
    snapshot = pair.compressed.snapshot
    for start in (1_500_000, 2_000_000, 81_910 * 10):
        before = snapshot.cache.figures().misses
        rows = Scan(snapshot, make_range_query(start, start + 990, 77)).columns()
        assert len(rows.timestamp) == 100
        assert snapshot.cache.figures().misses - before <= 2


def test_what_is_kept_stays_within_the_limit(pair) -> None:
    cache = pair.compressed.snapshot.cache
    Scan(pair.compressed.snapshot, make_range_query()).columns()

    figures = cache.figures()

    assert figures.limit_bytes == MEBIBYTE
    assert figures.bytes <= MEBIBYTE + MEBIBYTE // 4
    assert figures.evictions > 10


def test_a_cold_scan_never_asks_for_a_whole_long_series(pair) -> None:
    """A million rows that are asked for at once would be decoded at once; the limit is what may be."""
    cache = pair.compressed.snapshot.cache
    most = 0
    for _ in Scan(pair.compressed.snapshot, make_range_query(None, None, 77)).chunks(200_000):
        most = max(most, cache.figures().bytes)
    assert most <= 3 * MEBIBYTE


def test_many_threads_read_while_blocks_come_and_go(pair) -> None:
    snapshot = pair.compressed.snapshot
    queries = [(n * 9_000, n * 9_000 + 40_000, [s]) for n in range(8) for s in (1, 15, 29, 77)]
    expected = {str(query): ask_rows(pair.plain.snapshot, *query) for query in queries}
    wrong: list = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(150):
                query = queries[rng.integers(len(queries))]
                if ask_rows(snapshot, *query) != expected[str(query)]:
                    wrong.append(query)
        except BaseException as error:  # told by the test's thread
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


@pytest.fixture
def workers():
    pool = Workers(2)
    yield pool
    pool.close()


@pytest.mark.parametrize("blocks", [1, 12, 64])
@pytest.mark.parametrize("shard_rows", [3_000, 40_000, 262_144])
def test_parts_of_large_scans_answer_the_same(pair, workers, monkeypatch, blocks, shard_rows) -> None:
    """One block is too little for any part, twelve are for some, and with 64 all but the long series fit."""
    monkeypatch.setattr(scratch, "ROOM_BLOCKS", blocks)
    monkeypatch.setattr(scratch, "_local", threading.local())
    monkeypatch.setattr(executor, "SHARD_ROWS", shard_rows)
    monkeypatch.setattr(merged, "SHARD_ROWS", shard_rows)
    monkeypatch.setattr(executor, "ROW_SHARD_ROWS", shard_rows)
    rng = np.random.default_rng(blocks)
    for bounds in [(None, None), *((int(low), int(low) + 40_000) for low in rng.integers(0, 90_000, 3))]:
        scans = [Scan(s.snapshot, make_range_query(*bounds), workers) for s in pair.stores]
        plain, compressed = (list(scan.map(lambda part: part, 5_000)) for scan in scans)
        for left, right in zip(joined(plain), joined(compressed), strict=True):
            np.testing.assert_array_equal(left, right)
        assert scans[0].count() == scans[1].count() == sum(part.count for part in plain)
        for step, by in ((1_000, "series_id"), (7_000_000, "series_id"), (900, "")):
            query = make_window_query(step, AGGREGATES, *bounds, by=by)
            one, other = (window_scan(s.snapshot, query, workers).windows() for s in pair.stores)
            np.testing.assert_array_equal(one.timestamp, other.timestamp)
            for name in AGGREGATES:
                np.testing.assert_allclose(one.columns[name], other.columns[name], rtol=1e-9, atol=1e-9)


def joined(parts: list[Columns]) -> list[np.ndarray]:
    columns = zip(
        *((part.series_id, part.timestamp, part.value.view(np.int64)) for part in parts), strict=True
    )
    return [np.concatenate(column) for column in columns]


def test_a_large_scan_leaves_the_cache_to_others(tmp_path, workers, monkeypatch) -> None:
    monkeypatch.setattr(executor, "DECODED_ROWS_MIN", 0)
    both = Pair(tmp_path, walk(40, 10_000))
    snapshot = both.compressed.snapshot
    Scan(snapshot, make_range_query(1_000, 5_000, 7)).columns()
    before = snapshot.cache.figures()

    rows = sum(Scan(snapshot, make_range_query(), workers).map(lambda part: part.count))
    windows = window_scan(snapshot, make_window_query(50_000, "count", 9_000, 30_000), workers).windows()

    assert rows == 400_000
    assert windows.columns["count"].sum() == 40 * 2_101
    assert snapshot.cache.figures()[:1] + snapshot.cache.figures()[3:] == before[:1] + before[3:]
    both.close()


def test_damage_is_found_by_a_large_scan(tmp_path, workers) -> None:
    both = Pair(tmp_path, walk(40, 10_000))
    both.close()
    name = min((tmp_path / "True" / "data").glob("*.parquet"))
    content = bytearray(name.read_bytes())
    content[len(content) // 2] ^= 1
    name.unlink()
    name.write_bytes(content)
    store, _ = open_store(OsFileSystem(), tmp_path / "True", Settings())
    store.cache.set_limit(MEBIBYTE)

    with pytest.raises(CorruptionError) as error:
        list(Scan(store.snapshot, make_range_query(), workers).map(lambda part: part.count))

    assert error.value.path == str(name)
    store.wal.close()
    store.release()


def test_short_answers_are_the_same(pair) -> None:
    for start in range(0, 100_000, 7_000):
        texts = [
            bytes(answer_short(store.snapshot, make_range_query(start, start + 990, 12), columns=True).text)
            for store in pair.stores
        ]
        assert texts[0] == texts[1]


def settle(store) -> None:
    while store.compact(everything=True) is not None:
        pass


def test_gc_rewrites_what_is_of_the_other_kind_and_then_rests(shelf) -> None:
    for seed in range(3):
        shelf.insert_random(seed)
        shelf.flush()
    for compressed in (True, False, True):
        shelf.store.settings = shelf.settings.with_changes(enable_compression=compressed)
        settle(shelf.store)

        assert {s.entry.is_compressed for s in shelf.store.snapshot.segments} == {compressed}
        assert shelf.store.compact(everything=True) is None
        assert shelf.store.compact() is None
        shelf.check()
        shelf.store.retrain()
        shelf.check()
    shelf.reopen(clean=False)
    shelf.check()


def test_a_manifest_with_compressed_segments_says_so(shelf) -> None:
    path = shelf.directory / "MANIFEST"
    shelf.insert_random(1)
    shelf.flush()
    assert b"timestamp_bytes" not in path.read_bytes()

    shelf.store.settings = shelf.settings.with_changes(enable_compression=True)
    settle(shelf.store)

    assert b"timestamp_bytes" in path.read_bytes()
    assert manifest.load(shelf.fs, shelf.directory).segments[0].is_compressed
    shelf.store.close()
    report = verify(shelf.fs, shelf.directory)
    assert (report.findings, report.warnings) == ([], [])


def test_a_lost_index_is_rebuilt_at_the_start(shelf) -> None:
    shelf.insert_random(1)
    shelf.flush()
    shelf.store.settings = shelf.settings.with_changes(enable_compression=True)
    settle(shelf.store)
    for path in (shelf.directory / "data").glob("*.lix"):
        path.unlink()

    shelf.reopen(clean=False)

    assert shelf.recovery.rebuilt_indexes > 0
    shelf.check()


def test_damage_names_the_segment_and_leaves_others_readable(tmp_path) -> None:
    rows = walk(4, 30_000)
    both = Pair(tmp_path, rows)
    both.close()
    directory = tmp_path / "True"
    names = sorted((directory / "data").glob("*.parquet"))
    content = bytearray(names[0].read_bytes())
    content[len(content) // 2] ^= 1
    names[0].unlink()
    names[0].write_bytes(content)
    store, _ = open_store(OsFileSystem(), directory, Settings())

    with pytest.raises(CorruptionError) as error:
        Scan(store.snapshot, make_range_query()).columns()
    assert error.value.path == str(names[0])
    last = Scan(store.snapshot, make_range_query(250_000, 300_000, 3)).columns()
    whole = Scan(both.plain.snapshot, make_range_query(250_000, 300_000, 3)).columns()
    assert same(last, whole)
    with pytest.raises(CorruptionError):
        store.retrain()
    assert store.damaged == {store.snapshot.segments[0].entry.number}
    assert store.compact(everything=True) is None
    store.wal.close()
    store.release()


def test_memory_of_segments_that_are_gone_is_not_counted(tmp_path) -> None:
    both = Pair(tmp_path, walk(4, 30_000))
    store = both.compressed
    Scan(store.snapshot, make_range_query()).columns()
    assert store.cache.figures().bytes > 0

    store.settings = Settings(enable_compression=False)
    settle(store)

    assert store.cache.figures().bytes == 0
    both.close()


def test_a_smaller_limit_takes_effect_at_once(tmp_path) -> None:
    both = Pair(tmp_path, walk(4, 60_000))
    cache = both.compressed.cache
    cache.set_limit(64 * MEBIBYTE)
    Scan(both.compressed.snapshot, make_range_query()).columns()
    held = cache.figures().bytes
    cache.set_limit(2 * MEBIBYTE)

    assert held > 3 * MEBIBYTE
    assert cache.figures().bytes <= 2 * MEBIBYTE
    assert decoded_cache.LIMIT_BYTES_MIN <= 2 * MEBIBYTE
    assert ask_rows(both.compressed.snapshot) == ask_rows(both.plain.snapshot)
    both.close()


def test_repair_keeps_the_blocks_that_are_whole(tmp_path) -> None:
    both = Pair(tmp_path, walk(1, 50_000))
    both.close()
    directory = tmp_path / "True"
    segment = both.compressed.snapshot.segments[0]
    place = int(segment.index.pages.value[3]) + 200
    content = bytearray(segment.path.read_bytes())
    content[place] ^= 1
    segment.path.unlink()
    segment.path.write_bytes(content)

    plan = repair.examine(OsFileSystem(), directory)
    assert plan.lost_rows == 8_192
    assert [damage.kept_rows for damage in plan.segments] == [50_000 - 8_192]
    repair.carry_out(OsFileSystem(), directory, plan)

    store, _ = open_store(OsFileSystem(), directory, Settings())
    found = Scan(store.snapshot, make_range_query()).columns()
    whole = Scan(both.plain.snapshot, make_range_query()).columns()
    kept = np.r_[0 : 3 * 8_192, 4 * 8_192 : 50_000]
    assert store.snapshot.segments[0].entry.is_compressed
    np.testing.assert_array_equal(found.timestamp, whole.timestamp[kept])
    np.testing.assert_array_equal(found.value, whole.value[kept])
    store.wal.close()
    store.release()


def test_a_backup_of_compressed_segments_is_whole_and_opens(tmp_path) -> None:
    both = Pair(tmp_path, walk(2, 20_000))
    both.compressed.backup(tmp_path / "backup", 0.0, check=True)
    expected = ask_rows(both.plain.snapshot)
    both.close()

    restored = restore(OsFileSystem(), tmp_path / "backup", tmp_path / "again")

    assert restored.rows == 40_000
    store, _ = open_store(OsFileSystem(), tmp_path / "again", Settings())
    assert ask_rows(store.snapshot) == expected
    store.wal.close()
    store.release()
