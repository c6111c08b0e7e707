"""The settings: names, units, defaults, ranges, and what a change of each does.

Immutable once made; a change is a new `Settings`. Where values come from: `omendb.settings_source`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from omendb.errors import ConfigError

Value = int | str
"""What a setting holds: a whole number, a boolean (which Python counts among them), or text."""

Kind = Literal["integer", "boolean", "choice", "text"]

BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1", "t", "y"), True),
    **dict.fromkeys(("false", "no", "off", "0", "f", "n"), False),
}
"""The texts that stand for a boolean, in small letters."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What there is to know about one setting.

    Attributes
    ----------
    kind : str
        ``integer``, ``boolean``, ``choice`` or ``text``.
    default : int, bool or str
    unit : str
        Of an integer, as people read it; empty for the other kinds.
    help : str
        What it is: one or more sentences.
    more, less : str
        What more and less of it does; of a boolean, what true and false do. Empty for the other kinds.
    live : bool
        A change applies while the server runs. Otherwise it waits for a restart.
    low, high : int
        The range of an integer, both inclusive; 0 for the other kinds.
    choices : tuple of str
        The values of a choice; empty for the other kinds.
    name : str
    """

    kind: Kind
    default: Value
    help: str
    unit: str = ""
    more: str = ""
    less: str = ""
    live: bool = True
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()
    name: str = ""

    def check(self, value: object) -> Value:
        """Return `value` when the setting accepts it.

        Raises
        ------
        ConfigError
            When it has another type, or is out of the range.
        """
        reason = self._objection(value)
        if reason is not None:
            raise ConfigError(self.name, value, reason)
        return value  # type: ignore[return-value] # a value without an objection is one of them

    def parse(self, text: str) -> Value:
        """Read the setting from text, as it stands in the environment or in a file.

        Raises
        ------
        ConfigError
            When the text means none of the setting's values.
        """
        text = text.strip()
        if self.kind == "integer":
            try:
                return self.check(int(text))
            except ValueError as error:
                if isinstance(error, ConfigError):
                    raise
                raise ConfigError(self.name, text, "must be a whole number") from error
        if self.kind == "boolean":
            known = BOOLEANS.get(text.lower())
            return self.check(text if known is None else known)
        return self.check(text)

    @property
    def range(self) -> str:
        """The values that it accepts, as people read them."""
        if self.kind == "integer":
            return f"{self.low} to {self.high}"
        if self.kind == "boolean":
            return "true or false"
        return ", ".join(self.choices) or "any text"

    def _objection(self, value: object) -> str | None:
        if self.kind == "integer":
            if isinstance(value, bool) or not isinstance(value, int):
                return f"must be a whole number from {self.low} to {self.high}"
            return None if self.low <= value <= self.high else f"must be from {self.low} to {self.high}"
        if self.kind == "boolean":
            return None if isinstance(value, bool) else "must be true or false"
        if self.kind == "choice":
            return None if value in self.choices else f"must be one of {', '.join(self.choices)}"
        if not isinstance(value, str):
            return "must be text"
        return None if value.isprintable() else "must be one line without control characters"


def _integer(
    default: int,
    low: int,
    high: int,
    unit: str,
    *,
    help: str,  # noqa: A002
    more: str,
    less: str,
    live: bool = True,
) -> Any:  # noqa: ANN401
    spec = Spec("integer", default, help, unit=unit, more=more, less=less, live=live, low=low, high=high)
    return field(default=default, metadata={"spec": spec})


def _boolean(default: bool, *, help: str, true: str, false: str) -> Any:  # noqa: A002, ANN401
    return field(default=default, metadata={"spec": Spec("boolean", default, help, more=true, less=false)})


def _choice(default: str, *choices: str, help: str) -> Any:  # noqa: A002, ANN401
    return field(default=default, metadata={"spec": Spec("choice", default, help, choices=choices)})


def _path(default: str, *, help: str) -> Any:  # noqa: A002, ANN401
    return field(default=default, metadata={"spec": Spec("text", default, help, live=False)})


@dataclass(frozen=True, slots=True)
class Settings:
    """How a store and its server work; `SPECS` says what each setting means.

    Raises
    ------
    ConfigError
        When a value is not one that its setting accepts.
    """

    max_error: int = _integer(
        64,
        0,
        2**31 - 1,
        "rows",
        help="Rows by which the learned index may mispredict a row.",
        more="fewer index bytes, longer searches.",
        less="more index bytes, shorter searches.",
    )
    retrain_threshold: int = _integer(
        1_000_000,
        1_000,
        100_000_000,
        "rows",
        help="Rows that no model covers (memtable rows) before a flush fits models to them.",
        more="fewer, larger segments, and more memory and log to replay.",
        less="the models are fitted to new rows more often, in more and smaller segments.",
    )
    batch_size: int = _integer(
        65_536,
        1,
        16_777_216,
        "rows",
        help="Rows that one group commit takes at most.",
        more="fewer syncs and more rows a second under load, later answers.",
        less="earlier answers, more syncs.",
    )
    sync_interval_ms: int = _integer(
        0,
        0,
        3_600_000,
        "ms",
        help="0: an insert is answered after its fsync. Else it is answered after the write, and the log is "
        "synced at this interval.",
        more="faster inserts; a power loss may take what came since the last sync.",
        less="less can be lost, and at 0 nothing.",
    )
    max_memory_mb: int = _integer(
        0,
        0,
        2**31 - 1,
        "MiB",
        help="Memory that the process may hold, not counting mapped files. 0: the cgroup's limit, else the "
        "machine's memory.",
        more="later flushes, and inserts are refused later.",
        less="earlier flushes, and inserts are refused earlier; too little refuses all of them.",
    )
    max_body_bytes: int = _integer(
        67_108_864,
        1_024,
        2**31 - 1,
        "bytes",
        help="Largest request body; larger ones are answered 413.",
        more="larger inserts, and more memory for each.",
        less="less memory for hostile or careless clients.",
    )
    flush_interval_ms: int = _integer(
        600_000,
        1_000,
        2**31 - 1,
        "ms",
        help="Age at which a memtable is flushed even when it is small.",
        more="fewer small segments.",
        less="a shorter log to replay after a crash, more small segments to merge.",
    )
    body_timeout_ms: int = _integer(
        10_000,
        100,
        3_600_000,
        "ms",
        help="Time in which a request body must arrive; later ones are answered 408.",
        more="slower clients get through.",
        less="stalled clients are let go of earlier.",
    )
    prefetch_size: int = _integer(
        2_000,
        0,
        10_000_000,
        "rows",
        help="Rows of each run (one series in one segment) that a scan of many runs asks the disk for ahead.",
        more="cold scans of long runs wait less for the disk, and may read what they do not need.",
        less="less is read in vain; 0 leaves it to the system.",
    )
    enable_simd: bool = _boolean(
        True,
        help="Which kernels aggregate windows; both give the same answers, bit for bit.",
        true="kernels with vector instructions: faster, above all in windows of 100 rows and more.",
        false="kernels that take one value at a time.",
    )
    enable_compression: bool = _boolean(
        False,
        help="How compaction writes segments from now on; answers are the same either way.",
        true="less disk, more processor time for reading.",
        false="segments are mapped as they are and read without decoding.",
    )
    max_connections: int = _integer(
        1_000,
        1,
        65_535,
        "connections",
        help="Connections to the HTTP port at most; further ones are refused, and the existing ones go on.",
        more="more clients at a time, and memory for each.",
        less="clients that share connections or come again later.",
    )
    session_timeout_seconds: int = _integer(
        75,
        1,
        86_400,
        "seconds",
        help="Time after which an idle keep-alive connection is closed.",
        more="clients that pause keep their connection.",
        less="forgotten connections go away earlier.",
        live=False,
    )
    slow_query_ms: int = _integer(
        100,
        0,
        3_600_000,
        "ms",
        help="Duration from which a query counts as slow.",
        more="fewer queries are logged as slow.",
        less="more queries are logged as slow; at 0 all of them.",
    )
    log_queries: str = _choice("all", "all", "slow", "off", help="Which queries get a line in the log.")
    log_format: str = _choice(
        "text", "text", "json", help="Form of the log: lines to read, or one JSON object a line."
    )
    require_tokens: bool = _boolean(
        False,
        help="Whether requests to the data endpoints need a bearer token.",
        true="a request without a token that allows it is answered 401 or 403.",
        false="anyone who reaches the port may read and write.",
    )
    token_dir: str = _path(
        "/etc/omendb/tokens",
        help="Directory of the bearer tokens, as a Secret mounts.",
    )
    tls_certificate: str = _path("", help="File of the TLS certificate chain (PEM). Empty: no TLS.")
    tls_key: str = _path("", help="File of the private key of the TLS certificate (PEM).")

    def __post_init__(self) -> None:
        for name, spec in SPECS.items():
            spec.check(getattr(self, name))

    def with_changes(self, **changes: Value) -> Settings:
        """Return a copy with some settings changed."""
        return replace(self, **changes)  # type: ignore[arg-type] # checked by the constructor


SPECS: dict[str, Spec] = {
    setting.name: replace(setting.metadata["spec"], name=setting.name) for setting in fields(Settings)
}
"""What there is to know about each setting, by name, in the order in which they are shown."""

WHEN_REFUSED: dict[str, Value] = {"require_tokens": True}
"""What a setting is taken for when the directory gives a value that cannot be accepted, and gave no good one
before: a misspelt "true" must not open what it was meant to close."""


def find(name: str, value: object) -> Spec:
    """Return the spec of the setting `name`, which `value` is meant for.

    Raises
    ------
    ConfigError
        There is no such setting.
    """
    spec = SPECS.get(name)
    if spec is None:
        raise ConfigError(name, value, f"unknown setting; known are {', '.join(SPECS)}")
    return spec


def check(name: str, value: object) -> Value:
    """Return `value` when the setting `name` accepts it.

    Raises
    ------
    ConfigError
        When the setting is unknown, or the value has another type or is out of its range.
    """
    return find(name, value).check(value)


def parse(name: str, text: str) -> Value:
    """Read a setting from text, as it stands in the environment or in a file.

    Raises
    ------
    ConfigError
        When the setting is unknown, or the text means none of its values.
    """
    return find(name, text).parse(text)
