"""Fuzzing of everything that reads bytes of others: log, learned index, manifest, bodies, cursors, queries.

Each target reads the bytes twice: with the code of the product, and with a plain reader that stands here,
written from the documents. The code may refuse with the errors that it declares, and with nothing else;
what it accepts must be what the plain reader finds. Since random bytes do not get past a checksum, half of
the changed inputs get their checksums made good.

Two ways to run it:

- ``python -m tests.faults.fuzz TARGET -max_total_time=60``: coverage-guided, with atheris (which PyPI has
  for Python 3.11 only); all options of libFuzzer, and files to replay;
- `soak` and `mutate`: seeded changes of valid inputs, without atheris. The same seed makes the same run.
"""

from __future__ import annotations

import base64
import inspect
import json
import logging
import random
import struct
import sys
import time
import types
import urllib.parse
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import xxhash

from omendb import query
from omendb.errors import CorruptionError, InvalidRequestError
from omendb.model import AGGREGATES
from omendb.series import canonical_key, write_key
from omendb.server import line_protocol, query_string, wire
from omendb.server.question import PARAMETERS, read_question
from omendb.storage import backup, catalog, learned_index, manifest, names, wal
from tests.jit import reference_lines

if TYPE_CHECKING:
    from collections.abc import Callable

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
REPAIR_CHANCE = 0.5

Record = tuple[int, bytes, bytes, bytes]  # sequence, series ids, timestamps, values


class Target(NamedTuple):
    """Something that reads bytes.

    Attributes
    ----------
    seeds : list of bytes
        Valid inputs.
    run : callable
        Reads some bytes; returns whether they were accepted. Raises when something is wrong.
    repair : callable
        Makes the checksums of changed bytes good, as far as it can.
    tokens : list of bytes
        What is put into inputs.
    modules : list of module
        Of the code that is fuzzed.
    """

    seeds: list[bytes]
    run: Callable[[bytes], bool]
    repair: Callable[[bytes], bytes]
    tokens: list[bytes]
    modules: list[types.ModuleType]


class FuzzError(AssertionError):
    """An input on which something is wrong; its text is enough to replay it."""


def checksum(data: bytes, seed: int = 0) -> int:
    """XXH3, 64 bits."""
    return xxhash.xxh3_64_intdigest(data, seed)


def unchanged(data: bytes) -> bytes:
    """Repair nothing: there is no checksum."""
    return data


# The write-ahead log: docs/format/wal.md.

_WAL_HEAD = struct.Struct("<8sIIQ")
_RECORD_HEAD = struct.Struct("<4sIQQIIQ")
_NUMBERS = struct.Struct("<Q")


def write_wal(records: list[tuple[int, int, int, bytes]]) -> bytes:
    """Write a file number 1 of records: type, sequence, synced sequence, payload."""
    head = _WAL_HEAD.pack(b"OMENWAL1", 2, 0, 1)
    parts = [head, _NUMBERS.pack(checksum(head))]
    for kind, sequence, synced, payload in records:
        rows = len(payload) // 24 if kind == 1 else (len(payload) - 8) // 16
        if kind == 3:
            rows = payload.count(b" ")
        head = _RECORD_HEAD.pack(
            b"OMND", kind, sequence, synced, rows, len(payload), checksum(payload, sequence)
        )
        parts += [head, _NUMBERS.pack(checksum(head)), payload]
    return b"".join(parts)


def read_record(data: bytes, start: int) -> tuple[Record, int, int] | None:
    """Read one record as the document says: the record, its synced sequence, and the byte after it."""
    if len(data) < start + 48:
        return None
    magic, kind, sequence, synced, rows, size, payload_sum = _RECORD_HEAD.unpack_from(data, start)
    if magic != b"OMND" or checksum(data[start : start + 40]) != _NUMBERS.unpack_from(data, start + 40)[0]:
        return None
    stop = start + 48 + size
    payload = data[start + 48 : stop]
    if len(payload) != size or checksum(payload, sequence) != payload_sum:
        return None
    if kind not in (1, 2, 3) or rows == 0:
        return None
    if kind == 3:
        names = read_names(payload, rows)
        return None if names is None else ((sequence, b"", b"", b""), synced, stop)
    ids = 8 if kind == 2 else 8 * rows
    if size != ids + 16 * rows:
        return None
    series = payload[:8] * rows if kind == 2 else payload[:ids]
    return (sequence, series, payload[ids : ids + 8 * rows], payload[ids + 8 * rows :]), synced, stop


def read_names(body: bytes, count: int) -> list[tuple[int, bytes]] | None:
    """Read names as docs/format/catalog.md says: ids and keys; None when they are none."""
    if count < 1 or len(body) < 8 + 4 * count:
        return None
    first, *lengths = struct.unpack_from(f"<Q{count}I", body)
    if sum(lengths) != len(body) - 8 - 4 * count or min(lengths) < 3:
        return None
    if not 2**52 <= first <= 2**52 + 2**32 - 2 - count:
        return None
    keys: list[bytes] = []
    at = 8 + 4 * count
    for length in lengths:
        keys.append(body[at : at + length])
        at += length
    return list(enumerate(keys, first))


def write_names(first: int, keys: list[bytes]) -> bytes:
    """Write the body that `read_names` reads."""
    return struct.pack(f"<Q{len(keys)}I", first, *map(len, keys)) + b"".join(keys)


class OneFile:
    """The part of a file system that reading needs, with one file in it.

    Attributes
    ----------
    cut : list of int
        Where it was cut.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.cut: list[int] = []

    def names(self, path: Path) -> list[str]:
        return ["00000001.wal"]

    def exists(self, path: Path) -> bool:
        return True

    def read(self, path: Path) -> bytes:
        return self._data

    def reopen(self, path: Path) -> OneFile:
        return self

    def truncate(self, size: int) -> None:
        self.cut.append(size)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def run_wal(data: bytes) -> bool:
    """Read a log file; what had been synced must come back, or be an error."""
    expected: list[Record] = []
    stop = 32
    while (found := read_record(data, stop)) is not None:
        expected.append(found[0])
        stop = found[2]
    assert [_plain(record) for record in wal.read_records(data, 32)] == expected
    for covered, rows_at_once in ((0, 2), (2, 100)):
        _check_joined(data, expected, stop, covered, rows_at_once)

    warnings: list[str] = []
    files: list[wal.ReplayedFile] = []
    try:
        fs: Any = OneFile(data)
        given = [_plain(record) for record in wal.check(fs, Path("wal"), 1, 0, files, warnings)]
    except CorruptionError:
        try:
            list(wal.replay(OneFile(data), Path("wal"), 1, 0, [], 100))  # type: ignore[arg-type]
        except CorruptionError:
            return False
        raise AssertionError("records that are joined are accepted where single ones are not") from None
    good_head = data[:8] == b"OMENWAL1" and data[24:32] == _NUMBERS.pack(checksum(data[:24]))
    if not good_head:
        assert given == []
        assert _readable_after(data, 0) == []
        return False
    # Records up to 0 are those that segments hold; nothing may be missing between them and the first.
    assert given == [record for record in expected if record[0] > 0]
    assert [record[0] for record in given] == list(range(1, len(given) + 1))
    assert bool(warnings) == (stop < len(data))
    joined = _rows(list(wal.replay(fs, Path("wal"), 1, 0, [], 100)))
    assert joined == tuple(b"".join(record[column] for record in given) for column in (1, 2, 3))
    assert fs.cut == ([stop] if stop < len(data) else [])
    lost = len(given) + 1
    assert all(synced < lost for synced in _readable_after(data, stop)), "a synced record was cut"
    return True


def _check_joined(data: bytes, expected: list[Record], stop: int, covered: int, rows_at_once: int) -> None:
    """Read short records together, as a start does; they must be the same rows."""
    joined = list(wal.read_records(data, 32, covered, rows_at_once))
    wanted = [record for record in expected if record[0] > covered]
    assert (joined[-1].stop if joined else 32) == stop
    assert [record.sequence for record in joined[-1:]] == [record[0] for record in expected[-1:]]
    rows = _rows([record for record in joined if record.sequence > covered])
    assert rows == tuple(b"".join(record[column] for record in wanted) for column in (1, 2, 3))


def _rows(records: list[wal.Record]) -> tuple[bytes, ...]:
    plain = [_plain(record) for record in records]
    return tuple(b"".join(record[column] for record in plain) for column in (1, 2, 3))


def _plain(record: wal.Record) -> Record:
    series_id, timestamp, value = record.batch
    return record.sequence, series_id.tobytes(), timestamp.tobytes(), value.tobytes()


def _readable_after(data: bytes, start: int) -> list[int]:
    """Return the synced sequence of every readable record at any offset from `start` on."""
    synced: list[int] = []
    while (start := data.find(b"OMND", start)) >= 0:
        found = read_record(data, start)
        if found is not None:
            synced.append(found[1])
        start += 1
    return synced


def repair_wal(data: bytes) -> bytes:
    """Make the checksums of header and records good, as far as their lengths let the records be found."""
    fixed = bytearray(data)
    if len(fixed) < 32:
        return data
    fixed[24:32] = _NUMBERS.pack(checksum(bytes(fixed[:24])))
    start = 32
    while start + 48 <= len(fixed) and fixed.startswith(b"OMND", start):
        sequence, size = (
            _NUMBERS.unpack_from(fixed, start + 8)[0],
            struct.unpack_from("<I", fixed, start + 28)[0],
        )
        stop = min(start + 48 + size, len(fixed))
        fixed[start + 32 : start + 40] = _NUMBERS.pack(checksum(bytes(fixed[start + 48 : stop]), sequence))
        fixed[start + 40 : start + 48] = _NUMBERS.pack(checksum(bytes(fixed[start : start + 40])))
        start = stop
    return bytes(fixed)


def _wal_target() -> Target:
    generator = np.random.default_rng(7)
    seeds = [write_wal([])]
    for count in (1, 2, 5):
        records = []
        for sequence in range(1, count + 1):
            kind, rows = 1 + sequence % 2, int(generator.integers(1, 5))
            payload = generator.bytes(24 * rows if kind == 1 else 8 + 16 * rows)
            records.append((kind, sequence, int(generator.integers(0, sequence)), payload))
        seeds.append(write_wal(records))
    named = write_names(2**52, [b"cpu,host=a usage", b"m f"])
    seeds.append(
        write_wal([(3, 1, 0, named), (1, 2, 1, generator.bytes(48)), (2, 3, 1, generator.bytes(24))])
    )
    return Target(seeds, run_wal, repair_wal, [b"OMND", b"OMENWAL1"], [wal])


# Files of names: docs/format/catalog.md.


def run_names(data: bytes) -> bool:
    """Read a file of names; it must hold what the document says, and names that are none are refused."""
    try:
        read = names.decode_file(data, "names")
    except CorruptionError:
        return False
    magic, version, count = struct.unpack_from("<8sII", data)
    assert (magic, version) == (b"OMENCAT1", 1)
    assert data[-8:] == _NUMBERS.pack(checksum(data[:-8]))
    plain = read_names(data[16:-8], count)
    assert plain is not None
    restored = catalog.Catalog()
    try:
        restored.restore(read, "names")
    except CorruptionError:
        return False
    assert (restored.first_id, restored.count) == (plain[0][0], len(plain))
    assert restored.names(0, count).keys.tobytes() == b"".join(key for _, key in plain)
    parts, _ = names.encode_file(restored.names(0, count))
    assert b"".join(bytes(part) for part in parts) == data
    return True


def repair_names(data: bytes) -> bytes:
    """Make the checksum at the end good."""
    return data[:-8] + _NUMBERS.pack(checksum(data[:-8]))


def _names_target() -> Target:
    seeds = []
    for keys in ([b"m f"], [b"cpu,host=a,region=b usage", b"cpu,host=b usage", b"a\\ b,c\\,=d\\= e\\ f"]):
        body = write_names(2**52 + 3, keys)
        seeds.append(repair_names(struct.pack("<8sII", b"OMENCAT1", 1, len(keys)) + body + bytes(8)))
    return Target(seeds, run_names, repair_names, [b"OMENCAT1", b" ", b"\\ ", b",", b"="], [names, catalog])


# Line protocol: docs/http-api.md.

SCALE = 1_000_000


def run_lines(body: bytes) -> bool:
    """Read the body of a write; it must be what the plain reader reads, or be refused as it refuses it."""
    known = catalog.Catalog()
    before = known.count
    refusal: InvalidRequestError | None = None
    try:
        batch = line_protocol.decode(body, SCALE, 77 * SCALE, known)
    except InvalidRequestError as error:
        refusal = error
    if refusal is not None:
        assert refusal.field is not None
        assert refusal.field.startswith("line ")
        assert known.count == before
        assert _is_refused(body), "refused, and the plain reader reads it"
        return False
    expected = reference_lines.read_body(body, SCALE, 77 * SCALE)
    known.mark_visible(known.count)
    given = [
        (write_key(known.name(series)), time, repr(value))
        for series, time, value in zip(*(column.tolist() for column in batch), strict=True)
    ]
    assert given == [
        (canonical_key(row.series, row.field), row.timestamp, repr(row.value)) for row in expected
    ]
    # What is known by now is found by the kernel; the answer must be the same.
    again = line_protocol.decode(body, SCALE, 77 * SCALE, known)
    assert [column.tobytes() for column in again] == [column.tobytes() for column in batch]
    return True


def _is_refused(body: bytes) -> bool:
    """Whether a line of a body, or a name in it, is wrong."""
    try:
        for row in reference_lines.read_body(body, SCALE, 77 * SCALE):
            canonical_key(row.series, row.field)
    except (reference_lines.LineError, InvalidRequestError):
        return True
    return False


def _lines_target() -> Target:
    seeds = [
        b"cpu,host=a,region=eu usage_user=1.5,usage_idle=98i 1700000000000\n",
        b"cpu,region=eu,host=b ok=true,n=18446744073709551615u\r\n# comment\n\nm f=-1e-3 5",
        b"a\\ b,c\\,d=e\\=f g\\ h=.5 0000012\nm,t=a\\\\b f=0.1234567890123456789 9\n",
        b"m f=1\n" * 5 + b"m,long_tag_name_here=a_value_of_some_length f=12345678.87654321 1600000000000\n",
    ]
    tokens = [bytes([byte]) for byte in b' ,=\\"\n\r#tTfFiue+-.0123456789\x00\xff']
    tokens += [b"true", b"FALSE", b"NaN", b"1e400", b"9223372036854775808", b"  ", b",,", b"=1,g=", b"\\ "]
    return Target(seeds, run_lines, unchanged, tokens, [line_protocol])


# The learned index: docs/format/index.md.

_INDEX_HEAD = struct.Struct("<8sII5Q5QII")
_SECTIONS = ((0, 64), (1, 4), (2, 4), (3, 24), (4, 8), (4, 8))  # which count, bytes of an element


def run_index(data: bytes) -> bool:
    """Read a learned index; its sections must be the bytes that the document says."""
    try:
        index = learned_index.decode(np.frombuffer(data, np.uint8), "index")
    except CorruptionError:
        return False
    magic, version, max_error, *rest = _INDEX_HEAD.unpack_from(data)
    binding, counts, (series_shift, block_shift) = rest[:5], rest[5:10], rest[10:]
    assert (magic, version, block_shift) == (b"OMENLIX1", 1, 13)
    assert data[-8:] == _NUMBERS.pack(checksum(data[:-8]))
    assert (index.max_error, index.series_shift) == (max_error, series_shift)
    assert index.binding == learned_index.Binding(*binding)
    start = 104
    given = (index.runs, index.series_knots, index.knots, index.pieces)
    for (count, width), section in zip(
        _SECTIONS, (*given, index.timestamp_checksums, index.value_checksums), strict=True
    ):
        start = (start + 63) // 64 * 64
        size = counts[count] * width
        assert start + size <= len(data) - 8
        assert section.tobytes() == data[start : start + size]
        start += size
    return True


def repair_index(data: bytes) -> bytes:
    """Make the checksum at the end good."""
    return data[:-8] + _NUMBERS.pack(checksum(data[:-8]))


def _index_target() -> Target:
    generator = np.random.default_rng(11)
    seeds = []
    for rows, series in ((1, 1), (300, 3), (3_000, 2)):
        ids = np.sort(generator.integers(0, series, rows))
        times = np.cumsum(generator.integers(1, 1000, rows))
        sums = (np.zeros(1, np.uint64), np.ones(1, np.uint64))
        index = learned_index.fit(ids, times, 4, learned_index.Binding(rows, 99, 12345, 4, 50), sums)
        seeds.append(b"".join(learned_index.encode(index)))
    return Target(seeds, run_index, repair_index, [b"OMENLIX1"], [learned_index])


# The manifest: docs/format/manifest.md.


def run_manifest(data: bytes) -> bool:
    """Read a manifest; it must say what JSON says."""
    try:
        decoded = manifest.decode(data, "MANIFEST")
    except CorruptionError:
        return False
    head, body = data.split(b"\n", 1)
    assert head in (b"omendb-manifest %d %016x" % (version, checksum(body)) for version in (1, 2))
    plain = json.loads(body.decode())
    assert msgspec.to_builtins(decoded) == {"catalog": [], **plain}
    assert manifest.decode(manifest.encode(decoded), "MANIFEST") == decoded
    return True


def repair_manifest(data: bytes) -> bytes:
    """Make the checksum in the first line good."""
    _, separator, body = data.partition(b"\n")
    return b"omendb-manifest 2 %016x" % checksum(body) + separator + body


def _manifest_target() -> Target:
    seeds = []
    for count in (0, 1, 3):
        segments = [
            manifest.SegmentEntry(
                *(2 * number + 1, 100, 5_000, 4, 900, "0123456789abcdef", 0, 7, -5, 10**12),
                *(number, number + 1, manifest.IndexEntry(2 * number + 2, 700, "fedcba9876543210")),
            )
            for number in range(count)
        ]
        store = "7a9f5d1e-9c5b-4d0a-a9e0-000000000000"
        files = [
            manifest.CatalogEntry(50 + n, 2**52 + 9 * n, 9, 300, "0123456789abcdef") for n in range(count)
        ]
        loaded = manifest.Manifest(9, store, True, 40, 3, 17, [0, 10**12], segments, files)
        seeds.append(manifest.encode(loaded))
    tokens = [
        b'"version"',
        b"null",
        b"true",
        b"-1",
        b"1.0",
        b"1e9",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b'"\\ud800"',
    ]
    return Target(seeds, run_manifest, repair_manifest, [*tokens, b"\xff"], [manifest])


# The record of a backup: docs/format/backup.md.


def run_backup(data: bytes) -> bool:
    """Read the record of a backup; it must say what JSON says."""
    try:
        fs: Any = OneFile(data)
        record = backup.read_record(fs, Path("backup"))
    except CorruptionError:
        return False
    head, body = data.split(b"\n", 1)
    assert head == b"omendb-backup 1 %016x" % checksum(body)
    assert msgspec.to_builtins(record) == json.loads(body.decode())
    return True


def repair_backup(data: bytes) -> bytes:
    """Make the checksum in the first line good."""
    _, separator, body = data.partition(b"\n")
    return b"omendb-backup 1 %016x" % checksum(body) + separator + body


def _backup_target() -> Target:
    files = [backup.LogFile(number, 100 * number, "0123456789abcdef") for number in (3, 4)]
    bodies = (backup.Record(9, 17, 1.75e9, 300, 2, 9_000, linked, files) for linked in (False, True))
    seeds = [repair_backup(b"\n" + msgspec.json.encode(body)) for body in bodies]
    tokens = [b'"sequence"', b"null", b"true", b"-1", b"1.0", b"1e9", b"[", b"]", b"{", b"}", b",", b"\xff"]
    return Target(seeds, run_backup, repair_backup, tokens, [backup])


# Bodies of inserts: docs/http-api.md.

Points = list[tuple[int, int, float]]


def run_body(body: bytes) -> bool:
    """Read the body of an insert: with the kernel and without it, and with Python's json."""
    outcomes = [_points(body, kernel_bytes_min) for kernel_bytes_min in (1, sys.maxsize)]
    assert repr(outcomes[0]) == repr(outcomes[1]), "the kernel reads otherwise than the general decoder"
    refused = isinstance(outcomes[0], str)
    repeated: list[str] = []
    try:
        expected = plain_points(body, repeated)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        assert refused, "accepted, and json does not"
        return False
    if refused and repeated:  # the first of two equal names may be wrong, where the last one counts for json
        return False
    assert repr(outcomes[0]) == repr(expected), "not what json reads"
    return True


def _points(body: bytes, kernel_bytes_min: int) -> Points | str:
    before, wire.KERNEL_BYTES_MIN = wire.KERNEL_BYTES_MIN, kernel_bytes_min
    try:
        batch = wire.decode_points(body)
    except InvalidRequestError as error:
        return f"{error.field}: {error}"
    finally:
        wire.KERNEL_BYTES_MIN = before
    return list(zip(*(column.tolist() for column in batch), strict=True))


def plain_points(body: bytes, repeated: list[str]) -> Points:
    """Read a body with Python's json; raise when an insert must refuse it; list names given twice."""
    data = plain_json(body, repeated)
    if isinstance(data, dict) and isinstance(data["timestamp"], list):
        if data.keys() != {"series_id", "timestamp", "value"}:
            raise ValueError("fields")
        ids, times, values = data["series_id"], data["timestamp"], data["value"]
        if not isinstance(ids, list):
            _check_point((ids, 0, 0))
            ids = [ids] * len(times)
        rows = list(zip(ids, times, values, strict=True))
    else:
        rows = []
        for point in data if isinstance(data, list) else [data]:
            if not isinstance(point, dict) or point.keys() != {"series_id", "timestamp", "value"}:
                raise ValueError("no point")
            rows.append((point["series_id"], point["timestamp"], point["value"]))
    return [_check_point(row) for row in rows]


def _check_point(row: tuple[Any, Any, Any]) -> tuple[int, int, float]:
    series_id, timestamp, value = row
    if type(series_id) is not int or type(timestamp) is not int or type(value) not in (int, float):
        raise TypeError("types")
    if not (0 <= series_id <= INT64_MAX and INT64_MIN <= timestamp <= INT64_MAX):
        raise ValueError("range")
    if abs(float(value)) == float("inf"):
        raise ValueError("not finite")
    return series_id, timestamp, float(value)


def plain_json(body: bytes, repeated: list[str]) -> Any:
    """Read JSON, strictly; of a name that is given twice the last value counts."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            repeated.extend(fields)
        return fields

    def refuse(text: str) -> Any:
        raise ValueError(text)

    def whole(text: str) -> float:
        # Python refuses to make an integer of thousands of digits; such a one is beyond float64 anyway.
        return int(text) if len(text) < 1000 else float(text)

    return json.loads(body.decode(), parse_constant=refuse, parse_int=whole, object_pairs_hook=members)


def _body_target() -> Target:
    rows = [(1, 1_700_000_000_000, 20.5), (2**63 - 1, -(2**63), -1e-3), (0, 0, 123456789012345678)]
    names = ("series_id", "timestamp", "value")
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    columns: dict[str, Any] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    forms = [objects[0], objects, columns, columns | {"series_id": 5}, objects * 8, []]
    seeds = [json.dumps(form).encode() for form in forms]
    seeds += [json.dumps(form, separators=(",", ":")).encode() for form in forms]
    tokens = [
        b'"series_id":',
        b'"timestamp":',
        b'"value":',
        b"null",
        b"true",
        b"NaN",
        b"-0",
        b"1e400",
        b"1e-400",
    ]
    tokens += [
        b"0.1",
        b"9223372036854775808",
        b"-9223372036854775809",
        b"4.9e-324",
        b"1E+2",
        b"01",
        b"\\u0076",
    ]
    tokens += [bytes([byte]) for byte in b'{}[]",:-+.eE0123456789 \n\t\x00\xff']
    return Target(seeds, run_body, unchanged, [*tokens, b"\xef\xbb\xbf", b"9" * 30, b'{"value":1}'], [wire])


def run_admin_body(body: bytes) -> bool:
    """Read the body of an administrative call: nothing, or an object of known fields."""
    repeated: list[str] = []
    try:
        fields = plain_json(body, repeated) if body else {}
    except (ValueError, RecursionError):
        fields = None
    is_object = isinstance(fields, dict)
    number = fields.get("max_error") if is_object else None
    in_range = number is None or (type(number) is int and INT64_MIN <= number <= INT64_MAX)
    try:
        decoded = wire.decode_retrain(body)
    except InvalidRequestError:
        assert repeated or not (is_object and in_range and not fields.keys() - {"max_error"})
        retrain = False
    else:
        assert is_object
        assert in_range
        assert decoded.max_error == number
        retrain = True
    try:
        wire.decode_empty(body)
    except InvalidRequestError:
        assert fields != {}
        return retrain
    assert fields == {}
    return True


def _admin_body_target() -> Target:
    seeds = [b"", b"{}", b'{"max_error": 32}', b'{"max_error":null}', b" { } "]
    tokens = [
        b'"max_error"',
        b"null",
        b"true",
        b"1e3",
        b"1.0",
        b"-",
        b"9",
        b"{",
        b"}",
        b"[",
        b",",
        b":",
        b'"',
        b"\xff",
    ]
    return Target(seeds, run_admin_body, unchanged, tokens, [wire])


# Cursors.

_CURSOR = struct.Struct("<BIqqI")
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
IDENTITY = query.make_range_query(5, 10, [1, 2]).identity


def run_cursor(data: bytes) -> bool:
    """Read a cursor: it is whole and belongs to its query, or it is refused."""
    text = data.decode("latin-1")
    try:
        after = query.decode_cursor(text, IDENTITY)
    except InvalidRequestError:
        return False
    bits = "".join(
        format(_ALPHABET.index(byte), "06b")
        for byte in data.rstrip(b"=").replace(b"+", b"-").replace(b"/", b"_")
    )
    plain = int(bits[:200], 2).to_bytes(25, "big")
    version, identity, series_id, timestamp, written = _CURSOR.unpack(plain)
    assert len(bits) // 8 == 25
    assert (version, identity, written) == (1, IDENTITY, zlib.crc32(plain[:-4]))
    assert after == (series_id, timestamp)
    assert query.decode_cursor(query.encode_cursor(IDENTITY, after), IDENTITY) == after
    return True


def repair_cursor(data: bytes) -> bytes:
    """Make the checksum good."""
    text = bytes(byte for byte in data if byte in _ALPHABET)[:34].ljust(34, b"A")
    body = base64.urlsafe_b64decode(text + b"==")[:21]
    return base64.urlsafe_b64encode(body + zlib.crc32(body).to_bytes(4, "little")).rstrip(b"=")


def _cursor_target() -> Target:
    places = ((1, 5), (2, INT64_MAX), (0, INT64_MIN), (INT64_MAX, 0))
    seeds = [query.encode_cursor(IDENTITY, place).encode() for place in places]
    seeds += [query.encode_cursor(IDENTITY ^ 1, (1, 5)).encode()]
    return Target(seeds, run_cursor, repair_cursor, [b"=", b"-", b"_", b"+", b"/", b"\xe9", b" "], [query])


# Query strings.


def run_query_string(data: bytes) -> bool:
    """Read a query string as the handler does; what is accepted must be what urllib reads."""
    text = data.decode("latin-1")
    plain: dict[str, list[str]] = {}
    for name, value in urllib.parse.parse_qsl(text, keep_blank_values=True, max_num_fields=None):
        plain.setdefault(name, []).append(value)
    try:
        given = query_string.parse(text, PARAMETERS)
    except InvalidRequestError:
        assert plain.keys() - PARAMETERS or any("" in values for values in plain.values())
        return False
    assert given == plain
    try:
        asked = _ask(text)
    except InvalidRequestError:
        return False
    assert asked.start == (_number(plain["start"]) if "start" in plain else INT64_MIN)
    assert asked.end == (_number(plain["end"]) if "end" in plain else INT64_MAX)
    assert asked.limit == (_number(plain["limit"]) if "limit" in plain else None)
    if "series_id" in plain:
        numbers = {_number([one]) for one in ",".join(plain["series_id"]).split(",")}
        assert asked.series is not None
        assert asked.series.tolist() == sorted(numbers)
    else:
        assert asked.series is None
    if isinstance(asked, query.WindowQuery):
        assert asked.step == _number(plain["step"]) >= 1
        assert asked.aggregates == tuple(",".join(plain.get("agg", ["mean"])).split(","))
        assert set(asked.aggregates) <= set(AGGREGATES)
    return True


def _ask(text: str) -> query.RangeQuery | query.WindowQuery:
    question = read_question(text)
    start, end, series_id, step, _ = question.asked
    limit, cursor = question.limit, question.cursor
    if question.match is not None:
        series_id = None
    if step is None:
        return query.make_range_query(start, end, series_id, limit, cursor)
    return query.make_window_query(step, question.agg or ("mean",), start, end, series_id, limit, cursor)


def _number(texts: list[str]) -> int:
    (text,) = texts
    assert text.removeprefix("-").isascii()
    assert text.removeprefix("-").isdigit()
    return int(text)


def _query_string_target() -> Target:
    cursor = query.encode_cursor(IDENTITY, (1, 7))
    seeds = [
        b"",
        b"series_id=1&series_id=2,3&start=-5&end=1700000000000&limit=10&format=columns",
        b"start=0&end=99999&step=10&agg=mean,count&agg=stddev",
        b"end=99999&start=-7&series_id=17&format=columns&limit=3",
        b"start=0&end=99999&series_id=4&step=10&agg=mean&format=rows",
        f"start=5&end=10&series_id=1,2&cursor={cursor}".encode(),
        b"st%61rt=%31&limit=+5&step=1000",
        b"&&start=9223372036854775807&end=9223372036854775807&&",
    ]
    tokens = [name.encode() + b"=" for name in sorted(PARAMETERS)]
    tokens += [
        b"&",
        b"=",
        b"%",
        b"+",
        b",",
        b"-",
        b"0",
        b"9",
        b"%C3%A9",
        b"%00",
        b"%2",
        b";",
        b"_",
        b"%D9%A1",
        b"\xb2",
    ]
    return Target(seeds, run_query_string, unchanged, tokens, [query_string, query])


TARGETS: dict[str, Target] = {
    "wal": _wal_target(),
    "index": _index_target(),
    "names": _names_target(),
    "lines": _lines_target(),
    "manifest": _manifest_target(),
    "backup": _backup_target(),
    "body": _body_target(),
    "admin-body": _admin_body_target(),
    "cursor": _cursor_target(),
    "query-string": _query_string_target(),
}


# Running.


class Counts(NamedTuple):
    """What a run did."""

    executions: int
    accepted: int


def execute(name: str, data: bytes) -> bool:
    """Run a target on some bytes; return whether they were accepted.

    Raises
    ------
    FuzzError
        Something is wrong.
    """
    try:
        return TARGETS[name].run(data)
    except Exception as error:
        raise FuzzError(
            f"{type(error).__name__}: {error}; replay: fuzz.execute({name!r}, {data!r})"
        ) from error


def mutate(name: str, seed: int, executions: int | None = None, until: float = float("inf")) -> Counts:
    """Run a target on its seeds, and on changed ones.

    Parameters
    ----------
    name : str
        Of `TARGETS`.
    seed : int
        The same seed makes the same inputs.
    executions : int, optional
        How many; without it until the time is over.
    until : float
        `time.monotonic` at which it ends.
    """
    target = TARGETS[name]
    generator = random.Random(f"{name} {seed}")
    accepted = done = 0
    for data in target.seeds:
        execute(name, data)
    while (executions is None or done < executions) and time.monotonic() < until:
        data = change(generator, target)
        accepted += execute(name, data)
        done += 1
    return Counts(done, accepted)


def change(generator: random.Random, target: Target) -> bytes:
    """Make a new input out of a target's seeds."""
    data = bytearray(generator.choice(target.seeds))
    for _ in range(generator.choice((1, 1, 2, 3, 8))):
        at = generator.randint(0, len(data))
        kind = generator.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            data[at : at + 1] = generator.randbytes(1)
        elif kind == 2:
            del data[at : at + generator.choice((1, 2, 8, 48))]
        elif kind == 3:
            start = generator.randint(0, len(data))
            data[at:at] = data[start : start + generator.choice((1, 8, 48, 200))]
        elif kind == 4:
            number = generator.choice(
                (0, 1, -1, 2**31, INT64_MAX, INT64_MIN, generator.getrandbits(63), 2**58)
            )
            width = generator.choice((4, 8))
            data[at : at + width] = (number & (1 << 64) - 1).to_bytes(8, "little")[:width]
        elif kind == 5:
            data[at:at] = generator.choice(target.tokens)
        elif kind == 6:
            token = generator.choice(target.tokens)
            data[at : at + generator.choice((1, len(token)))] = token
        else:
            other = generator.choice(target.seeds)
            data[at:] = other[generator.randint(0, len(other)) :]
    changed = bytes(data)
    return target.repair(changed) if generator.random() < REPAIR_CHANCE else changed


def soak(seed: int, seconds: float) -> dict[str, int]:
    """Fuzz all targets for equal shares of the time; return executions and acceptances of each.

    Raises
    ------
    FuzzError
    """
    print(f"fuzz seed {seed}", flush=True)
    counts: dict[str, int] = {}
    for name in TARGETS:
        run = mutate(name, seed, until=time.monotonic() + seconds / len(TARGETS))
        counts[f"{name}_executions"] = run.executions
        counts[f"{name}_accepted"] = run.accepted
    counts["executions"] = sum(run for name, run in counts.items() if name.endswith("_executions"))
    return counts


def main(arguments: list[str]) -> int:
    """Fuzz one target with atheris; the arguments after its name are libFuzzer's."""
    if len(arguments) < 2 or arguments[1] not in TARGETS:
        print(f"usage: python -m tests.faults.fuzz {{{','.join(TARGETS)}}} [-max_total_time=60 ...]")
        return 2
    import atheris  # on PyPI for Python 3.11 only

    logging.disable(logging.CRITICAL)

    name = arguments[1]
    target = TARGETS[name]
    for module in target.modules:
        # The functions in place: kernels must not be instrumented, and whole modules would take them along.
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                atheris.instrument_func(function)  # pyright: ignore[reportAttributeAccessIssue]

    def change_by_coverage(data: bytes, max_size: int, seed: int) -> bytes:
        if len(data) < 2:  # libFuzzer begins with nothing
            return target.seeds[seed % len(target.seeds)]
        changed = bytes(atheris.Mutate(data, len(data) + 64))
        if seed % 2:
            changed = target.repair(changed)
        return changed[:max_size]

    def run(data: bytes) -> None:
        execute(name, data)

    for seed in target.seeds:
        execute(name, seed)
    atheris.Setup([arguments[0], *arguments[2:]], run, custom_mutator=change_by_coverage)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
