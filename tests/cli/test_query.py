from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from omendb.cli import target_http

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from tests.cli.fake_server import FakeServer

POINTS = {(1, 10): 0.5, (1, 20): 20.0, (2, 10): -1e-300, (3, 2**60): 7.25}


@pytest.fixture(autouse=True)
def points(fake: FakeServer) -> None:
    fake.points = dict(POINTS)


def test_csv_holds_the_points_in_order(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    result = omendb("query", "--url", fake.url)

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "series_id,timestamp,value"
    rows = [line.split(",") for line in lines[1:]]
    assert {(int(s), int(t)): float(v) for s, t, v in rows} == POINTS
    assert lines[1] == "1,10,0.5"


def test_pages_are_followed_to_the_end(
    fake: FakeServer, omendb: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_http, "PAGE_ROWS", 3)

    result = omendb("query", "--url", fake.url)

    assert len(result.stdout.splitlines()) == 5
    assert fake.queries == ["limit=3&format=columns", "limit=3&format=columns&cursor=3"]


def test_limit_ends_the_answer_within_a_page(
    fake: FakeServer, omendb: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_http, "PAGE_ROWS", 2)

    result = omendb("query", "--url", fake.url, "--limit", 3)

    assert len(result.stdout.splitlines()) == 4


def test_bounds_and_series_reach_the_server(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    result = omendb(
        *("query", "--url", fake.url, "--start", -5, "--end", 15),
        *("--series-id", 1, "--series-id", 2),
    )

    assert result.stdout == "series_id,timestamp,value\n1,10,0.5\n2,10,-1e-300\n"
    assert fake.queries == ["start=-5&end=15&series_id=1,2&limit=100000&format=columns"]


def test_windows_have_a_column_an_aggregate(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    result = omendb("query", "--url", fake.url, "--step", 10, "--agg", "count,mean", "--series-id", 1)

    assert result.stdout == "series_id,timestamp,count,mean\n1,10,1,0.5\n1,20,1,20\n"


@pytest.mark.parametrize("by", ["none", ""])
def test_windows_of_all_series_have_no_column_for_it(
    fake: FakeServer, omendb: Callable[..., Result], by: str
) -> None:
    result = omendb("query", "--url", fake.url, "--step", 10, "--by", by, "--series-id", 1)

    assert result.stdout == "timestamp,mean\n10,0.5\n20,20\n"
    assert fake.queries == ["series_id=1&limit=100000&step=10&agg=mean&by="]


def test_points_are_by_nothing_else(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    result = omendb("query", "--url", fake.url, "--by", "none")

    assert result.exit_code == 2
    assert "--by needs --step" in result.output
    assert fake.queries == []


def test_no_rows_are_a_header_only(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    result = omendb("query", "--url", fake.url, "--series-id", 9)

    assert result.stdout == "series_id,timestamp,value\n"


@pytest.mark.parametrize("form", ["json", "columns"])
def test_json_is_that_of_the_server(fake: FakeServer, omendb: Callable[..., Result], form: str) -> None:
    result = omendb("query", "--url", fake.url, "--format", form, "--limit", 2)

    answer = orjson.loads(result.stdout)
    assert answer["count"] == 2
    assert answer["cursor"] == "2"
    assert ("rows" in answer) == (form == "json")


def test_servers_error_is_one_line(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    for form in ("csv", "json"):
        result = omendb("query", "--url", fake.url, "--start", 2, "--end", 1, "--format", form)

        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr == "Error: start: refused with 400\n"


@pytest.mark.parametrize("url", ["localhost:3000", "ftp://x", "http://", "http://[::1"])
def test_address_that_is_none_is_refused(omendb: Callable[..., Result], url: str) -> None:
    result = omendb("query", "--url", url)

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: --url")
