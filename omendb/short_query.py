"""Answers queries that touch few rows: one kernel call finds the rows and writes them as JSON.

Such a query takes some microseconds, so that every step around the kernel counts: it is written for that.

Thread safety: every thread has its own workspace.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from omendb.executor import DEFAULTS, NO_SERIES, Sources
from omendb.jit import answer, layout
from omendb.model import INT64_MAX
from omendb.query import RangeQuery, WindowQuery, encode_cursor

if TYPE_CHECKING:
    from collections.abc import Callable

    from omendb.config import Settings
    from omendb.storage.snapshot import Snapshot

SHORT_ROWS = 20_000
"""Rows that a short query touches at most: 1 to 2 ms, less than the way through another thread costs when the
machine is busy."""

_TRIES = 8  # a kernel asks for blocks to be verified one source at a time

_local = threading.local()


class ShortAnswer(NamedTuple):
    """The answer of a short query.

    Attributes
    ----------
    rows : int
        Or windows.
    text : memoryview
        Their JSON, without what surrounds them; holds until the thread's next short query.
    cursor : str or None
        Where to go on when the limit cut the answer.
    """

    rows: int
    text: bytes | memoryview
    cursor: str | None


def answer_short(
    snapshot: Snapshot,
    query: RangeQuery | WindowQuery,
    settings: Settings = DEFAULTS,
    *,
    columns: bool,
) -> ShortAnswer | None:
    """Answer a query that touches few rows, in one kernel call; None when it is not one.

    Parameters
    ----------
    snapshot : Snapshot
    query : RangeQuery or WindowQuery
    settings : Settings, optional
        Of them `prefetch_size` and `enable_simd`.
    columns : bool
        One array a column, instead of one object a row.

    Raises
    ------
    CorruptionError
    """
    try:
        workspace: answer.Workspace = _local.workspace
    except AttributeError:
        workspace = _local.workspace = answer.Workspace(SHORT_ROWS)
    limit = INT64_MAX if query.limit is None else query.limit
    series = query.series
    every_series = series is None
    resume = query.after is not None
    after_series, after_key = query.after or (0, 0)
    kernel: Callable[..., tuple[int, int, int, int, int, int]]
    arguments: tuple[Any, ...]
    if isinstance(query, RangeQuery):
        kernel = answer.answer_rows
        sources = Sources(snapshot, query, min(limit, SHORT_ROWS) + 1, settings)
        arguments = (
            sources.table,
            NO_SERIES if every_series else series,
            every_series,
            query.start,
            query.end,
            after_series,
            after_key,
            resume,
            limit,
            workspace.room,
            workspace.layout(None, columns=columns).fields,
            columns,
        )
    else:
        kernel = answer.answer_windows
        sources = Sources(snapshot, query, SHORT_ROWS + 1, settings)
        arguments = (
            sources.table,
            NO_SERIES if every_series else series,
            every_series,
            query.start,
            query.end,
            query.origin,
            query.step,
            settings.enable_simd,
            after_series,
            after_key,
            resume,
            limit,
            "stddev" in query.aggregates,
            workspace.room,
            workspace.layout(query.aggregates, columns=columns).fields,
            columns,
        )
    with sources.reading() as reading:
        for _ in range(_TRIES):
            count, status, source, start, stop, size = kernel(*arguments)
            if status == layout.STATUS_DONE:
                return ShortAnswer(count, workspace.text[:size], None)
            if status == layout.STATUS_VERIFY:
                sources.verify(source, start, stop, reading)
                continue
            if status == answer.STATUS_LARGE:
                return None
            keys = workspace.integers
            last = int(keys[0, count - 1]), int(keys[1, count - 1])
            return ShortAnswer(count, workspace.text[:size], encode_cursor(query.identity, last))
    return None
