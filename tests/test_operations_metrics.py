"""`docs/operations.md` describes the metrics and the log that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from omendb.config import SPECS
from omendb.server import log_writer, query_log

if TYPE_CHECKING:
    from tests.serving import RunningServer

PAGE = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()


def section(title: str) -> str:
    """Return the text below a heading, up to the next one of its level."""
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_metric_of_a_server_is_described_with_its_labels_and_type(server: RunningServer) -> None:
    urllib3.request("GET", server.url + "/none")  # so that there is an error to count
    text = urllib3.request("GET", server.metrics_url + "/metrics").data.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        if name.startswith("omendb_"):
            # Which labels a counter has shows when it has counted something.
            found[name] = (family.type, labels if family.samples else None)

    described = {}
    for names, types, _ in re.findall(
        r"^\| (`omendb_.*?) \| (.*?) \| (.*) \|$", section("Metrics"), re.MULTILINE
    ):
        kinds = [kind.removesuffix("s") for kind in types.split(", ")]
        for position, (name, labels) in enumerate(re.findall(r"`(\w+)(?:\{(.*?)\})?`", names)):
            described[name] = (
                kinds[min(position, len(kinds) - 1)],
                sorted(labels.split(",")) if labels else [],
            )

    assert described.keys() == found.keys()
    for name, (kind, labels) in found.items():
        assert described[name] == (kind, described[name][1] if labels is None else labels), name


def test_the_log_section_states_the_settings_and_limits_in_force() -> None:
    text = section("Logs")

    for name in ("log_queries", "slow_query_ms", "log_format"):
        (default,) = re.findall(rf"^\| `{name}` \| `?(\w+)`? \|", text, re.MULTILINE)
        assert default == str(SPECS[name].default)
    assert f"{log_writer.LINES_MAX:,}\nlines wait" in text
    assert f"every {log_writer.GATHER_SECONDS * 1e3:.0f} ms" in text
    assert f"(for {log_writer.CLOSE_SECONDS:.0f} s at most)" in text
    assert f"every {query_log.SUMMARY_SECONDS:.0f} s" in text
    assert f"at most {query_log.ALIKE_MAX} a second" in text
    assert f"status={query_log.DISCONNECTED_STATUS} code=disconnected" in text
