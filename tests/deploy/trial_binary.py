"""The single file on a Debian without Python. `make test-binary` runs this; it takes minutes.

``OMENDB_BASE_ROOT`` names the root file system of a bare Debian (as debootstrap or an export of the base image makes
it), ``OMENDB_BINARY`` the file.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest
import urllib3

from tests.deploy.containerfile import ROOT
from tests.deploy.sandbox import UID, Sandbox, cpu_seconds, execute, first_process
from tests.serving import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(1_800)  # seconds; compiling everything on a busy machine takes long

HOME = "/srv"
WITHOUT_UNPACKING_CPU_SECONDS_MAX = 4
"""Of processor time, from exec to ready: compiling takes a hundred."""


@pytest.fixture(scope="session")
def base() -> Path:
    given = os.environ.get("OMENDB_BASE_ROOT")
    assert given, "OMENDB_BASE_ROOT must name the root file system of a bare Debian"
    assert os.geteuid() == 0, "needs root, for namespaces"
    root = Path(given).resolve()
    assert not [
        *root.glob("usr/bin/python*"),
        *root.glob("usr/lib/python*"),
        *root.glob("usr/local/bin/python*"),
    ]
    return root


@pytest.fixture(scope="session")
def binary() -> Path:
    return Path(os.environ.get("OMENDB_BINARY", str(ROOT / "dist" / "omendb"))).resolve()


@pytest.fixture
def home(tmp_path: Path, binary: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    shutil.copy(binary, made / "omendb")
    os.chown(made, UID, UID)
    return made


@pytest.fixture
def sandbox(base: Path, home: Path) -> Sandbox:
    return Sandbox(base, {home: HOME}, {"PATH": "/usr/bin:/bin", "HOME": HOME})


class Server:
    """One `./omendb serve`."""

    def __init__(self, sandbox: Sandbox, log: Path) -> None:
        self.port, metrics_port = free_port(), free_port()
        self._log = log
        self._started = time.monotonic()
        self._starter = sandbox.start(
            [
                "sh",
                "-c",
                f"cd {HOME} && exec ./omendb serve --port {self.port} --metrics-port {metrics_port}",
            ],
            log,
        )

    @property
    def pid(self) -> int:
        return first_process(self._starter)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_until_ready(self, seconds: float = 120) -> float:
        while time.monotonic() < self._started + seconds:
            assert self._starter.poll() is None, self.log
            try:
                if self.request("GET", "/ready").status == 200:
                    return time.monotonic() - self._started
            except urllib3.exceptions.HTTPError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"not ready:\n{self.log}")

    def request(self, method: str, path: str, body: object = None) -> urllib3.BaseHTTPResponse:
        data = None if body is None else orjson.dumps(body)
        return urllib3.request(
            method, f"http://127.0.0.1:{self.port}{path}", body=data, retries=False, timeout=10
        )

    def stop(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        return self._starter.wait(60)

    def end(self) -> None:
        if self._starter.poll() is None:
            self._starter.kill()
            self._starter.wait(30)


@pytest.fixture
def start(sandbox: Sandbox, tmp_path: Path) -> Iterator[object]:
    servers: list[Server] = []

    def begin() -> Server:
        servers.append(Server(sandbox, tmp_path / f"log-{len(servers)}"))
        return servers[-1]

    yield begin
    for server in servers:
        server.end()


def unpacked(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "omendb").iterdir())


def test_it_serves_without_python(start, home: Path, binary: Path, capsys) -> None:
    server = start()
    first_seconds = server.wait_until_ready()

    assert "unpacks itself into /srv/.cache/omendb/" in server.log
    assert "compil" not in server.log.lower()
    assert len(unpacked(home)) == 1
    assert execute(server.pid, "pgrep", "omendb").returncode == 127, "a bare Debian has no procps"
    processes = execute(server.pid, "sh", "-c", "cat /proc/[0-9]*/comm").stdout.split()
    assert [name for name in processes if name == "omendb"] == ["omendb"]
    assert set(processes) <= {"omendb", "sh", "cat"}, "and no other process of the program"
    assert (
        server.request("POST", "/insert", {"series_id": 1, "timestamp": [1, 2], "value": [3, 4]}).status
        == 200
    )
    assert orjson.loads(server.request("GET", "/query?format=columns").data)["value"] == [3.0, 4.0]
    assert server.stop() == 0
    assert list((home / "omendb-data" / "data").glob("*.parquet"))

    again = start()
    seconds = again.wait_until_ready()
    used = cpu_seconds(again.pid)
    assert "unpacks" not in again.log
    assert "compil" not in again.log.lower()
    assert used < WITHOUT_UNPACKING_CPU_SECONDS_MAX
    assert orjson.loads(again.request("GET", "/query?format=columns").data)["value"] == [3.0, 4.0]
    assert again.stop() == 0
    size = subprocess.run(["du", "-sm", str(unpacked(home)[0])], capture_output=True, text=True, check=True)
    with capsys.disabled():
        print(
            f"\nfile {binary.stat().st_size / 2**20:.0f} MiB, unpacked {size.stdout.split()[0]} MiB; "
            f"first start {first_seconds:.1f} s, later ones {seconds:.1f} s, {used:.2f} s of processor time"
        )


def test_procps_shows_one_process_of_that_name(start) -> None:
    server = start()
    server.wait_until_ready()
    # From outside, with this machine's pgrep, in the namespace of the sandbox.
    done = subprocess.run(
        ["pgrep", "--ns", str(server.pid), "--nslist", "pid", "omendb"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.split() == [str(server.pid)]
    assert server.stop() == 0


def test_every_command_works(sandbox: Sandbox, home: Path) -> None:
    shutil.copy(ROOT / "tests" / "data" / "nab.csv.gz", home / "nab.csv.gz")

    def run(*words: str) -> str:
        done = sandbox.run(f"{HOME}/omendb", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    store = f"{HOME}/store"
    assert run("--version").startswith("omendb ")
    assert re.search(r"^[1-9]\d* kernels ready, 0 compiled, ", run("warmup"), re.MULTILINE)
    run("import", "--data-dir", store, f"{HOME}/nab.csv.gz")
    assert "series" in run("stats", "--data-dir", store)
    assert len(run("query", "--data-dir", store, "--series-id", "57", "--limit", "5").splitlines()) >= 6
    run("backup", "--data-dir", store, f"{HOME}/backup")
    run("verify", store)
    run("restore", f"{HOME}/backup", f"{HOME}/restored")
    run("repair", f"{HOME}/restored")
    assert sandbox.run(f"{HOME}/omendb", "verify", f"{HOME}/nothing").returncode != 0


def test_starts_at_the_same_time_unpack_to_one_place(sandbox: Sandbox, home: Path) -> None:
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [
        threading.Thread(target=lambda: results.append(sandbox.run(f"{HOME}/omendb", "--version")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [done.returncode for done in results] == [0, 0, 0], [done.stderr for done in results]
    assert len(unpacked(home)) == 1


def test_a_file_that_is_not_whole_leaves_nothing_behind(sandbox: Sandbox, home: Path) -> None:
    with (home / "omendb").open("r+b") as file:
        file.truncate(20_000_000)

    done = sandbox.run(f"{HOME}/omendb", "--version")

    assert done.returncode == 1
    assert "is not whole" in done.stderr
    assert unpacked(home) == []


def test_without_a_home_it_unpacks_to_a_directory_of_its_own(base: Path, home: Path) -> None:
    sandbox = Sandbox(base, {home: HOME}, {"PATH": "/usr/bin:/bin"})

    done = sandbox.run(
        "sh", "-c", f"{HOME}/omendb --version && ls -ld /tmp/omendb-{UID} && {HOME}/omendb --version"
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("unpacks itself") == 1
    assert "drwx------" in done.stdout


def test_a_directory_that_others_can_write_to_is_not_used(base: Path, home: Path) -> None:
    sandbox = Sandbox(base, {home: HOME}, {"PATH": "/usr/bin:/bin", "TMPDIR": "/tmp"})

    done = sandbox.run(
        "sh", "-c", f"mkdir -m 777 /tmp/omendb-{UID} && {HOME}/omendb --version; find /tmp/omendb-{UID}"
    )

    assert "no place to unpack to" in done.stderr
    assert done.stdout == f"/tmp/omendb-{UID}\n"


def test_kernels_can_be_compiled_inside(sandbox: Sandbox, home: Path) -> None:
    """What an older processor does at its first start."""
    sandbox.environment = {**sandbox.environment, "NUMBA_CACHE_DIR": f"{HOME}/kernels"}

    done = sandbox.run(f"{HOME}/omendb", "warmup", timeout=1_200)

    assert done.returncode == 0, done.stderr
    assert re.search(r"^(\d+) kernels ready, \1 compiled, ", done.stdout, re.MULTILINE)
    assert list(home.glob("kernels/kernels-*/*.nbc"))
