"""A machine of its own for the runbook: its own processes, mounts and network, where nothing needs to be edited.

In it ``load-balancer`` is this host's name, ports 3000 and 9090 are free, ``/var/lib/omendb`` is a directory of the
test, and ``pgrep`` sees nobody else's processes. Run as ``python -m tests.runbook.node DIRECTORY`` in new
namespaces, it prepares them and waits for the end of its standard input; `Node` does all that.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.configmap import ConfigMapMount
from tests.conftest import IN_CI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent.parent
DATA = Path("/var/lib/omendb")
PROGRAMS = ("unshare", "nsenter", "curl", "jq", "top", "ps", "free", "pgrep", "iostat", "netstat")
SECONDS = 60
"""A limit against hanging."""


def require() -> None:
    """Skip where namespaces or the runbook's programs are missing; in CI fail."""
    reason = None
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0:
        reason = "namespaces need root"
    elif missing:
        reason = f"not installed (packages.debian names their packages): {', '.join(missing)}"
    else:
        probe = subprocess.run(["unshare", *_NAMESPACES, "true"], capture_output=True, text=True, check=False)
        if probe.returncode:
            reason = f"namespaces are not allowed here: {probe.stderr.strip()}"
    if reason is not None:
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)


_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--fork", "--mount-proc", "--kill-child")


class Node:
    """The machine, with what the stand-in for ``kubectl`` acts on below `directory`.

    Attributes
    ----------
    directory : Path
        ``state.json``: the ConfigMap and what was patched; ``pods/``: one log a process of the server;
        ``config/``: the ConfigMap as the kubelet mounts it.
    """

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self.directory = directory
        for name in ("data", "bin", "pods"):
            (directory / name).mkdir(parents=True)
        self.state = {"settings": settings, "patches": {}}
        ConfigMapMount(directory / "config", settings)
        for name in ("kubectl", "watch"):
            program = directory / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.runbook.{name} "$@"\n')
            program.chmod(0o755)
        self._init = subprocess.Popen(
            ["unshare", *_NAMESPACES, sys.executable, "-m", "tests.runbook.node", str(directory)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == "ready\n", "the namespaces cannot be prepared"
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        (self._pid,) = children

    @property
    def state(self) -> dict[str, Any]:
        """What the stand-in knows."""
        found: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        return found

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        (self.directory / "state.json").write_text(json.dumps(value))

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        done = subprocess.run(
            ["nsenter", f"--target={self._pid}", "--mount", "--pid", "--net", "--uts", *command],
            cwd=ROOT,
            env=environment(self.directory),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done

    def script(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script there, as it stands."""
        file = self.directory / "script.sh"
        file.write_text(text)
        return self.run("bash", str(file), check=False)

    def get(self, path: str, port: int = 3000) -> Any:
        """Return the JSON that the server answers to a GET."""
        return json.loads(
            self.run("curl", "-sS", "--max-time", "60", f"http://load-balancer:{port}{path}").stdout
        )

    def post(self, path: str, body: object = None) -> Any:
        """Return the JSON that the server answers to a POST."""
        file = self.directory / "body.json"
        file.write_text("" if body is None else json.dumps(body))
        url = f"http://load-balancer:3000{path}"
        answer = self.run("curl", "-sS", "--fail-with-body", "-X", "POST", "--data-binary", f"@{file}", url)
        return json.loads(answer.stdout)

    def metric(self, name: str) -> float:
        """Return a sample of the metrics by its name, labels and all."""
        for line in self.run("curl", "-s", "http://load-balancer:9090/metrics").stdout.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def wait_for(self, what: Callable[[], bool], name: str) -> None:
        """Wait until something holds."""
        give_up = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < give_up, f"{name}: it does not come to that; the log:\n{self.log()}"
            time.sleep(0.1)

    def log(self) -> str:
        """Return what the first pod has written."""
        return (self.directory / "pods" / "prod-omendb-0.log").read_text()

    def close(self) -> None:
        """End everything."""
        assert self._init.stdin is not None
        assert self._init.stdout is not None
        self._init.stdin.close()
        self._init.wait(30)
        self._init.stdout.close()


@contextlib.contextmanager
def running_node(directory: Path, settings: dict[str, str]) -> Iterator[Node]:
    """Start the machine with one ready server."""
    node = Node(directory, settings)
    try:
        node.run("kubectl", "scale", "deployment/prod-omendb", "--replicas=1", "-n", "omendb-prod")
        ready = ("curl", "-sf", "http://load-balancer:9090/ready")
        node.wait_for(lambda: node.run(*ready, check=False).returncode == 0, "ready")
        yield node
    finally:
        node.close()


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of everything that runs there."""
    return {
        **os.environ,
        "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RUNBOOK_CLUSTER": str(directory),
        "OMENDB_CONFIG_DIR": str(directory / "config"),
    }


def rendered_settings(kubectl: str) -> dict[str, str]:
    """Return the ConfigMap of the overlay for production."""
    overlay = ROOT / "deploy" / "k8s" / "overlays" / "prod"
    done = subprocess.run([kubectl, "kustomize", str(overlay)], capture_output=True, text=True, check=True)
    (data,) = [
        thing["data"]
        for thing in yaml.safe_load_all(done.stdout)
        if thing["kind"] == "ConfigMap" and thing["metadata"]["name"] == "omendb-config"
    ]
    return dict(data)


# In the namespaces.


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


_BIND = 4096


def _loopback_up() -> None:
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, 0x8913, request))[1]  # SIOCGIFFLAGS
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))  # SIOCSIFFLAGS, IFF_UP


def main() -> None:
    directory = Path(sys.argv[1])
    _loopback_up()
    socket.sethostname("prod-omendb-0")
    hosts = directory / "hosts"
    hosts.write_text("127.0.0.1 localhost load-balancer prod-omendb-0\n")
    _mount(str(hosts), "/etc/hosts", "", _BIND)
    _mount("none", "/var/lib", "tmpfs", 0)
    DATA.mkdir()
    _mount(str(directory / "data"), str(DATA), "", _BIND)
    # Process 1 gets the orphans of a machine: without this they would be zombies, which pgrep shows.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    sys.stdin.read()
    # This is process 1 here: with it all others end. Those that run get their time to stop in order.
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, 15)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main()
