"""Real system calls that kill the process, or fail, at a chosen moment.

The short form; ``syscalls.soak(seed, seconds)`` is the long one. A failure names the seed, the call and its
number.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import orjson
import pytest
import urllib3

from omendb.storage import filenames
from tests.faults import mounts, syscalls
from tests.faults.syscalls import LostDataError, allowed, plan, strace
from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from tests.serving import RunningServer


@pytest.fixture
def program(debian_tool: Callable[[str], str]) -> str:
    return debian_tool("strace")


@pytest.mark.parametrize(("call", "number"), [("writev", 9), ("rename", 3), ("unlink", 2)])
def test_a_process_killed_at_a_call_loses_nothing(
    program: str, tmp_path: Path, call: str, number: int
) -> None:
    assert syscalls.kill_at(program, tmp_path / "data", 2, call, number) == 1


def test_a_recovery_killed_at_a_call_loses_nothing(program: str, tmp_path: Path) -> None:
    assert syscalls.kill_at(program, tmp_path / "data", 3, "fdatasync", 8, again=2) == 2


@pytest.mark.parametrize(
    ("call", "error", "when"),
    [
        ("fdatasync", "EIO", "5+"),
        ("writev", "ENOSPC", "4..6"),
        ("mmap", "ENOMEM", "1+"),
    ],
)
def test_a_call_that_fails_loses_nothing(
    program: str, tmp_path: Path, call: str, error: str, when: str
) -> None:
    outcome = syscalls.fail_at(program, tmp_path / "data", 2, call, error, when)

    assert len(outcome.said) < syscalls.STEPS or set(outcome.said.values()) != {"done"}


@pytest.mark.parametrize("call", ["writev", "fdatasync", "fallocate"])
def test_an_interrupted_call_is_repeated(program: str, tmp_path: Path, call: str) -> None:
    outcome = syscalls.fail_at(program, tmp_path / "data", 2, call, "EINTR", "3+3")

    assert outcome.status == 0
    assert outcome.said == dict.fromkeys(range(syscalls.STEPS), "done")


def test_a_file_system_that_cannot_be_asked_of_its_journal_is_taken_at_its_word(
    program: str, tmp_path: Path
) -> None:
    outcome = syscalls.fail_at(program, tmp_path / "data", 2, "fallocate", "EOPNOTSUPP", "1+")

    assert outcome.said == dict.fromkeys(range(syscalls.STEPS), "done")


# The server.


def insert(server: RunningServer, timestamp: int) -> tuple[int, str]:
    """Insert one row; return the status and, of an error, its code."""
    body = orjson.dumps({"series_id": 1, "timestamp": timestamp, "value": timestamp / 2})
    response = urllib3.request("POST", server.url + "/insert", body=body, retries=False, timeout=60)
    return response.status, orjson.loads(response.data).get("error", {}).get("code", "")


def timestamps(server: RunningServer) -> list[int]:
    answer = server.get("/query?format=columns")
    assert answer["value"] == [timestamp / 2 for timestamp in answer["timestamp"]]
    return answer["timestamp"]


def wal_files(data_dir: Path) -> list[Path]:
    """Return the paths of the first WAL files, whether they are there or not."""
    return [data_dir / "wal" / filenames.wal_name(number) for number in range(1, 20)]


@contextlib.contextmanager
def failing_server(program: str, data_dir: Path, call: str, what: str) -> Generator[RunningServer]:
    """Start a server on a new store whose calls on its log fail."""
    prefix = strace(program, [(call, what)], wal_files(data_dir))
    with start_server(data_dir, "--body-timeout-ms=1500", prefix=prefix) as server:
        yield server


@contextlib.contextmanager
def unfinished_request(server: RunningServer) -> Generator[None]:
    """Keep the server from ending: it waits until the body of this request is overdue."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.putrequest("POST", "/insert")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        yield
    finally:
        connection.close()


@pytest.mark.parametrize("call", ["fdatasync", "writev"])
def test_after_an_error_of_the_log_nothing_more_is_acknowledged(
    program: str, tmp_path: Path, call: str
) -> None:
    data_dir = tmp_path / "data"
    acknowledged = 3
    # Only the fourth of the committing thread fails: one that is tried again would say that all is well.
    what = f"error=EIO:when={acknowledged + 1}"
    with failing_server(program, data_dir, call, what) as server, unfinished_request(server):
        outcomes = [insert(server, timestamp) for timestamp in range(acknowledged + 1)]
        assert outcomes == [(200, "")] * acknowledged + [(503, "storage_failed")]

        # What follows is refused, by an answer or by a closed door, until the process is gone.
        give_up = time.monotonic() + 60
        unready = later = 0
        while server.process.poll() is None:
            assert time.monotonic() < give_up
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                later += 1
                assert insert(server, 1_000 + later)[0] == 503
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                url = server.metrics_url + "/ready"
                assert urllib3.request("GET", url, retries=False, timeout=60).status == 503
                unready += 1
            time.sleep(0.02)
        assert unready > 0
        assert server.process.wait(30) == 1, server.log.read_text()

    with start_server(data_dir) as server:
        # The row whose sync failed may be there: nobody knows, and nobody was told that it is.
        assert timestamps(server) in (list(range(acknowledged)), list(range(acknowledged + 1)))
        assert insert(server, 50) == (200, "")


def test_a_full_disk_refuses_inserts_for_as_long_as_it_is_full(program: str, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with failing_server(program, data_dir, "writev", "error=ENOSPC:when=3..8") as server:
        outcomes = [insert(server, timestamp) for timestamp in range(12)]
        acknowledged = [timestamp for timestamp, outcome in enumerate(outcomes) if outcome == (200, "")]

        assert set(outcomes) == {(200, ""), (507, "disk_full")}
        assert outcomes[:3] == [(200, "")] * 2 + [(507, "disk_full")]
        assert outcomes[-3:] == [(200, "")] * 3
        assert timestamps(server) == acknowledged
        server.kill()
    with start_server(data_dir) as server:
        assert timestamps(server) == acknowledged


def test_a_log_that_cannot_take_a_part_of_a_record_back_fails(program: str, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    prefix = strace(
        program,
        [("writev", "error=ENOSPC:when=3"), ("ftruncate", "error=EIO:when=1+")],
        wal_files(data_dir),
    )
    with start_server(data_dir, prefix=prefix) as server:
        outcomes = [insert(server, timestamp) for timestamp in range(3)]

        assert outcomes == [(200, "")] * 2 + [(503, "storage_failed")]
        assert server.process.wait(60) == 1
    with start_server(data_dir) as server:
        assert timestamps(server) == [0, 1]


def test_a_write_that_the_system_cuts_short_is_taken_back(tmp_path: Path) -> None:
    """A limit on the size of files cuts a record in its middle: a real short write, then an error."""
    data_dir = tmp_path / "data"
    with start_server(data_dir) as server:
        assert insert(server, 0) == (200, "")
        acknowledged = [0]
        limit = wal_files(data_dir)[0].stat().st_size + 40
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for timestamp in range(1, 9):
            outcome = insert(server, timestamp)
            assert outcome in ((200, ""), (507, "disk_full"))
            if outcome[0] == 200:
                acknowledged.append(timestamp)  # the log may go on in a new file
            assert timestamps(server) == acknowledged
        assert 1 not in acknowledged
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)

        assert insert(server, 9) == (200, "")
        server.kill()
    with start_server(data_dir) as server:
        assert timestamps(server) == [*acknowledged, 9]


FILL = """
import itertools, logging, sys
import numpy as np
import omendb
from omendb.errors import WalFailedError

logging.disable(logging.CRITICAL)
db = omendb.open(sys.argv[1])
for number in itertools.count():
    try:
        db.insert(number, np.arange(500), np.random.default_rng(number).random(500))
    except WalFailedError:
        break
"""

COUNT = """
import logging, sys
import omendb

logging.disable(logging.CRITICAL)
db = omendb.open(sys.argv[1])
print(db.recovery.replayed_records, flush=True)
db.insert(10**6, 1, 1.0)
"""


def in_process(script: str, data_dir: Path) -> str:
    """Run a script that does not close its store, in a process of its own; return what it prints."""
    ended = "\nimport os\nos._exit(0)\n"
    command = [sys.executable, "-c", script + ended, str(data_dir)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout


def use_the_whole_journal(mounted: Path) -> None:
    """Let the file system write all of its journal once: only data is to find the device defective."""
    for number in range(600):
        path = mounted / f"{number % 40}"
        with path.open("wb") as file:
            file.write(b"x")
            os.fsync(file.fileno())
        if number % 40 == 39:
            for name in range(40):
                (mounted / f"{name}").unlink()


def test_after_a_failed_sync_recovery_shows_what_the_disk_holds(tmp_path: Path) -> None:
    """The page cache shows more: what could not be written counts as clean, and no sync writes it again.

    Were that served, and the log continued behind it, the next power loss would leave a hole in the log.
    """
    mounts.require(loop=True)
    disk, mounted = tmp_path / "disk", tmp_path / "mounted"
    image = disk / "image"
    with mounts.mounted_tmpfs(disk, 12):
        # The image may grow to more than its disk has: that is the defective device.
        mounts.make_ext4(image, 100, block_bytes=4096)
        with mounts.mounted_image(image, mounted):
            use_the_whole_journal(mounted)
            in_process(FILL, mounted / "data")
            mounts.run("mount", "-o", "remount,size=60m", str(disk))
            shown = in_process(COUNT, mounted / "data")
        with mounts.mounted_image(image, mounted):
            later = in_process(COUNT, mounted / "data")
    # Beside the records, the one that was inserted between.
    assert int(later) == int(shown) + 1


# The tester, tested.


def test_what_a_program_may_leave_follows_from_what_it_said() -> None:
    steps = plan(2)
    inserts = [number for number, step in enumerate(steps) if step.name == "insert"]
    everything = dict.fromkeys(range(len(steps)), "done")
    (content,) = allowed(2, everything)
    last = steps[inserts[-1]]
    rows = dict(zip(zip(last.series, last.timestamp, strict=True), last.value, strict=True))
    assert content == content | rows

    without, with_it = allowed(2, {n: s for n, s in everything.items() if n < inserts[-1]})
    assert with_it == without | rows
    assert with_it == content
    assert allowed(2, everything | {inserts[-1]: "refused"}) == [without]


def test_an_acknowledgement_after_a_failure_is_found() -> None:
    said = dict.fromkeys(range(syscalls.STEPS), "done") | {0: "failed"}
    said = {number: outcome for number, outcome in said.items() if number < 3}

    with pytest.raises(LostDataError):
        allowed(2, said)


def test_a_lost_row_is_found(tmp_path: Path) -> None:
    """The program says what it did on another directory: an empty one must not pass for it."""
    with pytest.raises(LostDataError):
        syscalls.check(tmp_path / "data", 2, {0: "done"}, "here")
