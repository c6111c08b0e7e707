"""A data directory, opened in process, as the place of points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import msgspec

from omendb.engine import Engine
from omendb.executor import CHUNK_ROWS
from omendb.model import BY_SERIES, Windows
from omendb.query import make_range_query, make_window_query
from omendb.server import encode
from omendb.settings_source import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from omendb.cli.target import Page, Question
    from omendb.executor import Scan, WindowScan
    from omendb.merged import MergedScan
    from omendb.model import Batch, Columns


class StoreTarget:
    """The store in `data_dir`, with the settings of the environment. It is made when it is missing.

    Raises
    ------
    LockedError
        On entering, when another process owns the directory.
    CorruptionError
        On entering, when its files are damaged.
    """

    def __init__(self, data_dir: Path) -> None:
        self._engine = Engine(data_dir, load())

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._engine.close()

    def insert(self, batch: Batch) -> int:
        """Store points durably; return their number."""
        return self._engine.insert(batch.series_id, batch.timestamp, batch.value)

    def pages(self, question: Question) -> Iterator[Page]:
        """Answer in pages of columns, from one snapshot."""
        for rows in self._scan(question).chunks():
            yield _page(rows)

    def document(self, question: Question, form: str) -> Iterator[bytes | bytearray]:
        """Answer as one JSON document in the form of the HTTP API."""
        scan = self._scan(question)
        count = scan.count()
        if form == "json":
            return encode.stream_rows(scan, count, CHUNK_ROWS)
        names = None if question.step is None else question.agg
        return encode.stream_columns(scan, names, count, CHUNK_ROWS, by_series=question.by_series)

    def stats(self) -> dict[str, Any]:
        """Return the figures of the store."""
        figures: dict[str, Any] = msgspec.to_builtins(self._engine.stats())
        return figures

    def index_stats(self) -> dict[str, Any]:
        """Return the figures of the learned index."""
        figures: dict[str, Any] = msgspec.to_builtins(self._engine.index_stats())
        return figures

    def backup(self, name: str | None, *, verify: bool) -> dict[str, Any]:
        """Make a backup below the data directory; return what was made."""
        made: dict[str, Any] = msgspec.to_builtins(self._engine.backup_as(name, verify=verify))
        return made

    def backup_to(self, directory: str, *, verify: bool) -> dict[str, Any]:
        """Make a backup in a directory of its own; return what was made."""
        made: dict[str, Any] = msgspec.to_builtins(self._engine.backup(directory, verify=verify))
        return made

    def _scan(self, question: Question) -> Scan | WindowScan | MergedScan:
        series = list(question.series_id) or None
        if question.step is None:
            return self._engine.scan(make_range_query(question.start, question.end, series, question.limit))
        return self._engine.window_scan(
            make_window_query(
                question.step,
                question.agg,
                question.start,
                question.end,
                series,
                question.limit,
                by=BY_SERIES if question.by_series else (),
            )
        )


def _page(rows: Columns | Windows) -> Page:
    keys: Page = {} if rows.series_id is None else {"series_id": rows.series_id}
    if isinstance(rows, Windows):
        return {**keys, "timestamp": rows.timestamp, **rows.columns}
    return {**keys, "timestamp": rows.timestamp, "value": rows.value}
