"""JSON text of query answers, written straight from columns into a byte array.

One kernel writes records of any shape: a record is a list of *fields* (a text, then a number from a
column) and a text at its end. Rows, windows and the bare columns of ``format=columns`` differ in
their texts only, so that one compiled kernel serves them all; the functions around it build its
table.

Numbers read as `orjson` writes them since 3.11.9: integers in full, floats as the shortest decimal
that gives the same float64 again, the closest one when several are as short; NaN and the infinities
become ``null``.

The kernel writes eight bytes at a time through addresses and may touch `SLACK_BYTES` bytes after
its last character. The ``*_BYTES_MAX`` constants include them: an output of
``count * ROW_BYTES_MAX`` bytes is always enough. Columns may be read-only and at any alignment, but
must be contiguous. Everything here is a pure function of its arguments and safe in any thread.
"""

from __future__ import annotations

import ctypes
import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from omendb.jit._compile import (
    JIT_DISABLED,
    Function,
    inline_kernel,
    kernel,
    load_f64,
    load_i64,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

SLACK_BYTES = 16
"""How far beyond the last character the kernel may write."""
INTEGER_BYTES_MAX = 20 + 1 + SLACK_BYTES
"""Room that `write_integers` asks for per number: ``-9223372036854775808,``."""
FLOAT_BYTES_MAX = 24 + 1 + SLACK_BYTES
"""Room that `write_floats` asks for per number: ``-1.2345678901234567e-308,``."""
ROW_BYTES_MAX = 13 + 20 + 13 + 20 + 9 + 24 + 2 + SLACK_BYTES
"""Room that `write_rows` asks for per row."""

NAME_BYTES_MAX = 12
"""The longest name of an aggregate that `write_windows` accepts."""

# Words of a field of a record.
FIELD_ADDRESS = 0  # of the column: int64[n] or float64[n], any alignment
FIELD_FLOAT = 1  # 1 when the column is float64, 0 when it is int64
FIELD_TEXT = 2  # the text before the number: two words, little-endian, zero-padded
FIELD_TEXT_BYTES = 4
FIELD_WIDTH = 5

_WORD_MASK = (1 << 64) - 1
_FRACTION_MASK = (1 << 52) - 1
_HIDDEN_BIT = 1 << 52
_HUNDRED_MILLION = 10**8
_ASCII_ZEROS = 0x3030303030303030
_NULL = int.from_bytes(b"null", "little")
_MINUS = ord("-")
_POINT = ord(".")
_ZERO = ord("0")
_COMMA = ord(",")
_RECORD_END = int.from_bytes(b"},", "little")
_SERIES = '{"series_id":'
_TIMESTAMP = ',"timestamp":'
_LEADING_ZEROS = int.from_bytes(b"0.000000", "little")


def write_rows(
    series_id: NDArray[np.int64],
    timestamp: NDArray[np.int64],
    value: NDArray[np.float64],
    out: NDArray[np.uint8],
    position: int = 0,
) -> int:
    """Write rows as ``{"series_id":1,"timestamp":2,"value":3.5},{...}``, without brackets.

    Parameters
    ----------
    series_id, timestamp : ndarray of int64, shape (n,)
    value : ndarray of float64, shape (n,)
        NaN and the infinities become ``null``.
    out : ndarray of uint8
        Written from `position` on; needs ``n * ROW_BYTES_MAX`` bytes there.
    position : int

    Returns
    -------
    int
        The position after the last character; `position` itself when there are no rows.
    """
    fields = _rows_template().copy()
    count = len(timestamp)
    _set_column(fields, 0, series_id, count)
    _set_column(fields, 1, timestamp, count)
    _set_column(fields, 2, value, count)
    return _write(fields, _RECORD_END, 2, count, out, position, ROW_BYTES_MAX)


def write_windows(
    series_id: NDArray[np.int64] | None,
    timestamp: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any]],
    out: NDArray[np.uint8],
    position: int = 0,
) -> int:
    """Write windows as ``{"series_id":1,"timestamp":2,"mean":3.5},{...}``, without brackets.

    Parameters
    ----------
    series_id : ndarray of int64, shape (n,), or None
        Without it the records begin with the timestamp.
    timestamp : ndarray of int64, shape (n,)
    columns : mapping of str to ndarray of int64 or float64, shape (n,)
        One entry an aggregate, in the order to be written. Names need no escaping in JSON and have
        at most `NAME_BYTES_MAX` characters.
    out : ndarray of uint8
        Written from `position` on; needs ``n * window_bytes_max(len(columns))`` bytes there.
    position : int

    Returns
    -------
    int
        The position after the last character; `position` itself when there are no windows.
    """
    names = tuple((name, column.dtype.kind == "f") for name, column in columns.items())
    fields = _windows_template(names, has_series=series_id is not None).copy()
    count = len(timestamp)
    keys = (timestamp,) if series_id is None else (series_id, timestamp)
    for index, column in enumerate((*keys, *columns.values())):
        _set_column(fields, index, column, count)
    bytes_max = window_bytes_max(len(columns))
    return _write(fields, _RECORD_END, 2, count, out, position, bytes_max)


def window_bytes_max(column_count: int) -> int:
    """Return the room that `write_windows` asks for per window of so many aggregates."""
    return 13 + 20 + 13 + 20 + column_count * (NAME_BYTES_MAX + 4 + 24) + 2 + SLACK_BYTES


def write_integers(array: NDArray[np.int64], out: NDArray[np.uint8], position: int = 0) -> int:
    """Write integers as ``1,2,3``, without brackets; return the position after the last digit.

    Parameters
    ----------
    array : ndarray of int64, shape (n,)
    out : ndarray of uint8
        Written from `position` on; needs ``n * INTEGER_BYTES_MAX`` bytes there.
    position : int
    """
    fields = _numbers_template(is_float=False).copy()
    _set_column(fields, 0, array, len(array))
    return _write(fields, _COMMA, 1, len(array), out, position, INTEGER_BYTES_MAX)


def write_floats(array: NDArray[np.float64], out: NDArray[np.uint8], position: int = 0) -> int:
    """Write floats as ``1.0,2.5,null``, without brackets; return the position after them.

    Parameters
    ----------
    array : ndarray of float64, shape (n,)
        NaN and the infinities become ``null``.
    out : ndarray of uint8
        Written from `position` on; needs ``n * FLOAT_BYTES_MAX`` bytes there.
    position : int
    """
    fields = _numbers_template(is_float=True).copy()
    _set_column(fields, 0, array, len(array))
    return _write(fields, _COMMA, 1, len(array), out, position, FLOAT_BYTES_MAX)


def warmup() -> None:
    """Compile the kernels, or load them from the cache, for the array types that queries pass."""
    out = np.empty(4 * ROW_BYTES_MAX, dtype=np.uint8)
    for writeable in (True, False):
        integers = np.zeros(1, dtype=np.int64)
        floats = np.zeros(1, dtype=np.float64)
        integers.flags.writeable = writeable
        floats.flags.writeable = writeable
        write_rows(integers, integers, floats, out)
        write_integers(integers, out)


@lru_cache(maxsize=1)
def _rows_template() -> NDArray[np.int64]:
    return record_template(((_SERIES, False), (_TIMESTAMP, False), (',"value":', True)))


@lru_cache(maxsize=128)
def _windows_template(columns: tuple[tuple[str, bool], ...], *, has_series: bool) -> NDArray[np.int64]:
    texts = tuple((f',"{name}":', is_float) for name, is_float in columns)
    if not has_series:
        return record_template((("{" + _TIMESTAMP[1:], False), *texts))
    return record_template(((_SERIES, False), (_TIMESTAMP, False), *texts))


@lru_cache(maxsize=2)
def _numbers_template(*, is_float: bool) -> NDArray[np.int64]:
    return record_template((("", is_float),))


def record_template(texts: tuple[tuple[str, bool], ...]) -> NDArray[np.int64]:
    """Make the fields of a record out of each one's text and whether it is a float, without addresses."""
    fields = np.zeros((len(texts), FIELD_WIDTH), dtype=np.int64)
    for field, (text, is_float) in zip(fields, texts, strict=True):
        encoded = text.encode("ascii")
        assert len(encoded) <= 16
        field[FIELD_FLOAT] = is_float
        field[FIELD_TEXT : FIELD_TEXT + 2] = np.frombuffer(encoded.ljust(16, b"\0"), dtype="<i8")
        field[FIELD_TEXT_BYTES] = len(encoded)
    fields.flags.writeable = False
    return fields


def _set_column(fields: NDArray[np.int64], index: int, column: NDArray[Any], count: int) -> None:
    """Put a column into a field. The kernel reads it by address, so check all that it relies on."""
    assert len(column) == count
    assert column.flags.c_contiguous
    assert column.dtype == (np.float64 if fields[index, FIELD_FLOAT] else np.int64)
    fields[index, FIELD_ADDRESS] = address_of(column)


def _write(
    fields: NDArray[np.int64],
    end_text: int,
    end_bytes: int,
    count: int,
    out: NDArray[np.uint8],
    position: int,
    bytes_max: int,
) -> int:
    """Write records without the comma after the last; return the position after them."""
    if count == 0:
        return position
    assert out.flags.c_contiguous
    assert out.flags.writeable
    assert 0 <= position
    assert position + count * bytes_max <= out.nbytes
    address = address_of(out)
    return write_records(fields, end_text, end_bytes, count, address + position) - address - 1


@kernel
def address_of(array: NDArray[Any]) -> int:
    """Return the address of an array's data, several times faster than ``array.ctypes.data``."""
    address: int = array.ctypes.data
    return address


POWER_MIN = -342
POWER_MAX = 324


def _powers_of_ten() -> NDArray[np.int64]:
    """Compute the 128 leading bits of the powers of ten, rounded up.

    Returns
    -------
    ndarray of int64, shape (2 * (POWER_MAX - POWER_MIN + 1),)
        High and low word of ``ceil(10**k * 2**-r)`` for k from `POWER_MIN` on, as bit patterns,
        with r such that the highest bit is set.
    """
    words = []
    for power in range(POWER_MIN, POWER_MAX + 1):
        if power >= 0:
            excess = (10**power).bit_length() - 128
            leading = -(-(10**power) >> excess) if excess > 0 else 10**power << -excess
        else:
            shift = (10**-power).bit_length() + 127
            leading = -(-(1 << shift) // 10**-power)
        assert leading.bit_length() == 128
        words += [leading >> 64, leading & _WORD_MASK]
    return np.array(words, dtype=np.uint64).view(np.int64)


POWERS_OF_TEN = _powers_of_ten()


def instruction(
    emit: Callable[..., Any],
    result: Any = types.int64,  # noqa: ANN401
) -> Callable[[Function], Function]:
    """Make the decorated function of int64 words compile to the instructions that `emit` builds.

    The function's own body is their meaning in plain Python, and runs when the JIT is disabled.
    """

    def decorate(function: Function) -> Function:
        if JIT_DISABLED:
            return function

        def typed(typingctx: Any, *words: Any) -> Any:  # noqa: ANN401
            def codegen(context: Any, builder: Any, _: Any, values: Any) -> Any:  # noqa: ANN401
                emitted = emit(builder, *values)
                return context.get_dummy_value() if emitted is None else emitted

            return result(*(types.int64 for _ in words)), codegen

        # Numba passes as many arguments as the signature names, without packing them.
        context, *_ = inspect.signature(typed).parameters.values()
        words = inspect.signature(function).parameters.values()
        typed.__signature__ = inspect.Signature([context, *words])  # type: ignore[attr-defined]
        return cast("Function", intrinsic(typed))

    return decorate


_I1 = ir.IntType(1)
_I64 = ir.IntType(64)
_I128 = ir.IntType(128)


def _emit_store(builder: Any, address: Any, word: Any) -> None:  # noqa: ANN401
    builder.store(word, builder.inttoptr(address, _I64.as_pointer()), align=1)


def _emit_divide(builder: Any, dividend: Any, divisor: Any) -> Any:  # noqa: ANN401
    return builder.udiv(dividend, divisor)


def _emit_leading_zero_bytes(builder: Any, word: Any) -> Any:  # noqa: ANN401
    return builder.lshr(builder.ctlz(word, ir.Constant(_I1, 0)), ir.Constant(_I64, 3))


def _emit_trailing_zero_bytes(builder: Any, word: Any) -> Any:  # noqa: ANN401
    return builder.lshr(builder.cttz(word, ir.Constant(_I1, 0)), ir.Constant(_I64, 3))


def _emit_scale_to_odd(builder: Any, high: Any, low: Any, factor: Any) -> Any:  # noqa: ANN401
    high, low, factor = (builder.zext(word, _I128) for word in (high, low, factor))
    sixty_four = ir.Constant(_I128, 64)
    carried = builder.lshr(builder.mul(low, factor), sixty_four)
    scaled = builder.add(builder.mul(high, factor), carried)
    inexact = builder.icmp_unsigned(">", builder.trunc(scaled, _I64), ir.Constant(_I64, 1))
    whole = builder.trunc(builder.lshr(scaled, sixty_four), _I64)
    return builder.or_(whole, builder.zext(inexact, _I64))


@instruction(_emit_store, types.void)
def store_word(address: int, word: int) -> None:
    """Write eight bytes, the lowest first, at any alignment."""
    ctypes.c_int64.from_address(address).value = word


@instruction(_emit_divide)
def divide(dividend: int, divisor: int) -> int:
    """Divide unsigned words: no code for signs, and the lowest int64 counts as ``2**63``."""
    return dividend // divisor


@instruction(_emit_leading_zero_bytes)
def leading_zero_bytes(word: int) -> int:
    """Count the zero bytes at the high end of a word that is not negative; 8 when it is 0."""
    return (64 - word.bit_length()) >> 3


@instruction(_emit_trailing_zero_bytes)
def trailing_zero_bytes(word: int) -> int:
    """Count the zero bytes at the low end of a word; 8 when it is 0."""
    return ((word & -word).bit_length() - 1) >> 3 if word else 8


@instruction(_emit_scale_to_odd)
def scale_to_odd(high: int, low: int, factor: int) -> int:
    """Multiply a 128-bit number by a 64-bit one; keep the highest 64 bits, rounded to odd.

    Notes
    -----
    The lowest bit is set when the 64 bits below hold more than 1, the error of a rounded factor.
    """
    scaled = ((high & _WORD_MASK) << 64 | (low & _WORD_MASK)) * factor >> 64
    return scaled >> 64 | (scaled & _WORD_MASK > 1)


@inline_kernel
def _eight_digits(number: int) -> int:
    """Spread a number below 10**8 over eight bytes, a decimal digit each, the first one lowest.

    Notes
    -----
    Halves, then quarters, then eighths, all lanes of a step in one multiplication [1]_. No step
    exceeds 63 bits.

    References
    ----------
    .. [1] Mula, SSE: conversion integers to decimal representation, 2011, in 64-bit words.
    """
    high = divide(number, 10_000)
    pair = high | (number - high * 10_000) << 32
    hundreds = (pair * 10_486) >> 20 & 0x7F_0000_007F
    quads = hundreds | (pair - hundreds * 100) << 16
    tens = (quads * 103) >> 10 & 0x000F_000F_000F_000F
    return tens | (quads - tens * 10) << 8


@inline_kernel
def _write_natural(address: int, number: int) -> int:
    """Write an unsigned word in decimal; return the address after it."""
    high = divide(number, _HUNDRED_MILLION)
    digits = _eight_digits(number - high * _HUNDRED_MILLION)
    if high == 0:
        skip = trailing_zero_bytes(digits | 1 << 56)
        store_word(address, (digits | _ASCII_ZEROS) >> (8 * skip))
        return address + 8 - skip
    top = divide(high, _HUNDRED_MILLION)
    middle = _eight_digits(high - top * _HUNDRED_MILLION)
    if top == 0:
        skip = trailing_zero_bytes(middle)
        store_word(address, (middle | _ASCII_ZEROS) >> (8 * skip))
        address -= skip
    else:
        leading = _eight_digits(top)
        skip = trailing_zero_bytes(leading)
        store_word(address, (leading | _ASCII_ZEROS) >> (8 * skip))
        address += 8 - skip
        store_word(address, middle | _ASCII_ZEROS)
    store_word(address + 8, digits | _ASCII_ZEROS)
    return address + 16


@inline_kernel
def _write_integer(address: int, number: int) -> int:
    """Write an int64 in decimal; return the address after it."""
    if number < 0:
        store_word(address, _MINUS)
        address += 1
        number = -number  # the lowest int64 stays as it is, which read unsigned is its magnitude
    return _write_natural(address, number)


@kernel
def _write_any_float(address: int, bits: int) -> int:
    """Write a positive finite float64 as its shortest decimal; return the address after it.

    Parameters
    ----------
    address : int
        Where to write up to 24 characters and `SLACK_BYTES`.
    bits : int
        The float's bits without the sign, neither 0 nor those of an infinity or NaN.

    Notes
    -----
    Schubfach [1]_ with 128-bit powers of ten. Numbers in ``[1e-5, 1e16)`` get no exponent.

    References
    ----------
    .. [1] Giulietti, The Schubfach way to render doubles, 2021, sec. 9 and figure 7.
    """
    fraction = bits & _FRACTION_MASK
    biased = bits >> 52
    if biased == 0:
        significand = fraction
        binary_exponent = -1074
    else:
        significand = fraction | _HIDDEN_BIT
        binary_exponent = biased - 1075
    odd = significand & 1
    closer = 1 if fraction == 0 and biased > 1 else 0  # the lower neighbour is half as far away

    # 10**exponent is the largest power of ten not above the width of the rounding interval.
    exponent = (binary_exponent * 1_262_611 - closer * 524_031) >> 22
    shift = binary_exponent + ((-exponent * 1_741_647) >> 19) + 1
    index = 2 * (-exponent - POWER_MIN)
    high = int(POWERS_OF_TEN[index])
    low = int(POWERS_OF_TEN[index + 1])
    lower = scale_to_odd(high, low, (4 * significand - 2 + closer) << shift) + odd
    middle = scale_to_odd(high, low, (4 * significand) << shift)
    upper = scale_to_odd(high, low, (4 * significand + 2) << shift) - odd

    digits = middle >> 2
    tenth = divide(digits, 10)
    tenth_below_inside = lower <= 40 * tenth
    tenth_above_inside = 40 * tenth + 40 <= upper
    if digits >= 10 and tenth_below_inside != tenth_above_inside:
        exponent += 1
        digits = tenth + (1 if tenth_above_inside else 0)
    else:
        below_inside = lower <= 4 * digits
        above_inside = 4 * digits + 4 <= upper
        if below_inside != above_inside:
            digits += 1 if above_inside else 0
        else:
            half = 4 * digits + 2
            digits += 1 if middle > half or (middle == half and digits & 1) else 0

    length = 17
    while digits < 10**16:
        digits *= 10
        length -= 1
    first = divide(digits, 10**16)
    rest = digits - first * 10**16
    upper_half = divide(rest, _HUNDRED_MILLION)
    second = _eight_digits(upper_half)
    third = _eight_digits(rest - upper_half * _HUNDRED_MILLION)
    significant = 17 - leading_zero_bytes(third) if third else 9 - leading_zero_bytes(second)
    first += _ZERO
    second |= _ASCII_ZEROS
    third |= _ASCII_ZEROS

    point = length + exponent  # digits before the decimal point
    if 0 < point <= 16:
        store_word(address, first)
        store_word(address + 1, second)
        store_word(address + 9, third)
        tail = address + point
        low = load_i64(tail, 0)
        high = load_i64(tail, 1)
        store_word(tail, _POINT)
        store_word(tail + 1, low)
        store_word(tail + 9, high)
        return address + max(significant, point + 1) + 1
    if -5 < point <= 0:
        store_word(address, _LEADING_ZEROS)
        address += 2 - point
        store_word(address, first)
        store_word(address + 1, second)
        store_word(address + 9, third)
        return address + significant
    store_word(address, first | _POINT << 8)
    store_word(address + 2, second)
    store_word(address + 10, third)
    address += significant + 1 if significant > 1 else 1
    point -= 1
    store_word(address, 0x2B65 if point > 0 else 0x2D65)  # e+ or e-
    return _write_natural(address + 2, abs(point))


@inline_kernel
def _write_float(address: int, bits: int, value: float) -> int:
    """Write a float64, given as bits and as value; return the address after it.

    Notes
    -----
    Most stored values have few decimals. When an integer m below 10**15 divided by 10**k gives
    exactly the value, then m * 10**-k is its shortest decimal: no two decimals of up to 15 digits
    share a float64, so a shorter one cannot exist. The division rounds correctly, so the test is
    exact.
    """
    magnitude = abs(value)
    store_word(address, _MINUS)
    start = address
    if bits < 0:
        address += 1
    if magnitude < 1e4:
        scaled = int(magnitude * 1e4 + 0.5)
        if float(scaled) / 1e4 == magnitude:
            # Four digits on each side of the point, spread in one step.
            digits = _eight_digits(scaled)
            text = digits | _ASCII_ZEROS
            skip = min(trailing_zero_bytes(digits), 3)
            store_word(address, text >> (8 * skip))
            address += 4 - skip
            store_word(address, text >> 32 << 8 | _POINT)
            return address + 5 - min(leading_zero_bytes(digits), 3)
    whole = 0
    fraction = 0
    found = False
    if magnitude < 1e7:
        scaled = int(magnitude * 1e8 + 0.5)
        whole = divide(scaled, _HUNDRED_MILLION)
        fraction = scaled - whole * _HUNDRED_MILLION
        # Below 1e-5 a float is written with an exponent.
        found = float(scaled) / 1e8 == magnitude and (scaled >= 1000 or scaled == 0)
    elif magnitude < 1e12:
        scaled = int(magnitude * 1e3 + 0.5)
        whole = divide(scaled, 1000)
        fraction = (scaled - whole * 1000) * 100_000
        found = float(scaled) / 1e3 == magnitude
    elif magnitude < 1e15:
        whole = int(magnitude)
        found = float(whole) == magnitude
    if found:
        address = _write_natural(address, whole)
        digits = _eight_digits(fraction)
        store_word(address, _POINT)
        store_word(address + 1, digits | _ASCII_ZEROS)
        return address + 9 - min(leading_zero_bytes(digits), 7)
    if not magnitude <= 1.7976931348623157e308:
        store_word(start, _NULL)
        return start + 4
    return _write_any_float(address, bits & 0x7FFF_FFFF_FFFF_FFFF)


@kernel
def write_records(
    fields: NDArray[np.int64],
    end_text: int,
    end_bytes: int,
    count: int,
    address: int,
) -> int:
    """Write `count` records; return the address after the last.

    Parameters
    ----------
    fields : ndarray of int64, shape (m, FIELD_WIDTH)
        Columns of at least `count` numbers, and the texts before them.
    end_text, end_bytes : int
        Up to eight characters after each record, as a little-endian word, and how many.
    count : int
    address : int
        Where to write. The caller makes sure of the room.
    """
    if (
        len(fields) == 3
        and fields[0, FIELD_FLOAT] == 0
        and fields[1, FIELD_FLOAT] == 0
        and fields[2, FIELD_FLOAT] == 1
    ):
        return write_points(fields, end_text, end_bytes, count, address)
    if len(fields) == 1 and fields[0, FIELD_TEXT_BYTES] == 0 and end_bytes == 1:
        if fields[0, FIELD_FLOAT] == 0:
            return write_integer_column(int(fields[0, FIELD_ADDRESS]), end_text, count, address)
        return write_float_column(int(fields[0, FIELD_ADDRESS]), end_text, count, address)
    for record in range(count):
        for index in range(len(fields)):
            store_word(address, int(fields[index, FIELD_TEXT]))
            store_word(address + 8, int(fields[index, FIELD_TEXT + 1]))
            address += int(fields[index, FIELD_TEXT_BYTES])
            column = int(fields[index, FIELD_ADDRESS])
            if fields[index, FIELD_FLOAT] == 0:
                address = _write_integer(address, load_i64(column, record))
            else:
                address = _write_float(address, load_i64(column, record), load_f64(column, record))
        store_word(address, end_text)
        address += end_bytes
    return address


@kernel
def write_points(
    fields: NDArray[np.int64],
    end_text: int,
    end_bytes: int,
    count: int,
    address: int,
) -> int:
    """Do `write_records` for two integers and a float, of which rows resemble the row before.

    Parameters
    ----------
    fields : ndarray of int64, shape (3, FIELD_WIDTH)
        Integers, integers, floats.
    end_text, end_bytes, count, address
        As for `write_records`.

    Notes
    -----
    Where the series is that of the row before and the timestamps differ in their last eight digits only,
    all before these digits is copied from that row: at most 57 bytes, and the room for a row is more than
    the 64 that are written.
    """
    series_column = int(fields[0, FIELD_ADDRESS])
    timestamp_column = int(fields[1, FIELD_ADDRESS])
    value_column = int(fields[2, FIELD_ADDRESS])
    before = address  # the row before
    head_bytes = 0  # of its text before the last eight digits of the timestamp; 0 when it has fewer
    series_id = 0
    head = 0  # its timestamp without them
    for record in range(count):
        next_series = load_i64(series_column, record)
        timestamp = load_i64(timestamp_column, record)
        start = address
        if (
            head_bytes > 0
            and next_series == series_id
            and 0 <= timestamp - head < _HUNDRED_MILLION
            and timestamp >= 0
        ):
            for word in range(8):
                store_word(address + 8 * word, load_i64(before, word))
            address += head_bytes
            store_word(address, _eight_digits(timestamp - head) | _ASCII_ZEROS)
            address += 8
        else:
            series_id = next_series
            for index in range(2):
                store_word(address, int(fields[index, FIELD_TEXT]))
                store_word(address + 8, int(fields[index, FIELD_TEXT + 1]))
                address += int(fields[index, FIELD_TEXT_BYTES])
                address = _write_integer(address, timestamp if index else series_id)
            head_bytes = 0
            if timestamp >= _HUNDRED_MILLION:
                head = divide(timestamp, _HUNDRED_MILLION) * _HUNDRED_MILLION
                head_bytes = address - 8 - start
        store_word(address, int(fields[2, FIELD_TEXT]))
        store_word(address + 8, int(fields[2, FIELD_TEXT + 1]))
        address += int(fields[2, FIELD_TEXT_BYTES])
        address = _write_float(address, load_i64(value_column, record), load_f64(value_column, record))
        store_word(address, end_text)
        address += end_bytes
        before = start
    return address


@kernel
def write_integer_column(column: int, end_text: int, count: int, address: int) -> int:
    """Do `write_records` for integers alone, which often repeat, or share all but their last eight digits.

    Parameters
    ----------
    column : int
        Address of int64[count].
    end_text : int
        The character after each.
    count, address : int
        As for `write_records`.

    Notes
    -----
    A repeated text, or the beginning of one, is kept in words rather than copied from where it stands: a
    load that spans several stores which are still under way waits for them.
    """
    number = 0
    text_bytes = 0  # of the text of `number`, with the character after it; 0 before the first
    first = 0  # its first words
    second = 0
    third = 0
    head = 0  # a number without its last eight digits
    head_bytes = 0  # of its text; 0 when there is none
    head_first = 0
    head_second = 0
    for record in range(count):
        next_number = load_i64(column, record)
        if head_bytes > 0 and next_number >= head and next_number - head < _HUNDRED_MILLION:
            store_word(address, head_first)
            store_word(address + 8, head_second)
            address += head_bytes
            store_word(address, _eight_digits(next_number - head) | _ASCII_ZEROS)
            store_word(address + 8, end_text)
            address += 9
        elif text_bytes > 0 and next_number == number:
            store_word(address, first)
            if text_bytes > 8:
                store_word(address + 8, second)
                store_word(address + 16, third)
            address += text_bytes
        else:
            start = address
            number = next_number
            address = _write_integer(address, number)
            store_word(address, end_text)
            address += 1
            text_bytes = address - start
            first = load_i64(start, 0)
            second = load_i64(start, 1)
            third = load_i64(start, 2)
            head_bytes = 0
            if number >= _HUNDRED_MILLION:
                head = divide(number, _HUNDRED_MILLION) * _HUNDRED_MILLION
                head_bytes = text_bytes - 9
                head_first = first
                head_second = second
    return address


@kernel
def write_float_column(column: int, end_text: int, count: int, address: int) -> int:
    """Do `write_records` for floats alone; parameters as for `write_integer_column`."""
    for record in range(count):
        address = _write_float(address, load_i64(column, record), load_f64(column, record))
        store_word(address, end_text)
        address += 1
    return address
