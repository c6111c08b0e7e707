"""Damages a data directory in every way a disk can, and judges what comes of it (P3, P4).

A `Victim` is a small store as a crash leaves it: segments of several generations with their learned indexes,
a manifest, a log of several files. Each damage is done to a copy; then the store is opened and asked for
every row. One of these must come of it, and nothing else:

- *right*: every acknowledged row with its right value;
- *mended*: the same, and a line that names what was damaged;
- *refused*: an error that names the damaged file;
- *cut*: damage that reaches the end of the log, so that no readable record is left behind it, cannot be told
  from a write that a crash left unfinished. Exactly the records that are not whole any more are gone, and a
  line says so. (A file cut exactly between two records shows nothing at all, and is the one exception.)

The offline check must agree: what is refused is a finding that names the file, what is cut or mended is a
warning. ``soak(seed, seconds)`` does random damage to stores of several MB, and can be replayed.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omendb.config import Settings
from omendb.errors import CorruptionError, OmenError
from omendb.executor import Scan, WindowScan
from omendb.model import make_batch
from omendb.query import make_range_query, make_window_query
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from omendb.storage.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omendb.model import Batch
    from omendb.storage.store import Store

SETTINGS = Settings(max_error=8)
PAGE = 4_096
RIGHT, MENDED, CUT, REFUSED = "right", "mended", "cut", "refused"


class UnsyncedFileSystem(OsFileSystem):
    """Does not wait for the disk: here the content of files is under test, not when it gets there."""

    def create(self, path: Path) -> Any:
        file = super().create(path)
        file.sync = lambda: None  # type: ignore[method-assign]
        return file

    def reopen(self, path: Path) -> Any:
        file = super().reopen(path)
        file.sync = lambda: None  # type: ignore[method-assign]
        return file

    def sync_directory(self, path: Path) -> None:
        """Do nothing."""


FILES = UnsyncedFileSystem()


class WrongAnswerError(AssertionError):
    """A store that was damaged said something that is not so, or lost rows without a word."""


@dataclass
class Table:
    """Rows as they should be read: sorted, without repeats."""

    series: np.ndarray
    timestamp: np.ndarray
    value: np.ndarray

    def same(self, other: Table) -> bool:
        return (
            np.array_equal(self.series, other.series)
            and np.array_equal(self.timestamp, other.timestamp)
            and np.array_equal(self.value, other.value)
        )


@dataclass
class Victim:
    """A store to damage, as a crash leaves it.

    Attributes
    ----------
    directory : Path
    files : dict
        Content of each of its files, by the path inside the directory.
    history : list of Batch
        What was inserted, in order.
    ends : list of int
        Bytes after each record of the last file of the log.
    counts : Counter
        How often what came of a damage.
    """

    directory: Path
    files: dict[str, bytes]
    history: list[Batch]
    ends: list[int]
    counts: Counter[str] = field(default_factory=Counter)
    _tables: dict[int, Table] = field(default_factory=dict)

    def names(self, suffix: str) -> list[str]:
        return sorted(name for name in self.files if name.endswith(suffix))

    @property
    def last_log(self) -> str:
        return self.names(".wal")[-1]

    def table(self, lost: int) -> Table:
        """Return the rows without the last `lost` records."""
        if lost not in self._tables:
            rows: dict[tuple[int, int], float] = {}
            for batch in self.history[: len(self.history) - lost]:
                keys = zip(batch.series_id.tolist(), batch.timestamp.tolist(), strict=True)
                rows.update(zip(keys, batch.value.tolist(), strict=True))
            keys_array = np.array(sorted(rows), dtype=np.int64).reshape(-1, 2)
            values = np.array([rows[key] for key in sorted(rows)], dtype=np.float64)
            self._tables[lost] = Table(keys_array[:, 0], keys_array[:, 1], values)
        return self._tables[lost]

    def unreadable(self, content: bytes) -> int | None:
        """Return how many records the last log file has lost at its end; None when a later one is whole."""
        original = self.files[self.last_log]
        starts = [32, *self.ends[:-1]]
        whole = [content[a:b] == original[a:b] for a, b in zip(starts, self.ends, strict=True)]
        if content[:32] != original[:32]:
            return None if any(whole) else len(whole)
        lost = whole[::-1].index(True) if any(whole) else len(whole)
        return lost if all(whole[: len(whole) - lost]) else None

    def restore(self) -> None:
        """Undo all damage, and what a start did about it."""
        present = {str(p.relative_to(self.directory)): p for p in self.directory.rglob("*") if p.is_file()}
        for name, path in present.items():
            if name not in self.files and path.name != "LOCK":
                path.unlink()
        for name, content in self.files.items():
            self.write(name, content)

    def write(self, name: str, content: bytes) -> None:
        """Put a new file in the place of one; maps of the old one stay what they were."""
        path = self.directory / name
        if path.exists():
            if path.stat().st_size == len(content) and path.read_bytes() == content:
                return
            path.unlink()
        path.write_bytes(content)

    def damage(self, changes: dict[str, bytes | None], what: str) -> str:
        """Replace files (None: remove), judge what comes of it, and undo it.

        Returns
        -------
        str
            `RIGHT`, `MENDED`, `CUT` or `REFUSED`.

        Raises
        ------
        WrongAnswerError
        """
        for name, content in changes.items():
            if content is None:
                (self.directory / name).unlink()
            else:
                self.write(name, content)
        try:
            outcome = self._judge(set(changes), what)
        finally:
            self.restore()
        self.counts[outcome] += 1
        self.counts["damages"] += 1
        return outcome

    def _judge(self, names: set[str], what: str) -> str:
        paths = {str(self.directory / name) for name in names}
        log = self.directory / self.last_log
        content = log.read_bytes() if log.exists() else b""
        lost = self.unreadable(content)
        # Nothing tells a log that was cut exactly between two records from one that ended there.
        unnoticeable = names <= {self.last_log} and len(content) in {32, *self.ends}
        report = verify(FILES, self.directory)
        found = [f"{finding.path} {finding.reason}" for finding in report.findings]
        lines: list[str] = []
        error = self._open_and_read(lines, lost or 0, what)
        if error is not None:
            if not any(path in str(error) for path in paths):
                raise WrongAnswerError(f"{what}: the error names none of {names}: {error}")
            if not any(path in finding for path in paths for finding in found):
                raise WrongAnswerError(f"{what}: refused ({error}), but the check finds {report}")
            return REFUSED
        if lost is None:
            raise WrongAnswerError(f"{what}: opened, although a later record is whole")
        if found:
            raise WrongAnswerError(f"{what}: the check finds {report.findings}, but the store opened")
        said = any(path in line for path in paths for line in lines)
        if said != any(path in line for path in paths for line in report.warnings):
            raise WrongAnswerError(f"{what}: the start says {lines}, the check says {report.warnings}")
        if not said and not unnoticeable:
            raise WrongAnswerError(f"{what}: neither the start nor the check noticed it")
        return CUT if lost else MENDED if said else RIGHT

    def _open_and_read(self, lines: list[str], lost: int, what: str) -> Exception | None:
        handler = _Lines(lines)
        logger = logging.getLogger("omendb")
        logger.addHandler(handler)
        store: Store | None = None
        expected = self.table(lost)
        try:
            store, _ = open_store(FILES, self.directory, SETTINGS)
            for rows in (read_rows(store), read_rows(store, 3)):
                if not rows.same(expected):
                    raise WrongAnswerError(
                        f"{what}: {len(rows.value)} rows for {len(expected.value)}, or wrong ones; {lines}"
                    )
            total = sum(read_windows(store).values())
            if total != len(expected.value):
                raise WrongAnswerError(f"{what}: windows count {total} rows for {len(expected.value)}")
        except CorruptionError as error:
            return error
        finally:
            logger.removeHandler(handler)
            if store is not None:
                store.wal.close()
                store.release()
        return None


class _Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


def read_rows(store: Store, pieces: int = 1) -> Table:
    """Read every row, in one piece or several."""
    scan = Scan(store.snapshot, make_range_query())
    parts = list(scan.chunks(max(scan.row_bound // pieces, 1)))
    return Table(
        *(
            np.concatenate([getattr(part, column) for part in parts])
            for column in ("series_id", "timestamp", "value")
        )
    )


def read_windows(store: Store) -> dict[tuple[int, int], int]:
    """Count rows in windows, which other kernels do."""
    windows = WindowScan(store.snapshot, make_window_query(100, "count")).windows()
    keys = zip(windows.series_id.tolist(), windows.timestamp.tolist(), strict=True)
    return dict(zip(keys, windows.columns["count"].tolist(), strict=True))


def make_victim(
    directory: Path, rows: int, seed: int, *, records: int = 6, series: int = 4, compressed: bool = False
) -> Victim:
    """Fill a store: two flushes with overlapping keys, then a log of two files with records of all kinds.

    With `compressed` the two flushes are merged into compressed segments.
    """
    rng = np.random.default_rng(seed)
    store, _ = open_store(
        FILES, directory, SETTINGS, partition_rows=10 * rows, segment_rows_max=max(rows // 2, 1)
    )
    history: list[Batch] = []
    ends: list[int] = []

    def insert(count: int, *, one_series: bool = False) -> None:
        ids = np.full(count, rng.integers(series)) if one_series else rng.integers(0, series, count)
        batch = make_batch(ids, rng.integers(-rows, 3 * rows, count), rng.normal(size=count).round(3))
        sequence = store.append(batch)
        store.sync()
        store.apply(batch, sequence)
        history.append(batch)
        ends.append(store.wal._file.offset)

    for _ in range(2):
        insert(rows)
        store.freeze()
        while store.flush_oldest() is not None:
            pass
    if compressed:
        store.settings = SETTINGS.with_changes(enable_compression=True)
        while store.compact(everything=True) is not None:
            pass
    for position in range(records):
        insert(1 if position % 3 else max(rows // 40, 3), one_series=position % 2 == 1)
        if position == records // 2:
            store.freeze()
            ends.clear()
    store.wal.close()
    store.release()
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name != "LOCK"]
    files = {str(path.relative_to(directory)): path.read_bytes() for path in paths}
    return Victim(directory, files, history, ends)


def flipped(content: bytes, offset: int, mask: int = 1) -> bytes:
    return content[:offset] + bytes([content[offset] ^ mask]) + content[offset + 1 :]


def random_damage(victim: Victim, rng: np.random.Generator) -> str:
    """Do one random damage to a random file."""
    names = sorted(victim.files)
    name = names[rng.integers(len(names))]
    content = victim.files[name]
    at = _interesting_offset(len(content), rng)
    kind = int(rng.integers(7))
    changes: dict[str, bytes | None]
    if kind <= 1:
        mask = 1 << int(rng.integers(8)) if kind else int(rng.integers(1, 256))
        changes = {name: flipped(content, at, mask)}
    elif kind == 2:
        changes = {name: content[:at]}
    elif kind == 3:
        changes = {name: content + rng.bytes(int(rng.integers(1, 2 * PAGE)))}
    elif kind == 4:
        page = at // PAGE * PAGE
        zeroed = content[:page] + bytes(len(content[page : page + PAGE])) + content[page + PAGE :]
        changes = {name: zeroed}
    elif kind == 5:
        garbage = rng.bytes(len(content[at : at + 512]))
        changes = {name: content[:at] + garbage + content[at + len(garbage) :]}
    else:
        others = [other for other in names if other != name and other[-4:] == name[-4:]]
        if others:
            other = others[rng.integers(len(others))]
            changes = {name: victim.files[other], other: content}
        else:
            changes = {name: None}
    changes = {n: c for n, c in changes.items() if c != victim.files[n]}
    what = f"damage {kind} at {at} of {name}"
    if not changes:
        return RIGHT
    return victim.damage(changes, what)


def _interesting_offset(size: int, rng: np.random.Generator) -> int:
    """Choose an offset: half the time near an end, where headers and footers are."""
    kind = rng.integers(4)
    near = min(size, 2_000)
    if kind == 0:
        return int(rng.integers(near))
    if kind == 1:
        return size - 1 - int(rng.integers(near))
    return int(rng.integers(size))


def victims(directory: Path, rng: np.random.Generator, sizes: tuple[int, ...]) -> Iterator[Victim]:
    """Make stores of random content, one after the other."""
    number = 0
    while True:
        place = directory / str(number)
        yield make_victim(
            place,
            int(rng.choice(sizes)),
            int(rng.integers(2**31)),
            records=int(rng.integers(2, 40)),
            compressed=number % 2 == 1,
        )
        shutil.rmtree(place)
        number += 1


def soak(seed: int, seconds: float) -> dict[str, int]:
    """Damage stores of all sizes until the time is over; the same seed makes the same damage.

    Returns
    -------
    dict
        Numbers of stores, damages, and what came of them.

    Raises
    ------
    WrongAnswerError
    """
    print(f"damage: seed {seed}", flush=True)
    rng = np.random.default_rng(seed)
    stop = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        for victim in victims(Path(directory), rng, (40, 400, 20_000, 100_000)):
            counts["stores"] += 1
            for _ in range(200):
                if time.monotonic() >= stop:
                    break
                try:
                    random_damage(victim, rng)
                except OmenError as error:
                    raise WrongAnswerError(f"seed {seed}, {counts}: {error}") from error
            counts.update(victim.counts)
            if time.monotonic() >= stop:
                return dict(counts)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    logging.getLogger("omendb").propagate = False
    chosen = int(sys.argv[1]) if len(sys.argv) > 1 else secrets.randbelow(2**31)
    print(soak(chosen, float(sys.argv[2]) if len(sys.argv) > 2 else 60.0))
