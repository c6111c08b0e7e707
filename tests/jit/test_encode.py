"""The encoder writes byte for byte what orjson writes."""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.jit import encode
from omendb.jit._compile import JIT_DISABLED
from omendb.model import AGGREGATES

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXAMPLES = 100 if JIT_DISABLED else 300
MANY = 2_000 if JIT_DISABLED else 200_000

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
LONGEST_FLOAT = -2.2250738585072014e-308

int64s = st.one_of(
    st.integers(INT64_MIN, INT64_MAX),
    st.integers(0, 18).map(lambda power: 10**power),
    st.integers(0, 18).map(lambda power: 1 - 10**power),
    st.sampled_from([INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX]),
)
bit_patterns = st.integers(0, 2**64 - 1).map(
    lambda bits: float(np.array(bits, dtype=np.uint64).view(np.float64))
)
few_decimals = st.builds(
    lambda mantissa, decimals: mantissa / 10**decimals,
    st.integers(-(10**16), 10**16),
    st.integers(0, 12),
)
powers = st.builds(
    lambda mantissa, exponent: float(f"{mantissa}e{exponent}"),
    st.integers(-99, 99),
    st.integers(-330, 306),
)
float64s = st.one_of(st.floats(), bit_patterns, few_decimals, powers)


def numbers_text(array: NDArray[Any]) -> bytes:
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def floats_text(values: NDArray[np.float64]) -> bytes:
    out = np.empty(len(values) * encode.FLOAT_BYTES_MAX, dtype=np.uint8)
    return out[: encode.write_floats(values, out)].tobytes()


def as_mapped(array: NDArray[Any]) -> NDArray[Any]:
    """Copy an array to an odd address and make it read-only, as a column of a mapped segment is."""
    buffer = np.empty(array.nbytes + 3, dtype=np.uint8)
    copy = buffer[3:].view(array.dtype)
    copy[:] = array
    copy.flags.writeable = False
    return copy


def guarded(size: int) -> NDArray[np.uint8]:
    """Allocate bytes that end where memory that cannot be touched begins."""
    space = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = np.frombuffer(mmap.mmap(-1, space + mmap.PAGESIZE), dtype=np.uint8)
    guard = ctypes.c_void_p(pages.ctypes.data + space)
    assert ctypes.CDLL(None, use_errno=True).mprotect(guard, mmap.PAGESIZE, 0) == 0
    return pages[space - size : space]


@given(st.lists(float64s, max_size=20))
@settings(deadline=None, max_examples=EXAMPLES)
def test_floats_read_as_orjson_writes_them(floats: list[float]) -> None:
    values = as_mapped(np.array(floats, dtype=np.float64))

    text = floats_text(values)

    assert text == numbers_text(np.array(floats, dtype=np.float64))


@pytest.mark.parametrize(
    ("low", "high"),
    [(INT64_MIN, INT64_MAX), (1, 2**52), (0x3E00 << 48, 0x4400 << 48)],
    ids=["any", "subnormal", "ordinary"],
)
def test_random_bits_read_as_orjson_writes_them(low: int, high: int) -> None:
    bits = np.random.default_rng(1).integers(low, high, MANY, dtype=np.int64)
    values = bits.view(np.float64)

    text = floats_text(values)

    assert text == numbers_text(values)


@pytest.mark.parametrize("decimals", range(12))
def test_rounded_values_read_as_orjson_writes_them(decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    scale = 10.0 ** generator.integers(-3, 16, MANY // 20)
    values = np.round(generator.normal(0, 1, MANY // 20) * scale, decimals)

    text = floats_text(values)

    assert text == numbers_text(values)


def test_powers_of_two_and_their_neighbours_read_as_orjson_writes_them() -> None:
    powers_of_two = np.arange(1, 2047, dtype=np.int64) << 52
    bits = np.concatenate([powers_of_two + offset for offset in (-2, -1, 0, 1, 2)])
    values = bits.view(np.float64)[:: 50 if JIT_DISABLED else 1].copy()

    text = floats_text(values)

    assert text == numbers_text(values)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, b"0.0"),
        (-0.0, b"-0.0"),
        (1.0, b"1.0"),
        (-12.5, b"-12.5"),
        (0.1 + 0.2, b"0.30000000000000004"),
        (1e15, b"1000000000000000.0"),
        (9999999999999998.0, b"9999999999999998.0"),
        (1e16, b"1e+16"),
        (1e22, b"1e+22"),
        (123456.789e30, b"1.23456789e+35"),
        (0.00001, b"0.00001"),
        (0.0000099, b"9.9e-6"),
        (1e-7, b"1e-7"),
        (5e-324, b"5e-324"),
        (LONGEST_FLOAT, b"-2.2250738585072014e-308"),
        (1.7976931348623157e308, b"1.7976931348623157e+308"),
        (float("nan"), b"null"),
        (float("inf"), b"null"),
        (float("-inf"), b"null"),
    ],
)
def test_form_of_floats(value: float, text: bytes) -> None:
    values = np.array([value])

    assert floats_text(values) == text


@given(st.lists(int64s, max_size=20))
@settings(deadline=None, max_examples=EXAMPLES)
def test_integers_read_as_orjson_writes_them(integers: list[int]) -> None:
    array = as_mapped(np.array(integers, dtype=np.int64))
    out = np.empty(len(array) * encode.INTEGER_BYTES_MAX, dtype=np.uint8)

    stop = encode.write_integers(array, out)

    assert out[:stop].tobytes() == numbers_text(np.array(integers, dtype=np.int64))


heads = st.sampled_from(
    [0, 10**8, 17 * 10**8, 17 * 10**14, -(10**8), -(10**9), INT64_MIN, INT64_MAX - 10**8 + 1]
)
tails = st.sampled_from([0, 1, 10**7, 10**8 - 1]) | st.integers(0, 10**8 - 1)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), heads | int64s, st.lists(tails, min_size=1, max_size=4)), max_size=6
    )
)
@settings(deadline=None, max_examples=EXAMPLES)
def test_integers_that_repeat_or_begin_alike_read_the_same(
    stretches: list[tuple[int, int, list[int]]],
) -> None:
    integers = [
        number
        for repeats, head, ends in stretches
        for end in ends
        for number in [min(head + end, INT64_MAX)] * repeats
    ]
    array = np.array(integers, dtype=np.int64)
    out = np.full(len(array) * encode.INTEGER_BYTES_MAX + 100, 0xAA, dtype=np.uint8)

    stop = encode.write_integers(array, out)

    assert out[:stop].tobytes() == numbers_text(array)
    # The comma after the last number is written too, and not counted.
    assert (out[stop + 1 + encode.SLACK_BYTES :] == 0xAA).all()


def test_floats_of_four_digits_before_the_point_and_after_it_read_as_orjson_writes_them() -> None:
    near = [0.0001, 0.00011, 0.0009, 0.1, 9.9999, 10.0, 999.9999, 1000.0, 9999.9999, 9999.99995, 10000.0]
    integers = np.random.default_rng(1).integers(0, 10**8, MANY // 20)
    values = np.concatenate([integers / 10.0**decimals for decimals in range(9)] + [near])
    values = np.concatenate([values, np.nextafter(values, 0), np.nextafter(values, 1e9)])
    values = np.concatenate([values, -values])

    text = floats_text(values)

    assert text == numbers_text(values)


@given(st.lists(st.tuples(int64s, int64s, float64s), max_size=10), st.booleans())
@settings(deadline=None, max_examples=EXAMPLES)
def test_rows_read_as_orjson_writes_them(rows: list[tuple[int, int, float]], mapped: bool) -> None:
    series_id = np.array([row[0] for row in rows], dtype=np.int64)
    timestamp = np.array([row[1] for row in rows], dtype=np.int64)
    value = np.array([row[2] for row in rows], dtype=np.float64)
    if mapped:
        series_id, timestamp, value = (as_mapped(array) for array in (series_id, timestamp, value))
    out = np.empty(len(rows) * encode.ROW_BYTES_MAX, dtype=np.uint8)

    stop = encode.write_rows(series_id, timestamp, value, out)

    expected = [{"series_id": row[0], "timestamp": row[1], "value": row[2]} for row in rows]
    assert out[:stop].tobytes() == orjson.dumps(expected)[1:-1]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 7, INT64_MIN, INT64_MAX]),
            st.sampled_from([0, 10**8, 17 * 10**8, 17 * 10**14, -(10**9), INT64_MIN, INT64_MAX - 10**8]),
            st.sampled_from([0, 1, 10**7, 10**8 - 1]) | st.integers(0, 10**8 - 1),
        ),
        max_size=12,
    ).map(sorted)
)
@settings(deadline=None, max_examples=EXAMPLES)
def test_rows_that_begin_like_the_row_before_read_the_same(rows: list[tuple[int, int, int]]) -> None:
    series_id = np.array([row[0] for row in rows], dtype=np.int64)
    timestamp = np.array([row[1] + row[2] for row in rows], dtype=np.int64)
    value = np.array([row[2] / 100 for row in rows], dtype=np.float64)
    out = np.empty(len(rows) * encode.ROW_BYTES_MAX, dtype=np.uint8)

    stop = encode.write_rows(series_id, timestamp, value, out)

    expected = [{"series_id": row[0], "timestamp": row[1] + row[2], "value": row[2] / 100} for row in rows]
    assert out[:stop].tobytes() == orjson.dumps(expected)[1:-1]


@given(
    st.lists(st.tuples(int64s, int64s, int64s, float64s), max_size=5),
    st.lists(st.sampled_from(AGGREGATES), unique=True),
    st.booleans(),
)
@settings(deadline=None, max_examples=EXAMPLES)
def test_windows_read_as_orjson_writes_them(
    windows: list[tuple[int, int, int, float]], aggregates: list[str], has_series: bool
) -> None:
    counts = np.array([window[2] for window in windows], dtype=np.int64)
    floats = np.array([window[3] for window in windows], dtype=np.float64)
    columns = {name: counts if name == "count" else floats for name in aggregates}
    series_id = np.array([window[0] for window in windows], dtype=np.int64)
    timestamp = np.array([window[1] for window in windows], dtype=np.int64)
    room = len(windows) * encode.window_bytes_max(len(columns))
    out = np.empty(room, dtype=np.uint8)

    stop = encode.write_windows(series_id if has_series else None, timestamp, columns, out)

    expected = [
        ({"series_id": series} if has_series else {})
        | {"timestamp": start}
        | {name: count if name == "count" else value for name in aggregates}
        for series, start, count, value in windows
    ]
    assert out[:stop].tobytes() == orjson.dumps(expected)[1:-1]


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_longest_rows_stay_within_their_room(count: int) -> None:
    integers = np.full(count, INT64_MIN)
    floats = np.full(count, LONGEST_FLOAT)
    room = count * encode.ROW_BYTES_MAX
    out = np.full(7 + room + 100, 0xAA, dtype=np.uint8)

    stop = encode.write_rows(integers, integers, floats, out[: 7 + room], 7)

    assert (out[:7] == 0xAA).all()
    assert (out[7 + room :] == 0xAA).all()
    length = encode.ROW_BYTES_MAX - encode.SLACK_BYTES
    assert stop == 7 + max(0, count * length - 1)


@given(st.lists(float64s, min_size=1, max_size=3), int64s)
@settings(deadline=None, max_examples=EXAMPLES)
def test_no_byte_beyond_the_room_is_touched(floats: list[float], integer: int) -> None:
    values = np.array(floats)
    integers = np.full(len(values), integer)

    encode.write_floats(values, guarded(len(values) * encode.FLOAT_BYTES_MAX))
    encode.write_integers(integers, guarded(len(values) * encode.INTEGER_BYTES_MAX))
    encode.write_rows(integers, integers, values, guarded(len(values) * encode.ROW_BYTES_MAX))
    encode.write_windows(
        integers, integers, {"stddev": values}, guarded(len(values) * encode.window_bytes_max(1))
    )


@given(float64s)
@settings(deadline=None, max_examples=EXAMPLES)
def test_slack_covers_what_is_written_beyond_the_text(value: float) -> None:
    values = np.array([value])
    out = np.full(200, 0xAA, dtype=np.uint8)

    stop = encode.write_floats(values, out)

    # The comma after the last number is written too, and not counted.
    assert (out[stop + 1 + encode.SLACK_BYTES :] == 0xAA).all()


def test_short_output_is_refused() -> None:
    integers = np.zeros(2, dtype=np.int64)

    with pytest.raises(AssertionError):
        encode.write_integers(integers, np.empty(2 * encode.INTEGER_BYTES_MAX, dtype=np.uint8), 1)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4,), dtype=np.int64)[::2], np.zeros(2, dtype=np.int32), np.zeros(2)],
    ids=["not contiguous", "narrow", "float"],
)
def test_arrays_that_the_kernel_would_misread_are_refused(array: NDArray[Any]) -> None:
    out = np.empty(10 * encode.INTEGER_BYTES_MAX, dtype=np.uint8)

    with pytest.raises(AssertionError):
        encode.write_integers(array, out)


def test_columns_of_different_lengths_are_refused() -> None:
    integers = np.zeros(2, dtype=np.int64)
    out = np.empty(10 * encode.ROW_BYTES_MAX, dtype=np.uint8)

    with pytest.raises(AssertionError):
        encode.write_rows(integers, integers, np.zeros(1), out)


def test_powers_of_ten_are_rounded_up_by_less_than_one_unit() -> None:
    words = encode.POWERS_OF_TEN.view(np.uint64).tolist()

    for power in range(encode.POWER_MIN, encode.POWER_MAX + 1):
        index = 2 * (power - encode.POWER_MIN)
        leading = words[index] << 64 | words[index + 1]
        shift = ((power * 1_741_647) >> 19) - 127  # 10**power = leading * 2**shift, rounded up
        numerator = 10 ** max(power, 0) << max(-shift, 0)
        denominator = 10 ** max(-power, 0) << max(shift, 0)
        assert leading >> 127 == 1
        assert (leading - 1) * denominator < numerator <= leading * denominator
