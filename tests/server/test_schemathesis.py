"""Schemathesis reads `/openapi.json` and tries what the description allows, and what it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omendb.server.app import Application
from tests.server.clients import RsgiClient

if TYPE_CHECKING:
    from tests.server.fake_engine import FakeEngine
    from tests.serving import RunningServer

SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))
SEED = 20_261
EXAMPLES_MAX = 60  # of each call

# Not `positive_data_acceptance`: JSON Schema has no words for columns of equal length, for a start that is
# not after its end, or for a cursor that belongs to its query.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)


def schemathesis(url: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it on a server; it keeps its notes in `directory`."""
    return subprocess.run(
        [
            *(SCHEMATHESIS, "run", f"{url}/openapi.json", f"--seed={SEED}", "--no-color", "--no-shrink"),
            *("--phases=examples,coverage,fuzzing", "--checks=" + ",".join(CHECKS)),
            *("--generation-database=none", *options),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_finds_nothing(server: RunningServer, tmp_path: Path) -> None:
    series = {"series_id": 1, "timestamp": list(range(1000)), "value": [0.5] * 1000}
    server.post("/insert", series)

    run = schemathesis(server.url, tmp_path, f"--max-examples={EXAMPLES_MAX}")

    assert run.returncode == 0, run.stdout + run.stderr
    assert "No issues found" in run.stdout
    log = server.log.read_text()
    assert "ERROR" not in log
    assert "Traceback" not in log
    assert server.get("/query?series_id=1&step=1000&agg=count,sum")["rows"][0]["timestamp"] == 0


def test_finds_a_status_that_is_not_described(engine: FakeEngine, tmp_path: Path) -> None:
    # Without it a run that checks nothing would pass too.
    def refuse(*arguments: object) -> None:
        raise ZeroDivisionError

    engine.stats = refuse  # type: ignore[assignment]
    client = RsgiClient(Application(engine))  # type: ignore[arg-type]
    try:
        url = f"http://127.0.0.1:{client.port}"
        run = schemathesis(url, tmp_path, "--max-examples=3", "--include-path=/admin/stats")
    finally:
        client.close()

    assert run.returncode == 1, run.stdout + run.stderr
    assert "Server error" in run.stdout


def test_finds_an_answer_that_is_not_as_described(engine: FakeEngine, tmp_path: Path) -> None:
    client = RsgiClient(Application(engine))  # type: ignore[arg-type]
    try:
        url = f"http://127.0.0.1:{client.port}"
        # The fake engine's report has other fields than the real one's.
        run = schemathesis(url, tmp_path, "--max-examples=3", "--include-path=/admin/stats")
    finally:
        client.close()

    assert run.returncode == 1, run.stdout + run.stderr
    assert "violates schema" in run.stdout
