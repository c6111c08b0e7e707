from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.errors import InvalidRequestError
from omendb.model import INT64_MAX, INT64_MIN
from omendb.server import query_string

KNOWN = frozenset(("a", "b"))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("&", {}),
        ("a=1", {"a": ["1"]}),
        ("a=1&b=2&a=3", {"a": ["1", "3"], "b": ["2"]}),
        ("a=x%2Cy+z", {"a": ["x,y z"]}),
        ("%61=1", {"a": ["1"]}),
        ("a=b=c", {"a": ["b=c"]}),
    ],
)
def test_parse(text: str, values: dict[str, list[str]]) -> None:
    assert query_string.parse(text, KNOWN) == values


characters = st.characters(codec="utf-8")


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.text(characters, min_size=1))))
def test_parse_reads_what_urlencode_writes(pairs: list[tuple[str, str]]) -> None:
    values = query_string.parse(urlencode(pairs), KNOWN)

    assert [(n, v) for n in ("a", "b") for v in values.get(n, [])] == sorted(pairs, key=lambda p: p[0])


@pytest.mark.parametrize(("text", "field"), [("c=1", "c"), ("a=", "a"), ("a", "a"), ("a=1&A=2", "A")])
def test_parse_refuses(text: str, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        query_string.parse(text, KNOWN)

    assert caught.value.field == field


@given(st.integers(INT64_MIN, INT64_MAX))
def test_integers_of_64_bits_are_read(value: int) -> None:
    assert query_string.to_int64(str(value), "a") == value


@given(st.integers(max_value=INT64_MIN - 1) | st.integers(min_value=INT64_MAX + 1))
def test_larger_integers_are_refused(value: int) -> None:
    with pytest.raises(InvalidRequestError):
        query_string.to_int64(str(value), "a")


@pytest.mark.parametrize(
    "text", ["-", "--1", "+1", " 1", "1 ", "1_0", "0x1", "1e3", "1.0", "\u0661", "\u00b2", "", "1" * 5000]
)
def test_what_is_no_integer_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        query_string.to_int64(text, "a")

    assert caught.value.field == "a"
    assert len(str(caught.value)) < 100


def test_leading_zeros_are_harmless() -> None:
    assert query_string.to_int64("007", "a") == 7
    assert query_string.to_int64("-0", "a") == 0


def test_lists_repeat_or_have_commas() -> None:
    given_values = query_string.parse("a=1,2&a=3", KNOWN)

    assert query_string.integers(given_values, "a") == [1, 2, 3]
    assert query_string.words(given_values, "a") == ("1", "2", "3")
    assert query_string.integers(given_values, "b") is None
    with pytest.raises(InvalidRequestError, match="a is given 2 times"):
        query_string.single(given_values, "a")
