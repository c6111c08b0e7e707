"""The life of the server process, with signals and exit statuses."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.server.clients import TIMEOUT_SECONDS, Wire, request
from tests.serving import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.server.clients import Reply

ROOT = Path(__file__).parents[2]
POINT = b'{"series_id":1,"timestamp":10,"value":1.5}'


class ServerProcess:
    def __init__(self, log: Path, *words: str, port: int = 0, metrics_port: int = 0) -> None:
        self.port = port
        self.metrics_port = metrics_port
        self._log = log
        self._heard: list[list[str]] = []
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.server.run_fake", str(port), str(metrics_port), *words],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def hear(self, word: str) -> list[str]:
        """Wait for a line that begins with `word`; return the other words."""
        assert self.process.stdout is not None
        for line in self._heard:
            if line[0] == word:
                self._heard.remove(line)
                return line[1:]
        for text in self.process.stdout:
            line = text.decode().split()
            if line[0] == word:
                return line[1:]
            self._heard.append(line)
        raise AssertionError(f"never said {word}: {self.log}")

    def wait_ready(self) -> ServerProcess:
        self.port, self.metrics_port = map(int, self.hear("ready"))
        return self

    def wait_listening(self, port: int) -> Reply:
        """Ask `/ready` until there is somebody who answers."""
        while True:
            assert self.process.poll() is None, self.log
            try:
                return self.get("/ready", port)
            except ConnectionRefusedError:
                continue

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word.encode() + b"\n")
        self.process.stdin.flush()
        self.hear("did")

    def exit_status(self) -> int:
        return self.process.wait(TIMEOUT_SECONDS)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.exit_status()

    def get(self, target: str, port: int | None = None) -> Reply:
        with Wire(port or self.port) as wire:
            wire.send(request("GET", target))
            return wire.reply()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    started: list[ServerProcess] = []

    def start(*words: str, port: int = 0, metrics_port: int = 0) -> ServerProcess:
        log = tmp_path / f"log-{len(started)}"
        started.append(ServerProcess(log, *words, port=port, metrics_port=metrics_port))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.communicate()


Serve = "Callable[..., ServerProcess]"


def test_starts_and_stops(serve: Serve) -> None:
    server = serve().wait_ready()

    assert server.get("/ready").status == 200
    assert server.get("/ready", server.metrics_port).status == 200
    assert Path(f"/proc/{server.process.pid}/comm").read_text() == "omendb\n"
    assert server.stop() == 0

    server.hear("closed")
    assert f"ready http=http://127.0.0.1:{server.port} metrics=" in server.log
    assert "stopping signal=SIGTERM" in server.log
    assert "granian" not in server.log
    assert "Traceback" not in server.log


def test_sigint_stops_too(serve: Serve) -> None:
    server = serve().wait_ready()

    server.process.send_signal(signal.SIGINT)

    assert server.exit_status() == 0
    server.hear("closed")


def test_kept_connections_do_not_hold_up_the_stop(serve: Serve) -> None:
    server = serve().wait_ready()
    with Wire(server.port) as used, Wire(server.port), Wire(server.metrics_port):
        used.send(request("GET", "/health"))
        assert used.reply().status == 200

        assert server.stop() == 0

        assert used.at_end()
    assert "cut off" not in server.log


def test_requests_under_way_are_finished(serve: Serve) -> None:
    server = serve().wait_ready()
    server.say("hold-commit")
    with Wire(server.port) as wire:
        wire.send(request("POST", "/insert", f"content-length: {len(POINT)}", body=POINT))
        server.hear("submitted")
        server.process.send_signal(signal.SIGTERM)
        while server.get("/ready", server.metrics_port).status == 200:
            pass

        server.say("commit")

        assert wire.reply().json == {"inserted": 1}
    assert server.exit_status() == 0
    server.hear("closed")


def test_a_body_that_does_not_come_does_not_hold_up_the_stop(serve: Serve) -> None:
    server = serve("short-stop").wait_ready()
    with Wire(server.port) as wire:
        wire.send(request("POST", "/insert", "content-length: 100", body=b"{"))
        server.get("/health")

        assert server.stop() == 0

        assert wire.at_end()
    assert "cut off" in server.log
    assert "stopped" in server.log


def test_a_failed_log_ends_the_process_with_an_error(serve: Serve) -> None:
    server = serve().wait_ready()

    server.say("fail")

    assert server.exit_status() == 1
    assert "the store has failed: sync failed: input/output error" in server.log


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("locked", "the directory is used by process 4711"),
        ("damaged", "wal/0001.wal: offset 512: checksum does not match"),
    ],
)
def test_a_store_that_cannot_be_opened(serve: Serve, word: str, message: str) -> None:
    server = serve(word)

    assert server.exit_status() == 1

    assert f"the store cannot be opened: {message}" in server.log
    assert "the store has failed" not in server.log
    assert "Traceback" not in server.log


def test_both_ports_answer_while_the_store_starts(serve: Serve) -> None:
    port, metrics_port = free_port(), free_port()
    server = serve("hold-start", port=port, metrics_port=metrics_port)
    for one in (metrics_port, port):
        ready = server.wait_listening(one)
        assert ready.status == 503
        assert ready.json["phase"] in ("new", "starting")
    assert server.get("/query").error["code"] == "not_ready"

    server.say("start")
    server.hear("ready")

    assert server.get("/ready").status == 200
    assert server.stop() == 0


def test_a_store_that_still_starts_does_not_hold_up_the_stop(serve: Serve) -> None:
    server = serve("hold-start", "short-stop", port=free_port())
    server.wait_listening(server.port)

    assert server.stop() == 0

    assert "still starting" in server.log


@pytest.mark.parametrize("taken", ["port", "metrics_port"])
def test_a_taken_port(serve: Serve, taken: str) -> None:
    with socket.socket() as other:
        # As another server of our kind would: SO_REUSEPORT alone would let both have it.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]

        server = serve(**{taken: number})

        assert server.exit_status() == 1
    assert f"cannot listen on 127.0.0.1, ports {server.port} and {server.metrics_port}" in server.log


def test_sigint_again_ends_at_once(serve: Serve) -> None:
    server = serve().wait_ready()
    with stopping_with_a_request_under_way(server) as wire:
        server.process.send_signal(signal.SIGINT)

        assert server.exit_status() == 1

        assert wire.at_end()


def test_sigterm_again_changes_nothing(serve: Serve) -> None:
    server = serve().wait_ready()
    with stopping_with_a_request_under_way(server) as wire:
        for _ in range(3):
            server.process.send_signal(signal.SIGTERM)
            server.get("/health", server.metrics_port)

        server.say("commit")

        assert wire.reply().json == {"inserted": 1}
    assert server.exit_status() == 0
    assert "still stopping signal=SIGTERM" in server.log
    server.hear("closed")


def test_many_sigterms_at_the_very_end_change_nothing(serve: Serve) -> None:
    server = serve().wait_ready()

    while server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)

    assert server.exit_status() == 0


@contextlib.contextmanager
def stopping_with_a_request_under_way(server: ServerProcess) -> Iterator[Wire]:
    server.say("hold-commit")
    with Wire(server.port) as wire:
        wire.send(request("POST", "/insert", f"content-length: {len(POINT)}", body=POINT))
        server.hear("submitted")
        server.process.send_signal(signal.SIGTERM)
        while server.get("/ready", server.metrics_port).status == 200:
            pass
        yield wire
