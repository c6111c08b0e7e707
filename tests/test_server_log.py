"""The log of a real server: standard output, whole, in form, and never in anybody's way."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import msgspec
import urllib3

from tests.serving import PROGRAM, READY_SECONDS, free_port, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR|CRITICAL) omendb \S.*")
QUERY = re.compile(r".*Z (INFO|WARNING) omendb query (-|-?\d+) (-|-?\d+) series=.* \d+\.\d{3}")


@contextlib.contextmanager
def piped_server(data_dir: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """Start a server whose standard output is a pipe; yield it and its two addresses."""
    port, metrics_port = free_port(), free_port()
    command = [PROGRAM, "serve", f"--data-dir={data_dir}", "--host=127.0.0.1", *options]
    command += [f"--port={port}", f"--metrics-port={metrics_port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        give_up = time.monotonic() + READY_SECONDS
        while time.monotonic() < give_up:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                answer = urllib3.request("GET", f"http://127.0.0.1:{metrics_port}/ready", retries=False)
                if answer.status == 200:
                    break
            time.sleep(0.05)
        yield process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}"
    finally:
        process.kill()
        process.communicate()


def dropped(metrics_url: str) -> float:
    text = urllib3.request("GET", metrics_url + "/metrics").data.decode()
    (value,) = re.findall(r"^omendb_log_lines_dropped_total (.*)$", text, re.MULTILINE)
    return float(value)


def test_the_log_of_a_life(tmp_path: Path) -> None:
    with piped_server(tmp_path / "data") as (process, url, _):
        point = b'{"series_id": 1, "timestamp": 10, "value": 1}'
        assert urllib3.request("POST", url + "/insert", body=point).status == 200
        assert urllib3.request("GET", url + "/query?start=1&end=20").status == 200
        assert urllib3.request("GET", url + "/query?start=1&end=x%0a").status == 400
        assert urllib3.request("POST", url + "/admin/gc").status == 200
        assert urllib3.request("POST", url + "/admin/retrain-index", body=b"{}").status == 200
        assert urllib3.request("POST", url + "/admin/backup", body=b"{}").status == 200
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)

    lines = output.decode().splitlines()
    assert errors == b""
    assert process.returncode == 0
    for line in lines:
        assert LINE.fullmatch(line), line
        assert ("query" in line) == bool(QUERY.fullmatch(line)), line
    assert sum("query" in line for line in lines) == 2
    text = "\n".join(lines)
    order = (
        "start version=",
        "recovery done",
        "ready http=",
        " query 1 20 ",
        " query 1 - ",
        "flush done rows=1",
    )
    order += ("gc done segments=0->1", "retrain done", "backup done", "stopping signal=SIGTERM")
    order += ("inserts summary requests=1 rows=1", "stopped duration_ms=")
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_json_lines_are_objects(tmp_path: Path) -> None:
    with piped_server(tmp_path / "data", "--log-format=json") as (process, url, _):
        assert urllib3.request("GET", url + "/query?start=1").status == 200
        assert urllib3.request("GET", url + "/nowhere").status == 404
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)

    found = [msgspec.json.decode(line) for line in output.splitlines()]
    assert {"start", "ready", "query", "request failed", "stopped"} <= {line["event"] for line in found}
    (query,) = [line for line in found if line["event"] == "query"]
    assert (query["start"], query["end"], query["rows"], query["status"]) == (1, None, 0, 200)
    (failed,) = [line for line in found if line["event"] == "request failed"]
    assert (failed["path"], failed["status"], failed["code"]) == ('"/nowhere"', 404, "not_found")


def test_a_reader_that_has_stopped_holds_nothing_up(
    tmp_path: Path, debian_tool: Callable[[str], str]
) -> None:
    wrk = debian_tool("wrk")
    data_dir = tmp_path / "data"
    with piped_server(data_dir) as (process, url, metrics_url):
        while dropped(metrics_url) == 0:  # the pipe is full, then the queue
            load = [wrk, "-t1", "-c8", "-d1s", "--timeout", "30s", url + "/query?start=1&end=2"]
            done = subprocess.run(load, capture_output=True, text=True, check=True)
            assert "Non-2xx" not in done.stdout
            assert "Socket errors" not in done.stdout
        point = b'{"series_id": 1, "timestamp": 10, "value": 1}'
        assert urllib3.request("POST", url + "/insert", body=point).status == 200
        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 0

    # Stopped in order all the same.
    with start_server(data_dir) as server:
        assert server.get("/query")["count"] == 1
        assert "clean=True" in server.log.read_text()


def test_errors_before_the_start_are_in_the_log(tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        command = [PROGRAM, "serve", f"--data-dir={tmp_path / 'other'}", "--host=127.0.0.1"]
        command += [f"--port={server.port}", "--metrics-port=0"]

        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 1
    assert done.stderr == ""
    assert "CRITICAL omendb cannot listen on 127.0.0.1" in done.stdout.splitlines()[-1]
