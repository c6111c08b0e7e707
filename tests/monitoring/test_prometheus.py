"""A real Prometheus scrapes a real server under load: every expression of the dashboard returns data."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import urllib3
import yaml

from tests.monitoring.files import ROOT, RULES, alerts, dashboard, panels
from tests.serving import READY_SECONDS, RunningServer, free_port, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
RATE_INTERVAL = "10s"
GIVE_UP_SECONDS = 150
"""A limit against hanging: a series is there after two scrapes."""

EXPRESSIONS = {
    f"{panel['title']}: {target['expr']}": target["expr"] for panel in panels() for target in panel["targets"]
}


class Prometheus:
    """A running Prometheus.

    Parameters
    ----------
    url : str
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._pool = urllib3.PoolManager(retries=False)

    def get(self, path: str, **fields: str) -> Any:
        """Return the data of an answer of its API."""
        answer = self._pool.request("GET", self.url + path, fields=fields)
        body = orjson.loads(answer.data)
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expression: str) -> list[Any]:
        """Return the samples of an expression, now."""
        found: list[Any] = self.get("/api/v1/query", query=expression)["result"]
        return found

    def wait_for(self, expression: str) -> list[Any]:
        """Return the samples of an expression once there are any, and all of them are numbers."""
        give_up = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < give_up:
            found = self.query(expression)
            if found and all(sample["value"][1] != "NaN" for sample in found):
                return found
            time.sleep(0.5)
        raise AssertionError(f"no data: {expression}: {self.query(expression)}")


class Load:
    """Inserts, queries, errors and maintenance until it is told to stop."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._requests, self._maintenance)]
        self.error: BaseException | None = None

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def _requests(self) -> None:
        pool = urllib3.PoolManager(retries=False)
        url = self._server.url
        try:
            for moment in itertools.count():
                if self._stop.wait(0.02):
                    return
                points = [{"series_id": s, "timestamp": moment, "value": 1.5} for s in range(20)]
                assert pool.request("POST", url + "/insert", body=orjson.dumps(points)).status == 200
                assert pool.request("GET", url + f"/query?start={moment - 5}&series_id=3").status == 200
                assert pool.request("POST", url + "/insert", body=b"nonsense").status == 400
                assert pool.request("GET", url + "/query?end=now").status == 400
        except BaseException as error:
            self.error = error

    def _maintenance(self) -> None:
        calls = ("/admin/gc", "/admin/retrain-index", "/admin/backup")
        try:
            while not self._stop.wait(1):
                for call in calls:
                    self._server.post(call, {})
                self._server.get("/admin/index-stats")
        except BaseException as error:
            self.error = error


@contextlib.contextmanager
def prometheus(program: str, directory: Path, target: int) -> Iterator[Prometheus]:
    """Start a Prometheus that scrapes a local port every second, with our rules."""
    directory.mkdir()
    port = free_port()
    scrape = {"job_name": "omendb", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [scrape],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        program,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
    ]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    log = directory / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        give_up = time.monotonic() + READY_SECONDS
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if urllib3.request("GET", f"http://127.0.0.1:{port}/-/ready", retries=False).status == 200:
                    break
            time.sleep(0.1)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def scraped(
    tmp_path_factory: pytest.TempPathFactory, debian_tool: Callable[[str], str]
) -> Iterator[Prometheus]:
    """Return a Prometheus over a server that is busy with everything."""
    program = debian_tool("prometheus")
    directory = tmp_path_factory.mktemp("monitoring")
    with (
        start_server(directory / "data") as server,
        prometheus(program, directory / "prometheus", server.metrics_port) as found,
        Load(server),
    ):
        yield found


def shown(expression: str) -> str:
    """Return an expression of the dashboard as Grafana sends it."""
    return expression.replace("$__rate_interval", RATE_INTERVAL).replace("$instance", ".*")


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_expression_of_the_dashboard_returns_data(scraped: Prometheus, name: str) -> None:
    found = scraped.wait_for(shown(EXPRESSIONS[name]))

    assert all(sample["metric"].get("instance", "").startswith("127.0.0.1:") for sample in found)


def test_the_runbooks_expressions_return_sensible_numbers(scraped: Prometheus) -> None:
    expressions = re.findall(r'(?:"expr": "|expr: )(.*?)"?$', RUNBOOK, re.MULTILINE)
    assert len(expressions) == 7
    values = {}
    for expression in expressions:
        # Without the comparison, which leaves nothing when all is well.
        bare = re.sub(r" [<>] [\d.]+$", "", expression)
        (sample,) = scraped.wait_for(bare)
        values[bare] = float(sample["value"][1])

    assert 0 < values["histogram_quantile(0.95, omendb_query_duration_seconds_bucket)"] < 10
    assert 0 < values["histogram_quantile(0.95, omendb_insert_duration_seconds_bucket)"] < 10
    assert values["rate(omendb_inserts_total[5m])"] > 0
    assert 0 < values["omendb_memory_usage_bytes / omendb_memory_limit_bytes"] < 1
    # One point is refused for twenty that are stored.
    ratio = values["rate(omendb_insert_failures_total[5m]) / rate(omendb_inserts_total[5m])"]
    assert ratio == pytest.approx(0.05, rel=0.5)


def test_every_series_that_an_alert_names_is_there(scraped: Prometheus) -> None:
    names = set(re.findall(r"\b(?:omendb|process)_\w+", " ".join(rule["expr"] for rule in alerts().values())))
    assert len(names) > 25

    for name in sorted(names):
        scraped.wait_for(name)


def test_prometheus_evaluates_all_rules_without_an_error(scraped: Prometheus) -> None:
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while True:
        groups = scraped.get("/api/v1/rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        if all(rule["health"] != "unknown" for rule in rules) or time.monotonic() > give_up:
            break
        time.sleep(0.5)

    assert {rule["name"] for rule in rules} == set(alerts())
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_the_dashboard_has_a_current_schema_and_the_runbooks_panels_first() -> None:
    board = dashboard()
    (block,) = re.findall(r"### Performance Dashboard\s+```json\n(.*?)```", RUNBOOK, re.DOTALL)
    wanted = orjson.loads(block)["dashboard"]

    assert board["schemaVersion"] >= 39
    assert board["title"] == wanted["title"]
    first = [
        {"title": panel["title"], "targets": [{"expr": target["expr"]} for target in panel["targets"]]}
        for panel in panels()[: len(wanted["panels"])]
    ]
    assert first == wanted["panels"]


def test_the_panels_have_names_units_places_and_explanations_of_their_own() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} covers another panel"
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    for panel in panels():
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
