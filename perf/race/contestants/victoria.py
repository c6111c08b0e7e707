"""VictoriaMetrics, single node."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import orjson

from perf.race import load
from perf.race.contestants.base import LOAD_BATCH_ROWS, LOAD_CONNECTIONS, HttpContestant, encoded
from perf.race.data import Dataset, label, line_bodies
from perf.race.process import Process, free_port
from perf.race.queries import Answer, Query


class VictoriaMetrics(HttpContestant):
    """The server to beat."""

    key = "victoria"
    title = "VictoriaMetrics"
    program: ClassVar[str] = "victoria-metrics"
    acknowledges = "parsed, in memory; on disk within seconds, no WAL, not synced"
    settings = (
        "retention 100 years, so that old timestamps are kept; 200 M samples and 1 M series a query; queries "
        "are sent with nocache=1: its cache of earlier results is not used, OmenDB has none"
    )
    write_path = "/write?precision=ms"
    rounds_values = True

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which(cls.program) else f"{cls.program} is not installed"

    @property
    def version(self) -> str:
        found = re.search(rb'short_version="([^"]*)"', load.get(self.port, "/metrics"))
        text = found.group(1).decode() if found else ""
        # Debian's build does not know its own version.
        return text or debian_version("victoria-metrics")

    def start(self) -> None:
        self.port = free_port()
        self.process = Process(
            [
                self.program,
                f"-storageDataPath={self.directory / 'data'}",
                f"-httpListenAddr=127.0.0.1:{self.port}",
                "-retentionPeriod=100y",
                "-search.maxSamplesPerQuery=200000000",
                "-search.maxUniqueTimeseries=1000000",
            ],
            self.directory.with_name(f"{self.directory.name}.log"),
        )
        self.process.wait_until(self._healthy)

    def _healthy(self) -> bool:
        try:
            return load.get(self.port, "/health", 5) == b"OK"
        except load.RequestError:
            return False

    def load(self, dataset: Dataset) -> None:
        bodies = line_bodies(dataset, LOAD_BATCH_ROWS)
        load.send_bodies(self.port, self.write_path, bodies, LOAD_CONNECTIONS)
        load.get(self.port, "/internal/force_flush")

    def settle(self) -> None:
        load.get(self.port, "/internal/force_flush")
        load.get(self.port, "/internal/force_merge")
        self.wait_quiet()

    def path(self, query: Query) -> str:
        selector = f"{query.dataset}_value"
        if query.series is not None:
            selector += f'{{series="{label(query.series)}"}}'
        if query.step is None:
            # Its own fastest form for rows as they were stored.
            return encoded(
                "/api/v1/export",
                **{
                    "match[]": selector,
                    "start": _seconds(query.start),
                    "end": _seconds(query.stop - 1),
                    "reduce_mem_usage": 1,
                },
            )
        # A window is (t - step, t]: with t one millisecond before the next window it holds the same points.
        text = f"avg_over_time({selector}[{query.step}ms])"
        if query.merged and query.even:
            text = f"avg({text})"
        elif query.merged:
            # Sums and counts, as their quotient is the mean of the points for any data.
            text = (
                f"sum(sum_over_time({selector}[{query.step}ms]))"
                f" / sum(count_over_time({selector}[{query.step}ms]))"
            )
        return encoded(
            "/api/v1/query_range",
            query=text,
            start=_seconds(query.start + query.step - 1),
            end=_seconds(query.stop - 1),
            step=f"{query.step}ms",
            nocache=1,
        )

    def parse(self, query: Query, body: bytes) -> Answer:
        if query.step is not None:
            return parse_matrix(query, body)
        series, times, values = [], [], []
        for line in body.splitlines():
            run = orjson.loads(line)
            times.append(np.array(run["timestamps"], dtype=np.int64))
            values.append(np.array(run["values"], dtype=np.float64))
            series.append(np.full(len(times[-1]), int(run["metric"]["series"])))
        return joined(series, times, values)

    def row_template(self) -> tuple[str, str]:
        return self.write_path, "single,series=@S value=@V @T000\n"

    def count(self, measurement: str) -> int:
        load.get(self.port, "/internal/force_flush")
        path = encoded(
            "/api/v1/query",
            query=f"sum(count_over_time({measurement}_value[1000d]))",
            time=2_000_000_000 - 1,
            nocache=1,
        )
        path = path.replace("1000d", "10000d")
        result = orjson.loads(load.get(self.port, path))["data"]["result"]
        return int(result[0]["value"][1]) if result else 0


class NewerVictoriaMetrics(VictoriaMetrics):
    """A newer one, built by whoever runs the race: RACE_VICTORIA_METRICS names the program."""

    key = "victoria-new"
    title = "VictoriaMetrics, newer"
    program = os.environ.get("RACE_VICTORIA_METRICS", "RACE_VICTORIA_METRICS")


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def debian_version(package: str) -> str:
    """Return the upstream part of an installed package's version."""
    for line in Path("/var/lib/dpkg/status").read_text(errors="replace").split("\n\n"):
        if line.startswith(f"Package: {package}\n"):
            found = re.search(r"^Version: (?:\d+:)?([^-+~]*)", line, re.MULTILINE)
            return found.group(1) if found else "unknown"
    return "unknown"


def parse_matrix(query: Query, body: bytes) -> Answer:
    """Read a matrix of PromQL; each time stands for the window that ends with it."""
    assert query.step is not None
    series, times, values = [], [], []
    for run in orjson.loads(body)["data"]["result"]:
        ends = np.rint(np.array([point[0] for point in run["values"]]) * 1000).astype(np.int64)
        times.append(ends - (query.step - 1))
        values.append(np.array([point[1] for point in run["values"]]).astype(np.float64))
        series.append(np.full(len(ends), int(run["metric"].get("series", 0))))
    return joined(series, times, values)


def joined(series: list[np.ndarray], times: list[np.ndarray], values: list[np.ndarray]) -> Answer:
    """Return the rows of all series in one answer."""
    if not series:
        return Answer(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))
    return Answer(np.concatenate(series), np.concatenate(times), np.concatenate(values))
