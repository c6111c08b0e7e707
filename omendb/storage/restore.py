"""Restore: a backup, checked, copied into a data directory, and checked again.

It copies, so that the new store shares no block with the backup. The manifest comes last: what a crash leaves
of a restore has none, and is refused by the start.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from omendb.errors import AlreadyExistsError, DiskFullError, InvalidRequestError
from omendb.storage import filenames, manifest
from omendb.storage.backup import check_backup
from omendb.storage.fs import copy, publish, write_temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from omendb.storage.fs import FileSystem
    from omendb.storage.manifest import Manifest


class Restored(NamedTuple):
    """What a restore did.

    Attributes
    ----------
    files, bytes, rows : int
        Of the copy, as checked; rows with superseded ones.
    replaced : Path or None
        Where the store is now that was in the target before.
    """

    files: int
    bytes: int
    rows: int
    replaced: Path | None


def restore(
    fs: FileSystem,
    backup: Path,
    target: Path,
    *,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Restored:
    """Check a backup, copy it into a data directory, durably, and check the copy.

    Parameters
    ----------
    fs : FileSystem
    backup : Path
        A backup, or the data directory of a stopped server.
    target : Path
        Empty, or not there.
    force : bool
        Move a store that the target holds aside, into the target's own directory ``replaced-N``.
    progress : callable, optional
        Is told the name of each file.

    Raises
    ------
    CorruptionError
        The backup is damaged: nothing was changed.
    AlreadyExistsError, DiskFullError
        The target is not empty, or has no room: nothing was changed.
    LockedError
        A process has one of the two open.
    OSError
        What there is of the copy has no manifest, and is refused by the start.
    """
    report = progress or _say_nothing
    if backup == target:
        raise InvalidRequestError("a backup cannot be restored into itself", "target")
    checked = check_backup(fs, backup, report)
    fs.make_directory(target)
    if fs.free_bytes(target) < checked.bytes:
        raise DiskFullError(f"{target} has no room for the {checked.bytes} bytes of {backup}")
    lock = fs.lock(target / filenames.LOCK)
    try:
        # "lost+found" stands at the root of every ext4 file system.
        there = [name for name in fs.names(target) if name not in (filenames.LOCK, "lost+found")]
        if there and not force:
            raise AlreadyExistsError(
                f"{target} is not empty: it holds {', '.join(there[:5])} (--force moves a store aside)"
            )
        replaced = _move_aside(fs, target)
        body = fs.read(backup / filenames.MANIFEST)
        loaded = manifest.decode(body, str(backup / filenames.MANIFEST))
        for directory, names in _content(fs, backup, loaded):
            fs.make_directory(target / directory)
            for name in names:
                report(str(target / directory / name))
                copy(fs, fs.map(backup / directory / name), target / directory / name)
            fs.sync_directory(target / directory)
        # Last: without it the start refuses what is there.
        path = target / filenames.MANIFEST
        publish(fs, write_temporary(fs, path, [body]), path)
    finally:
        lock.close()  # type: ignore[attr-defined]
    copied = check_backup(fs, target, report)
    return Restored(copied.files, copied.bytes, copied.rows, replaced)


def _content(fs: FileSystem, backup: Path, loaded: Manifest) -> Iterator[tuple[str, list[str]]]:
    yield filenames.DATA_DIRECTORY, manifest.data_names(loaded)
    yield (
        filenames.WAL_DIRECTORY,
        [
            name
            for name in fs.names(backup / filenames.WAL_DIRECTORY)
            if (number := filenames.wal_number(name)) is not None and number >= loaded.first_wal_file
        ],
    )


def _move_aside(fs: FileSystem, target: Path) -> Path | None:
    """Move the store in a directory out of the way; None when there is none."""
    # The manifest goes first: what is left without it is refused by the start.
    names = [filenames.MANIFEST, filenames.BACKUP, filenames.DATA_DIRECTORY, filenames.WAL_DIRECTORY]
    there = [name for name in names if fs.exists(target / name)]
    if not there:
        return None
    aside = target / next(
        name for n in itertools.count(1) if not fs.exists(target / (name := f"replaced-{n}"))
    )
    fs.make_directory(aside)
    for name in there:
        fs.rename(target / name, aside / name)
        fs.sync_directory(aside)
        fs.sync_directory(target)
    return aside


def _say_nothing(_name: str) -> None:
    """Take a report of progress that nobody asked for."""
