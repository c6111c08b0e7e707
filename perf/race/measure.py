"""Running the race: rounds over contestants, answers checked before anything is timed."""

from __future__ import annotations

import functools
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perf.race import load
from perf.race.contestants import CONTESTANTS, Contestant, DuckDB, HttpContestant, NotOfferedError, OmenDB
from perf.race.data import BASE_MS, STEP_MS, Dataset, jittered, line_bodies, real, regular
from perf.race.process import ContestantError, cpu_seconds
from perf.race.queries import Answer, Query, WrongAnswerError, compare, right_answer
from perf.race.rows import WRITES, rows_of

BATCH_ROWS = 10_000
SINGLE_CONNECTIONS = 64
READ_CONNECTIONS = 32
MIXED_ROWS_PER_SECOND = 500_000
WINDOW_MS = 1_000_000
DAY_MS = 86_400_000
PROBED_POSTS = 20
SLOW_SECONDS = 8.0
"""A request that takes longer is measured in the first round only."""
MAIN_SHARE = 0.6
VISIBLE_SECONDS_MAX = 30.0
"""How long what was acknowledged may take to be seen."""
LOADS_MAX = 3
"""VictoriaMetrics 1.79.5 was seen once to have lost index entries of a load after a restart."""

Sample = dict[str, float | str]


@dataclass
class Plan:
    """How much is done.

    Attributes
    ----------
    rounds : int
        Times that every contestant takes its turn.
    seconds : float
        Of a workload of many requests, each round.
    shape : tuple of int
        Series and rows of each, of the main data set.
    many : tuple of int
        The same of the data set with many series.
    paths : int
        Different requests of a workload.
    checked : int
        How many of them have their answer checked, each round.
    """

    rounds: int = 3
    seconds: float = 4
    shape: tuple[int, int] = (1_000, 10_000)
    many: tuple[int, int] = (100_000, 100)
    datasets: tuple[str, ...] = ("main", "jitter", "many", "nab")
    paths: int = 5_000
    checked: int = 200
    heavy_seconds: float = 2.0
    minutes: float = 26.0


SHORT = Plan(rounds=1, seconds=1, shape=(50, 200), many=(500, 10), paths=100, checked=50, heavy_seconds=0.05)


@dataclass
class Results:
    """What was found, in the order of the race.

    Attributes
    ----------
    samples : dict
        By data set, row and contestant: one sample a round.
    failures : dict
        By data set, row and contestant: why there is no (further) sample.
    differences : dict
        By data set, row and contestant: the largest relative difference of an answer to the right one.
    """

    samples: dict[str, dict[str, dict[str, list[Sample]]]] = field(default_factory=dict)
    failures: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    differences: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    contestants: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, dataset: str, row: str, contestant: str, **sample: float | str) -> None:
        rows = self.samples.setdefault(dataset, {}).setdefault(row, {})
        rows.setdefault(contestant, []).append(sample)

    def fail(self, dataset: str, row: str, contestant: str, reason: str) -> None:
        rows = self.failures.setdefault(dataset, {}).setdefault(row, {})
        rows[contestant] = " ".join(reason.split())[:300]

    def differ(self, dataset: str, row: str, contestant: str, difference: float) -> None:
        rows = self.differences.setdefault(dataset, {}).setdefault(row, {})
        rows[contestant] = max(rows.get(contestant, 0.0), difference)


class Race:
    """The whole race in one directory."""

    def __init__(self, plan: Plan, keys: list[str], root: Path) -> None:
        self.plan = plan
        self.root = root
        self.results = Results()
        self.keys = []
        for key in keys:
            missing = CONTESTANTS[key].missing()
            self.results.contestants[key] = {
                "title": CONTESTANTS[key].title,
                "acknowledges": CONTESTANTS[key].acknowledges,
                "settings": CONTESTANTS[key].settings,
                "missing": missing,
            }
            if missing is None:
                self.keys.append(key)
        self.began = time.monotonic()
        self.omendb_files = ""
        self.random = random.Random(1)
        self._answers: dict[Query, Answer] = {}

    def run(self) -> None:
        """Run every data set, the main one first; `results` grows meanwhile."""
        for key in self.keys:
            CONTESTANTS[key].prepare()
        for name in self.plan.datasets:
            dataset = self._dataset(name)
            self._answers.clear()
            legs = {key: Leg(self, key, dataset) for key in self.keys if self._enters(key, name)}
            for number in range(self.plan.rounds):
                # The main data set leaves time for the first rounds of the others.
                share = MAIN_SHARE if name == "main" and len(self.plan.datasets) > 1 else 1.0
                if number and time.monotonic() > self.began + self.plan.minutes * 60 * share:
                    say(f"{name}: no time is left for round {number + 1}")
                    break
                for key, leg in legs.items():
                    say(f"{name}, round {number + 1} of {self.plan.rounds}: {key}")
                    leg.run(number)
            for leg in legs.values():
                shutil.rmtree(leg.directory, ignore_errors=True)

    def _dataset(self, name: str) -> Dataset:
        if name == "nab":
            return real()
        if name == "many":
            return regular(name, *self.plan.many)
        return (regular if name == "main" else jittered)(name, *self.plan.shape)

    def right_answer(self, dataset: Dataset, query: Query) -> Answer:
        """Answer from the data; what takes long to find is kept."""
        if query.series is not None:
            return right_answer(dataset, query)
        if query not in self._answers:
            self._answers[query] = right_answer(dataset, query)
        return self._answers[query]

    def _enters(self, key: str, dataset: str) -> bool:
        return dataset in CONTESTANTS[key].datasets


class Leg:
    """One contestant on one data set, over all rounds."""

    def __init__(self, race: Race, key: str, dataset: Dataset) -> None:
        self.race = race
        self.plan = race.plan
        self.key = key
        self.kind = CONTESTANTS[key]
        self.dataset = dataset
        self.directory = race.root / f"{key}-{dataset.name}"
        self.rows = {row.key for row in rows_of(dataset.name)}
        if self.kind.rows:
            self.rows &= self.kind.rows
        else:
            self.rows.discard("single_lazy")
        self.loaded = False
        self.loads = 0
        self.slow: set[str] = set()
        self.contestant: Contestant | None = None

    def run(self, number: int) -> None:
        """Take one turn."""
        if self.rows & WRITES and issubclass(self.kind, HttpContestant):
            self._guard("writes", lambda: self._ingest(number))
        if self.rows - WRITES - {"memory"}:
            self._guard("reads", lambda: self._read(number))

    # ---- what every measurement goes through

    def _guard(self, row: str, work: Callable[[], None]) -> None:
        """Do some work; when the contestant fails, the table says why and the race goes on."""
        try:
            work()
        except Exception as error:  # whatever a contestant does, the others go on
            named = isinstance(
                error, ContestantError | NotOfferedError | WrongAnswerError | load.RequestError
            )
            reason = str(error) if named else f"{type(error).__name__}: {error}"
            if isinstance(error, WrongAnswerError):
                reason = f"wrong answer: {reason}"
            say(f"  {self.key} {row}: {reason[:200]}")
            self.race.results.fail(self.dataset.name, row, self.key, reason)

    def _measure(self, row: str, work: Callable[[], None]) -> None:
        if row in self.rows:
            self._guard(row, work)

    def _add(self, row: str, **sample: float | str) -> None:
        self.race.results.add(self.dataset.name, row, self.key, **sample)

    def _check(self, row: str, query: Query, found: Answer) -> None:
        right = self.race.right_answer(self.dataset, query)
        rounded = self.kind.rounds_values and not self.dataset.fixed_width
        difference = compare(found, right, exact=query.step is None and not rounded)
        self.race.results.differ(self.dataset.name, row, self.key, difference)

    @contextmanager
    def _running(self, directory: Path) -> Iterator[Any]:
        contestant = self.kind(directory)
        if isinstance(contestant, DuckDB):
            contestant.files = self.race.omendb_files
        directory.mkdir(parents=True, exist_ok=True)
        try:
            started = time.perf_counter()
            contestant.start()
            self.started_seconds = time.perf_counter() - started
            self.start_began = started
            if "version" not in self.race.results.contestants[self.key]:
                self.race.results.contestants[self.key]["version"] = contestant.version
            yield contestant
        except BaseException:
            log = directory.with_name(f"{directory.name}.log")
            if log.exists():
                say(f"  the end of its log:\n{log.read_text(errors='replace')[-3000:]}")
            raise
        finally:
            contestant.stop()

    def _memory(self, contestant: Contestant) -> None:
        if "memory" in self.rows:
            self._add("memory", value=contestant.memory_bytes() / 1e6)

    # ---- writes, on a directory of their own

    def _ingest(self, number: int) -> None:
        directory = self.race.root / f"{self.key}-ingest"
        shutil.rmtree(directory, ignore_errors=True)
        try:
            with self._running(directory) as contestant:
                if number == 0 and self.dataset.name == "main":
                    self._guard("acknowledgement", lambda: self._probe_syncs(contestant))
                for row in ("single", "single_lazy"):
                    self._measure(row, lambda row=row: self._single(row, contestant, number))  # type: ignore[misc]
                self._measure("bulk", lambda: self._bulk(contestant))
                if isinstance(contestant, OmenDB):  # the others know series by label only
                    self._measure("range_named", lambda: self._named(contestant, number))
                self._measure("mixed", lambda: self._mixed(contestant, number))
                self._memory(contestant)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _probe_syncs(self, contestant: HttpContestant) -> None:
        """Count the syncs of a few posts, one after the other."""
        path, template = contestant.row_template()
        calls = "trace=fsync,fdatasync,sync_file_range,msync"
        log = contestant.directory.with_name("strace.log")
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", calls, "-o", str(log), "-p", str(contestant.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(1)
            for post in range(PROBED_POSTS):
                body = (
                    template.replace("@S", "100000")
                    .replace("@V", "100.25")
                    .replace("@T", str(1_600_000_000 + post))
                )
                load.post(contestant.port, path, body.encode())
        finally:
            tracer.terminate()
            tracer.wait(30)
        syncs = sum("sync" in line and "resumed" not in line for line in log.read_text().splitlines())
        self.race.results.contestants[self.key]["syncs"] = f"{syncs} syncs for {PROBED_POSTS} posts"

    def _single(self, row: str, contestant: HttpContestant, number: int) -> None:
        path, template = contestant.row_template()
        before = contestant.count("single")
        cpu = cpu_seconds(contestant.pid)
        rate = load.wrk(
            contestant.port,
            SINGLE_CONNECTIONS,
            self.plan.seconds,
            "post",
            path,
            template,
            "1000",
            str(1_500_000_000 + number * 10_000_000),
        )
        cpu = cpu_seconds(contestant.pid) - cpu
        stored, visible = self._stored(contestant, "single", before + rate.requests)
        stored -= before
        # What was under way when wrk closed its connections may be stored or not.
        if not rate.requests <= stored <= rate.requests + rate.errors + SINGLE_CONNECTIONS:
            raise WrongAnswerError(f"{rate.requests:,} rows were acknowledged, {stored:,} are stored")
        self._add_rate(row, rate, cpu, visible_seconds=visible)

    def _stored(self, contestant: HttpContestant, measurement: str, wanted: int) -> tuple[int, float]:
        """Count rows until all that were acknowledged are seen; return how many, and after how many seconds.

        VictoriaMetrics shows new series late: what a selector matches is cached for up to ten seconds.
        """
        started = time.monotonic()
        while True:
            stored = contestant.count(measurement)
            seconds = time.monotonic() - started
            if stored >= wanted or seconds > VISIBLE_SECONDS_MAX:
                return stored, seconds
            time.sleep(0.25)

    def _add_rate(self, row: str, rate: load.Rate, cpu: float, rows: float = 1, **more: float) -> None:
        self._add(
            row,
            value=rate.per_second * rows,
            cpu_us=cpu / max(rate.requests * rows, 1) * 1e6,
            **{name: value for name, value in asdict(rate).items() if name != "per_second"},
            **more,
        )

    def _bulk(self, contestant: HttpContestant) -> None:
        bodies = line_bodies(self.dataset, BATCH_ROWS)
        before = contestant.count(self.dataset.name)
        cpu = cpu_seconds(contestant.pid)
        rate = load.send_bodies(contestant.port, contestant.write_path, bodies, connections=2)
        cpu = cpu_seconds(contestant.pid) - cpu
        stored, visible = self._stored(contestant, self.dataset.name, before + self.dataset.rows)
        stored -= before
        if stored != self.dataset.rows:
            raise WrongAnswerError(f"{self.dataset.rows:,} rows were acknowledged, {stored:,} are stored")
        for query in self._range_queries(100, 20):
            self._check("bulk", query, contestant.named_answer(query))
        self._add_rate("bulk", rate, cpu, self.dataset.rows / len(bodies), visible_seconds=visible)

    def _named(self, contestant: HttpContestant, number: int) -> None:
        queries = self._range_queries(100, self.plan.paths)
        self._wrk("range_named", contestant, number, queries, named=True)

    def _mixed(self, contestant: HttpContestant, number: int) -> None:
        """Read ranges of what the bulk load brought while more comes in."""
        series = self.dataset.series_count
        seconds = self.plan.seconds + 1
        more = _live(series, -(-int(MIXED_ROWS_PER_SECOND * seconds) // series))
        bodies = line_bodies(more, BATCH_ROWS)
        paths = [contestant.named_path(query) for query in self._range_queries(100, self.plan.paths)]
        sender = load.start_sending(
            contestant.port,
            contestant.write_path,
            bodies,
            connections=2,
            per_second=MIXED_ROWS_PER_SECOND / BATCH_ROWS,
            seconds_max=seconds,
        )
        time.sleep(0.5)
        cpu = cpu_seconds(contestant.pid)
        try:
            rate = self._wrk_paths(contestant, paths, number)
        finally:
            sent = sender.result()
        cpu = cpu_seconds(contestant.pid) - cpu
        self._add(
            "mixed",
            value=rate.p95_ms,
            p50_ms=rate.p50_ms,
            p99_ms=rate.p99_ms,
            per_second=rate.per_second,
            rows_in_per_second=sent.per_second * BATCH_ROWS,
            write_p95_ms=sent.p95_ms,
            errors=rate.errors,
        )

    # ---- reads, on a directory that is kept

    def _read(self, number: int) -> None:
        while not self.loaded:
            self._load()
        with self._running(self.directory) as contestant:
            first = self._range_queries(100, 1)[0]
            found = contestant.answer(first)
            self.first_seconds = time.perf_counter() - self.start_began
            if isinstance(contestant, HttpContestant):
                self._measure("start", lambda: self._start(first, found))
                self._many_requests(contestant, number)
            self._large_requests(contestant, number)
            if isinstance(contestant, HttpContestant):
                self._measure("fair", lambda: self._fair(contestant, number))
            if contestant.disk_bytes():
                self._measure(
                    "disk", lambda: self._add("disk", value=contestant.disk_bytes() / self.dataset.rows)
                )
            self._memory(contestant)

    def _load(self) -> None:
        """Load the data set, settle, and see whether all of it is there after a restart."""
        self.loads += 1
        shutil.rmtree(self.directory, ignore_errors=True)
        with self._running(self.directory) as contestant:
            started = time.perf_counter()
            contestant.load(self.dataset)
            loaded = time.perf_counter()
            contestant.settle()
            say(f"  loaded in {loaded - started:.1f} s, settled in {time.perf_counter() - loaded:.1f} s")
            if isinstance(contestant, OmenDB) and self.key == OmenDB.key:
                self.race.omendb_files = contestant.parquet_files()
            self._memory(contestant)
        query = Query(self.dataset.name, self.dataset.start, self.dataset.stop, step=self._window_step())
        with self._running(self.directory) as contestant:
            try:
                self._check("load", query, contestant.answer(query))
            except WrongAnswerError as error:
                if self.loads == LOADS_MAX:
                    raise
                self.race.results.fail(self.dataset.name, f"load {self.loads}", self.key, str(error))
                return
        self.loaded = True

    def _start(self, query: Query, found: Answer) -> None:
        self._check("start", query, found)
        self._add("start", value=self.first_seconds * 1000)

    def _range_queries(self, rows: int, count: int) -> list[Query]:
        """Make different ranges of `rows` rows, of series and times at random."""
        dataset, queries = self.dataset, []
        for _ in range(count):
            series = self.race.random.randrange(dataset.series_count)
            low, high = int(dataset.offsets[series]), int(dataset.offsets[series + 1])
            first = self.race.random.randint(low, max(high - rows, low))
            last = min(first + rows, high) - 1
            if dataset.name == "nab":
                start, stop = int(dataset.timestamp[first]), int(dataset.timestamp[last]) + 1
            else:  # from slot to slot, so that jitter moves no row over an end
                start = BASE_MS + STEP_MS * (first - low)
                stop = BASE_MS + STEP_MS * (last + 1 - low)
            queries.append(Query(dataset.name, start, stop, series))
        return queries

    def _window_step(self) -> int:
        """Return the length of windows, of which a series has 100 (the real ones: days)."""
        span = self.dataset.stop - self.dataset.start
        if self.dataset.name == "nab":
            return DAY_MS
        return span if self.dataset.name == "many" else span // 100

    def _many_requests(self, contestant: HttpContestant, number: int) -> None:
        rows = min(1_000, self.dataset.rows_per_series // 2)
        self._measure(
            "range_100",
            lambda: self._wrk("range_100", contestant, number, self._range_queries(100, self.plan.paths)),
        )
        self._measure(
            "range_1000",
            lambda: self._wrk("range_1000", contestant, number, self._range_queries(rows, self.plan.paths)),
        )
        dataset = self.dataset
        each = [
            Query(dataset.name, dataset.start, dataset.stop, series, step=self._window_step())
            for series in range(dataset.series_count)
        ]
        self._measure("windows_one", lambda: self._wrk("windows_one", contestant, number, each))

    def _wrk(
        self, row: str, contestant: HttpContestant, number: int, queries: list[Query], named: bool = False
    ) -> None:
        answer = contestant.named_answer if named else contestant.answer
        path = contestant.named_path if named else contestant.path
        for query in self.race.random.sample(queries, min(self.plan.checked, len(queries))):
            self._check(row, query, answer(query))
        paths = [path(query) for query in queries]
        cpu = cpu_seconds(contestant.pid)
        rate = self._wrk_paths(contestant, paths, number)
        if rate.errors:
            raise WrongAnswerError(f"{rate.errors} of {rate.requests + rate.errors} requests failed")
        self._add_rate(row, rate, cpu_seconds(contestant.pid) - cpu)

    def _wrk_paths(self, contestant: HttpContestant, paths: list[str], number: int) -> load.Rate:
        file = self.race.root / "paths"
        file.write_text("\n".join(paths) + "\n")
        return load.wrk(contestant.port, READ_CONNECTIONS, self.plan.seconds, "get", str(file), str(number))

    def _large_requests(self, contestant: Contestant, number: int) -> None:
        dataset, step = self.dataset, self._window_step()
        all_windows = Query(dataset.name, dataset.start, dataset.stop, step=step)
        short_stop = min(dataset.start + WINDOW_MS, dataset.stop)
        everything = Query(dataset.name, dataset.start, dataset.stop)
        queries = {
            "windows_all": all_windows,
            "merged": Query(
                dataset.name, dataset.start, dataset.stop, step=step, merged=True, even=dataset.name != "nab"
            ),
            "windows_short": Query(dataset.name, dataset.start, short_stop, step=WINDOW_MS // 10),
            "export_json": everything,
        }
        for row, query in queries.items():
            check = number == 0 or row != "export_json"
            self._measure(
                row, lambda row=row, query=query, check=check: self._large(row, contestant, query, check)
            )  # type: ignore[misc]
        if isinstance(contestant, OmenDB):
            self._measure("export_arrow", lambda: self._arrow(contestant, everything, number))

    def _large(self, row: str, contestant: Contestant, query: Query, check: bool) -> None:
        if row in self.slow:
            return
        if check:
            self._check(row, query, contestant.answer(query))
        self._add_times(row, contestant, lambda: contestant.time(query))

    def _arrow(self, contestant: OmenDB, query: Query, number: int) -> None:
        path = contestant.arrow_path(query)
        if number == 0:
            found = contestant.parse_arrow(load.get(contestant.port, path)).sorted()
            self._check("export_arrow", query, found)
        self._add_times("export_arrow", contestant, lambda: load.time_get(contestant.port, path))

    def _add_times(self, row: str, contestant: Contestant, once: Callable[[], float]) -> None:
        """Repeat one request until its time is up; the round's value is the median."""
        seconds = [once()]
        cpu = cpu_seconds(contestant.pid)
        while sum(seconds) < self.plan.heavy_seconds and len(seconds) < 50:
            seconds.append(once())
        cpu = (cpu_seconds(contestant.pid) - cpu) / max(len(seconds) - 1, 1)
        # The first one has the caches to fill.
        rest = seconds[1:] or seconds
        if rest[0] > SLOW_SECONDS:
            self.slow.add(row)
        self._add(
            row,
            value=statistics.median(rest) * 1000,
            least=min(rest) * 1000,
            most=max(rest) * 1000,
            repeats=len(rest),
            cpu_us=cpu * 1e6,
        )

    def _fair(self, contestant: HttpContestant, number: int) -> None:
        """Ask light queries while one client asks the heavy window query again and again."""
        heavy = Query(self.dataset.name, self.dataset.start, self.dataset.stop, step=self._window_step())
        paths = [contestant.path(query) for query in self._range_queries(100, self.plan.paths)]
        over = threading.Event()
        seconds: list[float] = []

        def ask() -> None:
            while not over.is_set():
                try:
                    seconds.append(contestant.time(heavy))
                except (load.RequestError, OSError):
                    return

        asker = threading.Thread(target=ask)
        asker.start()
        try:
            rate = self._wrk_paths(contestant, paths, number)
        finally:
            over.set()
            asker.join()
        if not seconds:
            raise ContestantError("the heavy query was never answered")
        self._add(
            "fair",
            value=rate.p99_ms,
            p50_ms=rate.p50_ms,
            p95_ms=rate.p95_ms,
            per_second=rate.per_second,
            heavy_ms=statistics.median(seconds) * 1000,
            heavy_answers=len(seconds),
            errors=rate.errors,
        )


@functools.lru_cache(maxsize=1)
def _live(series_count: int, rows_per_series: int) -> Dataset:
    return regular("live", series_count, rows_per_series, seed=3)


def say(text: str) -> None:
    """Tell whoever waits what is being done."""
    print(text, file=sys.stderr, flush=True)
