"""Line protocol, read character by character, as docs/http-api.md describes it."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class Row(NamedTuple):
    """One value: what names its series, as written; nanoseconds; the value."""

    series: bytes
    field: bytes
    timestamp: int
    value: float


class LineError(ValueError):
    """The body is refused."""


def read_body(body: bytes, scale: int = 1, now: int = 0) -> list[Row]:
    """Read all lines, without looking into names."""
    rows: list[Row] = []
    for line in body.split(b"\n"):
        rows += read_line(line[:-1] if line[-1:] == b"\r" else line, scale, now)
    return rows


def read_line(line: bytes, scale: int, now: int) -> list[Row]:
    """Read one line."""
    at = 0
    while line[at : at + 1] == b" ":
        at += 1
    if at == len(line) or line[at : at + 1] == b"#":
        return []
    stop = _find(line, at, b" ")
    series = line[at:stop]
    at = stop + 1
    while line[at : at + 1] == b" ":
        at += 1
    values: list[tuple[bytes, float]] = []
    while True:
        stop = _find(line, at, b"=")
        field = line[at:stop]
        if not field:
            raise LineError("field")
        at = stop = stop + 1
        while stop < len(line) and line[stop : stop + 1] not in (b",", b" "):
            stop += 1
        values.append((field, read_value(line[at:stop])))
        at = stop + 1
        if line[stop:at] != b",":
            break
    written = line[at:].strip(b" ")
    timestamp = now // scale * scale
    if written:
        digits = written[1:] if written[:1] in (b"+", b"-") else written
        if not digits or any(byte not in b"0123456789" for byte in digits) or len(digits) > 30:
            raise LineError("timestamp")
        timestamp = int(written) * scale
    if not INT64_MIN <= timestamp <= INT64_MAX:
        raise LineError("timestamp")
    return [Row(series, field, timestamp, value) for field, value in values]


def _find(line: bytes, at: int, mark: bytes) -> int:
    start = at
    while at < len(line):
        if line[at : at + 1] == mark and (at == start or line[at - 1 : at] != b"\\"):
            return at
        at += 1
    raise LineError(f"no {mark!r}")


def read_value(text: bytes) -> float:
    """Read a number, exactly rounded, or a boolean."""
    if text in (b"t", b"T", b"true", b"True", b"TRUE"):
        return 1.0
    if text in (b"f", b"F", b"false", b"False", b"FALSE"):
        return 0.0
    sign = -1 if text[:1] == b"-" else 1
    rest = text[1:] if text[:1] in (b"+", b"-") else text
    if rest[-1:] in (b"i", b"u"):
        digits = rest[:-1]
        if not digits or len(digits) > 30 or any(byte not in b"0123456789" for byte in digits):
            raise LineError("integer")
        number = sign * int(digits)
        low, high = (INT64_MIN, INT64_MAX) if rest.endswith(b"i") else (0, 2**64 - 1)
        if not low <= number <= high:
            raise LineError("integer")
        return float(number)
    mantissa, *exponents = rest.lower().split(b"e")
    whole, *fractions = mantissa.split(b".")
    if len(exponents) > 1 or len(fractions) > 1:
        raise LineError("number")
    fraction = fractions[0] if fractions else b""
    exponent = exponents[0] if exponents else b"0"
    digits = exponent[1:] if exponent[:1] in (b"+", b"-") else exponent
    for part in (whole + fraction, digits):
        if not part or any(byte not in b"0123456789" for byte in part):
            raise LineError("number")
    if int(digits) > 100_000:
        # Too large for exact arithmetic, and decided by the exponent alone.
        value = 0.0 if int(exponent) < 0 or not int(whole + fraction) else float("inf")
    else:
        exact = Fraction(int(whole + fraction)) * Fraction(10) ** (int(exponent) - len(fraction))
        try:
            value = exact.numerator / exact.denominator
        except OverflowError:
            value = float("inf")
    if value == float("inf"):
        raise LineError("number")
    return sign * value
