"""What all tests share: Hypothesis profiles, programs of the system, a running server."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.serving import RunningServer, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

IN_CI = os.environ.get("CI") == "true"

# No deadline: a first call compiles its kernel. A failure prints the blob that replays it.
hypothesis.settings.register_profile(
    "omendb",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# CI repeats the same examples, so that a red run means the change; searching is for everyone's own machine.
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("omendb"), derandomize=True, database=None
)
hypothesis.settings.register_profile(
    "thorough", hypothesis.settings.get_profile("omendb"), max_examples=2_000
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if IN_CI else "omendb"))


@pytest.fixture(scope="session")
def debian_tool() -> Callable[[str], str]:
    """Return a function that finds a program of packages.debian, and skips the test when it is missing.

    In CI a missing program fails the test: a skipped test must not look like a passed one there.
    """

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            reason = f"the program {name} is not installed (packages.debian names its package)"
            if IN_CI:
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return find


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """Return a server of its own process on an empty store, ready."""
    with start_server(tmp_path / "data") as running:
        yield running
