"""Decodes the pages of compressed segments: the two of Parquet's encodings that NumPy cannot undo.

Both formats are those of the Parquet specification [1]_. The kernels trust nothing: whatever the bytes say,
nothing outside of the arrays is read or written, and what does not add up is reported. Whether the values
are the right ones only their checksum tells.

References
----------
.. [1] https://parquet.apache.org/docs/file-format/data-pages/encodings/
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit._compile import JIT_DISABLED, inline_kernel, kernel, load_i64, load_u8

if TYPE_CHECKING:
    from numpy.typing import NDArray

MALFORMED = -1
"""What the decoders return when the bytes are not what they should be."""

MINIBLOCK_VALUES_MAX = 1 << 16
MINIBLOCKS_MAX = 1 << 10
INDEX_BITS_MAX = 32
ZERO = np.uint64(0)
ONE = np.uint64(1)
ALL = np.uint64(2**64 - 1)

if JIT_DISABLED:

    def unsigned(number: int) -> np.uint64:
        """Return the int64 of the same 64 bits as uint64."""
        return np.uint64(int(number) & (2**64 - 1))

    def signed(number: np.uint64) -> int:
        """Return the uint64 of the same 64 bits as int64."""
        return int(number) - (2**64 if int(number) >= 2**63 else 0)

    def add(left: np.uint64, right: np.uint64) -> np.uint64:
        """Add modulo 2**64."""
        return np.uint64((int(left) + int(right)) & (2**64 - 1))

else:

    @inline_kernel
    def unsigned(number: int) -> np.uint64:
        """Return the int64 of the same 64 bits as uint64."""
        return np.uint64(number)

    @inline_kernel
    def signed(number: np.uint64) -> int:
        """Return the uint64 of the same 64 bits as int64."""
        return np.int64(number)  # type: ignore[return-value]

    @inline_kernel
    def add(left: np.uint64, right: np.uint64) -> np.uint64:
        """Add modulo 2**64."""
        return left + right


@inline_kernel
def read_varint(address: int, size: int, position: int) -> tuple[np.uint64, int]:
    """Read an unsigned LEB128 number of at most 64 bits.

    Returns
    -------
    number : uint64
    position : int
        Behind it; `MALFORMED` when it does not end, or is larger.
    """
    number = ZERO
    shift = 0
    while position < size and shift < 64:
        byte = load_u8(address, position)
        position += 1
        number |= unsigned(byte & 0x7F) << np.uint64(shift)
        if byte < 0x80:
            return number, position
        shift += 7
    return ZERO, MALFORMED


@inline_kernel
def zigzag(number: np.uint64) -> np.uint64:
    """Undo the mapping of signed to unsigned numbers; the result is the two's complement."""
    return (number >> ONE) ^ (ALL if number & ONE else ZERO)


@inline_kernel
def read_bits(address: int, size: int, bit: int, width: int) -> np.uint64:
    """Read `width` bits (1 to 64) from bit `bit` on, the lowest first; they end within `size` bytes."""
    byte = bit >> 3
    shift = bit & 7
    if byte + 8 <= size:
        word = unsigned(load_i64(address + byte, 0))
    else:
        word = ZERO
        for index in range(size - byte):
            word |= unsigned(load_u8(address, byte + index)) << np.uint64(8 * index)
    word >>= np.uint64(shift)
    if shift + width > 64:
        word |= unsigned(load_u8(address, byte + 8)) << np.uint64(64 - shift)
    return word & (ALL >> np.uint64(64 - width))


@kernel
def decode_deltas(data: NDArray[np.uint8], out: NDArray[np.int64]) -> int:
    """Decode a page of DELTA_BINARY_PACKED int64.

    Parameters
    ----------
    data : ndarray of uint8, shape (bytes,), contiguous
    out : ndarray of int64, shape (n,)
        Written: all values of the page, which must be `n`.

    Returns
    -------
    int
        `n`, or `MALFORMED`.
    """
    address = int(np.int64(data.ctypes.data))
    size = len(data)
    total = len(out)
    block_values, position = read_varint(address, size, 0)
    if position < 0:
        return MALFORMED
    miniblocks, position = read_varint(address, size, position)
    if position < 0:
        return MALFORMED
    count, position = read_varint(address, size, position)
    if position < 0:
        return MALFORMED
    first, position = read_varint(address, size, position)
    if position < 0 or count != np.uint64(total):
        return MALFORMED
    if miniblocks < ONE or miniblocks > np.uint64(MINIBLOCKS_MAX):
        return MALFORMED
    if block_values > np.uint64(MINIBLOCKS_MAX * MINIBLOCK_VALUES_MAX):
        return MALFORMED
    parts = signed(miniblocks)
    each = signed(block_values) // parts
    if each < 8 or each > MINIBLOCK_VALUES_MAX or each % 8 != 0:
        return MALFORMED
    if total == 0:
        return 0
    value = zigzag(first)
    out[0] = signed(value)
    row = 1
    while row < total:
        least, position = read_varint(address, size, position)
        if position < 0:
            return MALFORMED
        least = zigzag(least)
        widths = position
        position += parts
        if position > size:
            return MALFORMED
        for part in range(parts):
            if row == total:
                break
            width = load_u8(address, widths + part)
            if width > 64 or position + each // 8 * width > size:
                return MALFORMED
            stop = min(total, row + each)
            if width == 0:
                while row < stop:
                    value = add(value, least)
                    out[row] = signed(value)
                    row += 1
            else:
                bit = 8 * position
                while row < stop:
                    value = add(value, add(least, read_bits(address, size, bit, width)))
                    out[row] = signed(value)
                    bit += width
                    row += 1
            position += each // 8 * width
    return total


@kernel
def decode_indices(data: NDArray[np.uint8], dictionary: NDArray[np.int64], out: NDArray[np.int64]) -> int:
    """Decode a page of RLE_DICTIONARY, whose first byte is the width of its indices.

    Parameters
    ----------
    data : ndarray of uint8, shape (bytes,), contiguous
    dictionary : ndarray of int64, shape (m,), contiguous
        The bits of the values.
    out : ndarray of int64, shape (n,)
        Written: the bits of the page's `n` values.

    Returns
    -------
    int
        `n`, or `MALFORMED`.
    """
    address = int(np.int64(data.ctypes.data))
    size = len(data)
    total = len(out)
    entries = np.uint64(len(dictionary))
    if size == 0:
        return MALFORMED
    width = load_u8(address, 0)
    if width > INDEX_BITS_MAX:
        return MALFORMED
    position = 1
    row = 0
    while row < total:
        header, position = read_varint(address, size, position)
        if position < 0 or header > np.uint64(2 * (total + 8) + 1):
            return MALFORMED
        count = signed(header >> ONE)
        if count == 0:
            return MALFORMED
        if header & ONE:
            if position + count * width > size:
                return MALFORMED
            stop = min(total, row + 8 * count)
            bit = 8 * position
            while row < stop:
                index = ZERO
                if width > 0:
                    index = read_bits(address, size, bit, width)
                if index >= entries:
                    return MALFORMED
                out[row] = dictionary[np.int64(index)]
                bit += width
                row += 1
            position += count * width
        else:
            whole = (width + 7) // 8
            if position + whole > size:
                return MALFORMED
            index = ZERO
            for byte in range(whole):
                index |= unsigned(load_u8(address, position + byte)) << np.uint64(8 * byte)
            position += whole
            if index >= entries:
                return MALFORMED
            stop = min(total, row + count)
            bits = dictionary[np.int64(index)]
            while row < stop:
                out[row] = bits
                row += 1
    return total


def warmup() -> None:
    """Compile every kernel, or load it from the cache, with the types of real calls: read-only bytes."""
    data = np.zeros(1, np.uint8)
    data.flags.writeable = False
    out = np.zeros(1, np.int64)
    values = np.zeros(1, np.int64)
    values.flags.writeable = False
    decode_deltas(data, out)
    decode_indices(data, values, out)
