"""Names of series and their canonical keys; selectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.errors import InvalidRequestError
from omendb.series import KEY_BYTES_MAX, Name, Selector, canonical_key, parse_key, parse_selector, write_key

# A name may hold anything but line ends and zeros. A backslash at its end would escape what follows, and
# one before a special character is told from an escape by standing there twice.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\x00\\"), min_size=1, max_size=12)


@given(texts, st.dictionaries(texts.filter(lambda text: not text.startswith("__")), texts, max_size=4), texts)
def test_keys_and_names_are_the_same(measurement, tags, field) -> None:
    name = Name(measurement, tuple(sorted(tags.items(), key=lambda tag: tag[0].encode())), field)

    key = write_key(name)

    assert parse_key(key) == name
    series, _, written = key.rpartition(b" ") if b" " not in field.encode() else (b"", b"", b"")
    if series:
        assert canonical_key(series, written) == key


@pytest.mark.parametrize(
    ("series", "field", "key"),
    [
        (b"m", b"f", b"m f"),
        (b"cpu,b=2,a=1", b"f", b"cpu,a=1,b=2 f"),
        (b"a\\=b,t\\ 1=x\\,y", b"f\\=g", b"a\\=b,t\\ 1=x\\,y f\\=g"),
        (b"a=b", b"f", b"a=b f"),
        (b"m,t=a\\\\,b", b"f", b"m,t=a\\\\,b f"),
        (b"m,t=a\\b", b"f", b"m,t=a\\b f"),
    ],
)
def test_canonical_keys(series, field, key) -> None:
    assert canonical_key(series, field) == key
    assert write_key(parse_key(key)) == key


@pytest.mark.parametrize(
    ("series", "field", "message"),
    [
        (b"", b"f", "measurement is missing"),
        (b",a=b", b"f", "measurement is missing"),
        (b"m,a", b"f", "tag 'a' is not of the form"),
        (b"m,a=b=c", b"f", "tag 'a=b=c' is not of the form"),
        (b"m,=b", b"f", "tag '=b' has no name"),
        (b"m,a=", b"f", "tag 'a=' has no value"),
        (b"m,,a=b", b"f", "tag '' is not of the form"),
        (b"m,a=b,a=c", b"f", "tag 'a' is given twice"),
        (b"m,__name__=x", b"f", "tag '__name__' has a name that is reserved"),
        (b"m", b"a,b", "'a,b' is no name of a field"),
        (b"m", b" b", "' b' is no name of a field"),
        (b"m", b"", "'' is no name of a field"),
        (b"m\xff", b"f", "is not UTF-8"),
        (b"m\r", b"f", "holds a character that is not allowed"),
        (b"m\x00", b"f", "holds a character that is not allowed"),
        (b"m" * KEY_BYTES_MAX, b"f", "longer than 65535 bytes"),
    ],
)
def test_what_is_no_name(series, field, message) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        canonical_key(series, field)


@pytest.mark.parametrize(
    ("text", "name", "labels"),
    [
        ("cpu", "cpu", ()),
        (" cpu ", "cpu", ()),
        ("cpu{}", "cpu", ()),
        ('cpu{host="a"}', "cpu", (("host", "a"),)),
        ("cpu { host = 'a' , region = \"b\" , }", "cpu", (("host", "a"), ("region", "b"))),
        ('{__name__="cpu_usage",host="a b,c}"}', None, (("__name__", "cpu_usage"), ("host", "a b,c}"))),
        (r'{a="\"\\\n\t"}', None, (("a", '"\\\n\t'),)),
        ('disk.used-pct{x="é"}', "disk.used-pct", (("x", "é"),)),
    ],
)
def test_selectors(text, name, labels) -> None:
    assert parse_selector(text, "match[]") == Selector(name, labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "selects nothing"),
        ("{}", "selects nothing"),
        ('cpu{host=~"a"}', "host=~ is not supported yet"),
        ('cpu{host!="a"}', "host!= is not supported yet"),
        ('cpu{host!~"a"}', "host!~ is not supported yet"),
        ('cpu{host=""}', "empty value, which is not supported yet"),
        ("cpu{host=a}", "must stand in quotes"),
        ('cpu{host "a"}', "expected = after host"),
        ('cpu{="a"}', "expected the name of a label"),
        ('cpu{host="a"', "expected a comma or a closing brace"),
        ("cpu{", "expected the name of a label"),
        ('cpu{host="a"} > 5', "stands after the closing brace"),
        ('cpu{host="a" x="b"}', "expected a comma or a closing brace"),
        ("sum(cpu)", "expected an opening brace"),
        (r'{a="\d"}', r"escape \\d in the value of a is not known"),
        ('"cpu"', "expected an opening brace"),
    ],
)
def test_what_is_no_selector(text, message) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        parse_selector(text, "match[]")

    assert caught.value.field == "match[]"
