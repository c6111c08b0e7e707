"""The catalog: ids for names, names for ids, on disk before any point that needs them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from omendb.config import Settings
from omendb.errors import CorruptionError, DiskFullError, InvalidRequestError
from omendb.executor import Scan
from omendb.model import make_batch
from omendb.query import make_range_query
from omendb.series import FIRST_ID, IDS_MAX, Name, parse_selector
from omendb.storage import backup, filenames, names, repair
from omendb.storage.catalog import Catalog
from omendb.storage.fs import OsFileSystem
from omendb.storage.recovery import open_store
from omendb.storage.restore import restore
from omendb.storage.verify import verify

FS = OsFileSystem()


def keys_of(count: int, first: int = 0) -> list[bytes]:
    return [b"m,host=h%05d,rack=r%d f" % (n, n % 7) for n in range(first, first + count)]


def give(catalog: Catalog, keys: list[bytes]) -> list[int]:
    return catalog.give_ids(keys, keys).tolist()


def insert(store, keys: list[bytes], time: int = 1) -> list[int]:
    ids = give(store.catalog, keys)
    batch = make_batch(ids, [time] * len(ids), [float(n) for n in range(len(ids))])
    sequence = store.append(batch)
    store.sync()
    store.apply(batch, sequence)
    return ids


def reopened(directory):
    return open_store(FS, directory, Settings())[0]


def select(catalog: Catalog, *texts: str) -> list[int]:
    return [
        series - FIRST_ID for series in catalog.select(parse_selector(t, "match[]") for t in texts).tolist()
    ]


# In memory.


def test_ids_are_given_in_order_and_stay() -> None:
    catalog = Catalog()

    assert give(catalog, [b"a f", b"b f", b"a f"]) == [FIRST_ID, FIRST_ID + 1, FIRST_ID]
    assert give(catalog, [b"c f", b"a f"]) == [FIRST_ID + 2, FIRST_ID]
    assert catalog.next_id == FIRST_ID + 3


def test_many_names_with_growth_between() -> None:
    catalog = Catalog()
    keys = keys_of(5_000)

    for start in range(0, len(keys), 617):
        give(catalog, keys[start : start + 617])

    assert give(catalog, keys[::-1]) == [FIRST_ID + n for n in range(4_999, -1, -1)]
    assert catalog.count == 5_000
    catalog.mark_logged(5_000)
    catalog.mark_visible(5_000)
    assert catalog.name(FIRST_ID + 4_321) == Name("m", (("host", "h04321"), ("rack", "r2")), "f")


def test_other_ways_to_write_a_name_are_remembered() -> None:
    catalog = Catalog()
    ids = catalog.give_ids([b"m,a=1,b=2 f", b"m,a=1,b=2 f"], [b"m,b=2,a=1 f", b"m,a=1,b=2 f"])
    again = catalog.give_ids([b"m,a=1,b=2 f"], [b"m,b=2,a=1 f"])

    assert ids.tolist() == [FIRST_ID, FIRST_ID]
    assert again.tolist() == [FIRST_ID]
    assert catalog.count == 1
    assert catalog._aliases.count == 1


def test_names_are_shown_only_when_they_are_durable() -> None:
    catalog = Catalog()
    give(catalog, [b"a f", b"b f"])
    catalog.mark_logged(2)
    catalog.mark_visible(1)

    assert select(catalog, '{__field__="f"}') == [0]
    assert catalog.all_ids().tolist() == [FIRST_ID]
    with pytest.raises(KeyError):
        catalog.name(FIRST_ID + 1)


def test_too_many_series_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("omendb.storage.catalog.IDS_MAX", 2)
    catalog = Catalog()
    give(catalog, [b"a f"])

    with pytest.raises(InvalidRequestError, match="no more can be named"):
        give(catalog, [b"b f", b"c f"])

    assert catalog.count == 1
    assert give(catalog, [b"b f", b"a f"]) == [FIRST_ID + 1, FIRST_ID]


def test_ids_end_where_the_reserved_ones_end(tmp_path) -> None:
    """Those behind belong to users, and a log that names them could not be read."""
    store = reopened(tmp_path)
    last = FIRST_ID + IDS_MAX - 1
    batch = make_batch([last - 1], [1], [1.0])
    store.apply(batch, store.append(batch))
    store.sync()
    store.release()
    store = reopened(tmp_path)

    with pytest.raises(InvalidRequestError, match="no more can be named"):
        give(store.catalog, [b"a f", b"b f"])

    assert insert(store, [b"a f"]) == [last]
    with pytest.raises(InvalidRequestError, match="no more can be named"):
        give(store.catalog, [b"b f"])
    store.release()
    store = reopened(tmp_path)
    assert give(store.catalog, [b"a f"]) == [last]
    store.release()


def test_ids_are_given_once_to_threads_that_ask_at_once() -> None:
    catalog = Catalog()
    given: list[list[int]] = [[] for _ in range(4)]

    def ask(number: int) -> None:
        order = np.random.default_rng(number).permutation(2_000)
        keys = keys_of(2_000)
        for start in range(0, 2_000, 50):
            chosen = order[start : start + 50]
            ids = give(catalog, [keys[n] for n in chosen])
            given[number] += [series * 2_000 + int(n) for series, n in zip(ids, chosen, strict=True)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert catalog.count == 2_000
    assert len(given[0]) == 2_000
    assert all(sorted(one) == sorted(given[0]) for one in given)


# Selecting.


@pytest.fixture
def catalog() -> Catalog:
    catalog = Catalog()
    give(
        catalog,
        [
            *(b"cpu,host=a usage", b"cpu,host=b usage", b"cpu,host=a,dc=x idle", b"cpu_usage,host=a percent"),
            *(b"mem used", b"cpu usage_percent", b"m\\ 1,t\\,2=v\\=3 f\\ 4"),
        ],
    )
    catalog.mark_logged(7)
    catalog.mark_visible(7)
    return catalog


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["cpu"], [0, 1, 2, 5]),
        (["cpu_usage"], [0, 1, 3]),  # a name, and a measurement
        (['{__name__="cpu_usage"}'], [0, 1]),
        (['{__name__="cpu_usage_percent"}'], [3, 5]),
        (['{__measurement__="cpu",__field__="usage"}'], [0, 1]),
        (['cpu{host="a"}'], [0, 2]),
        (['{host="a"}'], [0, 2, 3]),
        (['{host="a",dc="x"}'], [2]),
        (['{host="x"}', '{dc="a"}', '{hos="ta"}'], []),
        (["mem", 'cpu{host="b"}', "mem"], [1, 4]),
        (['{__measurement__="m 1"}'], [6]),
        (['{__name__="m 1_f 4"}'], [6]),
        (["nothing"], []),
        (["_"], []),
    ],
)
def test_selects_by_equality(catalog, texts, expected) -> None:
    assert select(catalog, *texts) == expected


def test_new_names_are_found_between_old_ones(catalog) -> None:
    for number in range(60):
        give(catalog, [b"cpu,host=a f%d" % number, b"other%d f" % number])
        catalog.mark_logged(catalog.count)
        catalog.mark_visible(catalog.count)
        assert len(select(catalog, 'cpu{host="a"}')) == 3 + number
    assert len(catalog._index._levels) < 8


def test_a_look_up_that_another_one_overtakes_repeats_nothing() -> None:
    catalog = Catalog()
    give(catalog, keys_of(40))
    catalog.mark_visible(10)

    class Overtaken:
        """The index's lock; between a look-up's count and its turn another look-up sees more names."""

        def __enter__(self) -> None:
            catalog._index_lock = lock
            catalog.mark_visible(40)
            assert select(catalog, "m") == list(range(40))
            lock.acquire()

        def __exit__(self, *_error: object) -> None:
            lock.release()

    lock, catalog._index_lock = catalog._index_lock, Overtaken()

    assert set(range(10)) <= set(select(catalog, "m"))
    assert select(catalog, "m") == list(range(40))
    assert catalog.unindexed == 0


def test_equal_hashes_do_not_make_equal_labels(catalog, monkeypatch) -> None:
    """Hashes find candidates only: here all are equal."""
    monkeypatch.setattr("omendb.jit.labels.hash_piece", lambda *_: 5)

    select(catalog, "cpu")
    level = catalog._index._levels[0]
    same = np.full(len(level.hashes), 5)
    catalog._index._levels[0] = level._replace(hashes=same, entries=np.sort(level.entries))

    assert select(catalog, 'cpu{host="a"}') == [0, 2]


# On disk.


def test_a_killed_store_has_its_names(tmp_path) -> None:
    store = reopened(tmp_path)
    insert(store, keys_of(10))
    insert(store, keys_of(10, 5), time=2)
    store.release()

    store = reopened(tmp_path)

    assert store.catalog.count == store.catalog.visible == store.catalog.logged == 15
    assert give(store.catalog, keys_of(15)) == [FIRST_ID + n for n in range(15)]
    assert give(store.catalog, [b"new f"]) == [FIRST_ID + 15]
    rows = Scan(store.snapshot, make_range_query()).columns()
    assert rows.series_id.max() == FIRST_ID + 14
    store.release()


def test_a_flush_files_the_names_and_the_log_can_go(tmp_path) -> None:
    store = reopened(tmp_path)
    insert(store, keys_of(10))
    store.close()
    assert [n for n in FS.names(tmp_path / "data") if n.endswith(".cat")] == ["00000001.cat"]
    store = reopened(tmp_path)
    assert store.catalog.count == store.catalog.filed == 10
    insert(store, keys_of(3, 10))
    store.close()

    store = reopened(tmp_path)

    assert give(store.catalog, keys_of(13)) == [FIRST_ID + n for n in range(13)]
    store.release()
    report = verify(FS, tmp_path)
    assert (report.findings, report.warnings) == ([], [])


def test_files_of_names_are_merged_and_removed(tmp_path) -> None:
    store = reopened(tmp_path)
    written = 0
    for number in range(40):
        before = {entry.number for entry in store._manifest.catalog}
        insert(store, keys_of(5, 5 * number), time=number)
        store.freeze()
        store.flush_oldest()
        written += sum(e.count for e in store._manifest.catalog if e.number not in before)
        there = [n for n in FS.names(tmp_path / "data") if n.endswith(".cat")]
        assert there == sorted(filenames.catalog_name(e.number) for e in store._manifest.catalog)
        assert len(there) <= 7

    assert written < 8 * 200
    entries = store._manifest.catalog
    assert [e.first_id for e in entries] == [
        FIRST_ID + sum(e.count for e in entries[:n]) for n in range(len(entries))
    ]
    store.release()
    store = reopened(tmp_path)
    assert give(store.catalog, keys_of(200)) == [FIRST_ID + n for n in range(200)]
    store.release()


def test_names_without_points_survive_too(tmp_path) -> None:
    """The points may find no room behind the names that they brought."""
    store = reopened(tmp_path)
    insert(store, keys_of(2))
    give(store.catalog, keys_of(4))
    store._log_names()
    store.sync()
    store.close()

    store = reopened(tmp_path)

    assert store.catalog.count == 4
    ids = insert(store, [b"new f"])
    assert ids == [FIRST_ID + 4]
    store.close()
    store = reopened(tmp_path)
    assert give(store.catalog, [*keys_of(4), b"new f"]) == [FIRST_ID + n for n in range(5)]
    store.release()
    assert verify(FS, tmp_path).findings == []


def test_names_that_found_no_room_come_with_the_next_points(tmp_path, monkeypatch) -> None:
    store = reopened(tmp_path)
    insert(store, keys_of(1))
    append = store.wal.append_names

    def full(_names):
        raise DiskFullError("no space")

    monkeypatch.setattr(store.wal, "append_names", full)
    with pytest.raises(DiskFullError):
        insert(store, keys_of(3))
    assert select(store.catalog, "m") == [0]
    monkeypatch.setattr(store.wal, "append_names", append)

    insert(store, [b"other f"])
    store.release()

    store = reopened(tmp_path)
    assert give(store.catalog, [*keys_of(3), b"other f"]) == [FIRST_ID + n for n in range(4)]
    store.release()


def test_many_names_take_several_records(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("omendb.storage.store.WAL_NAMES_BYTES_MAX", 100)
    store = reopened(tmp_path)
    insert(store, [*keys_of(20), b"m" * 500 + b" f", b"short f"])
    store.release()

    store, found = open_store(FS, tmp_path, Settings())

    assert found.replayed_records > 6
    assert store.catalog.count == 22
    store.release()


def test_ids_that_were_in_use_before_they_were_reserved_are_not_given(tmp_path) -> None:
    store = reopened(tmp_path)
    batch = make_batch([FIRST_ID + 7, FIRST_ID + IDS_MAX + 5, 2**63 - 1, 3], [1] * 4, [1.0] * 4)
    store.apply(batch, store.append(batch))
    store.close()
    store = reopened(tmp_path)
    batch = make_batch([FIRST_ID + 9], [1], [1.0])
    store.apply(batch, store.append(batch))
    store.sync()
    store.release()

    store = reopened(tmp_path)

    assert insert(store, [b"a f"]) == [FIRST_ID + 10]
    store.close()
    store = reopened(tmp_path)
    assert give(store.catalog, [b"a f", b"b f"]) == [FIRST_ID + 10, FIRST_ID + 11]
    store.release()


def test_points_without_a_name_stop_the_start(tmp_path) -> None:
    store = reopened(tmp_path)
    insert(store, keys_of(2))
    batch = make_batch([FIRST_ID + 2], [1], [1.0])
    store.wal.append(batch)
    store.sync()
    store.release()

    with pytest.raises(CorruptionError, match=rf"series {FIRST_ID + 2} has points, but no name"):
        reopened(tmp_path)


# Damage, backup, repair.


def test_a_backup_has_the_names(tmp_path) -> None:
    store = reopened(tmp_path / "db")
    insert(store, keys_of(4))
    store.freeze()
    store.flush_oldest()
    insert(store, keys_of(2, 4))
    store.backup(tmp_path / "backup", 1.0, check=True)
    insert(store, keys_of(2, 6))
    store.release()

    restore(FS, tmp_path / "backup", tmp_path / "restored")

    store = reopened(tmp_path / "restored")
    assert store.catalog.count == 6
    assert give(store.catalog, keys_of(6)) == [FIRST_ID + n for n in range(6)]
    store.release()
    assert backup.read_record(FS, tmp_path / "backup") is not None


@pytest.fixture
def filed(tmp_path):
    store = reopened(tmp_path)
    insert(store, keys_of(4))
    store.freeze()
    store.flush_oldest()
    insert(store, keys_of(3, 2), time=2)
    store.release()
    return tmp_path


def _damage(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["flip", "cut", "missing", "other"])
def test_damaged_names_stop_the_start_and_are_repaired(filed, kind) -> None:
    path = filed / "data" / "00000001.cat"
    if kind == "flip":
        _damage(path)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "missing":
        path.unlink()
    else:
        other, _ = names.encode_file(repair.made_names(FIRST_ID, 4, {}))
        path.write_bytes(b"".join(bytes(part) for part in other))
    with pytest.raises(CorruptionError, match=r"00000001\.cat"):
        reopened(filed)
    assert [finding.path for finding in verify(FS, filed).findings] == [str(path)]

    lock = FS.lock(filed / filenames.LOCK)
    plan = repair.examine(FS, filed)
    assert [damage.path for damage in plan.catalog] == [str(path)]
    repair.carry_out(FS, filed, plan)
    assert repair.examine(FS, filed).is_empty
    lock.close()

    assert verify(FS, filed).findings == []
    store = reopened(filed)
    assert store.catalog.count == 5
    assert store.catalog.name(FIRST_ID) == Name("lost", (("series_id", str(FIRST_ID)),), "value")
    # The log has the name of the last one.
    assert give(store.catalog, keys_of(1, 4)) == [FIRST_ID + 4]
    assert Scan(store.snapshot, make_range_query()).count() == 7
    assert (filed / "quarantine" / "00000001.cat").exists() == (kind != "missing")
    store.release()


def test_names_that_the_log_still_has_are_not_lost(tmp_path) -> None:
    store = reopened(tmp_path)
    insert(store, keys_of(2))
    store.freeze()
    insert(store, keys_of(2, 2))
    store.flush_oldest()  # files all four names; two of them are still in the log
    store.release()
    _damage(tmp_path / "data" / "00000001.cat")

    lock = FS.lock(tmp_path / filenames.LOCK)
    repair.carry_out(FS, tmp_path, repair.examine(FS, tmp_path))
    lock.close()

    store = reopened(tmp_path)
    assert [store.catalog.name(FIRST_ID + n).measurement for n in range(4)] == ["lost", "lost", "m", "m"]
    store.release()


def test_a_catalog_of_a_later_version_is_not_taken_for_damage(filed) -> None:
    from omendb.storage import format as layouts

    path = filed / "data" / "00000001.cat"
    data = bytearray(path.read_bytes())
    data[8] = layouts.CATALOG_VERSION + 1
    path.write_bytes(data)

    with pytest.raises(CorruptionError, match="catalog version 2 is not known"):
        repair.examine(FS, filed)


def test_names_that_contradict_others_are_damage(tmp_path) -> None:
    catalog = Catalog()
    give(catalog, [b"a f", b"b f"])

    def part(first: int, *keys: bytes) -> names.Names:
        text = np.frombuffer(b"".join(keys), np.uint8)
        return names.Names(FIRST_ID + first, np.array([len(key) for key in keys], np.uint32), text)

    catalog.restore(part(0, b"a f"), "log")
    catalog.restore(part(1, b"b f", b"c f"), "log")
    assert catalog.count == 3
    for wrong, message in (
        (part(1, b"x f"), "have changed"),
        (part(1, b"bb f"), "have changed"),
        (part(4, b"d f"), "follow those up to"),
        (part(3, b"no-field"), "cannot be read"),
    ):
        with pytest.raises(CorruptionError, match=message):
            catalog.restore(wrong, "log")
    assert catalog.count == 3
