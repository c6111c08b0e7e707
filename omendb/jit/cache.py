"""The files of one kernel in the cache on disk, each with a checksum.

Numba runs whatever machine code it finds in its cache: a flipped bit there is a wrong answer or a crash,
and a file that a power loss left empty stopped every start with an EOFError. Here a file that is not what
was written is as good as none: it is logged, and the kernel is compiled again. Nor does a cache that cannot
be written to (a full disk) stop a call: the kernel is compiled in memory then.

Takes the place of `numba.core.caching.IndexDataCacheFile` and keeps its names and its ways: files are
written under another name and renamed, so that processes may share a directory. Thread safety: Numba calls
it under its compiler lock.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import secrets
from pathlib import Path
from typing import Any

from numba.core.serialize import dumps

logger = logging.getLogger("omendb.jit")

_DIGEST_BYTES = 16


class KernelCacheFile:
    """What is kept of one kernel: an index by signature and processor, and one file for each entry.

    Parameters
    ----------
    directory : str
    base : str
        Beginning of the file names.
    stamp : object
        Of the source file; an index with another one is out of date.
    """

    def __init__(self, directory: str, base: str, stamp: object) -> None:
        self._directory = Path(directory)
        self._base = base
        self._index_path = self._directory / f"{base}.nbi"
        self._stamp = stamp

    def load(self, key: object) -> Any:  # noqa: ANN401
        """Return what `save` was given for `key`; None when it is not there, or not what was written."""
        name = self._load_index().get(key)
        # The key names the processor: machine code for another one must not run, whatever its file is called.
        return None if name is None else _read(self._directory / name, repr(key))

    def save(self, key: object, data: object) -> None:
        """Keep `data` for `key`, if that is possible."""
        overloads = self._load_index()
        try:
            if key not in overloads:
                taken = set(overloads.values())
                number = 1
                while (name := f"{self._base}.{number}.nbc") in taken:
                    number += 1
                overloads[key] = name
                self._save_index(overloads)
            _write(self._directory / overloads[key], repr(key), data)
        except OSError as error:
            logger.warning("kernel cache cannot be written, going on without: %s", error)

    def flush(self) -> None:
        """Forget everything."""
        self._save_index({})

    def _load_index(self) -> dict[object, str]:
        content = _read(self._index_path, "")
        if content is None or content[0] != self._stamp:
            return {}
        overloads: dict[object, str] = content[1]
        return overloads

    def _save_index(self, overloads: dict[object, str]) -> None:
        _write(self._index_path, "", (self._stamp, overloads))


def _digest(path: Path, binding: str, body: bytes) -> bytes:
    digest = hashlib.blake2b(f"{path.name}\0{binding}\0".encode(), digest_size=_DIGEST_BYTES)
    digest.update(body)
    return digest.digest()


def _read(path: Path, binding: str) -> Any:  # noqa: ANN401
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("kernel cache cannot be read, compiling again: %s", error)
        return None
    body = content[_DIGEST_BYTES:]
    if content[:_DIGEST_BYTES] != _digest(path, binding, body):
        logger.warning("kernel cache damaged, compiling again: %s does not match its checksum", path)
        return None
    return pickle.loads(body)  # noqa: S301 - as trustworthy as the sources


def _write(path: Path, binding: str, content: object) -> None:
    body = dumps(content)
    temporary = path.with_name(f"{path.name}.tmp.{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(_digest(path, binding, body) + body)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
