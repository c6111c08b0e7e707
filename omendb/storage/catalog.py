"""The catalog: which named series has which id, in both directions.

Ids are given one after the other and never taken back or used again. A name passes through four states,
and each holds for all names up to some count: *given* (a request may carry its id), *logged* (written to the
log, before any point that uses it), *visible* (durable, and part of answers), *filed* (in a catalog file that
the manifest names, so that the log is not needed for it any more).

Memory for a series: its key, 8 bytes, and 16 to 32 of the hash table; 12 for each label once labels have been
asked for. Arrays grow by doubling, and what is not used yet is not resident.

Thread safety: `find` may run in any thread beside everything else, without a lock. The rest takes locks of
its own; `mark_logged` and `mark_visible` belong to the thread that inserts.
"""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from omendb.errors import CorruptionError, InvalidRequestError
from omendb.jit import keys as key_tables
from omendb.jit import labels
from omendb.jit.keys import Keys
from omendb.series import (
    FIELD_LABEL,
    FIRST_ID,
    IDS_MAX,
    MEASUREMENT_LABEL,
    NAME_LABEL,
    Name,
    Selector,
    escape,
    escape_measurement,
    parse_key,
)
from omendb.storage.label_index import LabelIndex, Piece
from omendb.storage.names import Names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

_PADDING_BYTES = 8  # kernels read whole words
_ALIASES_MIN = 10_000  # other ways to write names that are remembered, however few series there are
_NO_IDS = np.empty(0, np.int64)
_NO_ENTRIES = np.empty(0, np.uint32)


class KeyTable:
    """Keys in the order in which they came, and a hash table of their positions.

    `find` needs no lock; `add` belongs to one thread at a time.

    Parameters
    ----------
    seed : int
        Of the hashes.
    has_ids : bool
        Each key has an id of its own; else they have consecutive ones.

    Attributes
    ----------
    count : int
        Number of keys.
    keys_bytes : int
        Of all keys together.
    """

    def __init__(self, seed: int, *, has_ids: bool) -> None:
        self.count = 0
        self.keys_bytes = 0
        self._seed = seed
        self._has_ids = has_ids
        # Its arrays are replaced when they grow, and else only written behind what is used.
        self.view = Keys(
            np.zeros(4096, np.uint8),
            np.zeros(65, np.int64),
            np.zeros(128, np.int64),
            np.zeros(64, np.int64) if has_ids else _NO_IDS,
            _NO_IDS if has_ids else np.zeros(64, np.int64),
        )

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated; not all of them need be resident."""
        return sum(array.nbytes for array in self.view)

    def find(
        self,
        body: NDArray[np.uint8],
        hashes: NDArray[np.int64],
        places: NDArray[np.int64],
        shapes: NDArray[np.int64],
        ids: NDArray[np.int64],
        first_id: int,
    ) -> int:
        """Fill in the ids of rows whose key is here; see `omendb.jit.keys.find_series`."""
        return key_tables.find_series(body, hashes, places, shapes, ids, self.view, first_id)

    def add(
        self,
        keys: NDArray[np.uint8],
        lengths: NDArray[Any],
        hashes: NDArray[np.int64],
        ids: NDArray[np.int64] | None = None,
    ) -> None:
        """Append keys that are not here.

        Parameters
        ----------
        keys : ndarray of uint8
            One after the other.
        lengths : ndarray of int, shape (n,)
        hashes : ndarray of int64, shape (n,)
        ids : ndarray of int64, shape (n,), optional
        """
        count, size = self.count + len(lengths), self.keys_bytes + len(keys)
        view = self.view
        if size + _PADDING_BYTES > len(view.keys) or count >= len(view.starts):
            view = view._replace(
                keys=_grown(view.keys, self.keys_bytes, size + _PADDING_BYTES),
                starts=_grown(view.starts, self.count + 1, count + 1),
            )
        if self._has_ids and count > len(view.ids):
            view = view._replace(ids=_grown(view.ids, self.count, count))
        if not self._has_ids and count > len(view.followers):
            view = view._replace(followers=_grown(view.followers, self.count, count))
        # The table's words come last: who finds one finds its key.
        view.keys[self.keys_bytes : size] = keys
        view.starts[self.count + 1 : count + 1] = self.keys_bytes + np.cumsum(lengths, dtype=np.int64)
        if ids is not None:
            view.ids[self.count : count] = ids
        if 2 * count > len(view.table):
            table = np.zeros(_power_above(2 * count), np.int64)
            old, _ = key_tables.hash_keys(view.keys, self._seed, view.starts[: self.count + 1])
            key_tables.add_to_table(table, old, 0)
            view = view._replace(table=table)
        if view is not self.view:
            self.view = view
        key_tables.add_to_table(view.table, hashes, self.count)
        self.count, self.keys_bytes = count, size


class Catalog:
    """All named series of a store.

    Attributes
    ----------
    seed : int
        Of the hashes with which `find` is asked.
    logged, visible, filed : int
        How many names are in these states; see the module.
    """

    def __init__(self) -> None:
        self.seed = secrets.randbits(62)
        self.first_id = FIRST_ID
        self.logged = self.visible = self.filed = 0
        # Protects additions; taken after no other lock, and before none.
        self._lock = threading.Lock()
        # Protects the index of labels, which may take long to extend; taken before none.
        self._index_lock = threading.Lock()
        self._names = KeyTable(self.seed, has_ids=False)
        # Names as some client writes them: unsorted tags, needless escapes.
        self._aliases = KeyTable(self.seed, has_ids=True)
        self._index = LabelIndex(self.seed)

    @property
    def count(self) -> int:
        """Number of names that were given an id."""
        return self._names.count

    @property
    def next_id(self) -> int:
        """The id that the next new name gets."""
        return self.first_id + self._names.count

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated; not all of them need be resident."""
        return self._names.memory_bytes + self._aliases.memory_bytes + self._index.memory_bytes

    def begin_at(self, first_id: int) -> None:
        """Let an empty catalog give ids from here on."""
        assert not self.count
        self.first_id = first_id

    # Names to ids.

    @property
    def keys(self) -> Keys:
        """The names; the first has the id `first_id`, and the others those after it."""
        return self._names.view

    def find(
        self,
        body: NDArray[np.uint8],
        hashes: NDArray[np.int64],
        places: NDArray[np.int64],
        shapes: NDArray[np.int64],
        ids: NDArray[np.int64],
    ) -> int:
        """Fill in the ids of rows whose series are known; return how many are not.

        Parameters
        ----------
        body : ndarray of uint8
        hashes, places, shapes, ids : ndarray of int64, shape (n,)
            As in `omendb.jit.lines.Rows`, parsed with `seed`.
        """
        missing = self._names.find(body, hashes, places, shapes, ids, self.first_id)
        if missing and self._aliases.count:
            missing = self._aliases.find(body, hashes, places, shapes, ids, 0)
        return missing

    def give_ids(self, keys: Sequence[bytes], written: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the ids of names, new ones for those that are new.

        Parameters
        ----------
        keys : sequence of bytes, n of them
            Canonical (`omendb.series.canonical_key`).
        written : sequence of bytes, n of them
            The same names as the client writes them: series, a space, field.

        Returns
        -------
        ndarray of int64, shape (n,)

        Raises
        ------
        InvalidRequestError
            There are too many series.
        """
        with self._lock:
            # The first place of each distinct key.
            distinct: dict[bytes, int] = {}
            at = np.array([distinct.setdefault(key, len(distinct)) for key in keys], np.int64)
            text = b"".join(distinct)
            lengths = np.fromiter(map(len, distinct), np.int64, len(distinct))
            ids, hashes = self._look_up(self._names, text, lengths, self.first_id)
            new = np.flatnonzero(ids < 0)
            if len(new):
                # Ids that were in use before they were reserved are not given, and leave less of them.
                if self.next_id + len(new) > FIRST_ID + IDS_MAX:
                    raise InvalidRequestError(
                        f"there are {self._names.count} series, and no more can be named"
                    )
                ids[new] = self.next_id + np.arange(len(new))
                order = list(distinct)
                added = text if len(new) == len(order) else b"".join(order[index] for index in new)
                self._names.add(np.frombuffer(added, np.uint8), lengths[new], hashes[new])
            result = ids[at]
            others = {
                alias: int(id_) for alias, key, id_ in zip(written, keys, result, strict=True) if alias != key
            }
            if others and self._aliases.count + len(others) <= max(_ALIASES_MIN, self._names.count):
                self._add_aliases(others)
            return result

    def _add_aliases(self, others: dict[bytes, int]) -> None:
        text = b"".join(others)
        lengths = np.fromiter(map(len, others), np.int64, len(others))
        there, hashes = self._look_up(self._aliases, text, lengths, 0)
        new = np.flatnonzero(there < 0)
        if len(new):
            order = list(others)
            added = np.frombuffer(b"".join(order[index] for index in new), np.uint8)
            ids = np.array([others[order[index]] for index in new], np.int64)
            self._aliases.add(added, lengths[new], hashes[new], ids)

    def _look_up(
        self, table: KeyTable, text: bytes, lengths: NDArray[np.int64], first_id: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        body = np.frombuffer(text + bytes(_PADDING_BYTES), np.uint8)
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        hashes, shapes = key_tables.hash_keys(body, self.seed, starts)
        ids = np.full(len(lengths), -1, np.int64)
        table.find(body, hashes, starts[:-1], shapes, ids, first_id)
        return ids, hashes

    # Ids to names.

    def names(self, start: int, stop: int) -> Names:
        """Return names by their position, half-open."""
        view = self._names.view
        starts = view.starts[start : stop + 1]
        lengths = np.diff(starts).astype(np.uint32)
        return Names(self.first_id + start, lengths, view.keys[starts[0] : starts[-1]])

    def name(self, series_id: int) -> Name:
        """Return the name of a visible series.

        Raises
        ------
        KeyError
            It has none.
        """
        position = series_id - self.first_id
        if not 0 <= position < self.visible:
            raise KeyError(series_id)
        view = self._names.view
        return parse_key(view.keys[view.starts[position] : view.starts[position + 1]].tobytes())

    # Durability: see the module for the states.

    def mark_logged(self, count: int) -> None:
        """Names up to this many are in the log."""
        self.logged = count

    def mark_visible(self, count: int) -> None:
        """Names up to this many are durable, and may be shown."""
        self.visible = max(self.visible, count)

    def restore(self, names: Names, path: str) -> None:
        """Take in names that a file holds: those that are there already, or the next ones.

        Raises
        ------
        CorruptionError
            They are other names, or some are missing before them.
        """
        with self._lock:
            if not self.count:
                self.first_id = names.first_id
            known = min(self.next_id - names.first_id, names.count)
            if not 0 <= known <= self.next_id - self.first_id:
                raise CorruptionError(
                    path, 0, f"names from id {names.first_id} on follow those up to {self.next_id - 1}"
                )
            starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(names.lengths, dtype=np.int64)))
            start = names.first_id - self.first_id
            there = self.names(start, start + known)
            if (there.lengths != names.lengths[:known]).any() or (
                there.keys != names.keys[: starts[known]]
            ).any():
                raise CorruptionError(path, 0, f"the names from id {names.first_id} on have changed")
            if known < names.count:
                keys = names.keys[starts[known] :]
                padded = np.concatenate((keys, np.zeros(_PADDING_BYTES, np.uint8)))
                try:
                    hashes, _ = key_tables.hash_keys(padded, self.seed, starts[known:] - starts[known])
                except ValueError as error:
                    raise CorruptionError(path, 0, f"a name cannot be read: {error}") from error
                self._names.add(keys, names.lengths[known:], hashes)
            self.logged = self.visible = self.count

    # Selecting.

    @property
    def unindexed(self) -> int:
        """Names that the next look-up by labels has to index first."""
        return self.visible - self._index.covered

    def select(self, selectors: Iterable[Selector]) -> NDArray[np.int64]:
        """Find the visible series that match any of some selectors.

        Returns
        -------
        ndarray of int64
            Ids, ascending, without repeats.
        """
        visible = self.visible
        found: list[NDArray[np.uint32]] = []
        with self._index_lock:
            # The count first: names that come meanwhile are not visible yet.
            view = self._names.view
            self._index.extend(view.keys, view.starts, visible)
            for selector in selectors:
                found += [
                    self._index.find(view.keys, view.starts, pieces) for pieces in _alternatives(selector)
                ]
        positions = found[0] if len(found) == 1 else np.unique(np.concatenate([_NO_ENTRIES, *found]))
        return self.first_id + positions.astype(np.int64)

    def all_ids(self) -> NDArray[np.int64]:
        """Return the ids of all visible series, ascending."""
        return np.arange(self.first_id, self.first_id + self.visible)


def _alternatives(selector: Selector) -> list[list[Piece]]:
    """Return what keys must have: all pieces of one of these lists."""
    always: list[Piece] = []
    choices: list[list[list[Piece]]] = []
    if selector.name is not None:
        whole: list[Piece] = [(labels.MEASUREMENT, escape_measurement(selector.name.encode()))]
        choices.append([whole, *_splits(selector.name)])
    for label, value in selector.labels:
        text = value.encode()
        if label == NAME_LABEL:
            choices.append(_splits(value))
        elif label == MEASUREMENT_LABEL:
            always.append((labels.MEASUREMENT, escape_measurement(text)))
        elif label == FIELD_LABEL:
            always.append((labels.FIELD, escape(text)))
        else:
            always.append((labels.TAG, escape(label.encode()) + b"=" + escape(text)))
    result = [always]
    for choice in choices:
        result = [[*pieces, *others] for pieces in result for others in choice]
    return result


def _splits(name: str) -> list[list[Piece]]:
    """Return the ways in which a name can be a measurement and a field, joined by an underscore."""
    return [
        [
            (labels.MEASUREMENT, escape_measurement(name[:at].encode())),
            (labels.FIELD, escape(name[at + 1 :].encode())),
        ]
        for at in range(1, len(name) - 1)
        if name[at] == "_"
    ]


def _grown(array: NDArray[Any], used: int, needed: int) -> NDArray[Any]:
    """Copy the used part into an array of zeros that is at least twice as long."""
    if needed <= len(array):
        return array
    grown = np.zeros(max(2 * len(array), needed), array.dtype)
    grown[:used] = array[:used]
    return grown


def _power_above(number: int) -> int:
    return 1 << number.bit_length()
