"""The files of one kernel in the cache on disk, each with a checksum.

Numba runs whatever machine code it finds in its cache: a flipped bit there is a wrong answer or a crash,
and a file that a power loss left empty stopped every start with an EOFError. Here a file that is not what
was written is as good as none: it is logged, and the kernel is compiled again. Nor does a cache that cannot
be written to (a full disk) stop a call: the kernel is compiled in memory then.

Takes the place of `numba.core.caching.IndexDataCacheFile` and keeps its names and its ways: files are
written under another name and renamed, so that processes may share a directory. Unlike Numba's, the cache
may be read-only, as that of an image is, and does not depend on where the package is installed: the
directory is named after a hash of the sources. Thread safety: Numba calls it under its compiler lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import secrets
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numba.core import config as _config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserProvidedCacheLocator
from numba.core.serialize import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger("omendb.jit")

_DIGEST_BYTES = 16


def choose_directory(name: str, environment: Mapping[str, str], *, read_only_will_do: bool) -> Path:
    """Return the directory for compiled kernels, which is made unless it is there.

    Parameters
    ----------
    name : str
        Of the directory itself.
    environment : mapping of str to str
        The directory's parent is ``NUMBA_CACHE_DIR``; without it, or when it cannot be used, ``omendb`` below
        ``XDG_CACHE_HOME`` or ``~/.cache``, and at last in the directory for temporary files.
    read_only_will_do : bool
        Whether a directory that is there and cannot be written to can be used: it holds what is needed.

    Returns
    -------
    Path
        It may turn out that nothing can be written to it: kernels are compiled in memory then.

    Notes
    -----
    The cache holds code that is run. In the directory for temporary files, where others write too, one that
    is not this user's alone is not touched; a new one takes its place.
    """
    given = environment.get("NUMBA_CACHE_DIR")
    home = environment.get("XDG_CACHE_HOME")
    base = Path(home) if home else Path("~/.cache").expanduser()
    candidates = [Path(given)] if given else []
    for parent in (*candidates, base / "omendb"):
        directory = parent / name
        if (read_only_will_do and directory.is_dir()) or _can_be_written(directory):
            return directory
    private = Path(tempfile.gettempdir()) / f"omendb-{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            private.mkdir(mode=0o700)
        status = private.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022 or not stat.S_ISDIR(status.st_mode):
            private = Path(tempfile.mkdtemp(prefix="omendb-"))
        (private / name).mkdir(exist_ok=True)
    except OSError as error:
        logger.debug("no place for a kernel cache: %s", error)
    return private / name


def _can_be_written(directory: Path) -> bool:
    """Make the directory unless it is there; say whether this process may write to it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


class _KernelLocator(UserProvidedCacheLocator):  # type: ignore[misc] # Numba has no types
    """Says that a kernel's files are in the configured directory, whether or not it can be written to."""

    def __init__(self, py_func: Callable[..., object], py_file: str) -> None:
        super().__init__(py_func, py_file)
        self._cache_path: str = vars(_config)["CACHE_DIR"]  # not declared: Numba makes it when it is imported

    def ensure_cache_path(self) -> None:
        """Expect nothing of the directory: what cannot be written is compiled in memory."""

    def get_source_stamp(self) -> bytes:
        """Return what stands for the sources: the directory's name has their hash."""
        return Path(self._cache_path).name.encode()


class _KernelCacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = [_KernelLocator]  # noqa: RUF012 # a list in the base class, too


class KernelCache(FunctionCache):  # type: ignore[misc]
    """The cache of one kernel, in ``numba.core.config.CACHE_DIR``.

    Parameters
    ----------
    py_func : callable
        The kernel's Python function.
    """

    _impl_class = _KernelCacheImpl

    def __init__(self, py_func: Callable[..., object]) -> None:
        super().__init__(py_func)
        locator = self._impl.locator
        self._cache_file = KernelCacheFile(
            locator.get_cache_path(), self._impl.filename_base, locator.get_source_stamp()
        )


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
