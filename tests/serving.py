"""Starts `omendb serve` as a user does: a process of its own, on free ports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import urllib3

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PROGRAM = str(Path(sys.executable).with_name("omendb"))

READY_SECONDS = 120
"""A cold kernel cache compiles first. A limit against hanging, no promise about speed."""


@dataclass
class RunningServer:
    """A server process and how to reach it."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    port: int
    metrics_port: int
    log: Path
    ca_file: Path | None = None

    @property
    def url(self) -> str:
        scheme = "http" if self.ca_file is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}"

    def get(self, path: str) -> Any:
        """Return the JSON that the server answers to a GET."""
        response = urllib3.request("GET", self.url + path, retries=False, timeout=60)
        assert response.status == 200, response.data
        return orjson.loads(response.data)

    def post(self, path: str, body: object = None) -> Any:
        """Return the JSON that the server answers to a POST."""
        data = None if body is None else orjson.dumps(body)
        response = urllib3.request("POST", self.url + path, body=data, retries=False, timeout=60)
        assert response.status == 200, response.data
        return orjson.loads(response.data)

    def kill(self) -> None:
        """End the process as a crash does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> int:
        """Ask the process to end; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def free_port() -> int:
    """Return a port that nothing listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def start_server(
    data_dir: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    prefix: Sequence[str] = (),
    phase: str = "ready",
    ca_file: Path | None = None,
) -> Iterator[RunningServer]:
    """Start a server, wait until it is ready (or in another `phase`), and end it afterwards.

    `prefix` is a command that runs the server in its own process, such as ``strace -D``; `ca_file` says that
    it speaks HTTPS, and holds its certificate.

    Raises
    ------
    AssertionError
        With the log, when it ends or does not get ready.
    """
    port = port or free_port()
    metrics_port = free_port()
    log = data_dir.with_name(f"{data_dir.name}.{port}.log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *prefix,
                PROGRAM,
                "serve",
                f"--data-dir={data_dir}",
                "--host=127.0.0.1",
                f"--port={port}",
                f"--metrics-port={metrics_port}",
                *options,
            ],
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
    running = RunningServer(process, data_dir, port, metrics_port, log, ca_file)
    try:
        wait_until(running, phase)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)


def wait_until(running: RunningServer, phase: str = "ready") -> None:
    """Wait until `/ready` tells a phase.

    Raises
    ------
    AssertionError
        With the log, when the server ends or does not come to it.
    """
    give_up = time.monotonic() + READY_SECONDS
    while time.monotonic() < give_up:
        code = running.process.poll()
        assert code is None, f"the server ended with {code}:\n{running.log.read_text()}"
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            response = urllib3.request("GET", running.metrics_url + "/ready", retries=False, timeout=5)
            found = "ready" if response.status == 200 else orjson.loads(response.data)["phase"]
            if found == phase:
                return
        time.sleep(0.05)
    raise AssertionError(f"the server did not get {phase}:\n{running.log.read_text()}")
