"""Pages of compressed segments are decoded as the specification says, and damage stays inside the arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omendb.jit import pages

INT64 = st.integers(-(2**63), 2**63 - 1)


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def zigzag(number: int) -> int:
    return ((number << 1) ^ (-1 if number < 0 else 0)) & (2**64 - 1)


def pack(numbers: list[int], width: int) -> bytes:
    whole = sum(number << (position * width) for position, number in enumerate(numbers))
    return whole.to_bytes((len(numbers) * width + 7) // 8, "little")


def wrapped(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def encode_deltas(values: list[int], each: int = 32, parts: int = 4, extra: int = 0) -> bytes:
    """Encode as the specification says, with `extra` bits more a value than needed, and differences that wrap."""
    first = values[0] if values else 0
    out = varint(each * parts) + varint(parts) + varint(len(values)) + varint(zigzag(first))
    deltas = [wrapped(b - a) for a, b in itertools.pairwise(values)]
    for start in range(0, len(deltas), each * parts):
        block = deltas[start : start + each * parts]
        least = min(block)
        widths, body = [], b""
        for low in range(0, len(block), each):
            above = [(delta - least) % 2**64 for delta in block[low : low + each]]
            width = min(64, max(above).bit_length() + extra)
            widths.append(width)
            body += pack(above + [0] * (each - len(above)), width)
        widths += [0] * (parts - len(widths))
        out += varint(zigzag(least)) + bytes(widths) + body
    return out


def encode_indices(indices: list[int], width: int, runs: list[bool]) -> bytes:
    """Encode groups of eight, each bit-packed or, where all its indices are equal, as a run."""
    out = bytes([width])
    for group, as_run in zip(range(0, len(indices), 8), runs, strict=False):
        part = indices[group : group + 8]
        if as_run and len(set(part)) == 1:
            out += varint(len(part) << 1) + part[0].to_bytes((width + 7) // 8, "little")
        else:
            out += varint(1 << 1 | 1) + pack(part + [0] * (8 - len(part)), width)
    return out


def read_only(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def deltas_of(data: bytes, count: int) -> list[int] | None:
    out = np.zeros(count, np.int64)
    return out.tolist() if pages.decode_deltas(read_only(data), out) == count else None


def values_of(data: bytes, dictionary: list[int], count: int) -> list[int] | None:
    entries = np.array(dictionary, np.int64)
    entries.flags.writeable = False
    out = np.zeros(count, np.int64)
    return out.tolist() if pages.decode_indices(read_only(data), entries, out) == count else None


@given(
    st.one_of(
        st.lists(INT64, max_size=300),
        st.lists(st.integers(-50, 50), max_size=300),
        st.integers(0, 300).map(lambda n: list(range(5, 5 + 10 * n, 10))),
    ),
    st.sampled_from([(32, 4), (8, 1), (64, 2)]),
    st.sampled_from([0, 1, 7, 60]),
)
def test_deltas_come_back(values, shape, extra) -> None:
    assert deltas_of(encode_deltas(values, *shape, extra=extra), len(values)) == values


@given(st.data(), st.integers(1, 40), st.integers(0, 32))
def test_indices_come_back(data, entries, more_bits) -> None:
    width = min(32, (entries - 1).bit_length() + more_bits)
    dictionary = data.draw(st.lists(INT64, min_size=entries, max_size=entries))
    groups = data.draw(st.lists(st.lists(st.integers(0, entries - 1), min_size=8, max_size=8), max_size=20))
    equal = data.draw(st.lists(st.booleans(), min_size=20, max_size=20))
    indices = [
        index
        for group, same in zip(groups, equal, strict=False)
        for index in ([group[0]] * 8 if same else group)
    ]
    indices = indices[: len(indices) - data.draw(st.integers(0, 7))] if indices else indices
    encoded = encode_indices(indices, width, equal)

    found = values_of(encoded, dictionary, len(indices))

    assert found == [dictionary[index] for index in indices]


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_decoded_or_refused(data, count) -> None:
    room = np.full(count + 2, -7, np.int64)
    dictionary = np.arange(5, dtype=np.int64)

    assert pages.decode_deltas(read_only(data), room[1:-1]) in (count, pages.MALFORMED)
    assert pages.decode_indices(read_only(data), dictionary, room[1:-1]) in (count, pages.MALFORMED)

    assert room[0] == room[-1] == -7


@given(st.lists(INT64, min_size=1, max_size=100), st.data())
def test_cut_pages_are_refused(values, data) -> None:
    encoded = encode_deltas(values)
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]

    assert deltas_of(cut, len(values)) is None
    assert deltas_of(encoded, len(values) + 1) is None


@pytest.mark.parametrize("index", [3, 255])
def test_an_index_beyond_the_dictionary_is_refused(index) -> None:
    assert values_of(encode_indices([index] * 8, 8, [True]), [1, 2, 3], 8) is None
    assert values_of(encode_indices([0] * 7 + [index], 8, [False]), [1, 2, 3], 8) is None


def test_one_entry_needs_no_bits() -> None:
    assert values_of(encode_indices([0] * 8, 0, [True]), [42], 8) == [42] * 8
    assert values_of(encode_indices([0] * 8, 0, [False]), [42], 8) == [42] * 8
