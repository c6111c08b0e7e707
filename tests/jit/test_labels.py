"""Pieces of keys: what is hashed and found is what splitting the text finds."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omendb.jit import labels
from omendb.jit._compile import JIT_DISABLED

EXAMPLES = 50 if JIT_DISABLED else 200
SEED = 42

words = st.lists(
    st.sampled_from([b"a", b"b", b"host", b"\\ ", b"\\,", b"\\=", "ü".encode(), b"longer-than-8"]),
    min_size=1,
    max_size=3,
).map(b"".join)


@st.composite
def keys(draw: st.DrawFn) -> bytes:
    tags = b"".join(b"," + draw(words) + b"=" + draw(words) for _ in range(draw(st.integers(0, 3))))
    return draw(words) + tags + b" " + draw(words)


def pieces_of(key: bytes) -> list[tuple[int, bytes]]:
    series, field = re.split(rb"(?<!\\) ", key)
    measurement, *tags = re.split(rb"(?<!\\),", series)
    return [
        (labels.MEASUREMENT, measurement),
        *((labels.TAG, tag) for tag in tags),
        (labels.FIELD, field),
    ]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(keys(), min_size=1, max_size=8), st.data())
def test_pieces_are_hashed_and_found(some: list[bytes], data) -> None:
    text = np.frombuffer(b"".join(some) + bytes(8), np.uint8)
    starts = np.concatenate(([0], np.cumsum([len(key) for key in some]))).astype(np.int64)
    first = data.draw(st.integers(0, len(some) - 1))
    expected = [(entry, piece) for entry in range(first, len(some)) for piece in pieces_of(some[entry])]

    hashes, entries = labels.hash_pieces(text, starts, SEED, first, len(some))

    assert entries.tolist() == [entry for entry, _ in expected]
    assert hashes.tolist() == [labels.hash_piece(piece, kind, SEED) for _, (kind, piece) in expected]
    kind, wanted = data.draw(st.sampled_from([piece for _, piece in expected]))
    found = labels.have_piece(text, starts, np.arange(len(some), dtype=np.uint32), wanted, kind)
    assert found.tolist() == [(kind, wanted) in pieces_of(key) for key in some]


def test_equal_texts_of_different_kinds_differ() -> None:
    key = b"a,a=a a"
    text = np.frombuffer(key + bytes(8), np.uint8)

    hashes, _ = labels.hash_pieces(text, np.array([0, len(key)]), SEED, 0, 1)

    assert len(set(hashes.tolist())) == 3
