"""Kernels that were compiled ahead, on an emulated processor that is too old for them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from omendb.jit.processor import host_features, missing_features

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAM = """
import sys
if "unchecked" in sys.argv:
    import omendb.jit.processor
    omendb.jit.processor.leave_unreachable_level = lambda config, features: None
import numpy as np, xxhash
from omendb.jit import _compile, records
data = np.arange(200, dtype=np.uint8)
found = records.checksum_short(data.ctypes.data, 200, 7, records.SECRET.ctypes.data)
assert int(found) & (2**64 - 1) == xxhash.xxh3_64_intdigest(data.tobytes(), 7)
print(sum(records.checksum_short.stats.cache_hits.values()), _compile.PROCESSOR_NOTE)
"""


@pytest.mark.timeout(1_800)  # seconds; an emulator on a busy machine is slow
def test_a_nehalem_runs_kernels_of_its_own_and_no_illegal_instruction(
    tmp_path: Path, debian_tool: Callable[[str], str]
) -> None:
    emulator = debian_tool("qemu-x86_64")
    if missing_features("x86-64-v3", host_features()):
        pytest.skip("this processor cannot compile ahead and try")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words[:-1], sys.executable, "-c", PROGRAM, words[-1]],
            env={
                **os.environ,
                "NUMBA_CPU_NAME": "x86-64-v3",
                "NUMBA_CPU_FEATURES": "",
                "NUMBA_CACHE_DIR": str(tmp_path / "kernels"),
            },
            cwd=tmp_path,  # for what the emulator dumps
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )

    ahead = [run("checked") for _ in range(2)]
    assert [done.stdout for done in ahead] == ["0 None\n", "1 None\n"], ahead[0].stderr

    old = run(emulator, "-cpu", "Nehalem", "checked")
    # The experiment is a real one: without the check the emulator does what the processor would.
    unchecked = run(emulator, "-cpu", "Nehalem", "unchecked")

    assert old.returncode == 0, old.stderr
    assert old.stdout.startswith("0 this processor is older than x86-64-v3 (it lacks avx, avx2, ")
    assert "Illegal instruction" in unchecked.stderr
    assert run("checked").stdout == "1 None\n", "what was compiled ahead is still there"
