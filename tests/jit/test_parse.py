"""The parser reads what json reads, to the last bit, or gives up."""

from __future__ import annotations

import ctypes
import json
import mmap
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.jit import parse
from omendb.jit._compile import JIT_DISABLED

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXAMPLES = 100 if JIT_DISABLED else 300
MANY = 2_000 if JIT_DISABLED else 30_000

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
NAMES = ("series_id", "timestamp", "value")

Points = list[tuple[int, int, float]]

series_ids = st.one_of(st.integers(0, 20), st.integers(0, INT64_MAX))
timestamps = st.one_of(
    st.integers(0, 20),
    st.integers(INT64_MIN, INT64_MAX),
    st.integers(0, 18).map(lambda power: 10**power),
    st.sampled_from([INT64_MIN, INT64_MAX]),
)
normal_floats = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
values = st.one_of(
    normal_floats,
    st.integers(-1000, 1000),
    st.integers(1 - 10**18, 10**18 - 1),
    st.builds(lambda mantissa: mantissa / 100, st.integers(-(10**7), 10**7)),
)
points = st.lists(st.tuples(series_ids, timestamps, values), min_size=1, max_size=8)
spaces = st.text(" \t\r\n", max_size=3)


@st.composite
def number_texts(draw: st.DrawFn) -> str:
    """Draw a valid JSON number, most of them awkward."""
    sign = draw(st.sampled_from(["", "", "-"]))
    whole = draw(st.one_of(st.just("0"), st.integers(1, 10**19).map(str)))
    fraction = draw(st.one_of(st.just(""), st.text("0123456789", min_size=1, max_size=25)))
    exponent = draw(
        st.one_of(
            st.just(""),
            st.integers(-30, 30).map(str),
            st.integers(-345, 345).map(str),
            st.integers(0, 345).map(lambda power: f"+0{power}"),
        )
    )
    mark = draw(st.sampled_from("eE"))
    number = f"{sign}{whole}.{fraction}" if fraction else sign + whole
    return number + mark + exponent if exponent else number


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Draw a valid body of any of the forms, with any order of keys, white space and numbers."""
    rows = draw(points)
    order = draw(st.permutations(NAMES))
    form = draw(st.sampled_from(["object", "array", "columns", "series"]))

    def space() -> str:
        return draw(spaces)

    def text(name: str, number: float) -> str:
        written = json.dumps(number)
        if name == "value" and draw(st.integers(0, 9)) == 0:
            written = draw(number_texts())
        return space() + written + space()

    def members(fields: dict[str, str]) -> str:
        parts = (f'{space()}"{name}"{space()}:{fields[name]}' for name in order)
        return "{" + ",".join(parts) + "}" + space()

    if form in ("object", "array"):
        objects = [members({n: text(n, row[i]) for i, n in enumerate(NAMES)}) for row in rows]
        body = objects[0] if form == "object" else "[" + space() + ",".join(objects) + "]"
    else:
        arrays = {}
        for index, name in enumerate(NAMES):
            arrays[name] = f"[{','.join(text(name, row[index]) for row in rows)}]"
        if form == "series":
            arrays["series_id"] = text("series_id", rows[0][0])
        body = members(arrays)
    return (space() + body + space()).encode()


def canonical(rows: Points, form: str, *, compact: bool) -> bytes:
    """Write points as a client with Python's json module does."""
    columns: dict[str, Any] = {name: [row[i] for row in rows] for i, name in enumerate(NAMES)}
    data: Any = [dict(zip(NAMES, row, strict=True)) for row in rows]
    if form == "object":
        data = data[0]
    elif form == "columns":
        data = columns
    elif form == "series":
        data = columns | {"series_id": rows[0][0]}
    return json.dumps(data, separators=(",", ":") if compact else None).encode()


def guarded(body: bytes) -> NDArray[np.uint8]:
    """Place a body where memory that cannot be touched follows it."""
    space = max(1, -(-len(body) // mmap.PAGESIZE)) * mmap.PAGESIZE
    pages = np.frombuffer(mmap.mmap(-1, space + mmap.PAGESIZE), dtype=np.uint8)
    guard = ctypes.c_void_p(pages.ctypes.data + space)
    pages[space - len(body) : space] = np.frombuffer(body, dtype=np.uint8)
    assert ctypes.CDLL(None, use_errno=True).mprotect(guard, mmap.PAGESIZE, 0) == 0
    array = pages[space - len(body) : space]
    array.flags.writeable = False
    return array


def run(body: bytes | NDArray[np.uint8]) -> Points | None:
    """Parse a body with exactly the room that the bound asks for."""
    array = np.frombuffer(body, dtype=np.uint8) if isinstance(body, bytes) else body
    room = parse.count_points_bound(array)
    series_id = np.full(room, -7)
    timestamp = np.full(room, -7)
    value = np.full(room, np.nan)
    count, code = parse.parse_points(array, series_id, timestamp, value)
    if code == parse.GIVE_UP:
        return None
    assert code == parse.PARSED
    assert 1 <= count <= room
    columns = (series_id[:count], timestamp[:count], value[:count])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def reference(body: bytes) -> Points:
    """Decode a body with json, and raise ValueError or TypeError when an insert must refuse it."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(pairs) != len(fields) or fields.keys() != set(NAMES):
            raise ValueError(pairs)
        return fields

    def refuse(text: str) -> Any:
        raise ValueError(text)

    msgspec.json.decode(body)
    data = json.loads(body.decode(), object_pairs_hook=members, parse_constant=refuse)
    if isinstance(data, dict) and isinstance(data["timestamp"], list):
        if isinstance(data["series_id"], int):
            data["series_id"] = [data["series_id"]] * len(data["timestamp"])
        rows = list(zip(*(data[name] for name in NAMES), strict=True))
    else:
        objects = data if isinstance(data, list) else [data]
        rows = [tuple(point[name] for name in NAMES) for point in objects]
    for series_id, timestamp, value in rows:
        if type(series_id) is not int or type(timestamp) is not int:
            raise TypeError(rows)
        if type(value) not in (int, float) or abs(float(value)) == float("inf"):
            raise TypeError(rows)
        if not (0 <= series_id <= INT64_MAX and INT64_MIN <= timestamp <= INT64_MAX):
            raise ValueError(rows)
    return [(series_id, timestamp, float(value)) for series_id, timestamp, value in rows]


def as_text(rows: Points | None) -> str:
    """Write points so that 0.0 and -0.0 differ."""
    return repr(rows)


@given(points, st.sampled_from(["object", "array", "columns", "series"]), st.booleans())
@settings(deadline=None, max_examples=EXAMPLES)
def test_plain_bodies_are_parsed(rows: Points, form: str, compact: bool) -> None:
    body = canonical(rows, form, compact=compact)

    parsed = run(guarded(body))

    assert as_text(parsed) == as_text(reference(body))


@given(bodies())
@settings(deadline=None, max_examples=EXAMPLES)
def test_valid_bodies_are_read_as_json_reads_them(body: bytes) -> None:
    parsed = run(guarded(body))

    if parsed is not None:
        assert as_text(parsed) == as_text(reference(body))


@given(bodies(), st.data())
@settings(deadline=None, max_examples=4 * EXAMPLES)
def test_changed_bodies_are_read_as_json_or_given_up(body: bytes, data: st.DataObject) -> None:
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed)))
        stop = data.draw(st.integers(at, min(len(changed), at + 4)))
        tokens = st.sampled_from([b"0", b"-", b".", b"e", b"+", b",", b"{", b"}", b"[", b"]", b'"'])
        other = st.sampled_from([b"true", b"null", b"\xef\xbb\xbf", b"\\u0076", b'"value":1,'])
        room = st.integers(0, max(0, len(changed) - 1)).map(lambda i: bytes(changed[i : i + 30]))
        changed[at:stop] = data.draw(st.one_of(tokens, other, room, st.binary(max_size=2)))

    parsed = run(guarded(bytes(changed)))

    if parsed is not None:
        assert as_text(parsed) == as_text(reference(bytes(changed)))


@given(st.one_of(st.binary(max_size=200), st.text('{}[]",:0123456789.eE+- \n', max_size=200)))
@settings(deadline=None, max_examples=EXAMPLES)
def test_noise_is_given_up(noise: bytes | str) -> None:
    body = noise if isinstance(noise, bytes) else noise.encode()

    parsed = run(guarded(body))

    # Hypothesis also draws constants that it finds in the sources, and some of them are bodies.
    assert parsed is None or parsed == reference(body)


@pytest.mark.parametrize("form", ["object", "array", "columns", "series"])
def test_every_beginning_of_a_body_is_given_up(form: str) -> None:
    body = canonical([(1, 1234567890123, 12.25), (12345678901, -5, -1e-30)], form, compact=False)

    given_up = [run(guarded(body[:length])) is None for length in range(len(body))]

    assert all(given_up)
    assert run(guarded(body)) is not None


@pytest.mark.parametrize("seed", range(4))
def test_values_are_correctly_rounded(seed: int) -> None:
    generator = np.random.default_rng(seed)
    floats = generator.integers(INT64_MIN, INT64_MAX, MANY, dtype=np.int64).view(np.float64)
    floats = floats[np.abs(floats) > 1e-300]  # also drops NaN
    if seed == 1:
        floats = floats[np.isfinite(floats)]
        texts = [f"{number:.{index % 18}e}" for index, number in enumerate(floats)]
    elif seed == 2:
        mantissas = generator.integers(1, 10**18, MANY).tolist()
        exponents = generator.choice([*range(-300, -20), *range(290)], MANY)  # no ties possible
        texts = [f"{m}e{e}" for m, e in zip(mantissas, exponents.tolist(), strict=True)]
    elif seed == 3:
        numbers = generator.normal(0, 1e6, MANY)
        texts = [f"{number:.{index % 11}f}" for index, number in enumerate(numbers)]
    else:
        texts = [repr(number) for number in floats[np.isfinite(floats)].tolist()]
    texts = [text for text in texts if np.isfinite(float(text))]
    zeros = ",".join("0" for _ in texts)
    body = f'{{"series_id":1,"timestamp":[{zeros}],"value":[{",".join(texts)}]}}'

    parsed = run(body.encode())

    assert parsed is not None
    assert [value for _, _, value in parsed] == [float(text) for text in texts]


@given(number_texts())
@settings(deadline=None, max_examples=2 * EXAMPLES)
def test_any_number_is_correctly_rounded_or_given_up(text: str) -> None:
    parsed = run(f'{{"series_id":1,"timestamp":2,"value":{text}}}'.encode())

    if parsed is not None:
        assert repr(parsed[0][2]) == repr(float(text))


@given(
    st.integers(0, 2**52 - 1),
    st.integers(60, 1900),
    st.sampled_from([-1, 0, 1]),
    st.integers(16, 18),
)
@settings(deadline=None, max_examples=EXAMPLES)
def test_numbers_next_to_a_tie_are_correctly_rounded_or_given_up(
    fraction: int, exponent: int, step: int, digits: int
) -> None:
    low = float(np.array(exponent << 52 | fraction).view(np.float64))
    numerator, denominator = low.as_integer_ratio()
    width_numerator, width_denominator = float(np.spacing(low)).as_integer_ratio()
    # The middle of two neighbours, cut to some digits, and its neighbours among these decimals.
    top = numerator * 2 * width_denominator + width_numerator * denominator
    bottom = 2 * denominator * width_denominator
    power = len(str(top // bottom)) - digits if top >= bottom else -len(str(bottom // top)) - digits
    mantissa = top // (bottom * 10**power) if power >= 0 else top * 10**-power // bottom
    text = f"{mantissa + step}e{power}"

    parsed = run(f'{{"series_id":1,"timestamp":2,"value":{text}}}'.encode())

    if parsed is not None:
        assert parsed[0][2] == float(text)


PARSED_VALUES = """
    0 0.0 -0.0 0e5 0.000e-999 -0e0 1E5 1e+05 1e-5 1e22 1e23 2e+23 9e-300 100000000 12345678 8.41
    -273.15 1234567.8 12345678.87654321 99999999.99999999 -123456789.123456789 9007199254740993
    0.9007199254740993e16 123456789012345678 0.000000000000000000000012345678901234567
    1.7976931348623157e308 2.2250738585072014e-308
"""
GIVEN_UP_VALUES = """
    01 00 -01 1. +1 .5 -.5 1e 1e+ 1.e5 1.5.5 1e5.0 0x10 1_0 - --1 -0 true null "1" [1] {} 1,
    NaN Infinity -Infinity nan inf 1e309 1e400 -1e400 1e99999 1e-99999 5e-324 1e-310 1e-400
    4503599627370497.5 9007199254740993.0 1234567890123456789 1.234567890123456789
"""
PARSED_TIMESTAMPS = """
    -9223372036854775808 9223372036854775807 0 -1 9 -12345678 123456789012 9223372036854775799
"""
GIVEN_UP_INTEGERS = """
    9223372036854775808 -9223372036854775809 9999999999999999999 12345678901234567890
    01 -0 -01 +1 1.0 1e3 1.5 --1 - true null "1"
"""


@pytest.mark.parametrize("text", PARSED_VALUES.split())
def test_values_that_are_parsed(text: str) -> None:
    parsed = run(f'{{"series_id":1,"timestamp":2,"value":{text}}}'.encode())

    assert as_text(parsed) == as_text([(1, 2, float(text))])


@pytest.mark.parametrize("text", [*GIVEN_UP_VALUES.split(), "", "1 2", "1\x00", "\u0661"])
def test_values_that_are_given_up(text: str) -> None:
    one = f'{{"series_id":1,"timestamp":2,"value":{text}}}'.encode()
    columns = f'{{"series_id":1,"timestamp":[2],"value":[{text}]}}'.encode()

    assert run(one) is None
    assert run(b"[" + one + b"]") is None
    assert run(columns) is None


@pytest.mark.parametrize("text", PARSED_TIMESTAMPS.split())
def test_timestamps_that_are_parsed(text: str) -> None:
    parsed = run(f'{{"series_id":{text.strip("-")[:18]},"timestamp":{text},"value":1.5}}'.encode())

    assert parsed == [(int(text.strip("-")[:18]), int(text), 1.5)]


@pytest.mark.parametrize("text", [*GIVEN_UP_INTEGERS.split(), "", "1 1"])
@pytest.mark.parametrize("name", ["series_id", "timestamp"])
def test_integers_that_are_given_up(name: str, text: str) -> None:
    fields = {"series_id": "1", "timestamp": "2", "value": "3"} | {name: text}
    one = "{" + ",".join(f'"{key}":{number}' for key, number in fields.items()) + "}"
    columns = "{" + ",".join(f'"{key}":[{number}]' for key, number in fields.items()) + "}"

    assert run(one.encode()) is None
    assert run(f"[{one}]".encode()) is None
    assert run(columns.encode()) is None


ONE = b'{"series_id":1,"timestamp":2,"value":3.5}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{}",
        b"[]",
        b"[" + b" " * 60 + b"]",
        b"[[" + ONE + b"]]",
        b"[" + ONE + b",]",
        b"[," + ONE + b"]",
        b"[" + ONE + b" " + ONE + b"]",
        b"[" + ONE + b",1]",
        b"[" + ONE + b"}",
        b"[" + ONE,
        ONE + b",",
        ONE + b"]",
        ONE + ONE,
        ONE + b"\x00",
        ONE + b"//",
        b"\xef\xbb\xbf" + ONE,
        b"\xa0" + ONE,
        b"\x0b" + ONE,
        b"\x0c" + ONE,
        ONE[:-1] + b",}",
        ONE[:-1] + b',"value":4}',
        ONE[:-1] + b',"unit":"s"}',
        b'{"series_id":1,"timestamp":2,"timestamp":3}' + b" " * 20,
        b'{"series_id":1,"timestamp":2            }' + b" " * 20,
        b'{"series_id":-1,"timestamp":2,"value":3.5}',
        b'{"series_\\u0069d":1,"timestamp":2,"value":3.5}',
        b'{"Series_id":1,"timestamp":2,"value":3.5}',
        b'{"series_id ":1,"timestamp":2,"value":3.5}',
        b"{'series_id':1,'timestamp':2,'value':3.5}",
        b'{"series_id"=1,"timestamp":2,"value":3.5}',
        b'{"series_id"::1,"timestamp":2,"value":3.5}',
        b'{"series_id":1;"timestamp":2;"value":3.5}',
        b'{"series_id":1 "timestamp":2 "value":3.5}',
        b'{"series_id":1,,"timestamp":2,"value":3.5}',
        b'{"series_id":[],"timestamp":[],"value":[]}',
        b'{"series_id":1,"timestamp":[],"value":[]}  ',
        b'{"series_id":[1],"timestamp":[2],"value":[3.5,4]}',
        b'{"series_id":[1,1],"timestamp":[2],"value":[3.5]}',
        b'{"series_id":[1],"timestamp":2,"value":3.5}',
        b'{"series_id":1,"timestamp":[2],"value":3.5}',
        b'{"series_id":1,"timestamp":2,"value":[3.5]}',
        b'{"series_id":[1],"timestamp":[2],"value":[3.5,]}',
        b'{"series_id":[1],"timestamp":[2],"value":[,3.5]}',
        b'{"series_id":[1],"timestamp":[2],"value":[[3.5]]}',
        b'{"series_id":[-1],"timestamp":[2],"value":[3.5]}',
        b'{"series_id":-1,"timestamp":[2],"value":[3.5]}',
        b'{"series_id":[1],"timestamp":[2]}            ',
        b'{"series_id":[1],"timestamp":[2],"value":[3.5],"value":[3.5]}',
        b'{"series_id":[1],"timestamp":[2],"value":[3.5]},',
        b'{"series_id":[1],"timestamp":[2],"value":[3.5]]',
        b'{"series_id":[1},"timestamp":[2],"value":[3.5]}',
        b'[{"series_id":[1],"timestamp":[2],"value":[3.5]}]',
    ],
)
def test_bodies_that_are_given_up(body: bytes) -> None:
    assert run(guarded(body)) is None


@pytest.mark.parametrize("form", ["object", "array", "columns", "series"])
@pytest.mark.parametrize("room", [0, 1, 2])
def test_short_outputs_are_given_up_and_not_overrun(form: str, room: int) -> None:
    rows: Points = [(4, 5, 6.5)] * 3
    body = np.frombuffer(canonical(rows, form, compact=True), dtype=np.uint8)
    series_id, timestamp, value = np.full(9, -7), np.full(9, -7), np.full(9, -7.0)

    _, code = parse.parse_points(body, series_id[:room], timestamp[:room], value[:room])

    enough = form == "object" and room > 0
    assert code == (parse.PARSED if enough else parse.GIVE_UP)
    for column in (series_id, timestamp, value):
        assert (column[room:] == -7).all()


@given(points, st.sampled_from(["object", "array", "columns", "series"]))
@settings(deadline=None, max_examples=EXAMPLES)
def test_bound_is_not_far_above_the_count(rows: Points, form: str) -> None:
    body = canonical(rows * 20, form, compact=True)
    count = 1 if form == "object" else len(rows) * 20

    bound = parse.count_points_bound(np.frombuffer(body, dtype=np.uint8))

    # The longest object has 106 characters, the shortest 39.
    assert count <= bound <= 1 + 3 * count


def test_body_may_be_writable_and_at_any_alignment() -> None:
    buffer = np.frombuffer(b"---" + ONE, dtype=np.uint8).copy()

    assert run(buffer[3:]) == [(1, 2, 3.5)]
