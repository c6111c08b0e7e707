from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from omendb.cli import delivery
from tests.cli.fake_server import DROP, FakeServer
from tests.serving import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

NAB = Path(__file__).parent.parent / "data" / "nab.csv.gz"
HEADER = b"series_id,timestamp,value\n"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "WAIT_SECONDS_MIN", 0.001)


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """A file of 1,000 points."""
    file = tmp_path / "points.csv"
    file.write_bytes(HEADER + b"".join(b"%d,%d,%d.5\n" % (i % 3, i, i) for i in range(1000)))
    return file


def last_line(result: Result) -> str:
    return result.stdout.splitlines()[-1]


def test_file_is_imported_whole_over_one_connection(
    fake: FakeServer, omendb: Callable[..., Result], points: Path
) -> None:
    result = omendb("import", points, "--url", fake.url, "--batch-rows", 100)

    assert result.exit_code == 0, result.output
    assert fake.points == {(i % 3, i): i + 0.5 for i in range(1000)}
    assert fake.batches == [100] * 10
    assert fake.connections == 1
    assert re.fullmatch(
        r"1,000 rows read, 1,000 rows acknowledged, \d+\.\d\d s, [\d,]+ rows/s", last_line(result)
    )


def test_progress_shows_rows_rate_and_time_left(
    fake: FakeServer, omendb: Callable[..., Result], points: Path
) -> None:
    result = omendb("import", points, "--url", fake.url)

    assert re.search(r"100% \|.*\| 1,000 rows, [\d,]+ rows/s, 00:00 gone, 00:00 left", result.stderr)


def test_real_data_equals_an_independent_reading(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    expected = {}
    with gzip.open(NAB, "rt", newline="") as file:
        for row in csv.DictReader(file):
            expected[int(row["series_id"]), int(row["timestamp"])] = float(row["value"])

    result = omendb("import", NAB, "--url", fake.url)

    assert result.exit_code == 0, result.output
    assert last_line(result).startswith("365,558 rows read, 365,558 rows acknowledged")
    assert len(expected) == 365_509
    assert fake.points == expected


@pytest.mark.parametrize("compress", [False, True])
def test_standard_input_plain_or_gzip(
    fake: FakeServer, omendb: Callable[..., Result], *, compress: bool
) -> None:
    text = b"7,1,0.25\n7,2,0.5\n"

    result = omendb(
        *("import", "-", "--no-header", "--url", fake.url),
        stdin=gzip.compress(text) if compress else text,
    )

    assert result.exit_code == 0, result.output
    assert fake.points == {(7, 1): 0.25, (7, 2): 0.5}


@pytest.mark.parametrize("failure", [503, 507, 502, DROP])
def test_passing_errors_are_tried_again_in_order(
    fake: FakeServer, omendb: Callable[..., Result], points: Path, failure: int
) -> None:
    fake.failures.extend([failure] * 3)

    result = omendb("import", points, "--url", fake.url, "--batch-rows", 100)

    assert result.exit_code == 0, result.output
    assert fake.points == {(i % 3, i): i + 0.5 for i in range(1000)}
    assert "Waiting, up to 60 s: " in result.stderr
    assert last_line(result).startswith("1,000 rows read, 1,000 rows acknowledged")


def test_later_line_wins_also_when_an_earlier_batch_had_to_wait(
    fake: FakeServer, omendb: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "points.csv"
    file.write_bytes(HEADER + b"".join(b"1,1,%d\n" % i for i in range(50)))
    fake.failures.extend([503, DROP, 503])

    result = omendb("import", file, "--url", fake.url, "--batch-rows", 1)

    assert result.exit_code == 0, result.output
    assert fake.points == {(1, 1): 49.0}


def test_several_inserts_in_flight_store_everything(
    fake: FakeServer, omendb: Callable[..., Result], points: Path
) -> None:
    fake.failures.extend([503, DROP])

    result = omendb("import", points, "--url", fake.url, "--batch-rows", 10, "--in-flight", 4)

    assert result.exit_code == 0, result.output
    assert fake.points == {(i % 3, i): i + 0.5 for i in range(1000)}


def test_refused_batch_ends_the_import_and_tells_what_is_stored(
    fake: FakeServer, omendb: Callable[..., Result], points: Path
) -> None:
    fake.failures.append(400)

    result = omendb("import", points, "--url", fake.url, "--batch-rows", 100)

    assert result.exit_code == 1
    assert "Error: " in result.stderr
    assert "refused with 400" in result.stderr
    assert "; 0 were acknowledged" in result.stderr
    assert fake.points == {}  # nothing overtakes a batch that failed


def test_bad_line_is_named_and_the_rows_before_its_block_are_stored(
    fake: FakeServer, omendb: Callable[..., Result], tmp_path: Path
) -> None:
    good = b"".join(b"1,%d,1\n" % i for i in range(200_000))
    file = tmp_path / "points.csv"
    file.write_bytes(HEADER + good + b"1,oops,1\n")

    result = omendb("import", file, "--url", fake.url, "--batch-rows", 10_000)

    assert result.exit_code == 1
    assert "points.csv: line 200002: timestamp must be a whole number" in result.stderr
    stored = len(fake.points)
    assert 0 < stored < 200_000
    assert f"{stored:,} rows were read; {stored:,} were acknowledged" in result.stderr


def test_unreachable_server_is_one_line_after_the_time_for_retries(
    omendb: Callable[..., Result], points: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    result = omendb("import", points, "--url", url, "--retry-seconds", 0.01)

    assert result.exit_code == 1
    assert f"Error: {points}: {url}: cannot connect: Connection refused" in result.stderr
    assert "Traceback" not in result.output


def test_missing_file_is_one_line(omendb: Callable[..., Result], tmp_path: Path) -> None:
    result = omendb("import", tmp_path / "none.csv")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "No such file" in result.stderr


def test_url_and_data_dir_exclude_each_other(omendb: Callable[..., Result], tmp_path: Path) -> None:
    result = omendb("import", "-", "--url", "http://x", "--data-dir", tmp_path)

    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


def test_result_of_a_query_can_be_imported(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    fake.points = {(1, 2**62): 0.1, (5, -3): 1e300, (5, 0): -0.0}

    text = omendb("query", "--url", fake.url).stdout_bytes
    before, fake.points = fake.points, {}
    result = omendb("import", "-", "--url", fake.url, stdin=text)

    assert result.exit_code == 0, result.output
    assert fake.points == before
    assert io.BytesIO(text).readline() == HEADER
