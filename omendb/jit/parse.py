"""Columns out of the JSON bodies of ``POST /insert``, without a Python object per point.

The kernel accepts a body only when it is valid JSON, of one of the three documented forms, and
written plainly; whatever else it meets, it gives up, and the caller decodes the body with the
general decoder, which knows the exact error or the meaning. So the kernel decides nothing: it must
never accept what the general decoder would refuse or read differently, and may refuse anything.

Accepted, with JSON white space anywhere between tokens and keys in any order, each once:

- ``{"series_id": 1, "timestamp": 2, "value": 3.5}``,
- an array of at least one of these,
- ``{"series_id": [1, 1], "timestamp": [2, 3], "value": [3.5, 4]}`` with at least one point, where
  ``series_id`` may be one integer.

Given up: escapes in keys, integers with a fraction or an exponent, ``-0``, values of more than 18
digits (not counting leading zeros), subnormal values, decimals half-way between two float64, values
beyond float64, and all that is not valid.

No byte outside the body is read, whatever it holds. Everything here is a pure function of its
arguments and safe in any thread.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import types

from omendb.jit._compile import inline_kernel, kernel, load_i64, load_u8
from omendb.jit.encode import POWER_MIN, POWERS_OF_TEN, address_of, instruction, scale_to_odd

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARSED = 0
"""The body is valid and all its points were written."""
GIVE_UP = 1
"""The body must be decoded by the general decoder; the outputs hold nothing of use."""

_OBJECT_BYTES_MIN = len('{"series_id":0,"timestamp":0,"value":0}')
_WORD_MASK = (1 << 64) - 1
_FRACTION_MASK = (1 << 52) - 1

_SERIES = 0
_TIMESTAMP = 1
_VALUE = 2
_ALL_FIELDS = 0b111

# A key is recognised by one or two words of its text, which overlap.
_SERIES_HEAD = int.from_bytes(b'"series_', "little")
_SERIES_TAIL = int.from_bytes(b'ries_id"', "little")
_TIMESTAMP_HEAD = int.from_bytes(b'"timesta', "little")
_TIMESTAMP_TAIL = int.from_bytes(b'mestamp"', "little")
_VALUE_HEAD = int.from_bytes(b'"value"', "little")
_VALUE_MASK = (1 << 56) - 1

_COMMA = ord(",")
_COLON = ord(":")
_MINUS = ord("-")
_PLUS = ord("+")
_POINT = ord(".")
_ZERO = ord("0")
_EXPONENT = ord("e")
_OPEN_ARRAY = ord("[")
_CLOSE_ARRAY = ord("]")
_OPEN_OBJECT = ord("{")
_CLOSE_OBJECT = ord("}")

_EXACT_POWER_MAX = 27  # 5**27 fits one word with a bit to spare
_INTEGER_POWERS = np.array([10**power for power in range(19)], dtype=np.int64)
_FLOAT_POWERS = np.array([10.0**power for power in range(23)], dtype=np.float64)


def parse_points(
    body: NDArray[np.uint8],
    out_series: NDArray[np.int64],
    out_timestamp: NDArray[np.int64],
    out_value: NDArray[np.float64],
) -> tuple[int, int]:
    """Parse the body of an insert into columns.

    Parameters
    ----------
    body : ndarray of uint8, shape (n,)
        Contiguous; may be read-only, as ``np.frombuffer(body, np.uint8)`` is.
    out_series, out_timestamp : ndarray of int64, shape (m,)
        Written from the start. `count_points_bound` says how many points there can be.
    out_value : ndarray of float64, shape (m,)

    Returns
    -------
    count : int
        Number of points, at least 1 when parsed. Series ids are at least 0, values are finite.
    code : int
        `PARSED`, or `GIVE_UP` when the general decoder must decide (also when the outputs are too
        short).
    """
    assert body.flags.c_contiguous
    assert len(out_series) == len(out_timestamp) == len(out_value)
    return _parse(address_of(body), len(body), out_series, out_timestamp, out_value)


def count_points_bound(body: NDArray[np.uint8]) -> int:
    """Return a number of points that `parse_points` cannot exceed on this body.

    Parameters
    ----------
    body : ndarray of uint8, shape (n,)
        Contiguous; may be read-only.

    Notes
    -----
    An array of objects is bounded by its length, which costs nothing; columns by their commas,
    which costs one pass of about 0.1 ns per byte and is at most 1.5 times too high when valid.
    """
    assert body.flags.c_contiguous
    return _count_bound(address_of(body), len(body))


def warmup() -> None:
    """Compile the kernels, or load them from the cache, for the array types that inserts pass."""
    integers = np.zeros(1, dtype=np.int64)
    floats = np.zeros(1, dtype=np.float64)
    body = np.frombuffer(b'{"series_id":0,"timestamp":0,"value":0.5}', dtype=np.uint8)
    count_points_bound(body)
    parse_points(body, integers, integers.copy(), floats)


def _emit_digit_count(builder: Any, word: Any) -> Any:  # noqa: ANN401
    # A byte b is a digit when the high half of both b ^ 0x30 and (b ^ 0x30) + 6 is zero. Carries
    # run towards later bytes only, so the first that is not a digit is always found.
    i64 = ir.IntType(64)
    digits = builder.xor(word, ir.Constant(i64, 0x3030303030303030))
    raised = builder.add(digits, ir.Constant(i64, 0x0606060606060606))
    others = builder.and_(builder.or_(digits, raised), ir.Constant(i64, 0xF0F0F0F0F0F0F0F0))
    return builder.lshr(builder.cttz(others, ir.Constant(ir.IntType(1), 0)), ir.Constant(i64, 3))


@instruction(_emit_digit_count)
def _digit_count(word: int) -> int:
    """Count the decimal digits at the start of eight characters."""
    text = (word & _WORD_MASK).to_bytes(8, "little")
    return 8 - len(text.lstrip(b"0123456789"))


def _emit_keep_digits(builder: Any, word: Any, count: Any) -> Any:  # noqa: ANN401
    i64 = ir.IntType(64)
    digits = builder.xor(word, ir.Constant(i64, 0x3030303030303030))
    spare = builder.sub(ir.Constant(i64, 64), builder.shl(count, ir.Constant(i64, 3)))
    return builder.shl(digits, builder.and_(spare, ir.Constant(i64, 63)))


@instruction(_emit_keep_digits)
def _keep_digits(word: int, count: int) -> int:
    """Move the first `count` digits, 1 to 8, to the end of the word, as numbers behind zeros."""
    return (word ^ 0x3030303030303030) << (64 - 8 * count) & _WORD_MASK


def _emit_shift_right(builder: Any, word: Any, bits: Any) -> Any:  # noqa: ANN401
    return builder.lshr(word, bits)


@instruction(_emit_shift_right)
def _shift_right(word: int, bits: int) -> int:
    """Shift an unsigned word right by fewer than 64 bits."""
    return (word & _WORD_MASK) >> bits


def _emit_leading_zero_bits(builder: Any, word: Any) -> Any:  # noqa: ANN401
    return builder.ctlz(word, ir.Constant(ir.IntType(1), 0))


@instruction(_emit_leading_zero_bits)
def _leading_zero_bits(word: int) -> int:
    """Count the zero bits at the high end of a word that is not negative."""
    return 64 - word.bit_length()


def _emit_float_of_bits(builder: Any, word: Any) -> Any:  # noqa: ANN401
    return builder.bitcast(word, ir.DoubleType())


@instruction(_emit_float_of_bits, types.float64)
def _float_of_bits(word: int) -> float:
    """Read a word as a float64."""
    value: float = struct.unpack("<d", struct.pack("<q", word))[0]
    return value


@inline_kernel
def read_byte(at: int, stop: int) -> int:
    """Read a byte; 0, which no JSON text holds outside of strings, beyond the end."""
    if at >= stop:
        return 0
    byte: int = load_u8(at, 0)
    return byte


@inline_kernel
def read_word(at: int, stop: int) -> int:
    """Read eight bytes, zeros beyond the end. The body must have at least eight bytes."""
    missing = at + 8 - stop
    if missing <= 0:
        word: int = load_i64(at, 0)
        return word
    if missing >= 8:
        return 0
    return _shift_right(load_i64(stop - 8, 0), 8 * missing)


@inline_kernel
def _skip_space(at: int, stop: int) -> int:
    """Find the first byte at or after `at` that is not white space."""
    while at < stop:
        byte = load_u8(at, 0)
        if byte > 32 or not (byte == 32 or byte == 10 or byte == 13 or byte == 9):
            break
        at += 1
    return at


@inline_kernel
def _digits_value(word: int, count: int) -> int:
    """Read the first `count` characters, 1 to 8, all digits, as a number.

    Notes
    -----
    Pairs, then quads, then all eight at once [1]_. No step exceeds 63 bits.

    References
    ----------
    .. [1] Lemire, Quickly parsing eight digits, 2018.
    """
    digits = _keep_digits(word, count)
    pairs = (digits * 10 + (digits >> 8)) & 0x00FF_00FF_00FF_00FF
    quads = (pairs * 100 + (pairs >> 16)) & 0x0000_FFFF_0000_FFFF
    return (quads & 0xFFFF) * 10_000 + (quads >> 32)


@inline_kernel
def parse_integer(at: int, stop: int) -> tuple[int, int]:
    """Parse an int64; return the address after it, or 0 to give up, and the number."""
    negative = 1 if read_byte(at, stop) == _MINUS else 0
    at += negative
    word = read_word(at, stop)
    count = _digit_count(word)
    if count == 0:
        return 0, 0
    if word & 0xFF == _ZERO and (count > 1 or negative == 1):
        return 0, 0
    number = _digits_value(word, count)
    at += count
    if count == 8:
        word = read_word(at, stop)
        count = _digit_count(word)
        if count > 0:
            number = number * int(_INTEGER_POWERS[count]) + _digits_value(word, count)
            at += count
        if count == 8:
            word = read_word(at, stop)
            count = _digit_count(word)
            if count > 3:
                return 0, 0
            if count > 0:
                last = _digits_value(word, count)
                # Nineteen digits may be too many: 2**63 - 1 is 9223372036854775 and 807.
                if count == 3 and (
                    number > 9_223_372_036_854_775
                    or (number == 9_223_372_036_854_775 and last > 807 + negative)
                ):
                    return 0, 0
                number = number * int(_INTEGER_POWERS[count]) + last
                at += count
    return at, -number if negative == 1 else number


@inline_kernel
def _append_digits(at: int, stop: int, mantissa: int) -> tuple[int, int]:
    """Append the digits at `at` to a number; return the address after them, or 0 to give up."""
    count = 8
    while count == 8:
        word = read_word(at, stop)
        count = _digit_count(word)
        if count > 0:
            if mantissa >= int(_INTEGER_POWERS[18 - count]):
                return 0, 0
            mantissa = mantissa * int(_INTEGER_POWERS[count]) + _digits_value(word, count)
            at += count
    return at, mantissa


@inline_kernel
def parse_value(at: int, stop: int) -> tuple[int, float]:
    """Parse a JSON number into the nearest float64; return the address after it, or 0 to give up.

    Notes
    -----
    Up to 2**53 and 10**22 both operands are exact, so that one operation rounds correctly [1]_.

    References
    ----------
    .. [1] Clinger, How to read floating point numbers accurately, 1990.
    """
    negative = read_byte(at, stop) == _MINUS
    if negative:
        at += 1
    first = read_byte(at, stop)
    start = at
    at, mantissa = _append_digits(at, stop, 0)
    if at == start or at == 0 or (first == _ZERO and at - start > 1):
        return 0, 0.0
    exponent = 0
    plain = True
    if read_byte(at, stop) == _POINT:
        plain = False
        start = at + 1
        at, mantissa = _append_digits(start, stop, mantissa)
        if at == start or at == 0:
            return 0, 0.0
        exponent = start - at
    if read_byte(at, stop) | 0x20 == _EXPONENT:
        plain = False
        sign = read_byte(at + 1, stop)
        at += 2 if sign == _MINUS or sign == _PLUS else 1
        word = read_word(at, stop)
        count = _digit_count(word)
        if count == 0 or count > 4:
            return 0, 0.0
        shift = _digits_value(word, count)
        exponent += -shift if sign == _MINUS else shift
        at += count

    if mantissa == 0:
        if negative and plain:
            return 0, 0.0
        value = 0.0
    elif exponent == 0:
        value = float(mantissa)
    elif mantissa <= 1 << 53 and -22 <= exponent <= 22:
        if exponent < 0:
            value = float(mantissa) / float(_FLOAT_POWERS[-exponent])
        else:
            value = float(mantissa) * float(_FLOAT_POWERS[exponent])
    else:
        bits = _round_decimal(mantissa, exponent)
        if bits == 0:
            return 0, 0.0
        value = _float_of_bits(bits)
    return at, -value if negative else value


@kernel
def _round_decimal(mantissa: int, exponent: int) -> int:
    """Find the float64 nearest to ``mantissa * 10**exponent``; return its bits, or 0 to give up.

    Parameters
    ----------
    mantissa : int
        From 1 to ``10**18 - 1``.
    exponent : int

    Notes
    -----
    As in [1]_, the mantissa, shifted to fill 64 bits, times the 128 leading bits of the power of
    ten. These are rounded up by less than one unit, so the true product lies in ``(p - 2**64, p]``
    around the computed p of 192 bits. When both ends, ties rounded up, round to the same 53 bits,
    then so does the true product; nor is it a tie, because the lower end would lie below the tie
    and round to the float below. The rest are ties, and hardly anything else. Given up are those of
    them whose power of ten is not exact, and what is not a normal float64.

    References
    ----------
    .. [1] Lemire, Number parsing at a gigabyte per second, 2021, sec. 5.
    """
    if exponent < POWER_MIN or exponent > 308:
        return 0
    index = 2 * (exponent - POWER_MIN)
    empty = _leading_zero_bits(mantissa)
    high = int(POWERS_OF_TEN[index])
    low = int(POWERS_OF_TEN[index + 1])
    product = scale_to_odd(high, low, mantissa << empty)
    # The bits below the top 64 are folded into the lowest, so one less stands for the lower end.
    upper = _shift_right(product, 9)
    lower = _shift_right(product - 1, 9)
    carry = upper >> 54
    rounded = ((upper >> carry) + 1) >> 1
    if ((lower >> carry) + 1) >> 1 != rounded:
        if exponent < 0 or exponent > _EXACT_POWER_MAX:
            return 0
        rounded -= rounded & 1  # the product is exact, so this is a tie: to the even neighbour
    # The exponent of the lowest of the 53 bits, with float64's bias of 1075.
    biased = 1075 + 11 + carry + ((exponent * 1_741_647) >> 19) - empty
    biased += rounded >> 53  # rounded up to the next power of two: its fraction is 0 as well
    if biased < 1 or biased > 2046:
        return 0
    return biased << 52 | (rounded & _FRACTION_MASK)


@inline_kernel
def _parse_key(at: int, stop: int) -> int:
    """Recognise the key at `at`; return its field, or -1 to give up."""
    head = read_word(at, stop)
    if head == _SERIES_HEAD and read_word(at + 3, stop) == _SERIES_TAIL:
        return _SERIES
    if head == _TIMESTAMP_HEAD and read_word(at + 3, stop) == _TIMESTAMP_TAIL:
        return _TIMESTAMP
    if head & _VALUE_MASK == _VALUE_HEAD:
        return _VALUE
    return -1


@inline_kernel
def _parse_name(at: int, stop: int) -> tuple[int, int]:
    """Parse a key, its colon and the space around them.

    Returns the address after them, or 0 to give up, and the field.
    """
    at = _skip_space(at, stop)
    field = _parse_key(at, stop)
    if field < 0:
        return 0, 0
    at = _skip_space(at + (7 if field == _VALUE else 11), stop)
    if read_byte(at, stop) != _COLON:
        return 0, 0
    return _skip_space(at + 1, stop), field


@kernel
def _parse_columns(
    at: int,
    stop: int,
    out_series: NDArray[np.int64],
    out_timestamp: NDArray[np.int64],
    out_value: NDArray[np.float64],
) -> tuple[int, int]:
    """Parse the columns object that opens at `at`.

    Returns the address after it, or 0 to give up, and the number of points.
    """
    seen = 0
    count = 0
    one_series = False
    mark = _COMMA
    while mark == _COMMA:
        at, field = _parse_name(at + 1, stop)
        if at == 0 or seen >> field & 1:
            return 0, 0
        seen |= 1 << field
        array = read_byte(at, stop) == _OPEN_ARRAY
        if array:
            at = _skip_space(at + 1, stop)
        elif field == _SERIES:
            one_series = True
        else:
            return 0, 0
        length = 0
        mark = _COMMA
        while mark == _COMMA:
            if length >= len(out_value):
                return 0, 0
            if field == _VALUE:
                at, value = parse_value(at, stop)
                out_value[length] = value
            else:
                at, number = parse_integer(at, stop)
                if field == _TIMESTAMP:
                    out_timestamp[length] = number
                else:
                    if number < 0:
                        return 0, 0
                    out_series[length] = number
            if at == 0:
                return 0, 0
            length += 1
            at = _skip_space(at, stop)
            if not array:
                break
            mark = read_byte(at, stop)
            at = _skip_space(at + 1, stop)
        if array:
            if mark != _CLOSE_ARRAY or (count != 0 and count != length):
                return 0, 0
            count = length
        mark = read_byte(at, stop)
    if mark != _CLOSE_OBJECT or seen != _ALL_FIELDS:
        return 0, 0
    if one_series:
        for index in range(1, count):
            out_series[index] = out_series[0]
    return at + 1, count


@kernel
def _parse(
    address: int,
    length: int,
    out_series: NDArray[np.int64],
    out_timestamp: NDArray[np.int64],
    out_value: NDArray[np.float64],
) -> tuple[int, int]:
    """Parse the body at an address; see `parse_points`."""
    if length < _OBJECT_BYTES_MIN:  # from here on there are the eight bytes that `read_word` needs
        return 0, GIVE_UP
    stop = address + length
    at = _skip_space(address, stop)
    array = read_byte(at, stop) == _OPEN_ARRAY
    if array:
        at = _skip_space(at + 1, stop)
    count = 0
    while True:
        if read_byte(at, stop) != _OPEN_OBJECT or count >= len(out_value):
            return 0, GIVE_UP
        opening = at
        seen = 0
        series = 0
        timestamp = 0
        value = 0.0
        mark = _COMMA
        while mark == _COMMA:
            at, field = _parse_name(at + 1, stop)
            if at == 0 or seen >> field & 1:
                seen = 0
                break
            seen |= 1 << field
            if field == _VALUE:
                at, value = parse_value(at, stop)
            else:
                at, number = parse_integer(at, stop)
                if field == _SERIES:
                    series = number
                else:
                    timestamp = number
            if at == 0:
                seen = 0
                break
            at = _skip_space(at, stop)
            mark = read_byte(at, stop)
        if seen != _ALL_FIELDS or mark != _CLOSE_OBJECT or series < 0:
            if array:
                return 0, GIVE_UP
            at, count = _parse_columns(opening, stop, out_series, out_timestamp, out_value)
            if at == 0:
                return 0, GIVE_UP
            break
        out_series[count] = series
        out_timestamp[count] = timestamp
        out_value[count] = value
        count += 1
        at += 1
        if not array:
            break
        at = _skip_space(at, stop)
        mark = read_byte(at, stop)
        at += 1
        if mark == _CLOSE_ARRAY:
            break
        if mark != _COMMA:
            return 0, GIVE_UP
        at = _skip_space(at, stop)
    if count == 0 or _skip_space(at, stop) != stop:
        return 0, GIVE_UP
    return count, PARSED


@kernel
def _count_bound(address: int, length: int) -> int:
    """Bound the points of the body at an address; see `count_points_bound`."""
    stop = address + length
    if read_byte(_skip_space(address, stop), stop) == _OPEN_ARRAY:
        return length // _OBJECT_BYTES_MIN + 1
    commas = 0
    for index in range(length):
        commas += 1 if load_u8(address, index) == _COMMA else 0
    return commas // 2 + 1
