"""Where settings come from: precedence, changes of the directory, and what is said about what is refused."""

from __future__ import annotations

import logging

import pytest
from msgspec import UNSET

from omendb.config import SPECS, Settings
from omendb.errors import ConfigError
from omendb.settings_source import SHOWN_CHARACTERS_MAX, SOURCES, SettingsSource, fixed, load, shown
from tests.configmap import ConfigMapMount


def poll(source: SettingsSource) -> None:
    """Poll as often as it takes for a change to come to rest."""
    source.poll()
    source.poll()


def messages(caplog, level: int = logging.WARNING) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno == level]
    caplog.clear()
    return found


@pytest.fixture
def config(tmp_path, caplog):
    caplog.set_level(logging.INFO, "omendb.config")
    return tmp_path / "config"


# Precedence.


def test_each_source_wins_over_those_after_it(config, tmp_path) -> None:
    names = ["batch_size", "max_error", "prefetch_size", "slow_query_ms", "retrain_threshold"]
    file = tmp_path / "omendb.toml"
    file.write_text("".join(f"{name} = 5004\n" for name in names[:4]))
    ConfigMapMount(config, dict.fromkeys(names[:3], "5003"))
    environment = {f"OMENDB_{name.upper()}": " 5002 " for name in names[:2]} | {"OTHER": "x"}

    source = load({names[0]: 5001, "enable_simd": None}, environment, config, file)

    states = source.report()
    assert [getattr(source.settings, name) for name in names] == [5001, 5002, 5003, 5004, 1_000_000]
    assert [states[name].value for name in names] == [5001, 5002, 5003, 5004, 1_000_000]
    assert [states[name].source for name in names] == [
        *("command_line", "environment", "directory", "file", "default")
    ]
    assert states.keys() == SPECS.keys()
    assert all(states[name].live == spec.live for name, spec in SPECS.items())


def test_arguments_are_a_source_of_their_own() -> None:
    source = fixed(Settings(max_error=3, enable_simd=False))

    assert source.settings == Settings(max_error=3, enable_simd=False)
    assert source.report()["max_error"].source == "argument"
    assert source.report()["batch_size"].source == "default"
    assert not source.is_watched


def test_nothing_given_is_the_defaults(config) -> None:
    source = load({}, {}, config, None)

    assert source.settings == Settings()
    assert (source.failures, source.successful) == (0, True)
    assert {state.source for state in source.report().values()} == {"default"}
    assert "default" not in SOURCES


# The start.


@pytest.mark.parametrize("text", ["", "many", "1.5", "1e3", "0x10", "-1"])
def test_environment_that_means_nothing_stops_the_start(text) -> None:
    with pytest.raises(ConfigError, match="OMENDB_MAX_ERROR") as error:
        load({}, {"OMENDB_MAX_ERROR": text})

    assert error.value.key == "max_error"


@pytest.mark.parametrize(
    ("document", "key", "says"),
    [
        ("max_error = -1", "max_error", "from 0 to"),
        ("max_error = 1.5", "max_error", "whole number"),
        ("max_error = true", "max_error", "whole number"),
        ("max_error = 'many'", "max_error", "whole number"),
        ("enable_simd = 1", "enable_simd", "true or false"),
        ("log_queries = 'some'", "log_queries", "all, slow, off"),
        ("max_errors = 1", "max_errors", "unknown setting"),
        ("[server]\nmax_error = 1", "server", "unknown setting"),
        ("max_error =", "config_file", "cannot be read"),
    ],
)
def test_file_that_means_nothing_stops_the_start_and_is_named(tmp_path, document, key, says) -> None:
    file = tmp_path / "omendb.toml"
    file.write_text(document)

    with pytest.raises(ConfigError, match=says) as error:
        load({}, {}, None, file)

    assert error.value.key == key
    assert str(file) in str(error.value)


def test_file_takes_numbers_and_booleans_with_quotes_too(tmp_path) -> None:
    file = tmp_path / "omendb.toml"
    file.write_text("max_error = '50'\nenable_simd = 'no'\nlog_queries = 'slow'\nenable_compression = true\n")

    assert load({}, {}, None, file).settings == Settings(
        max_error=50, enable_simd=False, log_queries="slow", enable_compression=True
    )


def test_directory_that_means_nothing_does_not_stop_the_start(config, tmp_path, caplog) -> None:
    file = tmp_path / "omendb.toml"
    file.write_text("batch_size = 7")
    ConfigMapMount(config, {"max_error": "many", "batch_size": "0", "KEY": "VALUE", "prefetch_size": "4000"})

    source = load({}, {}, config, file)
    assert not caplog.records  # logging is set up later
    source.announce()

    assert source.settings == Settings(batch_size=7, prefetch_size=4_000)
    warnings = messages(caplog)
    assert len(warnings) == 3
    assert "config refused max_error=many: must be a whole number; source=directory" in warnings[2]
    assert "batch_size=0: must be from 1 to" in warnings[1]
    assert "KEY=VALUE: unknown setting" in warnings[0]
    assert (source.failures, source.successful, source.success_unix_seconds) == (1, False, 0.0)
    poll(source)
    source.announce()
    assert messages(caplog) == []
    assert source.failures == 1


def test_start_says_what_is_not_the_default(config, caplog) -> None:
    ConfigMapMount(config, {"max_error": "50", "enable_simd": "false"})

    load({}, {"OMENDB_TLS_KEY": ""}, config).announce()

    assert messages(caplog, logging.INFO) == [
        "config max_error=50 source=directory",
        "config enable_simd=false source=directory",
        "config tls_key='' source=environment",
    ]


# Changes.


def test_changes_of_a_mounted_configmap_apply(config, caplog) -> None:
    mount = ConfigMapMount(config, {"max_error": "64"})
    source = load({}, {}, config)

    mount.write({"max_error": "50", "retrain_threshold": "500000", "enable_compression": "true"})
    poll(source)

    assert source.settings == Settings(max_error=50, retrain_threshold=500_000, enable_compression=True)
    assert messages(caplog, logging.INFO) == [
        "config changed max_error 64 -> 50 source=directory",
        "config changed retrain_threshold 1000000 -> 500000 source=directory",
        "config changed enable_compression false -> true source=directory",
    ]
    assert source.successful
    assert source.success_unix_seconds > 0


def test_directory_that_appears_later_applies(config) -> None:
    source = load({}, {}, config)

    ConfigMapMount(config, {"max_error": "50"})
    poll(source)

    assert source.settings.max_error == 50


def test_removed_key_falls_back_to_the_next_source(config, tmp_path, caplog) -> None:
    file = tmp_path / "omendb.toml"
    file.write_text("max_error = 8")
    mount = ConfigMapMount(config, {"max_error": "50", "batch_size": "7"})
    source = load({}, {}, config, file)

    mount.write({})
    poll(source)

    assert source.settings == Settings(max_error=8)
    assert source.report()["max_error"].source == "file"
    assert messages(caplog, logging.INFO) == [
        "config changed max_error 50 -> 8 source=file",
        "config changed batch_size 7 -> 65536 source=default",
    ]


def test_last_good_value_stays_and_each_refusal_is_told_once(config, caplog) -> None:
    mount = ConfigMapMount(config, {"max_error": "50", "batch_size": "7"})
    source = load({}, {}, config)
    source.announce()
    caplog.clear()

    mount.write({"max_error": "x", "batch_size": "8"})
    poll(source)

    assert source.settings == Settings(max_error=50, batch_size=8)
    (warning,) = messages(caplog)
    assert "max_error=x: must be a whole number" in warning
    assert (source.failures, source.successful) == (1, False)

    mount.write({"max_error": "x", "batch_size": "9"})  # what is wrong is the same
    poll(source)
    assert source.settings == Settings(max_error=50, batch_size=9)
    assert messages(caplog) == []
    assert (source.failures, source.successful) == (1, False)

    mount.write({"max_error": "-1", "batch_size": "9"})
    poll(source)
    assert source.settings.max_error == 50
    (warning,) = messages(caplog)
    assert "max_error=-1: must be from 0" in warning
    assert (source.failures, source.successful) == (2, False)

    mount.write({"batch_size": "9"})
    poll(source)
    assert source.settings == Settings(batch_size=9)
    assert (source.failures, source.successful) == (2, True)
    assert messages(caplog) == []


@pytest.mark.parametrize("at_the_start", [True, False])
def test_tokens_that_are_asked_for_in_a_wrong_way_are_required(config, at_the_start: bool) -> None:
    mount = ConfigMapMount(config, {"require_tokens": "ture"} if at_the_start else {})
    source = load({}, {}, config)
    if not at_the_start:
        mount.write({"require_tokens": "ture"})
        poll(source)

    assert source.settings.require_tokens is True
    assert source.report()["require_tokens"].source == "directory"
    assert source.successful is False

    mount.write({"require_tokens": "false"})
    poll(source)
    assert source.settings.require_tokens is False

    mount.write({"require_tokens": "no, thanks"})  # the last good value is there now
    poll(source)
    assert source.settings.require_tokens is False


def test_directory_that_becomes_unreadable_changes_nothing(config, caplog) -> None:
    ConfigMapMount(config, {"max_error": "50"})
    source = load({}, {}, config)
    source.announce()
    caplog.clear()
    config.rename(config.with_name("aside"))
    config.write_text("a file in its place")

    for _ in range(4):
        source.poll()

    assert source.settings.max_error == 50
    (warning,) = messages(caplog)
    assert f"{config}: the directory cannot be read: Not a directory" in warning
    assert (source.failures, source.successful) == (1, False)
    config.unlink()
    config.with_name("aside").rename(config)
    poll(source)
    assert source.successful


def test_change_below_a_higher_source_has_no_effect_and_says_so(config, caplog) -> None:
    mount = ConfigMapMount(config, {})
    source = load({"max_error": 3}, {"OMENDB_BATCH_SIZE": "7"}, config)

    mount.write({"max_error": "50", "batch_size": "8"})
    poll(source)

    assert source.settings == Settings(max_error=3, batch_size=7)
    assert messages(caplog) == [
        "config change has no effect: max_error=50 source=directory, because source=command_line sets it",
        "config change has no effect: batch_size=8 source=directory, because source=environment sets it",
    ]
    assert messages(caplog, logging.INFO) == []


def test_what_cannot_change_meanwhile_waits_for_a_restart(config, caplog) -> None:
    mount = ConfigMapMount(config, {"token_dir": "/one"})
    source = load({}, {}, config)

    mount.write({"token_dir": "/two", "max_error": "50"})
    poll(source)

    assert source.settings == Settings(token_dir="/one", max_error=50)
    state = source.report()["token_dir"]
    assert (state.value, state.source, state.live, state.pending) == ("/one", "directory", False, "/two")
    assert messages(caplog) == ["config change waits for a restart: token_dir /one -> /two"]
    assert load({}, {}, config).settings.token_dir == "/two"

    mount.write({"token_dir": "/one", "max_error": "50"})
    poll(source)
    assert source.report()["token_dir"].pending is UNSET


def test_call_stands_until_the_directory_says_something_new(config) -> None:
    mount = ConfigMapMount(config, {"max_error": "50", "batch_size": "7"})
    source = load({}, {"OMENDB_PREFETCH_SIZE": "1"}, config)

    source.call(max_error=3, prefetch_size=2)
    assert source.settings == Settings(max_error=3, batch_size=7, prefetch_size=2)
    assert source.report()["max_error"].source == "call"
    mount.write({"max_error": "50", "batch_size": "8", "prefetch_size": "9"})
    poll(source)
    assert source.settings == Settings(max_error=3, batch_size=8, prefetch_size=2)
    mount.write({"max_error": "40", "batch_size": "8", "prefetch_size": "9"})
    poll(source)

    assert source.settings == Settings(max_error=40, batch_size=8, prefetch_size=2)


def test_call_with_what_cannot_be_accepted_changes_nothing() -> None:
    source = fixed(Settings(max_error=3))

    with pytest.raises(ConfigError, match="batch_size=0"):
        source.call(max_error=5, batch_size=0)
    with pytest.raises(ConfigError, match="unknown setting"):
        source.call(colour=1)

    assert source.settings == Settings(max_error=3)


def test_long_and_strange_values_are_cut_and_quoted() -> None:
    assert len(shown("x" * 10_000)) == SHOWN_CHARACTERS_MAX + 3
    assert "\n" not in shown("a\nb")
    assert shown("two words") == "'two words'"
    assert [shown(value) for value in (True, 7, "plain")] == ["true", "7", "plain"]
