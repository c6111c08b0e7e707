"""Pieces of the keys of series: measurement, tags and field, to be indexed and compared.

What a key is stands in `omendb.series`: ``measurement,tag=value,tag=value field``, with a backslash before
each comma, space and equals sign that belongs to a name. Equal names are equal bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit._compile import inline_kernel, kernel, load_u8
from omendb.jit.encode import address_of
from omendb.jit.keys import hash_bytes, same_bytes, signed

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEASUREMENT = 1
TAG = 2
FIELD = 3

_COMMA = ord(",")
_SPACE = ord(" ")
_BACKSLASH = ord("\\")


@inline_kernel
def _piece_end(at: int, stop: int) -> int:
    """Return the address of the first comma or space that no backslash precedes, or `stop`."""
    before = 0
    while at < stop:
        byte = load_u8(at, 0)
        if (byte == _COMMA or byte == _SPACE) and before != _BACKSLASH:
            break
        before = byte
        at += 1
    return at


@kernel
def _hash_pieces(
    keys: int,
    keys_size: int,
    starts: NDArray[np.int64],
    seed: int,
    first: int,
    stop: int,
    out_hash: NDArray[np.int64],
    out_entry: NDArray[np.uint32],
) -> int:
    """Hash the pieces of keys; see `hash_pieces`."""
    keys_stop = keys + keys_size
    count = 0
    for entry in range(first, stop):
        at, end = keys + starts[entry], keys + starts[entry + 1]
        kind = MEASUREMENT
        while at <= end:
            piece_end = _piece_end(at, end) if kind != FIELD else end
            out_hash[count] = signed(hash_bytes(at, piece_end - at, keys_stop, seed + kind))
            out_entry[count] = entry
            count += 1
            if piece_end >= end:
                break
            kind = FIELD if load_u8(piece_end, 0) == _SPACE else TAG
            at = piece_end + 1
    return count


@kernel
def _have_piece(
    keys: int,
    keys_size: int,
    starts: NDArray[np.int64],
    entries: NDArray[np.uint32],
    kind: int,
    piece: int,
    piece_size: int,
    piece_room: int,
    out: NDArray[np.bool_],
) -> None:
    """Compare; see `have_piece`."""
    keys_stop = keys + keys_size
    for index in range(len(entries)):
        entry = np.int64(entries[index])
        at, end = keys + starts[entry], keys + starts[entry + 1]
        found = False
        is_kind = MEASUREMENT
        while at <= end and not found:
            piece_end = _piece_end(at, end) if is_kind != FIELD else end
            if is_kind == kind and piece_end - at == piece_size:
                found = same_bytes(at, piece, piece_size, keys_stop, piece + piece_room)
            if piece_end >= end:
                break
            is_kind = FIELD if load_u8(piece_end, 0) == _SPACE else TAG
            at = piece_end + 1
        out[index] = found


def hash_pieces(
    keys: NDArray[np.uint8], starts: NDArray[np.int64], seed: int, first: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Hash every piece of some keys.

    Parameters
    ----------
    keys : ndarray of uint8
        At least eight bytes longer than the keys.
    starts : ndarray of int64
        Where each starts, and behind the last one its end.
    seed : int
    first, stop : int
        Positions of keys, half-open.

    Returns
    -------
    hashes : ndarray of int64, shape (n,)
        One a piece, in the order of the keys.
    entries : ndarray of uint32, shape (n,)
        Whose piece it is.
    """
    text = keys[starts[first] : starts[stop]]
    room = int(np.count_nonzero(text == _COMMA)) + 2 * (stop - first)
    hashes, entries = np.empty(room, np.int64), np.empty(room, np.uint32)
    count = _hash_pieces(address_of(keys), len(keys), starts, seed, first, stop, hashes, entries)
    return hashes[:count], entries[:count]


def hash_piece(piece: bytes, kind: int, seed: int) -> int:
    """Hash one piece as `hash_pieces` does."""
    padded = np.frombuffer(piece + bytes(8), np.uint8)
    return int(_hash_piece(address_of(padded), len(piece), len(padded), seed + kind))


@kernel
def _hash_piece(piece: int, size: int, room: int, seed: int) -> int:
    return signed(hash_bytes(piece, size, piece + room, seed))


def have_piece(
    keys: NDArray[np.uint8],
    starts: NDArray[np.int64],
    entries: NDArray[np.uint32],
    piece: bytes,
    kind: int,
) -> NDArray[np.bool_]:
    """Say which keys have a piece, byte by byte.

    Parameters
    ----------
    keys : ndarray of uint8
        At least eight bytes longer than the keys.
    starts : ndarray of int64
    entries : ndarray of uint32, shape (n,)
        Positions of keys.
    piece : bytes
        A measurement, ``tag=value`` or a field, as keys hold it.
    kind : int
        `MEASUREMENT`, `TAG` or `FIELD`.

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    padded = np.frombuffer(piece + bytes(8), np.uint8)
    out = np.empty(len(entries), np.bool_)
    _have_piece(
        address_of(keys),
        len(keys),
        starts,
        entries,
        kind,
        address_of(padded),
        len(piece),
        len(padded),
        out,
    )
    return out


def warmup() -> None:
    """Compile the kernels, or load them from the cache, for the array types that look-ups pass."""
    key = b"cpu,host=a usage"
    keys = np.zeros(40, np.uint8)
    keys[: len(key)] = np.frombuffer(key, np.uint8)
    starts = np.array([0, len(key)])
    _, entries = hash_pieces(keys, starts, 1, 0, 1)
    hash_piece(b"cpu", MEASUREMENT, 1)
    have_piece(keys, starts, entries, b"cpu", MEASUREMENT)
