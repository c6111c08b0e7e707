"""A server as the place of points: the HTTP API as docs/http-api.md describes it, over kept connections."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

import orjson
import urllib3
from urllib3.util import parse_url

from omendb.errors import InvalidRequestError, OmenError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from urllib3 import BaseHTTPResponse

    from omendb.cli.target import Page, Question
    from omendb.model import Batch

PAGE_ROWS = 100_000
"""Rows asked for at once: a few MB of JSON, so that neither side holds a big answer."""

CONNECT_SECONDS = 5.0
READ_SECONDS = 300.0
"""Longest silence of the server. Generous: an insert waits for a disk, a window query for a scan."""

OK = 200
PROXY_STATUSES = (502, 503, 504)
"""What load balancers answer in their own words while the server behind them is away."""


class UnreachableError(OmenError):
    """No connection to the server, or one that broke: whether the request was done is not known."""

    code = "unreachable"


class ServerError(OmenError):
    """The server's own error.

    Parameters
    ----------
    message : str
        Its sentence.
    code : str
        Its machine-readable kind, as in `omendb.errors`.
    field : str, optional
        The part of the request that it refuses.
    """

    def __init__(self, message: str, code: str, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field and field not in message else message)
        self.code = code
        self.field = field


class HttpTarget:
    """A server. Any number of threads may use it.

    Parameters
    ----------
    url : str
        Such as ``http://127.0.0.1:3000``.
    token : str, optional
        Sent with every request.
    ca_file : Path, optional
        Certificates to check an https server by, instead of the system's.

    Raises
    ------
    InvalidRequestError
        When `url` is no HTTP address, the token cannot be sent, or the file holds no certificates.
    """

    def __init__(self, url: str, token: str | None = None, ca_file: Path | None = None) -> None:
        try:
            parsed = parse_url(url)
        except urllib3.exceptions.LocationParseError as error:
            raise InvalidRequestError(f"--url: {error}", "url") from error
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise InvalidRequestError(f"--url must look like http://HOST:PORT, got {url!r}", "url")
        self._url = url.rstrip("/")
        self._headers: dict[str, str] = {}
        if token is not None:
            if not (token.isascii() and token.isprintable()) or " " in token:
                # Not shown: it is a secret, even if not the right one.
                raise InvalidRequestError("the token has characters that a header cannot carry", "token")
            self._headers["Authorization"] = f"Bearer {token}"
        # Nothing is retried below this class: the import decides what may be sent twice.
        self._pool = urllib3.PoolManager(
            maxsize=16,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            ssl_context=_ssl_context(ca_file) if parsed.scheme == "https" else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.clear()

    def insert(self, batch: Batch) -> int:
        """Store points durably; return their number.

        Raises
        ------
        UnreachableError
            Sending the same batch again is safe: the later write of a point wins, with the same value.
        ServerError
            Nothing of the batch was stored.
        """
        one_series = len(batch.series_id) > 0 and bool((batch.series_id == batch.series_id[0]).all())
        body = orjson.dumps(
            {
                "series_id": int(batch.series_id[0]) if one_series else batch.series_id,
                "timestamp": batch.timestamp,
                "value": batch.value,
            },
            option=orjson.OPT_SERIALIZE_NUMPY,
        )
        answer = self._json("POST", "/insert", body)
        inserted = answer.get("inserted")
        if inserted != len(batch.timestamp):
            raise ServerError(
                f"{len(batch.timestamp)} points were sent, but the server says that it stored {inserted}",
                "wrong_answer",
            )
        return len(batch.timestamp)

    def pages(self, question: Question) -> Iterator[Page]:
        """Answer in pages of columns, each a request of its own that continues at the last cursor."""
        left = question.limit
        cursor = None
        while True:
            page_rows = PAGE_ROWS if left is None else min(PAGE_ROWS, left)
            form = "columns" if question.step is None else "json"
            answer = self._json("GET", _query_path(question, form=form, limit=page_rows, cursor=cursor))
            page = _page(answer, question.columns)
            rows = len(page["timestamp"])
            if rows:
                yield page
            cursor = answer["cursor"]
            if left is not None:
                left -= rows
            if cursor is None or left == 0:
                return

    def document(self, question: Question, form: str) -> Iterator[bytes]:
        """Answer as the server's own JSON document, passed on in pieces as they arrive."""
        path = _query_path(question, form=form, limit=question.limit, cursor=None)
        response = self._request("GET", path, stream=True)
        try:
            if response.status != OK:
                raise _error(response, self._url)
            yield from response.stream(1 << 16)
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"{self._url}: {error}") from error
        finally:
            response.release_conn()

    def stats(self) -> dict[str, Any]:
        """Return the answer of ``/admin/stats``."""
        return self._json("GET", "/admin/stats")

    def index_stats(self) -> dict[str, Any]:
        """Return the answer of ``/admin/index-stats``."""
        return self._json("GET", "/admin/index-stats")

    def backup(self, name: str | None, *, verify: bool) -> dict[str, Any]:
        """Return the answer of ``/admin/backup``."""
        body = {"verify": verify} if name is None else {"name": name, "verify": verify}
        return self._json("POST", "/admin/backup", orjson.dumps(body))

    def backup_to(self, directory: str, *, verify: bool) -> dict[str, Any]:
        """Refuse: a server keeps its backups below its own directory.

        Raises
        ------
        InvalidRequestError
        """
        raise InvalidRequestError(
            f"a server takes the name of a backup, not a path: {directory}; use --data-dir, or copy the "
            "backup from the server's data directory",
            "name",
        )

    def _json(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        response = self._request(method, path, body)
        if response.status != OK:
            raise _error(response, self._url)
        try:
            answer = orjson.loads(response.data)
        except orjson.JSONDecodeError as error:
            raise _foreign(self._url) from error
        if not isinstance(answer, dict):
            raise _foreign(self._url)
        return answer

    def _request(
        self, method: str, path: str, body: bytes | None = None, *, stream: bool = False
    ) -> BaseHTTPResponse:
        headers = self._headers | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            return self._pool.request(
                method, self._url + path, body=body, headers=headers, preload_content=not stream
            )
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"{self._url}: {_reason(error)}") from error


def _ssl_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an SSLError is one
        raise InvalidRequestError(
            f"--ca-file: no certificates can be read from {ca_file}", "ca-file"
        ) from error


def _page(answer: dict[str, Any], columns: tuple[str, ...]) -> Page:
    """Take the columns out of an answer in either form; windows come as rows, points as columns."""
    if "rows" not in answer:
        return {name: answer[name] for name in columns}
    return {name: [row[name] for row in answer["rows"]] for name in columns}


def _query_path(question: Question, form: str, limit: int | None, cursor: str | None) -> str:
    asked = {
        "start": question.start,
        "end": question.end,
        "series_id": ",".join(map(str, question.series_id)) or None,
        "limit": limit,
        "step": question.step,
        "agg": ",".join(question.agg) if question.step is not None else None,
        "by": None if question.by_series else "",
        "format": None if form == "json" else form,
        "cursor": cursor,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return f"/query?{urlencode(given, safe=',')}" if given else "/query"


def _error(response: BaseHTTPResponse, url: str) -> OmenError:
    """Make the error of an answer that is not 200."""
    try:
        told = orjson.loads(response.data)["error"]
        return ServerError(told["message"], told["code"], told.get("field"))
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        if response.status in PROXY_STATUSES:
            return OverloadedError(f"{url}: {response.status} {response.reason or ''}".rstrip())
        return ServerError(f"{url}: {response.status} {response.reason or ''}".rstrip(), "foreign")


def _foreign(url: str) -> ServerError:
    return ServerError(f"{url}: the answer is not OmenDB's; is another server at this address?", "foreign")


def _reason(error: Exception) -> str:
    """Bring urllib3's message ("<HTTPConnection(...) at 0x7f..>: Failed ...") into a person's form."""
    text = str(error)
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        cause = error.__cause__
        return f"cannot connect: {getattr(cause, 'strerror', None) or cause or text}"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "no answer in time"
    return text
