from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from omendb.cli import main, serve
from omendb.config import SPECS, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

COMMANDS = ("serve", "import", "query", "stats", "verify", "backup", "restore", "repair", "warmup")


def test_help_lists_the_commands_in_the_order_of_use(omendb: Callable[..., Result]) -> None:
    text = omendb("--help").output

    assert list(main.commands) == list(COMMANDS)
    places = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example_or_needs_none(
    omendb: Callable[..., Result], command: str
) -> None:
    result = omendb(command, "--help")

    assert result.exit_code == 0
    assert f"omendb {command}" in result.output
    assert command == "warmup" or "Example" in result.output


def test_version_is_that_of_the_package(omendb: Callable[..., Result]) -> None:
    assert omendb("--version").output == "omendb 0.1.0\n"


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = (
        "import sys, omendb.cli\n"
        "heavy = {'numba', 'numpy', 'pyarrow', 'urllib3', 'granian', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_every_setting_is_an_option_of_serve(omendb: Callable[..., Result]) -> None:
    text = omendb("serve", "--help").output

    for name in SPECS:
        assert f"--{name.replace('_', '-')} " in text


def test_setting_out_of_range_is_refused(omendb: Callable[..., Result], tmp_path: Path) -> None:
    result = omendb("serve", "--data-dir", tmp_path, "--retrain-threshold", 1)

    assert result.exit_code == 2
    assert "1000<=x<=100000000" in result.stderr


def test_bad_setting_in_the_environment_is_one_line(
    omendb: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMENDB_MAX_ERROR", "many")

    result = omendb("serve", "--data-dir", tmp_path)

    assert result.exit_code == 1
    assert result.stderr == "Error: max_error='many': must be a whole number (in OMENDB_MAX_ERROR)\n"


def test_data_dir_is_the_systems_when_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "SYSTEM_DATA_DIR", tmp_path)
    assert serve.default_data_dir() == tmp_path

    monkeypatch.setattr(serve, "SYSTEM_DATA_DIR", tmp_path / "none")
    assert serve.default_data_dir() == Path("omendb-data")


@pytest.mark.parametrize(
    ("host", "listens", "to_try"),
    [
        ("0.0.0.0", "http://0.0.0.0:3000,", "http://127.0.0.1:3000/"),
        ("::", "http://[::]:3000,", "http://[::1]:3000/"),
        ("10.1.2.3", "http://10.1.2.3:3000,", "http://10.1.2.3:3000/"),
    ],
)
def test_greeting_gives_addresses_that_work(host: str, listens: str, to_try: str) -> None:
    text = serve.greeting(host, 3000, 9090, Settings())

    assert listens in text
    assert f"curl {to_try}insert" in text
    assert f"curl '{to_try}query?series_id=1'" in text


def test_bad_file_of_settings_is_one_line(omendb: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "omendb.toml"
    file.write_text("max_error = -1")

    result = omendb("serve", "--data-dir", tmp_path, "--config-file", file)

    assert result.exit_code == 1
    assert result.stderr == f"Error: max_error=-1: must be from 0 to 2147483647 (in {file})\n"


def test_file_of_settings_that_is_not_there_is_refused(omendb: Callable[..., Result], tmp_path: Path) -> None:
    result = omendb("serve", "--data-dir", tmp_path, "--config-file", tmp_path / "none.toml")

    assert result.exit_code == 2
    assert "none.toml" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"), [("--enable-simd", "maybe"), ("--log-queries", "some"), ("--max-connections", "0")]
)
def test_option_that_means_nothing_is_refused(
    omendb: Callable[..., Result], tmp_path: Path, option: str, value: str
) -> None:
    result = omendb("serve", "--data-dir", tmp_path, option, value)

    assert result.exit_code == 2
    assert option in result.stderr


def test_greeting_of_a_secured_server() -> None:
    settings = Settings(tls_certificate="c", tls_key="k", require_tokens=True)

    text = serve.greeting("0.0.0.0", 3000, 9090, settings)

    assert "listens on https://0.0.0.0:3000, metrics on http://0.0.0.0:9090" in text
    assert "curl https://127.0.0.1:3000/insert -H 'Authorization: Bearer TOKEN'" in text
    assert "curl -H 'Authorization: Bearer TOKEN' 'https://127.0.0.1:3000/query" in text
