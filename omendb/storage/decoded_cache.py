"""Decoded rows of compressed segments: kept while they are wanted, in bounded memory.

A compressed segment has an *arena*: addresses for all of its rows, whose memory is there only for the blocks
that are decoded. So kernels see ordinary columns, and ask for blocks that are missing as they ask for
unchecked ones: a block's mark says "decoded, and its checksum is right".

Taking memory back. Kernels run without the GIL and tell nobody which blocks they read, so a block goes in two
steps. It is *hidden* first: its mark is cleared, and kernels that start later ask for it before they use it.
Its memory is dropped when no reading is left that began before that, and a block that is asked for meanwhile
is shown again at no cost, which also tells what is in use: the hidden quarter of the cache is a second
chance. A reading is one step of a query: from a kernel's start until it has written something, and blocks
that it has asked for are not hidden, so that every step ends. The limit may be exceeded by what the steps
that are under way need.

Thread safety: everything may be called from any thread but a `Reading`, which belongs to one. The lock is
held for bookkeeping only, never while something is read or decoded.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from omendb.storage import format  # noqa: A004
from omendb.storage.fs import drop_memory, reserve_memory

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    from omendb.storage.segment_pages import PageReader

LIMIT_BYTES = 64 << 20
"""Bytes of a cache unless it is told otherwise."""

LIMIT_BYTES_MIN = 1 << 20


def share_of(memory_bytes: int, *, is_set: bool) -> int:
    """Return how much of a process's memory its decoded rows may take.

    Parameters
    ----------
    memory_bytes : int
        What the process may hold.
    is_set : bool
        An operator has said so, and so that it may be used; else it is the limit of a container or machine.
    """
    share = memory_bytes // 4
    return share if is_set else min(share, LIMIT_BYTES)


_BLOCK_BYTES = 8 << format.BLOCK_SHIFT
_LOOKS_MAX = 64  # pinned blocks that are looked at in search of one to hide, a time

_serials = itertools.count()


class Arena:
    """Room for the decoded columns of one segment.

    Parameters
    ----------
    reader : PageReader
    rows : int

    Attributes
    ----------
    timestamp : ndarray of int64, shape (rows,)
        Rows of blocks that are not marked read as anything.
    value : ndarray of float64, shape (rows,)
    verified : ndarray of uint8, shape (blocks,)
        1 for each block that is decoded and checked. Only the cache writes to it.
    """

    __slots__ = ("__weakref__", "reader", "serial", "timestamp", "value", "verified")

    def __init__(self, reader: PageReader, rows: int) -> None:
        blocks = -(-rows >> format.BLOCK_SHIFT)
        memory = reserve_memory(2 * blocks * _BLOCK_BYTES)
        values = blocks * _BLOCK_BYTES
        self.reader = reader
        self.serial = next(_serials)
        self.timestamp: NDArray[np.int64] = memory[: 8 * rows].view(np.int64)
        self.value: NDArray[np.float64] = memory[values : values + 8 * rows].view(np.float64)
        self.verified = np.zeros(blocks, np.uint8)

    def decode(self, block: int) -> None:
        """Decode a block into its place, and check it; the mark is left to the cache.

        Raises
        ------
        CorruptionError
        """
        timestamp, value = self._columns(block)
        try:
            self.reader.read_timestamps(block, timestamp)
            self.reader.read_values(block, value)
        except BaseException:
            self.drop(block)
            raise

    def drop(self, block: int) -> None:
        """Give the memory of a block back."""
        for column in self._columns(block):
            drop_memory(column)

    def bytes_of(self, block: int) -> int:
        """Return what a decoded block takes."""
        return sum(column.nbytes for column in self._columns(block))

    def _columns(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        rows = slice(block << format.BLOCK_SHIFT, (block + 1) << format.BLOCK_SHIFT)
        return self.timestamp[rows], self.value[rows]


@dataclass(slots=True)
class _Entry:
    arena: weakref.ref[Arena]  # a segment that is gone takes its memory along
    block: int
    bytes: int
    pins: int = 0
    hidden_at: int = 0  # the epoch


class CacheFigures(NamedTuple):
    """What a cache holds and has done.

    Attributes
    ----------
    bytes, limit_bytes : int
        Of decoded rows and of dictionaries.
    hits : int
        Readings that had to decode nothing.
    misses : int
        Blocks that were decoded.
    evictions : int
        Blocks whose memory was taken back.
    """

    bytes: int
    limit_bytes: int
    hits: int
    misses: int
    evictions: int


_Key = tuple[int, int]


class DecodedCache:
    """What is decoded of the compressed segments of a store.

    Parameters
    ----------
    limit_bytes : int
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._lock = threading.Lock()  # protects everything below; no other is taken under it
        self._limit = max(limit_bytes, LIMIT_BYTES_MIN)
        self._shown: OrderedDict[_Key, _Entry] = OrderedDict()  # the longest unused first
        self._hidden: OrderedDict[_Key, _Entry] = OrderedDict()
        self._shown_bytes = 0
        self._hidden_bytes = 0
        self._decoding: dict[_Key, threading.Event] = {}
        self._dictionaries: OrderedDict[int, weakref.ref[PageReader]] = OrderedDict()
        self._dictionary_bytes = 0
        self._epoch = 0
        self._readings: dict[int, int] = {}  # the epoch at which each began
        self._gone: deque[int] = deque()  # serials of arenas that are no more
        self._hits = self._misses = self._evictions = 0

    @property
    def limit_bytes(self) -> int:
        """Bytes that it may hold."""
        return self._limit

    def set_limit(self, limit_bytes: int) -> None:
        """Change the limit; what is too much goes at once, but for what is being read."""
        if max(limit_bytes, LIMIT_BYTES_MIN) != self._limit:
            with self._lock:
                self._limit = max(limit_bytes, LIMIT_BYTES_MIN)
                self._balance()

    def figures(self) -> CacheFigures:
        """Return what it holds and has done."""
        with self._lock:
            self._forget_gone()
            held = self._shown_bytes + self._hidden_bytes + self._dictionary_bytes
            return CacheFigures(held, self._limit, self._hits, self._misses, self._evictions)

    def add(self, reader: PageReader, rows: int) -> Arena:
        """Make the arena of a segment."""
        arena = Arena(reader, rows)
        # No more than this in a finalizer: it may run anywhere, also while this thread holds the lock.
        weakref.finalize(arena, self._gone.append, arena.serial)
        return arena

    def reading(self) -> Reading:
        """Begin a reading; a context manager."""
        return Reading(self)

    # For readings.

    def begin(self, reading: Reading) -> None:
        """Let a reading begin."""
        with self._lock:
            self._readings[id(reading)] = self._epoch

    def end(self, reading: Reading, *, go_on: bool) -> None:
        """End a step of a reading; with `go_on` the next one begins."""
        with self._lock:
            for key in reading.pinned:
                entry = self._shown.get(key)
                if entry is not None:
                    entry.pins -= 1
            reading.pinned.clear()
            self._hits += not reading.has_decoded
            reading.has_decoded = False
            if go_on:
                self._readings[id(reading)] = self._epoch
            else:
                del self._readings[id(reading)]
            if self._shown_bytes + self._hidden_bytes > self._limit:
                self._balance()

    def show(self, reading: Reading, arena: Arena, start: int, stop: int) -> list[threading.Event]:
        """Make blocks visible, decoding what is missing; return what other threads are decoding."""
        missing: list[int] = []
        others: list[threading.Event] = []
        with self._lock:
            for block in range(start, stop):
                key = (arena.serial, block)
                entry = self._shown.get(key) or self._unhide(key, arena)
                if entry is not None:
                    self._shown.move_to_end(key)
                    self._pin(reading, key, entry)
                elif key in self._decoding:
                    others.append(self._decoding[key])
                else:
                    self._decoding[key] = threading.Event()
                    missing.append(block)
        done = 0
        try:
            for block in missing:
                arena.decode(block)
                with self._lock:
                    self._insert(reading, arena, block)
                done += 1
        finally:
            with self._lock:
                for block in missing[done:]:
                    self._decoding.pop((arena.serial, block)).set()
        return others

    def _pin(self, reading: Reading, key: _Key, entry: _Entry) -> None:
        if key not in reading.pinned:
            reading.pinned.add(key)
            entry.pins += 1

    def _unhide(self, key: _Key, arena: Arena) -> _Entry | None:
        entry = self._hidden.pop(key, None)
        if entry is not None:
            self._hidden_bytes -= entry.bytes
            self._shown_bytes += entry.bytes
            self._shown[key] = entry
            arena.verified[entry.block] = 1
        return entry

    def _insert(self, reading: Reading, arena: Arena, block: int) -> None:
        key = (arena.serial, block)
        entry = _Entry(weakref.ref(arena), block, arena.bytes_of(block))
        self._shown[key] = entry
        self._shown_bytes += entry.bytes
        self._pin(reading, key, entry)
        arena.verified[block] = 1
        self._decoding.pop(key).set()
        reading.has_decoded = True
        self._misses += 1
        self._note_dictionary(arena)
        self._balance()

    # The lock is held below here.

    def _balance(self) -> None:
        self._forget_gone()
        limit = self._limit - self._dictionary_bytes
        looks = 0
        has_hidden = False
        while self._shown_bytes > limit - limit // 4 and looks < min(_LOOKS_MAX, len(self._shown)):
            key, entry = next(iter(self._shown.items()))
            if entry.pins:
                self._shown.move_to_end(key)
                looks += 1
                continue
            del self._shown[key]
            arena = entry.arena()
            if arena is not None:
                arena.verified[entry.block] = 0
            entry.hidden_at = self._epoch
            self._hidden[key] = entry
            self._shown_bytes -= entry.bytes
            self._hidden_bytes += entry.bytes
            has_hidden = True
        if has_hidden:
            self._epoch += 1
        oldest = min(self._readings.values(), default=self._epoch)
        while self._hidden and self._shown_bytes + self._hidden_bytes > limit:
            key, entry = next(iter(self._hidden.items()))
            if entry.hidden_at >= oldest:
                break  # a kernel that began before may still read it
            del self._hidden[key]
            self._hidden_bytes -= entry.bytes
            self._evictions += 1
            arena = entry.arena()
            if arena is not None:
                arena.drop(entry.block)

    def _note_dictionary(self, arena: Arena) -> None:
        """Keep the dictionaries that were used last, in a quarter of the cache."""
        serial, size = arena.serial, arena.reader.dictionary_bytes
        if not size:
            return
        if serial in self._dictionaries:
            self._dictionaries.move_to_end(serial)
            return
        self._dictionaries[serial] = weakref.ref(arena.reader)
        self._dictionary_bytes += size
        while self._dictionary_bytes > self._limit // 4 and len(self._dictionaries) > 1:
            _, reference = self._dictionaries.popitem(last=False)
            reader = reference()
            if reader is not None:
                self._dictionary_bytes -= reader.dictionary_bytes
                reader.drop_dictionary()

    def _forget_gone(self) -> None:
        if not self._gone:
            return
        gone: set[int] = set()
        while self._gone:
            gone.add(self._gone.popleft())
        for key in [key for key in self._shown if key[0] in gone]:
            self._shown_bytes -= self._shown.pop(key).bytes
        for key in [key for key in self._hidden if key[0] in gone]:
            self._hidden_bytes -= self._hidden.pop(key).bytes
        for serial in gone:
            self._dictionaries.pop(serial, None)
        self._dictionary_bytes = sum(
            reader.dictionary_bytes
            for reference in self._dictionaries.values()
            if (reader := reference()) is not None
        )


class Reading:
    """One step of a query over compressed segments, or several, one after the other.

    Between `__enter__` and `__exit__` no memory goes away that a kernel may see.

    Parameters
    ----------
    cache : DecodedCache

    Attributes
    ----------
    pinned : set
        The blocks that it has asked for.
    has_decoded : bool
        It had to wait for some.
    """

    __slots__ = ("_cache", "has_decoded", "pinned")

    def __init__(self, cache: DecodedCache) -> None:
        self._cache = cache
        self.pinned: set[_Key] = set()
        self.has_decoded = False

    def __enter__(self) -> Self:
        self._cache.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cache.end(self, go_on=False)

    def renew(self) -> None:
        """Begin the next step: what kernels have seen so far is not looked at any more."""
        self._cache.end(self, go_on=True)

    def is_much(self, rows: int) -> bool:
        """Whether so many rows should better be read in several steps."""
        return 16 * rows > self._cache.limit_bytes // 4

    def need(self, arena: Arena, start: int, stop: int) -> None:
        """Make rows visible to kernels until the step ends.

        Parameters
        ----------
        arena : Arena
        start, stop : int
            Rows, half-open, at least one.

        Raises
        ------
        CorruptionError
        """
        first, last = start >> format.BLOCK_SHIFT, (stop - 1) >> format.BLOCK_SHIFT
        while others := self._cache.show(self, arena, first, last + 1):
            for event in others:
                event.wait()


class NoReading:
    """Stands in for a `Reading` where nothing is compressed."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def renew(self) -> None:
        """Do nothing."""

    def is_much(self, _rows: int) -> bool:
        """Everything is there already."""
        return False

    def need(self, arena: Arena, start: int, stop: int) -> None:
        """Refuse: whoever has compressed segments has a reading."""
        raise AssertionError(f"rows {start} to {stop} of {arena} are wanted outside of a reading")


NO_READING = NoReading()


def no_reading() -> NoReading:
    """Return what kernels run in that read nothing of a cache."""
    return NO_READING
