"""What the race asks of a contestant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from perf.race import load
from perf.race.data import Dataset
from perf.race.process import ContestantError, Process, anonymous_bytes, disk_bytes, wait_quiet
from perf.race.queries import Answer, Query

SETTLE_SECONDS_MAX = 60.0
LOAD_CONNECTIONS = 2
LOAD_BATCH_ROWS = 10_000


class NotOfferedError(Exception):
    """The contestant has nothing that does this work; the message says so in the table."""


class Contestant(ABC):
    """One database on one directory.

    Attributes
    ----------
    key, title : str
        Short name for options and files; name for the table.
    acknowledges : str
        What its answer to a write means, as documented with the settings used here.
    settings : str
        The settings that differ from its defaults, and why.
    datasets : tuple of str
        The data sets that it takes part with.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    acknowledges: ClassVar[str]
    settings: ClassVar[str]
    datasets: ClassVar[tuple[str, ...]] = ("main", "jitter", "many", "nab")
    rows: ClassVar[frozenset[str]] = frozenset()
    """The only rows it takes part in; empty: all that it can do."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    rounds_values: ClassVar[bool] = False
    """Stored values of more than about 15 digits come back with another last bit."""

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Return what must be installed first, or None."""

    @classmethod
    def prepare(cls) -> None:
        """Do what its documentation says to do once after it was installed.

        Raises
        ------
        ContestantError
            When it is not installed.
        """
        if missing := cls.missing():
            raise ContestantError(missing)

    @abstractmethod
    def start(self) -> None:
        """Start on the directory, and return when a query would be answered."""

    @abstractmethod
    def stop(self) -> None:
        """Stop, in the way that keeps all data."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process whose memory and CPU time count."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The version that runs."""

    @abstractmethod
    def load(self, dataset: Dataset) -> None:
        """Store a data set in the quickest documented way."""

    @abstractmethod
    def settle(self) -> None:
        """Do all the work that waits in the background: flush, merge, compress."""

    @abstractmethod
    def answer(self, query: Query) -> Answer:
        """Answer a query; rows in order."""

    @abstractmethod
    def time(self, query: Query) -> float:
        """Return the seconds that one query takes, to the last byte or row of its answer."""

    def memory_bytes(self) -> int:
        """Return the memory that the kernel cannot take back."""
        return anonymous_bytes(self.pid)

    def disk_bytes(self) -> int:
        """Return the bytes on disk."""
        return disk_bytes(self.directory)


class HttpContestant(Contestant):
    """A server: queries are paths, and their answers bodies."""

    write_path: ClassVar[str]
    """Where line protocol with times in milliseconds is posted."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.process: Process | None = None
        self.port = 0

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None

    @abstractmethod
    def path(self, query: Query) -> str:
        """Return the path, percent-encoded, that asks the query."""

    @abstractmethod
    def parse(self, query: Query, body: bytes) -> Answer:
        """Read the answer to a query."""

    @abstractmethod
    def row_template(self) -> tuple[str, str]:
        """Return path and body of a post of one row, with the marks of `requests.lua`."""

    @abstractmethod
    def count(self, measurement: str) -> int:
        """Return how many rows are stored under a measurement's name."""

    def answer(self, query: Query) -> Answer:
        return self.parse(query, load.get(self.port, self.path(query))).sorted()

    def time(self, query: Query) -> float:
        return load.time_get(self.port, self.path(query))

    def named_path(self, query: Query) -> str:
        """Return the path that asks for rows of a series by its label, as `write_path` brought them."""
        return self.path(query)

    def named_answer(self, query: Query) -> Answer:
        """Answer what `named_path` asks."""
        return self.answer(query)

    def wait_quiet(self) -> None:
        """Wait until the background work is over."""
        wait_quiet(self.pid, SETTLE_SECONDS_MAX)


def encoded(path: str, **parameters: object) -> str:
    """Return a path with percent-encoded parameters; None leaves one out."""
    text = "&".join(
        f"{quote(name)}={quote(str(value), safe='')}"
        for name, value in parameters.items()
        if value is not None
    )
    return f"{path}?{text}"
