"""Backups over HTTP, with a real engine behind both ways in."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from omendb.engine import Engine
from omendb.server.app import Application
from omendb.storage.fs import OsFileSystem
from omendb.storage.verify import verify
from tests.server.clients import AsgiClient, RsgiClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Client = RsgiClient | AsgiClient


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "data") as engine:
        engine.insert(1, [1, 2], [1.0, 2.0])
        yield engine


@pytest.fixture(params=[RsgiClient, AsgiClient])
def client(request: pytest.FixtureRequest, store: Engine) -> Iterator[Client]:
    made = request.param(Application(store))
    yield made
    made.close()


@pytest.mark.parametrize("body", [None, b"{}", b'{"verify":true}', b'{"name":null}'])
def test_a_backup_without_a_name_gets_one(client: Client, store: Engine, body: bytes | None) -> None:
    reply = client.call("POST", "/admin/backup", body)

    assert reply.status == 200, reply.body
    made = reply.json
    path = store.path / "backups" / made["name"]
    assert made["path"] == str(path)
    assert (made["rows"], made["sequence"], made["segments"]) == (2, 1, 0)
    assert made["linked"] is True
    assert made["verified"] is (body == b'{"verify":true}')
    report = verify(OsFileSystem(), path)
    assert (report.findings, report.rows, report.bytes) == ([], 2, made["bytes"])


def test_a_name_is_used_once_and_listed(client: Client) -> None:
    assert client.call("GET", "/admin/backups").json == {"backups": []}
    made = client.call("POST", "/admin/backup", b'{"name":"monday"}').json

    again = client.call("POST", "/admin/backup", b'{"name":"monday"}')
    listed = client.call("GET", "/admin/backups").json["backups"]

    assert (again.status, again.error["code"]) == (409, "already_exists")
    assert listed == [{name: made[name] for name in listed[0]}]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"name":""}', "name"),
        (b'{"name":".."}', "name"),
        (b'{"name":"../../etc"}', "name"),
        (b'{"name":"/etc/cron.d/x"}', "name"),
        (b'{"name":"a\\u0000b"}', "name"),
        (b'{"name":"a\\n"}', "name"),
        (b'{"name":"a.tmp"}', "name"),
        (b'{"name":7}', "name"),
        (b'{"path":"/tmp/x"}', "path"),
        (b'{"verify":1}', "verify"),
        (b"[]", None),
        (b"nonsense", None),
    ],
)
def test_what_is_no_name_is_refused(client: Client, store: Engine, body: bytes, field: str | None) -> None:
    reply = client.call("POST", "/admin/backup", body)

    assert reply.status == 400
    assert reply.error.get("field") == field
    assert not (store.path / "backups").exists()


def test_no_parameters_are_taken(client: Client) -> None:
    assert client.call("POST", "/admin/backup?name=x").status == 400
    assert client.call("GET", "/admin/backups?name=x").status == 400
    assert client.call("GET", "/admin/backup").status == 405


def test_a_damaged_segment_is_named(client: Client, store: Engine) -> None:
    store.flush()
    segment = next((store.path / "data").glob("*.parquet"))
    data = bytearray(segment.read_bytes())
    data[-5] ^= 1
    segment.write_bytes(data)

    reply = client.call("POST", "/admin/backup", b'{"name":"x","verify":true}')

    assert (reply.status, reply.error["code"]) == (500, "data_corrupted")
    assert segment.name in reply.error["message"]
    assert client.call("GET", "/admin/backups").json == {"backups": []}


def test_a_backup_does_not_wait_for_a_collection(client: Client, store: Engine) -> None:
    """Nor do inserts and queries wait for a backup."""
    entered, may_go_on = threading.Event(), threading.Event()
    gc = store.gc

    def slow_gc():
        entered.set()
        may_go_on.wait()
        return gc()

    store.gc = slow_gc  # type: ignore[method-assign]
    collecting = threading.Thread(target=client.call, args=("POST", "/admin/gc"))
    collecting.start()
    try:
        assert entered.wait(30)
        assert client.call("POST", "/admin/backup", b'{"name":"meanwhile"}').status == 200
    finally:
        may_go_on.set()
        collecting.join()


def test_its_metrics(client: Client, store: Engine) -> None:
    assert b"omendb_last_backup_timestamp_seconds 0.0" in store.metrics.render()
    made = client.call("POST", "/admin/backup").json

    text = store.metrics.render().decode()

    assert "omendb_backup_duration_seconds_count 1.0" in text
    (line,) = [line for line in text.splitlines() if line.startswith("omendb_last_backup_timestamp_seconds ")]
    assert float(line.split()[1]) == pytest.approx(made["unix_seconds"], abs=1e-3)
