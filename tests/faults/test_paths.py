"""The server writes nowhere but in its data directory, and follows no path that a request names.

Every file system call of a real server is traced while requests try to lead it elsewhere.
"""

from __future__ import annotations

import http.client
import json
import re
from typing import TYPE_CHECKING

from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.serving import RunningServer

MARK = "hostile-7f3a"
"""Part of every name that a request gives: it must not appear in a call, unless as a backup's name."""

NAMES = (
    f"../{MARK}",
    f"../../{MARK}",
    f"/tmp/{MARK}",
    f"{MARK}/../../{MARK}",
    f"{MARK}/x",
    f"./{MARK}",
    f".{MARK}",
    f"~/{MARK}",
    f"${{HOME}}/{MARK}",
    f"{MARK}\0x",
    f"{MARK}\\..\\x",
    f"%2e%2e%2f{MARK}",
    f"\u2024\u2024/{MARK}",
    f"file:///{MARK}",
    MARK * 100,
)

WRITING = re.compile(
    r"\b(mkdir|mkdirat|rename|renameat|renameat2|unlink|unlinkat|rmdir|link|linkat|symlink|symlinkat|truncate"
    r"|mknod|mknodat|chmod|fchmodat|chown|fchownat|utimensat|creat)\("
)
OPENING = re.compile(r"\bopen(at2?)?\(.*O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)")


def ask(server: RunningServer, method: str, target: str, body: bytes | None = None, **headers: str) -> int:
    """Send a request exactly as given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.putrequest(method, target, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def attack(server: RunningServer) -> Iterator[tuple[object, int]]:
    """Yield what was tried, and the status of the answer."""
    for name in NAMES:
        for body in ({"name": name}, {"name": f"{name}/"}, {"name": name, "verify": True}, {"path": name}):
            yield body, ask(server, "POST", "/admin/backup", json.dumps(body).encode())
        body = {"series_id": name, "timestamp": 1, "value": 1}
        yield body, ask(server, "POST", "/insert", json.dumps(body).encode())
        yield name, ask(server, "POST", "/admin/gc", json.dumps({"directory": name}).encode())
        yield name, ask(server, "POST", "/admin/retrain-index", json.dumps({"file": name}).encode())
    safe = [name for name in NAMES if name.isascii() and name.isprintable()]
    for name in safe:
        for target in (
            f"/{name}",
            f"/admin/{name}",
            f"/admin/backups/{name}",
            f"//{name}",
            f"/admin/../{name}",
        ):
            yield target, ask(server, "GET", target)
        for parameter in ("series_id", "cursor", "format", "agg", "start", "limit", "step", "file"):
            target = f"/query?{parameter}={name}"
            yield target, ask(server, "GET", target)
        headers = {"Host": name, "Authorization": f"Bearer {name}", "X-Sendfile": name, "Referer": name}
        yield headers, ask(server, "GET", f"/no/{name}", **headers)


def test_no_request_leads_out_of_the_data_directory(
    tmp_path: Path, debian_tool: Callable[[str], str]
) -> None:
    trace, data, tokens = tmp_path / "trace", tmp_path / "data", tmp_path / "tokens"
    strace = [debian_tool("strace"), "-D", "-f", "-y", "-e", "trace=%file", "-s", "4096", "-o", str(trace)]
    outside = tmp_path / "outside"
    outside.mkdir()
    (data / "backups").mkdir(parents=True)
    (data / "backups" / "link").symlink_to(outside)
    with start_server(data, f"--token-dir={tokens}", prefix=strace) as server:
        served_from = len(trace.read_text().splitlines())
        server.post("/insert", [{"series_id": n, "timestamp": n, "value": n} for n in range(100)])
        statuses = dict.fromkeys((str(tried), status) for tried, status in attack(server))
        # Where a link in the directory leads to, nothing is written either.
        assert ask(server, "POST", "/admin/backup", b'{"name":"link"}') in (400, 409)
        assert server.post("/admin/backup", {"name": "good"})["path"] == str(data / "backups/good")
        server.post("/admin/gc")
        assert server.stop() == 0

    assert {status for _, status in statuses} <= {400, 404}, [s for s in statuses if s[1] not in (400, 404)]
    assert list(outside.iterdir()) == []
    assert not list(tmp_path.rglob(f"*{MARK}*"))
    lines = trace.read_text().splitlines()[served_from:]
    assert [line for line in lines if MARK in line] == []
    writing = [line for line in lines if WRITING.search(line) or OPENING.search(line)]
    assert any(str(data / "wal") in line for line in writing)
    assert any(str(data / "backups/good") in line for line in writing)
    inside = re.compile(rf'["<]{re.escape(str(data))}[/">]')
    assert [line for line in writing if not inside.search(line)] == []
