"""The pages of compressed segments: where they stand, and decoding one block of rows at a time.

Parquet's page headers are Thrift structs in the compact protocol; Arrow reads pages, but does not tell where
they are, and decodes no less than a row group. So that a query decodes only the blocks that it touches, they
are read here: a page holds one block of rows (`omendb.storage.format.BLOCK_SHIFT`). Layout:
docs/format/segment.md.

A page is parsed only when its bytes match their checksum, and believed only when the decoded block matches
its own.
"""

from __future__ import annotations

import itertools
import threading
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zstandard

from omendb.errors import CorruptionError
from omendb.jit import pages
from omendb.storage import format  # noqa: A004
from omendb.storage.learned_index import Pages

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from omendb.storage.fs import MappedFile
    from omendb.storage.learned_index import LearnedIndex

_HEADER_BYTES_MAX = 4_096  # of a page; Arrow writes about 60, and bounds of strings do not occur
_DEPTH_MAX = 8

_local = threading.local()

# Of Parquet's parquet.thrift.
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _DELTA_BINARY_PACKED, _RLE_DICTIONARY, _BYTE_STREAM_SPLIT = 0, 5, 8, 9
# Of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET = range(1, 11)
_STRUCT = 12


class MalformedPageError(Exception):
    """Bytes that are no page, or not the one that stands there."""


class PageHeader(NamedTuple):
    """What is used of a page's header.

    Attributes
    ----------
    bytes : int
        Length of the header.
    kind : int
        Parquet's PageType.
    uncompressed_bytes, compressed_bytes : int
        Of the body.
    values : int
    encoding : int
        Parquet's Encoding of the values.
    """

    bytes: int
    kind: int
    uncompressed_bytes: int
    compressed_bytes: int
    values: int
    encoding: int


def parse_header(data: bytes | memoryview) -> PageHeader:
    """Read the header at the start of a page.

    Raises
    ------
    MalformedPageError
    """
    try:
        fields, size = _struct(data, 0, 0)
        kind = fields[1]
        details = fields[{_DATA_PAGE: 5, _DICTIONARY_PAGE: 7}[kind]]
        return PageHeader(size, kind, fields[2], fields[3], details[1], details[2])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise MalformedPageError("the page has no sound header") from error


def _varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _struct(data: bytes | memoryview, position: int, depth: int) -> tuple[dict[int, Any], int]:
    """Read a struct; return its fields by number, and where it ends."""
    if depth > _DEPTH_MAX:
        raise ValueError("structs are nested too deep")
    fields: dict[int, Any] = {}
    number = 0
    while True:
        byte = data[position]
        position += 1
        if byte == 0:
            return fields, position
        kind = byte & 0x0F
        if byte >> 4:
            number += byte >> 4
        else:
            number, position = _varint(data, position)
            number = (number >> 1) ^ -(number & 1)
        fields[number], position = _value(data, position, kind, depth)


def _value(data: bytes | memoryview, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I32, _I64, _I16):
        number, position = _varint(data, position)
        return (number >> 1) ^ -(number & 1), position
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, position
    if kind == _BINARY:
        size, position = _varint(data, position)
        return bytes(data[position : position + size]), position + size
    if kind == _STRUCT:
        return _struct(data, position, depth + 1)
    if kind == _BYTE:
        return data[position], position + 1
    if kind == _DOUBLE:
        return None, position + 8
    if kind in (_LIST, _SET):
        head = data[position]
        position += 1
        count = head >> 4
        if count == 15:
            count, position = _varint(data, position)
        if count > len(data):
            raise ValueError("a list is too long")
        for _ in range(count):
            _, position = _value(data, position, head & 0x0F, depth + 1)
        return None, position
    raise ValueError(f"type {kind} does not occur in page headers")


def find_pages(
    file: MappedFile, path: str, rows: int, columns: tuple[tuple[int, int], tuple[int, int]]
) -> Pages:
    """Find the pages of a compressed segment by going from header to header.

    Parameters
    ----------
    file : MappedFile
    path : str
        For messages.
    rows : int
    columns : tuple of (start, stop)
        Where timestamps and values stand in the file.

    Raises
    ------
    CorruptionError
        They are not one for each block.
    OSError
    """
    blocks = -(-rows >> format.BLOCK_SHIFT)
    places_found, checksums_found = [], []
    for start, stop in columns:
        places: list[int] = []
        data = memoryview(file.read_at(start, stop - start))
        position = 0
        try:
            while position < len(data):
                header = parse_header(data[position : position + _HEADER_BYTES_MAX])
                if header.kind == _DATA_PAGE:
                    places.append(start + position)
                position += header.bytes + max(header.compressed_bytes, 0)
        except MalformedPageError as error:
            raise CorruptionError(path, start + position, str(error)) from error
        places.append(start + position)
        if len(places) != blocks + 1 or position != stop - start:
            raise CorruptionError(path, start, f"{len(places) - 1} pages hold {blocks} blocks of rows")
        places_found.append(np.array(places, np.int64))
        bounds = [0, *(place - start for place in places)]
        checksums_found.append(
            np.array([format.checksum(data[low:high]) for low, high in itertools.pairwise(bounds)], np.uint64)
        )
    return Pages(places_found[0], places_found[1], checksums_found[0], checksums_found[1])


def _decompressed(packed: memoryview, size: int) -> NDArray[np.uint8]:
    """Decompress the body of a page.

    A decompressor is kept by each thread: to make one for a page costs many times what decompressing it does.
    """
    try:
        decompress = _local.decompress
    except AttributeError:
        decompress = _local.decompress = zstandard.ZstdDecompressor().decompress
    try:
        # The frame must not say that it holds more than the page's header says.
        if zstandard.frame_content_size(packed) not in (size, -1):
            raise MalformedPageError("the page has another length than its header says")
        body = decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise MalformedPageError(f"the page cannot be decompressed: {error}") from error
    if len(body) != size:
        raise MalformedPageError("the page has another length than its header says")
    return np.frombuffer(body, np.uint8)  # read-only, as the kernels' types have it


class PageReader:
    """Decodes blocks of one compressed segment; any thread may call it.

    Parameters
    ----------
    file : MappedFile
    path : str
        For messages.
    index : LearnedIndex
        With `pages`.
    """

    def __init__(self, file: MappedFile, path: str, index: LearnedIndex) -> None:
        assert index.pages is not None
        self._file = file
        self._path = path
        self._rows = index.binding.rows
        self._values_start = index.binding.value_offset
        self._index = index
        self._pages: Pages = index.pages
        # What the header of a page says, by column and block: 0 until it was read for the first time.
        self._headers = tuple(array("Q", bytes(8 * self.blocks)) for _ in range(2))
        self._dictionary: NDArray[np.int64] | None = None
        self._lock = threading.Lock()  # protects `_dictionary` from being read twice at a time

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self._pages.value) - 1

    @property
    def dictionary_bytes(self) -> int:
        """Memory that the dictionary of the values takes now."""
        dictionary = self._dictionary
        return 0 if dictionary is None else dictionary.nbytes

    def drop_dictionary(self) -> None:
        """Forget the dictionary; it is read again when it is needed."""
        self._dictionary = None

    def rows_of(self, block: int) -> int:
        """Return the number of rows of a block."""
        return min(self._rows - (block << format.BLOCK_SHIFT), 1 << format.BLOCK_SHIFT)

    def read_timestamps(self, block: int, out: NDArray[np.int64]) -> None:
        """Decode the timestamps of a block, and check them.

        Parameters
        ----------
        block : int
        out : ndarray of int64, shape (rows of the block,), contiguous
            Garbage after an error.

        Raises
        ------
        CorruptionError
        """
        found = self._pages
        place = int(found.timestamp[block]), int(found.timestamp[block + 1])
        self._read(0, block, place, int(found.timestamp_checksums[block + 1]), out)
        self._check(block, place[0], out, self._index.timestamp_checksums)

    def read_values(self, block: int, out: NDArray[np.float64]) -> None:
        """Decode the values of a block, and check them; see `read_timestamps`.

        Raises
        ------
        CorruptionError
        """
        found = self._pages
        place = int(found.value[block]), int(found.value[block + 1])
        self._read(1, block, place, int(found.value_checksums[block + 1]), out.view(np.int64))
        self._check(block, place[0], out, self._index.value_checksums)

    def _check(self, block: int, start: int, out: NDArray[Any], checksums: NDArray[np.uint64]) -> None:
        if format.checksum(out) != int(checksums[block]):
            raise CorruptionError(self._path, start, f"block {block} does not match its checksum")

    def _read(
        self, column: int, block: int, place: tuple[int, int], checksum: int, bits: NDArray[np.int64]
    ) -> None:
        start, stop = place
        try:
            data = self._page(start, stop, checksum)
            header_bytes, uncompressed_bytes, encoding = self._known_header(column, block, data, len(bits))
            self._decode(encoding, _decompressed(data[header_bytes:], uncompressed_bytes), bits)
        except MalformedPageError as error:
            raise CorruptionError(self._path, start, str(error)) from error
        except OSError as error:
            raise CorruptionError(self._path, start, f"cannot be read: {error}") from error

    def _known_header(self, column: int, block: int, data: memoryview, rows: int) -> tuple[int, int, int]:
        """Return a header's length, the length of the body when it is decompressed, and its encoding.

        Parsing costs more than decompressing does. What it finds holds as long as the page's checksum does.
        """
        known = self._headers[column][block]
        if not known:
            header = self._header(data)
            if header.kind != _DATA_PAGE or header.values != rows:
                raise MalformedPageError(f"the page does not hold the {rows} rows of its block")
            known = header.bytes << 40 | header.uncompressed_bytes << 8 | header.encoding
            self._headers[column][block] = known
        return known >> 40, known >> 8 & 0xFFFFFFFF, known & 0xFF

    def _page(self, start: int, stop: int, checksum: int) -> memoryview:
        """Read a page through the file descriptor, and check its bytes."""
        data = memoryview(self._file.read_at(start, stop - start))
        if format.checksum(data) != checksum:
            raise MalformedPageError("the page does not match its checksum")
        return data

    def _header(self, data: memoryview) -> PageHeader:
        """Parse the header of a page, of which everything else is the body."""
        header = parse_header(data[:_HEADER_BYTES_MAX])
        if header.compressed_bytes < 0 or header.bytes + header.compressed_bytes != len(data):
            raise MalformedPageError("the page ends elsewhere than it should")
        # No encoding needs as much: a wrong length must not make us ask for gigabytes.
        if not 0 <= header.uncompressed_bytes <= min(16 * self._rows + 65_536, 0xFFFFFFFF):
            raise MalformedPageError("the page has no sound length")
        if not 0 <= header.encoding <= _BYTE_STREAM_SPLIT:
            raise MalformedPageError(f"the page's encoding {header.encoding} does not occur in segments")
        return header

    def _decode(self, encoding: int, body: NDArray[np.uint8], bits: NDArray[np.int64]) -> None:
        rows = len(bits)
        if encoding == _DELTA_BINARY_PACKED:
            if pages.decode_deltas(body, bits) != rows:
                raise MalformedPageError("the page's differences cannot be decoded")
        elif encoding == _RLE_DICTIONARY:
            if pages.decode_indices(body, self._read_dictionary(), bits) != rows:
                raise MalformedPageError("the page's indices cannot be decoded")
        elif encoding in (_PLAIN, _BYTE_STREAM_SPLIT):
            if len(body) != 8 * rows:
                raise MalformedPageError("the page has no 8 bytes a row")
            if encoding == _BYTE_STREAM_SPLIT:
                body = body.reshape(8, rows).T
            bits.view(np.uint8).reshape(rows, 8)[:] = body.reshape(rows, 8)
        else:
            raise MalformedPageError(f"the page's encoding {encoding} does not occur in segments")

    def _read_dictionary(self) -> NDArray[np.int64]:
        dictionary = self._dictionary
        if dictionary is not None:
            return dictionary
        with self._lock:
            if self._dictionary is None:
                data = self._page(
                    self._values_start, int(self._pages.value[0]), int(self._pages.value_checksums[0])
                )
                header = self._header(data)
                body = _decompressed(data[header.bytes :], header.uncompressed_bytes)
                if header.kind != _DICTIONARY_PAGE or len(body) != 8 * header.values:
                    raise MalformedPageError("the dictionary is not whole")
                self._dictionary = body.view(np.int64)
            return self._dictionary
