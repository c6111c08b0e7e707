"""The program as a user runs it: processes of its own, the real server, real data."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import pty
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.serving import PROGRAM, RunningServer, free_port, start_server

if TYPE_CHECKING:
    from collections.abc import Callable

NAB = Path(__file__).parent.parent / "data" / "nab.csv.gz"
RECORDS = 365_509

Points = dict[tuple[int, int], float]


@pytest.fixture(scope="module")
def expected() -> Points:
    """Return the points of the real data, read by the standard library; the later row wins."""
    with gzip.open(NAB, "rt", newline="") as file:
        return points_of(file)


def points_of(text: io.TextIOBase) -> Points:
    return {
        (int(row["series_id"]), int(row["timestamp"])): float(row["value"]) for row in csv.DictReader(text)
    }


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )


def test_import_query_and_maintenance_agree_with_the_file(server: RunningServer, expected: Points) -> None:
    imported = program("import", NAB, "--url", server.url)

    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.startswith("365,558 rows read, 365,558 rows acknowledged, ")
    for maintenance in (None, "/admin/retrain-index", "/admin/gc"):
        if maintenance is not None:
            server.post(maintenance)
        assert server.get("/admin/stats")["record_count"] == len(expected) == RECORDS
        answer = program("query", "--url", server.url)
        assert points_of(io.StringIO(answer.stdout)) == expected
        assert answer.stdout.count("\n") == RECORDS + 1


def test_windows_of_a_whole_series_sum_up_to_the_file(server: RunningServer, expected: Points) -> None:
    program("import", NAB, "--url", server.url)

    answer = program(
        *("query", "--url", server.url, "--step", 2**62, "--start", 0, "--agg", "sum,count"),
        *("--format", "json"),
    )

    by_series: dict[int, list[float]] = {}
    for (series_id, _), value in expected.items():
        by_series.setdefault(series_id, []).append(value)
    rows = orjson.loads(answer.stdout)["rows"]
    for row in rows:
        values = by_series[row["series_id"]]
        assert row["count"] == len(values)
        assert row["sum"] == pytest.approx(math.fsum(values), rel=1e-12)
    assert [row["series_id"] for row in rows] == sorted(by_series)


def test_import_survives_a_crash_of_the_server(tmp_path: Path, expected: Points) -> None:
    data_dir = tmp_path / "data"
    with start_server(data_dir) as server:
        importing = subprocess.Popen(
            [PROGRAM, "import", str(NAB), "--url", server.url, "--batch-rows", "500"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while server.get("/admin/stats")["record_count"] < 50_000:
            assert importing.poll() is None, importing.stderr
            time.sleep(0.01)
        server.kill()

    with start_server(data_dir, port=server.port) as restarted:
        output, errors = importing.communicate(timeout=240)
        assert importing.returncode == 0, errors
        assert output.startswith("365,558 rows read, 365,558 rows acknowledged, ")
        answer = program("query", "--url", restarted.url)

    assert points_of(io.StringIO(answer.stdout)) == expected


def test_acknowledged_points_are_there_after_a_crash_and_a_clean_stop(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with start_server(data_dir) as server:
        server.post("/insert", {"series_id": 1, "timestamp": 10, "value": 0.5})
        server.kill()
    with start_server(data_dir) as server:
        assert server.get("/query?format=columns")["value"] == [0.5]
        server.post("/insert", {"series_id": 1, "timestamp": 11, "value": 1.5})
        assert server.stop() == 0

    checked = program("verify", data_dir)
    asked = program("query", "--data-dir", data_dir)

    assert checked.returncode == 0, checked.stdout
    assert asked.stdout == "series_id,timestamp,value\n1,10,0.5\n1,11,1.5\n"


def test_server_tells_a_person_where_it_listens_and_what_to_try(
    tmp_path: Path, debian_tool: Callable[[str], str]
) -> None:
    debian_tool("curl")
    ours, theirs = pty.openpty()
    port, metrics_port = free_port(), free_port()
    arguments = ["serve", f"--data-dir={tmp_path / 'data'}", "--host=127.0.0.1"]
    arguments += [f"--port={port}", f"--metrics-port={metrics_port}"]
    server = subprocess.Popen([PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs)
    try:
        text = ""
        while "/query?series_id=1'\r\n" not in text:
            text += os.read(ours, 4096).decode()
        commands = [line for line in text.splitlines() if line.strip().startswith("curl ")]
        insert, query = (
            subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
            for line in commands
        )
    finally:
        server.kill()
        server.wait(30)
        os.close(theirs)
        os.close(ours)

    assert f"http://127.0.0.1:{port}," in text
    assert orjson.loads(insert) == {"inserted": 1}
    assert orjson.loads(query)["rows"] == [{"series_id": 1, "timestamp": 1_700_000_000_000, "value": 20.5}]


def test_server_is_one_process_of_its_name(server: RunningServer) -> None:
    pid = server.process.pid

    assert Path(f"/proc/{pid}/comm").read_text() == "omendb\n"
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""


def test_directory_in_use_is_refused_in_one_line(server: RunningServer) -> None:
    for arguments in (
        ("stats", "--data-dir", server.data_dir),
        ("import", NAB, "--data-dir", server.data_dir),
    ):
        refused = program(*arguments)

        assert refused.returncode == 1
        assert "Error: " in refused.stderr
        assert "Traceback" not in refused.stderr
    assert program("verify", server.data_dir).returncode == 2


def test_store_in_process_answers_as_the_server_does(tmp_path: Path, expected: Points) -> None:
    data_dir = tmp_path / "data"
    imported = program("import", NAB, "--data-dir", data_dir)
    assert imported.returncode == 0, imported.stderr
    questions = [
        ("--series-id", 57, "--format", "json"),
        ("--limit", 3, "--format", "columns"),
        ("--step", 86_400_000, "--agg", "mean,count", "--format", "json"),
        ("--step", 86_400_000, "--agg", "min,stddev", "--series-id", 3),
        ("--start", 1_400_000_000_000, "--end", 1_420_000_000_000),
    ]

    inside = [program("query", "--data-dir", data_dir, *question).stdout for question in questions]
    with start_server(data_dir) as server:
        outside = [program("query", "--url", server.url, *question).stdout for question in questions]

    assert program("query", "--data-dir", data_dir).stdout.count("\n") == len(expected) + 1
    for question, mine, theirs in zip(questions, inside, outside, strict=True):
        if "--format" in question:
            assert orjson.loads(mine) == orjson.loads(theirs)
        else:
            assert mine == theirs
            assert mine.count("\n") > 10
    stats = orjson.loads(program("stats", "--data-dir", data_dir, "--json").stdout)
    assert stats["record_count"] == RECORDS


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    program("import", NAB, "--data-dir", data_dir)
    (segment, *_) = sorted((data_dir / "data").glob("*.parquet"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)

    checked = program("verify", data_dir)

    assert checked.returncode == 1
    assert f"{segment}: damaged at offset " in checked.stdout
    assert checked.stdout.splitlines()[-1].startswith(f"{data_dir}: damaged in ")


def test_verify_of_what_is_no_data_directory_cannot_be_read(tmp_path: Path) -> None:
    checked = program("verify", tmp_path)

    assert checked.returncode == 2
    assert checked.stderr.startswith("Error: ")


def test_warmup_names_each_module_its_kernels_and_its_time() -> None:
    done = program("warmup")

    assert done.returncode == 0, done.stderr
    *modules, total = done.stdout.splitlines()
    kernels = 0
    for position, line in enumerate(modules, 1):
        shown = re.fullmatch(
            rf"\[{position}/{len(modules)}\] \w+: (\d+) kernels, \d+ compiled, \d+\.\d\d s", line
        )
        assert shown is not None, line
        kernels += int(shown[1])
    assert kernels > 0
    assert total.startswith(f"{kernels} kernels ready, ")
