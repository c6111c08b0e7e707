"""Nothing that reads bytes crashes, raises what it does not declare, or reads what is not there."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from omendb import query
from omendb.errors import CorruptionError
from omendb.server import line_protocol, query_string, wire
from omendb.storage import backup, catalog, learned_index, manifest, names, wal
from tests.faults import fuzz

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 20_263
EXECUTIONS = 5_000
ATHERIS_RUNS = 8_000
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_changed_inputs_are_read_right_or_refused(name: str) -> None:
    counts = fuzz.mutate(name, SEED, EXECUTIONS)

    # Both are worth nothing if they never happen.
    assert 20 < counts.accepted < counts.executions - 20


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_random_bytes_are_read_right_or_refused(name: str) -> None:
    generator = np.random.default_rng(SEED)
    for size in generator.integers(0, 200, 500).tolist():
        fuzz.execute(name, generator.bytes(size))


def test_the_same_seed_makes_the_same_run() -> None:
    assert fuzz.mutate("wal", 1, 500) == fuzz.mutate("wal", 1, 500)


@pytest.mark.parametrize("name", ["wal", "query-string"])
def test_coverage_guided(name: str, tmp_path: Path) -> None:
    if sys.version_info >= (3, 12) or platform.machine() != "x86_64":
        pytest.skip("atheris has no wheel for this Python")
    if find_spec("atheris") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("atheris is not installed")
        pytest.skip("atheris is not installed")
    # libFuzzer counts the peak of the process, and that begins with the one of whoever started it.
    own_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    limits = (
        f"-runs={ATHERIS_RUNS}",
        f"-seed={SEED}",
        "-max_len=4096",
        f"-artifact_prefix={tmp_path}/",
        f"-rss_limit_mb={own_mib + 2_048}",
    )

    run = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", name, *limits],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert f"Done {ATHERIS_RUNS} runs" in run.stderr


# The fuzzer is fuzzed: each of these bugs must be found.


def planted_cut_of_synced_records(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wal, "_check_tail", lambda *arguments, **options: None)


def planted_row_lost(patch: pytest.MonkeyPatch) -> None:
    whole = wal._read_record

    def without_first_row(data: bytes, start: int) -> wal.Record | None:
        record = whole(data, start)
        if record is None or len(record.batch.value) < 4:
            return record
        return record._replace(batch=wal.Batch(*(column[1:] for column in record.batch)))

    patch.setattr(wal, "_read_record", without_first_row)


def planted_index_section_out_of_place(patch: pytest.MonkeyPatch) -> None:
    decode = learned_index.decode

    def shifted(data: Any, path: str) -> learned_index.LearnedIndex:
        index = decode(data, path)
        return replace(index, pieces=index.pieces[1:])

    patch.setattr(learned_index, "decode", shifted)


def planted_manifest_number(patch: pytest.MonkeyPatch) -> None:
    decode = manifest.decode

    def off_by_one(data: bytes, path: str) -> manifest.Manifest:
        decoded = decode(data, path)
        return msgspec.structs.replace(decoded, next_number=decoded.next_number + 1)

    patch.setattr(manifest, "decode", off_by_one)


def planted_manifest_error(patch: pytest.MonkeyPatch) -> None:
    decode = manifest.decode

    def undeclared(data: bytes, path: str) -> manifest.Manifest:
        try:
            return decode(data, path)
        except CorruptionError as error:
            raise KeyError(path) from error

    patch.setattr(manifest, "decode", undeclared)


def planted_last_bit_of_a_value(patch: pytest.MonkeyPatch) -> None:
    parse = wire._from_kernel

    def next_value(body: bytes) -> wire.Batch | None:
        batch = parse(body)
        return batch if batch is None else batch._replace(value=np.nextafter(batch.value, 0))

    patch.setattr(wire, "_from_kernel", next_value)


def planted_unknown_field_accepted(patch: pytest.MonkeyPatch) -> None:
    loose = msgspec.defstruct("Loose", [("max_error", int | None, None)])
    patch.setattr(wire, "_decode_retrain", msgspec.json.Decoder(loose).decode)


def planted_cursor_of_another_query(patch: pytest.MonkeyPatch) -> None:
    def any_owner(cursor: str, identity: int) -> tuple[int, int]:
        return decode(cursor, identity ^ 1 if cursor == foreign else identity)

    decode = query.decode_cursor
    foreign = query.encode_cursor(fuzz.IDENTITY ^ 1, (1, 5))
    patch.setattr(query, "decode_cursor", any_owner)


def planted_integers_with_spaces(patch: pytest.MonkeyPatch) -> None:
    strict = query_string.to_int64

    def lenient(text: str, name: str) -> int:
        return strict(text.strip(), name)

    patch.setattr(query_string, "to_int64", lenient)


def planted_name_of_another_series(patch: pytest.MonkeyPatch) -> None:
    give_ids = catalog.Catalog.give_ids

    def swapped(self: catalog.Catalog, keys: list[bytes], written: list[bytes]) -> np.ndarray:
        return give_ids(self, keys, written)[::-1]

    patch.setattr(catalog.Catalog, "give_ids", swapped)


def planted_last_bit_of_an_awkward_value(patch: pytest.MonkeyPatch) -> None:
    read = line_protocol._read_value
    patch.setattr(line_protocol, "_read_value", lambda text, field: float(np.nextafter(read(text, field), 9)))


def planted_names_one_id_late(patch: pytest.MonkeyPatch) -> None:
    decode = names.decode_file

    def late(data: bytes, path: str) -> names.Names:
        decoded = decode(data, path)
        return names.Names(decoded.first_id + 1, decoded.lengths, decoded.keys)

    patch.setattr(names, "decode_file", late)


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("wal", planted_cut_of_synced_records),
        ("wal", planted_row_lost),
        ("index", planted_index_section_out_of_place),
        ("manifest", planted_manifest_number),
        ("manifest", planted_manifest_error),
        ("body", planted_last_bit_of_a_value),
        ("admin-body", planted_unknown_field_accepted),
        ("names", planted_names_one_id_late),
        ("lines", planted_name_of_another_series),
        ("lines", planted_last_bit_of_an_awkward_value),
        ("cursor", planted_cursor_of_another_query),
        ("query-string", planted_integers_with_spaces),
    ],
)
def test_finds_planted_bugs(
    name: str, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)

    with pytest.raises(fuzz.FuzzError, match="replay"):
        fuzz.mutate(name, SEED, 20_000)


# What it found.


@pytest.mark.parametrize(("kind", "rows"), [(0, 1), (3, 1), (4, 1), (1, 0), (2, 0)])
def test_a_record_of_an_unknown_type_or_without_rows_is_not_read(kind: int, rows: int) -> None:
    data = fuzz.write_wal(
        [(1, 1, 0, bytes(24)), (2 if kind == 2 else 1, 2, 1, bytes(8 * (kind == 2) + 24 * rows))]
    )
    changed = bytearray(data)
    start = 32 + 48 + 24
    changed[start + 4] = kind

    records = list(wal.read_records(fuzz.repair_wal(bytes(changed)), 32))

    assert [record.sequence for record in records] == [1]


def test_an_index_whose_counts_overflow_is_damaged() -> None:
    data = bytearray(fuzz.TARGETS["index"].seeds[0])
    data[80:88] = ((2**64 - 2**60) // 3).to_bytes(8, "little")  # pieces, of 3 words each

    with pytest.raises(CorruptionError, match="beyond the end"):
        learned_index.decode(np.frombuffer(fuzz.repair_index(bytes(data)), np.uint8), "index")


def test_a_manifest_that_is_not_utf_8_is_damaged() -> None:
    data = fuzz.TARGETS["manifest"].seeds[0].replace(b"store", b"st\xffre")

    with pytest.raises(CorruptionError, match="utf-8"):
        manifest.decode(fuzz.repair_manifest(data), "MANIFEST")


def test_a_record_of_a_backup_that_is_not_utf_8_is_damaged() -> None:
    data = fuzz.TARGETS["backup"].seeds[0].replace(b"rows", b"r\xffws")
    fs: Any = fuzz.OneFile(fuzz.repair_backup(data))

    with pytest.raises(CorruptionError, match="utf-8"):
        backup.read_record(fs, Path("backup"))


def test_a_sequence_beyond_int64_is_missing_records_however_it_is_read() -> None:
    data = fuzz.write_wal([(1, 2**63 + 1, 0, bytes(24))])
    fs: Any = fuzz.OneFile(data)

    for rows_at_once in (1, 100):
        with pytest.raises(CorruptionError, match="records are missing"):
            list(wal.replay(fs, Path("wal"), 1, 0, [], rows_at_once))
