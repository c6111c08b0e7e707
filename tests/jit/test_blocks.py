"""The memtable's kernels against a dict, and the invariants of their state after every kind of insert."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from omendb.jit import blocks, layout
from omendb.jit._compile import JIT_DISABLED
from omendb.model import INT64_MAX, INT64_MIN, make_batch
from omendb.storage.memtable import Memtable

FROM_BEGINNING = (INT64_MIN, INT64_MIN)
HIGH_SERIES = [0, 1, 2**31, 2**32, 2**32 + 1, 2**62, INT64_MAX]

series_ids = st.one_of(st.integers(0, 4), st.sampled_from(HIGH_SERIES))
timestamps = st.one_of(
    st.integers(-20, 20), st.sampled_from([INT64_MIN, INT64_MIN + 1, INT64_MAX - 1, INT64_MAX])
)
points = st.lists(st.tuples(series_ids, timestamps, st.floats(-1e9, 1e9)), max_size=60)

Point = tuple[int, int, float]
Key = tuple[int, int]


def read_only(values: object, dtype: type) -> NDArray[np.generic]:
    array = np.array(values, dtype=dtype).reshape(-1)
    array.flags.writeable = False
    return array


@dataclass
class State:
    """A memtable's arrays, and the growth that its class does."""

    block_rows: int = blocks.BLOCK_ROWS_MIN
    slots_count: int = 1
    arena_words: int = 16
    table: NDArray[np.int64] = field(init=False)
    slots: NDArray[np.int64] = field(init=False)
    arena: NDArray[np.int64] = field(init=False)
    counters: NDArray[np.int64] = field(init=False)
    needs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = np.zeros(2 * self.slots_count, np.int64)
        self.slots = np.full((self.slots_count, blocks.SLOT_WIDTH), -7, np.int64)
        self.arena = np.full(self.arena_words, -7, np.int64)
        self.counters = np.zeros(blocks.COUNTER_WIDTH, np.int64)
        self.counters[blocks.COUNTER_ARENA] = blocks.ARENA_FIRST
        self.counters[blocks.COUNTER_FIRST] = INT64_MAX
        self.counters[blocks.COUNTER_LAST] = INT64_MIN
        self.counters[blocks.COUNTER_BLOCK_ROWS] = self.block_rows

    def insert(self, given_points: list[Point]) -> None:
        series_id = read_only([p[0] for p in given_points], np.int64)
        timestamp = read_only([p[1] for p in given_points], np.int64)
        value = read_only([p[2] for p in given_points], np.float64)
        done = 0
        while True:
            state = (self.table, self.slots, self.arena, self.counters)
            done = blocks.insert_points(*state, series_id, timestamp, value, done)
            need = int(self.counters[blocks.COUNTER_NEED])
            if done == len(series_id):
                assert need == blocks.NEED_NOTHING
                return
            self.needs.append(need)
            if need == blocks.NEED_SLOTS:
                self.slots = np.concatenate((self.slots, np.full_like(self.slots, -7)))
                table = np.zeros(2 * len(self.table), np.int64)
                blocks.rehash(self.table, table)
                self.table = table
            else:
                assert need == blocks.NEED_ARENA
                self.arena = np.concatenate((self.arena, np.full_like(self.arena, -7)))

    def select(
        self,
        wanted: list[int],
        *,
        are_slots: bool = False,
        start: int = INT64_MIN,
        end: int = INT64_MAX,
        after: Key = FROM_BEGINNING,
        rows_max: int = 10**9,
    ) -> tuple[list[Point], bool]:
        """Select and copy, check the source that comes out, and return its rows."""
        runs = np.full((min(len(wanted), rows_max), layout.RUN_WIDTH), -7, np.int64)
        source = np.zeros(layout.SOURCE_WIDTH, np.int64)
        ids = read_only(wanted, np.int64)
        arrays = (self.table, self.slots, self.arena, ids)
        cut = blocks.select_rows(*arrays, are_slots, start, end, *after, rows_max, runs, source)
        rows = int(source[layout.ROWS])
        if rows == 0:
            assert source[layout.RUN_COUNT] == 0
            assert not cut
            return [], False
        timestamp = np.full(rows, -7, np.int64)
        value = np.full(rows, -7.0)
        blocks.copy_rows(self.slots, self.arena, runs, timestamp, value, source)
        runs = runs[: source[layout.RUN_COUNT]]
        check_source(runs, timestamp, value, source)
        lengths = runs[:, layout.RUN_STOP] - runs[:, layout.RUN_START]
        series = np.repeat(runs[:, layout.RUN_SERIES], lengths)
        found = list(zip(series.tolist(), timestamp.tolist(), value.tolist(), strict=True))
        return found, bool(cut)


def check_source(
    runs: NDArray[np.int64],
    timestamp: NDArray[np.int64],
    value: NDArray[np.float64],
    source: NDArray[np.int64],
) -> None:
    """Check that run records and source row describe the rows."""
    stops = runs[:, layout.RUN_STOP]
    assert runs[0, layout.RUN_START] == 0
    assert (runs[1:, layout.RUN_START] == stops[:-1]).all()
    assert stops[-1] == source[layout.ROWS] == len(timestamp)
    assert (stops > runs[:, layout.RUN_START]).all()
    assert (np.diff(runs[:, layout.RUN_SERIES].astype(object)) > 0).all()
    assert (runs[:, layout.RUN_FIRST] == timestamp[runs[:, layout.RUN_START]]).all()
    assert (runs[:, layout.RUN_LAST] == timestamp[stops - 1]).all()
    for word in (layout.RUN_MODEL, layout.RUN_SHAPE, layout.RUN_ERROR):
        assert (runs[:, word] == 0).all()
    assert layout.KIND_NONE == 0
    last = len(timestamp) - 1
    assert ctypes.c_int64.from_address(int(source[layout.TIMESTAMPS]) + 8 * last).value == timestamp[last]
    assert ctypes.c_double.from_address(int(source[layout.VALUES]) + 8 * last).value == value[last]
    assert source[layout.RUNS] == runs.ctypes.data
    assert source[layout.RUN_COUNT] == len(runs)
    assert source[layout.FIRST_SERIES] == runs[0, layout.RUN_SERIES]
    assert source[layout.LAST_SERIES] == runs[-1, layout.RUN_SERIES]
    assert source[layout.FIRST_TIMESTAMP] == timestamp.min()
    assert source[layout.LAST_TIMESTAMP] == timestamp.max()
    for word in (layout.SERIES_KNOTS, layout.VERIFIED):
        assert source[word] == 0


def check_state(state: State, model: dict[Key, float]) -> None:
    """Check every invariant of the module's docstring, and that no word of the arena is lost."""
    counters = state.counters
    used = []  # (offset, words) of everything that is handed out or free
    by_series: dict[int, dict[int, float]] = {}
    for (series, timestamp), value in model.items():
        by_series.setdefault(series, {})[timestamp] = value
    values = state.arena.view(np.float64)
    slots = state.slots[: counters[blocks.COUNTER_SLOTS]]
    assert sorted(slots[:, blocks.SLOT_SERIES].tolist()) == sorted(by_series)
    for slot in slots:
        entries = int(slot[blocks.SLOT_ENTRIES])
        directory = int(slot[blocks.SLOT_DIRECTORY])
        capacity = int(slot[blocks.SLOT_CAPACITY])
        references = [(None, int(slot[blocks.SLOT_TAIL]), capacity)]
        if entries:
            assert capacity == state.block_rows
            words = state.arena[directory : directory + 2 * entries].tolist()
            full = state.block_rows
            references[:0] = [(words[i], words[i + 1], full) for i in range(0, 2 * entries, 2)]
            room = blocks.DIRECTORY_ENTRIES_MIN
            while room < entries:
                room *= 2
            used.append((directory, 2 * room))
        else:
            assert directory == 0
        rows: list[tuple[int, float]] = []
        for first, reference, capacity in references:
            offset, count = reference >> blocks.COUNT_BITS, reference & blocks.COUNT_MASK
            assert 0 < count <= capacity <= state.block_rows
            assert offset % 8 == 0
            assert first is None or first == state.arena[offset]
            used.append((offset, 2 * capacity))
            times = state.arena[offset : offset + count].tolist()
            rows += zip(times, values[offset + capacity :][:count].tolist(), strict=True)
        assert rows == sorted(by_series[int(slot[blocks.SLOT_SERIES])].items())
        assert slot[blocks.SLOT_ROWS] == len(rows)
        assert slot[blocks.SLOT_FIRST] == rows[0][0]
        assert slot[blocks.SLOT_LAST] == rows[-1][0]
    for size_class in range(blocks.SIZE_CLASSES):
        offset = int(counters[blocks.COUNTER_FREE + size_class])
        while offset:
            used.append((offset, 8 << size_class))
            offset = int(state.arena[offset])
    end = blocks.ARENA_FIRST
    for offset, words in sorted(used):
        assert offset == end
        end += words
    assert end == counters[blocks.COUNTER_ARENA] <= len(state.arena)
    assert counters[blocks.COUNTER_ROWS] == len(model)
    times = [key[1] for key in model]
    assert counters[blocks.COUNTER_FIRST] == min(times, default=INT64_MAX)
    assert counters[blocks.COUNTER_LAST] == max(times, default=INT64_MIN)
    entries_used = state.table[state.table != 0] & blocks.SLOT_MASK
    assert sorted(entries_used.tolist()) == list(range(1, len(slots) + 1))


def model_of(given_points: list[Point]) -> dict[Key, float]:
    return {(series, timestamp): value for series, timestamp, value in given_points}


def rows_of(model: dict[Key, float]) -> list[Point]:
    return [(*key, value) for key, value in sorted(model.items())]


@given(points, points, st.sampled_from([4, 8]))
def test_inserted_points_are_found_sorted_and_the_later_write_wins(
    first: list[Point], second: list[Point], block_rows: int
) -> None:
    state = State(block_rows)

    state.insert(first)
    check_state(state, model_of(first))
    state.insert(second)

    model = model_of(first + second)
    check_state(state, model)
    ids = sorted({key[0] for key in model})
    assert state.select(ids) == (rows_of(model), False)


@pytest.mark.parametrize("block_rows", [4, 32])
@pytest.mark.parametrize("order", ["ascending", "descending", "random", "backfill", "interleaved", "late"])
def test_long_series_split_into_blocks_in_every_order(order: str, block_rows: int) -> None:
    count = 60 * block_rows // 4
    random = np.random.default_rng(7)
    times = np.arange(count)
    if order == "descending":
        times = times[::-1]
    elif order == "random":
        times = random.permutation(count)
    elif order == "backfill":
        times = np.concatenate((times[count // 2 :], times[: count // 2]))
    elif order == "interleaved":
        times = np.concatenate((times[::2], times[1::2]))
    elif order == "late":
        times = np.where(random.random(count) < 0.2, times - random.integers(0, 40, count), times)
    given_points = [(s, int(t), float(i)) for i, t in enumerate(times) for s in (3, 9)]
    state = State(block_rows)

    state.insert(given_points)

    check_state(state, model_of(given_points))
    assert state.slots[0, blocks.SLOT_ENTRIES] > 4  # the directory has grown
    if order in ("ascending", "backfill"):
        # Blocks are filled, not left half empty by splits.
        assert state.slots[0, blocks.SLOT_ENTRIES] <= count // block_rows + 1
    assert state.select([3, 9]) == (rows_of(model_of(given_points)), False)


def test_every_array_grows_from_the_smallest_size() -> None:
    given_points = [(s, t, float(s * t)) for t in (5, 1, 3, 2, 4) for s in range(70)]
    state = State()

    state.insert(given_points)

    check_state(state, model_of(given_points))
    assert {blocks.NEED_SLOTS, blocks.NEED_ARENA} == set(state.needs)


def test_nothing_has_changed_where_the_arena_has_no_room() -> None:
    state = State(block_rows=4, slots_count=4, arena_words=24)
    full = [(1, t, float(t)) for t in (10, 20, 30, 40)]
    state.insert(full)
    one = (read_only([1], np.int64), read_only([15], np.int64), read_only([0.0], np.float64))
    before = (state.slots.copy(), state.counters.copy())

    done = blocks.insert_points(state.table, state.slots, state.arena, state.counters, *one, 0)

    assert done == 0
    assert state.counters[blocks.COUNTER_NEED] == blocks.NEED_ARENA
    state.counters[blocks.COUNTER_NEED] = blocks.NEED_NOTHING
    assert (state.slots == before[0]).all()
    assert (state.counters == before[1]).all()
    check_state(state, model_of(full))


def test_blocks_that_are_given_back_serve_again() -> None:
    # All series grow in turn, tick after tick: neighbours that are given back are joined.
    state = State(block_rows=32)
    given_points = [(s, t, 0.0) for t in range(32) for s in range(64)]

    state.insert(given_points)

    check_state(state, model_of(given_points))
    words = int(state.counters[blocks.COUNTER_ARENA])
    assert words < 1.3 * 2 * len(given_points)


range_queries = st.fixed_dictionaries(
    {
        "start": timestamps,
        "end": timestamps,
        "after": st.one_of(st.just(FROM_BEGINNING), st.tuples(series_ids, timestamps)),
        "rows_max": st.one_of(st.integers(1, 30), st.just(INT64_MAX)),
    }
)


def expected(model: dict[Key, float], wanted: list[int], query: dict) -> tuple[list[Point], bool]:
    rows = [
        row
        for row in rows_of(model)
        if row[0] in wanted and query["start"] <= row[1] <= query["end"] and row[:2] > query["after"]
    ]
    return rows[: query["rows_max"]], len(rows) > query["rows_max"]


@given(points, st.lists(series_ids, unique=True).map(sorted), range_queries)
def test_select_by_series_agrees_with_a_dict(
    given_points: list[Point], wanted: list[int], query: dict
) -> None:
    state = State()
    state.insert(given_points)

    found = state.select(wanted, **query)

    assert found == expected(model_of(given_points), wanted, query)


@given(points, range_queries)
def test_select_by_slots_agrees_with_a_dict(given_points: list[Point], query: dict) -> None:
    state = State()
    state.insert(given_points)
    ids = state.slots[: state.counters[blocks.COUNTER_SLOTS], blocks.SLOT_SERIES]

    found = state.select(np.argsort(ids).tolist(), are_slots=True, **query)

    assert found == expected(model_of(given_points), ids.tolist(), query)


@pytest.mark.parametrize("rows_max", [1, 3, 4, 5, 64, 1000])
def test_pages_of_a_long_series_join_up(rows_max: int) -> None:
    random = np.random.default_rng(11)
    given_points = [(s, int(t), float(t)) for t in random.permutation(90) for s in (5, 6)]
    state = State()
    state.insert(given_points)
    rows: list[Point] = []
    after = FROM_BEGINNING
    more = True

    while more:
        page, more = state.select([5, 6], start=3, end=80, rows_max=rows_max, after=after)
        rows += page
        after = page[-1][:2]

    assert rows == [row for row in rows_of(model_of(given_points)) if 3 <= row[1] <= 80]


def test_select_over_many_series_finds_each() -> None:
    # More series than any look-ahead, present and absent ones mixed.
    given_points = [(s * 3, t, float(s + t)) for t in (2, 1) for s in range(150)]
    state = State()
    state.insert(given_points)
    model = model_of(given_points)
    wanted = list(range(300))
    query = {"start": 2, "end": 2, "after": (30, 5), "rows_max": INT64_MAX}

    found = state.select(wanted, **query)

    assert found == expected(model, wanted, query)


def tag_in_plain_integers(series_id: int) -> int:
    low = series_id % 2**32 * blocks.HASH_FACTOR_FIRST
    mixed = (low // 2**32) ^ (low % 2**32) ^ (series_id // 2**32)
    mixed *= blocks.HASH_FACTOR_SECOND
    assert 0 <= mixed < 2**63
    return ((mixed // 2**31) ^ mixed) % 2**31


@given(st.integers(0, INT64_MAX))
def test_tag_agrees_with_plain_integers(series_id: int) -> None:
    assert blocks.series_tag(series_id) == tag_in_plain_integers(series_id)


@pytest.mark.parametrize("step", [1, 1000, 2**20, 2**32, 2**43, 0x5851F42D, 102_334_155])
def test_tags_of_regular_ids_spread(step: int) -> None:
    state = State(slots_count=1024, arena_words=1 << 14)
    count = 1000

    state.insert([(index * step, 0, 0.0) for index in range(count)])

    shift = blocks.tag_shift(state.table)
    at = np.flatnonzero(state.table)
    home = (state.table[at] >> blocks.SLOT_BITS) >> shift
    distance = (at - home) % len(state.table)
    assert distance.mean() < 1.0  # 0.5 is expected of random homes at this load


@given(st.lists(st.integers(0, INT64_MAX), unique=True, max_size=32), st.integers(6, 9))
def test_rehash_keeps_every_entry_reachable(ids: list[int], size_bits: int) -> None:
    state = State(slots_count=32, arena_words=1 << 10)
    state.insert([(series, 0, 0.0) for series in ids])
    larger = np.zeros(1 << size_bits, np.int64)

    blocks.rehash(state.table, larger)

    state.table = larger
    assert [row[0] for row in state.select(sorted(ids))[0]] == sorted(ids)


def test_an_absent_series_is_not_found_in_a_cluster() -> None:
    state = State(slots_count=64, arena_words=1 << 10)
    state.insert([(series, 0, 0.0) for series in range(64)])

    assert state.select([64, 65, 66, 2**40, INT64_MAX]) == ([], False)


@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
def test_warmup_compiles_what_production_calls() -> None:
    blocks.warmup()
    kernels = ("insert_points", "insert_slowly", "add_series", "rehash", "select_rows", "copy_rows")
    compiled = {name: list(getattr(blocks, name).signatures) for name in kernels}
    memtable = Memtable(series_capacity=1, arena_words=16, block_rows=4)

    for sequence in range(1, 4):
        memtable.insert(make_batch([2, 1, 2] * 9, range(27, 0, -1), np.ones(27)), sequence)
    memtable.read(np.array([1, 2]), 3, 4, 5, (1, 3))
    memtable.export()

    assert {name: list(getattr(blocks, name).signatures) for name in kernels} == compiled
