"""Sending requests and taking the time: `wrk` for many small ones, sockets of our own for large ones.

Every program here runs beside the contestant on the same cores: each result says what CPU time the
contestant's process took, and what the sender took.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REQUESTS = Path(__file__).with_name("requests.lua")
_FORK = multiprocessing.get_context("fork")  # the bodies are inherited, not copied
_PIECE_BYTES = 1 << 20


class RequestError(Exception):
    """A contestant refused a request, or broke off its answer."""


@dataclass(frozen=True)
class Rate:
    """What a run of many requests found; times in milliseconds, of requests."""

    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    requests: int
    errors: int
    sender_cpu: float
    """Cores that the load generator used."""


def get(port: int, path: str, timeout: float = 300.0) -> bytes:
    """Return the body of the answer to a GET.

    Raises
    ------
    RequestError
    """
    return _decode(_exchange(port, _head("GET", path) + b"\r\n", timeout))


def post(port: int, path: str, body: bytes = b"", timeout: float = 300.0, headers: str = "") -> bytes:
    """Return the body of the answer to a POST.

    Raises
    ------
    RequestError
    """
    head = _head("POST", path) + f"{headers}Content-Length: {len(body)}\r\n\r\n".encode()
    return _decode(_exchange(port, head + body, timeout))


def time_get(port: int, path: str) -> float:
    """Return the seconds from the request for a large answer to its last byte. The answer must be whole."""
    request = _head("GET", path) + b"\r\n"
    started = time.perf_counter()
    first, last, total = _drain(port, request)
    seconds = time.perf_counter() - started
    head, _, _ = first.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise RequestError(_refusal(head, first[len(head) + 4 :]))
    length = _header(head, b"content-length")
    whole = last.endswith(b"0\r\n\r\n") if length is None else total == len(head) + 4 + int(length)
    if not whole:
        raise RequestError(f"{path[:200]}: the answer broke off after {total:,} bytes")
    return seconds


def _head(method: str, path: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode()


def _exchange(port: int, request: bytes, timeout: float) -> bytes:
    pieces = []
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
            connection.sendall(request)
            while piece := connection.recv(_PIECE_BYTES):
                pieces.append(piece)
    except OSError as error:
        raise RequestError(f"port {port}: {error}") from error
    return b"".join(pieces)


def _drain(port: int, request: bytes) -> tuple[bytes, bytes, int]:
    buffer = memoryview(bytearray(_PIECE_BYTES))
    first, last, total = b"", b"", 0
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        connection.sendall(request)
        while count := connection.recv_into(buffer):
            if len(first) < 4096:
                first += bytes(buffer[: min(count, 4096)])
            last = (last + bytes(buffer[max(count - 8, 0) : count]))[-8:]
            total += count
    return first, last, total


def _refusal(head: bytes, body: bytes) -> str:
    status = head.partition(b"\r\n")[0].decode(errors="replace") or "no answer"
    return f"{status}: {body[:300].decode(errors='replace')}".strip()


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _decode(answer: bytes) -> bytes:
    head, separator, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if not separator or not status or status[0][:1] != b"2":
        raise RequestError(_refusal(head, body))
    if (_header(head, b"transfer-encoding") or b"").lower() == b"chunked":
        return _dechunk(body)
    length = _header(head, b"content-length")
    if length is not None and int(length) != len(body):
        raise RequestError(f"{len(body):,} of {int(length):,} bytes arrived")
    return body


def _dechunk(body: bytes) -> bytes:
    pieces, at = [], 0
    while True:
        end = body.find(b"\r\n", at)
        if end < 0:
            raise RequestError("the answer broke off")
        size = int(body[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(body[end + 2 : end + 2 + size])
        if len(pieces[-1]) < size:
            raise RequestError("the answer broke off")
        at = end + 2 + size + 2


def wrk(port: int, connections: int, seconds: float, *arguments: str) -> Rate:
    """Run `requests.lua` with `arguments`.

    Raises
    ------
    RequestError
        When wrk fails, or no request succeeded.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = max(round(seconds), 1)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "30s", "-s", str(REQUESTS)]
    command += [f"http://127.0.0.1:{port}", "--", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=whole + 120, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            break
    else:
        raise RequestError(f"wrk failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if found["requests"] <= found["errors"]:
        raise RequestError(f"no request succeeded: {found['errors']} errors")
    return Rate(
        per_second=(found["requests"] - found["errors"]) / found["seconds"],
        p50_ms=found["p50_ms"],
        p95_ms=found["p95_ms"],
        p99_ms=found["p99_ms"],
        max_ms=found["max_ms"],
        requests=found["requests"] - found["errors"],
        errors=found["errors"],
        sender_cpu=cpu / found["seconds"],
    )


def send_bodies(port: int, path: str, bodies: list[bytes], connections: int, depth: int = 2) -> Rate:
    """POST all bodies from a process of its own.

    Parameters
    ----------
    connections : int
        Sockets; each takes the next body that nobody has taken.
    depth : int
        Requests that a connection has under way: the next one is sent before the answer comes (pipelining).

    Raises
    ------
    RequestError
        When a body was not acknowledged.
    """
    return start_sending(port, path, bodies, connections, depth).result()


class Sender:
    """A process that sends bodies."""

    def __init__(self, process: Any, pipe: Any) -> None:  # noqa: ANN401 - multiprocessing's own types
        self._process = process
        self._pipe = pipe

    def result(self) -> Rate:
        """Wait until everything is sent.

        Raises
        ------
        RequestError
        """
        try:
            found = self._pipe.recv()
        except EOFError:
            found = "the sender ended without a result"
        self._process.join()
        if isinstance(found, str):
            raise RequestError(found)
        assert isinstance(found, Rate)
        return found


def start_sending(
    port: int,
    path: str,
    bodies: list[bytes],
    connections: int,
    depth: int = 2,
    per_second: float = 0.0,
    seconds_max: float = 0.0,
) -> Sender:
    """Start what `send_bodies` does, and do not wait for it.

    Parameters
    ----------
    per_second : float
        Bodies to send per second in all, at even distances; 0: as fast as they are taken.
    seconds_max : float
        When to send no more, although bodies are left; 0: never.
    """
    ours, theirs = _FORK.Pipe(duplex=False)
    arguments = (theirs, port, path, bodies, connections, depth, per_second, seconds_max)
    process = _FORK.Process(target=_sender_main, args=arguments)
    process.start()
    theirs.close()
    return Sender(process, ours)


def _sender_main(
    pipe: Any,  # noqa: ANN401
    port: int,
    path: str,
    bodies: list[bytes],
    connections: int,
    depth: int,
    per_second: float,
    seconds_max: float,
) -> None:
    try:
        pipe.send(_send(port, path, bodies, connections, depth, per_second, seconds_max))
    except Exception as error:  # it must reach the parent, whatever it is
        pipe.send(str(error) if isinstance(error, RequestError) else f"{type(error).__name__}: {error}")
    pipe.close()
    os._exit(0)  # nothing of the parent's is to be cleaned up here


def _send(
    port: int,
    path: str,
    bodies: list[bytes],
    connections: int,
    depth: int,
    per_second: float,
    seconds_max: float,
) -> Rate:
    numbers = iter(range(len(bodies)))
    lock = threading.Lock()
    latencies: list[float] = []
    failures: list[BaseException] = []
    started = time.perf_counter()

    def take() -> int | None:
        if seconds_max and time.perf_counter() - started > seconds_max:
            return None
        with lock:
            return next(numbers, None)

    def run() -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _send_on(connection, path, bodies, take, depth, started, per_second, latencies)
        except (OSError, RequestError) as error:
            failures.append(error)

    cpu = time.process_time()
    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    cpu = time.process_time() - cpu
    if failures:
        raise RequestError(str(failures[0])) from failures[0]
    p50, p95, p99, most = np.percentile(np.array(latencies) * 1000, [50, 95, 99, 100])
    sent = len(latencies)
    return Rate(sent / seconds, p50, p95, p99, most, sent, 0, cpu / seconds)


def _send_on(
    connection: socket.socket,
    path: str,
    bodies: list[bytes],
    take: Any,  # noqa: ANN401
    depth: int,
    started: float,
    per_second: float,
    latencies: list[float],
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: "
    waiting: list[float] = []
    reader = _AnswerReader(connection)
    while (number := take()) is not None:
        due = started + number / per_second if per_second else 0.0
        while waiting and (len(waiting) >= depth or due > time.perf_counter()):
            latencies.append(reader.read() - waiting.pop(0))
        if (early := due - time.perf_counter()) > 0:
            time.sleep(early)
        body = bodies[number]
        # When it falls behind, the wait counts from when the body was due.
        waiting.append(due or time.perf_counter())
        connection.sendall(f"{head}{len(body)}\r\n\r\n".encode())
        connection.sendall(body)
    latencies.extend(reader.read() - sent for sent in waiting)


class _AnswerReader:
    """Takes answers off a connection that is kept open."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._held = b""

    def read(self) -> float:
        """Read one answer and return when it was there.

        Raises
        ------
        RequestError
            When it does not say success.
        """
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            self._more()
        head, self._held = self._held[:end], self._held[end + 4 :]
        status = int(head.split(b" ", 2)[1])
        length = 0 if status == 204 else int(_header(head, b"content-length") or b"0")
        while len(self._held) < length:
            self._more()
        body, self._held = self._held[:length], self._held[length:]
        if not 200 <= status < 300:
            raise RequestError(_refusal(head, body))
        return time.perf_counter()

    def _more(self) -> None:
        piece = self._connection.recv(65536)
        if not piece:
            raise RequestError("the connection was closed before the answer came")
        self._held += piece
