"""Where a command's points come from and go to: a server over HTTP, or a data directory in process.

Commands know only this protocol, so that each works with both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from omendb.model import Batch

Page: TypeAlias = "dict[str, Sequence[Any] | NDArray[Any]]"
"""Rows of an answer by columns: name to values, all of equal length, in the order of the output."""


@dataclass(frozen=True, slots=True)
class Question:
    """What `omendb query` asks; None means: not restricted.

    Attributes
    ----------
    start, end : int, optional
        First and last timestamp, both inclusive.
    series_id : tuple of int
        Empty means all series.
    limit : int, optional
        Most rows of the answer.
    step : int, optional
        Width of a window in timestamp units; None asks for points.
    agg : tuple of str
        Aggregates of a window, in the order of the output.
    by_series : bool
        A row a series and window; else a row a window, of the points of all series.
    """

    start: int | None = None
    end: int | None = None
    series_id: tuple[int, ...] = ()
    limit: int | None = None
    step: int | None = None
    agg: tuple[str, ...] = ()
    by_series: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the answer's columns, in order."""
        keys = ("series_id", "timestamp") if self.by_series else ("timestamp",)
        return (*keys, *(("value",) if self.step is None else self.agg))


class Target(Protocol):
    """A place with points; a context manager that opens and closes it.

    Every call raises a class of `omendb.errors`, or `target_http.ServerError`, whose `code` says which.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def insert(self, batch: Batch) -> int:
        """Store points durably; return their number."""
        ...

    def pages(self, question: Question) -> Iterator[Page]:
        """Answer in pages of columns, in order, in bounded memory."""
        ...

    def document(self, question: Question, form: str) -> Iterator[bytes | bytearray]:
        """Answer as the bytes of one JSON document; `form` is "json" (rows) or "columns"."""
        ...

    def stats(self) -> dict[str, Any]:
        """Return the figures of the store."""
        ...

    def index_stats(self) -> dict[str, Any]:
        """Return the figures of the learned index."""
        ...

    def backup(self, name: str | None, *, verify: bool) -> dict[str, Any]:
        """Make a backup below the data directory; return what was made."""
        ...

    def backup_to(self, directory: str, *, verify: bool) -> dict[str, Any]:
        """Make a backup in a directory of its own; return what was made."""
        ...
