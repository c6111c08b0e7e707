"""Kills a real server under load, again and again, and compares what it comes back with.

The server is a process of its own; the clients are threads here, and so is the record of what was
acknowledged, which no kill of the server reaches. One seed decides what is written and how each round
ends; when exactly a kill strikes is up to the clock, so that a seed replays the schedule and not the
microsecond.

Every value names the write that it came from. Each writer owns its series and has one request under way,
so that there is one right answer for every key: the value last acknowledged, or, of the request that got no
answer, all rows or none.
"""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson
import urllib3

from tests.serving import PROGRAM, RunningServer, free_port, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

WRITERS = 3
SERIES = 4
"""Of each writer."""
TIMESTAMPS = 1_500
ROWS_MAX = 1_200
"""Rows of one request; the memtable freezes at a thousand rows and more."""

_CELLS = 4_096  # values of one write are told apart by less than this

CGROUPS = Path("/sys/fs/cgroup/memory")

KINDS = ("kill", "term", "stop", "file", "gc", "retrain", "manifest", "recovery")
"""How a round may end, beside ``oom``: see `Killing`."""


class LostDataError(AssertionError):
    """A restarted server shows something other than what was acknowledged."""


class Write(NamedTuple):
    """One insert request: distinct cells of the table of (series, timestamp), and their values."""

    writer: int
    series: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    value: NDArray[np.float64]


class Ledger:
    """What the store must hold.

    Thread safety: a writer's calls belong to one thread; `settle` to a moment when no writer runs.

    Attributes
    ----------
    rows_acknowledged, rows_compared : int
    writes_acknowledged, writes_refused, writes_unanswered : int
    """

    def __init__(self, writers: int = WRITERS) -> None:
        self.values = np.zeros((writers * SERIES, TIMESTAMPS))
        self.rows_compared = 0
        self._pending: dict[int, Write] = {}
        self._numbers = [0] * writers
        self._writers = writers
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def compose(self, writer: int, chance: random.Random) -> Write:
        """Make the next write of one writer; its values have never been used before."""
        rows = chance.choice([1, 1, 1, 7, 60, 400, ROWS_MAX])
        rng = np.random.default_rng(chance.getrandbits(32))
        one_series = chance.random() < 0.4
        series = writer * SERIES + rng.integers(0, SERIES, 1 if one_series else rows)
        if one_series:
            series = np.repeat(series, rows)
        timestamp = rng.integers(0, TIMESTAMPS, rows)
        _, first = np.unique(series * TIMESTAMPS + timestamp, return_index=True)
        chosen = np.sort(first)
        self._numbers[writer] += 1
        number = self._numbers[writer] * self._writers + writer
        value = np.arange(len(chosen), dtype=np.float64) + number * _CELLS
        return Write(writer, series[chosen], timestamp[chosen], value)

    def begin(self, write: Write) -> None:
        """Its request is about to be sent."""
        assert write.writer not in self._pending
        self._pending[write.writer] = write

    def acknowledge(self, write: Write) -> None:
        """It was answered 200."""
        del self._pending[write.writer]
        self.values[write.series, write.timestamp] = write.value
        with self._lock:
            self.counts["writes_acknowledged"] += 1
            self.counts["rows_acknowledged"] += len(write.value)

    def refuse(self, write: Write) -> None:
        """It was answered that nothing of it is stored."""
        del self._pending[write.writer]
        with self._lock:
            self.counts["writes_refused"] += 1

    def settle(
        self, series: Sequence[int], timestamp: Sequence[int], value: Sequence[float], place: str
    ) -> None:
        """Compare all rows of the store with the record; what got no answer is there or not from now on.

        Raises
        ------
        LostDataError
        """
        keys = np.asarray(series, np.int64) * TIMESTAMPS + np.asarray(timestamp, np.int64)
        if len(keys) and not (np.diff(keys) > 0).all():
            raise LostDataError(f"{place}: rows are not in order, or a key is there twice")
        found = np.zeros(self.values.size)
        if len(keys) and not 0 <= keys.min() <= keys.max() < len(found):
            raise LostDataError(f"{place}: a row that nobody wrote: keys {keys.min()} to {keys.max()}")
        found[keys] = value
        found = found.reshape(self.values.shape)
        for write in self._pending.values():
            self.counts["writes_unanswered"] += 1
            there = found[write.series, write.timestamp] == write.value
            if there.all():
                self.values[write.series, write.timestamp] = write.value
                self.counts["unanswered_stored"] += 1
            elif there.any():
                raise LostDataError(
                    f"{place}: a request that got no answer is there in part: {there.sum()} of {len(there)}"
                )
        self._pending.clear()
        self.counts["rows_compared"] += found.size
        wrong = np.argwhere(found != self.values)
        if len(wrong):
            row, column = wrong[0]
            raise LostDataError(
                f"{place}: {len(wrong)} rows are wrong, the first at series {row}, timestamp {column}: "
                f"{found[row, column]} where {self.values[row, column]} was acknowledged (0: not there); "
                f"writes are value // {_CELLS}"
            )


def body_of(write: Write, chance: random.Random, *, spoiled: bool = False) -> bytes:
    """Return the request in one of the forms that the server takes; `spoiled`: with one row it must refuse."""
    series, timestamp, value = (column.tolist() for column in write[1:])
    if spoiled:
        value[-1] = None
    if len(value) == 1 and chance.random() < 0.7:
        point = {"series_id": series[0], "timestamp": timestamp[0], "value": value[0]}
        return orjson.dumps(point)
    if len(value) <= 60 and chance.random() < 0.5:
        points = zip(series, timestamp, value, strict=True)
        return orjson.dumps([{"series_id": s, "timestamp": t, "value": v} for s, t, v in points])
    one = len(set(series)) == 1
    return orjson.dumps({"series_id": series[0] if one else series, "timestamp": timestamp, "value": value})


class Load:
    """Writers, readers and maintenance calls against one running server, until `stop`.

    Parameters
    ----------
    server : RunningServer
    ledger : Ledger
    chance : random.Random
    maintain : bool
        Also ask for gc and retrain-index all the time.
    """

    def __init__(
        self, server: RunningServer, ledger: Ledger, chance: random.Random, *, maintain: bool = True
    ) -> None:
        self._url = server.url
        self._ledger = ledger
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        seeds = [random.Random(chance.getrandbits(32)) for _ in range(WRITERS + 1)]
        targets: list[Callable[[], None]] = [
            lambda writer=writer: self._write(writer, seeds[writer]) for writer in range(WRITERS)
        ]
        if maintain:
            targets.append(lambda: self._maintain(seeds[WRITERS]))
        self._threads = [threading.Thread(target=self._guard, args=(target,)) for target in targets]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until every client has its answer, or a broken connection.

        Raises
        ------
        LostDataError
            A read showed something wrong while the server ran.
        """
        self._over.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "a request was neither answered nor broken off"
        if self._errors:
            raise self._errors[0]

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except urllib3.exceptions.HTTPError:
            return  # the server was killed: what is under way stays unanswered
        except BaseException as error:
            self._errors.append(error)

    def _pool(self) -> urllib3.HTTPConnectionPool:
        return urllib3.connection_from_url(self._url, retries=False, timeout=60)

    def _write(self, writer: int, chance: random.Random) -> None:
        with contextlib.closing(self._pool()) as pool:
            while not self._over.is_set():
                write = self._ledger.compose(writer, chance)
                spoiled = chance.random() < 0.03
                body = body_of(write, chance, spoiled=spoiled)
                self._ledger.begin(write)
                response = pool.request("POST", "/insert", body=body)
                if response.status == 200 and not spoiled:
                    self._ledger.acknowledge(write)
                    if chance.random() < 0.1:
                        self._read_back(pool, write)
                    continue
                code = orjson.loads(response.data)["error"]["code"]
                if code == "storage_failed":
                    return  # stored or not: as if there had been no answer
                expected = {400} if spoiled else {503}
                assert response.status in expected, (response.status, response.data)
                self._ledger.refuse(write)

    def _read_back(self, pool: urllib3.HTTPConnectionPool, write: Write) -> None:
        series, timestamp, value = write.series[0], write.timestamp[0], write.value[0]
        path = f"/query?series_id={series}&start={timestamp}&end={timestamp}&format=columns"
        response = pool.request("GET", path)
        if response.status == 200:
            found = orjson.loads(response.data)["value"]
            if found != [value]:
                raise LostDataError(f"read {found} where {value} had just been acknowledged")

    def _maintain(self, chance: random.Random) -> None:
        with contextlib.closing(self._pool()) as pool:
            while not self._over.wait(chance.random() * 0.05):
                if chance.random() < 0.5:
                    response = pool.request("POST", "/admin/gc")
                else:
                    body = orjson.dumps({"max_error": chance.choice([0, 4, 64])})
                    response = pool.request("POST", "/admin/retrain-index", body=body)
                assert response.status in {200, 503}, (response.status, response.data)


class Killing:
    """One data directory through many rounds of load and sudden death.

    Each round starts a server, compares every row, writes, and ends it:

    ========  ==========================================================================
    kill      SIGKILL at a random moment
    term      SIGTERM: exit status 0, and the next start finds a clean stop
    stop      SIGSTOP for a while; then SIGCONT and on, and SIGKILL, stopped or running
    file      SIGKILL when a segment or learned index is half written
    manifest  SIGKILL when a manifest is half written
    gc        SIGKILL just after a gc was asked for
    retrain   the same with retrain-index
    recovery  SIGKILL, and again up to three times while the next server starts
    oom       the kernel kills it for its memory (needs `memory_cgroup`)
    ========  ==========================================================================

    Attributes
    ----------
    counts : Counter
        Rounds by kind, kills, rows compared.
    """

    def __init__(self, directory: Path, seed: int, memory_cgroup: Path | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.ledger = Ledger()
        self._directory = directory
        self._seed = seed
        self._cgroup = memory_cgroup
        self._random = random.Random(seed)
        self._stopped_cleanly = True  # a new directory is clean, too
        self._start_seconds = 1.0

    def round(self, kind: str) -> None:
        """Start, compare, write, end in the way of `kind`.

        Raises
        ------
        LostDataError
        """
        place = f"seed {self._seed}, round {self.counts['rounds']} ({kind})"
        began = time.monotonic()
        with start_server(self._directory, *self._options(), prefix=self._prefix(kind)) as server:
            self._start_seconds = time.monotonic() - began
            self._compare(server, place)
            load = Load(server, self.ledger, self._random)
            try:
                self._wait(0.1, 0.9)
                self._strike(kind, server)
                self._stopped_cleanly = kind == "term"
            finally:
                if server.process.poll() is None:
                    server.process.kill()
                load.stop()
            if kind == "term":
                code = server.process.wait(60)
                assert code == 0, f"{place}: SIGTERM ended it with {code}:\n{server.log.read_text()}"
            server.log.unlink()
        self.counts["rounds"] += 1
        self.counts[f"rounds_{kind}"] += 1
        if kind == "recovery":
            for _ in range(self._random.randint(1, 3)):
                self._kill_while_starting()

    def finish(self) -> Counter[str]:
        """Compare a last time, stop cleanly, and return the counts."""
        with start_server(self._directory) as server:
            self._compare(server, f"seed {self._seed}, at the end")
            code = server.stop()
            assert code == 0, f"ended with {code}:\n{server.log.read_text()}"
        return self.counts + self.ledger.counts

    def _options(self) -> list[str]:
        chance = self._random
        return [
            f"--retrain-threshold={chance.choice([1_000, 1_000, 2_000, 5_000])}",
            f"--batch-size={chance.choice([1, 500, 65_536])}",
            f"--sync-interval-ms={chance.choice([0, 0, 0, 30])}",
            "--flush-interval-ms=1000",
        ]

    def _prefix(self, kind: str) -> list[str]:
        if kind != "oom":
            return []
        assert self._cgroup is not None
        enter = 'echo $$ > "$0" && exec "$@"'
        return ["/bin/sh", "-c", enter, str(self._cgroup / "cgroup.procs")]

    def _wait(self, low: float, high: float) -> None:
        time.sleep(self._random.uniform(low, high))

    def _compare(self, server: RunningServer, place: str) -> None:
        unclean = _gauge(server, "omendb_unclean_start")
        assert unclean == (not self._stopped_cleanly), f"{place}: unclean start {unclean}"
        rows = server.get("/query?format=columns")
        self.ledger.settle(rows["series_id"], rows["timestamp"], rows["value"], place)
        stored = server.get("/admin/stats")["record_count"]
        assert stored == rows["count"] == len(rows["value"]), (place, stored, rows["count"])

    def _strike(self, kind: str, server: RunningServer) -> None:
        process = server.process
        if kind == "term":
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            return
        if kind == "stop":
            for _ in range(self._random.randint(1, 2)):
                process.send_signal(signal.SIGSTOP)
                self._wait(0.02, 0.3)
                if self._random.random() < 0.6:
                    process.send_signal(signal.SIGCONT)
                    self._wait(0.02, 0.3)
        elif kind == "file":
            self._wait_for_half_written("data")
        elif kind == "manifest":
            self._wait_for_half_written(".")
        elif kind in ("gc", "retrain"):
            path = "/admin/gc" if kind == "gc" else "/admin/retrain-index"
            asking = threading.Thread(target=_ask_in_vain, args=(server.url + path,))
            asking.start()
            self._wait(0.0, 0.03)
            process.kill()
            asking.join(60)
        elif kind == "oom":
            self._exhaust_memory(server)
            self.counts["kills"] += 1
            return
        process.kill()
        process.wait(30)
        self.counts["kills"] += 1

    def _wait_for_half_written(self, directory: str) -> None:
        """Return at the moment at which a file that has its temporary name is seen."""
        give_up = time.monotonic() + 5
        while time.monotonic() < give_up:
            if any((self._directory / directory).glob("*.tmp")):
                self.counts["half_written_seen"] += 1
                return

    def _kill_while_starting(self) -> None:
        """Start a server and kill it before, in, or just after its recovery."""
        arguments = ["serve", f"--data-dir={self._directory}", "--host=127.0.0.1"]
        ports = [f"--port={free_port()}", f"--metrics-port={free_port()}"]
        wal = self._directory / "wal"
        before = set(wal.iterdir())
        process = subprocess.Popen(
            [PROGRAM, *arguments, *ports], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            if self._random.random() < 0.5:
                self._wait(0.4 * self._start_seconds, 1.1 * self._start_seconds)
            else:
                # A new log file is the end of the replay; the manifest comes after it.
                give_up = time.monotonic() + 120
                while process.poll() is None and time.monotonic() < give_up:
                    if set(wal.iterdir()) - before:
                        self.counts["kills_after_replay"] += 1
                        break
        finally:
            process.kill()
            assert process.wait(30) == -signal.SIGKILL
        self.counts["kills"] += 1
        self.counts["kills_while_starting"] += 1

    def _exhaust_memory(self, server: RunningServer) -> None:
        assert self._cgroup is not None
        used = int((self._cgroup / "memory.usage_in_bytes").read_text())
        (self._cgroup / "memory.limit_in_bytes").write_text(str(used + (8 << 20)))
        try:
            give_up = time.monotonic() + 60
            while server.process.poll() is None:
                assert time.monotonic() < give_up, "the kernel did not kill it"
                # A body that is nearly all white space, kept whole in memory until it is complete.
                with contextlib.suppress(urllib3.exceptions.HTTPError):
                    padded = b" " * (48 << 20) + b"[]"
                    urllib3.request("POST", server.url + "/insert", body=padded, retries=False, timeout=60)
        finally:
            (self._cgroup / "memory.limit_in_bytes").write_text("-1")
        assert server.process.wait(30) == -signal.SIGKILL


@contextlib.contextmanager
def memory_cgroup():
    """Make a memory cgroup (v1) for the time of a test; None where that is not possible."""
    path = CGROUPS / f"omendb-test-{time.monotonic_ns()}"
    try:
        path.mkdir()
        usable = (path / "memory.limit_in_bytes").exists()
    except OSError:
        yield None
        return
    try:
        yield path if usable else None
    finally:
        path.rmdir()


def _gauge(server: RunningServer, name: str) -> float:
    response = urllib3.request("GET", f"{server.metrics_url}/metrics", retries=False, timeout=60)
    for line in response.data.decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError(f"no metric {name}")


def _ask_in_vain(url: str) -> None:
    with contextlib.suppress(urllib3.exceptions.HTTPError):
        urllib3.request("POST", url, retries=False, timeout=60)


def soak(seed: int, seconds: float) -> dict[str, int]:
    """Kill servers for so long; several data directories, one after the other.

    Returns
    -------
    dict of str to int
        ``kills``, ``rounds_*``, ``rows_compared``, ``writes_acknowledged`` and more.
    """
    print(f"killing: seed {seed}", flush=True)
    logging.disable(logging.CRITICAL)
    total: Counter[str] = Counter()
    stop_at = time.monotonic() + seconds
    store = 0
    with memory_cgroup() as cgroup:
        kinds = KINDS if cgroup is None else (*KINDS, "oom")
        while time.monotonic() < stop_at:
            chance = random.Random(seed * 1_000_003 + store)
            directory = Path(tempfile.mkdtemp(prefix="omendb-killing-"))
            try:
                killing = Killing(directory / "data", seed * 1_000_003 + store, cgroup)
                for _ in range(40):
                    if time.monotonic() >= stop_at:
                        break
                    killing.round(chance.choice(kinds))
                total += killing.finish()
            finally:
                shutil.rmtree(directory)
            store += 1
    total["stores"] = store
    return dict(total)


if __name__ == "__main__":
    print(soak(int(sys.argv[1]), float(sys.argv[2])))
