"""Two servers on one directory: the second waits, touches nothing, and takes over when the first is gone."""

from __future__ import annotations

import contextlib
import random
import re
import secrets
import signal
import time
from typing import TYPE_CHECKING

import orjson
import urllib3

import omendb
from tests.faults.killing import Ledger, Load
from tests.serving import start_server, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.serving import RunningServer

MESSAGE = "waiting for the lock: another process has the directory open"


@contextlib.contextmanager
def loaded(server: RunningServer, ledger: Ledger) -> Iterator[None]:
    """Write to a server for a while, and until it is gone."""
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    load = Load(server, ledger, random.Random(seed), maintain=False)
    try:
        while ledger.counts["writes_acknowledged"] < 50:
            assert server.process.poll() is None
            time.sleep(0.01)
        yield
    finally:
        if server.process.poll() is None:
            server.kill()
        load.stop()


def compare(server: RunningServer, ledger: Ledger) -> None:
    rows = server.get("/query?format=columns")
    ledger.settle(rows["series_id"], rows["timestamp"], rows["value"], "after the takeover")


def metric(server: RunningServer, name: str) -> float:
    text = urllib3.request("GET", f"{server.metrics_url}/metrics", retries=False, timeout=60).data.decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"no metric {name}"
    return float(found[1])


def test_a_killed_server_is_followed_by_the_one_that_waits(tmp_path: Path) -> None:
    ledger = Ledger()
    with (
        start_server(tmp_path / "data", "--retrain-threshold=1000") as first,
        start_server(tmp_path / "data", phase="waiting") as second,
    ):
        with loaded(first, ledger):
            first.kill()
        killed = time.monotonic()
        wait_until(second)
        print(f"took over after {time.monotonic() - killed:.2f} s")

        compare(second, ledger)

        assert metric(second, "omendb_unclean_start") == 1
        assert second.post("/insert", {"series_id": 1, "timestamp": 1, "value": 1}) == {"inserted": 1}
        assert second.stop() == 0


def test_a_rolling_update_loses_nothing(tmp_path: Path) -> None:
    ledger = Ledger()
    with (
        start_server(tmp_path / "data", "--retrain-threshold=1000") as first,
        start_server(tmp_path / "data", phase="waiting") as second,
    ):
        with loaded(first, ledger):
            assert first.stop() == 0
        wait_until(second)

        compare(second, ledger)

        assert metric(second, "omendb_unclean_start") == 0
        assert metric(second, "omendb_waiting_for_lock") == 0


def test_a_server_that_waits_says_so_and_can_be_stopped(tmp_path: Path) -> None:
    with (
        start_server(tmp_path / "data") as first,
        start_server(tmp_path / "data", phase="waiting") as second,
    ):
        for url in (second.url, second.metrics_url):
            ready = urllib3.request("GET", f"{url}/ready", retries=False, timeout=60)
            assert ready.status == 503
            assert orjson.loads(ready.data)["message"] == MESSAGE
            assert urllib3.request("GET", f"{url}/health", retries=False, timeout=60).status == 200
        refused = urllib3.request("GET", f"{second.url}/query", retries=False, timeout=60)
        assert refused.status == 503
        assert orjson.loads(refused.data)["error"]["code"] == "not_ready"
        assert metric(second, "omendb_waiting_for_lock") == 1
        assert metric(first, "omendb_waiting_for_lock") == 0

        assert second.stop() == 0

        assert "waiting until it is gone" in second.log.read_text()
        assert first.post("/insert", {"series_id": 1, "timestamp": 1, "value": 1}) == {"inserted": 1}
        assert first.stop() == 0


def test_a_server_that_waits_touches_nothing(tmp_path: Path, debian_tool: Callable[[str], str]) -> None:
    trace = tmp_path / "trace"
    strace = [
        debian_tool("strace"),
        "-D",
        "-f",
        "-y",
        "-e",
        "trace=%file,%desc",
        "-s",
        "4096",
        "-o",
        str(trace),
    ]
    data = tmp_path / "data"
    with start_server(data) as first:
        first.post("/insert", {"series_id": 1, "timestamp": 1, "value": 1})
        before = sorted((path, path.stat().st_mtime_ns, path.stat().st_size) for path in data.rglob("*"))
        with start_server(data, prefix=strace, phase="waiting") as second:
            assert second.stop() == 0
        after = sorted((path, path.stat().st_mtime_ns, path.stat().st_size) for path in data.rglob("*"))

    assert after == before
    calls = {
        (found[1], found[2])
        for line in trace.read_text().splitlines()
        if (found := re.search(rf"(\w+)\(.*?{re.escape(str(data))}((?:/[^\">]*)?)[\">]", line))
    }
    assert ("flock", "/LOCK") in calls
    # The directory itself is asked for, as at every start (mkdir says that it exists).
    allowed = {"/LOCK": {"openat", "flock", "close"}, "": {"mkdir", "newfstatat", "stat", "access", "execve"}}
    assert {(call, path) for call, path in calls if call not in allowed.get(path, ())} == set()


def test_a_server_that_hangs_keeps_its_directory(tmp_path: Path) -> None:
    """A process that does not answer is still the owner: a second one must not serve beside it."""
    with (
        start_server(tmp_path / "data") as first,
        start_server(tmp_path / "data", phase="waiting") as second,
    ):
        first.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(20):
                wait_until(second, "waiting")
        finally:
            first.process.send_signal(signal.SIGCONT)

        assert first.post("/insert", {"series_id": 1, "timestamp": 1, "value": 1}) == {"inserted": 1}


def test_a_directory_in_use_can_be_waited_for_in_process(tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as first:
        first.post("/insert", {"series_id": 1, "timestamp": 2, "value": 3.5})
        first.process.send_signal(signal.SIGTERM)

        with omendb.open(tmp_path / "data", wait_for_lock_seconds=None) as db:
            assert db.query().value.tolist() == [3.5]
