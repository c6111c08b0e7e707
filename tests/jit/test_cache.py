"""The kernel cache: what is not what was written is compiled again, whatever happened to it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omendb.jit._compile import JIT_DISABLED
from omendb.jit.cache import KernelCacheFile, choose_directory

KEYS = [("int64(int64)", ("x86_64", "cpu", "+avx2")), ("int64(float64)", ("x86_64", "cpu", "+avx2"))]


@pytest.fixture
def kept(tmp_path) -> KernelCacheFile:
    cache = KernelCacheFile(str(tmp_path), "module.kernel-1", (1.0, 10))
    for position, key in enumerate(KEYS):
        cache.save(key, {"code": bytes([position]) * 100})
    return cache


def test_what_was_saved_is_loaded(kept, tmp_path) -> None:
    again = KernelCacheFile(str(tmp_path), "module.kernel-1", (1.0, 10))

    assert [again.load(key) for key in KEYS] == [{"code": b"\0" * 100}, {"code": b"\1" * 100}]
    assert again.load("another") is None
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".nbc", ".nbc", ".nbi"]


def test_sources_that_have_changed_begin_anew(kept, tmp_path) -> None:
    changed = KernelCacheFile(str(tmp_path), "module.kernel-1", (2.0, 10))
    assert changed.load(KEYS[0]) is None
    changed.save(KEYS[0], "new")

    assert (changed.load(KEYS[0]), kept.load(KEYS[0])) == ("new", None)
    kept.flush()
    assert changed.load(KEYS[0]) is None


def test_every_flipped_byte_and_every_cut_is_a_miss(kept, tmp_path, caplog) -> None:
    caplog.set_level(logging.CRITICAL, "omendb.jit")
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        others = [kept.load(key) for key in KEYS]
        for offset in range(len(whole)):
            for damaged in (
                whole[:offset],
                whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :],
            ):
                path.write_bytes(damaged)
                loaded = [kept.load(key) for key in KEYS]
                assert loaded != others
                assert all(found in (None, other) for found, other in zip(loaded, others, strict=True))
        path.write_bytes(whole + b"x")
        assert [kept.load(key) for key in KEYS] != others
        path.write_bytes(whole)


def test_damage_is_logged_and_written_over(kept, tmp_path, caplog) -> None:
    index = next(tmp_path.glob("*.nbi"))
    index.write_bytes(b"")

    assert kept.load(KEYS[0]) is None
    assert f"{index} does not match its checksum" in caplog.text
    kept.save(KEYS[0], "anew")

    assert kept.load(KEYS[0]) == "anew"


def test_code_of_another_kernel_or_processor_is_a_miss(kept, tmp_path) -> None:
    first, second = sorted(tmp_path.glob("*.nbc"))
    content = first.read_bytes()
    second.write_bytes(content)
    assert kept.load(KEYS[1]) is None

    other = KernelCacheFile(str(tmp_path), "module.kernel-1", (1.0, 10))
    other.flush()
    other.save((KEYS[0][0], ("x86_64", "another cpu", "")), "code for another")
    first.write_bytes(content)
    assert other.load((KEYS[0][0], ("x86_64", "another cpu", ""))) is None


def test_a_cache_that_cannot_be_written_stops_nothing(kept, tmp_path, monkeypatch, caplog) -> None:
    def full(*_arguments) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)

    kept.save("new", "code")

    assert kept.load("new") is None
    assert "going on without" in caplog.text


def test_the_directory_is_the_first_that_can_be_used(tmp_path, monkeypatch) -> None:
    shared, home, temporary = tmp_path / "shared", tmp_path / "home", tmp_path / "temporary"
    for directory in (shared, home, temporary):
        directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(os, "access", lambda path, mode: "sealed" not in str(path))
    (shared / "sealed" / "kernels-1").mkdir(parents=True)
    given = {"NUMBA_CACHE_DIR": str(shared / "sealed"), "XDG_CACHE_HOME": str(home)}

    def choose(environment, *, read_only_will_do: bool = True) -> Path:
        return choose_directory("kernels-1", environment, read_only_will_do=read_only_will_do)

    assert choose({"NUMBA_CACHE_DIR": str(shared)}) == shared / "kernels-1"
    assert choose(given) == shared / "sealed" / "kernels-1"
    assert choose(given, read_only_will_do=False) == home / "omendb" / "kernels-1"
    assert choose({"XDG_CACHE_HOME": str(home)}) == home / "omendb" / "kernels-1"
    last = choose({"XDG_CACHE_HOME": str(tmp_path / "sealed")}, read_only_will_do=False)
    assert last == temporary / f"omendb-{os.getuid()}" / "kernels-1"
    assert last.is_dir()
    assert last.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["link", "open to others", "file"])
def test_what_somebody_else_may_have_put_there_is_not_run(tmp_path, monkeypatch, kind) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    expected = tmp_path / f"omendb-{os.getuid()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        expected.symlink_to(elsewhere)
    elif kind == "file":
        expected.write_text("")
    else:
        expected.mkdir()
        expected.chmod(0o777)
    nowhere = {"XDG_CACHE_HOME": "/dev/null/nowhere"}

    chosen = choose_directory("kernels-1", nowhere, read_only_will_do=True)

    assert not chosen.resolve().is_relative_to(expected.resolve())
    assert not list(elsewhere.iterdir())


PROGRAM = """
import logging
logging.basicConfig()
import numpy as np, xxhash
from omendb.jit import records
data = np.arange(200, dtype=np.uint8)
found = records.checksum_short(data.ctypes.data, 200, 7, records.SECRET.ctypes.data)
assert int(found) & (2**64 - 1) == xxhash.xxh3_64_intdigest(data.tobytes(), 7)
print(sum(records.checksum_short.stats.cache_hits.values()))
"""


@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
def test_a_process_survives_damaged_machine_code(tmp_path) -> None:
    def run() -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), done.stderr

    assert run() == ("0", "")
    assert run() == ("1", "")
    shutil.copytree(tmp_path / "cache", tmp_path / "whole")
    rng = np.random.default_rng(3)
    for kind in ("*.nbc", "*.nbi"):
        for path in (tmp_path / "cache").rglob(kind):
            data = bytearray(path.read_bytes())
            for at in rng.integers(16, len(data), 20):
                data[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)

        hits, log = run()

        assert (hits, "kernel cache damaged, compiling again" in log) == ("0", True)
        assert run() == ("1", ""), "it was not mended"
