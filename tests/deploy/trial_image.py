"""The built image: started, exercised and stopped as in a cluster. `make test-image` runs this; it takes minutes.

It works on the image's root file system, which `make test-image` unpacks: ``OMENDB_IMAGE_ROOT`` names it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest
import urllib3

from tests.deploy.containerfile import ROOT, stages
from tests.deploy.runbook import commands_in_pod
from tests.deploy.sandbox import UID, Sandbox, cpu_seconds, execute, first_process, shell
from tests.serving import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(1_800)  # seconds; compiling everything on a busy machine takes long

FINAL = stages()[-1]
ON_CPU_SECONDS_MAX = 3
"""Of processor time, from exec to ready: compiling takes a hundred."""

DATA = "/var/lib/omendb"


@pytest.fixture(scope="session")
def root() -> Path:
    given = os.environ.get("OMENDB_IMAGE_ROOT")
    assert given, "OMENDB_IMAGE_ROOT must name the image's root file system"
    assert os.geteuid() == 0, "needs root, for namespaces"
    return Path(given).resolve()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    os.chown(made, UID, UID)
    return made


class Pod:
    """One container of the image."""

    def __init__(self, root: Path, data: Path, log: Path, **environment: str) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        settings = {"OMENDB_PORT": str(self.port), "OMENDB_METRICS_PORT": str(self.metrics_port)}
        sandbox = Sandbox(root, {data: DATA}, {**FINAL.environment(), **settings, **environment})
        self._log = log
        self._started = time.monotonic()
        self._starter = sandbox.start(FINAL.command(), log)

    @property
    def pid(self) -> int:
        return first_process(self._starter)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str, *, metrics: bool = False) -> urllib3.BaseHTTPResponse:
        port = self.metrics_port if metrics else self.port
        return urllib3.request("GET", f"http://127.0.0.1:{port}{path}", retries=False, timeout=10)

    def wait_until_ready(self, seconds: float = 60) -> tuple[float, list[dict[str, object]]]:
        """Return the seconds that it took, and what ``/ready`` said meanwhile."""
        said: list[dict[str, object]] = []
        while time.monotonic() < self._started + seconds:
            assert self._starter.poll() is None, self.log
            try:
                response = self.get("/ready", metrics=True)
            except urllib3.exceptions.HTTPError:
                time.sleep(0.02)
                continue
            if response.status == 200:
                return time.monotonic() - self._started, said
            said.append(orjson.loads(response.data))
            time.sleep(0.02)
        raise AssertionError(f"not ready:\n{self.log}")

    def stop(self) -> int:
        """Send SIGTERM as the kubelet does; return the exit code."""
        os.kill(self.pid, 15)
        return self._starter.wait(60)

    def end(self) -> None:
        if self._starter.poll() is None:
            self._starter.kill()
            self._starter.wait(30)


@pytest.fixture
def pod(root: Path, data: Path, tmp_path: Path) -> Iterator[Pod]:
    made = Pod(root, data, tmp_path / "log")
    yield made
    made.end()


def listing(root: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of everything in the image."""
    return sorted(
        (str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in (root / "opt").rglob("*")
    )


def test_a_start_compiles_nothing_and_writes_nothing(root: Path, pod: Pod, capsys) -> None:
    before = listing(root)

    seconds, said = pod.wait_until_ready()
    used = cpu_seconds(pod.pid)

    with capsys.disabled():
        print(f"\nstart to ready: {seconds:.2f} s, {used:.2f} s of processor time")
    assert used < ON_CPU_SECONDS_MAX
    assert "compil" not in pod.log.lower()
    assert "warning" not in pod.log.lower()
    # Each module's turn is reported, "ready" also when it came from the cache; a compiled one is logged.
    assert all(body["phase"] in ("new", "starting") for body in said)
    assert execute(pod.pid, "touch", "/opt/omendb/kernels/x").returncode == 1
    assert execute(pod.pid, "touch", "/x").returncode == 1
    assert listing(root) == before
    assert execute(pod.pid, "find", "/tmp", "-type", "f").stdout == ""


def test_it_is_one_process_named_omendb_without_rights(pod: Pod) -> None:
    pod.wait_until_ready()

    assert execute(pod.pid, "pgrep", "omendb").stdout == "1\n"
    shown = shell(pod.pid, "ps", "-p", "$(pgrep", "omendb)", "-o", "pid,vsz,rss,pcpu,pmem,comm").stdout
    assert [line.split()[-1] for line in shown.splitlines()] == ["COMMAND", "omendb"]
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pod.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == [str(UID)] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("command", commands_in_pod(), ids=" ".join)
def test_what_the_runbook_runs_in_the_pod_works(pod: Pod, data: Path, command: list[str]) -> None:
    pod.wait_until_ready()
    if "oflag=direct" in command:
        # /tmp is the node's disk in the cluster, and memory here, which does not take O_DIRECT everywhere.
        command = [word.replace("/tmp/test", f"{DATA}/test") for word in command]

    done = shell(pod.pid, *command)

    assert done.returncode == 0, done.stderr
    assert done.stdout or done.stderr or command[0] == "find"


def test_points_survive_a_stop_and_a_start(root: Path, data: Path, pod: Pod, tmp_path: Path) -> None:
    pod.wait_until_ready()
    body = orjson.dumps({"series_id": 7, "timestamp": list(range(1000)), "value": list(range(1000))})
    answer = execute(pod.pid, "curl", "-sS", f"http://127.0.0.1:{pod.port}/insert", "-d", body.decode())
    assert answer.stdout == '{"inserted":1000}', answer.stderr
    check = [
        word.replace("9090", str(pod.metrics_port))
        for word in orjson.loads(FINAL.one("HEALTHCHECK").split("CMD", 1)[1])
    ]
    assert execute(pod.pid, *check).returncode == 0
    assert pod.stop() == 0
    assert "stopped" in pod.log
    assert list((data / "data").glob("*.parquet")), "a stop flushes"

    again = Pod(root, data, tmp_path / "log-2")
    try:
        again.wait_until_ready()
        rows = orjson.loads(again.get("/query?series_id=7&format=columns").data)
        assert rows["value"] == [float(n) for n in range(1000)]
        assert again.stop() == 0
    finally:
        again.end()


def test_every_command_works_without_what_was_pruned(root: Path, data: Path) -> None:
    sandbox = Sandbox(root, {data: DATA}, FINAL.environment())
    shutil.copy(ROOT / "tests" / "data" / "nab.csv.gz", data / "nab.csv.gz")

    def run(*words: str) -> str:
        done = sandbox.run("omendb", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    store = f"{DATA}/store"
    assert re.search(r"^[1-9]\d* kernels ready, 0 compiled, ", run("warmup"), re.MULTILINE)
    run("import", "--data-dir", store, f"{DATA}/nab.csv.gz")
    assert "series" in run("stats", "--data-dir", store)
    assert len(run("query", "--data-dir", store, "--series-id", "57", "--limit", "5").splitlines()) >= 6
    run("query", "--data-dir", store, "--series-id", "57", "--step", "86400000", "--agg", "mean,stddev")
    run("backup", "--data-dir", store, f"{DATA}/backup")
    run("verify", store)
    run("restore", f"{DATA}/backup", f"{DATA}/restored")
    run("repair", f"{DATA}/restored")
    assert "0.1.0" in run("--version")


OLD = """
import llvmlite.binding
features = llvmlite.binding.get_host_cpu_features()
for name in ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"):
    features[name] = False
for name in features:
    if name.startswith("avx"):
        features[name] = False
llvmlite.binding.get_host_cpu_features = lambda: features
llvmlite.binding.get_host_cpu_name = lambda: "nehalem"
"""


def test_an_older_processor_compiles_for_itself_and_says_so(root: Path, data: Path, tmp_path: Path) -> None:
    (data / "sitecustomize.py").write_text(OLD)
    pod = Pod(root, data, tmp_path / "log", PYTHONPATH=DATA)
    try:
        _, said = pod.wait_until_ready(900)
        assert "older than x86-64-v3 (it lacks avx, avx2, bmi, bmi2, f16c, fma, lzcnt, movbe)" in pod.log
        assert f"kept in /tmp/omendb-{UID}/kernels-" in pod.log
        assert "kernels compiled module=search" in pod.log
        assert any("compiling kernels" in str(body["message"]) for body in said)
        assert pod.get("/query").status == 200
        assert pod.stop() == 0
    finally:
        pod.end()


def test_the_image_holds_no_tools_for_building(root: Path) -> None:
    packages = next((root / "opt" / "omendb" / "lib").glob("python3*")) / "site-packages"

    assert not (packages / "pip").exists()
    assert not list(packages.rglob("tests"))
    assert not list(packages.rglob("libarrow_flight*"))
    size = subprocess.run(
        ["du", "-sm", str(root / "opt" / "omendb")], capture_output=True, text=True, check=True
    )
    print(f"/opt/omendb: {size.stdout.split()[0]} MiB")
