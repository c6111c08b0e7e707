"""Which processor the kernels are compiled for, and whether this machine is one.

An image and the single file carry kernels compiled ahead for a *level*, ``x86-64-v3``: a set of
instructions that many processors share. Machine code that uses an instruction which the processor lacks
ends the process with SIGILL and without a word, so a level is checked before Numba reads it, and left
when the machine does not reach it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm

if TYPE_CHECKING:
    from collections.abc import Collection

_V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")

LEVELS = {"x86-64": (), "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
"""The levels of the System V ABI for AMD64, and their features under LLVM's names."""


def host_features() -> frozenset[str]:
    """Return the features of this machine that both the processor and the kernel of the system offer.

    Returns
    -------
    frozenset of str
        LLVM's names; empty where LLVM cannot tell.
    """
    try:
        features = llvm.get_host_cpu_features()
    except RuntimeError:
        return frozenset()
    return frozenset(name for name, present in features.items() if present)


def missing_features(level: str | None, features: Collection[str]) -> list[str]:
    """Return what `level` needs and `features` lacks; nothing for a name that is no level.

    Parameters
    ----------
    level : str or None
        As in ``NUMBA_CPU_NAME``.
    features : collection of str

    Returns
    -------
    list of str
        In alphabetical order.
    """
    return sorted(set(LEVELS.get(level or "", ())) - set(features))


def leave_unreachable_level(config: Any, features: Collection[str]) -> str | None:  # noqa: ANN401
    """Have Numba compile for this machine when it does not reach the level that is configured.

    Parameters
    ----------
    config : module
        ``numba.core.config``, or what has its `CPU_NAME` and `CPU_FEATURES`. Changed in place.
    features : collection of str
        Of this machine.

    Returns
    -------
    str or None
        What to tell the operator; None when nothing was changed.
    """
    level = config.CPU_NAME
    missing = missing_features(level, features)
    if not missing:
        return None
    config.CPU_NAME = None
    config.CPU_FEATURES = None
    return (
        f"this processor is older than {level} (it lacks {', '.join(missing)}): the kernels that were "
        "compiled ahead are not used, and are compiled for this machine instead"
    )
