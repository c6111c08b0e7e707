"""An inverted index of the catalog: which series have a measurement, a tag or a field.

For every piece of a key a hash and the key's position, sorted by hash: 12 bytes a piece. New keys come as a
level of their own, and levels are merged when the older one is not twice as large, so that there are few.
Hashes only find candidates; the bytes decide.

Thread safety: belongs to whoever holds the catalog's lock of look-ups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from omendb.jit import labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

Piece = tuple[int, bytes]
"""Kind and text, as `omendb.jit.labels` has them."""


class _Level(NamedTuple):
    """Keys up to `stop`, from where the level before it stops."""

    stop: int
    hashes: NDArray[np.int64]
    entries: NDArray[np.uint32]


class LabelIndex:
    """The index of a table of keys that only grows.

    Parameters
    ----------
    seed : int
        Of the hashes.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._levels: list[_Level] = []

    @property
    def covered(self) -> int:
        """Keys that it knows."""
        return self._levels[-1].stop if self._levels else 0

    @property
    def memory_bytes(self) -> int:
        """Memory that it takes."""
        return sum(level.hashes.nbytes + level.entries.nbytes for level in self._levels)

    def extend(self, keys: NDArray[np.uint8], starts: NDArray[np.int64], count: int) -> None:
        """Learn the keys up to `count`.

        Parameters
        ----------
        keys : ndarray of uint8
            At least eight bytes longer than the keys.
        starts : ndarray of int64
            Where each starts, and behind the last one its end.
        count : int
            Fewer than it knows is no contradiction: whoever asks may have counted before somebody else.
        """
        if count <= self.covered:
            return
        hashes, entries = labels.hash_pieces(keys, starts, self._seed, self.covered, count)
        self._levels.append(_sorted(count, hashes, entries))
        while len(self._levels) > 1 and len(self._levels[-2].hashes) < 2 * len(self._levels[-1].hashes):
            newer, older = self._levels.pop(), self._levels.pop()
            self._levels.append(
                _sorted(
                    newer.stop,
                    np.concatenate((older.hashes, newer.hashes)),
                    np.concatenate((older.entries, newer.entries)),
                )
            )

    def find(
        self, keys: NDArray[np.uint8], starts: NDArray[np.int64], pieces: list[Piece]
    ) -> NDArray[np.uint32]:
        """Find the keys that have all of some pieces.

        Parameters
        ----------
        keys, starts : as in `extend`
        pieces : list of (int, bytes)
            At least one.

        Returns
        -------
        ndarray of uint32
            Positions of keys, ascending.
        """
        # The rarest piece finds candidates, and their bytes tell the rest: less work than to intersect.
        found = min((self._postings(piece) for piece in pieces), key=len)
        for kind, text in pieces:
            found = found[labels.have_piece(keys, starts, found, text, kind)]
        return found

    def _postings(self, piece: Piece) -> NDArray[np.uint32]:
        kind, text = piece
        wanted = labels.hash_piece(text, kind, self._seed)
        parts: list[NDArray[np.uint32]] = []
        for level in self._levels:
            low, high = (
                np.searchsorted(level.hashes, wanted, "left"),
                np.searchsorted(level.hashes, wanted, "right"),
            )
            parts.append(level.entries[low:high])
        if not parts:
            return np.empty(0, np.uint32)
        # Levels hold keys in order, and equal hashes keep it; two pieces of a key may have the same hash.
        entries = np.concatenate(parts)
        is_first = np.ones(len(entries), np.bool_)
        is_first[1:] = entries[1:] != entries[:-1]
        return entries[is_first]


def _sorted(stop: int, hashes: NDArray[np.int64], entries: NDArray[np.uint32]) -> _Level:
    # Stable: equal hashes keep the order of the keys.
    order = np.argsort(hashes, kind="stable")
    return _Level(stop, hashes[order], entries[order])
