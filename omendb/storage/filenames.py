"""The names of the files in a data directory, made and taken apart in one place.

::

    LOCK                                the owner holds a lock on it
    MANIFEST                            the durable list of live segments
    wal/00000007.wal                    a WAL file; numbers ascend, without gaps while live
    data/00000012.parquet               a segment
    data/00000012-00000013.lix          the learned index of segment 12, the 13th file ever made
    data/00000014.cat                   names of series
    *.tmp                               a file that was being written; removed at the next start
    backups/NAME/                       a backup: a data directory of its own, with a file BACKUP
    quarantine/                         what `omendb repair` took out of the store
"""

from __future__ import annotations

import re

LOCK = "LOCK"
MANIFEST = "MANIFEST"
WAL_DIRECTORY = "wal"
DATA_DIRECTORY = "data"
BACKUP = "BACKUP"
BACKUP_TEMPORARY_SUFFIX = ".backup.tmp"  # no store that somebody has is called so, and removed for it
BACKUPS_DIRECTORY = "backups"
QUARANTINE_DIRECTORY = "quarantine"
TEMPORARY_SUFFIX = ".tmp"

_WAL = re.compile(r"^(\d{8,})\.wal$")
_SEGMENT = re.compile(r"^(\d{8,})\.parquet$")
_INDEX = re.compile(r"^(\d{8,})-(\d{8,})\.lix$")
_CATALOG = re.compile(r"^(\d{8,})\.cat$")


def wal_name(number: int) -> str:
    """Name of a WAL file, inside the WAL directory."""
    return f"{number:08d}.wal"


def segment_name(number: int) -> str:
    """Name of a segment, inside the data directory."""
    return f"{number:08d}.parquet"


def index_name(segment_number: int, number: int) -> str:
    """Name of a segment's learned index, inside the data directory."""
    return f"{segment_number:08d}-{number:08d}.lix"


def catalog_name(number: int) -> str:
    """Name of a catalog file, inside the data directory."""
    return f"{number:08d}.cat"


def wal_number(name: str) -> int | None:
    """Return the number of the WAL file of this name; None when it names no WAL file."""
    match = _WAL.match(name)
    return int(match[1]) if match else None


def is_ours(name: str) -> bool:
    """Whether a name in the data directory is of a form that only OmenDB gives."""
    return bool(_numbered(name) or name.endswith(TEMPORARY_SUFFIX))


def number_of(name: str) -> int:
    """Return the highest file number in a name of the data directory; 0 when it holds none."""
    match = _numbered(name)
    return max(int(group) for group in match.groups()) if match else 0


def _numbered(name: str) -> re.Match[str] | None:
    return _SEGMENT.match(name) or _INDEX.match(name) or _CATALOG.match(name)
