"""Memory for the pieces of large answers.

Thread safety: every thread has its own scratch.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from omendb.executor import RowArrays

_make_bytearray = ctypes.pythonapi.PyByteArray_FromStringAndSize
_make_bytearray.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)
_make_bytearray.restype = ctypes.py_object

_scratch = threading.local()


def make_piece(size: int) -> bytearray:
    """Return a bytearray whose content is undefined: `bytearray` itself writes zeros first."""
    piece: bytearray = _make_bytearray(None, size)
    return piece


def scratch_rows(rows: int) -> RowArrays:
    """Return arrays for rows that are used in this thread, and no longer than until the next call in it.

    They stay in the processor's cache, where fresh ones cost a page fault every 4 KiB.
    """
    arrays: RowArrays | None = getattr(_scratch, "rows", None)
    if arrays is None or len(arrays[0]) != rows:
        series: NDArray[np.int64] = np.empty(rows, dtype=np.int64)
        arrays = _scratch.rows = (series, np.empty_like(series), np.empty(rows, dtype=np.float64))
    return arrays
