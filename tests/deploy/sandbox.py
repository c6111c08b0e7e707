"""Runs commands in a root file system as a cluster would: read-only, as nobody special, as process 1.

Needs root: it makes namespaces of its own for mounts and processes. The network is the machine's.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UID = 10001

_ENTER = """
set -eu
root=$1; shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done
shift
cd /
exec chroot "$root" /usr/bin/setpriv --reuid $UID --regid $UID --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all env -i "$@"
"""


@dataclass
class Sandbox:
    """A root file system, what is mounted into it, and what its processes find in their environment.

    Parameters
    ----------
    root : Path
    volumes : dict of Path to str
        Directories of this machine, and where they appear; those places must be there. Writable.
    environment : dict of str to str
    """

    root: Path
    volumes: dict[Path, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command as process 1 of its namespace; return `unshare`, which ends as it ends."""
        with log.open("ab") as output:
            return subprocess.Popen(self._words(command), stdout=output, stderr=output)

    def run(self, *command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._words(command), capture_output=True, text=True, timeout=timeout, check=False
        )

    def _words(self, command: Sequence[str]) -> list[str]:
        mounts = [word for pair in self.volumes.items() for word in (str(pair[0]), pair[1])]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"),
            *("sh", "-c", f"UID={UID}\n{_ENTER}", "sandbox", str(self.root), *mounts, "--"),
            *variables,
            *command,
        ]


def first_process(starter: subprocess.Popen[bytes]) -> int:
    """Return the id, outside, of the process that is 1 inside."""
    children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split()
    (child,) = children
    return int(child)


def execute(pid: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command beside a running process, as `kubectl exec` does."""
    path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    enter = ["nsenter", "-t", str(pid), "-m", "-p", "-r", "-w", "-S", str(UID), "-G", str(UID)]
    return subprocess.run(
        [*enter, "--", "env", "-i", f"PATH={path}", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def shell(pid: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the runbook beside a running process; what is in ``$(...)`` is run there too."""
    line = " ".join(
        word if word.startswith("$(") or word.endswith(")") else shlex.quote(word) for word in command
    )
    return execute(pid, "sh", "-c", line)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
