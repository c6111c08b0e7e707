"""The Containerfile, without an engine: what it installs, as whom it runs, and that nothing else gets in."""

from __future__ import annotations

import re
import tomllib

import pytest

from omendb import config
from tests.deploy.containerfile import ROOT, stages
from tests.deploy.runbook import programs_in_pod

BASE = "docker.io/library/debian:trixie-slim"

PACKAGE_OF = {
    **dict.fromkeys(("free", "pgrep", "ps", "top"), "procps"),
    "curl": "curl",
    "iostat": "sysstat",
    "netstat": "net-tools",
}
# Packages that Debian calls essential, and awk, which its base files need.
IN_THE_BASE = {"awk", "cat", "dd", "du", "find", "head", "ls", "sort"}

BUILD, FINAL = stages()


def test_both_stages_begin_with_the_pinned_base() -> None:
    assert [stage.base for stage in (BUILD, FINAL)] == [BASE, BASE]
    assert FINAL.pairs("LABEL")["org.opencontainers.image.base.name"] == BASE


@pytest.mark.parametrize("program", sorted({*programs_in_pod(), "awk", "curl"}))
def test_programs_of_the_runbook_are_installed(program: str) -> None:
    assert program in IN_THE_BASE or PACKAGE_OF[program] in FINAL.packages()


def test_nothing_for_building_is_in_the_image() -> None:
    assert not FINAL.packages() & {"binutils", "gcc", "git", "python3-pip", "python3-venv"}
    assert all("pip" not in command for command in FINAL.all("RUN"))


def test_the_user_is_a_fixed_number_and_not_root() -> None:
    # A number: Kubernetes cannot tell whether a name is root.
    assert FINAL.one("USER") == "10001:10001"
    assert any("useradd --uid 10001 " in command for command in FINAL.all("RUN"))
    last_run = max(i for i, (name, _) in enumerate(FINAL.instructions) if name in ("RUN", "COPY"))
    assert last_run < FINAL.instructions.index(("USER", "10001:10001")), "built by root, run by the user"


def test_kernels_are_compiled_for_the_level_that_they_run_as() -> None:
    built, run = BUILD.environment(), FINAL.environment()

    assert any(command.endswith("omendb warmup") for command in BUILD.all("RUN"))
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_CACHE_DIR"):
        assert built[name] == run[name]
    assert run["NUMBA_CPU_NAME"] == "x86-64-v3"
    assert run["NUMBA_CPU_FEATURES"] == ""


def test_the_server_is_told_where_the_volume_is() -> None:
    assert FINAL.environment()["OMENDB_DATA_DIR"] == FINAL.one("VOLUME") == "/var/lib/omendb"
    assert FINAL.one("EXPOSE").split() == ["3000", "9090"]
    assert FINAL.command() == ["omendb", "serve"]


def test_the_environment_hides_no_setting_of_the_mounted_directory() -> None:
    variables = {f"OMENDB_{name.upper()}" for name in config.SPECS}

    assert not variables & set(FINAL.environment())


def test_the_health_check_asks_whether_it_is_alive_not_ready() -> None:
    check = FINAL.one("HEALTHCHECK")

    assert '"http://127.0.0.1:9090/health"' in check
    assert "omendb" not in check, "pgrep omendb must print one process"


def test_labels() -> None:
    labels = FINAL.pairs("LABEL")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert f"VERSION={project['version']}" in FINAL.all("ARG")
    assert labels["org.opencontainers.image.version"] == "${VERSION}"


def test_only_what_the_image_is_made_of_is_sent_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".containerignore").read_text().splitlines() if line and line[0] != "#"]
    copied = {
        source.removeprefix("./")
        for text in BUILD.all("COPY")
        for source in text.split()[:-1]
        if not source.startswith("--")
    }

    assert lines[0] == "*", "everything is left out that is not named"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    for name in copied:
        assert (ROOT / name).exists()


def test_no_secret_and_no_mirror_is_written_into_the_image() -> None:
    text = (ROOT / "Containerfile").read_text()

    assert not re.search(r"(?i)password|secret|token|api[_-]?key|--(extra-)?index-url|sources\.list", text)
