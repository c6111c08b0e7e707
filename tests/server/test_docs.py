"""`docs/http-api.md` names everything that there is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from omendb import errors, executor, short_query
from omendb.config import Settings
from omendb.model import AGGREGATES
from omendb.reports import BackupReport, Backups, GcReport, IndexStats, RetrainReport, Stats
from omendb.server import arrow, connection, encode, large_query, problems, work
from omendb.server.handlers import CALLS
from omendb.server.question import PARAMETERS as QUERY_PARAMETERS

PAGE = (Path(__file__).parents[2] / "docs/http-api.md").read_text()
SERVED_ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.OmenError) and kind not in (errors.OmenError, errors.LockedError)
]


@pytest.mark.parametrize("call", CALLS)
def test_names_every_call(call: str) -> None:
    assert f"`{call}`" in PAGE


@pytest.mark.parametrize("name", [*sorted(QUERY_PARAMETERS), *AGGREGATES])
def test_names_every_parameter(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("kind", SERVED_ERRORS)
def test_names_every_error_with_its_status(kind: type[errors.OmenError]) -> None:
    assert f"| {problems.STATUSES[kind]} | `{kind.code}` |" in PAGE


@pytest.mark.parametrize("report", [Stats, IndexStats, RetrainReport, GcReport, BackupReport, Backups])
def test_shows_every_field_of_the_reports(report: type) -> None:
    for name in report.__struct_fields__:  # type: ignore[attr-defined]
        assert f'"{name}":' in PAGE


def test_states_the_limits_in_force() -> None:
    settings = Settings()
    assert settings.max_body_bytes == 64 << 20
    assert settings.body_timeout_ms == 10_000
    assert f"more than {short_query.SHORT_ROWS:,} rows runs in a thread" in PAGE
    assert f"more than {executor.SPLIT_ROWS:,} rows in as many" in PAGE
    assert f"more than {encode.PIECE_ROWS:,} rows is sent in pieces" in PAGE
    assert encode.COLUMN_PIECE_ROWS == arrow.PIECE_ROWS
    assert f"of more than {arrow.PIECE_ROWS:,}" in PAGE
    assert f"take more than {large_query.KEPT_WINDOW_BYTES_MAX >> 20} MB are made twice" in PAGE
    assert f"takes nothing for {connection.STALL_SECONDS:.0f} s" in PAGE
    assert f"{work.QUERIES_MAX} at a time, {work.QUERIES_WAITING_MAX} waiting" in PAGE


def test_its_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(#([^)]*)\)", PAGE):
        assert target in headings
