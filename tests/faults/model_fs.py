"""A file system in memory that knows what a crash may leave of it.

It keeps apart what a program sees and what is on stable storage: written data is durable after `sync` of its
file, names after `sync_directory` of their directory, and nothing else is. After any operation, `images`
makes the disks that a power loss at that moment may leave: any subset of what is not durable, in any
combination, with writes torn at any byte or with sectors missing (the any-subset model of ALICE, Pillai et
al., OSDI 2014, section 3; it is what POSIX allows, and more than ext4 does).
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECTOR_BYTES = 512


class _Inode:
    """Content of one file: durable, and the operations since."""

    __slots__ = ("content", "durable", "pending")

    def __init__(self, content: bytes = b"") -> None:
        self.durable = content
        self.content = bytearray(content)
        self.pending: list[tuple[int, bytes | None]] = []  # (offset, data), or (size, None) for a cut

    def write(self, data: bytes) -> None:
        self.pending.append((len(self.content), data))
        self.content += data

    def truncate(self, size: int) -> None:
        self.pending.append((size, None))
        del self.content[size:]

    def sync(self) -> None:
        self.durable = bytes(self.content)
        self.pending = []


class ModelFileSystem:
    """A file system; see `omendb.storage.fs.FileSystem` for what its methods do.

    Attributes
    ----------
    on_operation : callable or None
        Is told the name of each operation that changes something, after it was done.
    broken : set of str
        Planted bugs: operations that do nothing though they say so, as ``"sync"`` or ``"sync:.wal"`` (only
        for paths that contain the text).
    """

    def __init__(self) -> None:
        self.on_operation: Callable[[str], None] | None = None
        self.broken: set[str] = set()
        # Inside, names are text: its hash is kept, and images are made by the million.
        self.directories: set[str] = {"/"}
        self._durable_directories: set[str] = {"/"}
        self._names: dict[str, _Inode] = {}
        self._durable: dict[str, _Inode] = {}
        # Changes of names that are not durable: (directory, removed name or None, added name or None, file);
        # two names without a file: a directory has moved, with everything in it.
        self._pending: list[_Change] = []

    # The interface.

    def make_directory(self, path: Path) -> None:
        # Durable at once, as the operating system's one is before it returns.
        if str(path) in self.directories and str(path) in self._durable_directories:
            return
        made = {str(path), *map(str, path.parents)}
        self.directories |= made
        self._durable_directories |= made

    def names(self, path: Path) -> list[str]:
        inside = str(path).rstrip("/") + "/"
        there = [name[len(inside) :] for name in (*self._names, *self.directories) if name.startswith(inside)]
        return sorted(name for name in there if name and "/" not in name)

    def exists(self, path: Path) -> bool:
        return str(path) in self._names or str(path) in self.directories

    def size(self, path: Path) -> int:
        return len(self._find(path).content)

    def read(self, path: Path) -> bytes:
        return bytes(self._find(path).content)

    def create(self, path: Path) -> ModelFile:
        name = str(path)
        if name in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        inode = _Inode()
        self._names[name] = inode
        self._pending.append((_parent(name), None, name, inode))
        self._done("create", path)
        return ModelFile(self, path, inode)

    def reopen(self, path: Path) -> ModelFile:
        return ModelFile(self, path, self._find(path))

    def map(self, path: Path) -> ModelMap:
        return ModelMap(bytes(self._find(path).content))

    def rename(self, source: Path, target: Path) -> None:
        old, new = str(source), str(target)
        if old in self.directories:
            self._move(self._names, self.directories, old, new)
            self._pending.append((_parent(new), old, new, None))
            self._done("rename", target)
            return
        inode = self._find(source)
        del self._names[old]
        self._names[new] = inode
        self._pending.append((_parent(new), old, new, inode))
        self._done("rename", target)

    def link(self, source: Path, target: Path) -> None:
        name = str(target)
        if name in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        inode = self._find(source)
        self._names[name] = inode
        self._pending.append((_parent(name), None, name, inode))
        self._done("link", target)

    def remove_directory(self, path: Path) -> None:
        if self.names(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        self.directories.discard(str(path))
        # A crash may bring it back, empty or with what was in it: on the durable side it stays.
        self._done("remove_directory", path)

    def remove(self, path: Path) -> None:
        self._find(path)
        name = str(path)
        del self._names[name]
        self._pending.append((_parent(name), name, None, None))
        self._done("remove", path)

    def sync_directory(self, path: Path) -> None:
        if not self._is_broken("sync_directory", path):
            left = []
            for change in self._pending:
                if change[0] != str(path):
                    left.append(change)
                    continue
                _apply(self._durable, self._durable_directories, change)
                _, removed, added, inode = change
                if removed is not None and added is not None and inode is None:
                    # What is not durable inside of a directory that has moved is to be found there.
                    left = [_moved_change(earlier, removed, added) for earlier in left]
            self._pending = left
        self._done("sync_directory", path)

    def free_bytes(self, path: Path) -> int:
        return 1 << 40

    def total_bytes(self, path: Path) -> int:
        return 1 << 41

    def lock(self, path: Path) -> ModelLock:
        return ModelLock()

    # Crashes.

    def images(self, seed: int, random_images: int) -> Iterator[ModelFileSystem]:
        """Yield disks that a power loss now may leave: the extremes, each change alone or missing, and some.

        Parameters
        ----------
        seed : int
            Of the random ones.
        random_images : int
            How many random subsets with torn writes.
        """
        names = len(self._pending)
        writes = [(inode, at) for inode in self._live() for at in range(len(inode.pending))]
        total = names + len(writes)
        yield self._image(set(), writes, None)
        if total:
            everything = set(range(total))
            yield self._image(everything, writes, None)
            for change in range(total) if total > 1 else ():
                yield self._image({change}, writes, None)
                yield self._image(everything - {change}, writes, None)
        chooser = random.Random(seed)
        for _ in range(random_images if total else 0):
            chosen = {change for change in range(total) if chooser.random() < 0.7}
            yield self._image(chosen, writes, chooser)

    def after_crash_of_process(self) -> ModelFileSystem:
        """What a killed process leaves: the page cache survives."""
        return self._image(
            set(range(1 << 12)), [(i, at) for i in self._live() for at in range(len(i.pending))], None
        )

    def fingerprint(self) -> int:
        """A number that tells images apart by name and content."""
        return hash(frozenset((name, inode.durable) for name, inode in self._durable.items()))

    def _live(self) -> list[_Inode]:
        """Files that have a name, durable or to be, with changes that are not durable."""
        reachable = [*self._durable.values(), *self._names.values()]
        reachable += [inode for *_, inode in self._pending if inode is not None]
        return list({id(inode): inode for inode in reachable if inode.pending}.values())

    def _image(
        self, chosen: set[int], writes: list[tuple[_Inode, int]], tear: random.Random | None
    ) -> ModelFileSystem:
        image = ModelFileSystem()
        image.directories = set(self._durable_directories)
        durable = dict(self._durable)
        for number, change in enumerate(self._pending):
            if number in chosen:
                _apply(durable, image.directories, change)
        image._durable_directories = set(image.directories)
        kept: dict[int, list[int]] = {}
        for number, (inode, at) in enumerate(writes, len(self._pending)):
            if number in chosen:
                kept.setdefault(id(inode), []).append(at)
        copies: dict[int, _Inode] = {}
        for path, inode in durable.items():
            if id(inode) not in copies:
                copies[id(inode)] = _Inode(_content(inode, kept.get(id(inode), []), tear))
            image._names[path] = image._durable[path] = copies[id(inode)]
        return image

    @staticmethod
    def _move(names: dict[str, _Inode], directories: set[str], source: str, target: str) -> None:
        inside = source + "/"
        for name in [name for name in names if name.startswith(inside)]:
            names[target + name.removeprefix(source)] = names.pop(name)
        for name in [name for name in directories if name == source or name.startswith(inside)]:
            directories.discard(name)
            directories.add(target + name.removeprefix(source))

    def _find(self, path: Path) -> _Inode:
        inode = self._names.get(str(path))
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return inode

    def _is_broken(self, operation: str, path: Path) -> bool:
        return operation in self.broken or any(
            bug.startswith(operation + ":") and bug.partition(":")[2] in str(path) for bug in self.broken
        )

    def _done(self, operation: str, path: Path) -> None:
        if self.on_operation is not None:
            self.on_operation(f"{operation} {path}")


_Change = tuple[str, str | None, str | None, _Inode | None]


def _parent(name: str) -> str:
    return name.rpartition("/")[0] or "/"


def _moved_change(change: _Change, source: str, target: str) -> _Change:
    """Put a change inside of a directory where that directory is now."""

    def moved(name: str | None) -> str | None:
        if name is not None and (name == source or name.startswith(source + "/")):
            return target + name.removeprefix(source)
        return name

    directory, removed, added, inode = change
    return moved(directory) or directory, moved(removed), moved(added), inode


def _apply(names: dict[str, _Inode], directories: set[str], change: _Change) -> None:
    _, removed, added, inode = change
    if removed is not None and added is not None and inode is None:
        ModelFileSystem._move(names, directories, removed, added)
        return
    if removed is not None:
        names.pop(removed, None)
    if added is not None and inode is not None:
        names[added] = inode


def _content(inode: _Inode, kept: list[int], tear: random.Random | None) -> bytes:
    if not kept:
        return inode.durable
    content = bytearray(inode.durable)
    for at, (offset, data) in enumerate(inode.pending):
        if at not in kept:
            continue
        if data is None:
            del content[offset:]
            continue
        if len(content) < offset + len(data):
            # The size may be durable without the data: what is missing reads as zeros.
            content += bytes(offset + len(data) - len(content))
        if tear is None or tear.random() < 0.5:
            content[offset : offset + len(data)] = data
        elif tear.random() < 0.5:
            stop = tear.randrange(len(data) + 1)
            content[offset : offset + stop] = data[:stop]
            if tear.random() < 0.5:
                del content[offset + stop :]
        else:
            for start in range(0, len(data), SECTOR_BYTES):
                if tear.random() < 0.7:
                    content[offset + start : offset + start + SECTOR_BYTES] = data[
                        start : start + SECTOR_BYTES
                    ]
            del content[offset + len(data) :]
    return bytes(content)


class ModelFile:
    """A file being written."""

    def __init__(self, fs: ModelFileSystem, path: Path, inode: _Inode) -> None:
        self._fs = fs
        self._path = path
        self._inode = inode

    @property
    def offset(self) -> int:
        return len(self._inode.content)

    def write(self, parts) -> None:
        self._inode.write(b"".join(bytes(memoryview(part).cast("B")) for part in parts if len(part)))
        self._fs._done("write", self._path)

    def sync(self) -> None:
        if not self._fs._is_broken("sync", self._path):
            self._inode.sync()
        self._fs._done("sync", self._path)

    def truncate(self, size: int) -> None:
        self._inode.truncate(size)
        self._fs._done("truncate", self._path)

    def close(self) -> None:
        pass


class ModelMap:
    """A mapped file."""

    def __init__(self, content: bytes) -> None:
        self.data = np.frombuffer(bytearray(content), dtype=np.uint8)
        self._content = content

    def read_at(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]


class ModelLock:
    def close(self) -> None:
        pass
