"""The memtable's kernels: insert into, select from and copy out of sorted blocks.

The state of a memtable is four int64 arrays, which the caller allocates and grows:

- `table`, shape (power of two,): open addressing, linear probing. An entry is ``tag << 32 | slot + 1``,
  0 when empty. The home of a tag is its top bits, so that growing is one pass over both tables.
- `slots`, shape (n, `SLOT_WIDTH`): one cache line for each series, in the order of arrival.
- `arena`, shape (n,): blocks of rows, and directories of blocks. A block of capacity c is
  ``timestamp[c]`` followed by ``value[c]`` (the bits of float64): with c = 4 exactly one cache line.
- `counters`, shape (`COUNTER_WIDTH`,).

A series has one *tail* block, which doubles by moving until it holds ``counters[COUNTER_BLOCK_ROWS]``
rows. From then on full tails are retired into the series' *directory*: an array, ascending by time, of
two words for each retired block (first timestamp, reference), every one of full capacity. A reference is
``offset << 16 | count``. A directory is found by binary search, so that neither a late point nor a range
that starts in the middle walks over blocks (a list of blocks costs one cache miss for each).

Invariants: timestamps ascend strictly through the directory's blocks and then the tail; no block is
empty; offsets are multiples of 8 words; offset 0 means "none". Freed blocks are kept in lists by size, the
first word of each pointing to the next; two neighbours freed one after the other are joined, which is
what happens when all series grow in turn.

Thread safety: none; the caller holds a lock, or nobody writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from omendb.jit import layout
from omendb.jit._compile import inline_kernel, kernel, prefetch
from omendb.model import INT64_MAX, INT64_MIN

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Words of a slot.
SLOT_SERIES = 0  # series_id
SLOT_ROWS = 1  # rows of the series
SLOT_FIRST = 2  # first timestamp
SLOT_LAST = 3  # last timestamp
SLOT_TAIL = 4  # reference to the tail block
SLOT_CAPACITY = 5  # rows that the tail block can hold
SLOT_DIRECTORY = 6  # offset of the directory; 0 when there is none
SLOT_ENTRIES = 7  # blocks in the directory
SLOT_WIDTH = 8

# Counters.
COUNTER_ROWS = 0  # rows of all series
COUNTER_SLOTS = 1  # slots in use: series
COUNTER_ARENA = 2  # words of the arena that have been handed out; starts at `ARENA_FIRST`
COUNTER_FIRST = 3  # lowest timestamp; INT64_MAX when there are no rows
COUNTER_LAST = 4  # highest timestamp; INT64_MIN when there are no rows
COUNTER_BLOCK_ROWS = 5  # rows of a block of full size, a power of two from `BLOCK_ROWS_MIN`
COUNTER_NEED = 6  # why `insert_points` stopped early: one of the NEED codes
COUNTER_FREE = 8  # offset of the first free block of 8 << k words, for k < `SIZE_CLASSES`
SIZE_CLASSES = 40
COUNTER_WIDTH = COUNTER_FREE + SIZE_CLASSES

NEED_NOTHING = 0
NEED_SLOTS = 1  # double `slots` and `table`
NEED_ARENA = 2  # enlarge `arena`

ARENA_FIRST = 8  # offset 0 means "none", and one cache line keeps the rest aligned
BLOCK_ROWS_MIN = 4  # timestamps and values fill one cache line
BLOCK_ROWS_MAX = 32_768  # a count must fit the 16 bits that a reference gives it
DIRECTORY_ENTRIES_MIN = 4  # one cache line
TABLE_SIZE_MAX = 1 << 31  # the home of a tag is made of its 31 bits

COUNT_BITS = 16
COUNT_MASK = (1 << COUNT_BITS) - 1
SLOT_BITS = 32
SLOT_MASK = (1 << SLOT_BITS) - 1
TAG_BITS = 31
TAG_MASK = (1 << TAG_BITS) - 1
HASH_LOW_MASK = (1 << 32) - 1
HASH_FACTOR_FIRST = 0x5851F42D  # both odd and below 2^31
HASH_FACTOR_SECOND = 0x7F4A7C15

# Lookups are staged for so many rows at a time, so that cache misses overlap. Points of 1,000,000 series in
# random order go in at 10.5 M rows/s with stages, at 5.7 without; at 1,000 series stages cost a tenth.
GROUP = 32
# How many series ahead a loop over series asks for cache lines: enough to cover a miss.
LOOKAHEAD = 12

NOT_FOUND = -1
NO_ROOM = -1


@inline_kernel
def series_tag(series_id: int) -> int:
    """Hash a series id to 31 bits, all of which depend on all of the id's.

    Two multiplications of 32 by 31 bits, each folded (high half xor low half), as in wyhash: ids in
    arithmetic progression or with a power of two in common, which one multiplication can map to a few
    homes, spread like random ones. No product reaches 2^63, because Numba compiles int64 arithmetic as
    "does not overflow": a mask after a product that wraps was optimised away (wrong homes were seen).
    """
    mixed = (series_id & HASH_LOW_MASK) * HASH_FACTOR_FIRST
    mixed = (mixed >> 32) ^ (mixed & HASH_LOW_MASK) ^ (series_id >> 32)
    mixed = mixed * HASH_FACTOR_SECOND
    return ((mixed >> TAG_BITS) ^ mixed) & TAG_MASK


@inline_kernel
def tag_shift(table: NDArray[np.int64]) -> int:
    """Return by how much a tag must be shifted right to become its home in `table`."""
    shift = TAG_BITS
    size = len(table)
    while size > 1:
        size >>= 1
        shift -= 1
    return shift


@inline_kernel
def find_slot(
    table: NDArray[np.int64], slots: NDArray[np.int64], series_id: int, tag: int, shift: int
) -> int:
    """Find the slot of a series; `NOT_FOUND` when it has none. One or two cache misses."""
    mask = len(table) - 1
    at = tag >> shift
    entry = table[at]
    while entry != 0:
        if entry >> SLOT_BITS == tag:
            slot: int = (entry & SLOT_MASK) - 1
            if slots[slot, SLOT_SERIES] == series_id:
                return slot
        at = (at + 1) & mask
        entry = table[at]
    return NOT_FOUND


@kernel
def rehash(old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
    """Copy all entries of a table into a larger, zeroed one.

    Parameters
    ----------
    old, new : ndarray of int64, shape (power of two,)
        `new` at least as long as `old`, at most `TABLE_SIZE_MAX`, all zero.

    Notes
    -----
    O(len(old)), and sequential in both: homes are the top bits of the tags, so their order stays.
    """
    shift = tag_shift(new)
    mask = len(new) - 1
    for index in range(len(old)):
        entry = old[index]
        if entry != 0:
            at = (entry >> SLOT_BITS) >> shift
            while new[at] != 0:
                at = (at + 1) & mask
            new[at] = entry


@inline_kernel
def allocate(arena: NDArray[np.int64], counters: NDArray[np.int64], words: int) -> int:
    """Hand out `words` words of the arena, a power of two from 8; `NO_ROOM` when they are not there."""
    size_class = 0
    while (8 << size_class) < words:
        size_class += 1
    offset: int = counters[COUNTER_FREE + size_class]
    if offset != 0:
        counters[COUNTER_FREE + size_class] = arena[offset]
        return offset
    offset = counters[COUNTER_ARENA]
    if offset + words > len(arena):
        return NO_ROOM
    counters[COUNTER_ARENA] = offset + words
    return offset


@inline_kernel
def release(arena: NDArray[np.int64], counters: NDArray[np.int64], offset: int, words: int) -> None:
    """Take back what `allocate` handed out, joined with the last one taken back if they are neighbours."""
    size_class = 0
    while (8 << size_class) < words:
        size_class += 1
    while size_class < SIZE_CLASSES - 1:
        size = 8 << size_class
        other = counters[COUNTER_FREE + size_class]
        if other == 0 or (other + size != offset and offset + size != other):
            break
        counters[COUNTER_FREE + size_class] = arena[other]
        offset = min(offset, other)
        size_class += 1
    arena[offset] = counters[COUNTER_FREE + size_class]
    counters[COUNTER_FREE + size_class] = offset


@inline_kernel
def block_lower_bound(arena: NDArray[np.int64], block: int, count: int, timestamp: int) -> int:
    """Find the first position of a block whose timestamp is at or after `timestamp`; `count` if none."""
    low = 0
    high = count
    while low < high:
        middle = (low + high) >> 1
        if arena[block + middle] < timestamp:
            low = middle + 1
        else:
            high = middle
    return low


@inline_kernel
def block_reference(slots: NDArray[np.int64], arena: NDArray[np.int64], slot: int, entry: int) -> int:
    """Return the reference to the `entry`-th block of a series; the tail comes after the directory."""
    reference: int = slots[slot, SLOT_TAIL]
    if entry != slots[slot, SLOT_ENTRIES]:
        directory: int = slots[slot, SLOT_DIRECTORY]
        reference = arena[directory + 2 * entry + 1]
    return reference


@inline_kernel
def find_entry(slots: NDArray[np.int64], arena: NDArray[np.int64], slot: int, timestamp: int) -> int:
    """Find the last block of a series that starts at or before `timestamp`; the first if none does."""
    entries: int = slots[slot, SLOT_ENTRIES]
    if entries == 0 or timestamp >= arena[slots[slot, SLOT_TAIL] >> COUNT_BITS]:
        return entries
    directory = slots[slot, SLOT_DIRECTORY]
    low = 1
    high = entries
    while low < high:
        middle = (low + high) >> 1
        if arena[directory + 2 * middle] <= timestamp:
            low = middle + 1
        else:
            high = middle
    return low - 1


@inline_kernel
def directory_is_full(entries: int) -> bool:
    """Tell whether one more entry needs a larger directory: capacities are powers of two."""
    return entries == 0 or (entries >= DIRECTORY_ENTRIES_MIN and (entries & (entries - 1)) == 0)


@inline_kernel
def add_entry(
    slots: NDArray[np.int64],
    arena: NDArray[np.int64],
    counters: NDArray[np.int64],
    slot: int,
    entry: int,
    first: int,
    reference: int,
) -> None:
    """Insert a block into a series' directory as its `entry`-th; the caller has checked for room."""
    entries = slots[slot, SLOT_ENTRIES]
    directory = slots[slot, SLOT_DIRECTORY]
    if directory_is_full(entries):
        words = max(4 * entries, 2 * DIRECTORY_ENTRIES_MIN)
        larger = allocate(arena, counters, words)
        for word in range(2 * entries):
            arena[larger + word] = arena[directory + word]
        if entries > 0:
            release(arena, counters, directory, 2 * entries)
        directory = larger
        slots[slot, SLOT_DIRECTORY] = directory
    for word in range(2 * entries - 1, 2 * entry - 1, -1):
        arena[directory + word + 2] = arena[directory + word]
    arena[directory + 2 * entry] = first
    arena[directory + 2 * entry + 1] = reference
    slots[slot, SLOT_ENTRIES] = entries + 1


@inline_kernel
def set_reference(
    slots: NDArray[np.int64], arena: NDArray[np.int64], slot: int, entry: int, reference: int
) -> None:
    """Replace the reference to the `entry`-th block of a series."""
    if entry == slots[slot, SLOT_ENTRIES]:
        slots[slot, SLOT_TAIL] = reference
    else:
        arena[slots[slot, SLOT_DIRECTORY] + 2 * entry + 1] = reference


@kernel
def insert_slowly(
    slots: NDArray[np.int64],
    arena: NDArray[np.int64],
    counters: NDArray[np.int64],
    slot: int,
    timestamp: int,
    value: float,
) -> int:
    """Insert a point anywhere into a series: late, or in order where the tail is full.

    Parameters
    ----------
    slots, arena, counters : ndarray of int64
        See the module.
    slot : int
        Of the series.
    timestamp : int
        Any; a point that the series already has at this time gets the new value.
    value : float

    Returns
    -------
    int
        Rows added, 0 or 1; `NO_ROOM` when the arena must grow first (nothing has changed then).

    Notes
    -----
    O(log(blocks) + rows of a block), and O(blocks) for every block that is split. A full block is split
    in the middle, except where a point comes after all of a full block or before the first block: it
    starts a block of its own, so that old data loaded in ascending order fills blocks without shifting.
    """
    values = arena.view(np.float64)
    entry = find_entry(slots, arena, slot, timestamp)
    entries = slots[slot, SLOT_ENTRIES]
    reference = block_reference(slots, arena, slot, entry)
    block = reference >> COUNT_BITS
    count = reference & COUNT_MASK
    block_rows = counters[COUNTER_BLOCK_ROWS]
    capacity = slots[slot, SLOT_CAPACITY] if entry == entries else block_rows
    position = block_lower_bound(arena, block, count, timestamp)
    if position < count and arena[block + position] == timestamp:
        values[block + capacity + position] = value
        return 0

    if count == capacity and capacity < block_rows:
        # A tail that is not yet of full size moves into a block of twice the capacity. (A chain of
        # blocks of 4, 8, 16 ... rows would save the copy, but cost a directory for small series.)
        larger = allocate(arena, counters, 4 * capacity)
        if larger == NO_ROOM:
            return NO_ROOM
        for row in range(count):
            arena[larger + row] = arena[block + row]
        for row in range(count):
            values[larger + 2 * capacity + row] = values[block + capacity + row]
        release(arena, counters, block, 2 * capacity)
        block = larger
        capacity = 2 * capacity
        slots[slot, SLOT_CAPACITY] = capacity
    elif count == capacity:
        # Room for everything is checked before anything changes.
        words = 2 * block_rows
        if directory_is_full(entries):
            words += max(4 * entries, 2 * DIRECTORY_ENTRIES_MIN)
        if counters[COUNTER_ARENA] + words > len(arena):
            return NO_ROOM
        other = allocate(arena, counters, 2 * block_rows)
        if position == 0:
            # Only the first block of a series, the directory's or the tail, is asked for position 0.
            add_entry(slots, arena, counters, slot, entry, timestamp, other << COUNT_BITS)
            block = other
            count = 0
        else:
            keep = count if position == count else count >> 1
            moved = count - keep
            for row in range(moved):
                arena[other + row] = arena[block + keep + row]
            for row in range(moved):
                values[other + block_rows + row] = values[block + block_rows + keep + row]
            lower = block << COUNT_BITS | keep
            upper = other << COUNT_BITS | moved
            first = arena[other] if moved > 0 else timestamp
            if entry == entries:
                add_entry(slots, arena, counters, slot, entry, arena[block], lower)
                slots[slot, SLOT_TAIL] = upper
            else:
                set_reference(slots, arena, slot, entry, lower)
                add_entry(slots, arena, counters, slot, entry + 1, first, upper)
            if position > keep or moved == 0:
                entry += 1
                block = other
                position -= keep
                count = moved
            else:
                count = keep

    for row in range(count, position, -1):
        arena[block + row] = arena[block + row - 1]
    for row in range(count, position, -1):
        values[block + capacity + row] = values[block + capacity + row - 1]
    arena[block + position] = timestamp
    values[block + capacity + position] = value
    set_reference(slots, arena, slot, entry, block << COUNT_BITS | (count + 1))
    slots[slot, SLOT_ROWS] += 1
    if timestamp > slots[slot, SLOT_LAST]:
        slots[slot, SLOT_LAST] = timestamp
    if timestamp < slots[slot, SLOT_FIRST]:
        slots[slot, SLOT_FIRST] = timestamp
        if slots[slot, SLOT_ENTRIES] > 0:
            arena[slots[slot, SLOT_DIRECTORY]] = timestamp
    return 1


@kernel
def add_series(
    table: NDArray[np.int64],
    slots: NDArray[np.int64],
    arena: NDArray[np.int64],
    counters: NDArray[np.int64],
    series_id: int,
    timestamp: int,
    value: float,
) -> int:
    """Add a series that is not there yet, with its first point.

    Returns
    -------
    int
        Its slot; `NO_ROOM` when an array must grow first, which `COUNTER_NEED` names (nothing has changed
        then).
    """
    slot: int = counters[COUNTER_SLOTS]
    if slot == len(slots):
        counters[COUNTER_NEED] = NEED_SLOTS
        return NO_ROOM
    block = allocate(arena, counters, 2 * BLOCK_ROWS_MIN)
    if block == NO_ROOM:
        counters[COUNTER_NEED] = NEED_ARENA
        return NO_ROOM
    values = arena.view(np.float64)
    arena[block] = timestamp
    values[block + BLOCK_ROWS_MIN] = value
    slots[slot, SLOT_SERIES] = series_id
    slots[slot, SLOT_ROWS] = 1
    slots[slot, SLOT_FIRST] = timestamp
    slots[slot, SLOT_LAST] = timestamp
    slots[slot, SLOT_TAIL] = block << COUNT_BITS | 1
    slots[slot, SLOT_CAPACITY] = BLOCK_ROWS_MIN
    slots[slot, SLOT_DIRECTORY] = 0
    slots[slot, SLOT_ENTRIES] = 0
    tag = series_tag(series_id)
    mask = len(table) - 1
    at = tag >> tag_shift(table)
    while table[at] != 0:
        at = (at + 1) & mask
    table[at] = tag << SLOT_BITS | (slot + 1)
    counters[COUNTER_SLOTS] = slot + 1
    return slot


@kernel
def insert_points(
    table: NDArray[np.int64],
    slots: NDArray[np.int64],
    arena: NDArray[np.int64],
    counters: NDArray[np.int64],
    series_id: NDArray[np.int64],
    timestamp: NDArray[np.int64],
    value: NDArray[np.float64],
    first: int,
) -> int:
    """Insert points one after the other; at an equal ``(series_id, timestamp)`` the later one wins.

    Parameters
    ----------
    table, slots, arena, counters : ndarray of int64
        See the module. `table` is at least twice as long as `slots`.
    series_id, timestamp : ndarray of int64, shape (n,)
        Any order.
    value : ndarray of float64, shape (n,)
    first : int
        Row to begin with, ``0 <= first <= n``.

    Returns
    -------
    int
        n when all are in; else the first row that is not, because the array that
        ``counters[COUNTER_NEED]`` names must grow. Calling again from that row goes on.

    Notes
    -----
    O(1) a point in ascending order of its series, amortised; see `insert_slowly` for the others. Groups
    of rows are looked up in stages, each asking for the cache lines that the next one reads: hash table,
    slot, end of the tail block. Rows whose series come in the order of the slots need no hash table.
    """
    values = arena.view(np.float64)
    count = len(series_id)
    shift = tag_shift(table)
    mask = len(table) - 1
    table_address = table.ctypes.data
    slots_address = slots.ctypes.data
    arena_address = arena.ctypes.data
    tags = np.empty(GROUP, np.int64)
    candidates = np.empty(GROUP, np.int64)
    counters[COUNTER_NEED] = NEED_NOTHING
    lowest = counters[COUNTER_FIRST]
    highest = counters[COUNTER_LAST]
    rows = counters[COUNTER_ROWS]
    slot = NOT_FOUND
    start = first
    row = first
    while start < count:
        stop = min(start + GROUP, count)
        # A group of one series, as bulk loads send them, stays with the slot that it has.
        staged = series_id[start] != series_id[stop - 1]
        if staged:
            # Series that come in the order in which they came first have their slots one after the other.
            guess = slot + 1 if slot + 1 < counters[COUNTER_SLOTS] else 0
            expected = start
            slots_left = counters[COUNTER_SLOTS] - guess
            while (
                expected < stop
                and expected - start < slots_left
                and slots[guess + expected - start, SLOT_SERIES] == series_id[expected]
            ):
                candidates[expected - start] = guess + expected - start
                expected += 1
            for row in range(expected, stop):
                tag = series_tag(series_id[row])
                tags[row - start] = tag
                prefetch(table_address + 8 * (tag >> shift))
            for row in range(expected, stop):
                tag = tags[row - start]
                at = tag >> shift
                entry = table[at]
                while entry != 0 and entry >> SLOT_BITS != tag:
                    at = (at + 1) & mask
                    entry = table[at]
                candidate = (entry & SLOT_MASK) - 1
                candidates[row - start] = candidate
                if candidate >= 0:
                    prefetch(slots_address + 8 * SLOT_WIDTH * candidate)  # pyright: ignore[reportArgumentType]
            for row in range(start, stop):
                candidate = candidates[row - start]
                if candidate >= 0:
                    tail = slots[candidate, SLOT_TAIL]
                    end = (tail >> COUNT_BITS) + (tail & COUNT_MASK)
                    prefetch(arena_address + 8 * end)
                    prefetch(arena_address + 8 * (end + slots[candidate, SLOT_CAPACITY]))
        for row in range(start, stop):
            series = series_id[row]
            time = timestamp[row]
            if staged:
                slot = candidates[row - start]
            if slot < 0 or slots[slot, SLOT_SERIES] != series:
                # New, or two series of one tag, or a group that was not staged.
                slot = find_slot(table, slots, series, series_tag(series), shift)
            added = 1
            if slot < 0:
                slot = add_series(table, slots, arena, counters, series, time, value[row])
                if slot < 0:
                    added = NO_ROOM
            else:
                last = slots[slot, SLOT_LAST]
                tail = slots[slot, SLOT_TAIL]
                capacity = slots[slot, SLOT_CAPACITY]
                end = (tail >> COUNT_BITS) + (tail & COUNT_MASK)
                if time > last and (tail & COUNT_MASK) < capacity:
                    arena[end] = time
                    values[end + capacity] = value[row]
                    slots[slot, SLOT_TAIL] = tail + 1
                    slots[slot, SLOT_LAST] = time
                    slots[slot, SLOT_ROWS] += 1
                elif time == last:
                    values[end - 1 + capacity] = value[row]
                    added = 0
                else:
                    added = insert_slowly(slots, arena, counters, slot, time, value[row])
                    if added < 0:
                        counters[COUNTER_NEED] = NEED_ARENA
            if added < 0:
                counters[COUNTER_FIRST] = lowest
                counters[COUNTER_LAST] = highest
                counters[COUNTER_ROWS] = rows
                return row
            rows += added
            lowest = min(lowest, time)
            highest = max(highest, time)
        start = stop
    counters[COUNTER_FIRST] = lowest
    counters[COUNTER_LAST] = highest
    counters[COUNTER_ROWS] = rows
    return count


@kernel
def select_rows(
    table: NDArray[np.int64],
    slots: NDArray[np.int64],
    arena: NDArray[np.int64],
    wanted: NDArray[np.int64],
    wanted_are_slots: bool,
    start: int,
    end: int,
    after_series: int,
    after_timestamp: int,
    rows_max: int,
    runs: NDArray[np.int64],
    source: NDArray[np.int64],
) -> bool:
    """Find the rows of a range and plan their copy.

    Parameters
    ----------
    table, slots, arena : ndarray of int64
        See the module.
    wanted : ndarray of int64, shape (n,)
        Series ids in ascending order, or the slots of series in ascending order of their ids.
    wanted_are_slots : bool
        Which of the two.
    start, end : int
        Timestamps, both inclusive.
    after_series, after_timestamp : int
        Rows must be strictly after this key; the lowest int64s for "from the beginning".
    rows_max : int
        At least 1.
    runs : ndarray of int64, shape (m, RUN_WIDTH)
        Written: a record for each series with rows, without its timestamps, and with the place of its
        first row in `RUN_MODEL` (slot) and `RUN_ERROR` (block and position) for `copy_rows`. m is at least
        ``min(n, rows_max)``.
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        Written: `ROWS` and `RUN_COUNT`.

    Returns
    -------
    bool
        True when more rows follow after the first `rows_max`.

    Notes
    -----
    O(wanted + blocks with rows of the result). Two passes, this one and `copy_rows`, so that the output
    can be allocated exactly.
    """
    shift = tag_shift(table)
    table_address = table.ctypes.data
    slots_address = slots.ctypes.data
    arena_address = arena.ctypes.data
    count = len(wanted)
    low = 0
    high = count
    while low < high:
        middle = (low + high) >> 1
        series = slots[wanted[middle], SLOT_SERIES] if wanted_are_slots else wanted[middle]
        if series < after_series:
            low = middle + 1
        else:
            high = middle
    rows = 0
    run_count = 0
    cut = False
    for index in range(low, count):
        # Ask for what the next series need: hash entry, slot, block.
        if index + LOOKAHEAD < count:
            ahead = min(index + 2 * LOOKAHEAD, count - 1)
            if wanted_are_slots:
                near = wanted[index + LOOKAHEAD]
                far = wanted[ahead]
            else:
                farther = min(index + 3 * LOOKAHEAD, count - 1)
                prefetch(table_address + 8 * (series_tag(wanted[farther]) >> shift))
                far = (table[series_tag(wanted[ahead]) >> shift] & SLOT_MASK) - 1
                near = (table[series_tag(wanted[index + LOOKAHEAD]) >> shift] & SLOT_MASK) - 1
            if far >= 0:
                prefetch(slots_address + 8 * SLOT_WIDTH * far)
            if near >= 0 and (slots[near, SLOT_FIRST] < start or slots[near, SLOT_LAST] > end):
                prefetch(arena_address + 8 * (slots[near, SLOT_TAIL] >> COUNT_BITS))
        if wanted_are_slots:
            slot = wanted[index]
        else:
            slot = find_slot(table, slots, wanted[index], series_tag(wanted[index]), shift)
            if slot < 0:
                continue
        series = slots[slot, SLOT_SERIES]
        from_time = start
        if series == after_series and after_timestamp >= from_time:
            if slots[slot, SLOT_LAST] <= after_timestamp:
                continue
            from_time = after_timestamp + 1
        if slots[slot, SLOT_LAST] < from_time or slots[slot, SLOT_FIRST] > end:
            continue
        # The first row at or after `from_time`, which exists.
        entry = 0
        position = 0
        if slots[slot, SLOT_FIRST] < from_time:
            entry = find_entry(slots, arena, slot, from_time)
            reference = block_reference(slots, arena, slot, entry)
            block_count = reference & COUNT_MASK
            position = block_lower_bound(arena, reference >> COUNT_BITS, block_count, from_time)
            if position == block_count:
                entry += 1
                position = 0
        place = entry << COUNT_BITS | position
        # How many rows up to `end`; blocks beyond `rows_max` are not looked at.
        found = 0
        if entry == 0 and position == 0 and slots[slot, SLOT_LAST] <= end:
            found = slots[slot, SLOT_ROWS]
        else:
            entries = slots[slot, SLOT_ENTRIES]
            while entry <= entries and found <= rows_max - rows:
                reference = block_reference(slots, arena, slot, entry)
                block = reference >> COUNT_BITS
                block_count = reference & COUNT_MASK
                if arena[block + block_count - 1] > end:
                    # end < INT64_MAX here.
                    upper = block_lower_bound(arena, block, block_count, end + 1)
                    found += max(upper - position, 0)
                    break
                found += block_count - position
                position = 0
                entry += 1
        if found == 0:
            continue
        if rows == rows_max:
            cut = True
            break
        if found > rows_max - rows:
            found = rows_max - rows
            cut = True
        runs[run_count, layout.RUN_SERIES] = series
        runs[run_count, layout.RUN_START] = rows
        rows += found
        runs[run_count, layout.RUN_STOP] = rows
        runs[run_count, layout.RUN_MODEL] = slot
        runs[run_count, layout.RUN_ERROR] = place
        run_count += 1
        if cut:
            break
    source[layout.ROWS] = rows
    source[layout.RUN_COUNT] = run_count
    return cut


@kernel
def copy_rows(
    slots: NDArray[np.int64],
    arena: NDArray[np.int64],
    runs: NDArray[np.int64],
    timestamp: NDArray[np.int64],
    value: NDArray[np.float64],
    source: NDArray[np.int64],
) -> None:
    """Copy the rows that `select_rows` planned, and complete their run records and source row.

    Parameters
    ----------
    slots, arena : ndarray of int64
        See the module; unchanged since `select_rows`.
    runs : ndarray of int64, shape (m, RUN_WIDTH)
        From `select_rows`; completed, with `KIND_NONE`.
    timestamp : ndarray of int64, shape (rows,)
        Written.
    value : ndarray of float64, shape (rows,)
        Written.
    source : ndarray of int64, shape (SOURCE_WIDTH,)
        From `select_rows`; completed with the addresses of `runs`, `timestamp` and `value`.
    """
    values = arena.view(np.float64)
    slots_address = slots.ctypes.data
    arena_address = arena.ctypes.data
    run_count = source[layout.RUN_COUNT]
    block_rows = 0
    lowest = np.int64(0)
    highest = np.int64(0)
    for run in range(run_count):
        if run + LOOKAHEAD < run_count:
            far = runs[min(run + 2 * LOOKAHEAD, run_count - 1), layout.RUN_MODEL]
            prefetch(slots_address + 8 * SLOT_WIDTH * far)
            near = runs[run + LOOKAHEAD, layout.RUN_MODEL]
            at = slots[near, SLOT_TAIL] >> COUNT_BITS
            at += runs[run + LOOKAHEAD, layout.RUN_ERROR] & COUNT_MASK
            prefetch(arena_address + 8 * at)
            prefetch(arena_address + 8 * (at + slots[near, SLOT_CAPACITY]))
        slot = runs[run, layout.RUN_MODEL]
        entry = runs[run, layout.RUN_ERROR] >> COUNT_BITS
        position = runs[run, layout.RUN_ERROR] & COUNT_MASK
        row = runs[run, layout.RUN_START]
        stop = runs[run, layout.RUN_STOP]
        # Where there is a directory, its blocks and the tail have one capacity.
        block_rows = slots[slot, SLOT_CAPACITY]
        while row < stop:
            reference = block_reference(slots, arena, slot, entry)
            at = (reference >> COUNT_BITS) + position
            part = min((reference & COUNT_MASK) - position, stop - row)
            for offset in range(part):
                timestamp[row + offset] = arena[at + offset]
            at += block_rows
            for offset in range(part):
                value[row + offset] = values[at + offset]
            row += part
            position = 0
            entry += 1
        first = timestamp[runs[run, layout.RUN_START]]
        last = timestamp[stop - 1]
        runs[run, layout.RUN_FIRST] = first
        runs[run, layout.RUN_LAST] = last
        runs[run, layout.RUN_MODEL] = 0
        runs[run, layout.RUN_SHAPE] = layout.KIND_NONE
        runs[run, layout.RUN_ERROR] = 0
        lowest = first if run == 0 else min(lowest, first)
        highest = last if run == 0 else max(highest, last)
    source[layout.TIMESTAMPS] = timestamp.ctypes.data
    source[layout.VALUES] = value.ctypes.data
    source[layout.RUNS] = runs.ctypes.data
    source[layout.FIRST_SERIES] = runs[0, layout.RUN_SERIES]
    source[layout.LAST_SERIES] = runs[run_count - 1, layout.RUN_SERIES]
    source[layout.FIRST_TIMESTAMP] = lowest
    source[layout.LAST_TIMESTAMP] = highest


def warmup() -> None:
    """Call every kernel once with the argument types of production, so that it is compiled and cached.

    Input columns and lists of series are read-only there (as the memtable passes them), its own state and
    its output are not.
    """
    slots_count = 4
    table = np.zeros(2 * slots_count, np.int64)
    slots = np.zeros((slots_count, SLOT_WIDTH), np.int64)
    arena = np.zeros(1 << 10, np.int64)
    counters = np.zeros(COUNTER_WIDTH, np.int64)
    counters[COUNTER_ARENA] = ARENA_FIRST
    counters[COUNTER_FIRST] = INT64_MAX
    counters[COUNTER_LAST] = INT64_MIN
    counters[COUNTER_BLOCK_ROWS] = BLOCK_ROWS_MIN
    series_id = np.array([1, 2, 1, 2], np.int64)
    timestamp = np.array([3, 4, 5, 2], np.int64)
    value = np.zeros(len(series_id), np.float64)
    for array in (series_id, timestamp, value):
        array.flags.writeable = False
    insert_points(table, slots, arena, counters, series_id, timestamp, value, 0)
    insert_slowly(slots, arena, counters, 0, 1, 0.0)
    add_series(table, slots, arena, counters, 3, 1, 0.0)
    rehash(table, np.zeros(4 * slots_count, np.int64))
    runs = np.zeros((2, layout.RUN_WIDTH), np.int64)
    source = np.zeros(layout.SOURCE_WIDTH, np.int64)
    unbounded = (INT64_MIN, INT64_MAX, INT64_MIN, INT64_MIN)
    select_rows(table, slots, arena, series_id[:2], False, *unbounded, 4, runs, source)
    rows = int(source[layout.ROWS])
    copy_rows(slots, arena, runs, np.zeros(rows, np.int64), np.zeros(rows, np.float64), source)
