"""Reads short records of the write-ahead log in bulk (docs/format/wal.md).

A record of a single point has 72 bytes, two checksums and a dozen Python objects; taken one at a time they
made a replay of small inserts twenty times slower than one of large ones. The kernel checks everything that
the reader of single records checks, and stops in front of whatever it does not accept: that record is then
judged by the careful reader, so that what a damaged log means is decided in one place.

Integers wrap as in two's complement; under ``NUMBA_DISABLE_JIT=1`` they grow instead, and comparisons look
at their low 64 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit._compile import inline_kernel, kernel, load_i64, multiply_fold

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER_WORDS = 6
MAGIC = 0x444E4D4F
KIND_POINTS = 1
KIND_SERIES = 2
PAYLOAD_BYTES_MAX = 240
"""Longer payloads are hashed by another algorithm of XXH3, and are worth a call of their own."""

_LOW_32 = 0xFFFFFFFF
_PRIME = 0x9E3779B185EBCA87 - 2**64
_PRIME_AVALANCHE = 0x165667919E3779F9

# The first 136 bytes of XXH3's default secret.
SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
        "eac5ac8334d3ebc3"
    ),
    np.uint8,
)


@inline_kernel
def _mix(address: int, secret: int, seed: int) -> int:
    """Mix 16 bytes at `address` with 16 of the secret."""
    return multiply_fold(
        load_i64(address, 0) ^ (load_i64(secret, 0) + seed),
        load_i64(address, 1) ^ (load_i64(secret, 1) - seed),
    )


@inline_kernel
def _avalanche(value: int) -> int:
    value = value ^ ((value >> 37) & ((1 << 27) - 1))
    value = value * _PRIME_AVALANCHE
    return value ^ ((value >> 32) & _LOW_32)


@kernel
def checksum_short(address: int, size: int, seed: int, secret: int) -> int:
    """XXH3, 64 bits, of 17 to 240 bytes.

    Parameters
    ----------
    address : int
        Of the first byte.
    size : int
        In bytes, 17 to `PAYLOAD_BYTES_MAX`.
    seed : int
    secret : int
        Address of `SECRET`.

    Returns
    -------
    int
        Its low 64 bits are the checksum.

    Notes
    -----
    Two multiplications for each 16 bytes, O(size).

    References
    ----------
    .. [1] xxHash, "XXH3 algorithm (64 bits)", doc/xxhash_spec.md, medium inputs.
    """
    total = size * _PRIME
    if size <= 128:
        if size > 32:
            if size > 64:
                if size > 96:
                    total += _mix(address + 48, secret + 96, seed)
                    total += _mix(address + size - 64, secret + 112, seed)
                total += _mix(address + 32, secret + 64, seed)
                total += _mix(address + size - 48, secret + 80, seed)
            total += _mix(address + 16, secret + 32, seed)
            total += _mix(address + size - 32, secret + 48, seed)
        total += _mix(address, secret, seed)
        total += _mix(address + size - 16, secret + 16, seed)
        return _avalanche(total)
    for part in range(8):
        total += _mix(address + 16 * part, secret + 16 * part, seed)
    total = _avalanche(total)
    for part in range(8, size // 16):
        total += _mix(address + 16 * part, secret + 16 * (part - 8) + 3, seed)
    total += _mix(address + size - 16, secret + 119, seed)
    return _avalanche(total)


@inline_kernel
def _differ(left: int, right: int) -> bool:
    """Whether two integers differ in their low 64 bits."""
    difference = left ^ right
    return (difference & _LOW_32) != 0 or ((difference >> 32) & _LOW_32) != 0


@kernel
def read_short_records(
    address: int,
    start: int,
    stop: int,
    covered: int,
    secret: int,
    series: NDArray[np.int64],
    timestamp: NDArray[np.int64],
    value_bits: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """Read consecutive short records, as far as they are whole and their rows fit.

    Parameters
    ----------
    address : int
        Of the file's bytes.
    start, stop : int
        Bytes of the file to look at, half-open.
    covered : int
        The rows of records up to this sequence are checked, but not returned.
    secret : int
        Address of `SECRET`.
    series, timestamp, value_bits : ndarray of int64, shape (n,)
        Filled with the records' rows, in order; values as the bits of float64.

    Returns
    -------
    tuple of int
        Records read, rows filled in, the first record's sequence, and the byte after the last record.

    Notes
    -----
    About 50 ns a record of one row, O(bytes).
    """
    records = rows_filled = first_sequence = 0
    while start + 8 * HEADER_WORDS <= stop:
        head = address + start
        mark = load_i64(head, 0)
        kind = (mark >> 32) & _LOW_32
        sequence = load_i64(head, 1)
        shape = load_i64(head, 3)
        rows = shape & _LOW_32
        size = (shape >> 32) & _LOW_32
        series_rows = 1 if kind == KIND_SERIES else rows
        body = head + 8 * HEADER_WORDS
        if (
            (mark & _LOW_32) != MAGIC
            or rows == 0
            or sequence < 0  # as an unsigned number beyond int64: this kernel would take it for an old one
            or size > PAYLOAD_BYTES_MAX
            or size != 8 * series_rows + 16 * rows
            or start + 8 * HEADER_WORDS + size > stop
            or (kind != KIND_POINTS and kind != KIND_SERIES)
            or (records > 0 and sequence != first_sequence + records)
            or rows_filled + rows > len(series)
            or _differ(checksum_short(head, 8 * HEADER_WORDS - 8, 0, secret), load_i64(head, 5))
            or _differ(checksum_short(body, size, sequence, secret), load_i64(head, 4))
        ):
            break
        if records == 0:
            first_sequence = sequence
        records += 1
        start += 8 * HEADER_WORDS + size
        if sequence <= covered:
            continue
        for row in range(rows):
            series[rows_filled] = load_i64(body, row if kind == KIND_POINTS else 0)
            timestamp[rows_filled] = load_i64(body, series_rows + row)
            value_bits[rows_filled] = load_i64(body, series_rows + rows + row)
            rows_filled += 1
    return records, rows_filled, first_sequence, start


def warmup() -> None:
    """Call every kernel once with the argument types of production, so that it is compiled and cached."""
    data = np.zeros(PAYLOAD_BYTES_MAX, np.uint8)
    series, timestamp, value_bits = (np.empty(1, np.int64) for _ in range(3))
    checksum_short(data.ctypes.data, len(data), 0, SECRET.ctypes.data)
    read_short_records(data.ctypes.data, 0, len(data), 0, SECRET.ctypes.data, series, timestamp, value_bits)
