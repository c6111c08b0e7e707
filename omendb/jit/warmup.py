"""Compiles every kernel, or loads it from the cache, before it is needed."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from omendb.jit import (
    ahead,
    answer,
    blocks,
    encode,
    fold,
    keys,
    labels,
    lines,
    merge,
    pages,
    parse,
    pla,
    records,
    search,
    split,
    window,
)
from omendb.jit._compile import PROCESSOR_NOTE, cache_directory

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_MODULES = (
    search,
    pla,
    blocks,
    merge,
    ahead,
    window,
    split,
    fold,
    encode,
    answer,
    parse,
    records,
    pages,
    keys,
    lines,
    labels,
)


class Warmed(NamedTuple):
    """One module's kernels are ready.

    Attributes
    ----------
    module : str
    position, modules : int
        Which of how many modules, from 1.
    kernels : int
        Signatures that are ready now.
    compiled : int
        Those of them that were not in the cache.
    seconds : float
    """

    module: str
    position: int
    modules: int
    kernels: int
    compiled: int
    seconds: float


def warm_up(progress: Callable[[Warmed], None] | None = None) -> list[Warmed]:
    """Make every kernel ready.

    Parameters
    ----------
    progress : callable, optional
        Is told of each module when it is done.

    Returns
    -------
    list of Warmed
    """
    if PROCESSOR_NOTE is not None:
        logger.warning("%s, and kept in %s", PROCESSOR_NOTE, cache_directory())
    done: list[Warmed] = []
    for position, module in enumerate(_MODULES, 1):
        started = time.perf_counter()
        module.warmup()
        kernels = compiled = 0
        for candidate in vars(module).values():
            if getattr(candidate, "__module__", None) != module.__name__:
                continue
            kernels += len(getattr(candidate, "signatures", ()))
            stats = getattr(candidate, "stats", None)
            compiled += sum(stats.cache_misses.values()) if stats is not None else 0
        done.append(
            Warmed(
                module.__name__.rpartition(".")[2],
                position,
                len(_MODULES),
                kernels,
                compiled,
                time.perf_counter() - started,
            )
        )
        if progress is not None:
            progress(done[-1])
    return done
