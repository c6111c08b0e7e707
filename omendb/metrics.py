"""Metrics of one server or embedded store, and the process facts that they report.

A `Metrics` has its own registry: nothing is global, so that tests and several stores in one process do
not mix. The instruments keep plain bucket lists behind a lock and turn into Prometheus families only
when they are scraped: an observation costs 0.3 us, half of what `prometheus_client`'s own takes.

Thread safety: everything may be called from any thread.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from math import inf
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from omendb import netlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric

    Gauges = Callable[[], Iterable[tuple[str, str, float]]]

logger = logging.getLogger(__name__)

# 0.1 ms to 1 s in steps of 1-2-5: the alert thresholds of the runbook (50, 100, 200, 500 ms) are bounds.
REQUEST_SECONDS = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip
WORK_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
LIMIT_SECONDS = 5.0
"""How long the limit of the cgroup is believed."""

ROWS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0)


class Counter:
    """A number that only grows.

    Parameters
    ----------
    name : str
        With the suffix ``_total``.
    help_text : str
        What it counts.
    """

    __slots__ = ("_lock", "_value", "help", "name")

    def __init__(self, name: str, help_text: str) -> None:
        self.name = name
        self.help = help_text
        self._lock = Lock()
        self._value = 0

    def inc(self, amount: int = 1) -> None:
        """Add `amount`, at least 0."""
        with self._lock:
            self._value += amount

    @property
    def value(self) -> int:
        """What was counted so far."""
        return self._value

    def family(self) -> Metric:
        """Return the counter as Prometheus shows it."""
        return CounterMetricFamily(self.name, self.help, value=self._value)


class LabeledCounter:
    """Numbers that only grow, one for each combination of labels that was counted.

    Parameters
    ----------
    name : str
        With the suffix ``_total``.
    help_text : str
        What it counts.
    labels : tuple of str
        Their names. Their values must come from a small fixed set: each combination is kept for ever.
    """

    __slots__ = ("_lock", "_values", "help", "labels", "name")

    def __init__(self, name: str, help_text: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self.help = help_text
        self.labels = labels
        self._lock = Lock()
        self._values: dict[tuple[str, ...], int] = {}

    def inc(self, *labels: str) -> None:
        """Add 1 where the labels have these values, in the order of their names."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + 1

    def family(self) -> Metric:
        """Return the counter as Prometheus shows it."""
        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        with self._lock:
            values = sorted(self._values.items())
        for labels, value in values:
            family.add_metric(labels, value)
        return family


class Histogram:
    """Counts of observations by size.

    Parameters
    ----------
    name : str
        Ending in its unit.
    help_text : str
        What is observed.
    bounds : tuple of float
        Upper bounds of the buckets, inclusive, ascending; one more bucket takes what is beyond.
    """

    __slots__ = ("_counts", "_lock", "_sum", "bounds", "help", "name")

    def __init__(self, name: str, help_text: str, bounds: tuple[float, ...]) -> None:
        self.name = name
        self.help = help_text
        self._lock = Lock()
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value` in its bucket."""
        bucket = bisect_left(self.bounds, value)
        with self._lock:
            self._counts[bucket] += 1
            self._sum += value

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self._counts)

    def counts(self) -> list[int]:
        """Return the number of observations in each bucket, the one beyond the bounds included."""
        with self._lock:
            return list(self._counts)

    def totals(self) -> tuple[int, float]:
        """Return the number of observations and their sum, of one moment."""
        with self._lock:
            return sum(self._counts), self._sum

    def family(self) -> Metric:
        """Return the histogram as Prometheus shows it: cumulative counts."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        names = [*map(repr, self.bounds), "+Inf"]
        buckets = list(zip(names, accumulate(counts), strict=True))
        return HistogramMetricFamily(self.name, self.help, buckets=buckets, sum_value=total)


class RecentQuantile:
    """A quantile of what a histogram has counted lately: two turns of `turn_seconds`, the current included.

    Parameters
    ----------
    histogram : Histogram
    quantile : float
        0 to 1.
    turn_seconds : float
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(
        self,
        histogram: Histogram,
        quantile: float,
        turn_seconds: float = 60.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._histogram = histogram
        self._quantile = quantile
        self._turn_seconds = turn_seconds
        self._clock = clock
        self._lock = Lock()  # protects the turns
        self._turned_at = clock()
        self._before = self._last = histogram.counts()

    def value(self) -> float:
        """Return the upper bound of the bucket with the quantile; NaN when nothing was counted.

        The turn ends at the first call after its time: when nobody asks, it is as long as the pause.
        """
        counts = self._histogram.counts()
        with self._lock:
            if self._clock() - self._turned_at >= self._turn_seconds:
                self._before, self._last = self._last, counts
                self._turned_at = self._clock()
            before = self._before
        recent = [now - then for now, then in zip(counts, before, strict=True)]
        wanted = self._quantile * sum(recent)
        if not wanted:
            return float("nan")
        bounds = (*self._histogram.bounds, float("inf"))
        return next(bound for bound, count in zip(bounds, accumulate(recent), strict=True) if count >= wanted)


class Metrics(Collector):
    """All instruments of one store and its server.

    Attributes
    ----------
    query_duration, insert_duration : Histogram
        Seconds from the complete request to its answer; an insert's includes the wait for the sync.
    insert_batch_size : Histogram
        Rows of one insert request.
    inserts_total : Counter
        Rows acknowledged.
    insert_failures_total : Counter
        Rows that were refused; a request whose rows are not known counts 1.
    query_failures_total : Counter
        Requests answered with an error.
    request_errors_total : LabeledCounter
        Answers of all calls that were errors, by status and error code.
    flush_failures_total, compaction_failures_total, backup_failures_total : Counter
        Attempts.
    flushed_rows_total, compaction_read_rows_total, compaction_written_bytes_total : Counter
        What flushes and compactions did.
    log_lines_total, log_lines_dropped_total : Counter
        Lines written to the log, and those that found its queue full.
    wal_fsync_duration, flush_duration, compaction_duration, retrain_duration, gc_duration : Histogram
        Seconds.
    backup_duration : Histogram
        Seconds.
    commit_batch_size : Histogram
        Rows of one group commit.
    config_reload_failures_total : Counter
        States of the directory of settings that were not accepted as a whole.
    connections_refused_total : Counter
        Connections beyond `max_connections`.
    auth_failures_total : LabeledCounter
        Requests without the token that they need, by reason.
    """

    def __init__(self) -> None:
        seconds = "Seconds from a complete request to its answer: "
        self.query_duration = Histogram(
            "omendb_query_duration_seconds", seconds + "GET /query.", REQUEST_SECONDS
        )
        self.insert_duration = Histogram(
            "omendb_insert_duration_seconds",
            seconds + "POST /insert, with the wait for the sync.",
            REQUEST_SECONDS,
        )
        self.insert_batch_size = Histogram("omendb_insert_batch_size", "Rows of one insert request.", ROWS)
        self.inserts_total = Counter("omendb_inserts_total", "Rows stored and acknowledged.")
        self.insert_failures_total = Counter(
            "omendb_insert_failures_total",
            "Rows refused; an insert whose rows are not known counts 1.",
        )
        self.query_failures_total = Counter(
            "omendb_query_failures_total", "Queries answered with an error, or broken off."
        )
        self.request_errors_total = LabeledCounter(
            "omendb_request_errors_total", "Errors answered to any call.", ("status", "code")
        )
        self.flush_failures_total = Counter("omendb_flush_failures_total", "Flushes that failed.")
        self.compaction_failures_total = Counter(
            "omendb_compaction_failures_total", "Compactions that failed."
        )
        self.backup_failures_total = Counter("omendb_backup_failures_total", "Backups that failed.")
        self.flushed_rows_total = Counter("omendb_flushed_rows_total", "Rows that flushes wrote to segments.")
        self.compaction_read_rows_total = Counter(
            "omendb_compaction_read_rows_total", "Rows that compactions read."
        )
        self.compaction_written_bytes_total = Counter(
            "omendb_compaction_written_bytes_total", "Bytes that compactions wrote."
        )
        self.log_lines_total = Counter("omendb_log_lines_total", "Lines written to the log.")
        self.log_lines_dropped_total = Counter(
            "omendb_log_lines_dropped_total",
            "Log lines dropped because standard output was not read in time.",
        )
        self.wal_fsync_duration = Histogram(
            "omendb_wal_fsync_duration_seconds",
            "Seconds of one sync of the write-ahead log.",
            REQUEST_SECONDS,
        )
        self.commit_batch_size = Histogram(
            "omendb_commit_batch_size", "Rows of one group commit; batch_size bounds it.", ROWS
        )
        self.flush_duration = Histogram(
            "omendb_flush_duration_seconds", "Seconds of one flush of a memtable.", WORK_SECONDS
        )
        self.compaction_duration = Histogram(
            "omendb_compaction_duration_seconds", "Seconds of one compaction.", WORK_SECONDS
        )
        self.retrain_duration = Histogram(
            "omendb_retrain_duration_seconds", "Seconds of one refit of all models.", WORK_SECONDS
        )
        self.gc_duration = Histogram(
            "omendb_gc_duration_seconds", "Seconds of one garbage collection.", WORK_SECONDS
        )
        self.backup_duration = Histogram(
            "omendb_backup_duration_seconds", "Seconds of one backup.", WORK_SECONDS
        )
        self.config_reload_failures_total = Counter(
            "omendb_config_reload_failures_total",
            "States of the directory of settings with something in them that was refused.",
        )
        self.connections_refused_total = Counter(
            "omendb_connections_refused_total", "Connections refused because of max_connections."
        )
        self.auth_failures_total = LabeledCounter(
            "omendb_auth_failures_total", "Requests without the token that they need.", ("reason",)
        )
        self._instruments = [
            value for value in vars(self).values() if isinstance(value, Counter | LabeledCounter | Histogram)
        ]
        self._recent_p95 = RecentQuantile(self.query_duration, 0.95)
        self._gauges: list[Gauges] = []
        self._port: int | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def add_gauges(self, function: Gauges) -> None:
        """Call `function` at every scrape.

        Parameters
        ----------
        function : callable
            Returns (name, help, value) of each gauge, or of a counter, whose name ends in ``_total``. When
            it fails, its gauges are left out of that scrape and the failure is logged.
        """
        self._gauges.append(function)

    def watch_port(self, port: int) -> None:
        """Report the connections to this local TCP port as ``omendb_active_connections``."""
        self._port = port

    def render(self) -> bytes:
        """Return everything in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the families of one scrape."""
        for instrument in self._instruments:
            yield instrument.family()
            if instrument is self.query_duration:
                # Next to it, because the runbook looks at the last line that `grep query_duration` finds.
                yield GaugeMetricFamily(
                    "omendb_query_duration_p95_seconds",
                    "95 % of the queries of the last one to two minutes took at most so long.",
                    value=self._recent_p95.value(),
                )
        yield GaugeMetricFamily(
            "omendb_active_connections",
            "Established connections to the HTTP port.",
            value=0 if self._port is None else _connections(self._port),
        )
        build = GaugeMetricFamily("omendb_build_info", "Version of the server.", labels=["version"])
        build.add_metric([package_version()], 1)
        yield build
        for function in self._gauges:
            try:
                gauges = list(function())
            except Exception:
                logger.exception("gauges could not be read")
                continue
            for name, help_text, value in gauges:
                family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                yield family(name, help_text, value=value)


class ProcessMemory(NamedTuple):
    """Memory of this process, in bytes.

    Attributes
    ----------
    unreclaimable : int
        Anonymous and shared pages: what counts against a limit, and can get the process killed.
    mapped : int
        Resident pages of mapped files: the system takes them back when it needs memory.
    """

    unreclaimable: int
    mapped: int


def process_memory() -> ProcessMemory:
    """Read this process's memory from ``/proc/self/status`` (60 us)."""
    kibibytes = {b"RssAnon": 0, b"RssShmem": 0, b"RssFile": 0}
    for line in Path("/proc/self/status").read_bytes().splitlines():
        name, _, text = line.partition(b":")
        if name in kibibytes:
            kibibytes[name] = int(text.split()[0])
    return ProcessMemory(
        unreclaimable=1024 * (kibibytes[b"RssAnon"] + kibibytes[b"RssShmem"]),
        mapped=1024 * kibibytes[b"RssFile"],
    )


def memory_limit_bytes(max_memory_mb: int = 0, root: Path = Path("/")) -> int:
    """Return how much memory this process may hold.

    Parameters
    ----------
    max_memory_mb : int
        The setting, in MiB; 0 when it is not set.
    root : Path
        Where ``proc`` and ``sys`` are mounted.

    Returns
    -------
    int
        Bytes: the setting, else the smallest limit of the process's cgroup (version 2 or 1) and the
        machine's memory.
    """
    if max_memory_mb:
        return max_memory_mb << 20
    return min([_machine_memory(root), *_cgroup_limits(root)])


def memory_gauges(max_memory_mb: Callable[[], int]) -> Gauges:
    """Return a function for `Metrics.add_gauges` that reports this process's memory.

    Parameters
    ----------
    max_memory_mb : callable
        Returns the current setting, in MiB; 0 when it is not set.
    """
    # Of the cgroups: a file for each, and each is a moment in which another thread may take the GIL.
    limit, read_at = 0, -inf

    def gauges() -> Iterable[tuple[str, str, float]]:
        nonlocal limit, read_at
        memory = process_memory()
        if max_memory_mb() or monotonic() - read_at > LIMIT_SECONDS:
            limit, read_at = memory_limit_bytes(max_memory_mb()), -inf if max_memory_mb() else monotonic()
        return (
            (
                "omendb_memory_usage_bytes",
                "Memory that cannot be reclaimed: anonymous and shared pages.",
                memory.unreclaimable,
            ),
            (
                "omendb_memory_limit_bytes",
                "max_memory_mb, else the cgroup's limit, else the machine's memory.",
                limit,
            ),
            (
                "omendb_mapped_resident_bytes",
                "Resident pages of mapped segment files: reclaimable.",
                memory.mapped,
            ),
        )

    return gauges


def _connections(port: int) -> int:
    count = netlink.established_connections(port)
    return established_connections(port) if count is None else count


def established_connections(port: int, root: Path = Path("/")) -> int:
    """Count the established TCP connections of this network namespace to a local port.

    Where `omendb.netlink` cannot. A read costs about 2 us a socket of the namespace, those that are closed
    but remembered included.

    Parameters
    ----------
    port : int
        The local port, 1 to 65535.
    root : Path
        Where ``proc`` is mounted.
    """
    local_suffix = b":%04X" % port
    count = 0
    for name in ("tcp", "tcp6"):
        try:
            lines = (root / "proc/self/net" / name).read_bytes().splitlines()[1:]
        except OSError:  # no IPv6, or no proc file system
            continue
        for line in lines:
            fields = line.split(None, 4)  # slot, local address, remote address, state, ...
            count += fields[3] == b"01" and fields[1].endswith(local_suffix)
    return count


def package_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("omendb")
    except PackageNotFoundError:  # run from a source tree that was not installed
        return "unknown"


def _machine_memory(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, text = line.partition(":")
        if name == "MemTotal":
            return int(text.split()[0]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the memory limits of this process's cgroup and of those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path is that of the host, and the mount shows its own group as the root:
        # the groups that are not there are skipped, and the root's limit is the container's.
        group = base / place.lstrip("/")
        for directory in (group, *group.parents):
            try:
                text = (directory / name).read_text().strip()
            except OSError:
                text = "max"
            if text.isdigit():
                yield int(text)
            if directory == base:
                break
