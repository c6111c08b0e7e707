"""A short query in one call: its rows or windows are bounded, found, and written as JSON.

A query of a hundred rows costs 2 us of work in kernels. One call each to bound it, to scan and to write every
column, with arrays allocated and unpacked for each, cost 12 us around that. Here the columns live in a
workspace that a thread uses again and again, and the kernel finds them by their addresses.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import layout
from omendb.jit._compile import floats_at, integers_at, kernel, load_u8
from omendb.jit.encode import (
    FIELD_ADDRESS,
    FIELD_FLOAT,
    FIELD_WIDTH,
    ROW_BYTES_MAX,
    record_template,
    store_word,
    window_bytes_max,
    write_records,
)
from omendb.jit.merge import (
    CHECK_NONE,
    CHECK_WIDEN,
    SCRATCH_ROWS,
    WORK_WIDTH,
    borrowed,
    bound_borrowed,
)
from omendb.jit.merge import scan_borrowed as scan_rows_borrowed
from omendb.jit.window import scan_borrowed as scan_windows_borrowed

if TYPE_CHECKING:
    from numpy.typing import NDArray

STATUS_LARGE = 3
"""More rows are touched than the workspace holds."""

# Columns of a workspace.
_INTEGERS = ("series_id", "timestamp", "count")
_FLOATS = ("sum", "min", "max", "first", "last", "squares", "mean", "stddev")
_AGGREGATES_MAX = 8

# Words of `Workspace.room`.
ROOM_CAPACITY = 0  # rows of a column
ROOM_INTEGERS = 1  # address of the integer columns, one after the other
ROOM_FLOATS = 2  # address of the float columns
ROOM_OUT = 3  # address of the text
ROOM_WIDTH = 4

# Words of a field of an answer in columns, behind those of `omendb.jit.encode`.
COLUMN_TEXT = FIELD_WIDTH  # address of the text before the column
COLUMN_TEXT_BYTES = FIELD_WIDTH + 1
COLUMN_WIDTH = FIELD_WIDTH + 2

_FIRST_AGGREGATE = 2
_RECORD_END = int.from_bytes(b"},", "little")
_COMMA = ord(",")


class Workspace:
    """What a thread needs to answer short queries. Belongs to one thread at a time.

    Parameters
    ----------
    capacity : int
        Rows that a query may touch.

    Attributes
    ----------
    room : ndarray of int64, shape (ROOM_WIDTH,)
        For the kernels.
    text : memoryview
        What a kernel has written, from its begin.
    integers : ndarray of int64, shape (3, capacity)
        The first two rows hold the keys of what was written.
    """

    def __init__(self, capacity: int) -> None:
        self.integers = np.empty((len(_INTEGERS), capacity), dtype=np.int64)
        self._floats = np.empty((len(_FLOATS), capacity), dtype=np.float64)
        # Pages that no answer needs are never touched. A column's text takes less than a row's share of it.
        out = np.empty(capacity * max(ROW_BYTES_MAX, window_bytes_max(_AGGREGATES_MAX)), dtype=np.uint8)
        self.text: memoryview = out.data
        addresses = (self.integers.ctypes.data, self._floats.ctypes.data, out.ctypes.data)
        self.room = np.array([capacity, *addresses], dtype=np.int64)
        self._layouts: dict[tuple[bool, tuple[str, ...] | None], Layout] = {}

    def layout(self, names: tuple[str, ...] | None, *, columns: bool) -> Layout:
        """Return how an answer is written.

        Parameters
        ----------
        names : tuple of str, or None
            The aggregates of windows; None for rows.
        columns : bool
            One array a column, instead of one object a row.
        """
        key = (columns, names)
        found = self._layouts.get(key)
        if found is None:
            found = self._layouts[key] = Layout(self, names, columns=columns)
        return found

    def column(self, name: str) -> tuple[int, bool]:
        """Return the address of a column, and whether it holds floats."""
        if name in _INTEGERS:
            return self.integers[_INTEGERS.index(name)].ctypes.data, False
        return self._floats[_FLOATS.index(name)].ctypes.data, True


class Layout:
    """How the answers of one form are written, into one workspace.

    Attributes
    ----------
    fields : ndarray of int64, shape (m, FIELD_WIDTH) or (m, COLUMN_WIDTH)
    """

    def __init__(self, workspace: Workspace, names: tuple[str, ...] | None, *, columns: bool) -> None:
        titles = ("series_id", "timestamp", *(("value",) if names is None else names))
        # The values of rows are where windows have the first of their floats.
        places = [workspace.column("sum" if title == "value" else title) for title in titles]
        if columns:
            self.fields = np.zeros((len(titles), COLUMN_WIDTH), dtype=np.int64)
            self._texts = [
                ctypes.create_string_buffer(_before(index, title, names))
                for index, title in enumerate(titles)
            ]
            for field, (_, is_float), text in zip(self.fields, places, self._texts, strict=True):
                field[FIELD_FLOAT] = is_float
                field[COLUMN_TEXT] = ctypes.addressof(text)
                field[COLUMN_TEXT_BYTES] = len(text) - 1  # it ends with a zero
        else:
            self.fields = record_template(
                tuple(
                    (f'{"," if index else "{"}"{title}":', is_float)
                    for index, (title, (_, is_float)) in enumerate(zip(titles, places, strict=True))
                )
            ).copy()
        for field, (address, _) in zip(self.fields, places, strict=True):
            field[FIELD_ADDRESS] = address


def _before(index: int, title: str, names: tuple[str, ...] | None) -> bytes:
    """Return the text between the last number of a column and the first of the next."""
    end = "]," if index else ""
    group = '"columns":{' if names is not None and index == _FIRST_AGGREGATE else ""
    return f'{end}{group}"{title}":['.encode("ascii")


@kernel
def write_answer(fields: NDArray[np.int64], columns: bool, count: int, address: int) -> int:
    """Write rows, or columns without the last bracket; return the address after the last character."""
    if not columns:
        return write_records(fields, _RECORD_END, 2, count, address) - 1 if count else address
    for index in range(len(fields)):
        text = int(fields[index, COLUMN_TEXT])
        for place in range(int(fields[index, COLUMN_TEXT_BYTES])):
            store_word(address, load_u8(text, place))
            address += 1
        if count:
            address = write_records(fields[index : index + 1], _COMMA, 1, count, address) - 1
    return address


@kernel
def _bound(
    sources: NDArray[np.int64],
    work: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    resume: bool,
    limit: int,
    may_estimate: bool,
) -> tuple[int, bool]:
    """Bound the rows of a scan as `omendb.jit.merge.bound_rows` does, or estimate them where that is loose.

    Over rows that were never read before no bound is proven, and whole runs count. An estimate of at most
    `limit` rows says that the query is short nevertheless; then the scan asks for the rows whose checksums
    prove or refute it.

    Returns
    -------
    bound : int
        Or some number greater than `limit`.
    is_proven : bool
        Whether it is no estimate.
    """
    check = CHECK_WIDEN
    while True:
        bound = bound_borrowed(
            sources,
            work,
            series,
            every_series,
            start,
            end,
            after_series,
            after_timestamp,
            resume,
            limit,
            check,
        )
        if bound <= limit or check == CHECK_NONE or not may_estimate:
            return bound, check == CHECK_WIDEN
        check = CHECK_NONE


@kernel
def answer_rows(
    sources: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    resume: bool,
    limit: int,
    room: NDArray[np.int64],
    fields: NDArray[np.int64],
    columns: bool,
) -> tuple[int, int, int, int, int, int]:
    """Find the rows of a range query and write them.

    Parameters
    ----------
    sources, series, every_series, start, end, after_series, after_timestamp, resume
        As for `omendb.jit.merge.scan_rows`.
    limit : int
        Rows at most.
    room : ndarray of int64, shape (ROOM_WIDTH,)
        Of a `Workspace`.
    fields : ndarray of int64, shape (3, FIELD_WIDTH)
        Of a `Layout` of that workspace.
    columns : bool
        As the layout was made.

    Returns
    -------
    written, status, source_index, row_start, row_stop : int
        As for `omendb.jit.merge.scan_rows`; the status may be `STATUS_LARGE`.
    size : int
        Bytes of text, when the status is ``STATUS_DONE`` or ``STATUS_FULL``.
    """
    capacity = room[ROOM_CAPACITY]
    out = room[ROOM_OUT]
    work = np.empty((WORK_WIDTH, len(sources) + 1), np.int64)
    bound, is_proven = _bound(
        borrowed(sources),
        borrowed(work),
        borrowed(series),
        every_series,
        start,
        end,
        after_series,
        after_timestamp,
        resume,
        capacity,
        limit > capacity,
    )
    size = min(bound, limit)
    if size > capacity:
        return 0, STATUS_LARGE, 0, 0, 0, 0
    if not is_proven:
        size = min(limit, capacity)
    if size == 0:
        return 0, layout.STATUS_DONE, 0, 0, 0, write_answer(borrowed(fields), columns, 0, out) - out
    written, status, source_index, row_start, row_stop = scan_rows_borrowed(
        borrowed(sources),
        borrowed(work),
        borrowed(series),
        every_series,
        start,
        end,
        after_series,
        after_timestamp,
        resume,
        integers_at(room[ROOM_INTEGERS], size),
        integers_at(room[ROOM_INTEGERS] + 8 * capacity, size),
        floats_at(room[ROOM_FLOATS], size),
    )
    work[0, 0] = 0  # what is used below here is not freed above
    if status == layout.STATUS_VERIFY:
        return 0, status, source_index, row_start, row_stop, 0
    if not is_proven and status == layout.STATUS_FULL and size < limit:  # refuted: these are not all the rows
        return 0, STATUS_LARGE, 0, 0, 0, 0
    return written, status, 0, 0, 0, write_answer(borrowed(fields), columns, written, out) - out


@kernel
def answer_windows(
    sources: NDArray[np.int64],
    series: NDArray[np.int64],
    every_series: bool,
    start: int,
    end: int,
    origin: int,
    step: int,
    simd: bool,
    after_series: int,
    after_window: int,
    resume: bool,
    limit: int,
    want_variance: bool,
    room: NDArray[np.int64],
    fields: NDArray[np.int64],
    columns: bool,
) -> tuple[int, int, int, int, int, int]:
    """Find the windows of a query and write them.

    Parameters
    ----------
    sources, series, every_series, start, end, origin, step, simd, after_series, after_window, resume,
    want_variance
        As for `omendb.jit.window.scan_windows`.
    limit : int
        Windows at most.
    room, fields, columns
        As for `answer_rows`.

    Returns
    -------
    written, status, source_index, row_start, row_stop, size : int
        As for `answer_rows`, in windows. A query is large when it touches more rows than there is room for.
    """
    capacity = room[ROOM_CAPACITY]
    out = room[ROOM_OUT]
    work = np.empty((WORK_WIDTH, len(sources) + 1), np.int64)
    bound, is_proven = _bound(
        borrowed(sources),
        borrowed(work),
        borrowed(series),
        every_series,
        start,
        end,
        0,
        0,
        False,
        capacity,
        True,
    )
    if bound > capacity:
        return 0, STATUS_LARGE, 0, 0, 0, 0
    size = min(bound if is_proven else capacity, limit)
    if size == 0:
        return 0, layout.STATUS_DONE, 0, 0, 0, write_answer(borrowed(fields), columns, 0, out) - out
    integers = room[ROOM_INTEGERS]
    floats = room[ROOM_FLOATS]
    scratch_timestamp = np.empty(SCRATCH_ROWS, np.int64)
    scratch_value = np.empty(SCRATCH_ROWS, np.float64)
    count = integers_at(integers + 16 * capacity, size)
    total = floats_at(floats, size)
    squares = floats_at(floats + 40 * capacity, size)
    written, status, source_index, row_start, row_stop = scan_windows_borrowed(
        borrowed(sources),
        borrowed(work),
        borrowed(scratch_timestamp),
        borrowed(scratch_value),
        borrowed(series),
        every_series,
        start,
        end,
        origin,
        step,
        simd,
        after_series,
        after_window,
        resume,
        want_variance,
        False,
        integers_at(integers, size),
        integers_at(integers + 8 * capacity, size),
        count,
        total,
        floats_at(floats + 8 * capacity, size),
        floats_at(floats + 16 * capacity, size),
        floats_at(floats + 24 * capacity, size),
        floats_at(floats + 32 * capacity, size),
        squares,
        integers_at(integers, 0),
        integers_at(integers, 0),
    )
    work[0, 0] = 0  # what is used below here is not freed above
    scratch_timestamp[0] = 0
    scratch_value[0] = 0.0
    if status == layout.STATUS_VERIFY:
        return 0, status, source_index, row_start, row_stop, 0
    if not is_proven and status == layout.STATUS_FULL and size < limit:  # refuted, as in `answer_rows`
        return 0, STATUS_LARGE, 0, 0, 0, 0
    mean = floats_at(floats + 48 * capacity, size)
    for index in range(written):
        mean[index] = total[index] / count[index]
    if want_variance:
        deviation = floats_at(floats + 56 * capacity, size)
        for index in range(written):
            deviation[index] = np.sqrt(squares[index] / count[index])
    return written, status, 0, 0, 0, write_answer(borrowed(fields), columns, written, out) - out


def warmup() -> None:
    """Compile the kernels, or load them from the cache, with the types of real calls."""
    workspace = Workspace(1)
    sources = np.zeros((0, layout.SOURCE_WIDTH), np.int64)
    series = np.zeros(0, np.int64)
    fields = workspace.layout(None, columns=True).fields
    answer_rows(sources, series, True, 0, 0, 0, 0, False, 1, workspace.room, fields, True)
    fields = workspace.layout(("mean",), columns=True).fields
    answer_windows(
        sources, series, True, 0, 0, 0, 1, True, 0, 0, False, 1, False, workspace.room, fields, True
    )
