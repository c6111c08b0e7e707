"""A contestant's process: starting, stopping, and what it uses, read from /proc."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

READY_SECONDS = 600
_TICKS = os.sysconf("SC_CLK_TCK")


class ContestantError(Exception):
    """A contestant does not do what it should; the message is for the reader of the table."""


class Process:
    """A program that runs until it is told to stop."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                list(command), stdout=output, stderr=output, env={**os.environ, **(environment or {})}
            )
        self.pid = self._popen.pid

    def wait_until(self, ready: Callable[[], bool], pause: float = 0.002) -> None:
        """Wait until `ready` says so.

        Raises
        ------
        ContestantError
            When the process ends before, or takes too long.
        """
        give_up = time.monotonic() + READY_SECONDS
        while not ready():
            if self._popen.poll() is not None:
                raise ContestantError(f"ended with status {self._popen.returncode}: {self.log_end()}")
            if time.monotonic() > give_up:
                raise ContestantError(f"was not ready after {READY_SECONDS} s: {self.log_end()}")
            time.sleep(pause)

    def stop(self, seconds: float = 120) -> None:
        """Ask it to end; kill it when it does not."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait(30)

    def alive(self) -> bool:
        """Say whether it runs."""
        return self._popen.poll() is None

    def log_end(self) -> str:
        """Return the last lines of its log."""
        return self.log.read_text(errors="replace")[-600:].strip()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def anonymous_bytes(pid: int) -> int:
    """Return the memory of a process that the kernel cannot drop: RssAnon."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def wait_quiet(pid: int, seconds_max: float, share: float = 0.04) -> None:
    """Wait until a process does nothing in the background any more, `seconds_max` at most."""
    give_up = time.monotonic() + seconds_max
    quiet = 0
    while quiet < 2 and time.monotonic() < give_up:
        before = cpu_seconds(pid)
        time.sleep(0.5)
        quiet = quiet + 1 if cpu_seconds(pid) - before <= share * 0.5 else 0


def disk_bytes(directory: Path) -> int:
    """Return what the files below a directory occupy, each once."""
    seen: dict[tuple[int, int], int] = {}
    for path in directory.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if path.is_file() and not path.is_symlink():
            seen[status.st_dev, status.st_ino] = min(status.st_size, status.st_blocks * 512)
    return sum(seen.values())


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
