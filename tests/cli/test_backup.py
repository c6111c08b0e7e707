"""`omendb backup`, `restore` and `repair` as a user runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

import omendb as package
from omendb.storage import manifest
from omendb.storage.fs import OsFileSystem
from tests.serving import RunningServer, start_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Return the directory of a stopped store: one segment of two rows."""
    with package.open(tmp_path / "data") as db:
        db.insert(1, [10, 20], [1.0, 2.0])
    return tmp_path / "data"


def rows(omendb: Callable[..., Result], data_dir: Path) -> list[str]:
    result = omendb("query", "--data-dir", data_dir)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[1:]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_backup_and_restore_of_a_running_server(
    server: RunningServer, omendb: Callable[..., Result], tmp_path: Path
) -> None:
    server.post("/insert", {"series_id": 1, "timestamp": [10, 20], "value": [1, 2]})

    made = omendb("backup", "monday", "--url", server.url)
    server.post("/insert", {"series_id": 1, "timestamp": 30, "value": 3})
    twice = omendb("backup", "monday", "--url", server.url)
    path = omendb("backup", "/tmp/somewhere", "--url", server.url)
    restored = omendb("restore", server.data_dir / "backups" / "monday", tmp_path / "back")

    assert made.exit_code == 0, made.output
    where, figures = made.stdout.splitlines()
    assert where == str(server.data_dir / "backups" / "monday")
    assert figures.startswith("2 rows in 0 segments and the log up to record 1, ")
    assert "all checksums match" in figures
    assert (twice.exit_code, twice.stderr) == (1, "Error: there is a backup of the name monday\n")
    assert path.exit_code == 1
    assert "not a path" in path.stderr
    assert restored.exit_code == 0, restored.output
    assert f"{tmp_path / 'back'}: restored 2 rows (" in restored.stdout
    assert rows(omendb, tmp_path / "back") == ["1,10,1", "1,20,2"]


def test_a_backup_can_be_served_where_it_is(server: RunningServer) -> None:
    server.post("/insert", {"series_id": 1, "timestamp": [10, 20], "value": [1, 2]})
    made = server.post("/admin/backup")
    server.post("/insert", {"series_id": 1, "timestamp": [10, 20], "value": [5, 5]})

    with start_server(server.data_dir / "backups" / made["name"]) as other:
        assert other.get("/query?format=columns")["value"] == [1.0, 2.0]
        other.post("/insert", {"series_id": 1, "timestamp": 10, "value": 7})
        other.post("/admin/gc")
        assert server.get("/query?format=columns")["value"] == [5.0, 5.0]


def test_backup_of_a_directory_to_a_directory(
    data_dir: Path, omendb: Callable[..., Result], tmp_path: Path
) -> None:
    target = tmp_path / "elsewhere" / "monday"

    made = omendb("backup", "--data-dir", data_dir, target)

    assert made.exit_code == 0, made.output
    assert made.stdout.startswith(f"{target}\n2 rows in 1 segments ")
    assert rows(omendb, target) == ["1,10,1", "1,20,2"]
    again = omendb("backup", "--data-dir", data_dir, target)
    assert again.exit_code == 1
    assert again.stderr == f"Error: {target} exists and is not empty\n"


def test_restore_refuses_what_is_damaged_and_what_is_in_the_way(
    data_dir: Path, omendb: Callable[..., Result], tmp_path: Path
) -> None:
    made = omendb("backup", "--data-dir", data_dir, "good")
    backup = data_dir / "backups" / "good"
    assert made.exit_code == 0, made.output
    with package.open(data_dir) as db:
        db.insert(1, 10, -1.0)

    in_the_way = omendb("restore", backup, data_dir)
    forced = omendb("restore", backup, data_dir, "--force")

    assert in_the_way.exit_code == 1
    assert "is not empty" in in_the_way.stderr
    assert forced.exit_code == 0, forced.output
    assert f"The store that was there is in {data_dir / 'replaced-1'} now" in forced.stdout
    assert rows(omendb, data_dir) == ["1,10,1", "1,20,2"]
    assert rows(omendb, data_dir / "replaced-1") == ["1,10,-1", "1,20,2"]

    segment = next(backup.glob("data/*.parquet"))
    flip(segment, segment.stat().st_size // 2)
    damaged = omendb("restore", backup, tmp_path / "back")
    assert damaged.exit_code == 1
    assert damaged.stderr.startswith(f"Error: {segment}: offset ")
    assert not (tmp_path / "back").exists()


def test_repair_shows_first_and_mends_when_told_to(data_dir: Path, omendb: Callable[..., Result]) -> None:
    with package.open(data_dir) as db:
        db.insert(7, [5, 6, 7], [0.5, 0.5, 0.5])
    damaged = sorted(data_dir.glob("data/*.parquet"))[0]
    loaded = manifest.load(OsFileSystem(), data_dir)
    assert loaded is not None
    flip(damaged, loaded.segments[0].value_offset)

    refused = omendb("query", "--data-dir", data_dir)
    shown = omendb("repair", data_dir)
    assert not (data_dir / "quarantine").exists()
    before = damaged.read_bytes()
    done = omendb("repair", data_dir, "--yes")
    again = omendb("repair", data_dir)

    assert refused.exit_code == 1
    assert shown.exit_code == 1
    assert f"{damaged}: " in shown.stdout
    assert "0 of its 2 rows match their checksums" in shown.stdout
    assert "Rows that are dropped: 2. " in shown.stdout
    assert "  series 1: 2 rows, timestamps 10 to 20\n" in shown.stdout
    assert shown.stdout.endswith(f"Nothing was changed. To do this:\n  omendb repair {data_dir} --yes\n")
    assert done.exit_code == 0, done.output
    assert f"{data_dir}: repaired (" in done.stdout
    assert (data_dir / "quarantine" / damaged.name).read_bytes() == before
    assert again.exit_code == 0
    assert again.stdout.endswith(f"{data_dir}: nothing to repair\n")
    assert rows(omendb, data_dir) == ["7,5,0.5", "7,6,0.5", "7,7,0.5"]


def test_repair_tells_which_rows_a_cut_log_drops(
    server: RunningServer, omendb: Callable[..., Result]
) -> None:
    for timestamp in range(4):
        server.post("/insert", {"series_id": 9, "timestamp": [timestamp, timestamp + 100], "value": [1, 1]})
    assert "in use" in omendb("repair", server.data_dir).stderr
    server.kill()
    log = max((server.data_dir / "wal").iterdir())
    record = (log.stat().st_size - 32) // 4
    flip(log, 32 + record + 60)

    refused = omendb("stats", "--data-dir", server.data_dir)
    shown = omendb("repair", server.data_dir)
    done = omendb("repair", server.data_dir, "--yes")

    assert refused.exit_code == 1
    assert f"`omendb repair {server.data_dir}`" in refused.stderr
    assert f"{log}: offset {32 + record}: " in shown.stdout
    assert (
        f"2 readable records with 4 rows, and {record} bytes that cannot be read, are dropped" in shown.stdout
    )
    assert "  series 9: 4 rows, timestamps 2 to 103\n" in shown.stdout
    assert done.exit_code == 0, done.output
    figures = orjson.loads(omendb("stats", "--data-dir", server.data_dir, "--json").stdout)
    assert figures["record_count"] == 2
