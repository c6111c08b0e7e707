"""Fitting the learned index of a source: the directory of runs, and a model for each run.

`fit` makes, from the sorted key columns, everything that `omendb.jit.search` reads; `measure` tells how
well the result predicts. The rules, run by run (the first that holds):

1. at most `ROWS_WITHOUT_MODEL` rows: no model, a binary search reads two or three cache lines;
2. a regular series: pieces (lines) within `LINE_ERROR` rows, when knots take `LINE_SAVING` times the room;
3. uniform knots, one for about `ROWS_PER_KNOT` rows, when their error is within `max_error`;
4. the smaller of: denser knots within `max_error`; pieces within `max_error`.

Pieces within any `max_error`, 0 included, exist for every run, so the bound always holds: `fit` measures
each model with the arithmetic of the search and stores the largest error that it saw.

The functions keep no state: any number of threads may call them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from omendb.errors import OmenError
from omendb.jit import layout
from omendb.jit._compile import inline_kernel, kernel, load_i64
from omendb.jit.search import (
    bucket_of,
    elapsed,
    find_run_counted,
    guess_row,
    knot_offset,
    lower_bound_counted,
    piece_offset,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)

ROWS_WITHOUT_MODEL = 16
"""Runs of at most so many rows get no model."""
RUN_ROWS_MAX = 2**31 - 1
"""Runs of more rows get no model: knots are int32."""
ROWS_PER_KNOT = 32
"""Density of knots to begin with; the true one is 24 to 48, since buckets are powers of two wide."""
ROWS_PER_KNOT_MIN = 2
"""Knots get no denser than this: beyond it, pieces are smaller."""
SERIES_KNOTS_PER_RUN = 2
"""Most series knots for a run: with 1, 16 % of the guesses among random ids missed, with 2, 6 %."""
LINE_ERROR = 7
"""Error of the lines that go before knots: the rows that such a guess leaves open are 16, two cache lines."""
LINE_SAVING = 4
"""Lines go before knots only where they take so much less room, hence in runs of some hundred rows and
more. With 1 in place of 4, series of 200 rows became a mixture of lines and knots: 5 % fewer bytes, but
15 % more time for a lookup and 40 % less speed of fitting; series of 20,000 rows saw no change."""
SAME_SLOPE = 1.0 + 2.0**-40
"""Lowest ratio of a piece's steepest to its flattest slope: with so much room the slope in the middle
keeps the bound in spite of float64's rounding (2**-52)."""
ERROR_BINS = 512
"""Bins of an error histogram: one a row below 64, then 16 an octave, so within 6 %."""


class UnsortedError(OmenError, ValueError):
    """Rows that are not in ascending order of ``(series_id, timestamp)``, or repeat a key.

    Attributes
    ----------
    row : int
        The first row that does not come after its predecessor.
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} does not come after row {row - 1} in (series_id, timestamp)")
        self.row = row


class Models(NamedTuple):
    """The learned index of a source. Arrays are C-contiguous and little-endian.

    Attributes
    ----------
    runs : ndarray of int64, shape (run count, RUN_WIDTH)
        Ascending by series; words as in `omendb.jit.layout`; 64-byte aligned, one cache line a run.
    knots : ndarray of int32, shape (knot count,)
        Of all ``KIND_KNOTS`` runs, one after the other. A run with b buckets (its model size) has b + 1
        knots from ``RUN_MODEL`` on: knot k counts the run's rows before ``RUN_FIRST + (k << shift)``;
        the last one counts all.
    pieces : ndarray of int64, shape (piece count, PIECE_WIDTH)
        Of all ``KIND_PIECES`` runs. A run with p pieces (its model size) has them from ``RUN_MODEL``
        on; its first piece starts at ``RUN_FIRST`` and row 0.
    series_knots : ndarray of int32, shape (bucket count + 1,)
        Knot k counts the runs whose series is before ``first series + (k << series_shift)``; the last
        one counts all. Empty when there are no runs.
    series_shift : int
        0 to 63.
    """

    runs: NDArray[np.int64]
    knots: NDArray[np.int32]
    pieces: NDArray[np.int64]
    series_knots: NDArray[np.int32]
    series_shift: int


class Quality(NamedTuple):
    """How well the models of a source predict, measured on its data.

    Attributes
    ----------
    error_max, error_mean, error_p99 : float
        Distance between predicted and true row, over all rows that a model covers; 0 when there are none.
        The 99th percentile is exact below 64 rows, and at most 6 % high above.
    probes_learned, probes_binary : float
        Table entries and keys read per lookup of an existing key, through the learned index and by
        lexicographic binary search over all rows; 0 when there are no rows.
    """

    error_max: float
    error_mean: float
    error_p99: float
    probes_learned: float
    probes_binary: float


def fit(
    series_id: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    max_error: int,
    *,
    kind: int = layout.KIND_NONE,
) -> Models:
    """Fit the learned index of a source.

    Parameters
    ----------
    series_id, timestamps : ndarray of int64, shape (n,)
        The keys, ascending by both, no key twice; contiguous, any alignment, may be read-only.
    max_error : int
        Largest error of a model in rows, at least 0.
    kind : int, optional
        ``KIND_KNOTS`` or ``KIND_PIECES`` fits that kind to every run that gets a model, for
        measurements and tests; knots then keep their first density, whatever their error.

    Returns
    -------
    Models

    Raises
    ------
    UnsortedError
        When the keys are not strictly ascending.

    Notes
    -----
    One core fits 250 to 400 M rows/s with knots and 150 to 190 with pieces (``perf/kernels.py``).
    """
    # One array type, hence one compilation, whether the columns are mapped or were just built.
    series_id = _read_only(series_id)
    timestamps = _read_only(timestamps)
    starts, unsorted_row = detect_runs(series_id)
    if unsorted_row >= 0:
        raise UnsortedError(unsorted_row)
    runs = _aligned_runs(len(starts) - 1)
    knots, pieces, unsorted_row = fit_runs(series_id, timestamps, starts, max_error, kind, runs)
    if unsorted_row >= 0:
        raise UnsortedError(unsorted_row)
    series_knots, series_shift = fit_series(runs)
    return Models(runs, knots, pieces, series_knots, series_shift)


def measure(source: NDArray[np.int64], lookups: int = 10_000) -> Quality:
    """Measure the models of a source on its data. Reads every timestamp: about 5 ns a row.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Row of the sources array; the arrays behind it must stay alive.
    lookups : int, optional
        Rows, evenly spaced, on which probes are counted.

    Returns
    -------
    Quality
    """
    histogram = np.zeros(ERROR_BINS, np.int64)
    rows, error_sum, error_max = measure_errors(source, histogram)
    counted, probes_learned, probes_binary = count_probes(source, lookups)
    return Quality(
        error_max=float(error_max),
        error_mean=error_sum / max(rows, 1),
        error_p99=float(min(error_max, histogram_quantile(histogram, 0.99))),
        probes_learned=probes_learned / max(counted, 1),
        probes_binary=probes_binary / max(counted, 1),
    )


def _read_only(column: NDArray[np.int64]) -> NDArray[np.int64]:
    view = column.view(np.ndarray)
    view.flags.writeable = False
    return view


def _aligned_runs(count: int) -> NDArray[np.int64]:
    """Allocate run records such that none straddles two cache lines."""
    words = np.empty(count * layout.RUN_WIDTH + 8, np.int64)
    skip = (-words.ctypes.data % 64) // 8
    return words[skip : skip + count * layout.RUN_WIDTH].reshape(count, layout.RUN_WIDTH)


@kernel
def detect_runs(series_id: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Find where each series starts, and check the order of the series.

    Parameters
    ----------
    series_id : ndarray of int64, shape (n,)
        Ascending, repeats next to each other.

    Returns
    -------
    starts : ndarray of int64, shape (run count + 1,)
        First row of each run, then n.
    unsorted_row : int
        First row whose series is below its predecessor's, -1 when there is none.

    Notes
    -----
    Reads every row, 64 at a time: for 20 M rows 11 ms in 1,000 runs, 16 ms in 100,000. Galloping from
    start to start took 0.5 and 15 ms, but would not see a series that stands inside another's run.
    """
    rows = len(series_id)
    starts = np.empty(64, np.int64)
    count = 0
    row = 0
    while row < rows:
        # Here a run starts.
        if count + 1 == len(starts):
            starts = grown(starts, count, count + 2)
        starts[count] = row
        count += 1
        current = series_id[row]
        row += 1
        different = False
        while not different and row + 64 <= rows:
            for position in range(row, row + 64):
                different |= series_id[position] != current
            if not different:
                row += 64
        while row < rows and series_id[row] == current:
            row += 1
        if row < rows and series_id[row] < current:
            return starts[:0].copy(), row
    starts[count] = rows
    return starts[: count + 1].copy(), -1


@inline_kernel
def grown(array: NDArray[Scalar], used: int, needed: int) -> NDArray[Scalar]:
    """Return an array that has room for `needed` items along its first axis and keeps the `used` ones."""
    if needed <= len(array):
        return array
    larger = np.empty((max(needed, 2 * len(array)),) + array.shape[1:], array.dtype)  # noqa: RUF005
    larger[:used] = array[:used]
    return larger


@inline_kernel
def choose_shift(span: np.uint64, buckets_max: int) -> int:
    """Choose the narrowest power of two that cuts ``[0, span]`` into at most `buckets_max` buckets.

    Parameters
    ----------
    span : uint64
        Distance of the last key from the first.
    buckets_max : int
        At least 1.

    Returns
    -------
    int
        Shift, 0 to 63: at 63 the buckets may be two where one was asked for.
    """
    shift = 0
    step = 32
    while step > 0:
        if span >> np.uint64(shift + step - 1) >= np.uint64(buckets_max):
            shift += step
        step >>= 1
    return shift


@inline_kernel
def first_unsorted(timestamps: NDArray[np.int64], start: int, stop: int) -> int:
    """Find the first row of a run that is not later than its predecessor; -1 when there is none."""
    wrong = False
    for row in range(start + 1, stop):  # no early exit: so it runs on vector registers
        wrong |= timestamps[row] <= timestamps[row - 1]
    if wrong:
        for row in range(start + 1, stop):
            if timestamps[row] <= timestamps[row - 1]:
                return row
    return -1


@inline_kernel
def fit_knots(
    timestamps: NDArray[np.int64],
    start: int,
    stop: int,
    shift: int,
    error_stop: int,
    knots: NDArray[np.int32],
) -> int:
    """Fill the knots of one run, and measure them.

    Parameters
    ----------
    timestamps : ndarray of int64, shape (n,)
        Of the source.
    start, stop : int
        Rows of the run.
    shift : int
        Buckets are ``1 << shift`` wide.
    error_stop : int
        Measuring stops behind the first bucket whose error is beyond this.
    knots : ndarray of int32, shape (bucket count + 1,)
        Written.

    Returns
    -------
    int
        Largest error in rows; when beyond `error_stop`, the largest so far.
    """
    first = timestamps[start]
    buckets = len(knots) - 1
    knots[0] = 0
    filled = 0
    row = start
    while row < stop:
        # In ascending order eight rows are in one bucket when the eighth is: 10 ms less for 20 M rows.
        while row + 8 <= stop:
            if bucket_of(elapsed(timestamps[row + 7], first), shift) != filled:
                break
            row += 8
        while row < stop:
            bucket = bucket_of(elapsed(timestamps[row], first), shift)
            if bucket != filled:
                for index in range(filled + 1, bucket + 1):
                    knots[index] = row - start
                filled = bucket
                break
            row += 1
    knots[buckets] = stop - start
    error_max = 0
    for bucket in range(buckets):
        low = int(np.int64(knots[bucket]))
        rows = int(np.int64(knots[bucket + 1])) - low
        for offset in range(rows):
            distance = elapsed(timestamps[start + low + offset], first)
            error_max = max(error_max, abs(knot_offset(distance, shift, rows) - offset))
        if error_max > error_stop:
            break
    return error_max


@inline_kernel
def fit_pieces(
    timestamps: NDArray[np.int64],
    start: int,
    stop: int,
    max_error: int,
    pieces: NDArray[np.int64],
    slopes: NDArray[np.float64],
) -> int:
    """Fit lines to one run, each as long as it stays within an error.

    Parameters
    ----------
    timestamps : ndarray of int64, shape (n,)
        Of the source.
    start, stop : int
        Rows of the run.
    max_error : int
        In rows, at least 0.
    pieces : ndarray of int64, shape (room, PIECE_WIDTH)
        Written.
    slopes : ndarray of float64, shape (room, PIECE_WIDTH)
        The same memory as `pieces`.

    Returns
    -------
    int
        Number of pieces; -1 when `pieces` has no room for them.

    Notes
    -----
    Shrinking cone [1]_: a piece starts at a row, and the range of slopes that keep all rows so far within
    the error narrows until a row leaves none. A piece holds at least two rows (the run's last, maybe
    one). PGM's optimal hull needs a quarter fewer pieces, but its lines start beside the rows; these
    start on a row, so that the answer lies between the first rows of two pieces.

    A line predicts ``floor(slope * distance)``, hence ``offset - max_error <= slope * distance < offset +
    max_error + 1``: even for an error of 0 there is room for a slope.

    References
    ----------
    .. [1] Galakatos et al., FITing-Tree: A Data-aware Index Structure, SIGMOD 2019, sec. 3.2.
    """
    count = 0
    row = start
    while row < stop:
        if count == len(pieces):
            return -1
        base = row
        first = timestamps[int(base)]
        low = 0.0
        high = np.inf
        row += 1
        while row < stop:
            distance = np.float64(elapsed(timestamps[row], first))
            below = np.float64(row - base - max_error)
            above = np.float64(row - base + max_error + 1)
            # Divide only where the cone narrows: rarely.
            if below > low * distance or above < high * distance:
                narrow_low = max(low, below / distance)
                narrow_high = min(high, above / distance)
                if narrow_high <= narrow_low * SAME_SLOPE:
                    break
                low = narrow_low
                high = narrow_high
            row += 1
        pieces[count, layout.PIECE_FIRST] = first
        pieces[count, layout.PIECE_ROW] = base - start
        slopes[count, layout.PIECE_SLOPE] = 0.5 * (low + high) if row > base + 1 else 0.0
        count += 1
    return count


@inline_kernel
def piece_error(
    timestamps: NDArray[np.int64],
    start: int,
    stop: int,
    pieces: NDArray[np.int64],
    slopes: NDArray[np.float64],
) -> int:
    """Measure the largest error, in rows, of the pieces of one run (parameters as `fit_pieces`)."""
    error_max = 0
    for piece in range(len(pieces)):
        first = pieces[piece, layout.PIECE_FIRST]
        slope = slopes[piece, layout.PIECE_SLOPE]
        base = pieces[piece, layout.PIECE_ROW]
        rows = stop - start - base
        if piece + 1 < len(pieces):
            rows = pieces[piece + 1, layout.PIECE_ROW] - base
        for offset in range(rows):
            distance = elapsed(timestamps[start + int(base) + offset], first)
            error_max = max(error_max, abs(piece_offset(distance, slope, rows) - offset))
    return error_max


@kernel
def fit_runs(
    series_id: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    starts: NDArray[np.int64],
    max_error: int,
    kind: int,
    runs: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Fit a model to each run, and check the order of its timestamps.

    Parameters
    ----------
    series_id, timestamps : ndarray of int64, shape (n,)
        The keys.
    starts : ndarray of int64, shape (run count + 1,)
        From `detect_runs`.
    max_error, kind : int
        As in `fit`.
    runs : ndarray of int64, shape (run count, RUN_WIDTH)
        Written.

    Returns
    -------
    knots, pieces : ndarray
        As in `Models`.
    unsorted_row : int
        First row of a run that is not later than its predecessor, -1 when there is none; `runs`,
        `knots` and `pieces` are then incomplete.
    """
    knots = np.empty(1024, np.int32)
    knot_count = 0
    pieces = np.empty((256, layout.PIECE_WIDTH), np.int64)
    piece_count = 0
    for run in range(len(runs)):
        start = int(starts[run])
        stop = int(starts[run + 1])
        rows = stop - start
        unsorted_row = first_unsorted(timestamps, start, stop)
        if unsorted_row >= 0:
            return knots[:0].copy(), pieces[:0].copy(), unsorted_row
        first = timestamps[start]
        last = timestamps[stop - 1]
        runs[run, layout.RUN_SERIES] = series_id[start]
        runs[run, layout.RUN_START] = start
        runs[run, layout.RUN_STOP] = stop
        runs[run, layout.RUN_FIRST] = first
        runs[run, layout.RUN_LAST] = last
        runs[run, layout.RUN_MODEL] = 0
        runs[run, layout.RUN_SHAPE] = layout.KIND_NONE
        runs[run, layout.RUN_ERROR] = 0
        if rows <= ROWS_WITHOUT_MODEL or rows > RUN_ROWS_MAX:
            continue

        span = elapsed(last, first)
        buckets_max = max(1, rows * 4 // (3 * ROWS_PER_KNOT))
        shift = choose_shift(span, buckets_max)
        buckets = bucket_of(span, shift) + 1
        piece_room = 0
        line_error = 0
        if kind == layout.KIND_NONE:
            piece_room = (buckets + 1) * 4 // (8 * layout.PIECE_WIDTH * LINE_SAVING)
            line_error = min(LINE_ERROR, max_error)
        elif kind == layout.KIND_PIECES:
            piece_room = (rows + 1) // 2
            line_error = max_error
        found = -1
        if piece_room > 0:
            pieces = grown(pieces, piece_count, piece_count + piece_room)
            room = pieces[piece_count : piece_count + piece_room]
            found = fit_pieces(timestamps, start, stop, line_error, room, room.view(np.float64))

        error = 0
        if found < 0:
            error_stop = max_error if kind == layout.KIND_NONE else rows
            searching = True
            while searching:
                knots = grown(knots, knot_count, knot_count + buckets + 1)
                table = knots[knot_count : knot_count + buckets + 1]
                error = fit_knots(timestamps, start, stop, shift, error_stop, table)
                searching = False
                if error > error_stop and shift > 0:
                    denser = bucket_of(span, shift - 1) + 1
                    if denser <= rows // ROWS_PER_KNOT_MIN:
                        shift -= 1
                        buckets = denser
                        searching = True
            if error > error_stop or (kind == layout.KIND_NONE and buckets > buckets_max):
                piece_room = (rows + 1) // 2
                if error <= error_stop:
                    piece_room = (buckets + 1) * 4 // (8 * layout.PIECE_WIDTH)
                pieces = grown(pieces, piece_count, piece_count + piece_room)
                room = pieces[piece_count : piece_count + piece_room]
                found = fit_pieces(timestamps, start, stop, max_error, room, room.view(np.float64))

        if found >= 0:
            room = pieces[piece_count : piece_count + found]
            error = piece_error(timestamps, start, stop, room, room.view(np.float64))
            runs[run, layout.RUN_MODEL] = piece_count
            runs[run, layout.RUN_SHAPE] = layout.KIND_PIECES | found << 32
            piece_count += found
        else:
            runs[run, layout.RUN_MODEL] = knot_count
            runs[run, layout.RUN_SHAPE] = layout.KIND_KNOTS | shift << 8 | buckets << 32
            knot_count += buckets + 1
        runs[run, layout.RUN_ERROR] = error
    return knots[:knot_count].copy(), pieces[:piece_count].copy(), -1


@kernel
def fit_series(runs: NDArray[np.int64]) -> tuple[NDArray[np.int32], int]:
    """Fit uniform knots to the series of the runs, one or two knots for a run.

    Parameters
    ----------
    runs : ndarray of int64, shape (run count, RUN_WIDTH)
        Ascending by series.

    Returns
    -------
    series_knots, series_shift
        As in `Models`.
    """
    count = len(runs)
    if count == 0:
        return np.empty(0, np.int32), 0
    first = runs[0, layout.RUN_SERIES]
    span = elapsed(runs[count - 1, layout.RUN_SERIES], first)
    shift = choose_shift(span, SERIES_KNOTS_PER_RUN * count)
    buckets = bucket_of(span, shift) + 1
    knots = np.empty(buckets + 1, np.int32)
    knots[0] = 0
    filled = 0
    for run in range(count):
        bucket = bucket_of(elapsed(runs[run, layout.RUN_SERIES], first), shift)
        for index in range(filled + 1, bucket + 1):
            knots[index] = run
        filled = bucket
    knots[buckets] = count
    return knots, shift


@inline_kernel
def error_bin(error: int) -> int:
    """Return the bin of an error histogram that counts `error` (0 to 2**31)."""
    if error < 64:
        return error
    octave = 6
    while error >> (octave + 1) > 0:
        octave += 1
    return 64 + (octave - 6) * 16 + ((error >> (octave - 4)) & 15)


@kernel
def measure_errors(source: NDArray[np.int64], histogram: NDArray[np.int64]) -> tuple[int, int, int]:
    """Compare predicted with true rows, for each row of the runs that have a model.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Row of the sources array.
    histogram : ndarray of int64, shape (ERROR_BINS,)
        Errors are added to it, so that sources can be summed up.

    Returns
    -------
    rows : int
        Number of rows compared.
    error_sum, error_max : int
        Of their errors, in rows.
    """
    timestamps = source[layout.TIMESTAMPS]
    knots = source[layout.KNOTS]
    pieces = source[layout.PIECES]
    rows = 0
    error_sum = 0
    error_max = 0
    for run in range(source[layout.RUN_COUNT]):
        record = source[layout.RUNS] + run * (8 * layout.RUN_WIDTH)
        if load_i64(record, layout.RUN_SHAPE) & 0xFF == layout.KIND_NONE:
            continue
        start = load_i64(record, layout.RUN_START)
        stop = load_i64(record, layout.RUN_STOP)
        rows += stop - start
        for row in range(start, stop):
            guess = guess_row(knots, pieces, record, load_i64(timestamps, row))[0]
            error = abs(guess - row)
            error_sum += error
            error_max = max(error_max, error)
            histogram[min(error_bin(error), ERROR_BINS - 1)] += 1
    return rows, error_sum, error_max


@kernel
def histogram_quantile(histogram: NDArray[np.int64], fraction: float) -> int:
    """Return the largest error that the bin of a quantile counts.

    Parameters
    ----------
    histogram : ndarray of int64, shape (ERROR_BINS,)
        From `measure_errors`.
    fraction : float
        Above 0, at most 1.

    Returns
    -------
    int
        In rows; 0 for an empty histogram.
    """
    wanted = np.int64(np.ceil(fraction * np.float64(histogram.sum())))
    seen = 0
    for index in range(len(histogram)):
        seen += histogram[index]
        if seen >= wanted:
            if index < 64:
                return index
            octave = 6 + (index - 64) // 16
            width = 1 << (octave - 4)
            return (16 + (index - 64) % 16) * width + width - 1
    return 0


@kernel
def count_probes(source: NDArray[np.int64], lookups: int) -> tuple[int, int, int]:
    """Count what lookups of existing keys read, with the learned index and by binary search.

    Parameters
    ----------
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Row of the sources array.
    lookups : int
        How many rows to look up, at least 1; evenly spaced over the source.

    Returns
    -------
    lookups : int
        Number of lookups: that asked for, or the number of rows if that is less.
    learned : int
        Knots, pieces, run records and timestamps read by all of them through the index.
    binary : int
        Keys read by lexicographic binary search over all rows.
    """
    rows = source[layout.ROWS]
    lookups = min(lookups, rows)
    learned = 0
    binary = 0
    run = 0
    for index in range(lookups):
        # Not index * rows / lookups: it may be beyond int64.
        row = index * (rows // lookups) + index * (rows % lookups) // lookups
        while load_i64(source[layout.RUNS], run * layout.RUN_WIDTH + layout.RUN_STOP) <= row:
            run += 1
        series_id = load_i64(source[layout.RUNS], run * layout.RUN_WIDTH + layout.RUN_SERIES)
        timestamp = load_i64(source[layout.TIMESTAMPS], row)
        learned += find_run_counted(source, series_id)[1]
        learned += lower_bound_counted(source, run, timestamp)[1]
        low = 0
        high = rows
        while low < high:
            middle = (low + high) >> 1
            binary += 1
            if middle < row:
                low = middle + 1
            else:
                high = middle
    return lookups, learned, binary


def warmup() -> None:
    """Call every kernel once, with the argument types that occur, so that it is compiled and cached."""
    series_id = np.repeat(np.arange(3, dtype=np.int64), 100)
    timestamps = np.arange(300, dtype=np.int64) ** 2
    for kind in (layout.KIND_NONE, layout.KIND_KNOTS, layout.KIND_PIECES):
        models = fit(series_id, timestamps, 4, kind=kind)
    source = np.zeros(layout.SOURCE_WIDTH, np.int64)
    source[layout.ROWS] = len(timestamps)
    source[layout.TIMESTAMPS] = timestamps.ctypes.data
    source[layout.RUN_COUNT] = len(models.runs)
    source[layout.RUNS] = models.runs.ctypes.data
    source[layout.LAST_SERIES] = 2
    source[layout.KNOTS] = models.knots.ctypes.data
    source[layout.PIECES] = models.pieces.ctypes.data
    measure(source)
