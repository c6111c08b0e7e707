from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from omendb.errors import CorruptionError
from omendb.model import Columns

if TYPE_CHECKING:
    from tests.server.clients import AsgiClient, RsgiClient
    from tests.server.fake_engine import FakeEngine

    Client = RsgiClient | AsgiClient


@pytest.fixture
def points(engine: FakeEngine) -> FakeEngine:
    """Three series of ten points: series 1, 2, 3, timestamps 0, 10, .. 90, values series + time / 100."""
    series = np.repeat(np.array([1, 2, 3]), 10)
    time = np.tile(np.arange(0, 100, 10), 3)
    engine.load(Columns(series, time, series + time / 100))
    return engine


def rows(reply: object) -> list[tuple[int, int, float]]:
    return [
        (row["series_id"], row["timestamp"], row["value"])
        for row in reply.json["rows"]  # type: ignore[attr-defined]
    ]


@pytest.mark.usefixtures("points")
class TestRows:
    def test_all(self, client: Client) -> None:
        reply = client.call("GET", "/query")

        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        assert list(reply.json) == ["count", "rows", "cursor"]
        assert reply.json["count"] == 30
        assert reply.json["cursor"] is None
        assert rows(reply)[11] == (2, 10, 2.1)

    def test_start_and_end_are_inclusive(self, client: Client) -> None:
        reply = client.call("GET", "/query?series_id=2&start=20&end=40")

        assert rows(reply) == [(2, 20, 2.2), (2, 30, 2.3), (2, 40, 2.4)]

    @pytest.mark.parametrize(
        "series",
        ["series_id=3&series_id=1", "series_id=3,1", "series_id=3%2C1", "series_id=1,3&series_id=1"],
    )
    def test_several_series(self, client: Client, series: str) -> None:
        reply = client.call("GET", f"/query?{series}&end=0")

        assert rows(reply) == [(1, 0, 1.0), (3, 0, 3.0)]

    def test_extremes_of_time(self, client: Client) -> None:
        reply = client.call("GET", "/query?start=-9223372036854775808&end=9223372036854775807&format=rows")

        assert reply.json["count"] == 30

    @pytest.mark.parametrize("query", ["series_id=9", "start=1000"])
    def test_nothing(self, client: Client, query: str) -> None:
        reply = client.call("GET", f"/query?{query}")

        assert reply.json == {"count": 0, "rows": [], "cursor": None}

    def test_a_limited_answer_goes_on_at_its_cursor(self, client: Client) -> None:
        seen: list[tuple[int, int, float]] = []
        target = "/query?limit=7&start=10"
        for _ in range(4):
            reply = client.call("GET", target)
            seen += rows(reply)
            target = f"/query?limit=7&start=10&cursor={reply.json['cursor']}"

        assert reply.json["cursor"] is None
        assert seen == rows(client.call("GET", "/query?start=10"))

    def test_an_empty_query_string_is_none(self, client: Client) -> None:
        assert client.call("GET", "/query?").json["count"] == 30
        assert client.call("GET", "/query?&end=0&").json["count"] == 3


@pytest.mark.usefixtures("points")
class TestColumns:
    def test_has_one_array_a_column(self, client: Client) -> None:
        reply = client.call("GET", "/query?series_id=1&end=20&format=columns")

        assert list(reply.json) == ["count", "series_id", "timestamp", "value", "cursor"]
        assert reply.json == {
            "count": 3,
            "series_id": [1, 1, 1],
            "timestamp": [0, 10, 20],
            "value": [1.0, 1.1, 1.2],
            "cursor": None,
        }

    def test_nothing(self, client: Client) -> None:
        reply = client.call("GET", "/query?series_id=9&format=columns")

        assert reply.json == {
            "count": 0,
            "series_id": [],
            "timestamp": [],
            "value": [],
            "cursor": None,
        }

    def test_carries_the_cursor(self, client: Client) -> None:
        cursor = client.call("GET", "/query?limit=29&format=columns").json["cursor"]

        last = client.call("GET", f"/query?limit=29&format=columns&cursor={cursor}").json

        assert last["timestamp"] == [90]
        assert last["cursor"] is None


@pytest.mark.usefixtures("points")
class TestWindows:
    def test_the_mean_is_the_default(self, client: Client) -> None:
        reply = client.call("GET", "/query?series_id=1&start=0&end=99&step=50")

        assert reply.json == {
            "count": 2,
            "rows": [
                {"series_id": 1, "timestamp": 0, "mean": pytest.approx(1.2)},
                {"series_id": 1, "timestamp": 50, "mean": pytest.approx(1.7)},
            ],
            "cursor": None,
        }

    def test_every_aggregate_in_the_order_asked_for(self, client: Client) -> None:
        names = ["stddev", "count", "sum", "min", "max", "mean", "first", "last"]

        reply = client.call("GET", f"/query?series_id=1&start=0&step=1000&agg={','.join(names)}")

        (row,) = reply.json["rows"]
        assert list(row) == ["series_id", "timestamp", *names]
        assert row["count"] == 10
        assert isinstance(row["count"], int)
        assert (row["first"], row["last"], row["min"], row["max"]) == (1.0, 1.9, 1.0, 1.9)
        assert row["stddev"] == pytest.approx(np.std(np.arange(10) / 10))

    def test_aggregates_repeated_instead_of_commas(self, client: Client) -> None:
        reply = client.call("GET", "/query?series_id=1&step=1000&agg=count&agg=max")

        assert reply.json["rows"] == [{"series_id": 1, "timestamp": 0, "count": 10, "max": 1.9}]

    def test_windows_are_aligned_to_start(self, client: Client) -> None:
        reply = client.call("GET", "/query?series_id=2&start=15&end=75&step=30&agg=count")

        assert [(row["timestamp"], row["count"]) for row in reply.json["rows"]] == [
            (15, 3),
            (45, 3),
        ]

    def test_as_columns(self, client: Client) -> None:
        reply = client.call("GET", "/query?end=0&step=10&agg=count,max&format=columns")

        assert reply.json["count"] == 3
        assert reply.json["series_id"] == [1, 2, 3]
        assert reply.json["columns"]["max"] == [1.0, 2.0, 3.0]
        assert list(reply.json["columns"]) == ["count", "max"]


@pytest.mark.usefixtures("points")
class TestHead:
    def test_has_the_head_of_the_answer_only(self, client: Client) -> None:
        get = client.call("GET", "/query")

        head = client.call("HEAD", "/query")

        assert head.status == 200
        assert head.body == b""
        assert head.headers["content-length"] == str(len(get.body))


def test_options_tells_the_methods(client: Client) -> None:
    reply = client.call("OPTIONS", "/query")

    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["allow"] == "GET, HEAD, OPTIONS"


def test_corruption_is_told_and_logged(
    client: Client, points: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    points.chunk_error = CorruptionError("data/0001.parquet", 4096, "checksum does not match")

    reply = client.call("GET", "/query")

    assert reply.status == 500
    assert reply.error["code"] == "data_corrupted"
    assert "data/0001.parquet" in reply.error["message"]
    assert "data/0001.parquet" in caplog.text
    assert points.metrics.query_failures_total.value == 1


def test_answers_are_what_the_json_module_reads(client: Client, engine: FakeEngine) -> None:
    values = np.array([0.1, -0.0, 1e-308, 1.7976931348623157e308, 1 / 3, 2.0**53, 5e-324])
    ids = np.full(len(values), 2**63 - 1)
    times = np.arange(len(values)) - 2**62
    engine.load(Columns(ids, times, values))

    reply = client.call("GET", "/query?format=columns")

    assert json.loads(reply.body)["value"] == values.tolist()
    assert reply.json["series_id"] == ids.tolist()
    assert reply.json["timestamp"] == times.tolist()


@pytest.mark.usefixtures("points")
class TestWindowsOfAllSeries:
    def test_a_row_a_window(self, client: Client) -> None:
        reply = client.call("GET", "/query?start=0&end=59&step=30&agg=count,max,first,last&by=")

        assert reply.status == 200
        assert reply.json == {
            "count": 2,
            "rows": [
                {"timestamp": 0, "count": 9, "max": 3.2, "first": 1.0, "last": 3.2},
                {"timestamp": 30, "count": 9, "max": 3.5, "first": 1.3, "last": 3.5},
            ],
            "cursor": None,
        }

    def test_columns(self, client: Client) -> None:
        reply = client.call("GET", "/query?start=0&end=59&step=30&agg=count&by=&format=columns")

        assert reply.json == {
            "count": 2,
            "timestamp": [0, 30],
            "columns": {"count": [9, 9]},
            "cursor": None,
        }

    def test_none(self, client: Client) -> None:
        reply = client.call("GET", "/query?start=1000&step=30&by=&format=columns")

        assert reply.json == {"count": 0, "timestamp": [], "columns": {"mean": []}, "cursor": None}

    def test_by_series_is_the_default(self, client: Client) -> None:
        wanted = "/query?step=50&agg=count"

        assert client.call("GET", f"{wanted}&by=series_id").body == client.call("GET", wanted).body

    @pytest.mark.parametrize("wrong", ["step=9&by=value", "step=9&by=&by=", "by=", "by=series_id"])
    def test_mistakes_are_refused_by_name(self, client: Client, wrong: str) -> None:
        reply = client.call("GET", f"/query?{wrong}")

        assert (reply.status, reply.error["field"]) == (400, "by")
