"""Settings: precedence, ranges, and messages that name the setting and the value."""

from __future__ import annotations

import pytest

from omendb.config import SPECS, Settings, load
from omendb.errors import ConfigError


def test_the_command_line_wins_over_the_environment_and_that_over_the_default() -> None:
    environment = {"OMENDB_MAX_ERROR": "7", "OMENDB_BATCH_SIZE": " 100 ", "OTHER": "x"}

    settings = load({"max_error": 3, "retrain_threshold": None}, environment)

    assert settings.max_error == 3
    assert settings.batch_size == 100
    assert settings.retrain_threshold == Settings().retrain_threshold


@pytest.mark.parametrize("name", SPECS)
def test_every_setting_has_a_range_that_holds_its_default(name) -> None:
    metadata = SPECS[name].metadata

    assert metadata["low"] <= SPECS[name].default <= metadata["high"]
    assert metadata["help"]
    for wrong in (metadata["low"] - 1, metadata["high"] + 1, "x", 1.5, True, None):
        with pytest.raises(ConfigError) as error:
            Settings(**{name: wrong})
        assert error.value.key == name
        assert repr(wrong) in str(error.value)


@pytest.mark.parametrize("text", ["", "many", "1.5", "1e3", "0x10"])
def test_text_that_is_no_number_is_refused(text) -> None:
    with pytest.raises(ConfigError, match="max_error"):
        load({}, {"OMENDB_MAX_ERROR": text})


def test_max_error_zero_is_accepted_and_the_runbooks_directions_hold() -> None:
    defaults = Settings()

    assert Settings(max_error=0).max_error == 0
    assert defaults.max_error > 50
    assert defaults.retrain_threshold > 500_000
    assert 50_000 <= defaults.batch_size < 100_000
