"""Columns out of line protocol, and the ids of the series that it names, without a Python object a row.

Two passes. `parse_lines` reads ``measurement,tag=value field=1.5,other=2i 1700000000000000000``, one row a
field, and notes where the name of each row's series stands, with a hash of it. `find_series` then looks all
of them up in a table of keys (`omendb.series` says what a key is), in groups, with prefetches: with many
series each look-up is three cache misses, which overlap that way. The hash only finds candidates: the bytes
are compared.

Most clients name their series in the same order again and again. So the table remembers which key followed
each one the last time, its *follower*, and the first pass compares the line with the key that it expects: one
comparison instead of a search for the name's end, a hash and a look-up. When it is wrong, the row is looked
up at once, to go on from there; when it is wrong too often, the rest of the body is left to the second pass.

The first pass accepts only what is plain and valid, and stops in front of a line that is anything else; the
caller reads that line by the book, and goes on behind it. So the kernel decides nothing: it must not accept
what the careful reader would refuse or read differently. Names are not looked into at all: what is found in
the table is valid, and what is not is for the caller.

A table of keys consists of the keys one after the other, where each starts, and an open-addressing table of
words: the high half is that of the hash, the low half the key's position plus one, 0 is empty. Keys may be
added while another thread looks others up: the table's word comes last, and a position that lies beyond the
arrays that the reader was given is taken for another key's. What is missed that way is found under the lock.

No byte outside of the body is read. Hashes are seeded: nobody outside can make keys collide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from llvmlite import ir

from omendb.jit._compile import inline_kernel, kernel, load_i64, load_u8, multiply_fold, prefetch
from omendb.jit.encode import address_of, instruction
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
_PRIME = 0x9E3779B185EBCA87 - 2**64
_WORD_MASK = (1 << 64) - 1
_ONES = 0x0101010101010101
_HIGHS = 0x8080808080808080
_GROUP = 16
_CREDIT = 16
"""How far wrong guesses may outnumber right ones before a body is read without them."""

_LINE_END = ord("\n")
_RETURN = ord("\r")
_SPACE = ord(" ")
_HASH = ord("#")
_COMMA = ord(",")
_EQUALS = ord("=")
_BACKSLASH = ord("\\")
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


def _emit_bytes_before(stops: bytes) -> Any:  # noqa: ANN401
    """Make instructions that count the bytes of a word before the first of `stops`; 8 without one."""

    def emit(builder: Any, word: Any) -> Any:  # noqa: ANN401
        i64 = ir.IntType(64)
        found = ir.Constant(i64, 0)
        for stop in stops:
            # A byte less one borrows from the next only where it is zero, and the first zero is what counts.
            zeroed = builder.xor(word, ir.Constant(i64, stop * _ONES))
            less = builder.sub(zeroed, ir.Constant(i64, _ONES))
            zeros = builder.and_(builder.and_(less, builder.not_(zeroed)), ir.Constant(i64, _HIGHS))
            found = builder.or_(found, zeros)
        return builder.lshr(builder.cttz(found, ir.Constant(ir.IntType(1), 0)), ir.Constant(i64, 3))

    return emit


def _bytes_before(word: int, stops: bytes) -> int:
    text = (int(word) & _WORD_MASK).to_bytes(8, "little")
    return next((index for index, byte in enumerate(text) if byte in stops), 8)


@instruction(_emit_bytes_before(b" \\\n"))
def _series_bytes(word: int) -> int:
    """Count the bytes before the first that may end the name of a series."""
    return _bytes_before(word, b" \\\n")


@instruction(_emit_bytes_before(b"=\\\n"))
def _field_bytes(word: int) -> int:
    """Count the bytes before the first that may end the name of a field."""
    return _bytes_before(word, b"=\\\n")


@instruction(_emit_bytes_before(b"\n"))
def _line_bytes(word: int) -> int:
    """Count the bytes before the first end of a line."""
    return _bytes_before(word, b"\n")


def _emit_nothing(_builder: Any, word: Any) -> Any:  # noqa: ANN401
    return word


@instruction(_emit_nothing)
def signed(word: int) -> int:
    """Read the low 64 bits as an int64, which they are in a compiled kernel."""
    low = int(word) & _WORD_MASK
    return low - (1 << 64) if low >> 63 else low


@inline_kernel
def _mix(state: int, word: int) -> int:
    """Mix a word into a hash: both halves of a 128-bit product [1]_.

    References
    ----------
    .. [1] Wang Yi, wyhash, 2019.
    """
    return multiply_fold(int(state) ^ int(word), _PRIME)


@inline_kernel
def _first_bytes(word: int, count: int) -> int:
    """Keep the first `count` bytes of a word, 0 to 7."""
    return word & ((1 << (8 * count)) - 1)


@inline_kernel
def hash_bytes(at: int, size: int, stop: int, seed: int) -> int:
    """Hash `size` bytes at `at`."""
    end = at + size
    state = seed
    while at + 8 <= end:
        state = _mix(state, read_word(at, stop))
        at += 8
    return _mix(state, _first_bytes(read_word(at, stop), end - at))


@inline_kernel
def _scan(at: int, stop: int, seed: int, mark: int) -> tuple[int, int]:
    """Find the first `mark` in the line, a space or an equals sign, that no backslash precedes.

    Returns
    -------
    end : int
        Its address; 0 when there is none.
    hash : int
        Of the bytes before it, as `hash_bytes` makes it.
    """
    start = at
    state = seed
    while True:
        word = read_word(at, stop)
        count = _series_bytes(word) if mark == _SPACE else _field_bytes(word)
        if count < 8:
            break
        state = _mix(state, word)
        at += 8
        if at >= stop:
            return 0, 0
    end = at + count
    if load_u8(end, 0) == mark:
        return end, _mix(state, _first_bytes(word, count))
    while end < stop:
        byte = load_u8(end, 0)
        if byte == _LINE_END:
            return 0, 0
        # The byte before is part of the name: a name that begins with the mark does not come here.
        if byte == mark and load_u8(end - 1, 0) != _BACKSLASH:
            return end, hash_bytes(start, end - start, stop, seed)
        end += 1
    return 0, 0


@inline_kernel
def _parse_truth(at: int, stop: int) -> tuple[int, float]:
    """Parse a boolean; return the address after it, or 0 to give up."""
    head = read_word(at, stop)
    second = (head >> 8) & 0xFF
    ends = second == _COMMA or second == _SPACE or second == _LINE_END or second == _RETURN
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


@inline_kernel
def same_bytes(left: int, right: int, size: int, left_stop: int, right_stop: int) -> bool:
    """Compare `size` bytes; both ranges lie before their stops."""
    index = 0
    while index + 8 <= size:
        if load_i64(left + index, 0) != load_i64(right + index, 0):
            return False
        index += 8
    rest = size - index
    left_word = _first_bytes(read_word(left + index, left_stop), rest)
    return left_word == _first_bytes(read_word(right + index, right_stop), rest)


@inline_kernel
def _is_key(
    entry: int,
    body: int,
    body_stop: int,
    shape: int,
    keys: int,
    keys_stop: int,
    starts: int,
    starts_stop: int,
) -> bool:
    """Whether the key at a position is what a row names."""
    if starts + 8 * (entry + 2) > starts_stop:
        return False
    start, stop = load_i64(starts, entry), load_i64(starts, entry + 1)
    series_size, field_size = (shape >> 16) & 0xFFFF, shape & 0xFFFF
    if stop - start != series_size + 1 + field_size or keys + stop > keys_stop:
        return False
    key = keys + start
    field = body + ((shape >> 32) & 0x7FFFFFFF)
    return (
        same_bytes(body, key, series_size, body_stop, keys_stop)
        and load_u8(key, series_size) == _SPACE
        and same_bytes(field, key + series_size + 1, field_size, body_stop, keys_stop)
    )


@inline_kernel
def _look_up(
    hash_: int,
    body: int,
    body_stop: int,
    shape: int,
    table: int,
    mask: int,
    keys: int,
    keys_stop: int,
    starts: int,
    starts_stop: int,
) -> int:
    """Find the position of the key that a row names; -1 when it is not there."""
    at = hash_ & mask
    word = load_i64(table, at)
    while word != 0:
        if ((word ^ hash_) >> 32) & _LOW_32 == 0:
            entry = (word & _LOW_32) - 1
            if _is_key(entry, body, body_stop, shape, keys, keys_stop, starts, starts_stop):
                return int(entry)
        at = (at + 1) & mask
        word = load_i64(table, at)
    return -1


@inline_kernel
def _expected(
    line: int,
    field: int,
    stop: int,
    is_first: bool,
    entry: int,
    series_size: int,
    keys: int,
    keys_stop: int,
    starts: int,
    starts_stop: int,
) -> int:
    """Tell whether a line names the key at a position, with its first field or with the one at `field`.

    Returns
    -------
    int
        Bytes of the field's name, an equals sign behind which was seen; 0 when it is another key.
    """
    if starts + 8 * (entry + 2) > starts_stop:
        return 0
    start = load_i64(starts, entry)
    size = load_i64(starts, entry + 1) - start
    field_size: int = size - series_size - 1
    if field_size <= 0 or keys + start + size > keys_stop:
        return 0
    key = keys + start
    if is_first:
        # A key is written as a line is.
        field = line + series_size + 1
    if field + field_size >= stop:
        return 0
    if is_first:
        if not same_bytes(line, key, size, stop, keys_stop):
            return 0
    elif not (
        same_bytes(field, key + series_size + 1, field_size, stop, keys_stop)
        and same_bytes(line, key, series_size, stop, keys_stop)
    ):
        return 0
    # Behind a backslash the equals sign would belong to the name.
    if load_u8(field, field_size) != _EQUALS or load_u8(key, size - 1) == _BACKSLASH:
        return 0
    return field_size


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
        if first == _SPACE or first == _COMMA:
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
                    field_size = _expected(
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
                        series_end, series_hash = _scan(line, stop, seed, _SPACE)
                        if series_end == 0 or series_end - line > PART_BYTES_MAX:
                            return GIVE_UP, line - address, first_row, line_missing, line_previous, credit
                        series_size = series_end - line
                        at = series_end
                    else:
                        series_hash = hash_bytes(line, series_size, stop, seed)
                    is_hashed = True
                field = at + 1
                before = read_byte(field, stop)
                if before == _EQUALS or before == _SPACE:
                    return GIVE_UP, line - address, first_row, line_missing, line_previous, credit
                field_end, field_hash = _scan(field, stop, series_hash, _EQUALS)
                if field_end == 0 or field_end - field > PART_BYTES_MAX or field - line >= 1 << 31:
                    return GIVE_UP, line - address, first_row, line_missing, line_previous, credit
                field_size = field_end - field
                shape = (field - line) << 32 | series_size << 16 | field_size
                row_hash = signed(field_hash)
                if credit > 0:
                    credit -= 1
                    entry = _look_up(
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
        if mark == _SPACE:
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


@kernel
def _find(
    address: int,
    length: int,
    hashes: NDArray[np.int64],
    places: NDArray[np.int64],
    shapes: NDArray[np.int64],
    ids: NDArray[np.int64],
    table: int,
    table_size: int,
    keys: int,
    keys_size: int,
    starts: int,
    starts_size: int,
    given_ids: NDArray[np.int64],
    followers: NDArray[np.int64],
    first_id: int,
) -> int:
    """Look up the series of rows; see `find_series`."""
    stop = address + length
    keys_stop = keys + keys_size
    starts_stop = starts + 8 * starts_size
    mask = table_size - 1
    missing = 0
    entries = np.empty(_GROUP, np.int64)
    rows = np.empty(_GROUP, np.int64)
    following = 0
    while following < len(ids):
        count = 0
        while count < _GROUP and following < len(ids):
            if ids[following] < 0:
                rows[count] = following
                count += 1
            following += 1
        for index in range(count):
            prefetch(table + 8 * (hashes[int(rows[index])] & mask))
        for index in range(count):
            hash_ = hashes[int(rows[index])]
            at = hash_ & mask
            word = load_i64(table, at)
            while word != 0 and ((word ^ hash_) >> 32) & _LOW_32 != 0:
                at = (at + 1) & mask
                word = load_i64(table, at)
            entries[index] = (word & _LOW_32) - 1
            if word != 0:
                prefetch(starts + 8 * entries[index])
        for index in range(count):
            entry = entries[index]
            if entry >= 0 and starts + 8 * (entry + 2) <= starts_stop:
                prefetch(keys + load_i64(starts, entry))
        for index in range(count):
            row = int(rows[index])
            body, shape = address + places[row], shapes[row]
            entry = entries[index]
            if entry >= 0 and not _is_key(entry, body, stop, shape, keys, keys_stop, starts, starts_stop):
                # Another key with the same half of a hash stands before it, or it is not there.
                entry = _look_up(
                    hashes[row], body, stop, shape, table, mask, keys, keys_stop, starts, starts_stop
                )
            if entry < 0:
                missing += 1
            elif len(given_ids) > 0:
                ids[row] = given_ids[entry]
            else:
                ids[row] = first_id + entry
                previous = ids[row - 1] - first_id if row > 0 else -1
                if 0 <= previous < len(followers):
                    followers[previous] = ((shape >> 16) & 0xFFFF) << 32 | (entry + 1)
    return missing


@kernel
def _hash(
    keys: int,
    keys_size: int,
    seed: int,
    starts: NDArray[np.int64],
    hashes: NDArray[np.int64],
    shapes: NDArray[np.int64],
) -> int:
    """Hash keys; see `hash_keys`."""
    stop = keys + keys_size
    for entry in range(len(hashes)):
        start, size = keys + starts[entry], starts[entry + 1] - starts[entry]
        end, series_hash = _scan(start, stop, seed, _SPACE)
        field = end + 1
        field_size = start + size - field
        if end == 0 or field_size < 1:
            return entry
        hashes[entry] = signed(hash_bytes(field, field_size, stop, series_hash))
        shapes[entry] = (field - start) << 32 | (end - start) << 16 | field_size
    return len(hashes)


@kernel
def add_to_table(table: NDArray[np.int64], hashes: NDArray[np.int64], first: int) -> None:
    """Enter keys into a table, which must have room.

    Parameters
    ----------
    table : ndarray of int64, shape (2**k,)
        More than `first` and the new keys together.
    hashes : ndarray of int64, shape (n,)
        Of keys that are not in it.
    first : int
        Position of the first of them.
    """
    mask = len(table) - 1
    for index in range(len(hashes)):
        hash_ = hashes[index]
        at = hash_ & mask
        while table[at] != 0:
            at = (at + 1) & mask
        table[at] = ((hash_ >> 32) << 32) | (first + index + 1)


class Keys(NamedTuple):
    """A table of keys, as the kernels read it.

    Attributes
    ----------
    keys : ndarray of uint8
        One after the other; at least eight bytes longer than they are.
    starts : ndarray of int64
        Byte at which each key starts, and behind the last one its end.
    table : ndarray of int64, shape (2**k,)
        Never full.
    ids : ndarray of int64
        The id of each key; empty when they have consecutive ones.
    followers : ndarray of int64
        Of each key, the one that was named behind it: its position plus one, 0 when none is known, and in the
        high half the bytes of its series. A guess only; empty to make none. Kernels write it.
    """

    keys: NDArray[np.uint8]
    starts: NDArray[np.int64]
    table: NDArray[np.int64]
    ids: NDArray[np.int64]
    followers: NDArray[np.int64]


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


def find_series(
    body: NDArray[np.uint8],
    hashes: NDArray[np.int64],
    places: NDArray[np.int64],
    shapes: NDArray[np.int64],
    ids: NDArray[np.int64],
    known: Keys,
    first_id: int,
) -> int:
    """Look up the series of rows in a table of keys.

    Parameters
    ----------
    body : ndarray of uint8
        What was parsed.
    hashes, places, shapes, ids : ndarray of int64, shape (n,)
        As in `Rows`; rows that have an id are left alone.
    known : Keys
    first_id : int
        Of its first key, unless they have ids of their own.

    Returns
    -------
    int
        Rows that are not found.
    """
    return _find(
        address_of(body),
        len(body),
        hashes,
        places,
        shapes,
        ids,
        address_of(known.table),
        len(known.table),
        address_of(known.keys),
        len(known.keys),
        address_of(known.starts),
        len(known.starts),
        known.ids,
        known.followers,
        first_id,
    )


def hash_keys(
    keys: NDArray[np.uint8], seed: int, starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hash whole keys as `parse_lines` hashes what lines name.

    Parameters
    ----------
    keys : ndarray of uint8
        Keys one after the other, and at least eight bytes more.
    seed : int
    starts : ndarray of int64, shape (n + 1,)
        Where each starts and the last one ends.

    Returns
    -------
    hashes, shapes : ndarray of int64, shape (n,)

    Raises
    ------
    ValueError
        One of them is no key.
    """
    hashes, shapes = (np.empty(len(starts) - 1, np.int64) for _ in range(2))
    good = _hash(address_of(keys), len(keys), seed, starts, hashes, shapes)
    if good < len(hashes):
        raise ValueError(f"key {good} has no field")
    return hashes, shapes


def warmup() -> None:
    """Compile the kernels, or load them from the cache, for the array types that writes pass."""
    body = np.frombuffer(b"cpu,host=a usage=0.5 1\n", np.uint8)
    rows = Rows(1)
    keys = np.zeros(40, np.uint8)
    key = b"cpu,host=a usage"
    keys[: len(key)] = np.frombuffer(key, np.uint8)
    starts = np.array([0, len(key)])
    hashes, _ = hash_keys(keys, 1, starts)
    table = np.zeros(4, np.int64)
    known = Keys(keys, starts, table, np.empty(0, np.int64), np.zeros(1, np.int64))
    parse_lines(body, 0, 1, 1, 0, rows, known, 0)
    add_to_table(table, hashes, 0)
    columns = (rows.hashes[:1], rows.places[:1], rows.shapes[:1], rows.ids[:1])
    find_series(body, *columns, known, 0)
