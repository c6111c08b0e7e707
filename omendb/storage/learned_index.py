"""The learned index of one segment: run directory, models, and block checksums; and its file.

The file is a cache bound to its segment, never truth: when it is missing, damaged or foreign it is rebuilt
from the segment. Immutable; safe from any thread. Layout: docs/format/index.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from omendb.errors import CorruptionError
from omendb.jit import layout, pla
from omendb.storage import format  # noqa: A004

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Binding:
    """What ties an index to its segment.

    Attributes
    ----------
    rows, segment_bytes : int
    segment_checksum : int
        See `omendb.storage.manifest.SegmentEntry`.
    timestamp_offset, value_offset : int
        Byte in the segment at which the column starts.
    """

    rows: int
    segment_bytes: int
    segment_checksum: int
    timestamp_offset: int
    value_offset: int


class Pages(NamedTuple):
    """Where the pages of a compressed segment stand in its file, a page a block of rows.

    Attributes
    ----------
    timestamp, value : ndarray of int64, shape (blocks + 1,)
        Byte at which each page starts, with its header; the last is the end of the column.
    timestamp_checksums, value_checksums : ndarray of uint64, shape (blocks + 1,)
        XXH3-64 of what stands before the first page, a dictionary or nothing, then of each page.
    """

    timestamp: NDArray[np.int64]
    value: NDArray[np.int64]
    timestamp_checksums: NDArray[np.uint64]
    value_checksums: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class LearnedIndex:
    """Run directory, models and block checksums of one segment.

    Attributes
    ----------
    max_error : int
        The setting that it was fitted with, in rows.
    binding : Binding
    runs : ndarray of int64, shape (runs, layout.RUN_WIDTH)
    series_knots : ndarray of int32
        Knots over the series ids of `runs`; empty when the run directory is searched directly.
    series_shift : int
    knots : ndarray of int32
        The knots of all uniform runs.
    pieces : ndarray of int64, shape (pieces, layout.PIECE_WIDTH)
        The pieces of all piecewise-linear runs.
    timestamp_checksums, value_checksums : ndarray of uint64, shape (blocks,)
        XXH3-64 of each block of ``1 << format.BLOCK_SHIFT`` rows of the column.
    pages : Pages or None
        Of a compressed segment.
    """

    max_error: int
    binding: Binding
    runs: NDArray[np.int64]
    series_knots: NDArray[np.int32]
    series_shift: int
    knots: NDArray[np.int32]
    pieces: NDArray[np.int64]
    timestamp_checksums: NDArray[np.uint64]
    value_checksums: NDArray[np.uint64]
    pages: Pages | None = None

    @property
    def model_bytes(self) -> int:
        """Bytes of the run directory and the models."""
        return self.runs.nbytes + self.series_knots.nbytes + self.knots.nbytes + self.pieces.nbytes

    def fill(self, row: NDArray[np.int64]) -> None:
        """Write the addresses and sizes of the index into a source row (see `omendb.jit.layout`)."""
        row[layout.ROWS] = self.binding.rows
        row[layout.RUN_COUNT] = len(self.runs)
        row[layout.RUNS] = self.runs.ctypes.data
        row[layout.SERIES_KNOTS] = self.series_knots.ctypes.data if len(self.series_knots) else 0
        row[layout.SERIES_KNOT_COUNT] = max(len(self.series_knots) - 1, 0)
        row[layout.SERIES_SHIFT] = self.series_shift
        row[layout.KNOTS] = self.knots.ctypes.data
        row[layout.PIECES] = self.pieces.ctypes.data
        row[layout.FIRST_SERIES] = self.runs[0, layout.RUN_SERIES]
        row[layout.LAST_SERIES] = self.runs[-1, layout.RUN_SERIES]
        row[layout.FIRST_TIMESTAMP] = self.runs[:, layout.RUN_FIRST].min()
        row[layout.LAST_TIMESTAMP] = self.runs[:, layout.RUN_LAST].max()


def fit(
    series_id: NDArray[np.int64],
    timestamp: NDArray[np.int64],
    max_error: int,
    binding: Binding,
    checksums: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    pages: Pages | None = None,
) -> LearnedIndex:
    """Fit the models of a segment's rows.

    Parameters
    ----------
    series_id, timestamp : ndarray of int64, shape (rows,)
        In strictly ascending order of ``(series_id, timestamp)``.
    max_error : int
        Rows by which a prediction may be off.
    binding : Binding
    checksums : tuple of ndarray of uint64
        Of the blocks of the timestamp and the value column.
    pages : Pages, optional
        Of a compressed segment.

    Raises
    ------
    ValueError
        When the rows are out of order.
    """
    model = pla.fit(series_id, timestamp, max_error)
    return LearnedIndex(
        max_error=max_error,
        binding=binding,
        runs=model.runs,
        series_knots=model.series_knots,
        series_shift=model.series_shift,
        knots=model.knots,
        pieces=model.pieces,
        timestamp_checksums=checksums[0],
        value_checksums=checksums[1],
        pages=pages,
    )


def block_checksums(column: NDArray[Any]) -> NDArray[np.uint64]:
    """XXH3-64 of each block of a column of 8-byte elements, shape (blocks,)."""
    data = np.ascontiguousarray(column).data.cast("B")
    step = 8 << format.BLOCK_SHIFT
    return np.array(
        [format.checksum(data[start : start + step]) for start in range(0, len(data), step)],
        dtype=np.uint64,
    )


def encode(index: LearnedIndex) -> list[bytes]:
    """Return the bytes of the file, in parts."""
    binding = index.binding
    head = format.INDEX_HEADER.pack(
        format.INDEX_MAGIC,
        format.INDEX_VERSION if index.pages is None else format.INDEX_VERSION_COMPRESSED,
        index.max_error,
        binding.rows,
        binding.segment_bytes,
        binding.segment_checksum,
        binding.timestamp_offset,
        binding.value_offset,
        len(index.runs),
        len(index.series_knots),
        len(index.knots),
        len(index.pieces),
        len(index.timestamp_checksums),
        index.series_shift,
        format.BLOCK_SHIFT,
    )
    parts = [head]
    size = len(head)
    for section in (
        index.runs,
        index.series_knots,
        index.knots,
        index.pieces,
        index.timestamp_checksums,
        index.value_checksums,
        *(index.pages or ()),
    ):
        padding = -size % format.INDEX_ALIGNMENT
        parts += [bytes(padding), section.tobytes()]
        size += padding + section.nbytes
    parts.append(format.checksum(b"".join(parts)).to_bytes(8, "little"))
    return parts


def decode(data: NDArray[np.uint8], path: str) -> LearnedIndex:
    """Read the bytes of the file; the arrays are views over them.

    Parameters
    ----------
    data : ndarray of uint8, shape (bytes,)
        Aligned to 8 bytes, as a map or a fresh array is.
    path : str
        For messages.

    Raises
    ------
    CorruptionError
        The bytes do not match their checksum, or are of a version that is not known.
    """
    header = format.INDEX_HEADER
    if len(data) < header.size + 8 or bytes(data[:8]) != format.INDEX_MAGIC:
        raise CorruptionError(path, 0, "this is no learned index")
    if format.checksum(data[:-8]) != int.from_bytes(bytes(data[-8:]), "little"):
        raise CorruptionError(path, 0, "the learned index does not match its checksum")
    fields = header.unpack_from(data.data)
    version, max_error = fields[1:3]
    runs, series_knots, knots, pieces, blocks, series_shift, block_shift = fields[8:]
    known = (format.INDEX_VERSION, format.INDEX_VERSION_COMPRESSED)
    if version not in known or block_shift != format.BLOCK_SHIFT:
        raise CorruptionError(path, 8, f"learned index version {version} is not known")
    shapes: list[tuple[tuple[int, ...], Any]] = [
        ((runs, layout.RUN_WIDTH), np.int64),
        ((series_knots,), np.int32),
        ((knots,), np.int32),
        ((pieces, layout.PIECE_WIDTH), np.int64),
        ((blocks,), np.uint64),
        ((blocks,), np.uint64),
    ]
    if version == format.INDEX_VERSION_COMPRESSED:
        shapes += [((blocks + 1,), np.int64)] * 2 + [((blocks + 1,), np.uint64)] * 2
    sections: list[Any] = []
    offset = header.size
    for shape, dtype in shapes:
        offset += -offset % format.INDEX_ALIGNMENT
        count = math.prod(shape)  # NumPy's would overflow on counts that no file can hold
        stop = offset + count * np.dtype(dtype).itemsize
        if stop > len(data) - 8:
            raise CorruptionError(path, offset, "a section goes beyond the end of the file")
        sections.append(np.frombuffer(data[offset:stop], dtype=dtype).reshape(shape))
        offset = stop
    return LearnedIndex(
        max_error,
        Binding(*fields[3:8]),
        sections[0],
        sections[1],
        series_shift,
        sections[2],
        sections[3],
        sections[4],
        sections[5],
        Pages(*sections[6:]) if version == format.INDEX_VERSION_COMPRESSED else None,
    )
