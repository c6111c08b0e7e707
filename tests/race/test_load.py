"""The race's own HTTP: whole answers only, and every body acknowledged."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from perf.race import load


@contextlib.contextmanager
def answering(*answers):
    """Answer each connection with the next of `answers`, and close it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join()
        listener.close()


# Only these tests have threads when the sender is forked.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
PIECES = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [WHOLE, PIECES], ids=["length", "chunked"])
def test_a_whole_answer_is_read_and_timed(answer):
    with answering(answer, answer) as port:
        assert load.get(port, "/") == b"abc"
        assert load.time_get(port, "/") > 0


@pytest.mark.parametrize(
    "answer",
    [WHOLE[:-1], PIECES[:-5], PIECES[:-8], b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", b""],
    ids=["short", "no-end", "cut-piece", "status", "nothing"],
)
def test_other_answers_are_errors(answer):
    with answering(answer, answer) as port:
        with pytest.raises(load.RequestError):
            load.get(port, "/")
        with pytest.raises(load.RequestError):
            load.time_get(port, "/")


def _serve_posts(listener, bodies, status):
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        while stream.readline():
            length = 0
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            bodies.append(stream.read(length))
            connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nok")


def test_all_bodies_are_sent_in_order_and_acknowledged():
    bodies = [str(number).encode() * number for number in range(1, 40)]
    received = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_serve_posts, args=(listener, received, b"200 OK"))
        server.start()
        rate = load.send_bodies(listener.getsockname()[1], "/write", bodies, connections=1, depth=3)
        server.join()

    assert received == bodies
    assert rate.requests == len(bodies)
    assert rate.errors == 0


def test_a_refused_body_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_serve_posts, args=(listener, [], b"503 Busy"))
        server.start()
        with pytest.raises(load.RequestError, match="503"):
            load.send_bodies(listener.getsockname()[1], "/write", [b"a"], connections=1)
        server.join()
