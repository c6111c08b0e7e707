"""How kernels see the sources of a query: fields of a source row and of a run record.

A *source* is anything that holds rows in ascending order of ``(series_id, timestamp)`` without repeated
keys: a mapped segment, or rows copied out of a memtable. It is described by one row of an int64 array of
shape (sources, `SOURCE_WIDTH`); sources stand in ascending order of age, so that **the later row wins**.

A *run* is the rows of one series inside a source, described by a record of eight int64 words.
"""

from __future__ import annotations

# Fields of a source row (int64 each).
ROWS = 0  # number of rows
TIMESTAMPS = 1  # address of int64[rows], any alignment
VALUES = 2  # address of float64[rows], any alignment
RUN_COUNT = 3  # number of runs
RUNS = 4  # address of int64[runs, RUN_WIDTH], ascending by series_id
SERIES_KNOTS = 5  # address of int32[series knots + 1] over the run records' series ids; 0 when there are none
SERIES_KNOT_COUNT = 6
SERIES_SHIFT = 7
KNOTS = 8  # address of int32[...]: the knots of all uniform runs
PIECES = 9  # address of int64[pieces, PIECE_WIDTH]: the pieces of all piecewise-linear runs
FIRST_SERIES = 10  # lowest series_id
LAST_SERIES = 11  # highest series_id
FIRST_TIMESTAMP = 12  # lowest timestamp of any row
LAST_TIMESTAMP = 13  # highest timestamp of any row
VERIFIED = 14  # address of uint8[blocks]: 1 when a block's checksum has been checked; 0 when all are good
BLOCK_SHIFT = 15  # rows per block are 1 << BLOCK_SHIFT
ON_DEMAND = 16  # 1: rows of blocks that are not verified are not there yet, and read as anything
SOURCE_WIDTH = 17

# Words of a run record.
RUN_SERIES = 0  # series_id
RUN_START = 1  # first row of the run
RUN_STOP = 2  # row after its last
RUN_FIRST = 3  # its first timestamp
RUN_LAST = 4  # its last timestamp
RUN_MODEL = 5  # first knot (in KNOTS) or first piece (in PIECES)
RUN_SHAPE = 6  # kind | shift << 8 | model size << 32
RUN_ERROR = 7  # largest observed error of the model, in rows
RUN_WIDTH = 8

# Kinds of model.
KIND_NONE = 0  # few rows, or a memtable's: plain binary search
KIND_KNOTS = 1  # uniform knots: K[b] = rows of the run before first + (b << shift), relative to RUN_START
KIND_PIECES = 2  # piecewise linear

# Words of a piece.
PIECE_FIRST = 0  # timestamp at which it starts
PIECE_ROW = 1  # row at its start, relative to RUN_START
PIECE_SLOPE = 2  # rows per timestamp unit, the bits of a float64
PIECE_WIDTH = 3

# What a scan reports.
STATUS_DONE = 0  # everything was written
STATUS_FULL = 1  # the output is full and more rows follow
STATUS_VERIFY = 2  # rows of a block whose checksum has not been checked yet are needed
