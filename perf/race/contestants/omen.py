"""OmenDB, as `omendb serve` runs it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import orjson
import pyarrow as pa

from omendb.config import Settings
from perf.race import load
from perf.race.contestants.base import LOAD_CONNECTIONS, HttpContestant, encoded
from perf.race.data import Dataset, label
from perf.race.process import Process, free_port
from perf.race.queries import Answer, Query

_PROGRAM = str(Path(sys.executable).with_name("omendb"))
_LOAD_BATCH_ROWS = 100_000
_NANOSECONDS = 1_000_000  # in a millisecond


class OmenDB(HttpContestant):
    """With the defaults as shipped."""

    key = "omendb"
    title = "OmenDB"
    acknowledges = "in the WAL, synced, visible"
    settings = "none"
    write_path = "/write?precision=ms"
    environment: ClassVar[dict[str, str]] = {}
    row_format: ClassVar[str] = "columns"

    @classmethod
    def missing(cls) -> str | None:
        return None

    @classmethod
    def prepare(cls) -> None:
        # Compiling takes memory that a server on a machine with compiled kernels never takes.
        subprocess.run([_PROGRAM, "warmup"], check=True, capture_output=True)

    @property
    def version(self) -> str:
        return str(orjson.loads(load.get(self.port, "/admin/stats"))["version"])

    def start(self) -> None:
        self.port = free_port()
        self.process = Process(
            [
                _PROGRAM,
                "serve",
                f"--data-dir={self.directory / 'data'}",
                "--host=127.0.0.1",
                f"--port={self.port}",
                f"--metrics-port={free_port()}",
            ],
            self.directory.with_name(f"{self.directory.name}.log"),
            self.environment,
        )
        self.process.wait_until(self._ready)

    def _ready(self) -> bool:
        try:
            load.get(self.port, "/ready", 5)
        except load.RequestError:
            return False
        return True

    def load(self, dataset: Dataset) -> None:
        load.send_bodies(self.port, "/insert", column_bodies(dataset), LOAD_CONNECTIONS)

    def settle(self) -> None:
        load.post(self.port, "/admin/gc")
        self.wait_quiet()

    def path(self, query: Query) -> str:
        return self._path(query, self.row_format)

    def arrow_path(self, query: Query) -> str:
        """Return the path of the same answer as an Arrow stream."""
        return self._path(query, "arrow")

    def _path(self, query: Query, form: str) -> str:
        parameters: dict[str, object] = {"start": query.start, "end": query.stop - 1, "format": form}
        if query.series is not None:
            parameters["series_id"] = query.series
        if query.step is not None:
            parameters |= {"step": query.step, "agg": "mean"}
        if query.merged:
            parameters["by"] = ""
        return encoded("/query", **parameters)

    def parse(self, query: Query, body: bytes) -> Answer:
        found = orjson.loads(body)
        if found["cursor"] is not None:
            raise load.RequestError("the answer was cut")
        value = found["value"] if query.step is None else found["columns"]["mean"]
        time = np.array(found["timestamp"], dtype=np.int64)
        series = np.zeros_like(time) if query.merged else np.array(found["series_id"], dtype=np.int64)
        return Answer(series, time, np.array(value, dtype=np.float64))

    def parse_arrow(self, body: bytes) -> Answer:
        """Read an Arrow stream."""
        table = pa.ipc.open_stream(io.BytesIO(body)).read_all()
        return Answer(
            table["series_id"].to_numpy().astype(np.int64),
            table["timestamp"].to_numpy().astype(np.int64),
            table["value"].to_numpy().astype(np.float64),
        )

    def named_path(self, query: Query) -> str:
        assert query.series is not None
        parameters: dict[str, object] = {
            "match[]": f'{query.dataset}_value{{series="{label(query.series)}"}}',
            "start": query.start * _NANOSECONDS,
            "end": query.stop * _NANOSECONDS - 1,
            "format": self.row_format,
        }
        return encoded("/query", **parameters)

    def named_answer(self, query: Query) -> Answer:
        found = self.parse(query, load.get(self.port, self.named_path(query)))
        # What came as text has nanoseconds, and an id that the server gave.
        series = np.full(len(found.series), query.series, dtype=np.int64)
        return Answer(series, found.timestamp // _NANOSECONDS, found.value)

    def row_template(self) -> tuple[str, str]:
        return "/insert", '{"series_id":@S,"timestamp":@T000,"value":@V}'

    def count(self, measurement: str) -> int:
        del measurement  # a store of its own holds nothing else
        return int(orjson.loads(load.get(self.port, "/admin/stats"))["record_count"])

    def parquet_files(self) -> str:
        """Return the pattern of its files for readers of Parquet."""
        return str(self.directory / "data" / "data" / "*.parquet")


class LazyOmenDB(OmenDB):
    """Answers after the write, and syncs once a second."""

    key = "omendb-lazy"
    title = "OmenDB, `sync_interval_ms` 1000"
    acknowledges = "in the WAL, synced within a second, visible"
    settings = "`sync_interval_ms` 1000"
    environment: ClassVar[dict[str, str]] = {"OMENDB_SYNC_INTERVAL_MS": "1000"}
    datasets = ("main",)
    rows = frozenset({"single_lazy"})


class OtherOmenDB(OmenDB):
    """With `enable_compression` the other way than its default."""

    key = "omendb-other"
    _other = not getattr(Settings(), "enable_compression", False)
    title = f"OmenDB, `enable_compression` {'on' if _other else 'off'}"
    settings = f"`enable_compression` {'on' if _other else 'off'}"
    environment: ClassVar[dict[str, str]] = {"OMENDB_ENABLE_COMPRESSION": "true" if _other else "false"}
    datasets = ("main",)

    @classmethod
    def missing(cls) -> str | None:
        return (
            None if hasattr(Settings(), "enable_compression") else "OmenDB has no setting enable_compression"
        )


def column_bodies(dataset: Dataset) -> list[bytes]:
    """Write a data set as columns in JSON, as it arrives."""
    bodies = []
    for first in range(0, dataset.rows, _LOAD_BATCH_ROWS):
        rows = dataset.arrival[first : first + _LOAD_BATCH_ROWS]
        columns = {
            "series_id": dataset.series[rows],
            "timestamp": dataset.timestamp[rows],
            "value": dataset.value[rows],
        }
        bodies.append(orjson.dumps(columns, option=orjson.OPT_SERIALIZE_NUMPY))
    return bodies
