"""Kernels compiled ahead for a level of processors: left when this machine does not reach it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from omendb.jit._compile import JIT_DISABLED
from omendb.jit.processor import LEVELS, host_features, leave_unreachable_level, missing_features

NEHALEM = {"cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3", "fxsr", "mmx"}
HASWELL = NEHALEM | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"}


def test_levels_grow() -> None:
    sizes = [set(features) for features in LEVELS.values()]

    assert all(lower < higher for lower, higher in itertools.pairwise(sizes))
    assert set(LEVELS["x86-64-v2"]) <= NEHALEM
    assert set(LEVELS["x86-64-v3"]) <= HASWELL


def test_llvm_knows_the_names_of_all_features() -> None:
    import llvmlite.binding as llvm

    if not llvm.get_process_triple().startswith("x86_64"):
        pytest.skip("the levels are those of x86-64")
    known = set(llvm.get_host_cpu_features())

    assert set(LEVELS["x86-64-v4"]) <= known
    assert host_features() <= known


@pytest.mark.parametrize(
    ("level", "features", "missing"),
    [
        ("x86-64-v3", HASWELL, []),
        ("x86-64-v3", HASWELL - {"bmi2", "avx2"}, ["avx2", "bmi2"]),
        ("x86-64-v2", NEHALEM, []),
        ("x86-64", set(), []),
        ("x86-64-v4", HASWELL, ["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"]),
        ("haswell", set(), []),
        (None, set(), []),
    ],
)
def test_what_is_missing(level, features, missing) -> None:
    assert missing_features(level, features) == missing


def test_a_level_that_is_reached_stays() -> None:
    config = SimpleNamespace(CPU_NAME="x86-64-v3", CPU_FEATURES="")

    assert leave_unreachable_level(config, HASWELL) is None
    assert config == SimpleNamespace(CPU_NAME="x86-64-v3", CPU_FEATURES="")


def test_an_older_processor_gets_kernels_of_its_own() -> None:
    config = SimpleNamespace(CPU_NAME="x86-64-v3", CPU_FEATURES="")

    note = leave_unreachable_level(config, NEHALEM)

    assert config == SimpleNamespace(CPU_NAME=None, CPU_FEATURES=None)
    assert note is not None
    assert "older than x86-64-v3 (it lacks avx, avx2, bmi, bmi2, f16c, fma, lzcnt, movbe, xsave)" in note


PROGRAM = """
import sys
import llvmlite.binding as llvm
whole = llvm.get_host_cpu_features()
if sys.argv[1] == "old":
    for name in whole:
        if name.startswith(("avx", "bmi", "fma")):
            whole[name] = False
    llvm.get_host_cpu_features = lambda: whole
import numpy as np
from numba.core import config
from omendb.jit import records, _compile
data = np.arange(200, dtype=np.uint8)
records.checksum_short(data.ctypes.data, 200, 7, records.SECRET.ctypes.data)
stats = records.checksum_short.stats
print(config.CPU_NAME, sum(stats.cache_hits.values()), _compile.cache_directory())
"""


@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
def test_kernels_compiled_ahead_are_used_by_those_who_can(tmp_path) -> None:
    image = tmp_path / "image"

    def run(kind: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, kind],
            env={
                **os.environ,
                "NUMBA_CPU_NAME": "x86-64-v3",
                "NUMBA_CPU_FEATURES": "",
                "NUMBA_CACHE_DIR": str(image),
                "XDG_CACHE_HOME": str(tmp_path / "home"),
            },
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    if missing_features("x86-64-v3", host_features()):
        pytest.skip("this processor does not reach x86-64-v3")
    assert run("new")[:2] == ["x86-64-v3", "0"]
    assert run("new")[:2] == ["x86-64-v3", "1"]
    before = {path.name: path.stat().st_mtime_ns for path in image.rglob("*")}

    name, hits, _ = run("old")

    assert (name, hits) == ("None", "0"), "machine code of the level was taken"
    assert run("old")[:2] == ["None", "1"], "what was compiled for this machine was not kept"
    assert run("new")[:2] == ["x86-64-v3", "1"]
    assert set(before) <= {path.name for path in image.rglob("*")}
