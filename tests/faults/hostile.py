"""Clients that nobody wants, and one that everybody wants: it must go on getting right answers.

An attack is a function that takes an `Arena` and returns how many connections or requests it made. At its
height it waits until the normal client has done several rounds. Afterwards the server must be what it was:
no more files open, and no more memory held, than before.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import socket
import struct
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import urllib3

from tests.faults import fuzz
from tests.serving import RunningServer, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTIONS_MAX = 10_000
FILES_SPARE = 1_000
ROUNDS = 3
"""What the normal client must get done at the height of an attack."""

DEADLINE_SECONDS = 120
"""A limit against hanging, no promise about speed."""

BODY_BYTES_MAX = 1 << 20
BODY_TIMEOUT_MS = 1_000
OPTIONS = (
    "--host=0.0.0.0",  # as it listens by default
    f"--max-body-bytes={BODY_BYTES_MAX}",
    f"--body-timeout-ms={BODY_TIMEOUT_MS}",
    "--max-connections=65535",
)
"""Of the server: small limits make short tests, and crowds must get in to do harm."""

BIG_SERIES, BIG_ROWS = 10, 300_000
"""A series whose rows make an answer larger than what sockets and server hold back: 20 MB."""

NORMAL_SERIES, LEAVER_SERIES, POISON_SERIES = 1, 3, 666

MEMORY_SPARE_BYTES = 96 << 20
"""How much more the server may hold after an attack than before: allocators keep some."""

SOAK_MEMORY_SPARE_BYTES = 256 << 20
"""The same after any number of attacks. What granian's allocator keeps of 10,000 connections grows for
twenty attacks and no more: 170 MiB, measured over a hundred. A kilobyte lost of each connection would be
found after 260,000 of them."""

FILES_OPEN_SPARE = 32


def raise_file_limit() -> int:
    """Allow this process, and the servers that it starts, as many files as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connections_possible() -> int:
    """Return how many connections an attack may open, and say so when they are fewer than wanted."""
    possible = min(CONNECTIONS_MAX, raise_file_limit() - FILES_SPARE)
    if possible < CONNECTIONS_MAX:
        print(
            f"only {possible} connections instead of {CONNECTIONS_MAX}: the limit of open files (ulimit -Hn)"
        )
    return possible


class NormalClient:
    """Checks both ports, writes a point and reads it back, again and again, in a thread.

    Attributes
    ----------
    rounds : int
        Done so far.
    slowest_seconds : float
        Of all rounds, to be reported.
    """

    def __init__(self, server: RunningServer, start: int) -> None:
        self.rounds = 0
        self.slowest_seconds = 0.0
        self._server = server
        self._time = start
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="normal-client", daemon=True)

    def __enter__(self) -> NormalClient:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_SECONDS)
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise AssertionError(f"the normal client failed: {self._error!r}") from self._error

    def wait_rounds(self, count: int = ROUNDS) -> None:
        """Wait for rounds that begin now.

        Raises
        ------
        AssertionError
            They fail, or do not come.
        """
        wanted = self.rounds + count + 1  # the one under way began before
        give_up = time.monotonic() + DEADLINE_SECONDS
        while self.rounds < wanted:
            self.check()
            assert time.monotonic() < give_up, f"the normal client did {self.rounds} of {wanted} rounds"
            time.sleep(0.01)

    def _run(self) -> None:
        with urllib3.PoolManager(timeout=DEADLINE_SECONDS / 2, retries=False) as pool:
            while not self._stop.is_set():
                started = time.monotonic()
                try:
                    self._round(pool)
                except BaseException as error:
                    self._error = error
                    return
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
                self.rounds += 1

    def _round(self, pool: urllib3.PoolManager) -> None:
        self._time += 1
        point = {"series_id": NORMAL_SERIES, "timestamp": self._time, "value": self._time / 8}
        for url in (self._server.url, self._server.metrics_url):
            assert self._call(pool, "GET", f"{url}/health", None) == {"alive": True}
            assert self._call(pool, "GET", f"{url}/ready", None) == {"ready": True}
        assert self._call(pool, "POST", f"{self._server.url}/insert", point) == {"inserted": 1}
        target = f"/query?series_id={NORMAL_SERIES}&start={self._time}&end={self._time}"
        answer = self._call(pool, "GET", self._server.url + target, None)
        assert answer == {"count": 1, "rows": [point], "cursor": None}, (point, answer)

    @staticmethod
    def _call(pool: urllib3.PoolManager, method: str, url: str, body: object) -> Any:
        data = None if body is None else json.dumps(body)
        # A new connection each time, as others have to make one too.
        response = pool.request(method, url, body=data, headers={"connection": "close"})
        assert response.status == 200, (url, response.status, response.data)
        return response.json()


class Arena(NamedTuple):
    """Where an attack happens."""

    server: RunningServer
    normal: NormalClient
    generator: random.Random

    @contextlib.contextmanager
    def connections(
        self, count: int, port: int | None = None, receive_buffer: int | None = None
    ) -> Iterator[list[socket.socket]]:
        """Open connections; they are reset at the end, so that their ports are free at once."""
        sockets: list[socket.socket] = []
        try:
            for _ in range(count):
                link = socket.socket()
                sockets.append(link)
                link.settimeout(DEADLINE_SECONDS)
                if receive_buffer is not None:
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.connect(("127.0.0.1", port or self.server.port))
            yield sockets
        finally:
            for link in sockets:
                link.close()


def head(method: str, target: str, *headers: str) -> bytes:
    """Write the head of a request."""
    return "\r\n".join((f"{method} {target} HTTP/1.1", "host: localhost", *headers, "", "")).encode()


def read_to_end(link: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    parts: list[bytes] = []
    with contextlib.suppress(ConnectionError):
        while part := link.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def send_as_far_as_possible(link: socket.socket, data: bytes) -> None:
    """Send, unless the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        link.sendall(data)


def statuses(answers: bytes) -> list[int]:
    """Return the statuses of a stream of answers whose bodies hold none."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


# Slow ones, and idle ones.


def slow_headers(arena: Arena, count: int = 400) -> int:
    """Send the head of a request a byte at a time."""
    text = head("GET", "/health", "x-slow: " + "a" * 200)
    with arena.connections(count) as links:
        for at in range(40):
            for link in links:
                link.send(text[at : at + 1])
        arena.normal.wait_rounds()
        for link in links:  # they are served once they are done
            link.sendall(text[40:])
        for link in links:
            assert link.recv(12) == b"HTTP/1.1 200"
    return count


def slow_bodies(arena: Arena, count: int = 400) -> int:
    """Send bodies a byte at a time, of known length and in chunks, until the server has had enough."""
    bodies = (
        (head("POST", "/insert", "content-length: 100000"), b" "),
        (head("POST", "/insert", "transfer-encoding: chunked"), b"1\r\n \r\n"),
    )
    with arena.connections(count) as links:
        for index, link in enumerate(links):
            link.sendall(bodies[index % 2][0])
        for _ in range(5):
            for index, link in enumerate(links):
                send_as_far_as_possible(link, bodies[index % 2][1])
        arena.normal.wait_rounds()
        for link in links:
            answer = read_to_end(link)  # the server ends it
            assert statuses(answer) == [408], answer
    return count


def idle_connections(arena: Arena, count: int = 3_000) -> int:
    """Keep connections open that were used once."""
    with arena.connections(count) as links:
        for link in links:
            link.sendall(head("GET", "/health"))
        for link in links:
            assert link.recv(12) == b"HTTP/1.1 200"
        arena.normal.wait_rounds()
    return count


def idle_connections_to_the_metrics_port(arena: Arena, count: int = 1_000) -> int:
    """Keep connections to the other port open: some used once, some never, some in the middle of a head."""
    beginnings = (head("GET", "/health"), b"", b"GET /health HTTP/1.1\r\nhost: ")
    with arena.connections(count, arena.server.metrics_port) as links:
        for index, link in enumerate(links):
            send_as_far_as_possible(link, beginnings[index % 3])
        arena.normal.wait_rounds()
    return count


def bare_connections(arena: Arena) -> int:
    """Open 10,000 connections, and send nothing."""
    count = connections_possible()
    with arena.connections(count) as links:
        arena.normal.wait_rounds()
        link = arena.generator.choice(links)
        link.sendall(head("GET", "/health"))
        assert link.recv(12) == b"HTTP/1.1 200"
    return count


def half_closed(arena: Arena, count: int = 300) -> int:
    """Close the sending side in the middle of a request, or right after it."""
    whole = head("GET", f"/query?series_id={BIG_SERIES}&limit=5000")
    body = json.dumps({"series_id": POISON_SERIES, "timestamp": 2, "value": 1}).encode()
    cut = head("POST", "/insert", f"content-length: {len(body) + 1}") + body
    with arena.connections(count) as links:
        for index, link in enumerate(links):
            link.sendall((whole, whole[:30], cut)[index % 3])
            link.shutdown(socket.SHUT_WR)
        arena.normal.wait_rounds()
        for index, link in enumerate(links):
            got = statuses(read_to_end(link))
            assert got in ([], [200], [400])
            assert index % 3 == 0 or got != [200]
    assert arena.server.get(f"/query?series_id={POISON_SERIES}&start=2")["count"] == 0
    return count


def never_reading(arena: Arena, count: int = 30) -> int:
    """Ask for large answers, and do not read them."""
    with arena.connections(count, receive_buffer=4_096) as links:
        for index, link in enumerate(links):
            form = "&format=columns" if index % 2 else ""
            link.sendall(head("GET", f"/query?series_id={BIG_SERIES}{form}"))
        arena.normal.wait_rounds()
        # What the server holds for them is bounded: it does not make what nobody takes.
        held = anonymous_bytes(arena.server.process.pid)
        assert held < 1 << 30, held
    return count


def abrupt_leavers(arena: Arena, count: int = 600) -> int:
    """Reset connections while an insert is being stored, or in the middle of an answer."""
    first = arena.generator.getrandbits(30) << 30
    for begin in range(0, count, 50):
        with arena.connections(50) as links:
            for index, link in enumerate(links):
                if index % 5 == 0:
                    link.sendall(head("GET", f"/query?series_id={BIG_SERIES}"))
                    continue
                start = first + 10 * (begin + index)
                points = {
                    "series_id": LEAVER_SERIES,
                    "timestamp": [start, start + 1, start + 2],
                    "value": [1, 2, 3],
                }
                body = json.dumps(points).encode()
                link.sendall(head("POST", "/insert", f"content-length: {len(body)}") + body)
            time.sleep(arena.generator.choice((0, 0.001, 0.01)))
    arena.normal.wait_rounds()
    # Each insert was stored whole or not at all.
    stored = arena.server.get(f"/query?series_id={LEAVER_SERIES}&start={first}&end={first + 10 * count}")
    blocks: dict[int, list[float]] = {}
    for row in stored["rows"]:
        blocks.setdefault((row["timestamp"] - first) // 10, []).append(row["value"])
    assert all(values == [1.0, 2.0, 3.0] for values in blocks.values())
    return count


# Large ones.


def huge_bodies(arena: Arena, count: int = 30) -> int:
    """Announce, or send, bodies without measure."""
    piece = b"%x\r\n%b\r\n" % (65_536, b" " * 65_536)
    with arena.connections(count) as links:
        for index, link in enumerate(links):
            if index % 3 == 0:
                link.sendall(head("POST", "/insert", f"content-length: {10**15}"))
                send_as_far_as_possible(link, b" " * 1_000_000)
            elif index % 3 == 1:
                link.sendall(head("POST", "/insert", f"content-length: {BODY_BYTES_MAX}"))
                link.sendall(b" " * (BODY_BYTES_MAX - 1))  # and never the last byte
            else:
                link.sendall(head("POST", "/admin/gc", "transfer-encoding: chunked"))
                for _ in range(3 * BODY_BYTES_MAX // 65_536):
                    send_as_far_as_possible(link, piece)
        arena.normal.wait_rounds()
        for index, link in enumerate(links):
            answer = statuses(read_to_end(link))
            # A reset connection may take the answer with it.
            assert answer in ([408 if index % 3 == 1 else 413], []), answer
            assert answer or index % 3 != 1
    return count


def announced_bodies(arena: Arena, count: int = 2_000) -> int:
    """Announce the largest bodies that are allowed, send nothing, and leave; what they held comes back."""
    with arena.connections(count) as links:
        for link in links:
            link.sendall(head("POST", "/insert", f"content-length: {BODY_BYTES_MAX}", "expect: 100-continue"))
        arena.normal.wait_rounds()
    give_up = time.monotonic() + DEADLINE_SECONDS
    body = b"[]".ljust(BODY_BYTES_MAX - 1)
    while True:
        response = urllib3.request("POST", f"{arena.server.url}/insert", body=body, retries=False, timeout=60)
        if response.status == 200:
            return count
        assert response.status == 503, response.data
        assert time.monotonic() < give_up, response.data
        time.sleep(0.05)


def huge_heads(arena: Arena, count: int = 60) -> int:
    """Send heads without measure: a long target, a long header, many headers, and no end."""
    long = b"a" * 2_000_000
    heads = (
        b"GET /query?series_id=" + long + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx: " + long + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 100_000 + b"\r\n",
        long,
    )
    with arena.connections(count) as links:
        for index, link in enumerate(links):
            send_as_far_as_possible(link, heads[index % 4])
        arena.normal.wait_rounds()
        for link in links:
            assert not [status for status in statuses(read_to_end(link)) if not 400 <= status < 500]
    return count


# Wrong ones.


def pipelining(arena: Arena, count: int = 1_000) -> int:
    """Send many requests at once, slow and quick ones; the answers come in order."""
    bodies = [
        json.dumps([{"series_id": 2, "timestamp": t, "value": t} for t in range(1 + n % 7)])
        for n in range(count)
    ]
    requests = [head("POST", "/insert", f"content-length: {len(body)}") + body.encode() for body in bodies]
    requests[::5] = [head("GET", f"/query?series_id={BIG_SERIES}&limit=3")] * len(requests[::5])
    requests.append(head("GET", "/health", "connection: close"))
    with arena.connections(1) as (link,):
        sender = threading.Thread(target=send_as_far_as_possible, args=(link, b"".join(requests)))
        sender.start()
        answers = read_to_end(link).split(b"HTTP/1.1 ")[1:]
        sender.join(DEADLINE_SECONDS)
    arena.normal.wait_rounds()
    assert len(answers) == len(requests)
    for number, answer in enumerate(answers[:-1]):
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert answer.startswith(b"200"), answer
        if number % 5 == 0:
            assert body["count"] == 3
        else:
            assert body == {"inserted": 1 + number % 7}
    assert answers[-1].endswith(b'{"alive":true}')
    return count


_POISON = json.dumps({"series_id": POISON_SERIES, "timestamp": 1, "value": 1}).encode()
_HEAD = b"POST /insert HTTP/1.1\r\nhost: x\r\n"
MALFORMED = (
    b"\x00\x01\x02\r\n\r\n",
    b"\r\n\r\n\r\n\r\nGET",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\n: no name\r\n\r\n",
    b"GET / HTTP/1.1\r\na b: space\r\n\r\n",
    b"GET / HTTP/1.1\r\nx: \x00\r\n\r\n",
    b"G\x00T / HTTP/1.1\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    _HEAD + b"content-length: -1\r\n\r\n" + _POISON,
    _HEAD + b"content-length: +%d\r\n\r\n" % len(_POISON) + _POISON,
    _HEAD + b"content-length: 0x10\r\n\r\n" + _POISON,
    _HEAD + b"content-length: \r\n\r\n" + _POISON,
    _HEAD + b"content-length: 99999999999999999999999\r\n\r\n" + _POISON,
    _HEAD + b"content-length: %d, 5\r\n\r\n" % len(_POISON) + _POISON,
    _HEAD + b"content-length: 5\r\ncontent-length: %d\r\n\r\n" % len(_POISON) + _POISON,
    _HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + _POISON + b"\r\n0\r\n\r\n",
    _HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\n" + _POISON + b"\r\n0\r\n\r\n",
    _HEAD + b"transfer-encoding: chunked\r\n\r\n%x0\r\n" % len(_POISON) + _POISON + b"\r\n0\r\n\r\n",
    _HEAD + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + _POISON,
    _HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n" + _POISON + b"\r\n0\r\n\r\n",
    _HEAD + b"transfer-encoding: chunked\r\n\r\n\x00\r\n" + _POISON + b"\r\n0\r\n\r\n",
    _HEAD + b"transfer-encoding: gzip\r\n\r\n" + _POISON,
    _HEAD + b"transfer-encoding: chunked, identity\r\n\r\n%x\r\n" % len(_POISON) + _POISON + b"\r\n0\r\n\r\n",
    # As chunked (which the standard prefers) the body is empty; the rest is not a request of its own.
    _HEAD
    + b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % (len(_POISON) + 5)
    + _POISON,
    _HEAD
    + b"transfer-encoding: chunked\r\ncontent-length: %d\r\n\r\n0\r\n\r\n" % (len(_POISON) + 5)
    + _POISON,
)
"""None of them is a request that may store something."""


def malformed_http(arena: Arena, count: int = 300) -> int:
    """Send what is not HTTP, as it stands and changed at random."""
    poison = f"/query?series_id={POISON_SERIES}"
    before = arena.server.get(poison)
    for data in MALFORMED:
        answer = statuses(send_all_and_read(arena, data))
        assert all(400 <= status < 500 for status in answer), (data, answer)
    assert arena.server.get(poison) == before
    for _ in range(count):
        data = arena.generator.choice(MALFORMED)
        cut = arena.generator.randrange(len(data))
        data = data[:cut] + arena.generator.randbytes(arena.generator.choice((0, 1, 5))) + data[cut + 1 :]
        # A change may make a request of it.
        answer = statuses(send_all_and_read(arena, data))
        assert all(status < 500 for status in answer), (data, answer)
    arena.normal.wait_rounds()
    return count + len(MALFORMED)


def send_all_and_read(arena: Arena, data: bytes) -> bytes:
    """Send something on a connection of its own, close the sending side, and read what comes."""
    with arena.connections(1) as (link,):
        send_as_far_as_possible(link, data)
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_WR)
        return read_to_end(link)


def malformed_json(arena: Arena, count: int = 1_000) -> int:
    """Send bodies that are almost right; what is stored is what Python's json reads."""
    target = fuzz.TARGETS["body"]
    with urllib3.PoolManager(timeout=60, retries=False) as pool:
        for _ in range(count):
            body = fuzz.change(arena.generator, target)
            response = pool.request("POST", f"{arena.server.url}/insert", body=body)
            repeated: list[str] = []
            try:
                points = fuzz.plain_points(body, repeated)
            except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
                assert response.status == 400, (body, response.data)
            else:
                if not (repeated and response.status == 400):
                    assert response.json() == {"inserted": len(points)}, (body, response.data)
    arena.normal.wait_rounds()
    return count


ATTACKS: dict[str, Callable[[Arena], int]] = {
    attack.__name__: attack
    for attack in (
        *(slow_headers, slow_bodies, idle_connections, idle_connections_to_the_metrics_port),
        *(bare_connections, half_closed, never_reading, abrupt_leavers, huge_bodies, announced_bodies),
        *(huge_heads, pipelining, malformed_http, malformed_json),
    )
}


# The ground that they attack on.


@contextlib.contextmanager
def attacked_server(directory: Path) -> Iterator[RunningServer]:
    """Start a server with small limits, and a series that is worth streaming."""
    raise_file_limit()
    with start_server(directory / "data", *OPTIONS) as server:
        for start in range(0, BIG_ROWS, 10_000):
            columns = {
                "series_id": BIG_SERIES,
                "timestamp": list(range(start, start + 10_000)),
                "value": [0.1 + time for time in range(start, start + 10_000)],
            }
            server.post("/insert", columns)
        yield server


def attack(server: RunningServer, name: str, generator: random.Random) -> tuple[int, NormalClient]:
    """Make one attack; check the normal client, files and memory.

    Returns
    -------
    int, NormalClient
        What the attack counted, and the client, for its figures.
    """
    pid = server.process.pid
    server.post("/admin/gc")
    files, memory = open_files(pid), anonymous_bytes(pid)
    with NormalClient(server, generator.getrandbits(40) << 20) as normal:
        normal.wait_rounds(1)
        count = ATTACKS[name](Arena(server, normal, generator))
        normal.wait_rounds()
    give_up = time.monotonic() + DEADLINE_SECONDS
    while True:
        files_now, memory_now = open_files(pid), anonymous_bytes(pid)
        if files_now <= files + FILES_OPEN_SPARE and memory_now <= memory + MEMORY_SPARE_BYTES:
            break
        assert time.monotonic() < give_up, (files, files_now, memory, memory_now)
        server.post("/admin/gc")  # it gives freed memory back
        time.sleep(0.2)
    assert server.process.poll() is None
    return count, normal


def open_files(pid: int) -> int:
    """Return how many files a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def anonymous_bytes(pid: int) -> int:
    """Return the memory of a process that is not backed by files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def soak(seed: int, seconds: float) -> dict[str, int]:
    """Attack one server again and again, in random order; return attacks, connections, rounds, and growth."""
    print(f"hostile seed {seed}", flush=True)
    generator = random.Random(seed)
    until = time.monotonic() + seconds
    counts = {"attacks": 0, "hostile_connections_or_requests": 0, "normal_rounds": 0, "slowest_round_ms": 0}
    with tempfile.TemporaryDirectory() as directory, attacked_server(Path(directory)) as server:
        pid = server.process.pid
        server.post("/admin/gc")
        memory = anonymous_bytes(pid)
        while time.monotonic() < until:
            name = generator.choice(sorted(ATTACKS))
            count, normal = attack(server, name, generator)
            counts["attacks"] += 1
            counts["hostile_connections_or_requests"] += count
            counts["normal_rounds"] += normal.rounds
            counts["slowest_round_ms"] = max(counts["slowest_round_ms"], round(normal.slowest_seconds * 1e3))
        server.post("/admin/gc")
        growth = anonymous_bytes(pid) - memory
        counts["memory_growth_kib"] = growth // 1024
        assert growth <= SOAK_MEMORY_SPARE_BYTES, counts
        log = server.log.read_text()
    assert "ERROR" not in log, log
    assert "Traceback" not in log, log
    return counts
