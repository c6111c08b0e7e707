"""Where the single file begins: the `omendb` program, with the kernels that came with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

BUNDLE = Path(sys._MEIPASS)  # type: ignore[attr-defined] # where PyInstaller's loader has found everything

# Before Numba is imported. Who chooses a processor or a cache keeps it.
if "NUMBA_CPU_NAME" not in os.environ and "NUMBA_CACHE_DIR" not in os.environ:
    os.environ.update(
        NUMBA_CPU_NAME="x86-64-v3", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=str(BUNDLE / "kernels")
    )

from omendb.cli import main  # noqa: E402

main(prog_name="omendb")
