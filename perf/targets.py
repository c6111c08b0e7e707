"""Whether the runbook's target figures hold on this machine.

    python perf/targets.py
    python perf/targets.py --points 10000000 --seconds 60 --json targets.json

Starts a server as shipped on an empty directory, loads points over HTTP, and lets `wrk` work on it in three
phases: queries of 100 rows, durable inserts of one point, and both at once over half of the connections
each (64 in all). The targets are those of the table "Expected Performance Metrics" in `docs/runbook.md`.

Each target is held against every reading of it, and the worst decides: p95 as the client measured it and
from the server's histograms (the growth of their buckets over a phase), requests a second of each phase,
memory in the samples of `/metrics` from the start of the load on, errors as the client and as the server
counted them. CPU usage is reported only: the load generator saturates the machine on purpose, and shares it
with the server. Leave the machine alone meanwhile: whatever else runs is counted as latency.

The status is 0 when all targets but that of CPU usage are reached, and 1 otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts a script's directory first: there `http.py` would be taken for the standard `http`.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))
if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))

import argparse
import math
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from threading import Event, Thread
from typing import Any, NamedTuple

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from perf.http import Bench, get_json, machine, run_server, write_json

RUNBOOK = Path(__file__).parents[1] / "docs" / "runbook.md"
HEADING = "### Expected Performance Metrics"
QUERY, INSERT = "Query Latency (p95)", "Insert Latency (p95)"
THROUGHPUT, MEMORY, CPU, ERRORS = "Throughput", "Memory Usage", "CPU Usage", "Error Rate"
METRICS = {QUERY: "ms", INSERT: "ms", THROUGHPUT: "QPS", MEMORY: "%", CPU: "%", ERRORS: "%"}
REPORTED = {CPU}
"""Metrics without a verdict."""

PHASES = {"queries": ("range_100",), "inserts": ("insert_one",), "mixed": ("range_100", "insert_one")}
KINDS = {"range_100": "query", "insert_one": "insert"}
LATENCIES = {"query": QUERY, "insert": INSERT}
FAILURES = ("omendb_query_failures_total", "omendb_insert_failures_total")
SAMPLE_SECONDS = 0.5

Buckets = list[tuple[float, float]]
"""Upper bound of each bucket, and how much is counted up to there; the last bound is infinite."""


class Target(NamedTuple):
    """A row of the runbook's table: the figure must be below (``<``) or above (``>``) `bound`."""

    text: str
    comparison: str
    bound: float
    unit: str

    def reached_by(self, figure: float) -> bool:
        """Say whether a figure is on the right side; NaN never is."""
        return figure < self.bound if self.comparison == "<" else figure > self.bound


class Reading(NamedTuple):
    """One figure, and where it comes from."""

    figure: float
    source: str


@dataclass
class Verdict:
    """A target, and the worst reading of it.

    Attributes
    ----------
    reached : bool or None
        None when the figure is only reported.
    """

    metric: str
    target: str
    measured: float
    unit: str
    source: str
    readings: int
    reached: bool | None

    @property
    def word(self) -> str:
        return {True: "pass", False: "FAIL", None: "reported"}[self.reached]


def read_targets(text: str) -> dict[str, Target]:
    """Read the targets out of the runbook.

    Raises
    ------
    ValueError
        The table is not there, lacks a metric, has one that is not measured here, or a target that is not
        understood.
    """
    _, found, rest = text.partition(HEADING + "\n")
    if not found:
        raise ValueError(f"the runbook has no section {HEADING!r}")
    lines = rest.lstrip("\n").splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]
    if not rows or rows[0][:2] != ["Metric", "Target"]:
        raise ValueError(f"no table of Metric and Target follows {HEADING!r}")
    targets = {}
    for metric, target, *_ in rows[2:]:
        matched = re.fullmatch(r"([<>]) ?([0-9]+(?:\.[0-9]+)?)(K?) ?(ms|QPS|%)", target)
        if metric not in METRICS:
            raise ValueError(f"the runbook's metric {metric!r} is not measured")
        if matched is None or matched[4] != METRICS[metric]:
            raise ValueError(
                f"{metric}: the target {target!r} is not < or > and a number of {METRICS[metric]}"
            )
        bound = float(matched[2]) * (1_000 if matched[3] else 1)
        targets[metric] = Target(target, matched[1], bound, matched[4])
    if missing := METRICS.keys() - targets:
        raise ValueError(f"the runbook's table has no {', '.join(sorted(missing))}")
    return targets


def quantile(before: Buckets, after: Buckets, fraction: float) -> float:
    """Return a quantile of what a histogram counted between two scrapes, as ``histogram_quantile`` does.

    Inside a bucket the observations are taken to be spread evenly. Other than there, a quantile beyond the
    last finite bound is infinite: the bound itself would pass for a figure that nobody measured.

    Returns
    -------
    float
        NaN when nothing was counted.

    Raises
    ------
    ValueError
        The buckets are not the same, or counted backwards: the server was restarted.
    """
    if [bound for bound, _ in before] != [bound for bound, _ in after]:
        raise ValueError("the buckets of the two scrapes differ")
    grown = [(bound, now - then) for (bound, now), (_, then) in zip(after, before, strict=True)]
    if any(high < low for (_, low), (_, high) in pairwise([(0.0, 0.0), *grown])):
        raise ValueError("a bucket counts less than before")
    total = grown[-1][1]
    if not total:
        return math.nan
    wanted = fraction * total
    lower, below = 0.0, 0.0
    for bound, count in grown:
        if count >= wanted and count > below:
            return (
                math.inf
                if math.isinf(bound)
                else lower + (bound - lower) * (wanted - below) / (count - below)
            )
        lower, below = bound, count
    raise AssertionError("the last bucket counts everything")


def judge(targets: dict[str, Target], readings: dict[str, list[Reading]]) -> list[Verdict]:
    """Hold the worst reading of each metric against its target; none, or NaN, does not reach it."""
    verdicts = []
    for metric, target in targets.items():
        sign = 1 if target.comparison == "<" else -1
        found = readings.get(metric) or [Reading(math.nan, "not measured")]
        worst = max(found, key=lambda each: math.inf if math.isnan(each.figure) else sign * each.figure)
        reached = None if metric in REPORTED else all(target.reached_by(each.figure) for each in found)
        count = len(readings.get(metric, []))
        verdicts.append(Verdict(metric, target.text, worst.figure, target.unit, worst.source, count, reached))
    return verdicts


def status(verdicts: list[Verdict]) -> int:
    """Return 0 when no target is missed, else 1."""
    return int(any(verdict.reached is False for verdict in verdicts))


@dataclass
class Scrape:
    """What ``/metrics`` answered, and when.

    Attributes
    ----------
    seconds : float
        On a monotonic clock.
    values : dict of str to float
        Samples without labels.
    buckets : dict of str to list
        Histograms by name.
    """

    seconds: float
    values: dict[str, float]
    buckets: dict[str, Buckets]

    @classmethod
    def parse(cls, text: str, seconds: float) -> Scrape:
        """Read Prometheus' text format."""
        values: dict[str, float] = {}
        buckets: dict[str, Buckets] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if "le" in sample.labels:
                    name = sample.name.removesuffix("_bucket")
                    buckets.setdefault(name, []).append((float(sample.labels["le"]), sample.value))
                elif not sample.labels:
                    values[sample.name] = sample.value
        return cls(seconds, values, buckets)

    @classmethod
    def of(cls, metrics_url: str) -> Scrape:
        """Ask the server."""
        answer = urllib3.request("GET", metrics_url + "/metrics", timeout=60, retries=False)
        if answer.status != 200:
            raise SystemExit(f"/metrics: {answer.status} {answer.data!r}")
        return cls.parse(answer.data.decode(), time.perf_counter())

    @property
    def memory_percent(self) -> float:
        return 100 * self.values["omendb_memory_usage_bytes"] / self.values["omendb_memory_limit_bytes"]


@dataclass
class Phase:
    """What a phase asked, and the server's metrics before and after.

    Attributes
    ----------
    client : dict of str to dict
        What `wrk` measured, by kind: ``query``, ``insert``.
    """

    name: str
    client: dict[str, dict[str, float]]
    before: Scrape
    after: Scrape

    def growth(self, name: str) -> float:
        return self.after.values[name] - self.before.values[name]

    def client_rate(self) -> float:
        """Return the requests a second that were answered without an error."""
        return sum((found["requests"] - found["errors"]) / found["seconds"] for found in self.client.values())

    def client_errors_percent(self) -> float:
        asked = sum(found["requests"] for found in self.client.values())
        return 100 * sum(found["errors"] for found in self.client.values()) / asked if asked else math.nan

    def server_errors_percent(self) -> float:
        """Return the share of queries and inserts that failed: the histograms hold the others."""
        failed = sum(map(self.growth, FAILURES))
        asked = failed + sum(self.growth(f"omendb_{kind}_duration_seconds_count") for kind in LATENCIES)
        return 100 * failed / asked if asked else math.nan

    def server_p95_ms(self, kind: str) -> float:
        name = f"omendb_{kind}_duration_seconds"
        return 1_000 * quantile(self.before.buckets[name], self.after.buckets[name], 0.95)

    def cpu_percent(self) -> float:
        """Return the server's share of the machine."""
        elapsed = self.after.seconds - self.before.seconds
        return 100 * self.growth("process_cpu_seconds_total") / elapsed / (os.cpu_count() or 1)

    def readings(self) -> dict[str, list[Reading]]:
        """Return all readings of the phase, by metric."""
        found = {
            THROUGHPUT: [Reading(self.client_rate(), f"{self.name}, client")],
            CPU: [Reading(self.cpu_percent(), f"{self.name}, server")],
            ERRORS: [
                Reading(self.client_errors_percent(), f"{self.name}, client"),
                Reading(self.server_errors_percent(), f"{self.name}, server"),
            ],
        }
        for kind, measured in self.client.items():
            found[LATENCIES[kind]] = [
                Reading(measured["p95_ms"], f"{self.name}, client"),
                Reading(self.server_p95_ms(kind), f"{self.name}, server"),
            ]
        return found


class MemorySampler:
    """Reads the server's memory again and again, in a thread, while it is entered."""

    def __init__(self, metrics_url: str) -> None:
        self.readings: list[Reading] = []
        self.doing = "load"
        self._metrics_url = metrics_url
        self._stop = Event()
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None and self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(SAMPLE_SECONDS):
                doing = self.doing
                self.readings.append(Reading(Scrape.of(self._metrics_url).memory_percent, f"{doing}, server"))
        except BaseException as error:
            self._failure = error


def not_as_shipped(settings: dict[str, dict[str, Any]]) -> list[str]:
    """Say which settings the machine gives the server: neither defaults, nor the addresses given here."""
    return [
        f"not as shipped: {name} = {setting['value']} from {setting['source']}"
        for name, setting in settings.items()
        if setting["source"] not in ("default", "command_line")
    ]


def run_phase(bench: Bench, metrics_url: str, name: str) -> Phase:
    """Warm a phase up for a second, then measure it."""
    options = bench.options

    def run(seconds: int) -> dict[str, dict[str, float]]:
        connections = options.connections // len(PHASES[name])
        started = [(KINDS[each], bench.start(each, seconds, connections)) for each in PHASES[name]]
        try:
            return {kind: bench.finish(process, seconds) for kind, process in started}
        finally:
            for _, process in started:  # when one failed, the other still runs
                process.kill()
                process.wait()

    run(1)
    before = Scrape.of(metrics_url)
    return Phase(name, run(options.seconds), before, Scrape.of(metrics_url))


def measure(options: argparse.Namespace) -> tuple[list[Phase], dict[str, list[Reading]]]:
    """Start a server, load it, and run all phases; return them, and all readings by metric."""
    phases = []
    with run_server(options.data_dir, piped=True) as server:
        settings = get_json(server.url + "/admin/config")
        for line in not_as_shipped(settings):
            print(line)
        if settings["sync_interval_ms"]["value"]:
            raise SystemExit("sync_interval_ms is not 0: inserts are answered before they are durable")
        bench = Bench(server.url, options)
        with MemorySampler(server.metrics_url) as memory:
            bench.load()
            for name in PHASES:
                memory.doing = name
                phases.append(run_phase(bench, server.metrics_url, name))
    readings: dict[str, list[Reading]] = {MEMORY: memory.readings}
    for phase in phases:
        for metric, found in phase.readings().items():
            readings.setdefault(metric, []).extend(found)
    return phases, readings


def details(phases: list[Phase]) -> str:
    """Lay out what each phase measured."""
    lines = [
        f"{'phase':10}{'':8}{'requests/s':>12}{'p95 ms client':>15}{'p95 ms server':>15}"
        f"{'errors':>8}{'CPU %':>8}"
    ]
    for phase in phases:
        for kind, found in phase.client.items():
            rate = found["requests"] / found["seconds"]
            times = f"{found['p95_ms']:15.2f}{phase.server_p95_ms(kind):15.2f}"
            lines.append(
                f"{phase.name:10}{kind:8}{rate:12,.0f}{times}{found['errors']:8.0f}{phase.cpu_percent():8.1f}"
            )
    return "\n".join(lines)


def table(verdicts: list[Verdict]) -> str:
    """Lay the verdicts out for reading."""
    lines = [f"{'metric':22}{'target':>10}{'measured':>15}  {'verdict':10}worst of"]
    for verdict in verdicts:
        decimals = {"QPS": 0, "ms": 2, "%": 3 if verdict.metric == ERRORS else 1}[verdict.unit]
        measured = f"{verdict.measured:,.{decimals}f} {verdict.unit}"
        source = f"{verdict.readings}: {verdict.source}"
        lines.append(f"{verdict.metric:22}{verdict.target:>10}{measured:>15}  {verdict.word:10}{source}")
    lines.append(f"{CPU} is reported without a verdict: the load generator saturates the machine on purpose.")
    return "\n".join(lines)


def as_json(figure: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return figure if math.isfinite(figure) else None


def results(
    verdicts: list[Verdict], phases: list[Phase], readings: dict[str, list[Reading]]
) -> dict[str, Any]:
    """Return everything measured, for `--json`."""
    return {
        "targets": [
            {**asdict(each), "measured": as_json(each.measured), "verdict": each.word} for each in verdicts
        ],
        "readings": {
            metric: [{"figure": as_json(each.figure), "source": each.source} for each in found]
            for metric, found in readings.items()
        },
        "client": {phase.name: phase.client for phase in phases},
    }


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-dir", help="where the server's directory is made")
    parser.add_argument("--points", type=int, default=1_000_000, help="points to load")
    parser.add_argument("--series", type=int, default=1_000, help="series they belong to")
    parser.add_argument("--seconds", type=int, default=10, help="measured time of a phase")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--json", metavar="FILE", help="write the results there; - for stdout")
    options = parser.parse_args()
    if options.seconds < 1:
        parser.error(f"--seconds {options.seconds}: a phase takes at least 1")
    if options.connections < 2:
        parser.error(f"--connections {options.connections}: the mixed phase needs at least 2")
    if options.series < 1 or options.points < options.series:
        parser.error(f"--points {options.points} must be at least --series {options.series}, and that 1")
    options.threads = 1  # of wrk
    return options


def main() -> int:
    options = parse_options()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    try:
        targets = read_targets(RUNBOOK.read_text())
    except ValueError as error:
        raise SystemExit(f"{RUNBOOK}: {error}") from error
    head = {**machine(), "command": " ".join(["python", "perf/targets.py", *sys.argv[1:]])}
    for name, value in head.items():
        print(f"{name}: {value}")
    phases, readings = measure(options)
    verdicts = judge(targets, readings)
    print(f"\n{details(phases)}\n\n{table(verdicts)}")
    if options.json:
        write_json(options.json, {**head, "options": vars(options), **results(verdicts, phases, readings)})
    return status(verdicts)


if __name__ == "__main__":
    sys.exit(main())
