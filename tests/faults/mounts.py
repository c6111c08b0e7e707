"""Small file systems for the fault tests: what they need, and how they are mounted and always unmounted."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_CI = os.environ.get("CI") == "true"
ANSWER_SECONDS = 60  # a limit against hanging


def missing(*, fuse: bool = False, loop: bool = False) -> str | None:
    """Say what this machine lacks for mounting; None when it can be done."""
    if os.geteuid() != 0:
        return "mounting needs root"
    programs = [
        "mount",
        "umount",
        *(["fusermount3"] if fuse else []),
        *(["mkfs.ext4", "losetup"] if loop else []),
    ]
    for program in programs:
        if shutil.which(program) is None:
            return f"the program {program} is not installed (packages.debian names its package)"
    if fuse and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not there"
    if fuse and importlib.util.find_spec("mfusepy") is None:
        return "the package mfusepy is not installed"
    if loop and not Path("/dev/loop-control").exists():
        return "/dev/loop-control is not there"
    return None


def require(*, fuse: bool = False, loop: bool = False) -> None:
    """Skip the test where mounting is not possible; in CI fail, so that a skip does not look like a pass."""
    reason = missing(fuse=fuse, loop=loop)
    if reason is None:
        # Containers may be root without the right to mount.
        probe = subprocess.run(
            ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True
        )
        if probe.returncode == 0:
            return
        reason = f"mounting is not allowed here: {probe.stderr.strip()}"
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str) -> str:
    """Run a program; what it printed is in the error when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def unmount(directory: Path, tries: int = 50) -> None:
    """Unmount, at worst lazily: what still uses it then keeps it until it ends."""
    for _ in range(tries):
        gc.collect()  # maps of an engine in this process, held by a cycle
        done = subprocess.run(["umount", str(directory)], capture_output=True, text=True)
        if done.returncode == 0 or "not mounted" in done.stderr:
            return
        time.sleep(0.1)  # a process that was killed has not gone yet
    subprocess.run(["umount", "-l", str(directory)], capture_output=True)


@contextlib.contextmanager
def mounted_tmpfs(directory: Path, size_mib: int) -> Iterator[Path]:
    """Mount a file system in memory."""
    directory.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(directory))
    try:
        yield directory
    finally:
        unmount(directory)


def make_ext4(image: Path, size_mib: int, *, block_bytes: int = 1024) -> None:
    """Make an ext4 image without blocks that are kept for root."""
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    format_ext4(image, block_bytes=block_bytes)


def format_ext4(image: Path, *, block_bytes: int = 1024) -> None:
    """Put an empty ext4 on an image, all of it now: nothing is left to be initialized in the background."""
    extended = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    run("mkfs.ext4", "-q", "-F", "-b", str(block_bytes), "-m", "0", "-E", extended, str(image))


@contextlib.contextmanager
def mounted_image(image: Path, directory: Path, options: str = "loop") -> Iterator[Path]:
    """Mount an ext4 image through a loop device."""
    directory.mkdir(exist_ok=True)
    run("mount", "-t", "ext4", "-o", options, str(image), str(directory))
    try:
        yield directory
    finally:
        unmount(directory)


class FuseProcess:
    """A FUSE file system of ours in a process of its own; commands go in as JSON lines, answers come out."""

    def __init__(self, process: subprocess.Popen[str], directory: Path) -> None:
        self.directory = directory
        self._process = process
        self._lock = threading.Lock()

    def ask(self, command: str, **arguments: object) -> Any:
        """Give a command; returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it has ended"}
        assert "error" not in answer, (command, arguments, answer)
        return answer


@contextlib.contextmanager
def mounted_fuse(module: str, directory: Path, *arguments: str) -> Iterator[FuseProcess]:
    """Mount one of our FUSE file systems: `module` is run with the directory and the arguments."""
    directory.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(directory), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        give_up = time.monotonic() + ANSWER_SECONDS
        while not os.path.ismount(directory):
            assert process.poll() is None, f"{module} ended with {process.returncode}"
            assert time.monotonic() < give_up, f"{module} did not mount {directory}"
            time.sleep(0.02)
        yield FuseProcess(process, directory)
    finally:
        # Records of the log that pytest keeps may hold an engine with its maps: then it is not waited for.
        unmount(directory, tries=3)
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
