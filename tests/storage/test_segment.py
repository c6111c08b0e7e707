"""Segments: plain Parquet for everybody, raw arrays for us, and never a wrong value."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from omendb.errors import CorruptionError
from omendb.model import Columns
from omendb.storage.fs import OsFileSystem
from omendb.storage.segment import open_segment, rebuild_index
from omendb.storage.segment_writer import write_segment


def rows_of(count: int, series: int = 7, seed: int = 1) -> Columns:
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.integers(0, series, count)) * 1_000_003
    return Columns(ids, np.arange(count, dtype=np.int64) * 10 - 5_000, rng.normal(size=count))


def write(directory, rows: Columns):
    fs = OsFileSystem()
    entry = write_segment(fs, directory, (1, 2), rows, 64, (1, 1))
    return fs, entry, directory / "00000001.parquet"


@pytest.mark.parametrize("count", [1, 2, 8_191, 8_192, 8_193, 200_000])
def test_columns_are_views_over_the_file(tmp_path, count) -> None:
    rows = rows_of(count)
    fs, entry, _ = write(tmp_path, rows)

    segment = open_segment(fs, tmp_path, entry)
    columns = segment.columns()

    for got, expected in zip(
        (columns.series_id, columns.timestamp, columns.value),
        (rows.series_id, rows.timestamp, rows.value),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)
    assert not columns.timestamp.flags.owndata
    assert not columns.value.flags.writeable
    assert entry.rows == count
    assert entry.first_timestamp == rows.timestamp.min()
    assert entry.last_series == rows.series_id[-1]


def test_arrow_duckdb_and_polars_read_a_segment_as_it_is(tmp_path) -> None:
    import duckdb
    import polars

    rows = rows_of(50_000)
    _, _, path = write(tmp_path, rows)

    table = pq.read_table(path, page_checksum_verification=True)
    frame = polars.read_parquet(path)
    relation = duckdb.sql(f"SELECT count(*), sum(value), min(timestamp), max(series_id) FROM '{path}'")

    assert table.schema.names == ["series_id", "timestamp", "value"]
    assert not any(field.nullable for field in table.schema)
    for name, expected in (
        ("series_id", rows.series_id),
        ("timestamp", rows.timestamp),
        ("value", rows.value),
    ):
        np.testing.assert_array_equal(table[name].to_numpy(), expected)
        np.testing.assert_array_equal(frame[name].to_numpy(), expected)
    count, total, first, last = relation.fetchall()[0]
    assert (count, first, last) == (50_000, rows.timestamp.min(), rows.series_id.max())
    assert total == pytest.approx(rows.value.sum())


def test_series_ids_take_next_to_no_space(tmp_path) -> None:
    count = 100_000
    _, entry, path = write(tmp_path, rows_of(count, series=100))

    assert entry.bytes < 16 * count + 8_000
    assert path.stat().st_size == entry.bytes


def test_many_series_stay_dictionary_coded(tmp_path) -> None:
    count = 300_000
    rows = Columns(np.arange(count, dtype=np.int64), np.arange(count, dtype=np.int64), np.zeros(count))
    _, _, path = write(tmp_path, rows)

    column = pq.read_metadata(path).row_group(0).column(0)

    assert column.has_dictionary_page
    assert "RLE_DICTIONARY" in column.encodings


def test_rows_out_of_order_are_refused(tmp_path) -> None:
    rows = Columns(np.array([1, 1, 1], dtype=np.int64), np.array([1, 3, 3], dtype=np.int64), np.zeros(3))
    with pytest.raises(ValueError, match="row 2"):
        write(tmp_path, rows)
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_byte_is_noticed(tmp_path) -> None:
    rows = rows_of(3_000)
    fs, entry, path = write(tmp_path, rows)
    whole = path.read_bytes()
    for offset in [
        *range(0, entry.bytes, 41),
        *range(entry.timestamp_offset),
        *range(entry.bytes - 1_500, entry.bytes),
    ]:
        # A new file: a live segment is never changed in place.
        path.unlink()
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :])

        with pytest.raises(CorruptionError) as error:
            open_segment(fs, tmp_path, entry).columns()
        assert error.value.path == str(path)
        with pytest.raises(CorruptionError):
            rebuild_index(fs, tmp_path, entry, 64)


@pytest.mark.parametrize("size", [0, 4, 1_000, -1])
def test_a_cut_file_is_noticed_when_it_is_opened(tmp_path, size) -> None:
    fs, entry, path = write(tmp_path, rows_of(1_000))
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(CorruptionError, match="bytes"):
        open_segment(fs, tmp_path, entry)


def test_only_touched_blocks_are_checked(tmp_path) -> None:
    fs, entry, _ = write(tmp_path, rows_of(100_000))
    segment = open_segment(fs, tmp_path, entry)

    segment.verify_rows(20_000, 20_010)

    assert segment.verified.sum() == 1
    segment.verify_all()
    assert segment.verified.all()


def test_a_rebuilt_index_equals_the_first(tmp_path) -> None:
    fs, entry, _ = write(tmp_path, rows_of(60_000))
    first = open_segment(fs, tmp_path, entry).index

    again = rebuild_index(fs, tmp_path, entry, 64)

    for name in ("runs", "knots", "pieces", "series_knots", "timestamp_checksums", "value_checksums"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert again.binding == first.binding
