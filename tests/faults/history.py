"""Many writers and readers at once, and a checker of what they saw.

Every operation is recorded with the times at which it began and ended (one monotonic clock). Each writer owns
a *group* of keys and writes all of them in one request, with a version that goes up by one: so the right
order of versions is known, and a reader of a group must see one version in all of its keys. Each writer also
adds *rows* that are never changed, which scans with cursors must find exactly once. `check` holds a history
against these rules:

- fresh: a read that began after a write was acknowledged sees that version or a later one;
- real: a read sees no version whose write began after the read had ended;
- forward: a read that began after another had ended sees no older version;
- whole: a request of several points is seen whole or not at all;
- complete: a scan finds each row that was acknowledged before it began exactly once, in order, with its
  value, and nothing that nobody wrote.

Runs against an engine in this process or a server; ``soak(seed, seconds)`` does both in turn. The seed fixes
what each thread does, not how the threads interleave.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson
import urllib3

import omendb
from omendb.query import make_range_query
from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from omendb.engine import Engine

GROUP_SERIES = 3
GROUP_TIMESTAMPS = 4
ROWS_SERIES = 1_000
"""The series to which writer ``g`` adds rows is ``ROWS_SERIES + g``."""

INFINITY = float("inf")


class ViolationError(AssertionError):
    """The history breaks a rule."""


@dataclass(frozen=True)
class Write:
    """A version of a group was written; `end` is infinite when it was not acknowledged."""

    group: int
    version: int
    start: float
    end: float


@dataclass(frozen=True)
class Read:
    """Versions that a read saw in the keys of a group; none when it saw no row."""

    group: int
    versions: tuple[float, ...]
    start: float
    end: float


@dataclass(frozen=True)
class Scan:
    """Rows of all of `ROWS_SERIES` on that a scan in pages returned, in the order of its answers."""

    rows: tuple[tuple[int, int, float], ...]
    start: float
    end: float


@dataclass
class History:
    """What happened; each thread appends to lists of its own, `merge` joins them."""

    writes: list[Write] = field(default_factory=list)
    added: list[tuple[int, int, float, float]] = field(default_factory=list)  # series, timestamp, start, end
    reads: list[Read] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    maintenance: int = 0

    def merge(self, other: History) -> None:
        self.writes += other.writes
        self.added += other.added
        self.reads += other.reads
        self.scans += other.scans
        self.maintenance += other.maintenance

    def counts(self) -> dict[str, int]:
        return {
            "writes": len(self.writes) + len(self.added),
            "reads": len(self.reads),
            "scans": len(self.scans),
            "scanned_rows": sum(len(scan.rows) for scan in self.scans),
            "maintenance": self.maintenance,
        }


def row_value(series: int, timestamp: int) -> float:
    """Return the value of a row that is added once."""
    return series + timestamp / 1_024


def check(history: History) -> None:
    """Hold a history against the rules.

    Raises
    ------
    ViolationError
    """
    groups = {write.group for write in history.writes} | {read.group for read in history.reads}
    for group in groups:
        _check_group(
            sorted((w for w in history.writes if w.group == group), key=lambda w: w.version),
            sorted((r for r in history.reads if r.group == group), key=lambda r: r.start),
        )
    added = {(series, timestamp): (start, end) for series, timestamp, start, end in history.added}
    for scan in history.scans:
        _check_scan(scan, added)


def _check_group(writes: list[Write], reads: list[Read]) -> None:
    # One writer, one write at a time: starts and ends ascend with the version.
    starts = [write.start for write in writes]
    acknowledged = [write for write in writes if write.end != INFINITY]
    ends = [write.end for write in acknowledged]
    by_end = sorted(reads, key=lambda read: read.end)
    seen_before = 0.0
    position = 0
    for read in reads:
        if len(set(read.versions)) > 1 or len(read.versions) not in (0, GROUP_SERIES * GROUP_TIMESTAMPS):
            raise ViolationError(f"not whole: {read}")
        version = read.versions[0] if read.versions else 0.0
        done = bisect_left(ends, read.start)
        if done and version < acknowledged[done - 1].version:
            raise ViolationError(f"not fresh: {read} began after {acknowledged[done - 1]} was acknowledged")
        begun = bisect_left(starts, read.end)
        if version > (writes[begun - 1].version if begun else 0):
            raise ViolationError(f"not real: {read} ended before that was written")
        while position < len(by_end) and by_end[position].end < read.start:
            seen_before = max(seen_before, *by_end[position].versions, 0.0)
            position += 1
        if version < seen_before:
            raise ViolationError(f"not forward: {read} began after version {seen_before} had been seen")


def _check_scan(scan: Scan, added: dict[tuple[int, int], tuple[float, float]]) -> None:
    keys = [(series, timestamp) for series, timestamp, _ in scan.rows]
    found = set(keys)
    if len(found) != len(keys):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        raise ViolationError(f"not complete: rows {twice[:3]} came more than once")
    if keys != sorted(keys):
        raise ViolationError("not complete: rows out of order")
    for series, timestamp, value in scan.rows:
        times = added.get((series, timestamp))
        if times is None or times[0] > scan.end or value != row_value(series, timestamp):
            raise ViolationError(f"not real: nobody wrote {(series, timestamp, value)}")
    for key, (_, end) in added.items():
        if end < scan.start and key not in found:
            raise ViolationError(f"not complete: {key} was acknowledged before the scan began")


class Client(Protocol):
    """A store, as the threads use it."""

    def insert(self, series: Any, timestamp: Any, value: Any) -> None: ...

    def values(self, series: list[int]) -> list[float]: ...

    def extremes(self, series: list[int]) -> list[float]: ...

    def page(self, limit: int, cursor: str | None) -> tuple[list[tuple[int, int, float]], str | None]: ...

    def maintain(self, kind: str) -> None: ...


class EngineClient:
    """Calls an engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def insert(self, series: Any, timestamp: Any, value: Any) -> None:
        self.engine.insert(series, timestamp, value)

    def values(self, series: list[int]) -> list[float]:
        return self.engine.query(series_id=series).value.tolist()

    def extremes(self, series: list[int]) -> list[float]:
        columns = self.engine.aggregate(10**9, "min,max", series_id=series).columns
        return [*columns["min"].tolist(), *columns["max"].tolist()]

    def page(self, limit: int, cursor: str | None) -> tuple[list[tuple[int, int, float]], str | None]:
        query = make_range_query(series_id=_row_series(), limit=limit, cursor=cursor)
        scan = self.engine.scan(query)
        rows: list[tuple[int, int, float]] = []
        for part in scan.chunks():
            columns = (part.series_id.tolist(), part.timestamp.tolist(), part.value.tolist())
            rows += zip(*columns, strict=True)
        return rows, scan.cursor

    def maintain(self, kind: str) -> None:
        {"gc": self.engine.gc, "retrain": self.engine.retrain, "flush": self.engine.flush}[kind]()


class HttpClient:
    """Calls a server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pool = urllib3.PoolManager(maxsize=32, retries=False, timeout=60)

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        response = self.pool.request(method, self.url + path, body=data)
        if response.status != 200:
            raise OSError(f"{response.status} {response.data[:200]!r}")
        return orjson.loads(response.data)

    def insert(self, series: Any, timestamp: Any, value: Any) -> None:
        self._call("POST", "/insert", {"series_id": series, "timestamp": timestamp, "value": value})

    def values(self, series: list[int]) -> list[float]:
        found = self._call("GET", f"/query?format=columns&series_id={','.join(map(str, series))}")
        return list(found["value"])

    def extremes(self, series: list[int]) -> list[float]:
        ids = ",".join(map(str, series))
        found = self._call("GET", f"/query?format=columns&step=1000000000&agg=min,max&series_id={ids}")
        return [*found["columns"]["min"], *found["columns"]["max"]]

    def page(self, limit: int, cursor: str | None) -> tuple[list[tuple[int, int, float]], str | None]:
        more = "" if cursor is None else f"&cursor={cursor}"
        ids = ",".join(map(str, _row_series()))
        found = self._call("GET", f"/query?format=columns&series_id={ids}&limit={limit}{more}")
        rows = zip(found["series_id"], found["timestamp"], found["value"], strict=True)
        return list(rows), found["cursor"]

    def maintain(self, kind: str) -> None:
        self._call("POST", "/admin/retrain-index" if kind == "retrain" else "/admin/gc")


GROUPS_MAX = 8


def _row_series() -> list[int]:
    return [ROWS_SERIES + group for group in range(GROUPS_MAX)]


def _group_series(group: int) -> list[int]:
    return [10 * group + n for n in range(GROUP_SERIES)]


def run(client: Client, seed: int, seconds: float, *, writers: int = 4, readers: int = 4) -> History:
    """Let threads loose on a store, and return what they saw.

    Raises
    ------
    Exception
        What a thread raised, after all have ended.
    """
    assert writers <= GROUPS_MAX
    stop = threading.Event()
    errors: list[BaseException] = []
    parts: list[History] = []

    def start(work: Callable[[History, np.random.Generator], None], number: int) -> threading.Thread:
        mine = History()
        parts.append(mine)
        rng = np.random.default_rng([seed, len(parts)])

        def loop() -> None:
            try:
                while not stop.is_set():
                    work(mine, rng)
            except BaseException as error:
                errors.append(error)
                stop.set()

        thread = threading.Thread(target=loop, name=f"history-{number}", daemon=True)
        thread.start()
        return thread

    def write(group: int) -> Callable[[History, np.random.Generator], None]:
        series = np.repeat(_group_series(group), GROUP_TIMESTAMPS)
        timestamp = np.tile(np.arange(GROUP_TIMESTAMPS) * 1_000, GROUP_SERIES)

        def work(mine: History, rng: np.random.Generator) -> None:
            version = len(mine.writes) + 1
            order = rng.permutation(len(series))
            begun = time.monotonic()
            client.insert(series[order], timestamp[order], np.full(len(series), float(version)))
            mine.writes.append(Write(group, version, begun, time.monotonic()))
            for _ in range(int(rng.integers(4))):
                # Some in order of time, some before what is there.
                place = len(mine.added) * (1 if rng.integers(2) else -1)
                begun = time.monotonic()
                client.insert(ROWS_SERIES + group, [place], [row_value(ROWS_SERIES + group, place)])
                mine.added.append((ROWS_SERIES + group, place, begun, time.monotonic()))

        return work

    def read(mine: History, rng: np.random.Generator) -> None:
        group = int(rng.integers(writers))
        begun = time.monotonic()
        if rng.integers(3):
            versions = client.values(_group_series(group))
        else:
            # The lowest and the highest of each series: as whole as the rows themselves.
            extremes = client.extremes(_group_series(group))
            versions = extremes[:1] * (GROUP_SERIES * GROUP_TIMESTAMPS)
            if len(set(extremes)) > 1 or len(extremes) not in (0, 2 * GROUP_SERIES):
                versions = extremes
        mine.reads.append(Read(group, tuple(versions), begun, time.monotonic()))

    def scan(mine: History, rng: np.random.Generator) -> None:
        begun = time.monotonic()
        rows: list[tuple[int, int, float]] = []
        cursor = None
        while True:
            page, cursor = client.page(int(rng.integers(1, 400)), cursor)
            rows += page
            if cursor is None:
                break
        mine.scans.append(Scan(tuple(rows), begun, time.monotonic()))

    def maintain(mine: History, rng: np.random.Generator) -> None:
        client.maintain(("gc", "retrain", "flush")[int(rng.integers(3))])
        mine.maintenance += 1
        stop.wait(float(rng.uniform(0, 0.2)))

    works = [write(group) for group in range(writers)] + [read] * readers + [scan, maintain]
    threads = [start(work, number) for number, work in enumerate(works)]
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a call does not come back"
    if errors:
        raise errors[0]
    history = History()
    for part in parts:
        history.merge(part)
    return history


@contextlib.contextmanager
def engine_client(directory: Path) -> Iterator[EngineClient]:
    """Open a store whose memtables are so small that flushes and merges never end."""
    with omendb.open(directory, retrain_threshold=1_000, batch_size=50) as engine:
        yield EngineClient(engine)


@contextlib.contextmanager
def http_client(directory: Path) -> Iterator[HttpClient]:
    """Start a server with small memtables."""
    with start_server(directory, "--retrain-threshold=1000") as running:
        client = HttpClient(running.url)
        try:
            yield client
        finally:
            client.pool.clear()


def soak(seed: int, seconds: float) -> dict[str, int]:
    """Make histories and check them, in process and over HTTP in turn, until the time is over.

    Returns
    -------
    dict
        Numbers of histories, and of the operations in them.

    Raises
    ------
    ViolationError
    """
    print(f"history: seed {seed}", flush=True)
    stop = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    while time.monotonic() < stop:
        number = counts["histories"]
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory) / "db"
            with engine_client(place) if number % 2 == 0 else http_client(place) as client:
                history = run(client, seed + number, min(15.0, max(stop - time.monotonic(), 1.0)))
        check(history)
        counts.update(history.counts())
        counts["histories"] += 1
    return dict(counts)


if __name__ == "__main__":
    chosen = int(sys.argv[1]) if len(sys.argv) > 1 else secrets.randbelow(2**31)
    print(soak(chosen, float(sys.argv[2]) if len(sys.argv) > 2 else 60.0))
