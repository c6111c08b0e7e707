"""The settings: names, units, defaults, ranges, and where their values come from.

Precedence: command line, then ``OMENDB_*`` environment, then default. Immutable once made; a change is a
new `Settings`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from omendb.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


def _setting(default: int, low: int, high: int, help_text: str) -> Any:  # noqa: ANN401
    return field(default=default, metadata={"low": low, "high": high, "help": help_text})


@dataclass(frozen=True, slots=True)
class Settings:
    """How a store works. Every setting is a whole number; its name ends in its unit.

    Raises
    ------
    ConfigError
        When a value is out of its range.
    """

    max_error: int = _setting(
        64,
        0,
        2**31 - 1,
        "Rows by which the learned index may mispredict a row. Less: more index bytes, shorter searches.",
    )
    retrain_threshold: int = _setting(
        1_000_000,
        1_000,
        100_000_000,
        "Rows that no model covers (memtable rows) before a flush fits models to them.",
    )
    batch_size: int = _setting(
        65_536,
        1,
        16_777_216,
        "Rows that one group commit takes at most. More: fewer syncs, later answers.",
    )
    sync_interval_ms: int = _setting(
        0,
        0,
        3_600_000,
        "0: an insert is answered after its fsync. More: answered after the write, synced at this interval; "
        "a power loss may take what came since.",
    )
    max_memory_mb: int = _setting(
        0,
        0,
        2**31 - 1,
        "Memory that the process may hold (not counting mapped files), in MiB. 0: the cgroup's limit, "
        "else the machine's memory.",
    )
    max_body_bytes: int = _setting(
        67_108_864,
        1_024,
        2**31 - 1,
        "Largest request body in bytes; larger ones are answered 413.",
    )
    flush_interval_ms: int = _setting(
        600_000,
        1_000,
        2**31 - 1,
        "Age at which a memtable is flushed even when it is small.",
    )
    body_timeout_ms: int = _setting(
        10_000,
        100,
        3_600_000,
        "Time in which a request body must arrive; later ones are answered 408.",
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            check(spec.name, getattr(self, spec.name))

    def with_changes(self, **changes: int) -> Settings:
        """Return a copy with some settings changed."""
        return replace(self, **changes)


SPECS = {spec.name: spec for spec in fields(Settings)}
"""The dataclass field of each setting: `default`, and ``metadata`` with `low`, `high` and `help`."""


def check(name: str, value: object) -> int:
    """Return `value` when the setting `name` accepts it.

    Raises
    ------
    ConfigError
        When the setting is unknown, or the value is no integer in its range.
    """
    spec = SPECS.get(name)
    if spec is None:
        raise ConfigError(name, value, f"unknown setting; known are {', '.join(SPECS)}")
    low, high = spec.metadata["low"], spec.metadata["high"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(name, value, f"must be a whole number from {low} to {high}")
    if not low <= value <= high:
        raise ConfigError(name, value, f"must be from {low} to {high}")
    return value


def parse(name: str, text: str) -> int:
    """Read a setting from text, as it stands in the environment or in a file.

    Raises
    ------
    ConfigError
        When it is no integer in the setting's range.
    """
    try:
        value = int(text.strip())
    except ValueError as error:
        raise ConfigError(name, text, "must be a whole number") from error
    return check(name, value)


def load(
    options: Mapping[str, int | None] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from the command line's `options` (None: not given), the environment, and the defaults."""
    environment = os.environ if environment is None else environment
    chosen: dict[str, int] = {}
    for name in SPECS:
        text = environment.get(f"OMENDB_{name.upper()}")
        if text is not None:
            chosen[name] = parse(name, text)
    for name, value in (options or {}).items():
        if value is not None:
            chosen[name] = check(name, value)
    return Settings(**chosen)
