"""Settings: ranges, and messages that name the setting and the value."""

from __future__ import annotations

import pytest

from omendb.config import SPECS, Settings, parse
from omendb.errors import ConfigError


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_setting_accepts_its_default_and_names_what_it_refuses(spec) -> None:
    wrong: dict[str, tuple[object, ...]] = {
        "integer": (spec.low - 1, spec.high + 1, "x", "1", 1.5, True, None),
        "boolean": (0, 1, "true", None),
        "choice": ("", "x", "ALL", 1, None),
        "text": (1, True, None, "two\nlines", "nul\0"),
    }

    assert getattr(Settings(), spec.name) == spec.default
    assert type(getattr(Settings(), spec.name)) is {"integer": int, "boolean": bool}.get(spec.kind, str)
    assert spec.help
    for value in wrong[spec.kind]:
        with pytest.raises(ConfigError) as error:
            Settings(**{spec.name: value})
        assert error.value.key == spec.name
        assert repr(value) in str(error.value)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_integers_have_a_unit_and_they_and_booleans_say_what_a_change_does(spec) -> None:
    numeric = spec.kind == "integer"

    assert bool(spec.unit) == numeric
    assert bool(spec.choices) == (spec.kind == "choice")
    assert bool(spec.more) == bool(spec.less) == (numeric or spec.kind == "boolean")
    if numeric:
        assert spec.low <= spec.default <= spec.high
        Settings(**{spec.name: spec.low})
        Settings(**{spec.name: spec.high})


@pytest.mark.parametrize("text", ["true", "TRUE", " yes\n", "1", "on"])
def test_texts_that_mean_true(text) -> None:
    assert parse("enable_compression", text) is True


@pytest.mark.parametrize("text", ["false", "False", "no", " 0 ", "off"])
def test_texts_that_mean_false(text) -> None:
    assert parse("enable_simd", text) is False


@pytest.mark.parametrize(
    ("name", "text"),
    [("enable_simd", ""), ("enable_simd", "2"), ("enable_simd", "maybe"), ("log_format", "xml")],
)
def test_text_that_is_no_boolean_or_choice_is_refused(name, text) -> None:
    with pytest.raises(ConfigError) as error:
        parse(name, text)

    assert (error.value.key, error.value.value) == (name, text)


def test_text_is_taken_without_the_space_around_it() -> None:
    assert parse("token_dir", " /run/tokens\n") == "/run/tokens"
    assert parse("tls_key", "\n") == ""
    assert parse("log_queries", "slow\n") == "slow"


@pytest.mark.parametrize("text", ["", "many", "1.5", "1e3", "0x10", "9" * 5_000])
def test_text_that_is_no_number_is_refused(text) -> None:
    with pytest.raises(ConfigError, match="max_error"):
        parse("max_error", text)


def test_max_error_zero_is_accepted_and_the_runbooks_directions_hold() -> None:
    defaults = Settings()

    for record_count in (0, 9_999, 10_000, 20_000_000, 20_000_000_000_000):
        assert Settings(max_error=record_count // 10_000).max_error == record_count // 10_000
    assert defaults.max_error > 50
    assert defaults.retrain_threshold > 500_000
    assert 50_000 <= defaults.batch_size < 100_000
    assert defaults.prefetch_size < 4_000
    assert defaults.max_connections < 2_000
    assert defaults.session_timeout_seconds < 1_800
