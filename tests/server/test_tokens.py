"""Who may call what: tokens, roles, files that change, and what the log must not tell."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from omendb.config import Settings
from omendb.errors import ForbiddenError, UnauthorizedError
from omendb.metrics import LabeledCounter
from omendb.server import tokens
from omendb.server.entrance import role_of
from omendb.server.handlers import CALLS
from omendb.server.tokens import LOGGED_PER_SECOND_MAX, Role, Tokens
from tests.server.clients import request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.server.clients import AsgiClient, RsgiClient
    from tests.server.fake_engine import FakeEngine

    Client = RsgiClient | AsgiClient

READER, WRITER, ADMIN = "reader-0123456789", "writer-0123456789", "admin-01234567890"
CLIENT = "10.0.0.1:4711"


def mount(directory: Path, **files: str) -> None:
    """Publish files as the kubelet does: a new directory, then a swap of the symlink to it."""
    directory.mkdir(exist_ok=True)
    number = len(list(directory.glob("..v*")))
    version = directory / f"..v{number}"
    version.mkdir()
    for name, text in files.items():
        (version / name).write_text(text)
    (directory / "..data.tmp").symlink_to(version.name)
    (directory / "..data.tmp").replace(directory / "..data")
    for name in ("read", "write", "admin"):
        if name in files and not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
        elif name not in files:
            (directory / name).unlink(missing_ok=True)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Guard:
    """Tokens in a directory, and their clock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.failures = LabeledCounter("omendb_auth_failures_total", "", ("reason",))
        settings = Settings(require_tokens=True, token_dir=str(directory))
        self.tokens = Tokens(lambda: settings, self.failures, self.clock)

    def allows(self, token: str | None) -> set[Role]:
        """Return what a token is good for."""
        self.clock.now += tokens.RELOAD_SECONDS
        allowed = set()
        for role in Role:
            try:
                self.tokens.check(role, None if token is None else f"Bearer {token}", CLIENT)
            except (UnauthorizedError, ForbiddenError):
                continue
            allowed.add(role)
        return allowed

    def refusals(self) -> dict[str, float]:
        return {sample.labels["reason"]: sample.value for sample in self.failures.family().samples}


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    mount(tmp_path / "tokens", read=f"{READER}\n", write=f"{WRITER}\n", admin=f"{ADMIN}\n")
    return Guard(tmp_path / "tokens")


def test_roles(guard: Guard) -> None:
    assert guard.allows(READER) == {Role.READ}
    assert guard.allows(WRITER) == {Role.WRITE}
    assert guard.allows(ADMIN) == set(Role)
    assert guard.allows(None) == guard.allows("unknown") == guard.allows(READER[:-1]) == set()
    assert guard.refusals() == {"missing": 3, "role": 4, "unknown": 6}


def test_a_file_holds_several_tokens_and_comments(tmp_path: Path) -> None:
    mount(
        tmp_path / "t",
        read=f"# of the dashboards\n\n{READER}  # Grafana\n\tother-0123456789==\r\n",
        write=READER,
    )
    guard = Guard(tmp_path / "t")

    assert guard.allows(READER) == {Role.READ, Role.WRITE}
    assert guard.allows("other-0123456789==") == {Role.READ}
    assert guard.allows("#") == guard.allows("Grafana") == guard.allows("") == set()


@pytest.mark.parametrize("swapped", [True, False], ids=["swap of the mount", "plain files"])
def test_files_that_change_count_at_once(guard: Guard, *, swapped: bool) -> None:
    assert guard.allows(READER) == {Role.READ}

    if swapped:
        mount(guard.directory, read="new-reader-012345\n", write=f"{WRITER}\n", admin=f"{ADMIN}\n")
    else:
        (guard.directory / "read").write_text("new-reader-012345\n")

    assert guard.allows(READER) == set()
    assert guard.allows("new-reader-012345") == {Role.READ}
    assert guard.allows(WRITER) == {Role.WRITE}


def test_what_is_not_there_allows_nothing(
    guard: Guard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = Guard(tmp_path / "none")
    assert nothing.allows(ADMIN) == set()
    assert nothing.refusals() == {"no_tokens": 3}
    assert f"there is no token in {tmp_path / 'none'}: nothing is allowed" in caplog.text
    assert caplog.records[0].levelname == "ERROR"

    assert guard.allows(ADMIN) == set(Role)
    (guard.directory / "..data").unlink()

    assert guard.allows(ADMIN) == set()


def test_a_secret_that_comes_later_is_found(tmp_path: Path) -> None:
    guard = Guard(tmp_path / "late")
    assert guard.allows(READER) == set()

    mount(tmp_path / "late", read=READER)

    assert guard.allows(READER) == {Role.READ}


def test_files_that_cannot_be_used_are_named_and_allow_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "t"
    directory.mkdir()
    (directory / "read").write_bytes(b"\xff\xfesecret-token-0123\n")
    (directory / "write").mkdir()
    (directory / "admin").write_text("two words-0123456789\nshort\n")

    guard = Guard(directory)

    assert guard.allows("short") == set(Role)
    assert guard.allows("words-0123456789") == set()
    assert f"cannot read {directory / 'read'}, its tokens allow nothing: not UTF-8 text" in caplog.text
    assert f"cannot read {directory / 'write'}, its tokens allow nothing: Is a directory" in caplog.text
    assert f"{directory / 'admin'}, line 1: not a token" in caplog.text
    assert f"{directory / 'admin'}, line 2: a token of fewer than 16 characters" in caplog.text
    for secret in ("secret", "two words", "short\n"):
        assert secret not in caplog.text


@pytest.mark.parametrize(
    "header",
    [
        "Basic cmVhZGVyOnNlY3JldA==",
        READER,
        "Bearer",
        "Bearer ",
        f"Bearer {READER} {READER}",
        f"Bearer\t{READER}",
        f"Bearer {READER}\u00e9",
        f"Token {READER}",
    ],
)
def test_headers_that_are_none(guard: Guard, header: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnauthorizedError) as caught:
        guard.tokens.check(Role.READ, header, CLIENT)

    assert caught.value.given
    assert guard.refusals() == {"malformed": 1}
    assert f"auth refused reason=malformed client={CLIENT}" in caplog.text
    for text in (str(caught.value), caplog.text):
        assert READER not in text
        assert "cmVhZGVy" not in text


def test_the_scheme_is_written_in_any_way(guard: Guard) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        for _ in range(2):  # the second time it is remembered
            guard.tokens.check(Role.READ, f"{scheme} {READER}", CLIENT)
    guard.tokens.check(Role.READ, f"Bearer   {READER} ", CLIENT)


def test_the_log_is_not_filled_from_outside(guard: Guard, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(1_000):
        with pytest.raises(UnauthorizedError):
            guard.tokens.check(Role.READ, "Bearer unknown", CLIENT)
    guard.clock.now += 1
    with pytest.raises(UnauthorizedError):
        guard.tokens.check(Role.READ, "Bearer unknown", CLIENT)

    assert guard.refusals() == {"unknown": 1_001}
    assert len(caplog.records) == LOGGED_PER_SECOND_MAX + 1
    assert f"({1_000 - LOGGED_PER_SECOND_MAX} more were not logged)" in caplog.text


def test_every_token_is_compared_in_constant_time(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    class Recorder:
        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            compared.append((one, other))
            return one == other

    monkeypatch.setattr(tokens, "hmac", Recorder)
    guard.tokens.check(Role.READ, f"Bearer {READER}", CLIENT)
    with pytest.raises(UnauthorizedError):
        guard.tokens.check(Role.READ, "Bearer unknown", CLIENT)

    assert len(compared) == 6
    assert {len(part) for pair in compared for part in pair} == {32}


def test_the_role_of_every_call() -> None:
    roles = {call: role_of(*call.split()) for call in CALLS}

    for call, role in roles.items():
        method, path = call.split()
        if path.startswith("/admin/"):
            assert role is Role.ADMIN
        elif path in ("/insert", "/write"):
            assert role is Role.WRITE
        else:
            assert role is Role.READ, call
        if method == "GET":
            assert role_of("HEAD", path) is role


# Through the server.


def headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token}"}


@pytest.fixture
def secured(client: Client, engine: FakeEngine, tmp_path: Path) -> Client:
    mount(tmp_path / "tokens", read=READER, write=WRITER, admin=ADMIN)
    engine.settings = engine.settings.with_changes(require_tokens=True, token_dir=str(tmp_path / "tokens"))
    return client


POINT = b'{"series_id":1,"timestamp":1,"value":1}'
ACCESS: list[tuple[str, str, bytes | None, set[str]]] = [
    ("GET", "/query", None, {READER, ADMIN}),
    ("HEAD", "/query", None, {READER, ADMIN}),
    ("OPTIONS", "/query", None, {READER, ADMIN}),
    ("GET", "/", None, {READER, ADMIN}),
    ("GET", "/openapi.json", None, {READER, ADMIN}),
    ("POST", "/insert", POINT, {WRITER, ADMIN}),
    ("GET", "/admin/stats", None, {ADMIN}),
    ("POST", "/admin/gc", b"{}", {ADMIN}),
    ("GET", "/no/such/path", None, {READER, ADMIN}),
    ("DELETE", "/query", None, {READER, ADMIN}),
    ("PUT", "/insert", None, {WRITER, ADMIN}),
]


@pytest.mark.parametrize(("method", "path", "body", "allowed"), ACCESS, ids=lambda part: str(part)[:14])
def test_who_may_call_what(
    secured: Client, method: str, path: str, body: bytes | None, allowed: set[str]
) -> None:
    for token in (READER, WRITER, ADMIN):
        reply = secured.call(method, path, body, headers(token))
        if token in allowed:
            assert reply.status not in (401, 403)
        else:
            assert reply.status == 403
            assert 'error="insufficient_scope"' in reply.headers["www-authenticate"]
    for token in (None, "unknown-0123456789"):
        reply = secured.call(method, path, body, headers(token))
        assert reply.status == 401
        assert reply.headers["www-authenticate"].startswith('Bearer realm="omendb"')


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_need_no_token(secured: Client, path: str) -> None:
    assert secured.call("GET", path).status == 200


def test_refused_bodies_are_not_read(rsgi: RsgiClient, engine: FakeEngine, tmp_path: Path) -> None:
    engine.settings = engine.settings.with_changes(require_tokens=True, token_dir=str(tmp_path))

    with rsgi.connect() as wire:
        wire.send(request("POST", "/insert", "content-length: 100000"))

        assert wire.reply().status == 401
    assert not engine.points


def test_the_switch_is_live(client: Client, engine: FakeEngine, tmp_path: Path) -> None:
    assert client.call("GET", "/query").status == 200

    engine.settings = engine.settings.with_changes(require_tokens=True, token_dir=str(tmp_path))
    assert client.call("GET", "/query").status == 401

    engine.settings = engine.settings.with_changes(require_tokens=False)
    assert client.call("GET", "/query").status == 200


def test_refusals_are_counted_and_logged_with_the_client(
    rsgi: RsgiClient, engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mount(tmp_path / "tokens", read=READER)
    engine.settings = engine.settings.with_changes(require_tokens=True, token_dir=str(tmp_path / "tokens"))

    rsgi.call("POST", "/insert", POINT, headers("wrong-token-0123"))
    rsgi.call("POST", "/insert", POINT, headers(READER))

    text = engine.metrics.render().decode()
    assert 'omendb_auth_failures_total{reason="unknown"} 1.0' in text
    assert 'omendb_auth_failures_total{reason="role"} 1.0' in text
    assert "auth refused reason=unknown client=127.0.0.1:" in caplog.text
    assert "wrong-token" not in caplog.text
    assert READER not in caplog.text
