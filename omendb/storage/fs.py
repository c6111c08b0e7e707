"""The file system as the storage engine sees it: the only module that makes file system calls.

Every call that the engine's durability rests on is a method of `FileSystem`, so that a test can put
another one in its place and fail, tear or forget any of them. Thread safety: a `FileSystem` may be used
from any thread; a `WritableFile` by one thread at a time, except `sync`, which may run beside `write`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from omendb.errors import LockedError
from omendb.storage.filenames import TEMPORARY_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Bytes = bytes | bytearray | memoryview | NDArray[np.generic]

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

NO_LINK_ERRNOS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
"""What says that a file cannot have a second name there: another file system, or one without hard links."""

_COPY_BYTES = 1 << 20


class WritableFile(Protocol):
    """A file that is written from its start to its end."""

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        ...

    def write(self, parts: Sequence[Bytes]) -> None:
        """Append all parts, or raise OSError; after an error an unknown part of them was written."""
        ...

    def sync(self) -> None:
        """Bring everything written to stable storage; after an error nothing is known."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes and go on writing there."""
        ...

    def close(self) -> None:
        """Close without syncing."""
        ...


class MappedFile(Protocol):
    """A file of fixed content, mapped read-only for as long as an array over it lives."""

    @property
    def data(self) -> NDArray[np.uint8]:
        """The whole file, read-only, shape (bytes,)."""
        ...

    def read_at(self, offset: int, size: int) -> bytes:
        """Read through the file descriptor: a device error is an OSError here, a signal through the map."""
        ...


class FileSystem(Protocol):
    """The calls that the storage engine makes."""

    def make_directory(self, path: Path) -> None:
        """Create a directory and its parents; nothing happens when it exists."""
        ...

    def names(self, path: Path) -> list[str]:
        """Names in a directory, sorted."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether the path names a file or a directory."""
        ...

    def size(self, path: Path) -> int:
        """Size of a file in bytes."""
        ...

    def read(self, path: Path) -> bytes:
        """Read the whole content of a file, as the disk holds it."""
        ...

    def create(self, path: Path) -> WritableFile:
        """Create a file for writing; one that exists is an error."""
        ...

    def reopen(self, path: Path) -> WritableFile:
        """Open a file for writing at its end."""
        ...

    def map(self, path: Path) -> MappedFile:
        """Map a file read-only."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or a directory another name, replacing the file or empty directory that had it."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; one that exists is an error."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file's name."""
        ...

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Bring the names in a directory to stable storage."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Bytes that may still be written to the file system that holds `path`."""
        ...

    def total_bytes(self, path: Path) -> int:
        """Size of the file system that holds `path`."""
        ...

    def lock(self, path: Path) -> object:
        """Take an exclusive lock, held until the returned object is closed or the process ends."""
        ...


class _OsWritableFile:
    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._sync_needs_check = _file_system_type(descriptor) in _SYNC_NEEDS_CHECK

    @property
    def offset(self) -> int:
        return self._offset

    def write(self, parts: Sequence[Bytes]) -> None:
        views = [memoryview(part).cast("B") for part in parts if len(part)]  # type: ignore[arg-type]
        while views:
            written = os.writev(self._descriptor, views[:64])
            self._offset += written
            # A short write is ordinary (a signal, a nearly full disk): go on with the rest.
            while views and written >= len(views[0]):
                written -= len(views[0])
                views.pop(0)
            if written:
                views[0] = views[0][written:]

    def sync(self) -> None:
        os.fdatasync(self._descriptor)
        if self._sync_needs_check:
            _check_journal(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, size, os.SEEK_SET)
        self._offset = size

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _OsMappedFile:
    """Holds the map through its array only: the array's references are what keeps it mapped."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(self._descriptor).st_size
        if size:
            area = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)
            self._data = np.frombuffer(area, dtype=np.uint8)
        else:
            self._data = np.empty(0, dtype=np.uint8)

    @property
    def data(self) -> NDArray[np.uint8]:
        return self._data

    def read_at(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            part = os.pread(self._descriptor, size, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", -1)
        if descriptor >= 0:
            os.close(descriptor)


class _OsLock:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class OsFileSystem:
    """`FileSystem` on the operating system."""

    def make_directory(self, path: Path) -> None:
        missing = [parent for parent in (path, *path.parents) if not parent.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for created in missing:
            # The new name must survive a crash as well as what is put below it.
            self.sync_directory(created.parent)

    def names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: Path) -> bool:
        return path.exists()

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def read(self, path: Path) -> bytes:
        with path.open("rb", buffering=0) as file:
            # From the disk, not from the page cache: when a sync has failed, the cache goes on showing what
            # the disk does not hold, as clean pages that no later sync writes (reproduced on ext4).
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return file.readall()

    def create(self, path: Path) -> _OsWritableFile:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return _OsWritableFile(os.open(path, flags, 0o644), 0)

    def reopen(self, path: Path) -> _OsWritableFile:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        return _OsWritableFile(descriptor, os.lseek(descriptor, 0, os.SEEK_END))

    def map(self, path: Path) -> _OsMappedFile:
        return _OsMappedFile(path)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def remove_directory(self, path: Path) -> None:
        os.rmdir(path)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: Path) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def total_bytes(self, path: Path) -> int:
        status = os.statvfs(path)
        return status.f_blocks * status.f_frsize

    def lock(self, path: Path) -> _OsLock:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # Nobody can change a store there, and a backup on such a medium can be checked and restored.
            return _OsLock(-1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise LockedError(f"{path.parent} is in use by another process") from error
        return _OsLock(descriptor)


def write_temporary(fs: FileSystem, path: Path, parts: Sequence[Bytes]) -> Path:
    """Write a file's content under a temporary name beside its own, durably.

    Returns
    -------
    Path
        The temporary name.

    Raises
    ------
    OSError
        Nothing remains of it.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    if fs.exists(temporary):
        fs.remove(temporary)
    file = fs.create(temporary)
    try:
        file.write(parts)
        file.sync()
    except OSError:
        file.close()
        discard(fs, temporary)
        raise
    file.close()
    return temporary


def publish(fs: FileSystem, temporary: Path, path: Path) -> None:
    """Give a file that was written and synced its final name, durably.

    Raises
    ------
    OSError
        It is not known which name survives a crash.
    """
    fs.rename(temporary, path)
    # Sync the directory too: without it a crash may forget the rename.
    fs.sync_directory(path.parent)


def copy(fs: FileSystem, source: MappedFile, target: Path) -> int:
    """Write the content of a mapped file to a new file, durably but for its name; return the bytes.

    Raises
    ------
    OSError
        A part of it may be there.
    """
    size = len(source.data)
    file = fs.create(target)
    try:
        for start in range(0, size, _COPY_BYTES):
            # Through the descriptor: what cannot be read is an error here, a signal through the map.
            part = source.read_at(start, min(_COPY_BYTES, size - start))
            if not part:
                raise OSError(errno.EIO, "the file became shorter while it was copied", str(target))
            file.write([part])
        file.sync()
    finally:
        file.close()
    return size


def discard(fs: FileSystem, path: Path) -> None:
    """Remove a file that nothing refers to; an error is left to the next start, which tries again."""
    try:
        fs.remove(path)
    except OSError:
        return


def processor_count() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0))


def lower_priority(niceness: int) -> None:
    """Let other threads go first where processors are short: sets the calling thread's nice value alone.

    Where that is not allowed, the thread stays as it is.
    """
    # Linux counts niceness by thread: POSIX's whole process is not what this sets.
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


_EXT4, _OVERLAY = 0xEF53, 0x794C7630  # numbers of Linux' linux/magic.h; ext2 and ext3 have ext4's
_SYNC_NEEDS_CHECK = frozenset({_EXT4, _OVERLAY})
"""File systems whose sync can succeed in vain; an overlay passes calls on to the one below, maybe an ext4."""

_FALLOC_FL_KEEP_SIZE = 1
_FILE_SYSTEM_STOPPED_ERRNOS = frozenset({errno.EROFS, errno.EIO, errno.EUCLEAN})


def _file_system_type(descriptor: int) -> int:
    """Return the number of the kind of file system that holds an open file; 0 when that fails."""
    status = (ctypes.c_long * 64)()  # more than a struct statfs; its first field is the type
    return status[0] if _libc.fstatfs(descriptor, status) == 0 else 0


def _check_journal(descriptor: int) -> None:
    """Make sure after a sync that the file system's journal took part in it.

    When the journal of an ext4 fails under another thread's sync, a sync under way may find that there is
    nothing left to wait for, and succeed, though its own changes are lost with the journal. Every later one
    may, too. A change of the file, which has to begin a transaction, is refused once a journal has failed, so
    that one after the sync tells. The first byte has its place already: asking for that changes nothing.

    Raises
    ------
    OSError
        The file system has stopped: nothing is known of what the sync said.
    """
    while _libc.fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, 0, 1) != 0:
        number = ctypes.get_errno()
        if number in _FILE_SYSTEM_STOPPED_ERRNOS:
            raise OSError(number, f"the file system stopped under a sync: {os.strerror(number)}")
        if number != errno.EINTR:
            return  # that it cannot be asked, as on an ext2, says nothing about the sync


def will_need(address: int, size: int) -> None:
    """Ask for a part of a mapped file to be read in the background.

    Through ctypes, which lets go of the GIL: Python's own `mmap.madvise` holds it through page-ins (a cold
    map of 300 MB stalled every thread for 250 ms).
    """
    start = address & -mmap.PAGESIZE
    _libc.madvise(start, address + size - start, mmap.MADV_WILLNEED)


def is_resident(address: int) -> bool:
    """Whether a byte of a mapped file is in memory; True when the system does not tell."""
    state = ctypes.c_ubyte(1)
    failed = _libc.mincore(address & -mmap.PAGESIZE, 1, ctypes.byref(state))
    return bool(failed or state.value & 1)


_MAP_NORESERVE = 0x4000  # Linux's, on all of its architectures that NumPy runs on but Alpha, MIPS and PowerPC


def reserve_memory(size: int) -> NDArray[np.uint8]:
    """Reserve addresses for zeros that take no memory until they are written to.

    Parameters
    ----------
    size : int
        Bytes, at least 1.

    Returns
    -------
    ndarray of uint8, shape (size,)
        Starts at a page; given back when nothing refers to it.
    """
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    # A huge page would keep 2 MiB for a block of 64 KiB.
    with contextlib.suppress(OSError):  # a kernel without huge pages
        area.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(area, dtype=np.uint8)


def drop_memory(array: NDArray[np.generic]) -> None:
    """Give the memory under an array of `reserve_memory` back: it reads as zeros from now on.

    Parameters
    ----------
    array : ndarray
        Contiguous, starting at a page. What is left of its last page goes too.
    """
    # Not by Python's own madvise, which holds the GIL. It cannot fail but by a bug of ours.
    status = _libc.madvise(array.ctypes.data, array.nbytes, mmap.MADV_DONTNEED)
    assert status == 0
