"""One line a query, which the runbook's awk programs read; and lines of inserts and of what fails."""

from __future__ import annotations

import datetime
import subprocess
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.errors import CorruptionError, DiskFullError, OverloadedError
from omendb.model import INT64_MAX, INT64_MIN
from omendb.server import query_log
from omendb.server.app import Application
from omendb.server.query_log import Limit, QueryLog
from tests.server.clients import AsgiClient, RsgiClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.server.fake_engine import FakeEngine

Client = RsgiClient | AsgiClient

RUNBOOK_DURATIONS = "grep 'query' | awk '{print $NF}' | sort -n | tail -20"
RUNBOOK_RANGES = "grep 'query' | awk '{print $5, $6}' | sort | uniq -c | sort -nr | head -10"


class Lines(list[str]):
    """Stands for a `LineWriter`."""

    log: QueryLog

    def put(self, line: Any, *, at_once: bool = False) -> None:
        made = line if isinstance(line, str) else self.log.line(line)
        if made is not None:
            self.append(made)


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def log(engine: FakeEngine, lines: Lines) -> QueryLog:
    lines.log = QueryLog(engine, lines)  # type: ignore[arg-type]
    return lines.log


@pytest.fixture(params=[RsgiClient, AsgiClient])
def logged(request: pytest.FixtureRequest, engine: FakeEngine, log: QueryLog) -> Iterator[Client]:
    """Return a client of a server that logs."""
    client = request.param(Application(engine, log=log))  # type: ignore[arg-type]
    yield client
    client.close()


def settings(engine: FakeEngine, **changes: object) -> None:
    engine.settings = engine.settings.with_changes(**changes)  # type: ignore[arg-type]


def shell(command: str, text: str) -> str:
    return subprocess.run(
        ["bash", "-c", command], input=text, capture_output=True, text=True, check=True
    ).stdout


def test_a_query_is_one_line(logged: Client, lines: Lines) -> None:
    logged.call(
        "POST",
        "/insert",
        msgspec.json.encode([{"series_id": 7, "timestamp": t, "value": 1.0} for t in (10, 20)]),
    )
    assert logged.call("GET", "/query?start=10&end=20&series_id=7").status == 200

    (line,) = lines
    stamp, rest = line.split(" ", 1)
    text, duration = rest.rsplit(" ", 1)
    assert text == "INFO omendb query 10 20 series=1 series_id=7 rows=2 format=rows status=200"
    assert float(duration) >= 0
    assert len(stamp) == len("2026-01-01T00:00:00.123Z")


@pytest.mark.parametrize(
    ("query_string", "expected"),
    [
        ("", "query - - series=all rows=0 format=rows status=200"),
        ("end=-5&format=columns", "query - -5 series=all rows=0 format=columns status=200"),
        (
            f"start={INT64_MIN}&end={INT64_MAX}",
            f"query {INT64_MIN} {INT64_MAX} series=all rows=0 format=rows status=200",
        ),
        ("series_id=1,2,3", "query - - series=3 rows=0 format=rows status=200"),
        (
            "step=10&start=0&end=99&series_id=4",
            "query 0 99 series=1 series_id=4 step=10 rows=0 format=rows status=200",
        ),
        ("step=10&start=0&end=99", "query 0 99 series=all step=10 rows=0 format=rows status=200"),
    ],
)
def test_the_line_tells_what_was_asked(
    logged: Client, lines: Lines, query_string: str, expected: str
) -> None:
    assert logged.call("GET", f"/query?{query_string}").status == 200

    assert expected in lines[0]


def test_a_failed_query_is_a_line_with_its_error(logged: Client, lines: Lines) -> None:
    assert logged.call("GET", "/query?start=5&end=4%0a2026%20INFO%20omendb%20forged").status == 400
    assert logged.call("GET", "/query?start=9&end=4").status == 400

    assert len(lines) == 2
    assert (
        " WARNING omendb query 5 - series=- rows=0 format=- status=400 code=invalid_request error="
        in lines[0]
    )
    assert lines[0].count("\n") == 1
    assert " query 9 4 series=- rows=0 format=- status=400 " in lines[1]
    assert 'error="start 9 is after end 4"' in lines[1]
    for line in lines:
        float(line.split()[-1])


def test_answers_in_pieces_are_logged_when_they_end(
    logged: Client, lines: Lines, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.server.fake_engine.SHORT_ROWS", 5)
    monkeypatch.setattr("omendb.server.encode.PIECE_ROWS", 5)
    points = [{"series_id": 1, "timestamp": t, "value": 1.0} for t in range(20)]
    logged.call("POST", "/insert", body=msgspec.json.encode(points))
    lines.clear()

    assert len(logged.call("GET", "/query?start=0&end=99").json["rows"]) == 20
    assert len(logged.call("GET", "/query?start=0&end=99&limit=2").json["rows"]) == 2

    assert " query 0 99 series=all rows=20 format=rows status=200 " in lines[0]
    assert " query 0 99 series=all rows=2 format=rows status=200 " in lines[1]


@pytest.mark.parametrize("logged", [AsgiClient], indirect=True)
def test_an_answer_that_breaks_off_says_why(
    logged: AsgiClient, lines: Lines, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.server.fake_engine.SHORT_ROWS", 5)
    monkeypatch.setattr("omendb.server.encode.PIECE_ROWS", 5)
    monkeypatch.setattr("omendb.server.large_query.KEPT_ROW_BYTES_MAX", 0)
    points = [{"series_id": 1, "timestamp": t, "value": 1.0} for t in range(20)]
    logged.call("POST", "/insert", body=msgspec.json.encode(points))
    engine.chunk_error = CorruptionError("data/1.parquet", 5, "checksum")
    engine.chunk_error_after = 2
    lines.clear()

    with pytest.raises(Exception):  # noqa: B017 # the transfer must end broken, whatever tells so
        logged.call("GET", "/query")

    assert (
        " WARNING omendb query - - series=all rows=20 format=rows status=200 code=data_corrupted " in lines[0]
    )


def test_a_client_that_left_is_told_from_an_error(log: QueryLog, lines: Lines) -> None:
    log.broken_query((1, 2, [5], None, "columns"), 7, 0.5, None)

    assert lines[0].endswith(
        "WARNING omendb query 1 2 series=1 series_id=5 rows=7 format=columns status=499 code=disconnected 500.000\n"
    )


@pytest.mark.parametrize(
    ("mode", "expected"), [("all", [0.0999, 0.1, 7.0]), ("slow", [0.1, 7.0]), ("off", [])]
)
def test_settings_choose_live_which_queries_are_logged(
    engine: FakeEngine, log: QueryLog, lines: Lines, mode: str, expected: list[float]
) -> None:
    settings(engine, log_queries=mode, slow_query_ms=100)

    for seconds in (0.0999, 0.1, 7.0):
        log.query((None, None, None, None, None), 1, time.perf_counter() - seconds, seconds)

    assert [float(line.split()[-1]) for line in lines] == [seconds * 1e3 for seconds in expected]


def test_off_is_off_for_failed_queries_too(engine: FakeEngine, logged: Client, lines: Lines) -> None:
    settings(engine, log_queries="off")

    assert logged.call("GET", "/query?nonsense=1").status == 400

    assert lines == []


def test_json_lines_hold_the_same(engine: FakeEngine, logged: Client, lines: Lines) -> None:
    settings(engine, log_format="json")
    logged.call("GET", "/query?start=10&series_id=7")
    logged.call("GET", "/query?step=5&end=9&start=0&format=columns")
    logged.call("GET", "/query?start=x")

    one, windows, failed = map(msgspec.json.decode, lines)
    for line in (one, windows, failed):
        assert isinstance(line.pop("duration_ms"), float)
        assert line.pop("time").endswith("Z")
        assert (line.pop("event"), line.pop("logger")) == ("query", "omendb.requests")
    assert one == {
        "level": "info", "start": 10, "end": None, "series": 1, "series_id": 7, "rows": 0, "format": "rows", "status": 200,
    }  # fmt: skip
    assert windows == {
        "level": "info", "start": 0, "end": 9, "series": None, "step": 5, "rows": 0, "format": "columns", "status": 200,
    }  # fmt: skip
    assert failed.pop("error").startswith("start must be an integer")
    assert failed == {
        "level": "warning", "start": None, "end": None, "series": None, "rows": 0, "format": "-", "status": 400,
        "code": "invalid_request",
    }  # fmt: skip


@given(
    st.none() | st.integers(INT64_MIN, INT64_MAX),
    st.none() | st.integers(INT64_MIN, INT64_MAX),
    st.none() | st.lists(st.integers(0, INT64_MAX), max_size=3),
    st.none() | st.integers(1, INT64_MAX),
    st.integers(0, 10**12),
    st.sampled_from([None, "rows", "columns"]),
    st.floats(0, 1e6),
)
def test_the_quick_way_writes_what_the_general_one_does(
    start, end, series, step, rows, form, seconds
) -> None:
    from tests.server.fake_engine import FakeEngine

    made = Lines()
    made.log = log = QueryLog(FakeEngine(), made)  # type: ignore[arg-type]
    asked = (start, end, series, step, form)

    log.query(asked, rows, time.perf_counter() - seconds, seconds)
    made.append(log._query_line("info", asked, rows, 200, seconds))

    quick, general = (line.split(" ", 1)[1] for line in made)
    assert quick.rsplit(" ", 1)[0] == general.rsplit(" ", 1)[0]
    assert float(quick.split()[-1]) == pytest.approx(float(general.split()[-1]), abs=0.0011)


def test_a_line_carries_the_time_of_its_answer(log: QueryLog, lines: Lines) -> None:
    before = time.time()
    for ago in (3600.0, 2.0, 0.0):
        log.query((None, None, None, None, None), 1, time.perf_counter() - ago, 0.25)
    after = time.time()

    for line, ago in zip(lines, (3600.0, 2.0, 0.0), strict=True):
        shown = datetime.datetime.fromisoformat(line.split()[0]).timestamp()
        assert before - ago + 0.25 - 0.002 <= shown <= after - ago + 0.25 + 0.002


def test_the_runbooks_programs_read_the_lines(logged: Client, lines: Lines) -> None:
    for query_string in ("start=1&end=2", "start=1&end=2&series_id=3", "start=5", "end=x&start=5", ""):
        logged.call("GET", f"/query?{query_string}")
    text = "".join(lines)

    durations = shell(RUNBOOK_DURATIONS, text).splitlines()
    ranges = [line.split() for line in shell(RUNBOOK_RANGES, text).splitlines()]

    assert len(durations) == 5
    assert list(map(float, durations)) == sorted(map(float, durations))
    assert ranges[0] in (["2", "1", "2"], ["2", "5", "-"])
    assert sorted(ranges) == [["1", "-", "-"], ["2", "1", "2"], ["2", "5", "-"]]


def test_slow_inserts_are_lines(engine: FakeEngine, logged: Client, caplog: pytest.LogCaptureFixture) -> None:
    body = b'[{"series_id":1,"timestamp":1,"value":1},{"series_id":1,"timestamp":2,"value":1}]'
    with caplog.at_level("INFO", "omendb"):
        assert logged.call("POST", "/insert", body=body).status == 200
        assert caplog.records == []
        settings(engine, slow_query_ms=0)
        assert logged.call("POST", "/insert", body=body).status == 200

    (found,) = caplog.records
    assert found.getMessage().startswith("insert slow rows=2 status=200 duration_ms=")


def test_inserts_are_summed_up(
    engine: FakeEngine, log: QueryLog, logged: Client, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'[{"series_id":1,"timestamp":1,"value":1},{"series_id":1,"timestamp":2,"value":1}]'
    logged.call("POST", "/insert", body=body)
    logged.call("POST", "/insert", body=body)
    logged.call("POST", "/insert", body=b"nonsense")
    with caplog.at_level("INFO", "omendb"):
        log.sum_up()
        log.sum_up()  # nothing new: no line

    (found,) = [r.getMessage() for r in caplog.records if r.levelname == "INFO"]
    assert found.startswith("inserts summary requests=2 rows=4 failed_rows=1 mean_ms=")


@pytest.mark.parametrize(
    ("error", "status"), [(OverloadedError("memory is short"), 503), (DiskFullError("no space"), 507)]
)
def test_refused_inserts_count_their_rows_and_are_lines(
    engine: FakeEngine, logged: Client, caplog: pytest.LogCaptureFixture, error: Exception, status: int
) -> None:
    body = b'[{"series_id":1,"timestamp":1,"value":1},{"series_id":1,"timestamp":2,"value":1}]'
    for place in ("submit_error", "commit_error"):
        setattr(engine, place, error)
        assert logged.call("POST", "/insert", body=body).status == status
        setattr(engine, place, None)

    assert engine.metrics.insert_failures_total.value == 4
    messages = [r.getMessage() for r in caplog.records if r.name == "omendb.requests"]
    assert len(messages) == 2
    assert all(f'insert failed rows=2 status={status} code={error.code} error="' in text for text in messages)


def test_other_errors_are_lines_that_clients_cannot_forge(
    logged: Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert logged.call("GET", '/none"\\here').status == 404
    assert logged.call("POST", "/admin/gc", body=b"[1]").status == 400

    messages = [r.getMessage() for r in caplog.records if r.name == "omendb.requests"]
    assert messages[0].startswith(
        'request failed method="GET" path="/none\\"\\\\here" status=404 code=not_found error='
    )
    assert messages[1].startswith('request failed method="POST" path="/admin/gc" status=400 ')


def test_errors_are_counted_by_status_and_code(engine: FakeEngine, logged: Client) -> None:
    logged.call("GET", "/none")
    logged.call("GET", "/query?x=1")
    logged.call("GET", "/query?x=1")

    text = engine.metrics.render().decode()

    assert 'omendb_request_errors_total{code="not_found",status="404"} 1.0' in text
    assert 'omendb_request_errors_total{code="invalid_request",status="400"} 2.0' in text


def test_a_flood_of_equal_errors_is_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(query_log, "perf_counter", lambda: now[0])
    limit = Limit(2)

    assert [limit.take("a") for _ in range(5)] == [0, 0, None, None, None]
    assert limit.take("b") == 0
    now[0] = 101.5
    assert [limit.take("a") for _ in range(3)] == [3, 0, None]


def test_the_end_of_the_log_sums_up(
    engine: FakeEngine, log: QueryLog, logged: Client, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    log.start()
    logged.call("POST", "/insert", body=b'{"series_id":1,"timestamp":1,"value":1}')
    with caplog.at_level("INFO", "omendb"):
        log.close()

    assert "inserts summary requests=1 rows=1 failed_rows=0" in caplog.text
