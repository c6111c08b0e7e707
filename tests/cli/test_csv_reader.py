from __future__ import annotations

import gzip
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.cli import csv_reader
from omendb.cli.csv_reader import CsvReader
from omendb.errors import InvalidRequestError

INT64 = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(
    st.tuples(st.integers(0, 2**63 - 1), INT64, st.floats(allow_nan=False, allow_infinity=False)),
    max_size=40,
)


def read(text: bytes | io.RawIOBase, *, header: bool = True, batch_rows: int = 50_000) -> list[Any]:
    source: Any = io.BytesIO(text) if isinstance(text, bytes) else text
    batches = CsvReader(source, header=header, batch_rows=batch_rows).batches()
    return [list(zip(*(c.tolist() for c in part.batch), strict=True)) for part in batches]


def error_of(text: bytes, *, header: bool = True) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        read(text, header=header)
    return str(caught.value)


class Pipe(io.RawIOBase):
    """Gives a byte or a few at a time, as a pipe may."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data = io.BytesIO(data)
        self._piece = piece

    def read(self, size: int = -1, /) -> bytes:
        return self._data.read(min(size, self._piece) if size >= 0 else self._piece)


@given(ROWS, st.integers(1, 7), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 9))
def test_every_row_arrives_once_and_in_order(
    rows: list[tuple[int, int, float]], batch_rows: int, newline: str, compress: bool, piece: int
) -> None:
    lines = ["timestamp,value,series_id"] + [f"{t},{v!r},{s}" for s, t, v in rows]
    data = newline.join(lines).encode()
    if compress:
        data = gzip.compress(data, mtime=0)

    batches = read(Pipe(data, piece), batch_rows=batch_rows)

    assert [row for batch in batches for row in batch] == rows
    assert all(1 <= len(batch) <= batch_rows for batch in batches)


def test_small_blocks_keep_lines_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES_MIN", 7)
    monkeypatch.setattr(csv_reader, "ROW_BYTES_TYPICAL", 1)
    rows = [(i, 10**i, i / 7) for i in range(18)]
    text = "".join(f"{s},{t},{v!r}\n" for s, t, v in rows).encode()

    batches = read(text, header=False, batch_rows=3)

    assert [row for batch in batches for row in batch] == rows


def test_bytes_read_count_the_compressed_source_and_end_at_its_size() -> None:
    text = b"series_id,timestamp,value\n" + b"1,2,3\n" * 100_000
    data = gzip.compress(text)

    batches = list(CsvReader(io.BytesIO(data), header=True, batch_rows=50_000).batches())

    assert len(batches) == 2
    assert batches[-1].bytes_read == len(data)


def test_gzip_of_several_members_is_read_to_its_end() -> None:
    data = gzip.compress(b"series_id,timestamp,value\n1,1,1\n") + gzip.compress(b"1,2,2\n")

    assert read(data) == [[(1, 1, 1.0), (1, 2, 2.0)]]


def test_header_names_columns_in_any_order_with_a_byte_order_mark() -> None:
    assert read(b"\xef\xbb\xbfvalue, series_id ,timestamp\n0.5,7,9\n") == [[(7, 9, 0.5)]]


def test_header_alone_is_no_rows() -> None:
    assert read(b"series_id,timestamp,value\n") == []
    assert read(b"series_id,timestamp,value") == []


def test_blank_lines_are_passed_over() -> None:
    assert read(b"\n1,2,3\n\r\n\n4,5,6\n\n", header=False) == [[(1, 2, 3.0), (4, 5, 6.0)]]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"1,x,3", "line 4: timestamp must be a whole number of 64 bits, got 'x'"),
        (b"1,2.5,3", "line 4: timestamp must be a whole number of 64 bits, got '2.5'"),
        (b"1,9223372036854775808,3", "got '9223372036854775808'"),
        (b"1,2,", "line 4: value must be a number, got ''"),
        (b"1,2", "line 4: expected 3 columns, got 2"),
        (b"1,2,3,4", "line 4: expected 3 columns, got 4"),
        (b"-1,2,3", "line 4: series_id must be at least 0, got -1"),
        (b"1,2,nan", "line 4: value must be finite, got nan"),
        (b"1,2,-inf", "line 4: value must be finite, got -inf"),
        (b"\xff,2,3", "line 4: series_id must be a whole number"),
    ],
)
def test_errors_name_the_line_also_after_a_blank_one(line: bytes, told: str) -> None:
    assert told in error_of(b"series_id,timestamp,value\n1,1,1\n\n" + line + b"\n1,5,5\n")


def test_errors_name_the_line_in_a_later_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES_MIN", 64)
    monkeypatch.setattr(csv_reader, "ROW_BYTES_TYPICAL", 0)
    text = b"".join(b"1,%d,1\n" % i for i in range(1000)) + b"1,oops,1\n"

    assert "line 1001: timestamp" in error_of(text, header=False)


@pytest.mark.parametrize("head", [b"1,2,3", b"series_id,timestamp", b"series_id,timestamp,value,unit"])
def test_header_that_does_not_name_the_columns_is_refused(head: bytes) -> None:
    assert "line 1: the header must name the columns" in error_of(head + b"\n1,2,3\n")


def test_empty_input_is_refused_where_a_header_is_expected() -> None:
    assert "empty" in error_of(b"")
    assert read(b"", header=False) == []


def test_cut_off_gzip_is_refused() -> None:
    text = b"series_id,timestamp,value\n" + b"".join(b"1,%d,3\n" % i for i in range(100_000))

    assert "damaged or cut off" in error_of(gzip.compress(text)[:-100])


def test_endless_line_is_refused_instead_of_held() -> None:
    assert "longer than" in error_of(b"\0" * (3 << 20), header=False)


def test_columns_have_the_types_of_a_batch() -> None:
    (part,) = CsvReader(io.BytesIO(b"1,2,3\n"), header=False, batch_rows=10).batches()

    assert [column.dtype for column in part.batch] == [np.int64, np.int64, np.float64]
