"""A FUSE file system that knows what a power loss may leave of it, and that fails on demand.

Written data is durable after fsync of its file, names after fsync of their directory, and nothing else is
(the any-subset model of `model_fs`, here under real system calls, a real page cache and real maps). At any
operation an image can be written to an ordinary directory: the durable state and a seeded subset of the rest,
writes torn at sectors. LazyFS (Ramos et al., VLDB 2024) is the same idea.

`mounts.mounted_fuse("tests.faults.lossy_fuse", directory)` mounts it, empty, or with the durable content of
an image. The file ``/ack`` is special: a number written to it is what the client was told so far, and each
image says what it was at that moment.

Commands (see `mounts.FuseProcess.ask`): ``image`` (directory, seed), ``images`` (directory, seed, every:
one after every so many operations on average), ``count``, ``fail`` (see `Fault`), ``heal``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import stat
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mfusepy

SECTOR_BYTES = 512
ACK = "/ack"


@dataclass(eq=False)
class Node:
    """A file or a directory."""

    is_directory: bool
    number: int
    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, data) or (size, None)
    changed: int = field(default_factory=time.time_ns)

    def write(self, offset: int, data: bytes) -> None:
        self.pending.append((offset, data))
        put(self.content, offset, data)
        self.changed = time.time_ns()

    def truncate(self, size: int) -> None:
        self.pending.append((size, None))
        cut(self.content, size)
        self.changed = time.time_ns()

    def sync(self) -> None:
        for at, data in self.pending:
            cut(self.durable, at) if data is None else put(self.durable, at, data)
        self.pending = []

    def after_crash(self, chooser: random.Random | None, *, keep: bool) -> bytes:
        """Return content: all of what is pending, nothing of it, or what the chooser takes."""
        content = bytearray(self.durable)
        for at, data in self.pending:
            if chooser is None:
                chosen = keep
            else:
                chosen = chooser.random() < 0.7
            if not chosen:
                continue
            if data is None:
                cut(content, at)
            elif chooser is not None and chooser.random() < 0.3:
                put_sectors(content, at, data, chooser)
            else:
                put(content, at, data)
        return bytes(content)


def put(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def put_sectors(content: bytearray, offset: int, data: bytes, chooser: random.Random) -> None:
    """Write only some of the sectors that the data lies in."""
    start = 0
    while start < len(data):
        stop = min(len(data), start + SECTOR_BYTES - (offset + start) % SECTOR_BYTES)
        if chooser.random() < 0.5:
            put(content, offset + start, data[start:stop])
        start = stop


def cut(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


@dataclass
class Fault:
    """Calls that fail.

    Attributes
    ----------
    operation : str
        ``write``, ``fsync``, ``read``, ``create``, ``open``, ``rename``, ``unlink``, ``fsyncdir``,
        ``truncate``.
    error : str
        Name of the errno; ``"short"`` makes a write take a part only.
    after : int
        So many calls go through first.
    sticky : bool
        Fails from then on until ``heal``; else once.
    only : str
        Only paths that contain this.
    """

    operation: str
    error: str
    after: int = 0
    sticky: bool = False
    only: str = ""
    hits: int = 0


@dataclass(frozen=True)
class NameChange:
    directory: str
    removed: str | None
    added: str | None
    node: Node | None


class LossyFileSystem(mfusepy.Operations):
    """The file system; one lock, so that an image is a moment."""

    use_ns = True

    def __init__(self, base: Path | None = None, acknowledged: int = 0) -> None:
        self._lock = threading.RLock()
        self._numbers = 1
        root = Node(is_directory=True, number=1)
        self._names: dict[str, Node] = {"/": root}
        self._durable: dict[str, Node] = {"/": root}
        self._changes: list[NameChange] = []
        self._handles: dict[int, tuple[str, Node]] = {}
        self._next_handle = 1
        self._acknowledged = acknowledged
        self._faults: list[Fault] = []
        self._operations = 0
        self._images: list[dict[str, Any]] = []
        self._directory: Path | None = None
        self._chooser = random.Random(0)
        self._every = 0
        for path in sorted(base.rglob("*")) if base is not None else ():
            node = self._node(is_directory=path.is_dir())
            if not node.is_directory:
                node.durable += path.read_bytes()
                node.content += node.durable
            name = f"/{path.relative_to(base)}"
            self._names[name] = self._durable[name] = node

    # Commands.

    def command(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            kind = request.pop("command")
            if kind == "image":
                return self._image(Path(request["directory"]), request["seed"])
            if kind == "images":
                done, self._images = self._images, []
                self._every = request.get("every", 0)
                self._directory = Path(request["directory"])
                self._chooser = random.Random(request["seed"])
                return {"images": done}
            if kind == "count":
                return {
                    "operations": self._operations,
                    "acknowledged": self._acknowledged,
                    "images": len(self._images),
                    "hits": sum(fault.hits for fault in self._faults),
                }
            if kind == "fail":
                self._faults.append(Fault(**request))
                return {}
            if kind == "heal":
                hits = sum(fault.hits for fault in self._faults)
                self._faults = []
                return {"hits": hits}
            return {"error": f"unknown command {kind}"}

    def _image(self, target: Path, seed: int) -> dict[str, Any]:
        """Write an image: seed 0 keeps only what is durable, 1 everything, others choose."""
        chooser = random.Random(seed) if seed > 1 else None
        names = dict(self._durable)
        lost = torn = 0
        for change in self._changes:
            if chooser.random() < 0.7 if chooser is not None else seed == 1:
                apply(names, change)
            else:
                lost += 1
        target.mkdir(parents=True)
        for name in sorted(names):
            path = target / name[1:]
            if name == "/" or "/.fuse_hidden" in name or not path.parent.is_dir():
                continue
            node = names[name]
            if node.is_directory:
                path.mkdir()
            else:
                torn += bool(node.pending)
                path.write_bytes(node.after_crash(chooser, keep=seed == 1))
        return {
            "directory": str(target),
            "seed": seed,
            "acknowledged": self._acknowledged,
            "lost_names": lost,
            "unsynced_files": torn,
            "operation": self._operations,
        }

    def _done(self) -> None:
        """Count an operation that changed something; perhaps the power goes here."""
        self._operations += 1
        if self._every and self._directory is not None and self._chooser.random() < 1 / self._every:
            seed = self._chooser.choice([0, 1, self._chooser.getrandbits(30) + 2])
            target = self._directory / f"{self._operations}-{seed}"
            if not target.exists():
                self._images.append(self._image(target, seed))

    def _fault(self, operation: str, path: str) -> bool:
        """Raise when this call is to fail; True when it is to be short."""
        for fault in self._faults:
            if fault.operation != operation or fault.only not in path:
                continue
            if fault.hits and not fault.sticky:
                continue
            if fault.after > 0:
                fault.after -= 1
                continue
            fault.hits += 1
            if fault.error == "short":
                return True
            raise mfusepy.FuseOSError(getattr(errno, fault.error))
        return False

    # Names.

    def _find(self, path: str) -> Node:
        node = self._names.get(path)
        if node is None:
            raise mfusepy.FuseOSError(errno.ENOENT)
        return node

    def _change(self, directory: str, removed: str | None, added: str | None, node: Node | None) -> None:
        change = NameChange(directory, removed, added, node)
        apply(self._names, change)
        self._changes.append(change)
        self._done()

    def _node(self, *, is_directory: bool) -> Node:
        self._numbers += 1
        return Node(is_directory=is_directory, number=self._numbers)

    def _open_handle(self, path: str, node: Node) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = (path, node)
        return handle

    def getattr(self, path, fh=None):
        with self._lock:
            node = self._handles[fh][1] if fh in self._handles else self._find(path)
            kind = stat.S_IFDIR | 0o755 if node.is_directory else stat.S_IFREG | 0o644
            return {
                "st_mode": kind,
                "st_ino": node.number,
                "st_nlink": 1,
                "st_size": len(node.content),
                "st_mtime": node.changed,
                "st_ctime": node.changed,
                "st_atime": node.changed,
                "st_blocks": -(-len(node.content) // 512),
            }

    def readdir(self, path, fh):
        with self._lock:
            return [
                ".",
                "..",
                *(name_of(name) for name in self._names if name != "/" and parent(name) == path),
            ]

    def statfs(self, path):
        return {
            "f_bsize": 4096,
            "f_frsize": 4096,
            "f_blocks": 1 << 20,
            "f_bfree": 1 << 20,
            "f_bavail": 1 << 20,
        }

    def mkdir(self, path, mode):
        with self._lock:
            self._change(parent(path), None, path, self._node(is_directory=True))
        return 0

    def create(self, path, mode, fi=None):
        with self._lock:
            self._fault("create", path)
            node = self._node(is_directory=False)
            self._change(parent(path), None, path, node)
            return self._open_handle(path, node)

    def open(self, path, flags):
        with self._lock:
            self._fault("open", path)
            node = self._find(path)
            if flags & os.O_TRUNC:
                node.truncate(0)
            return self._open_handle(path, node)

    def release(self, path, fh):
        with self._lock:
            self._handles.pop(fh, None)
        return 0

    def unlink(self, path):
        with self._lock:
            self._fault("unlink", path)
            self._find(path)
            self._change(parent(path), path, None, None)
        return 0

    def rmdir(self, path):
        return self.unlink(path)

    def rename(self, old, new):
        with self._lock:
            self._fault("rename", new)
            self._change(parent(new), old, new, self._find(old))
        return 0

    # Content.

    def read(self, path, size, offset, fh):
        with self._lock:
            self._fault("read", path or self._handles[fh][0])
            return bytes(self._handles[fh][1].content[offset : offset + size])

    def write(self, path, data, offset, fh):
        with self._lock:
            if path == ACK:  # durable at once: a client does not forget either
                self._acknowledged = int.from_bytes(data, "little")
                return len(data)
            if self._fault("write", path or self._handles[fh][0]):
                data = data[: max(len(data) // 2, 1)]
            self._handles[fh][1].write(offset, data)
            self._done()
            return len(data)

    def truncate(self, path, length, fh=None):
        with self._lock:
            self._fault("truncate", path)
            (self._handles[fh][1] if fh in self._handles else self._find(path)).truncate(length)
            self._done()
        return 0

    def utimens(self, path, times=None):
        return 0

    def fsync(self, path, datasync, fh):
        with self._lock:
            handle_path, node = self._handles[fh]
            self._fault("fsync", path or handle_path)
            # The power may go before the sync has begun as well as after it.
            self._done()
            node.sync()
            self._done()
        return 0

    def fsyncdir(self, path, datasync, fh):
        with self._lock:
            self._fault("fsyncdir", path)
            self._done()
            for change in self._changes:
                if change.directory == path:
                    apply(self._durable, change)
            self._changes = [change for change in self._changes if change.directory != path]
            self._done()
        return 0


def apply(names: dict[str, Node], change: NameChange) -> None:
    if change.removed is not None:
        names.pop(change.removed, None)
    if change.added is not None and change.node is not None:
        names[change.added] = change.node


def parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def name_of(path: str) -> str:
    return path.rpartition("/")[2]


def serve(file_system: Any, directory: str, *, threads: bool = False) -> None:
    """Mount, and take commands from standard input until it is unmounted.

    With `threads` calls overlap.
    """

    def take_commands() -> None:
        for line in sys.stdin:
            try:
                answer = file_system.command(json.loads(line))
            except Exception as error:
                answer = {"error": repr(error)}
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(answer), flush=True)

    threading.Thread(target=take_commands, daemon=True).start()
    options = {"max_idle_threads": 8} if threads else {"nothreads": True}
    mfusepy.FUSE(file_system, directory, foreground=True, attr_timeout=0, entry_timeout=0, **options)


if __name__ == "__main__":
    serve(
        LossyFileSystem(
            Path(sys.argv[2]) if len(sys.argv) > 2 else None,
            int(sys.argv[3]) if len(sys.argv) > 3 else 0,
        ),
        sys.argv[1],
    )
