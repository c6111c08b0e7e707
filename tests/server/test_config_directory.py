"""A running server follows its mounted directory of settings."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import urllib3

from tests.configmap import ConfigMapMount
from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.serving import RunningServer

WAIT_SECONDS = 120
"""A limit against hanging, no promise about speed."""


def wait_for(read: Callable[[], Any], wanted: object) -> None:
    give_up = time.monotonic() + WAIT_SECONDS
    while (found := read()) != wanted:
        assert time.monotonic() < give_up, f"{found} never became {wanted}"
        time.sleep(0.05)


def metric(server: RunningServer, name: str) -> float:
    text = urllib3.request("GET", f"{server.metrics_url}/metrics").data.decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


def test_patches_of_the_runbook_apply_without_a_restart(tmp_path: Path) -> None:
    mount = ConfigMapMount(tmp_path / "config", {"max_connections": "1000"})
    options = ("--config-dir", str(tmp_path / "config"), "--sync-interval-ms", "5")
    with start_server(tmp_path / "db", *options) as server:
        patches: dict[str, Any] = {
            "max_error": 50,
            "retrain_threshold": 500_000,
            "prefetch_size": 4_000,
            "enable_simd": True,
            "batch_size": 100_000,
            "enable_compression": True,
            "max_memory_mb": 12_288,
            "max_connections": 2_000,
        }
        mount.write({name: str(value).lower() for name, value in patches.items()})

        for name, value in patches.items():
            wait_for(
                lambda name=name: server.get("/admin/config")[name],  # type: ignore[misc]
                {"value": value, "source": "directory", "live": True},
            )
        assert metric(server, "omendb_memory_limit_bytes") == 12_288 << 20
        assert server.get("/admin/index-stats")["max_error_configured"] == 50

        mount.write({"max_error": "many", "KEY": "VALUE", "batch_size": "50000", "sync_interval_ms": "10000"})

        wait_for(lambda: server.get("/admin/config")["batch_size"]["value"], 50_000)
        settings = server.get("/admin/config")
        assert settings["max_error"] == {"value": 50, "source": "directory", "live": True}
        assert settings["sync_interval_ms"] == {"value": 5, "source": "command_line", "live": True}
        assert settings["max_connections"] == {"value": 1_000, "source": "default", "live": True}
        wait_for(lambda: metric(server, "omendb_config_last_reload_successful"), 0.0)
        assert metric(server, "omendb_config_reload_failures_total") == 1.0
        log = server.log.read_text()
        assert "config changed max_error 64 -> 50 source=directory" in log
        assert log.count("config refused max_error=many: must be a whole number") == 1
        assert log.count("config refused KEY=VALUE: unknown setting") == 1
        assert log.count("config change has no effect: sync_interval_ms=10000") == 1


def test_bad_configmap_does_not_keep_the_server_from_starting(tmp_path: Path) -> None:
    ConfigMapMount(tmp_path / "config", {"max_error": "many", "batch_size": "7"})
    options = ("--config-dir", str(tmp_path / "config"))

    with start_server(tmp_path / "db", *options) as server:
        settings = server.get("/admin/config")

        assert (settings["max_error"]["value"], settings["batch_size"]["value"]) == (64, 7)
        assert "config refused max_error=many" in server.log.read_text()
        assert "config batch_size=7 source=directory" in server.log.read_text()
