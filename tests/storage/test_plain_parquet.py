"""Plain segments are the Parquet files that Arrow would write of the same rows."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.model import Columns
from omendb.storage.fs import OsFileSystem
from omendb.storage.plain_parquet import write_plain
from omendb.storage.segment_writer import SCHEMA

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
FORMAT = {"omendb.format": "1"}


def made(lengths: list[int], values: list[float]) -> Columns:
    """Make rows of series of such lengths; values are repeated."""
    count = sum(lengths)
    ids = np.array([0, 5, 2**52, INT64_MAX - 1, INT64_MAX])
    if len(lengths) > 5:
        ids = np.cumsum(np.arange(len(lengths)) % 3 + 1)
    timestamp = np.concatenate([np.arange(length) * 1_000_003 - 7 for length in lengths])
    return Columns(np.repeat(ids[: len(lengths)], lengths), timestamp, np.resize(np.array(values), count))


def written(rows: Columns, path) -> bytes:
    file = OsFileSystem().create(path)
    write_plain(file, rows, FORMAT)
    file.close()
    content = path.read_bytes()
    path.unlink()
    return content


def by_arrow(rows: Columns) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        SCHEMA,
        compression="NONE",
        use_dictionary=["series_id"],
        data_page_size=1 << 30,
        max_rows_per_page=rows.count,
        dictionary_pagesize_limit=1 << 30,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        table = pa.table([rows.series_id, rows.timestamp, rows.value], schema=SCHEMA)
        writer.write_table(table, row_group_size=rows.count)
        writer.add_key_value_metadata(FORMAT)
    return sink.getvalue()


def check(rows: Columns, path) -> None:
    content = written(rows, path)
    reader = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
    table = reader.read()
    for name in ("series_id", "timestamp", "value"):
        assert table[name].to_numpy().tobytes() == getattr(rows, name).tobytes()
    assert reader.schema_arrow.equals(SCHEMA)
    assert reader.metadata.metadata == {b"omendb.format": b"1"}
    # All that Arrow says about its own file, but where things are: its run lengths may be packed bits.
    expected = pq.read_metadata(io.BytesIO(by_arrow(rows))).to_dict()
    found = reader.metadata.to_dict()
    for described in (expected, found):
        for name in ("created_by", "serialized_size"):
            del described[name]
        del described["row_groups"][0]["total_byte_size"]
        for column in described["row_groups"][0]["columns"]:
            for name in ("data_page_offset", "total_compressed_size", "total_uncompressed_size"):
                if column["path_in_schema"] == "series_id" or name == "data_page_offset":
                    del column[name]
            bounds = column["statistics"]
            if bounds is not None:
                column["statistics"] = {name: repr(value) for name, value in bounds.items()}
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.lists(st.sampled_from([1, 2, 7, 63, 64, 65, 8_191, 8_192]), min_size=1, max_size=5),
        st.lists(st.integers(1, 5), min_size=6, max_size=700),
    ),
    st.lists(
        st.one_of(st.sampled_from([0.0, -0.0, 5e-324, 1.5, -1e308]), st.floats()), min_size=1, max_size=9
    ),
)
def test_says_what_arrow_says(tmp_path_factory, lengths, values) -> None:
    check(made(lengths, values), tmp_path_factory.getbasetemp() / "plain")


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 70_000])
def test_any_number_of_series(tmp_path, count) -> None:
    check(made([1] * count, [1.5]), tmp_path / "plain")


def test_a_long_series(tmp_path) -> None:
    check(made([2_100_000, 3], [1.5, 2.5]), tmp_path / "plain")


def test_the_same_bytes_as_arrow_but_for_the_series(tmp_path) -> None:
    rows = made([20_000, 30_000], [1.5, 2.5, 0.0])

    ours, theirs = written(rows, tmp_path / "plain"), by_arrow(rows)

    def pages(content: bytes) -> bytes:
        column = pq.read_metadata(io.BytesIO(content)).row_group(0).column(1)
        start = column.data_page_offset
        return content[start : start + 2 * column.total_compressed_size]

    assert pages(ours) == pages(theirs)


def test_a_large_file_goes_to_the_disk_in_pieces() -> None:
    class Pieces:
        def __init__(self) -> None:
            self.sizes = [0]
            self.written = bytearray()

        def write(self, parts) -> None:
            for part in parts:
                self.written += part
                self.sizes[-1] += len(part)

        def sync(self) -> None:
            self.sizes.append(0)

    rows = made([400_000, 1], [1.5])
    file: Any = Pieces()
    write_plain(file, rows, FORMAT)

    assert max(file.sizes) < 2_200_000
    assert len(file.sizes) == 5
    table = pq.read_table(io.BytesIO(bytes(file.written)), page_checksum_verification=True)
    assert table["value"].to_numpy().tobytes() == rows.value.tobytes()


def test_values_of_nothing_but_nan_have_no_bounds(tmp_path) -> None:
    check(made([3], [float("nan")]), tmp_path / "plain")
