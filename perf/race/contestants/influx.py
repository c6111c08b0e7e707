"""InfluxDB 1.x."""

from __future__ import annotations

import shutil
import time

import numpy as np
import orjson

from perf.race import load
from perf.race.contestants.base import LOAD_BATCH_ROWS, LOAD_CONNECTIONS, HttpContestant, encoded
from perf.race.contestants.victoria import debian_version, joined
from perf.race.data import Dataset, label, line_bodies
from perf.race.process import Process, free_port
from perf.race.queries import Answer, Query

CONFIG = """\
reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"
[meta]
  dir = "{directory}/meta"
[data]
  dir = "{directory}/data"
  wal-dir = "{directory}/wal"
  index-version = "tsi1"
  query-log-enabled = false
  cache-snapshot-write-cold-duration = "10s"
  compact-full-write-cold-duration = "10s"
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
"""


class InfluxDB(HttpContestant):
    """Debian's version of the 1.x line."""

    key = "influxdb"
    title = "InfluxDB"
    acknowledges = "in the WAL, synced (wal-fsync-delay 0)"
    settings = (
        "tsi1 index as its documentation recommends; request and query logs off; cold shards are written "
        "out and compacted after 10 s, so that it settles within the race"
    )
    write_path = "/write?db=race&precision=ms"

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("influxd") else "influxd is not installed"

    @property
    def version(self) -> str:
        return debian_version("influxdb")

    def start(self) -> None:
        self.port = free_port()
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "influxdb.conf"
        config.write_text(CONFIG.format(rpc_port=free_port(), port=self.port, directory=self.directory))
        self.process = Process(
            ["influxd", "-config", str(config)], self.directory.with_name(f"{self.directory.name}.log")
        )
        self.process.wait_until(self._healthy)
        load.post(self.port, encoded("/query", q="CREATE DATABASE race"))

    def _healthy(self) -> bool:
        try:
            load.get(self.port, "/ping", 5)
        except load.RequestError:
            return False
        return True

    def load(self, dataset: Dataset) -> None:
        bodies = line_bodies(dataset, LOAD_BATCH_ROWS)
        load.send_bodies(self.port, self.write_path, bodies, LOAD_CONNECTIONS)

    def settle(self) -> None:
        # The cache of a shard is written out when nothing came for 10 s; until then it looks quiet.
        time.sleep(12)
        self.wait_quiet()

    def path(self, query: Query) -> str:
        where = [f"time >= {query.start}ms", f"time < {query.stop}ms"]
        if query.series is not None:
            where.insert(0, f"\"series\" = '{label(query.series)}'")
        groups = []
        if query.step is not None:
            groups.append(f"time({query.step}ms, {query.start % query.step}ms)")
        if query.series is None and not query.merged:
            groups.append('"series"')
        text = f'SELECT {"value" if query.step is None else "mean(value)"} FROM "{query.dataset}"'
        text += f" WHERE {' AND '.join(where)}"
        if groups:
            text += f" GROUP BY {', '.join(groups)}"
        if query.step is not None:
            text += " fill(none)"
        chunks = {"chunked": "true"} if query.series is None and query.step is None else {}
        return encoded("/query", db="race", epoch="ms", q=text, **chunks)

    def parse(self, query: Query, body: bytes) -> Answer:
        series, times, values = [], [], []
        for line in body.splitlines():
            result = orjson.loads(line)["results"][0]
            if "error" in result:
                raise load.RequestError(result["error"])
            for run in result.get("series", []):
                times.append(np.array([row[0] for row in run["values"]], dtype=np.int64))
                values.append(np.array([row[1] for row in run["values"]], dtype=np.float64))
                name = (query.series or 0) if "tags" not in run else int(run["tags"]["series"])
                series.append(np.full(len(times[-1]), name))
        return joined(series, times, values)

    def row_template(self) -> tuple[str, str]:
        return self.write_path, "single,series=@S value=@V @T000\n"

    def count(self, measurement: str) -> int:
        path = encoded("/query", db="race", q=f'SELECT count(value) FROM "{measurement}"')
        result = orjson.loads(load.get(self.port, path))["results"][0]
        return int(result["series"][0]["values"][0][1]) if "series" in result else 0
