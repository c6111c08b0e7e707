"""A file system that fails on demand: for tests of what the engine does about it."""

from __future__ import annotations

import errno
import os
from typing import Any


class FaultyFileSystem:
    """Passes every call on, but raises for the operations that were told to fail.

    Operations: ``create``, ``write``, ``sync``, ``truncate``, ``rename``, ``sync_directory``, ``remove``,
    ``map``, ``link``. `only` limits a fault to paths that contain the text; `after` lets so many calls through first.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._faults: dict[str, tuple[int, str, bool]] = {}
        self._after: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def fail(
        self, operation: str, name: str, *, only: str = "", partial: bool = False, after: int = 0
    ) -> None:
        self._faults[operation] = (getattr(errno, name), only, partial)
        self._after[operation] = after

    def heal(self) -> None:
        self._faults.clear()

    def check(self, operation: str, path: Any) -> bool:
        """Raise when this call is to fail; True when it is to fail after a part of the work."""
        self.calls[operation] = self.calls.get(operation, 0) + 1
        fault = self._faults.get(operation)
        if fault is None or fault[1] not in str(path):
            return False
        if self._after[operation] > 0:
            self._after[operation] -= 1
            return False
        if fault[2]:
            return True
        raise OSError(fault[0], os.strerror(fault[0]), str(path))

    def error(self, operation: str) -> OSError:
        return OSError(self._faults[operation][0], "injected")

    def create(self, path):
        self.check("create", path)
        return _FaultyFile(self, path, self._inner.create(path))

    def reopen(self, path):
        return _FaultyFile(self, path, self._inner.reopen(path))

    def map(self, path):
        self.check("map", path)
        return self._inner.map(path)

    def rename(self, source, target):
        self.check("rename", target)
        self._inner.rename(source, target)

    def link(self, source, target):
        self.check("link", target)
        self._inner.link(source, target)

    def remove(self, path):
        self.check("remove", path)
        self._inner.remove(path)

    def sync_directory(self, path):
        self.check("sync_directory", path)
        self._inner.sync_directory(path)

    def __getattr__(self, name):
        return getattr(self._inner, name)


class _FaultyFile:
    def __init__(self, fs: FaultyFileSystem, path, inner) -> None:
        self._fs = fs
        self._path = path
        self._inner = inner

    @property
    def offset(self):
        return self._inner.offset

    def write(self, parts):
        if self._fs.check("write", self._path):
            first = bytes(memoryview(parts[0]).cast("B"))
            self._inner.write([first[: len(first) // 2]])
            raise self._fs.error("write")
        self._inner.write(parts)

    def sync(self):
        self._fs.check("sync", self._path)
        self._inner.sync()

    def truncate(self, size):
        self._fs.check("truncate", self._path)
        self._inner.truncate(size)

    def close(self):
        self._inner.close()
