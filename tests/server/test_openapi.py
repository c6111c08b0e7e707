"""`/openapi.json` names every call, parameter and status that there is, and none that there is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from omendb import errors
from omendb.model import AGGREGATES
from omendb.reports import Status
from omendb.server import openapi, problems
from omendb.server.handlers import CALLS
from omendb.server.named_series import SERIES_PARAMETERS, WRITE_PARAMETERS
from omendb.server.question import PARAMETERS as QUERY_PARAMETERS
from omendb.server.wire import Point, Points
from tests.server.clients import request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.server.clients import AsgiClient, RsgiClient
    from tests.server.fake_engine import FakeEngine

    Client = RsgiClient | AsgiClient

PARAMETERS = {
    ("/query", "get"): QUERY_PARAMETERS,
    ("/series", "get"): SERIES_PARAMETERS,
    ("/write", "post"): WRITE_PARAMETERS,
}
BODIES = {"/insert": b'{"series_id":1,"timestamp":10,"value":1.5}', "/write": b"cpu,host=a usage=1.5 10\n"}
STARTED = (errors.NotReadyError("not yet"), errors.ClosedError("closed"))
ANY = (*STARTED, errors.CorruptionError("segment", 1, "damaged"), ZeroDivisionError("a bug"))
FLUSHING = (*ANY, errors.DiskFullError("full"), errors.WalFailedError("failed"))
ENGINE_ERRORS: dict[str, tuple[str | None, tuple[Exception, ...]]] = {
    "/": (None, ()),
    "/insert": ("submit", (*FLUSHING, errors.OverloadedError("busy"), errors.InvalidRequestError("no"))),
    "/write": ("submit", (*FLUSHING, errors.OverloadedError("busy"), errors.InvalidRequestError("no"))),
    "/series": ("catalog", (*ANY, errors.OverloadedError("busy"))),
    "/query": ("scan", (*ANY, errors.OverloadedError("busy"))),
    "/admin/stats": ("stats", ANY),
    "/admin/index-stats": ("index_stats", ANY),
    "/admin/config": ("configuration", ANY),
    "/admin/retrain-index": ("retrain", (*FLUSHING, errors.ConfigError("max_error", -1, "too small"))),
    "/admin/gc": ("gc", FLUSHING),
    "/admin/backup": ("backup_as", (*FLUSHING, errors.AlreadyExistsError("is there"))),
    "/admin/backups": ("backups", ANY),
    "/health": (None, ()),
    "/ready": (None, ()),
    "/openapi.json": (None, ()),
}
"""What each call needs of the engine, and how that may fail."""


def document(client: Client) -> dict[str, Any]:
    reply = client.call("GET", "/openapi.json")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    described = reply.json
    assert isinstance(described, dict)
    return described


def test_every_reference_leads_somewhere_and_every_type_is_used(client: Client) -> None:
    described = document(client)

    text = msgspec.json.encode(described).decode()
    named = set(re.findall(r'"#/components/schemas/(\w+)"', text))

    assert described["openapi"].startswith("3.1.")
    assert named == described["components"]["schemas"].keys()


def test_every_path_and_method_of_the_table(client: Client) -> None:
    paths = document(client)["paths"]

    for path, item in paths.items():
        allowed = client.call("OPTIONS", path).headers["allow"].split(", ")
        assert sorted(item) == sorted(method.lower() for method in allowed)
    listed = {tuple(call.split()) for call in CALLS} | {("GET", "/")}
    assert listed == openapi.OPERATIONS.keys()
    assert {path for _, path in listed} == paths.keys()


def test_a_call_without_a_description_is_an_error() -> None:
    with pytest.raises(KeyError, match="/new"):
        openapi.describe({"/new": {"GET": None}})  # type: ignore[dict-item]


def test_every_parameter(client: Client) -> None:
    for path, item in document(client)["paths"].items():
        for method, operation in item.items():
            names = {parameter["name"] for parameter in operation.get("parameters", ())}
            expected = PARAMETERS.get((path, "get" if method == "head" else method), frozenset())
            assert names == expected


def test_every_aggregate() -> None:
    assert openapi.PARAMETERS["agg"][0]["items"]["enum"] == list(AGGREGATES)
    for answer, others in ((openapi.WindowRow, {"series_id", "timestamp"}), (openapi.WindowColumns, set())):
        assert set(answer.__struct_fields__) == {*AGGREGATES, *others}


def test_the_forms_of_points_have_the_fields_that_are_decoded() -> None:
    for form in (Point, openapi.PointColumns):
        assert form.__struct_fields__ == Points.__struct_fields__


def test_head_is_described_as_get_without_bodies(client: Client) -> None:
    for item in document(client)["paths"].values():
        if "get" in item:
            assert item["head"]["responses"].keys() == item["get"]["responses"].keys()
            assert "content" not in str(item["head"])


@pytest.mark.parametrize(("method", "path"), openapi.OPERATIONS, ids=" ".join)
def test_exactly_the_statuses_that_can_be_provoked(
    method: str,
    path: str,
    rsgi: RsgiClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    responses = document(rsgi)["paths"][path][method.lower()]["responses"]
    body = BODIES.get(path) or (b"{}" if method == "POST" else None)
    name, failures = ENGINE_ERRORS[path]

    replies = [rsgi.call(method, path, body), rsgi.call(method, path + "?no=1", body)]
    if method == "POST":
        replies.append(rsgi.call(method, path, b"[{}]"))
        for size in (100, 10**9):
            with rsgi.connect() as wire:
                wire.send(request(method, path, f"content-length: {size}", body=b"{"))
                replies.append(wire.reply())
    for failure in failures:

        def fail(*arguments: object, failure: Exception = failure, **options: object) -> None:
            raise failure

        assert name is not None
        with monkeypatch.context() as patch:
            if name == "catalog":  # which is a property of the real engine
                patch.setattr(type(engine), name, property(fail), raising=False)
            else:
                patch.setattr(engine, name, fail)
            replies.append(rsgi.call(method, path, body))
    engine.status = Status("starting", "replaying the log", 0.5)
    replies.append(rsgi.call(method, path, body))
    (tmp_path / "read").write_text(f"{'r' * 16}\n")
    (tmp_path / "write").write_text(f"{'w' * 16}\n")
    engine.settings = engine.settings.with_changes(require_tokens=True, token_dir=str(tmp_path))
    for token in ("r" * 16, "w" * 16, "x" * 16):
        reply = rsgi.call(method, path, body, {"authorization": f"Bearer {token}"})
        replies.append(reply)
    engine.settings = engine.settings.with_changes(require_tokens=False, max_connections=1)
    with rsgi.connect() as first:
        first.send(request("GET", "/openapi.json"))
        first.reply()
        replies.append(rsgi.call(method, path, body))

    assert {str(reply.status) for reply in replies} == responses.keys()
    for reply in replies:
        described = responses[str(reply.status)]
        if reply.status == 204:
            assert "content" not in described
            assert reply.body == b""
            continue
        assert described["content"].keys() - {openapi.ARROW} == {reply.headers["content-type"]}
        assert ("retry-after" in reply.headers) == (reply.status == 503)
        assert ("www-authenticate" in reply.headers) == (reply.status in (401, 403))
        schema = described["content"]["application/json"]["schema"]
        if schema == {"$ref": "#/components/schemas/ErrorBody"}:
            error = msgspec.json.decode(reply.body, type=openapi.ErrorBody).error
            assert error.code in described["description"]


def test_every_error_has_a_place() -> None:
    described = {status for operation in openapi.OPERATIONS.values() for status in operation.statuses}

    assert {404, 405, *openapi.BODY_STATUSES, *openapi.ENTRY_STATUSES, *described} == set(
        problems.STATUSES.values()
    )
