"""How long a start takes after a crash: a full log in front of segments full of rows.

    python perf/recovery.py                                   # 10 M rows in segments, 5 M in the log
    python perf/recovery.py --segment-rows 1000000 --log-rows 500000 --record-rows 1 1000

For each size of record a store is made anew as a crash leaves it (flushed rows, then a log as long as frozen
and active memtables allow), and then

- opened in this process: seconds of recovery, and rows a second of the log's replay (the start of the same
  store without a log is subtracted);
- served: seconds from the start of the process `omendb serve` until `GET /ready` answers 200.

The files are in the page cache, as they are after a crash of the process; ``--cold`` drops them first (needs
root). The log is written without waiting for the disk: this is about reading it.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts a script's directory first: there `perf/http.py` would be taken for the standard `http`.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import urllib3

from omendb.config import Settings
from omendb.flusher import FROZEN_MAX
from omendb.jit.warmup import warm_up
from omendb.model import Batch
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

SERIES = 1_000
FIRST_TIMESTAMP = 1_700_000_000_000
READY_SECONDS = 300
_BLOCK_ROWS = 65_536


class _UnsyncedFileSystem(OsFileSystem):
    def create(self, path: Path) -> Any:  # noqa: ANN401
        file = super().create(path)
        file.sync = lambda: None  # type: ignore[method-assign]
        return file

    def sync_directory(self, path: Path) -> None:
        """Do nothing."""


@dataclass
class Result:
    """One start after a crash.

    Attributes
    ----------
    record_rows : int
        Rows of one record of the log.
    segment_rows, log_rows, log_records, log_bytes : int
    recovery_seconds : float
        Of `open_store`.
    replay_rows_per_second : float
    ready_seconds : float
        From the start of the server's process to its first 200 on ``/ready``.
    """

    record_rows: int
    segment_rows: int
    log_rows: int
    log_records: int
    log_bytes: int
    recovery_seconds: float
    replay_rows_per_second: float
    ready_seconds: float


def batches(first: int, rows: int, rows_each: int) -> Iterator[Batch]:
    """Make rows of all series in order of time, `rows_each` in a batch."""
    rng = np.random.default_rng(first)
    block = max(_BLOCK_ROWS // rows_each, 1) * rows_each
    for begin in range(first, first + rows, block):
        number = np.arange(begin, min(begin + block, first + rows))
        timestamp = FIRST_TIMESTAMP + number // SERIES * 1_000
        columns = number % SERIES, timestamp, np.round(rng.normal(20, 5, len(number)), 2)
        for start in range(0, len(number), rows_each):
            yield Batch(*(column[start : start + rows_each] for column in columns))


def make_store(directory: Path, segment_rows: int, log_rows: int, record_rows: int) -> None:
    """Fill a data directory and leave it as a crash does."""
    store, _ = open_store(_UnsyncedFileSystem(), directory, Settings())
    threshold = store.settings.retrain_threshold
    for begin in range(0, segment_rows, threshold):
        for batch in batches(begin, min(threshold, segment_rows - begin), _BLOCK_ROWS):
            store.apply(batch, store.append(batch))
        store.freeze()
        while store.flush_oldest() is not None:
            pass
    while store.compact() is not None:
        pass
    rows = 0
    for batch in batches(segment_rows, log_rows, record_rows):
        store.append(batch)
        rows += len(batch.timestamp)
        if rows >= threshold:
            # A new file for each memtable, as when one is frozen.
            store.wal.rotate()
            rows = 0
    store.wal.close()
    store.release()


def open_seconds(directory: Path) -> tuple[float, int, int, int]:
    """Return seconds to open a copy of a store, rows and records replayed, and bytes of the log."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as place:
        copy = Path(place) / "db"
        # Links: recovery never writes to a file that it did not make, but for the log.
        shutil.copytree(directory, copy, copy_function=os.link)
        size = 0
        for log in (copy / "wal").iterdir():
            log.unlink()
            shutil.copyfile(directory / "wal" / log.name, log)
            size += log.stat().st_size
        os.sync()
        started = time.perf_counter()
        store, found = open_store(OsFileSystem(), copy, Settings())
        seconds = time.perf_counter() - started
        store.wal.close()
        store.release()
    return seconds, found.replayed_rows, found.replayed_records, size


def free_port() -> int:
    """Return a port that nothing listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ready_seconds(directory: Path) -> float:
    """Return seconds from the start of a server to its being ready; it is killed then."""
    port, metrics_port = free_port(), free_port()
    program = str(Path(sys.executable).with_name("omendb"))
    command = [program, "serve", f"--data-dir={directory}", "--host=127.0.0.1", f"--port={port}"]
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen([*command, f"--metrics-port={metrics_port}"], stdout=log, stderr=log)
        try:
            while time.perf_counter() - started < READY_SECONDS and process.poll() is None:
                try:
                    address = f"http://127.0.0.1:{port}/ready"
                    if urllib3.request("GET", address, retries=False, timeout=5).status == 200:
                        return time.perf_counter() - started
                except urllib3.exceptions.HTTPError:
                    pass
                time.sleep(0.01)
            log.seek(0)
            raise SystemExit(f"the server did not get ready:\n{log.read().decode()}")
        finally:
            process.kill()
            process.wait(30)


def measure(options: argparse.Namespace, record_rows: int, place: Path) -> Result:
    """Make a store, and start it in both ways."""
    directory = place / f"records-{record_rows}"
    make_store(directory, options.segment_rows, options.log_rows, record_rows)
    if options.cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    seconds, rows, records, size = open_seconds(directory)
    assert rows == options.log_rows, f"{rows} rows replayed of {options.log_rows}"
    if options.cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    ready = ready_seconds(directory)
    shutil.rmtree(directory)
    rate = rows / max(seconds - options.base_seconds, 1e-9)
    return Result(
        record_rows,
        options.segment_rows,
        rows,
        records,
        size,
        round(seconds, 3),
        round(rate),
        round(ready, 3),
    )


def main() -> None:
    """Measure, print a table, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    threshold = Settings().retrain_threshold
    parser.add_argument("--segment-rows", type=int, default=10_000_000)
    parser.add_argument("--log-rows", type=int, default=(FROZEN_MAX + 1) * threshold - 1)
    parser.add_argument("--record-rows", type=int, nargs="+", default=[1, 10, 100, 65_536])
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each start")
    parser.add_argument("--directory", type=Path, help="where to make the stores; default: a temporary one")
    parser.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args()
    warm_up()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        place = Path(name)
        make_store(place / "base", options.segment_rows, 0, 1)
        options.base_seconds = open_seconds(place / "base")[0]
        shutil.rmtree(place / "base")
        print(f"{options.segment_rows:,} rows in segments, no log: {options.base_seconds:.3f} s to open")
        print(
            f"{'rows/record':>11} {'log rows':>10} {'log MB':>7} {'open s':>7} {'replay rows/s':>13} ready s"
        )
        for record_rows in options.record_rows:
            result = measure(options, record_rows, place)
            results.append(result)
            print(
                f"{record_rows:>11,} {result.log_rows:>10,} {result.log_bytes / 1e6:>7.1f} "
                f"{result.recovery_seconds:>7.3f} {result.replay_rows_per_second:>13,} "
                f"{result.ready_seconds:.3f}",
                flush=True,
            )
    if options.json:
        machine = {"machine": platform.platform(), "cpus": os.cpu_count()}
        answer = {**machine, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
