"""A power loss after every operation loses nothing that was acknowledged (P1, P2, P4).

The short form: at least 100,000 disk images. The long one: ``make soak``. A failure names the seed, the
operation and the image; ``Run(seed).run()`` replays it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.faults.crash import LostDataError, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = 100_000


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Log nothing: pytest keeps each line of a test, and with it the frames of the error that it names."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(900)
def test_every_crash_point_recovers_what_was_acknowledged() -> None:
    images = points = seed = 0
    while images < IMAGES:
        run = Run(seed, random_images=24, steps=18).run()
        images += run.images
        points += run.points
        seed += 1

    print(f"{images} images of {points} crash points, seeds 0 to {seed - 1}")
    assert points > 1_000


def found(**planted) -> bool:
    """Whether a run of a few seeds notices a planted bug."""
    for seed in range(12):
        try:
            Run(seed, **planted).run()
        except LostDataError:
            return True
    return False


@pytest.mark.parametrize(
    "bug",
    [
        "sync:.wal",  # a record acknowledged without its sync
        "sync:.parquet",  # a segment renamed before its content is durable
        "sync:MANIFEST",  # the same of the manifest
        "sync:.cat",  # the same of a file of names
        "sync_directory:/db/wal",  # a WAL file whose name is not durable
        "sync_directory:/db/data",  # the same of a segment
    ],
)
def test_a_missing_sync_is_found(bug) -> None:
    assert found(broken={bug})


def test_learned_indexes_need_no_sync_to_be_safe() -> None:
    """They are caches: a torn one is rebuilt, so that even this bug loses nothing."""
    for seed in range(3):
        assert Run(seed, broken={"sync:.lix"}, steps=10).run().images > 100


def test_a_log_removed_before_the_manifest_is_found() -> None:
    def plant(store) -> None:
        commit = store._commit

        def commit_late(segments, **changes) -> None:
            covered = changes.get("covered_sequence")
            if covered is not None:
                store.wal.remove_before(store.wal.first_file_after(covered))
            commit(segments, **changes)

        store._commit = commit_late

    assert found(store_bug=plant)


def test_a_manifest_published_before_its_segments_is_found() -> None:
    def plant(store) -> None:
        write, commit = store._write, store._commit
        fs = store.fs

        def write_lazily(parts, sequences, **options):
            # Nothing of it is durable until the manifest has been published.
            fs.broken |= {"sync:.parquet", "sync_directory:/db/data"}
            return write(parts, sequences, **options)

        def commit_first(segments, **changes) -> None:
            commit(segments, **changes)
            fs.broken -= {"sync:.parquet", "sync_directory:/db/data"}
            fs.sync_directory(store.data_directory)

        store._write, store._commit = write_lazily, commit_first

    assert found(store_bug=plant)


def test_inputs_removed_before_the_manifest_are_found() -> None:
    def plant(store) -> None:
        commit = store._commit

        def commit_late(segments, **changes) -> None:
            segments = list(segments)
            kept = {id(segment) for segment in segments}
            for segment in store.snapshot.segments:
                if id(segment) not in kept:
                    store._discard([segment.entry])
            commit(segments, **changes)

        store._commit = commit_late

    assert found(store_bug=plant)


def test_points_before_their_names_are_found() -> None:
    def plant(store) -> None:
        log_names, append, sync = store._log_names, store.wal.append, store.wal.sync

        def append_first(batch):
            sequence = append(batch)
            sync()
            log_names()
            return sequence

        store._log_names = lambda: None
        store.wal.append = append_first

    assert found(store_bug=plant)


def test_a_log_removed_before_its_names_are_filed_is_found() -> None:
    def plant(store) -> None:
        commit = store._commit

        def commit_without_names(segments, **changes) -> None:
            commit(segments, **{**changes, "catalog": None})

        store._commit = commit_without_names

    assert found(store_bug=plant)


def test_an_answer_before_the_write_is_found() -> None:
    def plant(store) -> None:
        store.sync = lambda: None

    assert found(store_bug=plant)
