"""Prometheus: takes remote writes, and no text."""

from __future__ import annotations

import shutil

import numpy as np
import orjson
import pyarrow as pa

from perf.race import load
from perf.race.contestants.base import HttpContestant, NotOfferedError, encoded
from perf.race.contestants.victoria import debian_version, joined, parse_matrix
from perf.race.data import Dataset, label
from perf.race.process import Process, free_port
from perf.race.queries import Answer, Query

_HEADERS = "Content-Encoding: snappy\r\nContent-Type: application/x-protobuf\r\n"
_ROWS_PER_SERIES = 100  # of a request, so that each request advances all series alike


class Prometheus(HttpContestant):
    """Takes part in the queries; its storage is fed by remote write."""

    key = "prometheus"
    title = "Prometheus"
    acknowledges = "in the WAL, synced every 128 MiB only"
    settings = "remote write receiver on; retention 100 years"
    write_path = ""
    datasets = ("main",)
    rows = frozenset(
        "range_100 range_1000 windows_one windows_all merged windows_short export_json "  # noqa: SIM905
        "disk memory start fair".split()
    )

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("prometheus") else "prometheus is not installed"

    @property
    def version(self) -> str:
        return debian_version("prometheus")

    def start(self) -> None:
        self.port = free_port()
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "prometheus.yml"
        config.write_text("global: {}\n")
        self.process = Process(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={self.directory / 'data'}",
                "--storage.tsdb.retention.time=100y",
                "--web.enable-remote-write-receiver",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            self.directory.with_name(f"{self.directory.name}.log"),
        )
        self.process.wait_until(self._ready)

    def _ready(self) -> bool:
        try:
            load.get(self.port, "/-/ready", 5)
        except load.RequestError:
            return False
        return True

    def load(self, dataset: Dataset) -> None:
        if not _ordered(dataset):
            raise NotOfferedError("takes no points out of order with its default settings")
        longest = int(np.diff(dataset.offsets).max())
        for first in range(0, longest, _ROWS_PER_SERIES):
            for low in range(0, dataset.series_count, 1000):
                body = _remote_write(dataset, first, low, min(low + 1000, dataset.series_count))
                load.post(self.port, "/api/v1/write", body, headers=_HEADERS)

    def settle(self) -> None:
        self.wait_quiet()

    def path(self, query: Query) -> str:
        selector = f"{query.dataset}_value"
        if query.series is not None:
            selector += f'{{series="{label(query.series)}"}}'
        if query.step is None:
            # Both ends of its ranges belong to them.
            text = f"{selector}[{query.stop - 1 - query.start}ms]"
            return encoded("/api/v1/query", query=text, time=f"{(query.stop - 1) / 1000:.3f}")
        window = f"{selector}[{query.step - 1}ms]"
        text = f"avg_over_time({window})"
        if query.merged and query.even:
            text = f"avg({text})"
        elif query.merged:
            text = f"sum(sum_over_time({window})) / sum(count_over_time({window}))"
        return encoded(
            "/api/v1/query_range",
            query=text,
            start=f"{(query.start + query.step - 1) / 1000:.3f}",
            end=f"{(query.stop - 1) / 1000:.3f}",
            step=f"{query.step}ms",
        )

    def parse(self, query: Query, body: bytes) -> Answer:
        if query.step is not None:
            return parse_matrix(query, body)
        series, times, values = [], [], []
        for run in orjson.loads(body)["data"]["result"]:
            points = run["values"]
            times.append(np.rint(np.array([point[0] for point in points]) * 1000).astype(np.int64))
            values.append(np.array([point[1] for point in points]).astype(np.float64))
            series.append(np.full(len(points), int(run["metric"]["series"])))
        return joined(series, times, values)

    def row_template(self) -> tuple[str, str]:
        raise NotOfferedError("has no call that takes one row as text")

    def count(self, measurement: str) -> int:
        path = encoded(
            "/api/v1/query", query=f"sum(count_over_time({measurement}_value[10000d]))", time=2_000_000_000
        )
        result = orjson.loads(load.get(self.port, path))["data"]["result"]
        return int(result[0]["value"][1]) if result else 0


def _ordered(dataset: Dataset) -> bool:
    """Say whether the rows of each series arrive in the order of their times."""
    arrived = dataset.arrival[np.argsort(dataset.series[dataset.arrival], kind="stable")]
    return bool(np.all(np.diff(arrived) > 0))


def _remote_write(dataset: Dataset, first: int, low: int, high: int) -> bytes:
    """Encode rows `first` and following of the series `low` to `high` as a snappy-compressed WriteRequest."""
    parts = []
    for series in range(low, high):
        start = int(dataset.offsets[series]) + first
        stop = min(start + _ROWS_PER_SERIES, int(dataset.offsets[series + 1]))
        if start >= stop:
            continue
        labels = _label("__name__", f"{dataset.name}_value") + _label("series", label(series))
        run = labels + _samples(dataset.timestamp[start:stop], dataset.value[start:stop])
        parts.append(b"\x0a" + _varint(len(run)) + run)
    return pa.compress(b"".join(parts), codec="snappy", asbytes=True)


def _label(name: str, value: str) -> bytes:
    body = b"".join(
        bytes([tag]) + _varint(len(text)) + text for tag, text in ((10, name.encode()), (18, value.encode()))
    )
    return b"\x0a" + _varint(len(body)) + body


def _samples(times: np.ndarray, values: np.ndarray) -> bytes:
    # Times of this age in milliseconds are varints of six bytes, so that all samples have one width.
    assert int(times.min()) >= 1 << 35
    assert int(times.max()) < 1 << 42
    rows = np.empty((len(times), 18), dtype=np.uint8)
    rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 11] = 0x12, 16, 0x09, 0x10
    rows[:, 3:11] = values.astype("<f8").view(np.uint8).reshape(-1, 8)
    for byte in range(6):
        rows[:, 12 + byte] = (times >> (7 * byte)) & 0x7F | (0x80 if byte < 5 else 0)
    return rows.tobytes()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
