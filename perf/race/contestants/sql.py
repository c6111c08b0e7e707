"""DuckDB on OmenDB's own Parquet files, and ClickHouse (chdb): each in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import pickle
import struct
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from perf.race.contestants.base import Contestant
from perf.race.data import Dataset
from perf.race.process import ContestantError, wait_quiet
from perf.race.queries import Answer, Query

_ROOT = Path(__file__).resolve().parents[3]
_LENGTH = struct.Struct("<Q")


class SqlContestant(Contestant):
    """Talks to `serve_sql` over pipes. Times are taken inside that process, without HTTP."""

    module: ClassVar[str]
    acknowledges = "takes no part in writes"
    datasets = ("main",)
    rows = frozenset(["windows_all", "merged", "windows_short", "export_json", "disk", "memory"])

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._child: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        return (
            None
            if importlib.util.find_spec(cls.module)
            else f"the Python package {cls.module} is not installed"
        )

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def version(self) -> str:
        return str(self._ask("version"))

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.directory.with_name(f"{self.directory.name}.log").open("ab") as log:
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"from {__name__} import serve_sql; serve_sql()",
                    self.module,
                    self.place(),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=_ROOT,
            )
        self._ask("version")

    def place(self) -> str:
        """Return where the engine keeps its files."""
        return str(self.directory)

    def stop(self) -> None:
        if self._child is not None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            try:
                self._child.wait(60)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait(30)
            self._child = None

    def settle(self) -> None:
        wait_quiet(self.pid, 30)

    def answer(self, query: Query) -> Answer:
        _, columns = self._ask("query", self.statement(query), True)
        return Answer(*columns).sorted()

    def time(self, query: Query) -> float:
        seconds, _ = self._ask("query", self.statement(query), False)
        assert isinstance(seconds, float)
        return seconds

    @abstractmethod
    def table(self) -> str:
        """Return what stands after FROM."""

    division: ClassVar[str]

    def statement(self, query: Query) -> str:
        """Return the SQL of a query. Without ORDER BY: the rows are put in order after the time was taken."""
        where = f'"timestamp" >= {query.start} AND "timestamp" < {query.stop}'
        if query.series is not None:
            where += f" AND series_id = {query.series}"
        if query.step is None:
            return f'SELECT series_id, "timestamp", value FROM {self.table()} WHERE {where}'
        quotient = self.division.format(f'("timestamp" - {query.start})', query.step)
        window = f"{query.start} + {quotient} * {query.step}"
        series = "0" if query.merged else "series_id"
        groups = "w" if query.merged else "s, w"
        return (
            f"SELECT {series} AS s, {window} AS w, avg(value) AS m FROM {self.table()} "
            f"WHERE {where} GROUP BY {groups}"
        )

    def _ask(self, *call: object) -> Any:  # noqa: ANN401
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        body = pickle.dumps(call)
        child.stdin.write(_LENGTH.pack(len(body)) + body)
        child.stdin.flush()
        head = child.stdout.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise ContestantError(f"the process of {self.title} ended with status {child.wait(10)}")
        kind, value = pickle.loads(child.stdout.read(_LENGTH.unpack(head)[0]))
        if kind == "error":
            raise ContestantError(value)
        return value


class DuckDB(SqlContestant):
    """Reads the files that OmenDB wrote."""

    key = "duckdb"
    title = "DuckDB on OmenDB's Parquet"
    module = "duckdb"
    settings = "none; in process, no HTTP; reads OmenDB's settled files"
    division = "({} // {})"
    files: str = ""

    def load(self, dataset: Dataset) -> None:
        """Nothing to do: the files are there when OmenDB has settled."""
        del dataset
        if not self.files:
            raise ContestantError("needs OmenDB's files, and OmenDB takes no part in this run")

    def table(self) -> str:
        return f"read_parquet('{self.files}')"

    def disk_bytes(self) -> int:
        return 0


class ClickHouse(SqlContestant):
    """A MergeTree in the order of the queries, in chdb."""

    key = "clickhouse"
    title = "ClickHouse (chdb)"
    module = "chdb"
    settings = "MergeTree ORDER BY (series_id, timestamp), merged to one part; in process, no HTTP"
    division = "intDiv({}, {})"

    def load(self, dataset: Dataset) -> None:
        file = self.directory / "load.parquet"
        columns = {"series_id": dataset.series, "timestamp": dataset.timestamp, "value": dataset.value}
        pq.write_table(pa.table(columns), file)
        self._ask("run", "CREATE DATABASE IF NOT EXISTS race")
        self._ask(
            "run",
            "CREATE TABLE race.points (series_id Int64, timestamp Int64, value Float64) "
            "ENGINE = MergeTree ORDER BY (series_id, timestamp)",
        )
        self._ask("run", f"INSERT INTO race.points SELECT * FROM file('{file}', 'Parquet')")
        file.unlink()

    def settle(self) -> None:
        self._ask("run", "OPTIMIZE TABLE race.points FINAL")
        super().settle()

    def table(self) -> str:
        return "race.points"


def serve_sql() -> None:
    """Answer calls from standard input; the process of an engine runs this."""
    module, place = sys.argv[1:3]
    # Engines may write to standard output (DuckDB draws a bar for what takes long): it goes to the log.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    calls = _duckdb_calls() if module == "duckdb" else _chdb_calls(place)
    while head := sys.stdin.buffer.read(_LENGTH.size):
        name, *arguments = pickle.loads(sys.stdin.buffer.read(_LENGTH.unpack(head)[0]))
        try:
            reply: tuple[str, object] = ("value", calls[name](*arguments))
        except Exception as error:  # whatever the engine raises is told to the race
            reply = ("error", f"{type(error).__name__}: {error}")
        body = pickle.dumps(reply, protocol=5)
        answers.write(_LENGTH.pack(len(body)) + body)
        answers.flush()


def _duckdb_calls() -> dict[str, Callable[..., object]]:
    import duckdb

    connection = duckdb.connect()

    def query(statement: str, wanted: bool) -> tuple[float, object]:
        started = time.perf_counter()
        columns = list(connection.sql(statement).fetchnumpy().values())
        return time.perf_counter() - started, columns if wanted else None

    return {"version": lambda: duckdb.__version__, "query": query}


def _chdb_calls(place: str) -> dict[str, Callable[..., object]]:
    from chdb import session

    connection = session.Session(place)

    def query(statement: str, wanted: bool) -> tuple[float, object]:
        started = time.perf_counter()
        table = connection.query(statement, "ArrowTable")
        columns = [table.column(index).to_numpy() for index in range(table.num_columns)]
        return time.perf_counter() - started, columns if wanted else None

    def run(statement: str) -> None:
        connection.query(statement)

    return {
        "version": lambda: str(connection.query("SELECT version()", "TabSeparated")).strip(),
        "query": query,
        "run": run,
    }
