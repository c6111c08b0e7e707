"""A mounted directory of settings: one file a key, as a ConfigMap mounts; read, never written.

The kubelet changes such a directory as a whole: each file is a link ``KEY -> ..data/KEY``, and ``..data`` is
replaced by a link to a new directory. Editors and shells change one file at a time, and may be seen when half
of it is written. Both come out right when a look is only used once it is the same as the look before it, and
as the look after the files were read.

A *look* is compared by what the files are (the target behind every link: its device, inode, time of change
and size), which needs no notification from the system, and works on every file system. The time is that of
the inode, which the owner of a file cannot set back.

Thread safety: a `ConfigDirectory` belongs to one thread at a time.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES_MAX = 65_536
"""Larger files are no settings, and are not read."""

Look = tuple[tuple[str, int, int, int, int], ...]


class ConfigDirectory:
    """The keys and texts of one directory.

    Parameters
    ----------
    path : Path
        Need not exist: then there are no keys.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: Look | None = None
        self._read: Look | None = None

    def read(self) -> dict[str, str | OSError | ValueError]:
        """Read the directory as it is now.

        Returns
        -------
        dict
            The text of each key; an error where the file cannot be read, or is no text.

        Raises
        ------
        OSError
            The directory is there, and cannot be read.
        """
        # What is read here may be changed within the same tick of the file system's clock, and look the same:
        # so `read_when_changed` reads it once more.
        self._read = None
        self._seen = self._look()
        return {key[0]: self._text(key[0]) for key in self._seen}

    def read_when_changed(self) -> dict[str, str | OSError | ValueError] | None:
        """Read the directory if it has changed since it was read, and has not since the call before.

        Returns
        -------
        dict or None
            As `read`; None when there is nothing new, or not yet.

        Raises
        ------
        OSError
            The directory is there, and cannot be read.
        """
        before = self._seen
        try:
            self._seen = self._look()
        except OSError:
            self._seen = self._read = None  # once it can be read again, that is a change
            raise
        if self._seen in (self._read, None) or self._seen != before:
            return None
        look = self._seen
        texts = {key[0]: self._text(key[0]) for key in look}
        self._seen = self._look()
        if self._seen != look:
            return None
        self._read = look
        return texts

    def _look(self) -> Look:
        try:
            paths = sorted(self.path.iterdir())
        except FileNotFoundError:
            return ()
        look: list[tuple[str, int, int, int, int]] = []
        for path in paths:
            # Those that begin with two dots are the kubelet's own, with one an editor's.
            if path.name.startswith("."):
                continue
            try:
                found = path.stat()
            except FileNotFoundError:  # removed meanwhile, or a link whose target is gone
                continue
            except OSError:
                look.append((path.name, 0, 0, 0, 0))
                continue
            if not stat.S_ISDIR(found.st_mode):
                look.append((path.name, found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size))
        return tuple(look)

    def _text(self, key: str) -> str | OSError | ValueError:
        path = self.path / key
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # to read a pipe could wait for ever
                return ValueError("is no ordinary file")
            if found.st_size > FILE_BYTES_MAX:
                return ValueError(f"has {found.st_size} bytes, {FILE_BYTES_MAX} at most are read")
            return path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            return error
