"""Short log records read in bulk are those that the reader of single records finds; anything else is left to it."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from omendb.jit import records
from omendb.storage import format  # noqa: A004

SECRET = records.SECRET.ctypes.data
SEEDS = (0, 1, 2**31, 2**63 - 1)


def record(sequence: int, rows: list[tuple[int, int, float]], *, one_series: bool = False) -> bytes:
    series, timestamp, value = (np.array(column) for column in zip(*rows, strict=True))
    columns = [series[:1] if one_series else series, timestamp, value.astype(np.float64)]
    payload = b"".join(column.tobytes() for column in columns)
    head = format.WAL_RECORD_HEADER.pack(
        format.WAL_RECORD_MAGIC,
        format.RECORD_SERIES if one_series else format.RECORD_POINTS,
        sequence,
        0,
        len(rows),
        len(payload),
        format.checksum(payload, sequence),
        0,
    )[:-8]
    return head + format.checksum(head).to_bytes(8, "little") + payload


def read(data: bytes, start: int = 0, covered: int = 0, room: int = 100):
    """Return the sequences of the first record and behind the last, the rows, and where reading stopped."""
    series, timestamp, bits = (np.full(room, -7, np.int64) for _ in range(3))
    address = np.frombuffer(data, np.uint8).ctypes.data
    count, rows, first, stop = records.read_short_records(
        address, start, len(data), covered, SECRET, series, timestamp, bits
    )
    columns = series[:rows], timestamp[:rows], bits[:rows].view(np.float64)
    return (first, first + count), list(zip(*(c.tolist() for c in columns), strict=True)), stop


def test_the_kernel_knows_the_format() -> None:
    assert records.MAGIC == format.WAL_RECORD_MAGIC
    assert (records.KIND_POINTS, records.KIND_SERIES) == (format.RECORD_POINTS, format.RECORD_SERIES)
    assert format.WAL_RECORD_HEADER.size == 8 * records.HEADER_WORDS


def test_checksums_are_those_of_the_library() -> None:
    data = np.random.default_rng(1).integers(0, 256, records.PAYLOAD_BYTES_MAX, dtype=np.uint8)
    for size in range(17, records.PAYLOAD_BYTES_MAX + 1):
        for seed in SEEDS:
            found = int(records.checksum_short(data.ctypes.data, size, seed, SECRET)) & (2**64 - 1)
            assert found == xxhash.xxh3_64_intdigest(data[:size].tobytes(), seed), (size, seed)


rows_of_one = st.lists(
    st.tuples(
        st.integers(0, 2**63 - 1),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=10,
)


@given(st.lists(rows_of_one, max_size=6), st.integers(0, 8))
@example([[(2**63 - 1, -(2**63), -0.0)]], 0)
def test_rows_come_back(batches, covered) -> None:
    data = b"".join(record(sequence, rows) for sequence, rows in enumerate(batches, 1))

    (first, after), rows, stop = read(data, covered=covered)

    assert stop == len(data)
    assert after - first == len(batches)
    assert rows == [row for batch in batches[covered:] for row in batch]


def test_records_of_one_series() -> None:
    rows = [(5, timestamp, timestamp / 2) for timestamp in range(14)]

    assert read(record(9, rows, one_series=True)) == ((9, 10), rows, 8 * 6 + 8 + 14 * 16)


def test_it_stops_in_front_of_what_is_not_next_or_does_not_fit() -> None:
    first, third = record(1, [(1, 1, 1.0)]), record(3, [(3, 3, 3.0)])
    long = record(2, [(1, n, 1.0) for n in range(11)])

    assert read(first + third) == ((1, 2), [(1, 1, 1.0)], len(first))
    assert read(first + long) == ((1, 2), [(1, 1, 1.0)], len(first))
    assert read(first + record(2, [(2, 2, 2.0)]), room=1)[2] == len(first)
    assert read(first, room=0) == ((0, 0), [], 0)


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_every_damaged_byte_and_every_cut_stops_it(rows) -> None:
    good = record(1, [(1, 1, 1.0)])
    damaged = record(2, [(n, n, 0.5) for n in range(rows)])
    for offset in range(len(damaged)):
        # The synced sequence, bytes 16 to 23, is under the header's checksum like everything else.
        flipped = damaged[:offset] + bytes([damaged[offset] ^ 0x10]) + damaged[offset + 1 :]
        assert read(good + flipped)[2] == len(good), offset
        assert read(good + damaged[:offset])[2] == len(good), offset
