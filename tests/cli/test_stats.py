from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from omendb.cli.stats import _lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from tests.cli.fake_server import FakeServer


def test_table_is_for_people(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    fake.points = {(1, i): 0.0 for i in range(1234)}

    result = omendb("stats", "--url", fake.url)

    assert result.exit_code == 0, result.output
    assert result.stdout == ("record count  1,234\nwal\n  bytes       5,000,000 (4.8 MiB)\nlast          -\n")


def test_json_is_that_of_the_server(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    result = omendb("stats", "--url", fake.url, "--json")

    assert orjson.loads(result.stdout)["record_count"] == 0


def test_unknown_path_is_one_line(fake: FakeServer, omendb: Callable[..., Result]) -> None:
    result = omendb("stats", "--index", "--url", fake.url)

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")


def test_figures_of_every_kind_have_a_text() -> None:
    figures = {
        "min_timestamp": 1_700_000_000_000,
        "efficiency": 0.87654321,
        "rows_per_second": 123456.7,
        "unix_seconds": 1_700_000_000.25,
        "covered": True,
        "shares": [1000, 2],
        "none": [],
        "models": [{"kind": "knots", "count": 3}],
    }

    assert list(_lines(figures)) == [
        ("min timestamp", "1700000000000"),
        ("efficiency", "0.8765"),
        ("rows per second", "123,457"),
        ("unix seconds", "2023-11-14 22:13:20+00:00"),
        ("covered", "yes"),
        ("shares", "1,000, 2"),
        ("none", "-"),
        ("models 0", ""),
        ("  kind", "knots"),
        ("  count", "3"),
    ]
