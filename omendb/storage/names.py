"""Names of series on disk: a part of the catalog, in a record of the log or in a file of its own.

Both hold the same body (docs/format/catalog.md): the first id, the length of each key, and the keys one after
the other. The ids are consecutive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from omendb.errors import CorruptionError
from omendb.series import FIRST_ID, IDS_MAX
from omendb.storage import filenames, format  # noqa: A004
from omendb.storage.fs import publish, write_temporary
from omendb.storage.manifest import CatalogEntry

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from omendb.storage.fs import Bytes, FileSystem


@dataclass(frozen=True, slots=True)
class Names:
    """Keys of series with consecutive ids.

    Attributes
    ----------
    first_id : int
    lengths : ndarray of uint32, shape (n,)
        Bytes of each key.
    keys : ndarray of uint8
        The keys, one after the other.
    """

    first_id: int
    lengths: NDArray[np.uint32]
    keys: NDArray[np.uint8]

    @property
    def count(self) -> int:
        """Number of names."""
        return len(self.lengths)

    @property
    def stop_id(self) -> int:
        """The id after the last."""
        return self.first_id + len(self.lengths)

    def parts(self) -> list[Bytes]:
        """Return the bytes of the body, in parts."""
        return [self.first_id.to_bytes(8, "little"), self.lengths, self.keys]


def body_bytes(names: Names) -> int:
    """Size of the body."""
    return 8 + names.lengths.nbytes + len(names.keys)


def decode_body(data: bytes, start: int, stop: int, count: int) -> Names | None:
    """Read a body of `count` names; None when it is none."""
    keys_start = start + 8 + 4 * count
    if count < 1 or keys_start > stop:
        return None
    first_id = int.from_bytes(data[start : start + 8], "little")
    lengths = np.frombuffer(data, np.uint32, count, start + 8)
    # The shortest key has three bytes: a measurement, a space, a field.
    if int(lengths.sum(dtype=np.uint64)) != stop - keys_start or int(lengths.min()) < 3:
        return None
    if not FIRST_ID <= first_id <= FIRST_ID + IDS_MAX - count:
        return None
    return Names(first_id, lengths, np.frombuffer(data, np.uint8, stop - keys_start, keys_start))


def encode_file(names: Names) -> tuple[list[Bytes], int]:
    """Return the bytes of a catalog file, in parts, and the checksum at their end."""
    head = format.CATALOG_HEADER.pack(format.CATALOG_MAGIC, format.CATALOG_VERSION, names.count)
    body: list[Bytes] = [head, *names.parts()]
    digest = xxhash.xxh3_64()
    for part in body:
        digest.update(part)  # type: ignore[arg-type]
    checksum = digest.intdigest()
    return [*body, checksum.to_bytes(8, "little")], checksum


def decode_file(data: bytes, path: str) -> Names:
    """Read a catalog file.

    Raises
    ------
    CorruptionError
    """
    size = format.CATALOG_HEADER.size
    if len(data) < size + 8:
        raise CorruptionError(path, 0, f"catalog file cut at {len(data)} bytes")
    magic, version, count = format.CATALOG_HEADER.unpack_from(data)
    if magic != format.CATALOG_MAGIC:
        raise CorruptionError(path, 0, "this is no catalog file")
    if version != format.CATALOG_VERSION:
        raise CorruptionError(path, 8, f"catalog version {version} is not known")
    if format.checksum(memoryview(data)[:-8]) != int.from_bytes(data[-8:], "little"):
        raise CorruptionError(path, 0, "the catalog file does not match its checksum")
    names = decode_body(data, size, len(data) - 8, count)
    if names is None:
        raise CorruptionError(path, size, "the catalog file's lengths do not agree")
    return names


def write_file(fs: FileSystem, directory: Path, number: int, names: Names) -> CatalogEntry:
    """Write a catalog file, durably, and return what the manifest says of it.

    Raises
    ------
    OSError
        It may be there.
    """
    path = directory / filenames.catalog_name(number)
    parts, checksum = encode_file(names)
    publish(fs, write_temporary(fs, path, parts), path)
    size = format.CATALOG_HEADER.size + body_bytes(names) + 8
    return CatalogEntry(number, names.first_id, names.count, size, f"{checksum:016x}")


def read_file(fs: FileSystem, directory: Path, entry: CatalogEntry) -> Names:
    """Read the catalog file that the manifest names.

    Raises
    ------
    CorruptionError
        It is missing, damaged, or another one.
    OSError
    """
    path = directory / filenames.catalog_name(entry.number)
    if not fs.exists(path):
        raise CorruptionError(str(path), 0, "the catalog file is missing")
    data = fs.read(path)
    names = decode_file(data, str(path))
    if (len(data), f"{int.from_bytes(data[-8:], 'little'):016x}", names.first_id, names.count) != (
        entry.bytes,
        entry.checksum,
        entry.first_id,
        entry.count,
    ):
        raise CorruptionError(str(path), 0, "this is not the catalog file that the manifest names")
    return names
