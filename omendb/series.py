"""Names of series: a measurement, its tags and a field, and the one text that stands for them.

The text of a name, its *key*, is what line protocol writes before the value, in one canonical form:
``measurement,tag=value,tag=value field``, tags in ascending order of their names, with a backslash before
each comma, space and (but in measurements) equals sign that belongs to a name or value. Two names are the
same series when their keys are the same bytes.

Selectors (``cpu{host="a"}``) choose series by equality of labels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from omendb.errors import InvalidRequestError

FIRST_ID = 2**52
"""Named series have ids from here on, given by the server one after the other: numbers that programs which
read every JSON number as a float64 (JavaScript, jq) read exactly, and far from those that people count up."""

IDS_MAX = 2**32 - 2
"""How many named series there can be: ids from `FIRST_ID` to ``FIRST_ID + IDS_MAX`` are reserved for them."""

KEY_BYTES_MAX = 65_535
"""Bytes of a key at most, and of what a request writes for it."""

NAME_LABEL = "__name__"
MEASUREMENT_LABEL = "__measurement__"
FIELD_LABEL = "__field__"
RESERVED_LABELS = (NAME_LABEL, MEASUREMENT_LABEL, FIELD_LABEL)

_SPACE = re.compile(rb"(?<!\\) ")
_COMMA = re.compile(rb"(?<!\\),")
_EQUALS = re.compile(rb"(?<!\\)=")
_ESCAPED_IN_MEASUREMENT = re.compile(rb"\\([, ])")
_ESCAPED = re.compile(rb"\\([,= ])")
_SPECIAL_IN_MEASUREMENT = re.compile(rb"[, ]")
_SPECIAL = re.compile(rb"[,= ]")
_FORBIDDEN = re.compile(rb"[\x00\n\r]")


@dataclass(frozen=True, slots=True)
class Name:
    """What a series is called.

    Attributes
    ----------
    measurement : str
    tags : tuple of (str, str)
        Ascending by name, as UTF-8; names are distinct, values are not empty.
    field : str
    """

    measurement: str
    tags: tuple[tuple[str, str], ...]
    field: str

    @property
    def full_name(self) -> str:
        """Measurement and field, as Prometheus and VictoriaMetrics name a series of line protocol."""
        return f"{self.measurement}_{self.field}"


def canonical_key(series: bytes, field: bytes) -> bytes:
    """Bring what a line names into its canonical form.

    Parameters
    ----------
    series : bytes
        ``measurement,tag=value``, as it is written before the first space that is not escaped.
    field : bytes
        As it is written before the first equals sign that is not escaped.

    Raises
    ------
    InvalidRequestError
        It is no name.
    """
    if len(series) + 1 + len(field) > KEY_BYTES_MAX:
        raise InvalidRequestError(f"the name of the series is longer than {KEY_BYTES_MAX} bytes")
    for part in (series, field):
        if _FORBIDDEN.search(part):
            raise InvalidRequestError(f"{_shown(part)} holds a character that is not allowed in names")
    measurement, *written = _COMMA.split(series)
    if not measurement:
        raise InvalidRequestError("the measurement is missing")
    tags: dict[bytes, bytes] = {}
    for tag in written:
        name, *values = _EQUALS.split(tag)
        if len(values) != 1:
            raise InvalidRequestError(f"tag {_shown(tag)} is not of the form name=value")
        if not name or not values[0]:
            raise InvalidRequestError(f"tag {_shown(tag)} has no {'value' if name else 'name'}")
        name = _ESCAPED.sub(rb"\1", name)
        if name in tags:
            raise InvalidRequestError(f"tag {_shown(name)} is given twice")
        if name.decode(errors="replace") in RESERVED_LABELS:
            raise InvalidRequestError(f"tag {_shown(name)} has a name that is reserved")
        tags[name] = _ESCAPED.sub(rb"\1", values[0])
    if not field or len(_COMMA.split(field)) > 1 or len(_SPACE.split(field)) > 1:
        raise InvalidRequestError(f"{_shown(field)} is no name of a field")
    key = _join(
        _ESCAPED_IN_MEASUREMENT.sub(rb"\1", measurement),
        sorted(tags.items()),
        _ESCAPED.sub(rb"\1", field),
    )
    try:
        key.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the name {_shown(key)} is not UTF-8") from error
    return key


def parse_key(key: bytes) -> Name:
    """Take a canonical key apart."""
    series, field = _SPACE.split(key)
    measurement, *written = _COMMA.split(series)
    tags: list[tuple[str, str]] = []
    for tag in written:
        name, value = _EQUALS.split(tag)
        tags.append((_ESCAPED.sub(rb"\1", name).decode(), _ESCAPED.sub(rb"\1", value).decode()))
    return Name(
        _ESCAPED_IN_MEASUREMENT.sub(rb"\1", measurement).decode(),
        tuple(tags),
        _ESCAPED.sub(rb"\1", field).decode(),
    )


def write_key(name: Name) -> bytes:
    """Return the canonical key of a name."""
    tags = sorted((tag.encode(), value.encode()) for tag, value in name.tags)
    return _join(name.measurement.encode(), tags, name.field.encode())


def _join(measurement: bytes, tags: list[tuple[bytes, bytes]], field: bytes) -> bytes:
    parts = [escape_measurement(measurement), *(escape(name) + b"=" + escape(value) for name, value in tags)]
    return b",".join(parts) + b" " + escape(field)


def escape(text: bytes) -> bytes:
    """Write a name or value of a tag, or the name of a field, as keys hold it."""
    return _SPECIAL.sub(rb"\\\g<0>", text)


def escape_measurement(text: bytes) -> bytes:
    """Write a measurement as keys hold it."""
    return _SPECIAL_IN_MEASUREMENT.sub(rb"\\\g<0>", text)


def _shown(text: bytes) -> str:
    return repr(text[:60].decode(errors="replace"))


# Selectors.


@dataclass(frozen=True, slots=True)
class Selector:
    """Which series are meant: those that have all of these labels.

    Attributes
    ----------
    name : str or None
        Their measurement, or their measurement and field, joined by an underscore.
    labels : tuple of (str, str)
        Names and values. ``__name__`` is measurement and field, joined; ``__measurement__`` and
        ``__field__`` are one of them.
    """

    name: str | None
    labels: tuple[tuple[str, str], ...]


_BARE = re.compile(r"[^\s{}\"'`,=!~()\[\]\\]+")
_OPERATOR = re.compile(r"=~|!~|!=|=")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"' + r"|'((?:[^'\\]|\\.)*)'", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}


def parse_selector(text: str, parameter: str) -> Selector:
    """Read ``name{label="value",...}``; the name or the braces may be left out.

    Parameters
    ----------
    text : str
    parameter : str
        Where it was given, for the error.

    Raises
    ------
    InvalidRequestError
        It is malformed, or asks for more than equality.
    """
    shown = text if len(text) <= 100 else f"{text[:100]}..."

    def refuse(reason: str) -> InvalidRequestError:
        return InvalidRequestError(f"{parameter} {shown!r}: {reason}", parameter)

    rest = text.strip()
    name: str | None = None
    found = _BARE.match(rest)
    if found:
        name = found[0]
        rest = rest[found.end() :].lstrip()
    if not rest:
        if name is None:
            raise refuse("it selects nothing")
        return Selector(name, ())
    if rest[0] != "{":
        raise refuse(f"expected an opening brace at {rest[:20]!r}")
    rest = rest[1:].lstrip()
    labels: list[tuple[str, str]] = []
    while not rest.startswith("}"):
        found = _BARE.match(rest)
        if found is None:
            raise refuse(f"expected the name of a label at {rest[:20]!r}")
        label = found[0]
        rest = rest[found.end() :].lstrip()
        operator = _OPERATOR.match(rest)
        if operator is None:
            raise refuse(f"expected = after {label}")
        if operator[0] != "=":
            raise refuse(f"{label}{operator[0]} is not supported yet, only equality (=) is")
        rest = rest[1:].lstrip()
        quoted = _QUOTED.match(rest)
        if quoted is None:
            raise refuse(f"the value of {label} must stand in quotes")
        value = quoted[1] if quoted[1] is not None else quoted[2]
        unknown = next((c for c in _ESCAPE.findall(value) if c not in _ESCAPES), None)
        if unknown is not None:
            raise refuse(f"the escape \\{unknown} in the value of {label} is not known")
        value = _ESCAPE.sub(lambda match: _ESCAPES[match[1]], value)
        if not value:
            raise refuse(f"{label} is compared with an empty value, which is not supported yet")
        labels.append((label, value))
        rest = rest[quoted.end() :].lstrip()
        if rest.startswith(","):
            rest = rest[1:].lstrip()
        elif not rest.startswith("}"):
            raise refuse(f"expected a comma or a closing brace at {rest[:20]!r}")
    if rest[1:].strip():
        raise refuse(f"{rest[1:].strip()[:20]!r} stands after the closing brace")
    if name is None and not labels:
        raise refuse("it selects nothing")
    return Selector(name, tuple(labels))
