"""Disk full, read-only, too large, no descriptors: inserts are refused, reads go on, all returns by itself (P5).

Each test runs a real server on a small file system of its own, and fills that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
import urllib3

import omendb
from omendb.config import Settings
from omendb.errors import DiskFullError, OverloadedError
from tests.faults.mounts import make_ext4, mounted_image, mounted_tmpfs, require, run
from tests.serving import start_server
from tests.storage.faulty_fs import FaultyFileSystem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.serving import RunningServer

ROWS = 1_000  # of one insert: 24 KB of log
RETURN_SECONDS = 60  # a limit against hanging


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request, tmp_path) -> Iterator[Path]:
    """Return a small mounted file system: 14 MB or a little less."""
    require(loop=request.param == "ext4")
    if request.param == "tmpfs":
        with mounted_tmpfs(tmp_path / "data", 14) as directory:
            yield directory
        return
    make_ext4(tmp_path / "disk.img", 18)
    with mounted_image(tmp_path / "disk.img", tmp_path / "data") as directory:
        yield directory


class Client:
    """Inserts numbered batches, and remembers which were acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.sent = 0

    def insert(self, server: RunningServer) -> tuple[int, Any]:
        """Send the next batch; returns the status and the body."""
        number, self.sent = self.sent, self.sent + 1
        stamps = list(range(number * ROWS, (number + 1) * ROWS))
        body = {
            "series_id": [number % 7] * (ROWS - 1) + [7],
            "timestamp": stamps,
            "value": [float(number)] * ROWS,
        }
        response = urllib3.request(
            "POST", server.url + "/insert", body=orjson.dumps(body), retries=False, timeout=60
        )
        if response.status == 200:
            self.acknowledged.append(number)
        return response.status, orjson.loads(response.data)

    def insert_until(self, server: RunningServer, status: int, attempts: int = 2_000) -> Any:
        """Insert until that is the answer; returns its body."""
        for _ in range(attempts):
            answered, body = self.insert(server)
            if answered == status:
                return body
            assert answered in (200, 507), (answered, body)
        raise AssertionError(f"no {status} in {attempts} inserts")

    def insert_when_possible(self, server: RunningServer) -> None:
        """Insert until one is taken again."""
        give_up = time.monotonic() + RETURN_SECONDS
        while self.insert(server)[0] != 200:
            assert time.monotonic() < give_up, "inserts do not come back"
            time.sleep(0.2)

    def check(self, server: RunningServer) -> None:
        """Everything acknowledged is there, and nothing that was refused."""
        rows = server.get(f"/query?step={ROWS}&start=0&agg=count,min,max&limit=1000000")["rows"]
        found: dict[int, int] = {}
        for row in rows:
            number = row["timestamp"] // ROWS
            assert row["min"] == row["max"] == float(number)
            found[number] = found.get(number, 0) + row["count"]
        assert found == dict.fromkeys(self.acknowledged, ROWS)


def fill(directory: Path) -> None:
    """Take what is left, to the last byte."""
    number = len(list(directory.glob("ballast*")))
    for size in (1 << 16, 1 << 10):
        with contextlib.suppress(OSError):
            for _ in range(1_000):
                number += 1
                with (directory / f"ballast{number}").open("xb", buffering=0) as file:
                    while file.write(bytes(size)) == size:
                        pass


def fill_for_good(directory: Path, client: Client, server: RunningServer) -> None:
    """Fill until inserts stay refused: a flush under way frees space behind our back."""
    refused = 0
    for _ in range(200):
        fill(directory)
        refused = refused + 1 if client.insert(server)[0] == 507 else 0
        if refused == 8:
            return
        time.sleep(0.1)
    raise AssertionError("inserts go on being taken")


def give_back(directory: Path) -> None:
    for path in directory.glob("ballast*"):
        path.unlink()


def test_a_full_disk_refuses_inserts_and_everything_returns_by_itself(small_disk, tmp_path) -> None:
    client = Client()
    (small_disk / "ballast").write_bytes(bytes(10 << 20))
    with start_server(small_disk, "--retrain-threshold=20000") as server:
        body = client.insert_until(server, 507)
        assert body["error"]["code"] == "disk_full"
        assert "space" in body["error"]["message"]
        fill_for_good(small_disk, client, server)
        for _ in range(20):
            assert client.insert(server)[0] == 507
            client.check(server)
        assert server.get("/ready") == {"ready": True}
        # Nobody can wait for a flush, and the log of the server tells so without filling a disk of its own.
        response = urllib3.request("POST", server.url + "/admin/gc", retries=False, timeout=60)
        assert response.status == 507, response.data
        lines = server.log.read_text().count("\n")
        assert lines < 10 * len(client.acknowledged) // 20 + 60, server.log.read_text()
        server.kill()

    # Starting needs no space: what is there can be read.
    with start_server(small_disk, "--retrain-threshold=20000") as server:
        client.check(server)
        assert client.insert(server)[0] == 507
        give_back(small_disk)
        client.insert_when_possible(server)
        client.check(server)
        server.post("/admin/gc")
        client.insert_when_possible(server)
        client.check(server)
        assert server.stop() == 0
    with start_server(small_disk) as server:
        client.check(server)
        assert "omendb_unclean_start 0.0" in metrics(server)


def metrics(server: RunningServer) -> str:
    return urllib3.request("GET", server.metrics_url + "/metrics", timeout=60).data.decode()


def test_space_that_returns_while_it_runs_brings_inserts_back(tmp_path) -> None:
    require(loop=True)
    client = Client()
    make_ext4(tmp_path / "disk.img", 12)
    with mounted_image(tmp_path / "disk.img", tmp_path / "data") as disk:
        with start_server(disk, "--retrain-threshold=20000") as server:
            for _ in range(2):
                with contextlib.suppress(OSError):
                    (disk / "ballast").write_bytes(bytes(6 << 20))
                client.insert_until(server, 507)
                fill_for_good(disk, client, server)
                give_back(disk)
                client.insert_when_possible(server)
                client.check(server)
            server.kill()
        with start_server(disk) as server:
            client.check(server)


def test_a_new_store_on_a_full_disk_waits_for_space(tmp_path) -> None:
    require()
    with mounted_tmpfs(tmp_path / "data", 1) as disk:
        fill(disk)
        client = Client()
        with start_server(disk) as server:
            assert client.insert(server)[0] == 507
            server.kill()
        with start_server(disk) as server:
            assert client.insert(server)[0] == 507
            give_back(disk)
            client.insert_when_possible(server)
            server.kill()
        with start_server(disk) as server:
            client.insert_when_possible(server)
            client.check(server)


def test_a_file_system_that_becomes_read_only_ends_the_server_and_loses_nothing(tmp_path) -> None:
    """An ext4 with an error remounts itself: the log fails, so that the process ends (P6)."""
    require(loop=True)
    make_ext4(tmp_path / "disk.img", 12)
    client = Client()
    with (
        mounted_image(tmp_path / "disk.img", tmp_path / "data", "loop,errors=remount-ro") as disk,
        start_server(disk) as server,
    ):
        for _ in range(5):
            client.insert(server)
        device = run("findmnt", "-n", "-o", "SOURCE", str(disk)).strip().rpartition("/")[2]
        with open(f"/sys/fs/ext4/{device}/trigger_fs_error", "w") as trigger:  # noqa: PTH123
            trigger.write("1")
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            status, body = client.insert(server)
            assert status == 503, (status, body)
            assert body["error"]["code"] == "storage_failed"
        assert server.process.wait(60) == 1
        # It cannot be opened, and says why.
        again = subprocess.run(
            [server.process.args[0], "serve", f"--data-dir={disk}", "--port=0", "--metrics-port=0"],  # type: ignore[index]
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert again.returncode == 1
        assert "Read-only file system" in again.stdout
    subprocess.run(["fsck.ext4", "-y", str(tmp_path / "disk.img")], capture_output=True, timeout=60)
    with (
        mounted_image(tmp_path / "disk.img", tmp_path / "data") as disk,
        start_server(disk) as server,
    ):
        client.check(server)
        client.insert_when_possible(server)


def test_a_limit_on_the_size_of_files_only_refuses_what_does_not_fit(tmp_path) -> None:
    """SIGXFSZ and EFBIG: the log goes on in a new file once what it holds is in segments."""
    client = Client()
    prefix = ("prlimit", f"--fsize={1 << 20}", "--")
    with start_server(tmp_path / "data", prefix=prefix) as server:
        client.insert_until(server, 507, attempts=200)
        for _ in range(3):
            client.insert_when_possible(server)
            client.insert_until(server, 507, attempts=200)
        client.check(server)
        assert len(client.acknowledged) > 100
        server.kill()
    with start_server(tmp_path / "data") as server:
        client.check(server)


def test_without_file_descriptors_the_server_lives_and_flushes_later(tmp_path) -> None:
    client = Client()
    with start_server(tmp_path / "data", "--retrain-threshold=2000") as server:
        client.insert(server)
        process = server.process.pid
        inserting = urllib3.HTTPConnectionPool("127.0.0.1", server.port, maxsize=1)
        inserting.request("GET", "/health", retries=False)
        used = len(list(Path(f"/proc/{process}/fd").iterdir()))
        soft, hard = resource.prlimit(process, resource.RLIMIT_NOFILE)
        resource.prlimit(process, resource.RLIMIT_NOFILE, (used, hard))
        try:
            refused = taken = 0
            for number in range(1, 20):
                body = orjson.dumps(
                    {
                        "series_id": [number % 7] * ROWS,
                        "timestamp": list(range(number * ROWS, (number + 1) * ROWS)),
                        "value": [float(number)] * ROWS,
                    }
                )
                answer = inserting.request("POST", "/insert", body=body, retries=False, timeout=60)
                if answer.status == 200:
                    taken += 1
                    client.acknowledged.append(number)
                else:
                    refused += 1
                    assert orjson.loads(answer.data)["error"]["code"] == "overloaded", answer.data
                assert inserting.request("GET", "/health", retries=False, timeout=60).status == 200
            assert taken >= 4
            assert refused > 0
            assert server.process.poll() is None
        finally:
            resource.prlimit(process, resource.RLIMIT_NOFILE, (soft, hard))
            inserting.close()
        client.sent = 20
        client.insert_when_possible(server)
        server.post("/admin/gc")
        client.check(server)
        assert server.get("/admin/stats")["memtable_rows"] == 0
        server.kill()
    with start_server(tmp_path / "data") as server:
        client.check(server)


# In process: what a small disk does not show reliably.


def open_faulty(tmp_path: Path, **settings: int) -> tuple[omendb.Engine, FaultyFileSystem]:
    fs = FaultyFileSystem(omendb.storage.fs.OsFileSystem())
    engine = omendb.Engine(tmp_path / "db", Settings(**settings), fs=fs)  # type: ignore[arg-type]
    return engine, fs


@pytest.mark.parametrize("only", [".wal", "MANIFEST"])
def test_a_full_disk_at_the_start_serves_reads_and_takes_inserts_later(tmp_path, only) -> None:
    with omendb.open(tmp_path / "db") as db:
        db.insert(1, [1, 2], [1.0, 2.0])
    engine, fs = open_faulty(tmp_path)
    fs.fail("create", "ENOSPC", only=only)

    with engine:
        assert engine.query().timestamp.tolist() == [1, 2]
        with pytest.raises(DiskFullError):
            engine.insert(1, 3, 3.0)
        fs.heal()
        engine.insert(1, 4, 4.0)
        assert engine.query().timestamp.tolist() == [1, 2, 4]

    with omendb.open(tmp_path / "db") as again:
        assert again.query().timestamp.tolist() == [1, 2, 4]


@pytest.mark.parametrize("only", [".wal", "MANIFEST", ""])
def test_a_start_on_a_full_disk_leaves_what_the_next_start_needs(tmp_path, only) -> None:
    with omendb.open(tmp_path / "db") as db:
        db.insert(1, [1, 2], [1.0, 2.0])
    for _ in range(3):
        engine, fs = open_faulty(tmp_path)
        fs.fail("create", "ENOSPC", only=only)
        engine.start()
        assert engine.query().count == 2
        with pytest.raises(OSError, match=r"injected|space"):
            engine.close()  # a clean stop must be written down: this is none

    with omendb.open(tmp_path / "db") as again:
        again.insert(1, 3, 3.0)
        assert again.query().timestamp.tolist() == [1, 2, 3]


def test_the_timer_goes_on_when_there_is_no_descriptor_to_read_the_memory_with(tmp_path, monkeypatch) -> None:
    calls = 0
    real = omendb.engine.process_memory

    def without_descriptors() -> Any:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real()

    monkeypatch.setattr(omendb.engine, "process_memory", without_descriptors)
    with omendb.open(tmp_path / "db", flush_interval_ms=1_000) as db:
        db.insert(1, 1, 1.0)
        give_up = time.monotonic() + RETURN_SECONDS
        while db.stats().memtable_rows:
            assert time.monotonic() < give_up, "it was never flushed"
            time.sleep(0.05)
    assert calls > 4


def test_failed_flushes_are_logged_once_and_a_request_does_not_wait_for_the_next_attempt(
    tmp_path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(omendb.flusher, "_RETRY_SECONDS_MIN", 0.05)
    monkeypatch.setattr(omendb.flusher, "_RETRY_SECONDS_MAX", 0.1)
    caplog.set_level("INFO", "omendb.maintenance")
    engine, fs = open_faulty(tmp_path, retrain_threshold=1_000)
    with engine:
        fs.fail("create", "EMFILE", only=".parquet")
        with pytest.raises(OverloadedError):
            for start in range(0, 10_000, 1_000):
                engine.insert(1, np.arange(start, start + 1_000), np.zeros(1_000))
        attempts = fs.calls["create"]
        give_up = time.monotonic() + RETURN_SECONDS
        while fs.calls["create"] < attempts + 5:
            assert time.monotonic() < give_up, "it is not tried again"
            time.sleep(0.02)
        failures = [record for record in caplog.records if "flush failed" in record.getMessage()]
        assert len(failures) == 1
        fs.heal()
        engine.flush()
        assert any("flush works again" in record.getMessage() for record in caplog.records)


def test_a_merge_of_our_own_accord_leaves_the_last_space_to_inserts(tmp_path) -> None:
    engine, fs = open_faulty(tmp_path)
    fs.free_bytes = lambda _path: 0  # type: ignore[attr-defined]
    with engine:
        for start in range(0, 2_000, 100):
            engine.insert(1, np.arange(start, start + 100), np.zeros(100))
            engine.flush()
        with pytest.raises(OSError, match=r"a merge needs \d+ bytes"):
            engine._store.compact()  # type: ignore[union-attr]
        assert engine.stats().segments == 20
        engine.gc()  # whoever asks for it gets it
        assert engine.stats().segments == 1
        assert engine.query().count == 2_000
