"""SIGTERM ends a real server in order, whatever its clients do: status 0, a clean stop, nothing lost."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pytest
import urllib3

import omendb
from tests.faults.mounts import mounted_tmpfs, require
from tests.serving import PROGRAM, free_port, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.serving import RunningServer

IDLE = 500
ROWS = 400_000
"""An answer of some 20 MB: more than sockets and the server hold back."""


def request(method: str, target: str, *lines: str) -> bytes:
    return "\r\n".join((f"{method} {target} HTTP/1.1", "host: localhost", *lines, "", "")).encode()


@contextlib.contextmanager
def connections(server: RunningServer, count: int, receive_buffer: int = 0) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        links = []
        for _ in range(count):
            link = stack.enter_context(socket.socket())
            if receive_buffer:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            link.settimeout(60)
            link.connect(("127.0.0.1", server.port))
            links.append(link)
        yield links


def fill(server: RunningServer) -> None:
    times = np.arange(ROWS)
    body = orjson.dumps(
        {"series_id": 1, "timestamp": times, "value": times / 8}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    assert urllib3.request("POST", f"{server.url}/insert", body=body, timeout=60).status == 200


# What a client may be in the middle of. Each takes connections.


def idle(links: list[socket.socket]) -> None:
    """Asked once, and keep the connection."""
    for link in links:
        link.sendall(request("GET", "/health"))
    for link in links:
        assert link.recv(12) == b"HTTP/1.1 200"


def silent(links: list[socket.socket]) -> None:
    """Never send anything."""


def half_a_head(links: list[socket.socket]) -> None:
    for link in links:
        link.sendall(request("POST", "/insert")[:20])


def half_a_body(links: list[socket.socket]) -> None:
    for link in links:
        link.sendall(request("POST", "/insert", "content-length: 100") + b'{"series_id":')


def half_a_stream(links: list[socket.socket]) -> None:
    """Send a body in chunks, and never its end."""
    for link in links:
        link.sendall(request("POST", "/insert", "transfer-encoding: chunked") + b"1\r\n[\r\n")


def slow_readers(links: list[socket.socket]) -> None:
    """Ask for a long answer, take its beginning, and nothing more."""
    for link in links:
        link.sendall(request("GET", "/query?series_id=1"))
    for link in links:
        assert link.recv(12) == b"HTTP/1.1 200"


def leavers(links: list[socket.socket]) -> None:
    """Ask for a long answer, and go."""
    slow_readers(links)
    for link in links:
        link.close()


@pytest.mark.parametrize(
    ("hold", "count"),
    [
        (idle, IDLE),
        (silent, IDLE),
        (half_a_head, 50),
        (half_a_body, 50),
        (half_a_stream, 50),
        (slow_readers, 4),
        (leavers, 4),
    ],
    ids=lambda part: getattr(part, "__name__", None),
)
def test_clients_that_hold_connections_do_not_hold_up_the_stop(
    tmp_path: Path, hold: Callable[[list[socket.socket]], None], count: int
) -> None:
    with start_server(tmp_path / "data") as server:
        fill(server)
        with connections(server, count, receive_buffer=4_096) as links:
            hold(links)
            started = time.monotonic()

            assert server.stop() == 0, server.log.read_text()

            print(f"stopped after {time.monotonic() - started:.1f} s")
        assert "stopped" in server.log.read_text()
    check(tmp_path / "data")


def test_an_answer_that_is_cut_off_does_not_look_whole(tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        fill(server)
        reading = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        reading.connect()
        reading.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        reading.request("GET", "/query?series_id=1")
        response = reading.getresponse()
        response.read(1_000)

        assert server.stop() == 0

        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        reading.close()


def test_a_stop_in_the_middle_of_everything(tmp_path: Path) -> None:
    """Inserts, queries, a gc and a refit are under way: what was acknowledged is there afterwards."""
    acknowledged: list[int] = []
    over = threading.Event()
    with start_server(tmp_path / "data", "--retrain-threshold=1000") as server:
        fill(server)
        threads = [
            threading.Thread(target=insert, args=(server, acknowledged, over)),
            threading.Thread(target=keep_asking, args=(server, "GET", "/query?series_id=1", over)),
            threading.Thread(target=keep_asking, args=(server, "POST", "/admin/gc", over)),
            threading.Thread(target=keep_asking, args=(server, "POST", "/admin/retrain-index", over)),
        ]
        for thread in threads:
            thread.start()
        try:
            while len(acknowledged) < 30:
                time.sleep(0.01)
            for _ in range(2):  # as from two supervisors
                server.process.send_signal(signal.SIGTERM)

            assert server.process.wait(60) == 0, server.log.read_text()
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
    with omendb.open(tmp_path / "data") as db:
        assert db.recovery is not None
        assert db.recovery.clean
        stored = db.query(series_id=2).timestamp.tolist()
        # The last one may have been stored without an answer.
        assert stored[: len(acknowledged)] == acknowledged
        assert len(stored) <= len(acknowledged) + 1


def insert(server: RunningServer, acknowledged: list[int], over: threading.Event) -> None:
    with contextlib.suppress(urllib3.exceptions.HTTPError), pool(server) as connection:
        for number in range(1_000_000):
            body = json.dumps({"series_id": 2, "timestamp": number, "value": 1})
            response = connection.request("POST", "/insert", body=body)
            if response.status != 200 or over.is_set():
                return
            acknowledged.append(number)


def keep_asking(server: RunningServer, method: str, path: str, over: threading.Event) -> None:
    with contextlib.suppress(urllib3.exceptions.HTTPError), pool(server) as connection:
        while not over.is_set():
            assert connection.request(method, path).status in (200, 503)


@contextlib.contextmanager
def pool(server: RunningServer) -> Iterator[urllib3.HTTPConnectionPool]:
    with contextlib.closing(urllib3.connection_from_url(server.url, retries=False, timeout=60)) as opened:
        yield opened


@pytest.mark.parametrize("after_seconds", [0.0, 0.3, 0.6, 1.0, 1.5])
def test_a_stop_at_any_moment_of_the_start_is_an_orderly_one(tmp_path: Path, after_seconds: float) -> None:
    data = tmp_path / "data"
    with start_server(data) as server:
        fill(server)
        server.kill()
    ports = [f"--port={free_port()}", f"--metrics-port={free_port()}"]
    process = subprocess.Popen([PROGRAM, "serve", f"--data-dir={data}", "--host=127.0.0.1", *ports])
    try:
        # From the moment on at which it is OmenDB and no longer the Python interpreter that starts.
        while not catches_sigterm(process.pid) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(after_seconds)
        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(30)
    check(data, clean=None)


def catches_sigterm(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, mask = line.partition(":")
            if name == "SigCgt":
                return bool(int(mask, 16) & 1 << signal.SIGTERM - 1)
    return False


def test_a_full_disk_is_no_reason_to_report_a_failure(tmp_path: Path) -> None:
    """Everything acknowledged is in the log; the stop is not clean, and the next start replays it."""
    require()
    with mounted_tmpfs(tmp_path / "mount", 24) as mount:
        with start_server(mount / "data") as server:
            times = np.arange(10_000)
            acknowledged = 0
            while True:
                body = orjson.dumps(
                    {"series_id": acknowledged, "timestamp": times, "value": times / 8},
                    option=orjson.OPT_SERIALIZE_NUMPY,
                )
                status = urllib3.request("POST", f"{server.url}/insert", body=body, timeout=60).status
                if status == 507:
                    break
                assert status == 200
                acknowledged += 1
            (mount / "ballast").write_bytes(b"")
            with contextlib.suppress(OSError), (mount / "ballast").open("ab", buffering=0) as ballast:
                while True:
                    ballast.write(b"\0" * 4_096)

            assert server.stop() == 0, server.log.read_text()

            assert "no space for a clean stop, the next start replays the log" in server.log.read_text()
        (mount / "ballast").unlink()
        with start_server(mount / "data") as server:
            assert server.get("/query?format=columns&limit=1")["count"] == 1
            assert server.get("/admin/stats")["record_count"] == acknowledged * len(times)


def check(data: Path, *, clean: bool | None = True) -> None:
    """Whether the last stop was clean, and all rows are there."""
    with omendb.open(data) as db:
        assert db.recovery is not None
        if clean is not None:
            assert db.recovery.clean == clean
        assert db.query(series_id=1).count == ROWS
