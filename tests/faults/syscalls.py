"""Kills or fails a small scripted program at a chosen system call, by strace, and recovers what it leaves.

The program (``python -m tests.faults.syscalls``) opens a store in its own process, inserts, flushes, merges
and refits, and says on its standard output how each step ended; what it said is what it acknowledged.
Paths given to strace keep sockets and the standard output out of it. strace counts calls by thread: the
fifth ``fdatasync`` is the fifth of whichever thread comes to five first.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import omendb
from omendb.errors import DiskFullError, OmenError, OverloadedError, WalFailedError
from omendb.storage import filenames

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]

STEPS = 26

CALLS = (
    "openat",
    "writev",
    "fdatasync",
    "fallocate",
    "fsync",
    "ftruncate",
    "rename",
    "unlink",
    "mmap",
    "close",
    "flock",
    "pread64",
)
"""System calls on files of the data directory; `write` is the program's answer itself."""

ERRORS = {
    "openat": ("EIO", "EMFILE", "ENOSPC", "EACCES"),
    "writev": ("EIO", "ENOSPC", "EDQUOT", "EFBIG", "EINTR"),
    "fdatasync": ("EIO", "ENOSPC", "EINTR"),
    "fallocate": ("EIO", "EROFS", "EINTR", "EOPNOTSUPP"),
    "fsync": ("EIO", "ENOSPC", "EINTR"),
    "rename": ("EIO", "ENOSPC", "EACCES"),
    "unlink": ("EIO", "EACCES"),
    "mmap": ("ENOMEM", "EIO"),
    "read": ("EIO",),
    "pread64": ("EIO",),
    "flock": ("ENOLCK",),
}

_FILES = 48
"""File numbers that strace is told of; a run makes fewer."""


class LostDataError(AssertionError):
    """Recovery shows something other than what the program acknowledged."""


class Step(NamedTuple):
    """``insert`` with its columns; or flush, gc, retrain, reopen."""

    name: str
    series: list[int]
    timestamp: list[int]
    value: list[float]


class Outcome(NamedTuple):
    """How the program ended, and what it said of its steps: done, refused or failed."""

    status: int
    said: dict[int, str]
    stderr: str


def plan(seed: int) -> list[Step]:
    """Make the program's steps; every value in them is another one."""
    chance = random.Random(seed)
    steps: list[Step] = []
    value = 1.0
    for number in range(STEPS):
        name = "insert"
        if number > 2 and chance.random() < 0.45:
            name = chance.choice(["flush", "flush", "gc", "retrain", "reopen"])
        rows = chance.choice([1, 3, 40, 600]) if name == "insert" else 0
        steps.append(
            Step(
                name,
                [chance.randrange(4) for _ in range(rows)],
                [chance.randrange(400) for _ in range(rows)],
                [value + row for row in range(rows)],
            )
        )
        value += rows
    return steps


def run(directory: Path, seed: int) -> None:
    """Do the steps, and say after each how it ended: the program that is killed."""
    logging.disable(logging.CRITICAL)
    db = omendb.open(directory, retrain_threshold=1_000, max_error=8)
    for number, step in enumerate(plan(seed)):
        outcome = "done"
        try:
            if step.name == "insert":
                db.insert(step.series, step.timestamp, step.value)
            elif step.name == "reopen":
                db.close()
                db = omendb.open(directory, retrain_threshold=1_000, max_error=8)
            else:
                getattr(db, step.name)()
        except (DiskFullError, OverloadedError):
            outcome = "refused"
        except WalFailedError:
            outcome = "failed"
        except OmenError:
            if step.name in ("insert", "reopen"):
                raise
            outcome = "refused"
        os.write(1, f"{number} {outcome}\n".encode())
    db.close()


def paths(directory: Path) -> list[Path]:
    """Every path below a data directory that a run may touch."""
    data, wal = directory / filenames.DATA_DIRECTORY, directory / filenames.WAL_DIRECTORY
    numbers = range(1, _FILES)
    files = [directory / filenames.MANIFEST]
    files += [data / filenames.segment_name(number) for number in numbers]
    files += [
        data / filenames.index_name(number, index)
        for number in numbers
        for index in range(number + 1, min(number + 8, _FILES))
    ]
    temporary = [path.with_name(path.name + filenames.TEMPORARY_SUFFIX) for path in files]
    logs = [wal / filenames.wal_name(number) for number in numbers]
    return [directory, data, wal, directory / filenames.LOCK, *files, *temporary, *logs]


def strace(program: str, injections: Iterable[tuple[str, str]], only: Iterable[Path] = ()) -> list[str]:
    """Return the command that runs what follows it with some of its system calls tampered with.

    Parameters
    ----------
    program : str
        Where strace is.
    injections : iterable of tuple (str, str)
        A system call, and what happens to it in strace's words: ``signal=SIGKILL:when=3``.
    only : iterable of Path
        Calls on other files are left alone; all are tampered with when there is none.
    """
    injections = list(injections)
    # -D: the program, not strace, is the child, so that its signals and its status are its own.
    command = [program, "-D", "-f", "-qq", "-o", os.devnull]
    if not any("signal=" in what for _, what in injections):
        # Faster: other calls do not stop the program. A signal cannot be injected at a stop of seccomp's.
        command.append("--seccomp-bpf")
    command += ["-e", "trace=" + ",".join(sorted({call for call, _ in injections}))]
    for call, what in injections:
        command += ["-e", f"inject={call}:{what}"]
    for path in only:
        command += ["-P", str(path)]
    return command


def execute(prefix: Iterable[str], directory: Path, seed: int) -> Outcome:
    """Run the program behind `prefix`, to its end or its death."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "tests.faults.syscalls", "run", str(directory), str(seed)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait(30)
    lines = [line.split() for line in output.splitlines()]
    return Outcome(process.returncode, {int(number): outcome for number, outcome in lines}, errors)


def allowed(seed: int, said: dict[int, str]) -> list[dict[tuple[int, int], float]]:
    """Return the contents that the store may have after what the program said, all that was certain first.

    The step that was not answered, and the first whose log failed, are there whole or not at all; what was
    asked of a failed log after that is not there.

    Raises
    ------
    LostDataError
        It acknowledged something after its log had failed.
    """
    contents: list[dict[tuple[int, int], float]] = [{}]
    failed = False
    for number, step in enumerate(plan(seed)):
        outcome = said.get(number)
        if step.name == "reopen" and outcome == "done":
            failed = False
        if step.name == "insert":
            rows = dict(zip(zip(step.series, step.timestamp, strict=True), step.value, strict=True))
            if outcome == "done":
                if failed:
                    raise LostDataError(f"seed {seed}: step {number} acknowledged after the log failed")
                contents = [content | rows for content in contents]
            elif outcome != "refused" and not failed:
                contents += [content | rows for content in contents]
        failed = failed or outcome == "failed"
        if outcome is None:
            break
    return contents


def check(directory: Path, seed: int, said: dict[int, str], place: str) -> int:
    """Recover the store in this process, compare it, and make sure that it works.

    Returns
    -------
    int
        Rows compared.

    Raises
    ------
    LostDataError
    """
    content: dict[tuple[int, int], float] = {}
    for attempt in range(2):
        try:
            with omendb.open(directory, retrain_threshold=1_000) as db:
                found = db.query()
                db.insert(9, attempt, 1.0)
                if attempt:
                    db.gc()
                    db.retrain()
        except (OmenError, OSError) as error:
            raise LostDataError(f"{place}: cannot be recovered: {error}") from error
        ours = found.series_id == 9
        assert np.count_nonzero(ours) == attempt
        kept = [column[~ours].tolist() for column in (found.series_id, found.timestamp, found.value)]
        before, content = content, dict(zip(zip(kept[0], kept[1], strict=True), kept[2], strict=True))
        if attempt and content != before:
            raise LostDataError(f"{place}: a second start shows something else")
        if content not in allowed(seed, said):
            wanted = allowed(seed, said)[0]
            wrong = sorted(key for key in {*wanted, *content} if wanted.get(key) != content.get(key))
            raise LostDataError(
                f"{place}: {len(wrong)} rows are wrong, e.g. {wrong[:3]}; "
                f"{len(content)} there, {len(wanted)} acknowledged"
            )
    left = [path.name for path in directory.rglob("*.tmp")]
    if left:
        raise LostDataError(f"{place}: temporary files are left: {left}")
    return len(content)


def kill_at(program: str, directory: Path, seed: int, call: str, number: int, *, again: int = 0) -> int:
    """Kill the program as it makes its `number`-th `call`; recover; compare.

    Parameters
    ----------
    program : str
        Where strace is.
    directory : Path
        Made anew.
    seed, call, number
        What is run, and where it dies.
    again : int
        When above 0, the recovery (another run of the program) dies too, at this number of the same call.

    Returns
    -------
    int
        How many deaths it came to: 0 when there were fewer such calls, 2 when the recovery died as well.

    Raises
    ------
    LostDataError
    """
    place = f"seed {seed}, killed at {call} {number}" + (f", then at {call} {again}" if again else "")
    only = [] if call == "write" else paths(directory)
    outcome = execute(strace(program, [(call, f"signal=SIGKILL:when={number}")], only), directory, seed)
    if outcome.status not in (0, -signal.SIGKILL):
        raise LostDataError(f"{place}: ended with {outcome.status}: {outcome.stderr}")
    deaths = int(outcome.status != 0)
    if again and deaths:
        prefix = strace(program, [(call, f"signal=SIGKILL:when={again}")], only)
        process = subprocess.run(
            [*prefix, sys.executable, "-m", "tests.faults.syscalls", "recover", str(directory)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if process.returncode not in (0, -signal.SIGKILL):
            raise LostDataError(f"{place}: ended with {process.returncode}: {process.stderr}")
        deaths += process.returncode != 0
    check(directory, seed, outcome.said, place)
    return deaths


def fail_at(
    program: str, directory: Path, seed: int, call: str, error: str, when: str, only: Iterable[Path] = ()
) -> Outcome:
    """Let calls fail while the program runs; recover without them; compare.

    Parameters
    ----------
    program, directory, seed, call
        As in `kill_at`.
    error, when : str
        ``EIO``, and which calls of a thread: ``3``, ``3+``, ``3..5``.
    only : iterable of Path
        All of the data directory without it.

    Raises
    ------
    LostDataError
        Also when a signal ended the program: an error of a call is no reason to crash.
    """
    place = f"seed {seed}, {error} at {call} {when}"
    prefix = strace(program, [(call, f"error={error}:when={when}")], list(only) or paths(directory))
    outcome = execute(prefix, directory, seed)
    if outcome.status not in (0, 1):
        raise LostDataError(f"{place}: ended with {outcome.status}: {outcome.stderr}")
    check(directory, seed, outcome.said, place)
    return outcome


def soak(seed: int, seconds: float) -> dict[str, int]:
    """Kill and fail at random calls for so long.

    Returns
    -------
    dict of str to int
        ``syscall_kills``, ``syscall_recovery_kills``, ``syscall_errors`` and how many had an effect.
    """
    print(f"syscalls: seed {seed}", flush=True)
    program = shutil.which("strace")
    assert program is not None, "strace is not installed"
    logging.disable(logging.CRITICAL)
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    stop_at = time.monotonic() + seconds
    while time.monotonic() < stop_at:
        directory = Path(tempfile.mkdtemp(prefix="omendb-syscalls-"))
        try:
            run_seed = chance.getrandbits(20)
            number = int(1.2 ** chance.uniform(0, 20))  # 1 to 38, the small ones more often
            if chance.random() < 0.5:
                call = chance.choice([*CALLS, "write"])
                again = int(1.2 ** chance.uniform(0, 15)) if chance.random() < 0.3 else 0
                deaths = kill_at(program, directory / "data", run_seed, call, number, again=again)
                counts["syscall_kills"] += deaths > 0
                counts["syscall_recovery_kills"] += deaths > 1
                counts["syscall_runs_unharmed"] += deaths == 0
            else:
                call = chance.choice(list(ERRORS))
                error = chance.choice(ERRORS[call])
                # An interrupted call is repeated for as long as it is interrupted.
                when = str(number) + ("" if error == "EINTR" else chance.choice(["", "+", f"..{number + 2}"]))
                outcome = fail_at(program, directory / "data", run_seed, call, error, when)
                counts["syscall_errors"] += 1
                counts["syscall_errors_noticed"] += len(outcome.said) < STEPS or set(
                    outcome.said.values()
                ) != {"done"}
        finally:
            shutil.rmtree(directory)
    return dict(counts)


def main(arguments: list[str]) -> None:
    """Be the program: ``run DIRECTORY SEED``, or ``recover DIRECTORY``; or ``soak SEED SECONDS``."""
    if arguments[0] == "run":
        run(Path(arguments[1]), int(arguments[2]))
    elif arguments[0] == "recover":
        logging.disable(logging.CRITICAL)
        omendb.open(arguments[1]).close()
    else:
        print(soak(int(arguments[1]), float(arguments[2])))


if __name__ == "__main__":
    main(sys.argv[1:])
