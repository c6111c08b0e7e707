"""Names of series as bytes: where they end in a line, their hashes, and a table of them.

A table of keys (`omendb.series` says what a key is) consists of the keys one after the other, where each
starts, and an open-addressing table of words: the high half is that of the hash, the low half the key's
position plus one, 0 is empty. Keys may be added while another thread looks others up: the table's word comes
last, and a position that lies beyond the arrays that the reader was given is taken for another key's. What is
missed that way is found under the lock.

The hash only finds candidates: the bytes are compared. Hashes are seeded: nobody outside can make keys
collide. No byte outside of the arrays is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from llvmlite import ir

from omendb.jit._compile import inline_kernel, kernel, load_i64, load_u8, multiply_fold, prefetch
from omendb.jit.encode import address_of, instruction
from omendb.jit.parse import read_word

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOW_32 = 0xFFFFFFFF
_PRIME = 0x9E3779B185EBCA87 - 2**64
_WORD_MASK = (1 << 64) - 1
_ONES = 0x0101010101010101
_HIGHS = 0x8080808080808080
_GROUP = 16

SPACE = ord(" ")
EQUALS = ord("=")
_LINE_END = ord("\n")
_BACKSLASH = ord("\\")


def emit_bytes_before(stops: bytes) -> Any:  # noqa: ANN401
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


def bytes_before(word: int, stops: bytes) -> int:
    """Count them in plain Python, where nothing is compiled."""
    text = (int(word) & _WORD_MASK).to_bytes(8, "little")
    return next((index for index, byte in enumerate(text) if byte in stops), 8)


@instruction(emit_bytes_before(b" \\\n"))
def _series_bytes(word: int) -> int:
    """Count the bytes before the first that may end the name of a series."""
    return bytes_before(word, b" \\\n")


@instruction(emit_bytes_before(b"=\\\n"))
def _field_bytes(word: int) -> int:
    """Count the bytes before the first that may end the name of a field."""
    return bytes_before(word, b"=\\\n")


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
def scan(at: int, stop: int, seed: int, mark: int) -> tuple[int, int]:
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
        count = _series_bytes(word) if mark == SPACE else _field_bytes(word)
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
        and load_u8(key, series_size) == SPACE
        and same_bytes(field, key + series_size + 1, field_size, body_stop, keys_stop)
    )


@inline_kernel
def look_up(
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
def expected(
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
    if load_u8(field, field_size) != EQUALS or load_u8(key, size - 1) == _BACKSLASH:
        return 0
    return field_size


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
                entry = look_up(
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
        end, series_hash = scan(start, stop, seed, SPACE)
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
    body = np.frombuffer(b"cpu,host=a usage", np.uint8)
    keys = np.zeros(40, np.uint8)
    keys[: len(body)] = body
    starts = np.array([0, len(body)])
    hashes, shapes = hash_keys(keys, 1, starts)
    table = np.zeros(4, np.int64)
    add_to_table(table, hashes, 0)
    known = Keys(keys, starts, table, np.empty(0, np.int64), np.zeros(1, np.int64))
    find_series(body, hashes, starts[:1], shapes, np.full(1, -1), known, 0)
