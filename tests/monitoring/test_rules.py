"""The alerts: the runbook's as they stand there, each fires on what it is for and on nothing else."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml

from deploy.monitoring import make_prometheus_rule
from tests.monitoring.files import MONITORING, ROOT, RULES, alerts, groups

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


class Case(NamedTuple):
    """Series of an instance where an alert fires, and of one where it does not; in the notation of promtool.

    `bad` and `good` map a metric, with the labels that matter, to its values at one a minute.
    """

    bad: dict[str, str]
    good: dict[str, str]
    minute: int = 20


def slow(name: str, bound: str, above: str) -> Case:
    """Return the case of a latency: half of what is counted lies above `bound`, or nothing does."""
    buckets = [f'{name}_bucket{{le="{le}"}}' for le in (bound, above, "+Inf")]
    return Case(
        dict(zip(buckets, ("0+300x60", "0+600x60", "0+600x60"), strict=True)),
        dict(zip(buckets, ("0+600x60", "0+600x60", "0+600x60"), strict=True)),
    )


def constant(name: str, bad: float, good: float, minute: int = 20) -> Case:
    return Case({name: f"{bad}+0x90"}, {name: f"{good}+0x90"}, minute)


DAY = 24 * 60
GROWING = "0+60x1600"
CASES = {
    "HighQueryLatency": slow("omendb_query_duration_seconds", "0.5", "1.0"),
    "HighInsertLatency": slow("omendb_insert_duration_seconds", "0.2", "0.5"),
    "LowThroughput": Case({"omendb_inserts_total": "0+290000x60"}, {"omendb_inserts_total": "0+310000x60"}),
    "HighErrorRate": Case(
        {"omendb_insert_failures_total": "0+11x60", "omendb_inserts_total": "0+1000x60"},
        {"omendb_insert_failures_total": "0+9x60", "omendb_inserts_total": "0+1000x60"},
    ),
    "OmenDBRecentQueryLatencyHigh": slow("omendb_query_duration_seconds", "0.5", "1.0"),
    "OmenDBRecentInsertLatencyHigh": slow("omendb_insert_duration_seconds", "0.2", "0.5"),
    "OmenDBQueriesFailing": Case(
        {"omendb_query_failures_total": "0+2x60", "omendb_query_duration_seconds_count": "0+100x60"},
        {"omendb_query_failures_total": "0+1x60", "omendb_query_duration_seconds_count": "0+100x60"},
    ),
    "OmenDBInsertsRefused": Case(
        {'omendb_request_errors_total{status="507",code="disk_full"}': "0+5x60"},
        {'omendb_request_errors_total{status="400",code="invalid_request"}': "0+5x60"},
    ),
    "OmenDBInternalErrors": Case(
        {'omendb_request_errors_total{status="500",code="data_corrupted"}': "0x15 1x45"},
        {'omendb_request_errors_total{status="500",code="data_corrupted"}': "1x60"},
    ),
    "OmenDBTooManyConnections": Case(
        {"omendb_active_connections": "801+0x60", "omendb_connections_limit": "1000+0x60"},
        {"omendb_active_connections": "800+0x60", "omendb_connections_limit": "1000+0x60"},
    ),
    "OmenDBDown": Case({'up{job="omendb"}': "1x10 0x50"}, {'up{job="omendb"}': "1x60"}),
    "OmenDBNotReady": Case(
        {'omendb_ready{job="omendb",pod="a"}': "1x5 0x60", 'omendb_ready{job="omendb",pod="b"}': "0x65"},
        {'omendb_ready{job="other",pod="a"}': "1x65", 'omendb_ready{job="other",pod="b"}': "0x65"},
    ),
    "OmenDBAbsent": Case({'up{job="other"}': "1x60"}, {}),
    "OmenDBUncleanStart": Case(
        {"omendb_unclean_start": "1x60", 'process_start_time_seconds{job="omendb"}': "600x60"},
        {"omendb_unclean_start": "0x60", 'process_start_time_seconds{job="omendb"}': "600x60"},
    ),
    "OmenDBRestarting": Case(
        {'process_start_time_seconds{job="omendb"}': "0x5 1x5 2x5 3x5 4x40"},
        {'process_start_time_seconds{job="omendb"}': "0x5 1x5 2x60"},
    ),
    "OmenDBMemoryHigh": Case(
        {"omendb_memory_usage_bytes": "91+0x60", "omendb_memory_limit_bytes": "100+0x60"},
        {"omendb_memory_usage_bytes": "90+0x60", "omendb_memory_limit_bytes": "100+0x60"},
    ),
    "OmenDBFilesRunOut": Case(
        {'process_open_fds{job="omendb"}': "81+0x60", 'process_max_fds{job="omendb"}': "100+0x60"},
        {'process_open_fds{job="omendb"}': "80+0x60", 'process_max_fds{job="omendb"}': "100+0x60"},
    ),
    "OmenDBConfigReloadFailed": constant("omendb_config_last_reload_successful", 0, 1),
    "OmenDBLogLinesDropped": Case(
        {"omendb_log_lines_dropped_total": "0x15 7x45"}, {"omendb_log_lines_dropped_total": "7x60"}
    ),
    "OmenDBWalSyncSlow": slow("omendb_wal_fsync_duration_seconds", "0.1", "0.2"),
    "OmenDBWalGrowing": constant("omendb_wal_bytes", 4.1 * 2**30, 3.9 * 2**30, 30),
    "OmenDBDiskNearlyFull": Case(
        {"omendb_disk_free_bytes": "9+0x60", "omendb_disk_bytes": "100+0x60"},
        {"omendb_disk_free_bytes": "10+0x60", "omendb_disk_bytes": "100+0x60"},
    ),
    "OmenDBDiskFillsUp": Case(
        {"omendb_disk_free_bytes": "390000-250x400", "omendb_disk_bytes": "1000000+0x400"},
        {"omendb_disk_free_bytes": "390000-200x400", "omendb_disk_bytes": "1000000+0x400"},
        200,
    ),
    "OmenDBDamagedData": constant("omendb_damaged_segments", 1, 0),
    "OmenDBFlushFailing": Case(
        {"omendb_flush_failures_total": "0x14 1x46"}, {"omendb_flush_failures_total": "1x60"}
    ),
    "OmenDBCompactionFailing": Case(
        {"omendb_compaction_failures_total": "0x10 1x60"}, {"omendb_compaction_failures_total": "1x60"}, 30
    ),
    "OmenDBTooManySegments": constant("omendb_segments", 4001, 4000, 30),
    "OmenDBRemovedFilesStayMapped": constant("omendb_removed_mapped_bytes", 1.1 * 2**30, 0.9 * 2**30, 60),
    "OmenDBBackupTooOld": Case(
        {
            "omendb_last_backup_timestamp_seconds": "0x1700",
            'process_start_time_seconds{job="omendb"}': "0x1700",
        },
        {
            "omendb_last_backup_timestamp_seconds": "36000x1700",
            'process_start_time_seconds{job="omendb"}': "0x1700",
        },
        27 * 60,
    ),
    "OmenDBBackupFailing": Case(
        {"omendb_backup_failures_total": "0x15 1x45"}, {"omendb_backup_failures_total": "1x60"}
    ),
}


def series(metrics: dict[str, str], instance: str) -> list[dict[str, str]]:
    """Return the input of promtool: the metrics of an instance of the job omendb."""
    found = []
    for metric, values in metrics.items():
        name, _, labels = metric.rstrip("}").partition("{")
        job = [] if 'job="' in labels else ['job="omendb"']
        every = ",".join([*job, f'instance="{instance}"', *([labels] if labels else [])])
        found.append({"series": f"{name}{{{every}}}", "values": values})
    return found


def promtool(program: str, *arguments: object) -> str:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_what_prometheus_takes(debian_tool: Callable[[str], str]) -> None:
    output = promtool(debian_tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", RULES)

    assert f"{len(alerts())} rules found" in output


@pytest.mark.parametrize("name", alerts())
def test_an_alert_fires_on_what_it_is_for_only(
    name: str, tmp_path: Path, debian_tool: Callable[[str], str]
) -> None:
    case = CASES[name]
    label = {"OmenDBNotReady": "job", "OmenDBAbsent": "job"}.get(name, "instance")
    fired = {"OmenDBNotReady": "omendb", "OmenDBAbsent": "omendb"}.get(name, "bad")
    firing = f'max by ({label}) (ALERTS{{alertname="{name}",alertstate="firing"}})'
    test = {
        "interval": "1m",
        "input_series": [*series(case.bad, "bad"), *series(case.good, "good")],
        "promql_expr_test": [
            {
                "expr": firing,
                "eval_time": f"{case.minute}m",
                "exp_samples": [{"labels": f'{{{label}="{fired}"}}', "value": 1}],
            },
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [test]}))

    promtool(debian_tool("promtool"), "test", "rules", file)


def test_an_alert_that_does_not_fire_fails_its_test(
    tmp_path: Path, debian_tool: Callable[[str], str]
) -> None:
    """Promtool does look at the samples that are expected."""
    good = CASES["OmenDBMemoryHigh"].good
    expected = [{"labels": '{instance="bad"}', "value": 1}]
    test = {
        "interval": "1m",
        "input_series": series(good, "bad"),
        "promql_expr_test": [{"expr": "ALERTS", "eval_time": "20m", "exp_samples": expected}],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [test]}))

    done = subprocess.run(
        [debian_tool("promtool"), "test", "rules", str(file)], capture_output=True, check=False
    )

    assert done.returncode != 0


def test_every_alert_has_its_case_and_its_advice() -> None:
    assert set(CASES) == set(alerts())
    section = OPERATIONS.split("\n## Alerts\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| \S", section, re.MULTILINE)
    assert rows == [(name, rule["labels"]["severity"]) for name, rule in alerts().items()]


def test_the_runbooks_alerts_are_as_they_stand_there() -> None:
    (block,) = re.findall(r"```yaml\n# prometheus-rules.yml\n(.*?)```", RUNBOOK, re.DOTALL)

    assert groups()[0] == yaml.safe_load(block)["groups"][0]


def test_the_prometheus_rule_holds_the_same_groups() -> None:
    text = (MONITORING / "prometheus-rule.yaml").read_text()

    assert text == make_prometheus_rule.prometheus_rule(RULES.read_text())
    rule = yaml.safe_load(text)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"]["groups"] == groups()


def test_alerts_say_where_and_how_bad() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert rule["annotations"]["summary"], name
