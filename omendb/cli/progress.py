"""The progress bar of an import: how far, how many rows, how fast, how long yet."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from tqdm import tqdm

if TYPE_CHECKING:
    from types import TracebackType

LOG_INTERVAL_SECONDS = 10.0
"""Between two lines when standard error is no terminal: a log wants few."""


class Progress:
    """Writes to standard error; a context manager. One thread uses it.

    Parameters
    ----------
    total_bytes : int, optional
        Size of the source as it is stored (compressed); None when unknown, as on a pipe.
    """

    def __init__(self, total_bytes: int | None) -> None:
        # Time left follows from the bytes read of the source: its number of rows is not known before its end.
        known = "{percentage:3.0f}% |{bar:24}| {desc}, {elapsed} gone, {remaining} left"
        self._bar = tqdm(
            total=total_bytes,
            bar_format=known if total_bytes else "{desc}, {elapsed} gone",
            mininterval=0.1 if sys.stderr.isatty() else LOG_INTERVAL_SECONDS,
            desc="0 rows",
            file=sys.stderr,
            leave=True,
        )
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self, bytes_read: int, rows: int) -> None:
        """Show that `rows` rows in all are stored, and how far in the source that is."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        self._bar.set_description_str(f"{rows:,} rows, {rows / seconds:,.0f} rows/s", refresh=False)
        self._bar.update(bytes_read - self._bar.n)

    def note(self, text: str) -> None:
        """Write a line above the bar."""
        self._bar.write(text, file=sys.stderr)
