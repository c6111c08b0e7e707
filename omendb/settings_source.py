"""Where the settings come from, and what they are now.

From first to last: a call of the API, the command line, the ``OMENDB_*`` environment, the mounted directory,
the TOML file, the default. (An embedded store has arguments instead of all but the first and last.) The
directory is the one that is watched: `SettingsSource.poll` takes over what has changed in it. What cannot be
accepted there is logged once and the last good value stays, at the start too: a bad ConfigMap must not put a
database into a crash loop. Anywhere else it stops the start.

Thread safety: `settings` and `report` may be used from any thread; what changes something belongs to one
thread at a time.
"""

from __future__ import annotations

import logging
import os
import time
import tomllib
from typing import TYPE_CHECKING, NamedTuple

from omendb.config import SPECS, WHEN_REFUSED, Settings, Value, check, find, parse
from omendb.config_directory import ConfigDirectory
from omendb.errors import ConfigError
from omendb.reports import SettingState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Texts = dict[str, str | OSError | ValueError]

logger = logging.getLogger("omendb.config")

CALL, ARGUMENT, COMMAND_LINE, ENVIRONMENT = "call", "argument", "command_line", "environment"
DIRECTORY, FILE, DEFAULT = "directory", "file", "default"

SOURCES = (CALL, ARGUMENT, COMMAND_LINE, ENVIRONMENT, DIRECTORY, FILE)
"""The names of the sources but the default, the one that wins first."""

SHOWN_CHARACTERS_MAX = 100


class _State(NamedTuple):
    """What is in force; replaced, never changed.

    Attributes
    ----------
    settings : Settings
    sources : dict of str to str
        Where each value comes from.
    pending : dict of str to Value
        Values that wait for a restart.
    """

    settings: Settings
    sources: dict[str, str]
    pending: dict[str, Value]


class SettingsSource:
    """The settings of one store, from all sources.

    Parameters
    ----------
    layers : mapping of str to mapping of str to Value
        The values of each source, valid.
    directory : Path, optional
        Is read now, and watched by `poll`. It need not exist.

    Attributes
    ----------
    failures : int
        How often the directory was read and something in it could not be accepted.
    successful : bool
        Everything was accepted when it was read last.
    success_unix_seconds : float
        When that was so last; 0 when it never was.
    """

    def __init__(self, layers: Mapping[str, Mapping[str, Value]], directory: Path | None = None) -> None:
        self.failures = 0
        self.successful = True
        self.success_unix_seconds = 0.0
        self._layers: dict[str, dict[str, Value]] = {name: dict(layers.get(name, {})) for name in SOURCES}
        self._directory = None if directory is None else ConfigDirectory(directory)
        self._objections: dict[str, str] = {}
        self._unlogged: list[str] | None = []  # until `announce`: logging is not set up yet
        if self._directory is not None:
            self._read(self._directory.read)
        values, sources = self._resolve()
        self._state = _State(_settings(values), sources, {})

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._state.settings

    @property
    def is_watched(self) -> bool:
        """Whether `poll` may find changes."""
        return self._directory is not None

    def report(self) -> dict[str, SettingState]:
        """Return each setting as ``GET /admin/config`` shows it."""
        settings, sources, pending = self._state
        states: dict[str, SettingState] = {}
        for name, spec in SPECS.items():
            state = SettingState(getattr(settings, name), sources[name], spec.live)
            if name in pending:
                state.pending = pending[name]
            states[name] = state
        return states

    def announce(self) -> None:
        """Log what is not the default, and what was refused while the settings were made."""
        if self._unlogged is None:
            return
        for warning in self._unlogged:
            logger.warning("%s", warning)
        self._unlogged = None
        settings, sources, _ = self._state
        for name, source in sources.items():
            if source != DEFAULT:
                logger.info("config %s=%s source=%s", name, shown(getattr(settings, name)), source)

    def poll(self) -> None:
        """Take over what has changed in the directory, once it has not changed between two calls."""
        if self._directory is None:
            return
        before = dict(self._layers[DIRECTORY])
        if not self._read(self._directory.read_when_changed):
            return
        after = self._layers[DIRECTORY]
        changed = [name for name in SPECS if before.get(name) != after.get(name)]
        for name in changed:
            above = self._source_above(name)
            if above is None:
                self._layers[CALL].pop(name, None)  # the latest word counts
            elif name in after:
                logger.warning(
                    "config change has no effect: %s=%s source=%s, because source=%s sets it",
                    name,
                    shown(after[name]),
                    DIRECTORY,
                    above,
                )
        self._take_over()

    def call(self, **values: Value) -> None:
        """Change settings on request; that stands until a restart, or until the directory changes them.

        Raises
        ------
        ConfigError
            Nothing has changed.
        """
        valid = {name: check(name, value) for name, value in values.items()}
        self._layers[CALL].update(valid)
        self._take_over()

    def _source_above(self, name: str) -> str | None:
        """Return the source that hides the directory's value of a setting for good."""
        for source in (ARGUMENT, COMMAND_LINE, ENVIRONMENT):
            if name in self._layers[source]:
                return source
        return None

    def _resolve(self) -> tuple[dict[str, Value], dict[str, str]]:
        values: dict[str, Value] = {}
        sources: dict[str, str] = {}
        for name, spec in SPECS.items():
            values[name], sources[name] = spec.default, DEFAULT
            for source in SOURCES:
                if name in self._layers[source]:
                    values[name], sources[name] = self._layers[source][name], source
                    break
        return values, sources

    def _take_over(self) -> None:
        old = self._state
        wanted, sources = self._resolve()
        pending: dict[str, Value] = {}
        for name, spec in SPECS.items():
            value, before = wanted[name], getattr(old.settings, name)
            if not spec.live:
                wanted[name] = before
                if value != before:
                    pending[name] = value
                    sources[name] = old.sources[name]
                    if old.pending.get(name) != value:
                        logger.warning(
                            "config change waits for a restart: %s %s -> %s",
                            name,
                            shown(before),
                            shown(value),
                        )
            elif value != before:
                logger.info(
                    "config changed %s %s -> %s source=%s", name, shown(before), shown(value), sources[name]
                )
        self._state = _State(_settings(wanted), sources, pending)

    def _read(self, look: Callable[[], Texts | None]) -> bool:
        """Read the directory into its layer; False when there is nothing new."""
        assert self._directory is not None
        try:
            texts = look()
        except OSError as error:
            path = str(self._directory.path)
            self._object({path: f"{path}: the directory cannot be read: {error.strerror}"})
            return False
        if texts is None:
            return False
        last_good = self._layers[DIRECTORY]
        values: dict[str, Value] = {}
        objections: dict[str, str] = {}
        for name, text in texts.items():
            try:
                values[name] = _accept(name, text)
            except ConfigError as error:
                objections[name] = f"{name}={shown(error.value)}: {error.reason}"
                if name in last_good:
                    values[name] = last_good[name]
                elif name in WHEN_REFUSED:
                    values[name] = WHEN_REFUSED[name]
        self._layers[DIRECTORY] = values
        self._object(objections)
        return True

    def _object(self, objections: dict[str, str]) -> None:
        """Log what is refused, once for each change, and count."""
        for name, objection in objections.items():
            if self._objections.get(name) == objection:
                continue
            warning = f"config refused {objection}; source={DIRECTORY}, the last good value stays"
            if self._unlogged is None:
                logger.warning("%s", warning)
            else:
                self._unlogged.append(warning)
        self.successful = not objections
        if self.successful:
            self.success_unix_seconds = time.time()
        elif objections != self._objections:
            self.failures += 1
        self._objections = objections


def load(
    options: Mapping[str, Value | None] | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    file: Path | None = None,
) -> SettingsSource:
    """Collect the settings from all sources.

    Parameters
    ----------
    options : mapping of str to Value, optional
        The command line's; None: not given.
    environment : mapping of str to str, optional
        That of the process by default.
    directory : Path, optional
        One file a key; need not exist.
    file : Path, optional
        TOML.

    Raises
    ------
    ConfigError
        A source other than the directory holds what cannot be accepted.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    layers = {
        COMMAND_LINE: {name: check(name, value) for name, value in given.items()},
        ENVIRONMENT: environment_values(os.environ if environment is None else environment),
        FILE: {} if file is None else file_values(file),
    }
    return SettingsSource(layers, directory)


def fixed(settings: Settings) -> SettingsSource:
    """Return the source of settings that were given as arguments."""
    values = {name: getattr(settings, name) for name in SPECS}
    return SettingsSource({ARGUMENT: {n: value for n, value in values.items() if value != SPECS[n].default}})


def environment_values(environment: Mapping[str, str]) -> dict[str, Value]:
    """Return the settings that the environment gives, as ``OMENDB_`` and the name in capitals.

    Raises
    ------
    ConfigError
    """
    values: dict[str, Value] = {}
    for name in SPECS:
        variable = f"OMENDB_{name.upper()}"
        if variable in environment:
            try:
                values[name] = parse(name, environment[variable])
            except ConfigError as error:
                raise ConfigError(name, error.value, f"{error.reason} (in {variable})") from error
    return values


def file_values(path: Path) -> dict[str, Value]:
    """Return the settings of a TOML file: keys at the top level.

    Raises
    ------
    ConfigError
        The file cannot be read, is no TOML, or holds what cannot be accepted.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("config_file", str(path), f"cannot be read: {error}") from error
    values: dict[str, Value] = {}
    for name, value in document.items():
        try:
            is_text = find(name, value).kind in ("text", "choice")
            # Quotes around a number or boolean are harmless: the text is read as in the environment.
            values[name] = (
                parse(name, value) if isinstance(value, str) and not is_text else check(name, value)
            )
        except ConfigError as error:
            raise ConfigError(name, error.value, f"{error.reason} (in {path})") from error
    return values


def shown(value: object) -> str:
    """Return a value as it stands in a log line: cut when it is long, quoted where it is text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and (not value or not value.isprintable() or " " in value):
        value = repr(value)
    text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}..."


def _accept(name: str, text: str | OSError | ValueError) -> Value:
    if isinstance(text, OSError):
        raise ConfigError(name, "", f"cannot be read: {text.strerror}") from text
    if isinstance(text, UnicodeDecodeError):
        raise ConfigError(name, "", "is not text in UTF-8") from text
    if isinstance(text, ValueError):
        raise ConfigError(name, "", str(text)) from text
    return parse(name, text)


def _settings(values: Mapping[str, Value]) -> Settings:
    return Settings(**values)  # type: ignore[arg-type] # each was checked
