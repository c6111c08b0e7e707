"""OmenDB: a durable time-series database with a learned index over memory-mapped Parquet.

>>> import omendb
>>> db = omendb.open("data")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omendb.engine import Engine, open  # noqa: A004
    from omendb.errors import OmenError
    from omendb.model import Columns, Windows

__all__ = ["Columns", "Engine", "OmenError", "Windows", "open"]

_HOMES = {
    "Columns": "omendb.model",
    "Engine": "omendb.engine",
    "OmenError": "omendb.errors",
    "Windows": "omendb.model",
    "open": "omendb.engine",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # Late, so that `omendb --help` does not load Numba.
    if name not in _HOMES:
        raise AttributeError(f"module 'omendb' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
