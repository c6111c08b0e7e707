"""Damage of every kind to every file ends in right answers, in a line that says what was mended, or in an
error that names the file (P3, P4). The long form: ``soak`` of `tests.faults.damage`, in ``make soak``.
"""

from __future__ import annotations

import itertools
import logging
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from omendb.storage import format, manifest  # noqa: A004
from omendb.storage.segment import Segment
from tests.faults.damage import (
    CUT,
    MENDED,
    REFUSED,
    RIGHT,
    Victim,
    WrongAnswerError,
    flipped,
    make_victim,
    random_damage,
)

SEED = 20


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Thousands of starts would log a line or two each."""
    logger = logging.getLogger("omendb")
    logger.propagate = False
    yield
    logger.propagate = True


@pytest.fixture(scope="module", params=["plain", "compressed"])
def small(tmp_path_factory, request) -> Victim:
    """A store of some KB a file."""
    directory = tmp_path_factory.mktemp("small") / "db"
    return make_victim(directory, 40, SEED, compressed=request.param == "compressed")


def first(victim: Victim, suffix: str) -> str:
    """Name the smallest file of a kind; not the last of the log."""
    names = [name for name in victim.names(suffix) if name != victim.last_log]
    return min(names, key=lambda name: len(victim.files[name]))


def test_the_victim_is_whole_and_has_files_of_all_kinds(small) -> None:
    assert small.damage({}, "nothing") == RIGHT
    assert len(small.names(".parquet")) > 3
    assert len(small.names(".wal")) > 1
    assert len(small.table(0).value) > 60
    assert not small.table(1).same(small.table(0))


@pytest.mark.parametrize("suffix", ["MANIFEST", ".parquet", ".lix", ".wal"])
def test_every_flipped_byte_of_a_small_file(small, suffix) -> None:
    name = first(small, suffix)
    content = small.files[name]
    rng = np.random.default_rng(SEED)
    for offset in range(len(content)):
        mask = 1 << int(rng.integers(8))

        outcome = small.damage({name: flipped(content, offset, mask)}, f"bit {mask} of byte {offset}")

        # Damage of a file that is not the log's last is never mistaken for a torn tail.
        assert outcome == (MENDED if suffix == ".lix" else REFUSED)


def test_every_flipped_byte_of_the_last_log_file(small) -> None:
    content = small.files[small.last_log]
    outcomes = [
        small.damage({small.last_log: flipped(content, offset)}, f"byte {offset}")
        for offset in range(len(content))
    ]

    start = small.ends[-2]
    assert set(outcomes[:start]) == {REFUSED}
    assert set(outcomes[start:]) == {CUT}


@pytest.mark.parametrize("suffix", ["MANIFEST", ".parquet", ".lix", ".wal"])
def test_every_truncation_of_a_small_file(small, suffix) -> None:
    name = first(small, suffix)
    content = small.files[name]
    for size in range(len(content)):
        outcome = small.damage({name: content[:size]}, f"cut at {size}")
        assert outcome == (MENDED if suffix == ".lix" else REFUSED)


def test_every_truncation_of_the_last_log_file(small) -> None:
    content = small.files[small.last_log]
    for size in range(len(content)):
        outcome = small.damage({small.last_log: content[:size]}, f"cut at {size}")
        lost = sum(end > size for end in small.ends)
        assert outcome == (CUT if lost else RIGHT)


@pytest.mark.parametrize("suffix", ["MANIFEST", ".parquet", ".lix", ".wal"])
@pytest.mark.parametrize("garbage", [b"\0", b"OMND", bytes(5_000), b"PAR1" * 30])
def test_appended_garbage(small, suffix, garbage) -> None:
    for name in small.names(suffix):
        outcome = small.damage({name: small.files[name] + garbage}, f"{garbage[:4]!r} behind {name}")

        expected = {".lix": MENDED, ".wal": MENDED if name == small.last_log else REFUSED}
        assert outcome == expected.get(suffix, REFUSED)


def test_swapped_and_missing_files(small) -> None:
    for suffix in (".parquet", ".lix", ".wal"):
        names = small.names(suffix)
        for left, right in itertools.pairwise(names):
            changes = {left: small.files[right], right: small.files[left]}
            outcome = small.damage(changes, f"{left} and {right} swapped")
            assert outcome == (MENDED if suffix == ".lix" else REFUSED)
        for name in names:
            if name != small.last_log:
                outcome = small.damage({name: None}, f"{name} missing")
                assert outcome == (MENDED if suffix == ".lix" else REFUSED)
    assert small.damage({"MANIFEST": None}, "no manifest") == REFUSED


def test_random_damage_to_stores_of_several_sizes(tmp_path) -> None:
    rng = np.random.default_rng(SEED)
    for number, (rows, times) in enumerate([(400, 200), (100_000, 40)]):
        victim = make_victim(tmp_path / str(number), rows, SEED + number, records=30)
        for _ in range(times):
            random_damage(victim, rng)
        assert victim.counts[REFUSED] > times // 4
        assert victim.counts[MENDED] > 0
    assert sum(map(len, victim.files.values())) > 3_000_000


@pytest.mark.parametrize("place", ["head", "middle", "tail"])
def test_flips_in_a_log_of_several_megabytes(tmp_path_factory, place) -> None:
    victim = make_victim(tmp_path_factory.mktemp("log") / "db", 60_000, SEED, records=60, series=2)
    name = max(victim.names(".wal"), key=lambda name: len(victim.files[name]))
    content = victim.files[name]
    start = {"head": 0, "middle": len(content) // 2, "tail": len(content) - 200}[place]
    rng = np.random.default_rng(SEED)

    outcomes = {
        victim.damage({name: flipped(content, start + int(offset))}, f"{offset}")
        for offset in rng.integers(0, 200, 6)
    }

    assert outcomes <= ({REFUSED, CUT} if name == victim.last_log and place == "tail" else {REFUSED})


# The tester is tested: checks that are left out must be noticed.


def noticed(victim: Victim, suffix: str) -> bool:
    name = victim.names(suffix)[-1]
    content = victim.files[name]
    try:
        for offset in range(0, len(content), 3):
            victim.damage({name: flipped(content, offset, 0x40)}, f"byte {offset}")
    except WrongAnswerError:
        return True
    return False


def test_rows_that_are_not_checked_are_noticed(small, monkeypatch) -> None:
    def unchecked(self, start, stop) -> None:
        self.verified[start:stop] = 1

    monkeypatch.setattr(Segment, "_verify_blocks", unchecked)
    agreeable = SimpleNamespace(checksum=lambda _data: mock.ANY, BLOCK_SHIFT=format.BLOCK_SHIFT)
    monkeypatch.setattr("omendb.storage.segment_pages.format", agreeable)

    assert noticed(small, ".parquet")


def test_a_log_that_is_not_checked_is_noticed(small, monkeypatch) -> None:
    monkeypatch.setattr("omendb.storage.wal._check_tail", lambda *_args, **_options: None)
    name = small.last_log

    with pytest.raises(WrongAnswerError):
        small.damage({name: flipped(small.files[name], 40)}, "first record")


def test_a_manifest_that_is_not_checked_is_noticed(small, monkeypatch) -> None:
    def decode(data, path):
        return manifest._decoder.decode(data.partition(b"\n")[2])

    monkeypatch.setattr(manifest, "decode", decode)
    content = small.files["MANIFEST"]
    at = content.index(b'"store": "') + 12

    with pytest.raises(WrongAnswerError):
        small.damage({"MANIFEST": flipped(content, at)}, "the identity")


def test_an_index_that_is_mended_without_a_word_is_noticed(small, monkeypatch) -> None:
    monkeypatch.setattr("omendb.storage.recovery.logger", logging.getLogger("elsewhere"))

    assert noticed(small, ".lix")
