"""A disk whose every write and flush is logged: a FUSE file under a loop device, with an ext4 on it.

The log makes the disk as a power loss leaves it after any of the writes: what was flushed before is there, of
what came since a seeded subset, torn at sectors. It is what dm-log-writes of the Linux kernel and CrashMonkey
(Mohan et al., OSDI 2018) do, without device mapper. Mounting such an image runs the recovery of ext4.

The mount holds two files: ``disk.img``, and ``ack``: a number written to it is logged in order with the writes.
"""

from __future__ import annotations

import errno
import random
import stat
import struct
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mfusepy

from tests.faults.lossy_fuse import put, put_sectors, serve
from tests.faults.mounts import make_ext4

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITE, FLUSH, ACKNOWLEDGED, FAILED = 1, 2, 3, 4
_HEAD = struct.Struct("<BQI")  # kind, offset or number, bytes that follow


class Entry(NamedTuple):
    """One operation on the disk, or one answer to a client."""

    kind: int
    offset: int
    data: bytes


class Image(NamedTuple):
    """A disk after a power loss, and what had been acknowledged by then."""

    name: str
    content: bytes
    acknowledged: int


class LoggedDisk(mfusepy.Operations):
    """The FUSE file system."""

    use_ns = True

    def __init__(self, empty: Path, log: Path) -> None:
        self._lock = threading.Condition()
        self._disk = bytearray(empty.read_bytes())
        self._log = log.open("wb")
        self._acknowledged = 0
        self._writes = 0
        self._hits = 0
        self._kept_back = b""  # a write that holds this waits
        self._waiting = 0
        self._delay = random.Random(0)
        self._delay_seconds = 0.0
        self._fails_after: int | None = None  # this many writes
        self._lies = False

    def command(self, request: dict[str, Any]) -> dict[str, int]:
        """Do what the standard input says.

        ``fail`` makes all writes fail that arrive after the next `after`; with `lie` the disk takes a half of
        each instead, and calls that a success. ``hold`` keeps writes back that hold the bytes `data`, until
        ``release``. ``delay`` lets each write take a time of its own, up to some `seconds`: those that are
        under way at the same time overtake each other.
        """
        with self._lock:
            if request["command"] == "fail":
                self._fails_after = self._writes + int(request["after"])
                self._lies = bool(request["lie"])
            elif request["command"] == "delay":
                self._delay = random.Random(request["seed"])
                self._delay_seconds = float(request["seconds"])
            elif request["command"] in ("hold", "release"):
                self._kept_back = bytes.fromhex(request.get("data", ""))
                self._lock.notify_all()
            return {
                "acknowledged": self._acknowledged,
                "writes": self._writes,
                "hits": self._hits,
                "waiting": self._waiting,
            }

    def _arrive(self, data: bytes) -> bool:
        """Decide whether the fault meets a write, and keep it back as long as was asked for."""
        with self._lock:
            self._writes += 1
            fails = self._fails_after is not None and self._writes > self._fails_after
            self._hits += fails
            seconds = self._delay.uniform(0, self._delay_seconds)
            if self._kept_back and self._kept_back in data:
                self._waiting += 1
                self._lock.wait_for(lambda: not self._kept_back)
                self._waiting -= 1
        time.sleep(seconds)
        return fails

    def _append(self, kind: int, offset: int, data: bytes = b"") -> None:
        self._log.write(_HEAD.pack(kind, offset, len(data)) + data)
        self._log.flush()

    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 1}
        if path not in ("/disk.img", "/ack"):
            raise mfusepy.FuseOSError(errno.ENOENT)
        size = len(self._disk) if path == "/disk.img" else 8
        return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": size}

    def readdir(self, path, fh):
        return [".", "..", "disk.img", "ack"]

    def open(self, path, flags):
        return 0

    def read(self, path, size, offset, fh):
        with self._lock:
            return bytes(self._disk[offset : offset + size])

    def write(self, path, data, offset, fh):
        if path == "/ack":
            with self._lock:
                self._acknowledged = int.from_bytes(data, "little")
                self._append(ACKNOWLEDGED, self._acknowledged)
            return len(data)
        fails = self._arrive(data)
        with self._lock:
            if fails and not self._lies:
                self._append(FAILED, offset, data)
                raise mfusepy.FuseOSError(errno.EIO)
            taken = data[: len(data) // 2] if fails else data
            put(self._disk, offset, taken)
            self._append(WRITE, offset, taken)
        return len(data)

    def truncate(self, path, length, fh=None):
        return 0

    def fsync(self, path, datasync, fh):
        with self._lock:
            self._append(FLUSH, 0)
        return 0


def make_image(path: Path, size_mib: int, block_bytes: int) -> None:
    """Make the empty disk that the log begins with."""
    make_ext4(path, size_mib, block_bytes=block_bytes)


def read(log: Path) -> list[Entry]:
    """Read a log."""
    data = log.read_bytes()
    entries: list[Entry] = []
    at = 0
    while at < len(data):
        kind, offset, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        entries.append(Entry(kind, offset, data[at : at + size]))
        at += size
    return entries


def final(empty: Path, entries: list[Entry]) -> Image:
    """Return the disk with every write that it took, and what had been acknowledged in the end."""
    content = bytearray(empty.read_bytes())
    acknowledged = 0
    for entry in entries:
        if entry.kind == WRITE:
            put(content, entry.offset, entry.data)
        elif entry.kind == ACKNOWLEDGED:
            acknowledged = entry.offset
    return Image("all that the disk took", bytes(content), acknowledged)


def images(empty: Path, entries: list[Entry], chooser: random.Random, count: int) -> Iterator[Image]:
    """Yield disks as a power loss after `count` of the operations leaves them, in order.

    Of the writes since the last flush all, none or some are there, and of some of those only some sectors.
    """
    points = sorted(chooser.sample(range(1, len(entries) + 1), min(count, len(entries))))
    durable = bytearray(empty.read_bytes())
    pending: list[Entry] = []
    acknowledged = at = 0
    for point in points:
        for entry in entries[at:point]:
            if entry.kind == WRITE:
                pending.append(entry)
            elif entry.kind == ACKNOWLEDGED:
                acknowledged = entry.offset
            elif entry.kind == FLUSH:
                for write in pending:
                    put(durable, write.offset, write.data)
                pending = []
        at = point
        share = chooser.choice([0.0, 0.3, 0.7, 1.0])
        content = bytearray(durable)
        for write in pending:
            if chooser.random() < share:
                if share < 1.0 and chooser.random() < 0.3:
                    put_sectors(content, write.offset, write.data, chooser)
                else:
                    put(content, write.offset, write.data)
        name = f"operation {point} of {len(entries)}, {share:.0%} of {len(pending)} unflushed writes"
        yield Image(name, bytes(content), acknowledged)


if __name__ == "__main__":
    serve(LoggedDisk(Path(sys.argv[2]), Path(sys.argv[3])), sys.argv[1], threads=True)
