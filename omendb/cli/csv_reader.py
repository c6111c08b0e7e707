"""Points from CSV text, plain or gzip, in bounded memory; every error names the line.

The text is cut into blocks of whole lines and each block is parsed by Arrow. Arrow's own streaming
reader was not taken: it numbers rows only, and loses count at blank lines.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as arrow_csv

from omendb.errors import InvalidRequestError
from omendb.model import Batch, make_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = ("series_id", "timestamp", "value")

GZIP_MAGIC = b"\x1f\x8b"

ROW_BYTES_TYPICAL = 32
"""Text of a row with a nanosecond timestamp; sizes a block after the rows of a batch."""

BLOCK_BYTES_MIN = 1 << 20
LINE_BYTES_MAX = 1 << 20
"""A line beyond this is no CSV of points: the file is something else."""

_TYPES = {"series_id": pa.int64(), "timestamp": pa.int64(), "value": pa.float64()}
_ROW_COUNT = re.compile(r"Row #(\d+): Expected \d+ columns, got (\d+)")
_ROW_VALUE = re.compile(r"In CSV column #(\d+): Row #(\d+): .* invalid value '(.*)'$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CsvBatch:
    """Points of consecutive lines.

    Attributes
    ----------
    batch : Batch
    bytes_read : int
        Bytes of the (compressed) source that had been read when the batch was made: how far we are.
    """

    batch: Batch
    bytes_read: int


class CsvReader:
    """Reads batches of points from `source`.

    Parameters
    ----------
    source : binary file
        CSV text, or gzip of it (told by its first bytes, not by a name); need not be seekable.
    header : bool
        Whether the first line names the columns, in any order. Without: series_id, timestamp, value.
    batch_rows : int
        Most rows of a batch, at least 1.
    """

    def __init__(self, source: BinaryIO, *, header: bool, batch_rows: int) -> None:
        self._counted = _CountedSource(source)
        self._header = header
        self._batch_rows = batch_rows

    def batches(self) -> Iterator[CsvBatch]:
        """Yield the batches in the order of the lines.

        Raises
        ------
        InvalidRequestError
            Naming the first line that holds no point. Blocks before that line have been yielded.
        """
        names: tuple[str, ...] = COLUMNS
        header = self._header
        for first_line, block in self._blocks():
            text = block
            line = first_line
            if header:
                header = False
                head, _, text = block.partition(b"\n")
                names = _column_names(head)
                line += 1
            if not text.strip():
                continue
            batch = _parse(text, names, line)
            for part in _split(batch, self._batch_rows):
                yield CsvBatch(part, self._counted.bytes_read)
        if header:
            raise InvalidRequestError("the input is empty: not even a header line")

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        """Yield blocks of whole lines, each with the number of its first line, counted from 1."""
        block_bytes = max(BLOCK_BYTES_MIN, self._batch_rows * ROW_BYTES_TYPICAL)
        stream = pa.PythonFile(self._counted, mode="r")
        if self._counted.starts_with(GZIP_MAGIC):
            stream = pa.CompressedInputStream(stream, "gzip")
        line = 1
        rest = b""
        while piece := _read_full(stream, block_bytes, line):
            end = piece.rfind(b"\n") + 1
            if end == 0 and len(rest) + len(piece) > LINE_BYTES_MAX:
                raise InvalidRequestError(
                    f"line {line}: longer than {LINE_BYTES_MAX} bytes; is this a CSV file?"
                )
            block, rest = (rest + piece[:end], piece[end:]) if end else (b"", rest + piece)
            if block:
                yield line, block
                line += block.count(b"\n")
        if rest:
            yield line, rest


class _CountedSource(io.RawIOBase):
    """Counts what is read, and can look at the first bytes of a source that cannot seek."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._head = b""
        self.bytes_read = 0

    def readable(self) -> bool:
        return True

    def starts_with(self, magic: bytes) -> bool:
        while len(self._head) < len(magic) and (piece := self._source.read(len(magic))):
            self._head += piece
        return self._head.startswith(magic)

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            piece, self._head = self._head, b""
        else:
            piece = self._source.read(size)
        self.bytes_read += len(piece)
        return piece


def _read_full(stream: Any, size: int, line: int) -> bytes:  # noqa: ANN401 # Arrow has no types
    """Read `size` bytes, fewer only at the end: a pipe gives small pieces, which would make small batches."""
    pieces = []
    while size > 0:
        try:
            piece = cast("bytes", stream.read(size))
        except OSError as error:
            raise InvalidRequestError(
                f"after line {line}: the compressed input is damaged or cut off: {error}"
            ) from error
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _column_names(line: bytes) -> tuple[str, ...]:
    text = line.decode("utf-8-sig", errors="replace").strip()
    names = tuple(name.strip() for row in csv.reader([text]) for name in row)
    if sorted(names) != sorted(COLUMNS):
        raise InvalidRequestError(
            f"line 1: the header must name the columns {', '.join(COLUMNS)}, in any order; "
            f"found {text[:100]!r} (with --no-header the first line is a point)"
        )
    return names


def _parse(text: bytes, names: tuple[str, ...], first_line: int) -> Batch:
    """Parse whole lines; `first_line` is the number of the first."""
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(text),
            # One thread: only then does Arrow tell the row of an error.
            read_options=arrow_csv.ReadOptions(
                column_names=list(names), use_threads=False, block_size=len(text) + 1
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=_TYPES, null_values=[], strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise _parse_error(str(error), text, names, first_line) from error
    columns = [table.column(name).to_numpy() for name in COLUMNS]
    try:
        return make_batch(*columns)
    except InvalidRequestError as error:
        position = re.search(r"\[(\d+)\]", error.field or "")
        if position is None:
            raise
        line = _line_of_row(text, int(position[1]), first_line)
        raise InvalidRequestError(f"line {line}: {error}", error.field) from error


def _parse_error(message: str, text: bytes, names: tuple[str, ...], first_line: int) -> InvalidRequestError:
    if found := _ROW_VALUE.search(message):
        name = names[int(found[1])]
        kind = "a number" if name == "value" else "a whole number of 64 bits"
        line = _line_of_row(text, int(found[2]) - 1, first_line)
        return InvalidRequestError(f"line {line}: {name} must be {kind}, got {found[3][:100]!r}", name)
    if found := _ROW_COUNT.search(message):
        line = _line_of_row(text, int(found[1]) - 1, first_line)
        return InvalidRequestError(f"line {line}: expected {len(names)} columns, got {found[2]}")
    return InvalidRequestError(f"from line {first_line} on: {message}")


def _line_of_row(text: bytes, row: int, first_line: int) -> int:
    """Return the line number of the row counted from 0: Arrow leaves out blank lines."""
    for number, line in enumerate(text.split(b"\n"), start=first_line):
        if line.rstrip(b"\r"):
            if row == 0:
                return number
            row -= 1
    return first_line


def _split(batch: Batch, batch_rows: int) -> Iterator[Batch]:
    """Cut a batch into even parts of at most `batch_rows` rows."""
    rows = len(batch.timestamp)
    parts = -(-rows // batch_rows)
    for part in range(parts):
        start, stop = rows * part // parts, rows * (part + 1) // parts
        yield Batch(batch.series_id[start:stop], batch.timestamp[start:stop], batch.value[start:stop])
