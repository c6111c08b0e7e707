"""The calls that know series by name: ``POST /write``, ``GET /series``, and ``match[]`` of ``GET /query``.

Thread safety: as for `omendb.server.handlers`.
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from omendb.errors import InvalidRequestError
from omendb.query import decode_cursor, encode_cursor
from omendb.series import parse_selector
from omendb.server import line_protocol, query_string, wire
from omendb.server.commit import WRITTEN, WriteCommit
from omendb.server.question import MATCH
from omendb.server.request import Response

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from omendb.engine import Engine
    from omendb.model import Batch
    from omendb.series import Selector
    from omendb.server.health import Health
    from omendb.server.query_log import QueryLog
    from omendb.server.request import Answer, Request
    from omendb.server.work import Work

WRITE_PARAMETERS = frozenset(("precision", "db", "rp", "u", "p", "consistency"))
"""Of ``POST /write``; all but the first are taken from clients of InfluxDB, and mean nothing here."""
SERIES_PARAMETERS = frozenset((MATCH, "limit", "cursor"))

SERIES_DEFAULT = 10_000
"""Series of an answer, unless `limit` asks for another number."""
SERIES_MAX = 100_000
"""The largest `limit`: an answer is made in memory."""

UNINDEXED_MAX = 2_000
"""When more names than these are to be indexed first, a look-up runs in a thread."""

REMEMBERED_MAX = 4_096
"""Look-ups whose result is kept: dashboards ask for the same series again and again."""
REMEMBERED_IDS_MAX = 128
"""Series of a look-up whose result is kept: of more, the look-up is the smaller part of the work."""
REMEMBERED_CHARACTERS_MAX = 1_024
"""Of the selectors of a look-up whose result is kept."""

INLINE_BYTES = 65_536
"""Bodies up to this size are read in the caller's thread."""
PLAIN_INLINE_BYTES = 524_288
"""The same of bodies with nothing but plain lines of known series: 0.3 ms for 10,000 of them, and one thread
less that wakes and takes the GIL."""

_encode = msgspec.json.Encoder().encode


class NamedSeries:
    """The handlers of one server that know names.

    Parameters
    ----------
    engine : Engine
    health : Health
    work : Work
    log : QueryLog, optional
    """

    def __init__(self, engine: Engine, health: Health, work: Work, log: QueryLog | None = None) -> None:
        self._engine = engine
        self._health = health
        self._work = work
        self._log = log
        self._settings = lambda: engine.settings
        # What selectors found, and how many names were visible then. Names only ever come: with as many, the
        # same series match. Single operations on the dict are atomic, and a lost entry costs a look-up.
        self._remembered: dict[tuple[str, ...], tuple[int, NDArray[np.int64]]] = {}

    def write(self, request: Request) -> Answer:
        """Answer ``POST /write`` once its points are durable and visible."""
        self._health.require_started()
        given = query_string.parse(request.query_string, WRITE_PARAMETERS)
        scale = line_protocol.scale_of(query_string.single(given, "precision"))
        encoding = request.content_encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise InvalidRequestError(f"content-encoding must be gzip or none, got {encoding[:40]!r}")
        is_compressed = encoding.endswith("gzip")
        if not is_compressed and len(request.body) <= INLINE_BYTES:
            return self._commit(self._decode(request, scale, is_compressed=False), request)
        if not is_compressed and len(request.body) <= PLAIN_INLINE_BYTES:
            self._engine.check_writable()
            batch = line_protocol.decode_plain(request.body, scale, time.time_ns(), self._engine.catalog)
            if batch is not None:
                return self._commit(batch, request)

        def run() -> None:
            try:
                batch = self._decode(request, scale, is_compressed=is_compressed)
                response = self._commit(batch, request)
            except Exception as error:
                request.finish(error)
            else:
                if response is not None:
                    request.finish(response)

        self._work.run_decode(run)
        return None

    def _decode(self, request: Request, scale: int, *, is_compressed: bool) -> Batch:
        body = request.body
        if is_compressed:
            body = line_protocol.inflate(body, self._engine.settings.max_body_bytes)
        # What cannot be written must not name series.
        self._engine.check_writable()
        return line_protocol.decode(body, scale, time.time_ns(), self._engine.catalog)

    def _commit(self, batch: Batch, request: Request) -> Response | None:
        count = len(batch.timestamp)
        if count == 0:
            return WRITTEN
        request.rows = count
        self._engine.submit(
            batch, WriteCommit(request, self._engine.metrics, count, self._settings, self._log)
        )
        return None

    def selectors(self, texts: tuple[str, ...]) -> list[Selector]:
        """Read what ``match[]`` asks for.

        Raises
        ------
        InvalidRequestError
        """
        return [parse_selector(text, MATCH) for text in texts]

    def is_quick(self) -> bool:
        """Whether a look-up by labels may run in the caller's thread."""
        return self._engine.catalog.unindexed <= UNINDEXED_MAX

    async def series(self, request: Request) -> Response:
        """Answer ``GET /series``: ids and names."""
        self._health.require_started()
        given = query_string.parse(request.query_string, SERIES_PARAMETERS)
        texts = tuple(given.get(MATCH, ()))
        selectors = self.selectors(texts) if texts else None
        limit = query_string.integer(given, "limit")
        if limit is not None and not 1 <= limit <= SERIES_MAX:
            raise InvalidRequestError(f"limit must be from 1 to {SERIES_MAX}, got {limit}", "limit")
        identity = zlib.crc32(b"series " + "\n".join(texts).encode())
        cursor = query_string.single(given, "cursor")
        after = -1 if cursor is None else decode_cursor(cursor, identity)[0]
        count = SERIES_DEFAULT if limit is None else limit
        return await self._work.start_query(lambda: self._list(selectors, count, after, identity))

    def _list(self, selectors: list[Selector] | None, limit: int, after: int, identity: int) -> Response:
        catalog = self._engine.catalog
        ids = catalog.all_ids() if selectors is None else catalog.select(selectors)
        ids = ids[int(np.searchsorted(ids, after, "right")) :]
        shown = ids[:limit].tolist()
        answer = wire.SeriesAnswer(
            len(shown),
            [
                wire.SeriesName(series_id, name.measurement, name.field, dict(name.tags))
                for series_id, name in ((series_id, catalog.name(series_id)) for series_id in shown)
            ],
            encode_cursor(identity, (shown[-1], 0)) if len(ids) > limit else None,
        )
        return Response(200, _encode(answer))

    def remembered(self, texts: tuple[str, ...]) -> NDArray[np.int64] | None:
        """Return what `select` would, when it is known; not to be changed."""
        found = self._remembered.get(texts)
        return None if found is None or found[0] != self._engine.catalog.visible else found[1]

    def select(self, texts: tuple[str, ...], selectors: list[Selector]) -> NDArray[np.int64]:
        """Return the ids of the series that match, ascending; not to be changed.

        Parameters
        ----------
        texts : tuple of str
            What `selectors` were read from.
        selectors : list of Selector
        """
        # Before the look-up: names that come meanwhile make what is remembered old, not wrong.
        visible = self._engine.catalog.visible
        ids = self._engine.catalog.select(selectors)
        if len(ids) <= REMEMBERED_IDS_MAX and sum(map(len, texts)) <= REMEMBERED_CHARACTERS_MAX:
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[texts] = (visible, ids)
        return ids
