"""A server process around a fake engine, ruled by words on its standard input.

Usage: run_fake.py PORT METRICS_PORT [hold-start] [locked] [damaged] [short-stop]
Input: start, commit, hold-commit, fail. Output: ready PORT METRICS_PORT, submitted, closed.
"""

from __future__ import annotations

import sys
import threading

from omendb.errors import CorruptionError, LockedError
from omendb.reports import Status
from omendb.server import serve
from omendb.server.process import leave
from tests.server.fake_engine import FakeEngine


def main() -> int:
    port, metrics_port, *words = sys.argv[1:]
    engine = FakeEngine()
    if "hold-start" in words:
        engine.may_start.clear()
    if "locked" in words:
        engine.start_error = LockedError("the directory is used by process 4711")
    if "damaged" in words:
        engine.start_error = CorruptionError("wal/0001.wal", 512, "checksum does not match")
    if "short-stop" in words:
        serve.STOP_SECONDS = 1
    threading.Thread(target=obey, args=(engine,), daemon=True).start()
    threading.Thread(target=tell_submits, args=(engine,), daemon=True).start()
    status = serve.run(
        engine,  # type: ignore[arg-type]
        "127.0.0.1",
        int(port),
        int(metrics_port),
        on_ready=lambda *ports: tell("ready", *ports),
        log_descriptor=2,
    )
    if engine.closed.is_set():
        tell("closed")
    return status


def obey(engine: FakeEngine) -> None:
    for line in sys.stdin:
        word = line.strip()
        if word == "start":
            engine.may_start.set()
        elif word == "commit":
            engine.may_commit.set()
        elif word == "hold-commit":
            engine.may_commit.clear()
        elif word == "fail":
            engine.status = Status("failed", "sync failed: input/output error", 0.0)
            engine.failed.set()
        tell("did", word)


def tell_submits(engine: FakeEngine) -> None:
    while True:
        engine.submitted.acquire()
        tell("submitted")


def tell(*words: object) -> None:
    print(*words, flush=True)


if __name__ == "__main__":
    leave(main())
