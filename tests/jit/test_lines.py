"""The kernel reads lines as the plain reader does, or stops in front of them; look-ups find what is there."""

from __future__ import annotations

import ast
import ctypes
import mmap
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.jit import keys as key_tables
from omendb.jit import lines
from omendb.jit._compile import JIT_DISABLED
from tests.jit import reference_lines

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXAMPLES = 100 if JIT_DISABLED else 400
SEED = 0x1234_5678_9ABC_DEF0
NOW = 1_700_000_000_123_456_789

plain_names = st.text("abcXYZ_-.09", min_size=1, max_size=20).map(str.encode)
awkward_names = st.lists(
    st.sampled_from([b"a", b"bc", b"\\ ", b"\\,", b"\\=", b"\\", b'"', "ü".encode(), b"\t", b"#", b"\\\\"]),
    min_size=1,
    max_size=6,
).map(b"".join)
names = st.one_of(plain_names, plain_names, awkward_names)
number_texts = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr).map(str.encode),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: b"%di" % n),
    st.integers(0, 2**64 - 1).map(lambda n: b"%du" % n),
    st.integers(-1000, 1000).map(lambda n: b"%d.%02d" % (n, abs(n) % 100)),
    st.sampled_from([b"t", b"T", b"true", b"True", b"TRUE", b"f", b"F", b"false", b"False", b"FALSE"]),
)
wrong_values = st.sampled_from(
    [
        b"",
        b'"text"',
        b"NaN",
        b"inf",
        b"1e400",
        b"1.5i",
        b"-1u",
        b"9223372036854775808i",
        b"tRUE",
        b"falsE",
        b"1.",
        b".5",
        b"+1",
        b"-0",
        b"-0i",
        b"007",
        b"1e",
        b"--1",
        b"i",
        b"tr",
        b"True1",
        b"12345678901234567890",
    ]
)
timestamps = st.one_of(
    st.just(b""),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: b" %d" % n),
    st.sampled_from(
        [b" 0", b" -0", b" 9223372036854775808", b" 1.5", b" 00012", b"  7", b" 7 ", b" +7", b" x"]
    ),
)
ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b"\n# comment, a=b 1\n", b"\r"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Draw a body of lines, most of them valid."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(1, 6))):
        tags = b"".join(b"," + draw(names) + b"=" + draw(names) for _ in range(draw(st.integers(0, 3))))
        values = st.one_of(number_texts, number_texts, number_texts, wrong_values)
        fields = [draw(names) + b"=" + draw(values) for _ in range(draw(st.integers(1, 3)))]
        parts += [draw(names), tags, b" ", b",".join(fields), draw(timestamps), draw(ends)]
    body = b"".join(parts)
    return body.rstrip(b"\n") if draw(st.booleans()) else body


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a body in which some bytes were changed."""
    body = bytearray(draw(bodies()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b" ", b",", b"=", b"\n", b"\\", b"\r", b"\x00", b'"', b"1", b"e", b"i", b""])
        )
    return bytes(body)


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


NOTHING_KNOWN = key_tables.Keys(
    np.zeros(8, np.uint8), np.zeros(1, np.int64), np.zeros(2, np.int64), *(np.empty(0, np.int64),) * 2
)


def padded(body: bytes) -> bytes:
    return body + b"\n" * max(0, lines.BODY_BYTES_MIN - len(body))


def parse(body: bytes, scale: int, room: int = 1) -> tuple[list[reference_lines.Row], list[bytes]]:
    """Parse with the kernel; return its rows, and the lines that it gave up."""
    array = guarded(body)
    rows = lines.Rows(room)
    given_up: list[bytes] = []
    position = 0
    found: list[reference_lines.Row] = []
    while True:
        status, position = lines.parse_lines(
            array, position, SEED, scale, NOW // scale * scale, rows, NOTHING_KNOWN, 0
        )
        if status == lines.DONE:
            break
        if status == lines.FULL:
            rows.grow()
            continue
        stop = body.find(b"\n", position)
        stop = len(body) if stop < 0 else stop
        given_up.append(body[position:stop])
        position = min(stop + 1, len(body))
    for row in range(rows.count):
        place, shape = int(rows.places[row]), int(rows.shapes[row])
        field_at = place + (shape >> 32)
        series = body[place : place + (shape >> 16 & 0xFFFF)]
        field = body[field_at : field_at + (shape & 0xFFFF)]
        found.append(reference_lines.Row(series, field, int(rows.timestamp[row]), float(rows.value[row])))
        key = np.frombuffer(series + b" " + field + bytes(8), np.uint8)
        hashes, _ = key_tables.hash_keys(key, SEED, np.array([0, len(series) + 1 + len(field)]))
        assert hashes[0] == rows.hashes[row]
    return found, given_up


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.one_of(bodies(), damaged()), st.sampled_from([1, 1000, 10**9, 3600 * 10**9]))
def test_reads_what_the_plain_reader_reads_or_gives_the_line_up(body: bytes, scale: int) -> None:
    body = padded(body)
    found, given_up = parse(body, scale)

    # What is given up depends on the line alone.
    expected: list[reference_lines.Row] = []
    for line in body.split(b"\n"):
        if line in given_up:
            continue
        try:
            expected += reference_lines.read_body(line, scale, NOW)
        except reference_lines.LineError:
            expected.append(reference_lines.Row(line, b"refused", 0, 0.0))
    assert list(map(repr, found)) == list(map(repr, expected))


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(
        st.tuples(
            plain_names, plain_names, st.floats(-1e15, 1e15).map(lambda x: round(x, 2)), st.integers(0, 2**62)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_plain_lines_are_not_given_up(rows: list[tuple[bytes, bytes, float, int]]) -> None:
    body = padded(b"".join(b"%s,t=%s f=%r,g=3i %d\n" % (a, b, value, time) for a, b, value, time in rows))

    found, given_up = parse(body, 1)

    values = [row.value for row in found if row.field == b"f"]
    assert [line for line in given_up if not line.startswith(b"#")] == []
    expected = [value for name, _, value, _ in rows if not name.startswith(b"#")]
    assert list(map(repr, values)) == list(map(repr, expected))


def test_a_line_that_does_not_fit_is_read_again_with_more_room() -> None:
    body = b"m a=1,b=2,c=3,d=4 5\nm a=9 6\n"

    found, given_up = parse(body, 1, room=2)

    assert given_up == []
    assert [(row.field, row.value, row.timestamp) for row in found] == [
        *((b"a", 1.0, 5), (b"b", 2.0, 5), (b"c", 3.0, 5), (b"d", 4.0, 5)),
        (b"a", 9.0, 6),
    ]


class Table:
    """Keys in a table."""

    def __init__(self, keys: list[bytes], size: int) -> None:
        self.keys = np.frombuffer(b"".join(keys) + bytes(8), np.uint8)
        self.starts = np.concatenate(([0], np.cumsum([len(key) for key in keys]))).astype(np.int64)
        self.hashes, self.shapes = key_tables.hash_keys(self.keys, SEED, self.starts)
        self.table = np.zeros(size, np.int64)
        self.followers = np.zeros(len(keys), np.int64)
        key_tables.add_to_table(self.table, self.hashes, 0)

    def known(self, ids: list[int] | None = None) -> key_tables.Keys:
        followers = np.empty(0, np.int64) if ids else self.followers
        return key_tables.Keys(self.keys, self.starts, self.table, np.array(ids or [], np.int64), followers)

    def find(self, body: bytes, given: list[int] | None = None, credit: int = 0) -> list[int]:
        array = guarded(body)
        rows = lines.Rows(body.count(b"=") + 1)
        rows.credit = credit
        known = NOTHING_KNOWN if given else self.known()
        assert lines.parse_lines(array, 0, SEED, 1, 0, rows, known, 1000) == (lines.DONE, len(body))
        count = rows.count
        assert rows.missing == int((rows.ids[:count] < 0).sum())
        columns = (rows.hashes[:count], rows.places[:count], rows.shapes[:count], rows.ids[:count])
        missing = key_tables.find_series(array, *columns, self.known(given), 1000)
        assert missing == int((rows.ids[:count] < 0).sum())
        return rows.ids[:count].tolist()


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(st.tuples(plain_names, plain_names), min_size=1, max_size=40, unique=True),
    st.data(),
)
def test_finds_the_keys_that_are_there_and_no_others(pairs: list[tuple[bytes, bytes]], data) -> None:
    keys = [b"m,t=%s %s" % pair for pair in pairs]
    known = data.draw(st.lists(st.sampled_from(keys), unique=True))
    asked = data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=60))
    # A table that is nearly full makes probes long.
    table = Table(known, 1 << (len(known) + 1).bit_length())

    body = padded(b"".join(key + b"=1 5\n" for key in asked))

    expected = {key: 1000 + position for position, key in enumerate(known)}
    # With what follows what, as the times before have left it, and without.
    for credit in (0, 1, 5, 1000, 1000):
        assert table.find(body, credit=credit) == [expected.get(key, -1) for key in asked]


def read_with(table: Table, body: bytes, credit: int, room: int) -> tuple[list[str], list[int]]:
    """Parse with the keys of a table; return what was read, keys as texts, and the lines that were given up."""
    array = guarded(body)
    rows = lines.Rows(room)
    rows.credit = credit
    given_up: list[int] = []
    position = 0
    while True:
        status, position = lines.parse_lines(array, position, SEED, 1, NOW, rows, table.known(), 1000)
        if status == lines.DONE:
            break
        if status == lines.FULL:
            rows.grow()
            continue
        given_up.append(position)
        stop = body.find(b"\n", position)
        position = len(body) if stop < 0 else stop + 1
    found: list[str] = []
    for row in range(rows.count):
        place, shape = int(rows.places[row]), int(rows.shapes[row])
        field_at = place + (shape >> 32)
        if (entry := int(rows.ids[row]) - 1000) >= 0:
            key = table.keys[table.starts[entry] : table.starts[entry + 1]].tobytes()
        else:
            field = body[field_at : field_at + (shape & 0xFFFF)]
            key = body[place : place + (shape >> 16 & 0xFFFF)] + b" " + field
        found.append(f"{key!r} {rows.timestamp[row]} {rows.value[row]!r}")
    assert rows.missing == int((rows.ids[: rows.count] < 0).sum())
    return found, given_up


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.one_of(bodies(), damaged()), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_what_is_expected_changes_no_answer(parts: list[bytes], chosen: int) -> None:
    body = padded(b"\n".join(parts * 2))
    alone = Table([], 2)
    expected = read_with(alone, body, 0, 1000)
    texts = sorted({text.rpartition(" ")[0].rpartition(" ")[0] for text in expected[0]})
    keys = [ast.literal_eval(text) for index, text in enumerate(texts) if chosen >> index % 32 & 1]
    table = Table(keys, 1 << (len(keys) + 1).bit_length())

    for credit, room in ((1000, 1000), (1000, 1), (3, 1000), (1000, 1000)):
        assert read_with(table, body, credit, room) == expected
    # Any key may be expected, also one that is not there yet.
    sizes = [*(table.shapes >> 16 & 0xFFFF), 3, 3, 3]
    guesses = [(chosen + 7 * index) % (len(keys) + 3) for index in range(len(keys))]
    table.followers[:] = [sizes[guess] << 32 | (guess + 1) for guess in guesses]
    assert read_with(table, body, 1000, 1000) == expected


def test_the_series_that_follow_each_other_are_expected() -> None:
    keys = [b"cpu,host=%d %s" % (host, field) for host in range(20) for field in (b"idle", b"used")]
    table = Table(keys, 128)
    body = b"".join(b"cpu,host=%d idle=1,used=2 7\n" % host for host in range(20))
    array = guarded(body)

    for first_credit in (0, 1000):  # learned by the second pass, then relied upon by the first
        table.followers[:] = 0
        table.find(body, credit=first_credit)
        rows = lines.Rows(40)
        lines.parse_lines(array, 0, SEED, 1, 0, rows, table.known(), 1000)

        assert rows.missing == 0
        assert rows.ids.tolist() == list(range(1000, 1040))
        assert rows.previous == 39
        # Only the first row was looked up: each of the others gave back what it cost.
        assert rows.credit == 16


def test_wrong_guesses_end_when_they_are_too_many() -> None:
    keys = [b"m,n=%d v" % number for number in range(60)]
    table = Table(keys, 128)
    body = b"".join(key + b"=1 5\n" for key in keys)
    rows = lines.Rows(60)

    lines.parse_lines(guarded(body), 0, SEED, 1, 0, rows, table.known(), 1000)

    assert rows.credit == 0
    assert rows.missing == 60 - 16
    assert table.find(body) == list(range(1000, 1060))


@pytest.mark.parametrize(
    "key", [b"m,a=1 v\\", b"m,a=1 v", b"m,a=1 v,w", b"m,a=1 v w", b"m,a=1 vv", b"m,a=1 v=3,w"]
)
def test_a_key_that_only_looks_like_the_line_is_not_taken(key: bytes) -> None:
    table = Table([b"first v", b"m,a=1 v"], 8)
    table.keys = np.frombuffer(b"first v" + key + bytes(8), np.uint8)
    table.starts = np.array([0, 7, 7 + len(key)])
    table.followers[:] = [5 << 32 | 2, 0]
    rows = lines.Rows(4)
    body = b"first v=1 1\nm,a=1 v\\=3,w=2 2\n"

    assert lines.parse_lines(guarded(body), 0, SEED, 1, 0, rows, table.known(), 1000)[0] == lines.DONE

    assert rows.ids[: rows.count].tolist() == [1000, -1]
    place, shape = int(rows.places[1]), int(rows.shapes[1])
    assert body[place + (shape >> 32) :][: shape & 0xFFFF] == b"v\\=3,w"


def test_equal_hashes_do_not_make_equal_keys() -> None:
    table = Table([b"a x", b"b x", b"c x"], 8)
    # As if all had the hash of the second.
    table.table[:] = 0
    key_tables.add_to_table(table.table, np.full(3, table.hashes[1]), 0)

    assert table.find(b"b x=1 1\nb x=2 2\n") == [1001, 1001]
    assert table.find(b"d x=1 1\nb y=2 2\n") == [-1, -1]


def test_keys_beyond_the_arrays_are_not_found() -> None:
    """A reader may see a word of the table whose key is in arrays that it does not have yet."""
    table = Table([b"a x", b"b x", b"c x"], 8)
    table.starts = table.starts[:3]

    assert table.find(b"a x=1 1\nc x=2 2\n") == [1000, -1]
    table.starts = np.array([0, 3, 6, 9])
    table.keys = table.keys[:8]
    assert table.find(b"a x=1 1\nc x=2 2\n") == [1000, -1]


def test_keys_with_ids_of_their_own() -> None:
    table = Table([b"a x", b"b x"], 8)

    assert table.find(b"b x=1 1\na x=2 2\n", [70, 3]) == [3, 70]


@pytest.mark.parametrize("key", [b"abc", b"abc ", b"a\\ b", b""])
def test_what_has_no_field_is_no_key(key: bytes) -> None:
    keys = np.frombuffer(key + b"a next" + bytes(8), np.uint8)

    with pytest.raises(ValueError, match="key 0"):
        key_tables.hash_keys(keys, SEED, np.array([0, len(key), len(key) + 6]))
