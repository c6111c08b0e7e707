"""The API's description in OpenAPI 3.1, made from the wire types, the errors and the table of calls.

The types of bodies and answers are those that are decoded and encoded, or stand here beside what writes
them by hand. What no type tells (summaries, parameters, which errors a call can give) stands in
`OPERATIONS`; a call without an entry there cannot be described, and a test provokes the rest.

Thread safety: everything here belongs to the event loop's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import UNSET
from msgspec import UnsetType as Unset

from omendb import errors
from omendb.config import SPECS
from omendb.metrics import package_version
from omendb.model import AGGREGATES, INT64_MAX, INT64_MIN
from omendb.reports import BackupReport, Backups, GcReport, IndexStats, RetrainReport, SettingState, Stats
from omendb.server.entrance import OPEN_PATHS
from omendb.server.health import NotReady
from omendb.server.line_protocol import PRECISIONS
from omendb.server.named_series import SERIES_DEFAULT, SERIES_MAX
from omendb.server.problems import STATUSES, Problem
from omendb.server.request import Response
from omendb.server.wire import BackupBody, EmptyBody, Int64, Point, RetrainBody, SeriesAnswer, SeriesId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omendb.server.request import Request
    from omendb.server.routes import Route

OPENAPI_VERSION = "3.1.0"
CURSOR_PATTERN = "^[A-Za-z0-9_-]{34}$"

Schema = dict[str, Any]


class PointColumns(msgspec.Struct, forbid_unknown_fields=True):
    """Columns of equal length; `series_id` may be one number for all of them."""

    series_id: SeriesId | list[SeriesId]
    timestamp: list[Int64]
    value: list[float]


class Inserted(msgspec.Struct, forbid_unknown_fields=True):
    """How many points were stored; `synced_within_ms` only with `sync_interval_ms` above 0."""

    inserted: int
    synced_within_ms: int | Unset = UNSET


class RowsAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """Rows, one object each."""

    count: int
    rows: list[Point]
    cursor: str | None


class ColumnsAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """Rows, one array a column."""

    count: int
    series_id: list[SeriesId]
    timestamp: list[Int64]
    value: list[float]
    cursor: str | None


class WindowRow(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A window, named by its first timestamp, with the aggregates that were asked for.

    `series_id` is missing where all series were merged.
    """

    series_id: SeriesId | Unset = UNSET
    timestamp: Int64
    count: int | Unset = UNSET
    sum: float | Unset | None = UNSET
    min: float | Unset | None = UNSET
    max: float | Unset | None = UNSET
    mean: float | Unset | None = UNSET
    first: float | Unset | None = UNSET
    last: float | Unset | None = UNSET
    stddev: float | Unset | None = UNSET


class WindowRowsAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """Windows, one object each."""

    count: int
    rows: list[WindowRow]
    cursor: str | None


class WindowColumns(msgspec.Struct, forbid_unknown_fields=True):
    """The aggregates that were asked for, one array each."""

    count: list[int] | Unset = UNSET
    sum: list[float | None] | Unset = UNSET
    min: list[float | None] | Unset = UNSET
    max: list[float | None] | Unset = UNSET
    mean: list[float | None] | Unset = UNSET
    first: list[float | None] | Unset = UNSET
    last: list[float | None] | Unset = UNSET
    stddev: list[float | None] | Unset = UNSET


class WindowColumnsAnswer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Windows, one array a column.

    `series_id` is missing where all series were merged.
    """

    count: int
    series_id: list[SeriesId] | Unset = UNSET
    timestamp: list[Int64]
    columns: WindowColumns
    cursor: str | None


class Alive(msgspec.Struct, forbid_unknown_fields=True):
    """The process answers."""

    alive: bool


class Ready(msgspec.Struct, forbid_unknown_fields=True):
    """The store is recovered and takes writes."""

    ready: bool


class Index(msgspec.Struct, forbid_unknown_fields=True):
    """What this is, and what can be called."""

    name: str
    version: str
    calls: list[str]


class ErrorBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of every error."""

    error: Problem


_QUERY_ANSWERS = (RowsAnswer, ColumnsAnswer, WindowRowsAnswer, WindowColumnsAnswer)
_TYPES = (
    *(Point, PointColumns, RetrainBody, EmptyBody, Inserted, *_QUERY_ANSWERS),
    *(BackupBody, BackupReport, Backups, SeriesAnswer),
    *(Stats, IndexStats, SettingState, RetrainReport, GcReport, Alive, Ready, NotReady, Index, ErrorBody),
)

_INT64: Schema = {"type": "integer", "minimum": INT64_MIN, "maximum": INT64_MAX}
_FROM_1: Schema = _INT64 | {"minimum": 1}
_SERIES: Schema = {"type": "array", "minItems": 1, "items": _INT64 | {"minimum": 0}}
_AGGREGATES: Schema = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": {"enum": list(AGGREGATES)},
}
ARROW = "application/vnd.apache.arrow.stream"
_FORMATS: Schema = {"enum": ["rows", "columns", "arrow"], "default": "rows"}
_BY: Schema = {"enum": ["series_id", ""], "default": "series_id"}

_MATCH: Schema = {
    "type": "array",
    "minItems": 1,
    # A name without braces: JSON Schema could say more of selectors, and nobody could read it.
    "items": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
}

PARAMETERS: dict[str, tuple[Schema, str]] = {
    "start": (_INT64, "First timestamp of the range, inclusive."),
    "end": (_INT64, "Last timestamp of the range, inclusive."),
    "series_id": (_SERIES, "One or several series; commas are taken too. All without it."),
    "match[]": (_MATCH, "Named series; one of several, when it is given more than once."),
    "limit": (_FROM_1, "Rows (or windows) of the answer at most."),
    "cursor": ({"type": "string", "pattern": CURSOR_PATTERN}, "From an earlier answer to the same query."),
    "format": (_FORMATS, "One object a row, one array a column, or an Arrow stream."),
    "step": (_FROM_1, "Length of a window in timestamp units: asks for aggregates instead of rows."),
    "agg": (_AGGREGATES, "Aggregates of the windows; needs `step`. The mean without it."),
    "by": (_BY, "A row a series and window; empty: a row a window, of all series together. Needs `step`."),
}
"""Schema and description of each parameter of ``GET /query``."""


_IGNORED = "Of InfluxDB; accepted, and without a meaning here."
WRITE_PARAMETERS: dict[str, tuple[Schema, str]] = {
    "precision": ({"enum": list(PRECISIONS), "default": "ns"}, "Unit of the timestamps in the body."),
    **{
        name: ({"type": "string", "minLength": 1}, _IGNORED) for name in ("db", "rp", "u", "p", "consistency")
    },
}
"""The same of ``POST /write``."""

SERIES_PARAMETERS: dict[str, tuple[Schema, str]] = {
    "match[]": PARAMETERS["match[]"],
    "limit": (_FROM_1 | {"maximum": SERIES_MAX, "default": SERIES_DEFAULT}, "Series of the answer at most."),
    "cursor": PARAMETERS["cursor"],
}
"""The same of ``GET /series``."""


class Operation(NamedTuple):
    """What the description says of one call.

    Attributes
    ----------
    summary : str
    answer : dict or None
        Schema of the body of 200; None for 204, which has none.
    statuses : tuple of int
        Of its errors, without those that come with reading a body.
    body : dict or None
        Schema of the request's body.
    body_required : bool
    parameters : dict
        As `PARAMETERS`.
    not_ready : dict or None
        Schema of the body of 503 where it is not an error's.
    binary : tuple of str
        Other media types of the answer.
    media_type : str
        Of the request's body.
    """

    summary: str
    answer: Schema | None
    statuses: tuple[int, ...] = ()
    body: Schema | None = None
    body_required: bool = False
    parameters: Mapping[str, tuple[Schema, str]] = {}
    not_ready: Schema | None = None
    binary: tuple[str, ...] = ()
    media_type: str = "application/json"


def _ref(kind: type) -> Schema:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


_POINTS: Schema = {"anyOf": [_ref(Point), {"type": "array", "items": _ref(Point)}, _ref(PointColumns)]}
_CONFIG: Schema = {
    "type": "object",
    "properties": {name: _ref(SettingState) for name in SPECS},
    "required": list(SPECS),
    "additionalProperties": False,
}

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/"): Operation("Name, version, and the list of calls.", _ref(Index)),
    ("POST", "/insert"): Operation(
        "Stores points; answers when they are durable and visible.",
        _ref(Inserted),
        (400, 500, 503, 507),
        body=_POINTS,
        body_required=True,
    ),
    ("POST", "/write"): Operation(
        "Stores points in InfluxDB's line protocol; answers when they are durable and visible.",
        None,
        (400, 500, 503, 507),
        body={"type": "string"},
        parameters=WRITE_PARAMETERS,
        media_type="text/plain",
    ),
    ("GET", "/series"): Operation(
        "Named series: ids, measurements, fields and tags.",
        _ref(SeriesAnswer),
        (400, 500, 503),
        parameters=SERIES_PARAMETERS,
    ),
    ("GET", "/query"): Operation(
        "Rows of a range, or aggregates of windows.",
        {"anyOf": [_ref(kind) for kind in _QUERY_ANSWERS]},
        (400, 500, 503),
        parameters=PARAMETERS,
        binary=(ARROW,),
    ),
    ("GET", "/admin/stats"): Operation("What the store holds.", _ref(Stats), (400, 500, 503)),
    ("GET", "/admin/index-stats"): Operation(
        "What the learned index does.", _ref(IndexStats), (400, 500, 503)
    ),
    ("GET", "/admin/config"): Operation("The settings, and where they come from.", _CONFIG, (400, 500, 503)),
    ("POST", "/admin/retrain-index"): Operation(
        "Fits all models anew.", _ref(RetrainReport), (400, 500, 503, 507), body=_ref(RetrainBody)
    ),
    ("POST", "/admin/gc"): Operation(
        "Compacts, drops superseded rows, gives space and memory back.",
        _ref(GcReport),
        (400, 500, 503, 507),
        body=_ref(EmptyBody),
    ),
    ("POST", "/admin/backup"): Operation(
        "Copies the store, as it is now, into a directory below its own.",
        _ref(BackupReport),
        (400, 409, 500, 503, 507),
        body=_ref(BackupBody),
    ),
    ("GET", "/admin/backups"): Operation("The backups that there are.", _ref(Backups), (400, 500, 503)),
    ("GET", "/health"): Operation("Alive.", _ref(Alive)),
    ("GET", "/ready"): Operation("Recovered and writable.", _ref(Ready), (503,), not_ready=_ref(NotReady)),
    ("GET", "/openapi.json"): Operation("This description.", {"type": "object"}),
}
"""What is described, by method and path."""

BODY_STATUSES = (408, 413)
"""Errors of every call that reads a body."""

ENTRY_STATUSES = (401, 403, 503)
"""Errors of every call but those for probes: no token, not its role, no connection left."""

_TOKEN: Schema = {
    "type": "http",
    "scheme": "bearer",
    "description": "With the server's setting `require_tokens`. Roles: read for GET, write for what stores "
    "points, admin for /admin; an admin's token allows everything.",
}

_TEXT = """A durable time-series database. A point is (series_id, timestamp, value).

A path that is not served is answered 404, a method that a path does not take 405 with `Allow`. Requests
that are not HTTP (400), whose target is too long (414) or that have too many header lines (431) are refused
without a body."""


class Description:
    """The answer of ``GET /openapi.json``, made when it is first asked for.

    Parameters
    ----------
    calls : dict of str to dict of str to Route
        Routes by path, then method, as `omendb.server.routes.Routes` takes them; may still grow.
    """

    def __init__(self, calls: Mapping[str, Mapping[str, Route]]) -> None:
        self._calls = calls
        self._response: Response | None = None

    def answer(self, request: Request) -> Response:
        """Answer ``GET /openapi.json``."""
        if self._response is None:
            self._response = Response(200, msgspec.json.encode(describe(self._calls)))
        return self._response


def describe(calls: Mapping[str, Mapping[str, Route]]) -> Schema:
    """Return the description of a table of calls.

    Raises
    ------
    KeyError
        `OPERATIONS` does not know one of them.
    """
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "OmenDB", "version": package_version(), "description": _TEXT},
        "paths": {path: _path_item(path, methods) for path, methods in calls.items()},
        "components": {"schemas": _schemas(), "securitySchemes": {"token": _TOKEN}},
        # Either none or a token: which of the two is a setting of the server.
        "security": [{}, {"token": []}],
    }


def _path_item(path: str, methods: Mapping[str, Route]) -> Schema:
    item: Schema = {}
    is_open = path in OPEN_PATHS
    entry = () if is_open else ENTRY_STATUSES
    security: Schema = {"security": []} if is_open else {}
    for method, route in methods.items():
        described = _operation(OPERATIONS[method, path], entry, takes_body=route.takes_body) | security
        item[method.lower()] = described
        if method == "GET":  # answers HEAD too: the same without bodies
            answers = {
                status: {name: value for name, value in answer.items() if name != "content"}
                for status, answer in described["responses"].items()
            }
            item["head"] = described | {"responses": answers}
    allow = {"Allow": {"description": "The methods that the path takes.", "schema": {"type": "string"}}}
    item["options"] = {
        "summary": "Which methods the path takes.",
        "responses": {
            "204": {"description": "No content.", "headers": allow},
            **{str(status): _error(status) for status in entry},
        },
    } | security
    return item


def _operation(operation: Operation, entry: tuple[int, ...], *, takes_body: bool) -> Schema:
    assert takes_body == (operation.body is not None), operation.summary
    statuses = sorted({*operation.statuses, *(BODY_STATUSES if takes_body else ()), *entry})
    responses: Schema = {"204": {"description": "Done."}}
    if operation.answer is not None:
        responses = {"200": {"description": "Done.", "content": _json(operation.answer)}}
    for kind in operation.binary:
        responses["200"]["content"][kind] = {"schema": {"type": "string", "format": "binary"}}
    for status in statuses:
        responses[str(status)] = _error(status)
    if operation.not_ready is not None:
        responses["503"] |= {"description": "Not yet.", "content": _json(operation.not_ready)}
    described: Schema = {"summary": operation.summary, "responses": responses}
    if operation.parameters:
        described["parameters"] = [
            {"name": name, "in": "query", "description": text, "schema": schema}
            for name, (schema, text) in operation.parameters.items()
        ]
    if operation.body is not None:
        content = {operation.media_type: {"schema": operation.body}}
        described["requestBody"] = {"content": content, "required": operation.body_required}
    return described


def _error(status: int) -> Schema:
    # A store that another process owns is an error of the start, never of a call.
    kinds = [kind for kind, given in STATUSES.items() if given == status and kind is not errors.LockedError]
    codes = sorted({_code(kind) for kind in kinds})
    error: Schema = {
        "description": f"`code` is {' or '.join(codes)}.",
        "content": _json(_ref(ErrorBody)),
    }
    if status in (401, 403):
        error["headers"] = {"WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}}}
    if status == 503:
        error["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
        }
    return error


def _code(kind: type[BaseException]) -> str:
    return kind.code if issubclass(kind, errors.OmenError) else errors.OmenError.code


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _schemas() -> Schema:
    """Return the schemas of all types, with the first paragraphs of their docstrings."""
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    for schema in schemas.values():
        schema["description"] = schema["description"].partition("\n\n")[0]
    # The type takes any integer, and the setting its range: a value beyond it is `invalid_setting`.
    bounds = SPECS["max_error"]
    number, _ = schemas["RetrainBody"]["properties"]["max_error"]["anyOf"]
    number |= {"minimum": bounds.low, "maximum": bounds.high}
    return schemas
