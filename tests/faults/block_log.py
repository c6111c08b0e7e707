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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mfusepy

from tests.faults.lossy_fuse import put, put_sectors, serve
from tests.faults.mounts import make_ext4

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITE, FLUSH, ACKNOWLEDGED = 1, 2, 3
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
        self._lock = threading.Lock()
        self._disk = bytearray(empty.read_bytes())
        self._log = log.open("wb")
        self._acknowledged = 0
        self._writes = 0
        self._hits = 0
        self._end = 0  # of the last write
        self._fault: dict[str, Any] | None = None

    def command(self, request: dict[str, Any]) -> dict[str, int]:
        """Do what the standard input says: ``fail`` makes writes fail from the `after`-th from now on."""
        with self._lock:
            if request["command"] == "fail":
                self._fault = {**request, "at": self._writes + int(request["after"])}
            return {"acknowledged": self._acknowledged, "writes": self._writes, "hits": self._hits}

    def _failing(self, offset: int, data: bytes) -> int | None:
        """Return how many bytes of this write are taken; None when all are.

        A disk that fails says EIO. It begins to at a write that does not go on where the last one ended: the
        kernel cuts a request at an edge of a page, and one whose second part fails is a short write, a lie. One that lies takes a part and says so, which a loop device reports as
        success (``lo_complete_rq`` of Linux' drivers/block/loop.c ends a short write without an error).
        """
        self._writes += 1
        continued, self._end = offset == self._end, offset + len(data)
        if self._fault is None or self._writes <= self._fault["at"] or (continued and not self._hits):
            return None
        self._hits += 1
        if self._fault["lie"] and len(data) > 1:
            return len(data) // 2
        raise mfusepy.FuseOSError(errno.EIO)

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
        with self._lock:
            if path == "/ack":
                self._acknowledged = int.from_bytes(data, "little")
                self._append(ACKNOWLEDGED, self._acknowledged)
                return len(data)
            taken = self._failing(offset, data)
            if taken is not None:
                data = data[:taken]
            put(self._disk, offset, data)
            self._append(WRITE, offset, data)
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
            else:
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
    serve(LoggedDisk(Path(sys.argv[2]), Path(sys.argv[3])), sys.argv[1])
