"""Columns out of line protocol, and the ids of the series that it names, without a Python object a row.

Two passes. `parse_lines` reads ``measurement,tag=value field=1.5,other=2i 1700000000000000000``, one row a
field, and notes where the name of each row's series stands, with a hash of it. `omendb.jit.keys.find_series`
then looks all of them up in a table of keys, in groups, with prefetches: with many series each look-up is
three cache misses, which overlap that way.

Most clients name their series in the same order again and again. So the table remembers which key followed
each one the last time, its *follower*, and the first pass compares the line with the key that it expects: one
comparison instead of a search for the name's end, a hash and a look-up. When it is wrong, the row is looked
up at once, to go on from there; when it is wrong too often, the rest of the body is left to the second pass.

The first pass accepts only what is plain and valid, and stops in front of a line that is anything else; the
caller reads that line by the book, and goes on behind it. So the kernel decides nothing: it must not accept
what the careful reader would refuse or read differently. Names are not looked into at all: what is found in
the table is valid, and what is not is for the caller.

No byte outside of the body is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit._compile import inline_kernel, kernel, load_i64, load_u8, prefetch
from omendb.jit.encode import address_of, instruction
from omendb.jit.keys import (
    EQUALS,
    SPACE,
    Keys,
    bytes_before,
    emit_bytes_before,
    expected,
    hash_bytes,
    look_up,
    scan,
    signed,
)
from omendb.jit.parse import parse_integer, parse_value, read_byte, read_word

if TYPE_CHECKING:
    from numpy.typing import NDArray

DONE = 0
"""The body was read to its end."""
GIVE_UP = 1
"""The line at the returned position must be read by the careful reader."""
FULL = 2
"""The line at the returned position has more rows than the outputs have room."""

BODY_BYTES_MIN = 8
"""The kernels read eight bytes at a time; pad a shorter body with line ends."""

PART_BYTES_MAX = 65_535
"""Longer names are given up."""

_LOW_32 = 0xFFFFFFFF
_CREDIT = 16
"""How far wrong guesses may outnumber right ones before a body is read without them."""

_LINE_END = ord("\n")
_RETURN = ord("\r")
_HASH = ord("#")
_COMMA = ord(",")
_MINUS = ord("-")
_ZERO = ord("0")
_NINE = ord("9")
_SIGNED = ord("i")
_UNSIGNED = ord("u")

_TRUE = (
    int.from_bytes(b"true", "little"),
    int.from_bytes(b"True", "little"),
    int.from_bytes(b"TRUE", "little"),
)
_FALS = (
    int.from_bytes(b"fals", "little"),
    int.from_bytes(b"Fals", "little"),
    int.from_bytes(b"FALS", "little"),
)
_TRUE_0, _TRUE_1, _TRUE_2 = _TRUE
_FALS_0, _FALS_1, _FALS_2 = _FALS


@instruction(emit_bytes_before(b"\n"))
def _line_bytes(word: int) -> int:
    """Count the bytes before the first end of a line."""
    return bytes_before(word, b"\n")


@inline_kernel
def _parse_truth(at: int, stop: int) -> tuple[int, float]:
    """Parse a boolean; return the address after it, or 0 to give up."""
    head = read_word(at, stop)
    second = (head >> 8) & 0xFF
    ends = second == _COMMA or second == SPACE or second == _LINE_END or second == _RETURN
    if ends or at + 1 == stop:
        first = head & 0xFF
        if first == 0x74 or first == 0x54:  # t, T
            return at + 1, 1.0
        if first == 0x66 or first == 0x46:  # f, F
            return at + 1, 0.0
        return 0, 0.0
    word = head & _LOW_32
    if word == _TRUE_0 or word == _TRUE_1 or word == _TRUE_2:
        return at + 4, 1.0
    fifth = (head >> 32) & 0xFF
    lower = fifth == 0x65  # e
    if lower and (word == _FALS_0 or word == _FALS_1):
        return at + 5, 0.0
    if fifth == 0x45 and word == _FALS_2:
        return at + 5, 0.0
    return 0, 0.0


@inline_kernel
def _parse_field(at: int, stop: int) -> tuple[int, float]:
    """Parse the value of a field; return the address after it, or 0 to give up."""
    first = read_byte(at, stop)
    if first > _NINE:
        return _parse_truth(at, stop)
    end, value = parse_value(at, stop)
    if end == 0:
        return 0, 0.0
    suffix = read_byte(end, stop)
    if suffix == _SIGNED or suffix == _UNSIGNED:
        integer_end, integer = parse_integer(at, stop)
        if integer_end != end or (suffix == _UNSIGNED and integer < 0):
            return 0, 0.0
        return end + 1, float(integer)
    return end, value


@inline_kernel
def _line_end(at: int, stop: int) -> int:
    """Return the address after the end of the line, which must be at `at`; 0 when it is not."""
    if at >= stop:
        return at
    byte = load_u8(at, 0)
    if byte == _LINE_END:
        return at + 1
    if byte == _RETURN and (at + 1 == stop or load_u8(at + 1, 0) == _LINE_END):
        return at + 2 if at + 2 <= stop else at + 1
    return 0


@kernel
def _parse(
    address: int,
    start: int,
    length: int,
    seed: int,
    scale: int,
    now: int,
    row: int,
    missing: int,
    previous: int,
    credit: int,
    out_id: NDArray[np.int64],
    out_hash: NDArray[np.int64],
    out_place: NDArray[np.int64],
    out_shape: NDArray[np.int64],
    out_timestamp: NDArray[np.int64],
    out_value: NDArray[np.float64],
    table: int,
    table_size: int,
    keys: int,
    keys_size: int,
    starts: int,
    starts_size: int,
    followers: NDArray[np.int64],
    first_id: int,
) -> tuple[int, int, int, int, int, int]:
    """Parse the lines of a body; see `parse_lines`.

    `previous` is the position of the key of the row before, -1 when it is not known.
    """
    stop = address + length
    at = address + start
    keys_stop = keys + keys_size
    starts_stop = starts + 8 * starts_size
    highest = 9_223_372_036_854_775_807 // scale
    room = len(out_value)
    while at < stop:
        line = at
        line_missing, line_previous = missing, previous
        first = load_u8(at, 0)
        if first == _LINE_END:
            at += 1
            continue
        if first == _RETURN:
            at = _line_end(at, stop)
            if at == 0:
                return GIVE_UP, line - address, row, missing, previous, credit
            continue
        if first == _HASH:
            while at < stop:
                count = _line_bytes(read_word(at, stop))
                at += count
                if count < 8:
                    at += 1
                    break
            at = min(at, stop)
            continue
        if first == SPACE or first == _COMMA:
            return GIVE_UP, line - address, row, missing, previous, credit
        # Known from the first field on that is not the expected one.
        series_hash, is_hashed = seed, False
        series_size = 0
        first_row = row
        mark = _COMMA
        while mark == _COMMA:
            if row >= room:
                return FULL, line - address, first_row, line_missing, line_previous, credit
            entry, field_size = -1, 0
            if credit > 0 and 0 <= previous < len(followers):
                follower = int(followers[previous])
                guess = (follower & _LOW_32) - 1
                size = (follower >> 32) & 0xFFFF
                if guess >= 0 and (row == first_row or size == series_size):
                    field_size = expected(
                        line,
                        at + 1,
                        stop,
                        row == first_row,
                        guess,
                        size,
                        keys,
                        keys_stop,
                        starts,
                        starts_stop,
                    )
                    if field_size > 0:
                        entry, series_size = guess, size
                        credit = min(credit + 1, _CREDIT)
                        # While numbers are parsed, the next key comes, and what leads to the one after it.
                        following = (followers[guess] & _LOW_32) - 1 if guess < len(followers) else -1
                        if 0 <= following < len(followers) and starts + 8 * (following + 2) <= starts_stop:
                            prefetch(keys + load_i64(starts, following))
                            beyond = followers[following] & _LOW_32
                            prefetch(starts + 8 * beyond)
                            prefetch(followers.ctypes.data + 8 * beyond)
            if entry >= 0:
                field = line + series_size + 1 if row == first_row else at + 1
            else:
                if not is_hashed:
                    if row == first_row:
                        series_end, series_hash = scan(line, stop, seed, SPACE)
                        if series_end == 0 or series_end - line > PART_BYTES_MAX:
                            return GIVE_UP, line - address, first_row, line_missing, line_previous, credit
                        series_size = series_end - line
                        at = series_end
                    else:
                        series_hash = hash_bytes(line, series_size, stop, seed)
                    is_hashed = True
                field = at + 1
                before = read_byte(field, stop)
                if before == EQUALS or before == SPACE:
                    return GIVE_UP, line - address, first_row, line_missing, line_previous, credit
                field_end, field_hash = scan(field, stop, series_hash, EQUALS)
                if field_end == 0 or field_end - field > PART_BYTES_MAX or field - line >= 1 << 31:
                    return GIVE_UP, line - address, first_row, line_missing, line_previous, credit
                field_size = field_end - field
                shape = (field - line) << 32 | series_size << 16 | field_size
                row_hash = signed(field_hash)
                if credit > 0:
                    credit -= 1
                    entry = look_up(
                        row_hash,
                        line,
                        stop,
                        shape,
                        table,
                        table_size - 1,
                        keys,
                        keys_stop,
                        starts,
                        starts_stop,
                    )
                if entry < 0:
                    out_hash[row] = row_hash
                    out_place[row] = line - address
                    out_shape[row] = shape
                elif 0 <= previous < len(followers):
                    followers[previous] = series_size << 32 | (entry + 1)
            at, value = _parse_field(field + field_size + 1, stop)
            if at == 0:
                return GIVE_UP, line - address, first_row, line_missing, line_previous, credit
            if entry >= 0:
                out_id[row] = first_id + entry
            else:
                out_id[row] = -1
                missing += 1
            previous = entry
            out_value[row] = value
            row += 1
            mark = read_byte(at, stop)
        timestamp = now
        if mark == SPACE:
            at, number = parse_integer(at + 1, stop)
            if at == 0 or number > highest or number < -highest:
                return GIVE_UP, line - address, first_row, line_missing, line_previous, credit
            timestamp = number * scale
        at = _line_end(at, stop)
        if at == 0:
            return GIVE_UP, line - address, first_row, line_missing, line_previous, credit
        for index in range(first_row, row):
            out_timestamp[index] = timestamp
    return DONE, length, row, missing, previous, credit


class Rows:
    """Room for the rows of a body: where their series are named, timestamps and values.

    Parameters
    ----------
    room : int
        Rows; `grow` makes more.

    Attributes
    ----------
    count : int
        Rows so far.
    missing : int
        Those of them without an id.
    previous : int
        Position of the last row's key, -1 when it is not known.
    credit : int
        How much the parser relies on followers.
    ids : ndarray of int64, shape (room,)
        Of the series, -1 until it is found.
    hashes, places, shapes : ndarray of int64, shape (room,)
        Of series without an id: a hash, the byte of the body at which its line begins, and the lengths of the
        names. Nothing of use for others.
    timestamp : ndarray of int64, shape (room,)
        In nanoseconds.
    value : ndarray of float64, shape (room,)
    """

    __slots__ = (
        "count",
        "credit",
        "hashes",
        "ids",
        "missing",
        "places",
        "previous",
        "shapes",
        "timestamp",
        "value",
    )

    def __init__(self, room: int) -> None:
        self.count = self.missing = 0
        self.previous = -1
        self.credit = _CREDIT
        self.hashes, self.places, self.shapes, self.ids, self.timestamp = (
            np.empty(room, np.int64) for _ in range(5)
        )
        self.value = np.empty(room, np.float64)

    def grow(self) -> None:
        """Double the room."""
        room = 2 * len(self.value) + 16
        for name in ("hashes", "places", "shapes", "timestamp", "value", "ids"):
            old = getattr(self, name)
            new = np.empty(room, old.dtype)
            new[: self.count] = old[: self.count]
            setattr(self, name, new)


def parse_lines(
    body: NDArray[np.uint8],
    start: int,
    seed: int,
    scale: int,
    now: int,
    rows: Rows,
    known: Keys,
    first_id: int,
) -> tuple[int, int]:
    """Parse lines into rows, as far as they are plain.

    Parameters
    ----------
    body : ndarray of uint8, shape (n,)
        Contiguous, at least `BODY_BYTES_MIN`; may be read-only.
    start : int
        The line to begin with.
    seed : int
        Of the hashes; that of the table in which the series will be looked up.
    scale : int
        Nanoseconds in a unit of the timestamps, at least 1.
    now : int
        Timestamp of lines that have none, in nanoseconds.
    rows : Rows
        Gets the rows behind those that it has.
    known : Keys
        With consecutive ids from `first_id` on. Series that are expected have their ids afterwards.
    first_id : int

    Returns
    -------
    status : int
        `DONE`, `GIVE_UP` or `FULL`.
    position : int
        Where to go on.
    """
    status, position, rows.count, rows.missing, rows.previous, rows.credit = _parse(
        address_of(body),
        start,
        len(body),
        seed,
        scale,
        now,
        rows.count,
        rows.missing,
        rows.previous,
        rows.credit,
        rows.ids,
        rows.hashes,
        rows.places,
        rows.shapes,
        rows.timestamp,
        rows.value,
        address_of(known.table),
        len(known.table),
        address_of(known.keys),
        len(known.keys),
        address_of(known.starts),
        len(known.starts),
        known.followers,
        first_id,
    )
    return status, position


def warmup() -> None:
    """Compile the kernels, or load them from the cache, for the array types that writes pass."""
    body = np.frombuffer(b"cpu,host=a usage=0.5 1\n", np.uint8)
    zeros = np.zeros(8, np.int64)
    known = Keys(np.zeros(8, np.uint8), zeros, zeros, np.empty(0, np.int64), zeros)
    parse_lines(body, 0, 1, 1, 0, Rows(1), known, 0)
