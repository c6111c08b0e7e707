"""Answers as CSV text."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as arrow_csv

if TYPE_CHECKING:
    from collections.abc import Iterable

    from omendb.cli.target import Page


def write_csv(pages: Iterable[Page], columns: tuple[str, ...], output: BinaryIO) -> None:
    """Write a header line and the rows of all pages, as they come.

    Floats are written in the shortest form that reads back as the same number; what a window cannot tell
    stays empty. `omendb import` reads the result of a query for points.
    """
    options = arrow_csv.WriteOptions(include_header=False)
    rest = iter(pages)
    first = next(rest, None)  # before the header: a query that is refused writes nothing
    output.write(",".join(columns).encode() + b"\n")
    for page in chain([] if first is None else [first], rest):
        table = pa.table({name: _column(name, page) for name in columns})
        arrow_csv.write_csv(table, output, options)
        output.flush()


def _column(name: str, page: Page) -> Any:  # noqa: ANN401 # Arrow has no types
    # JSON has one kind of number: without the type, a page of whole values would change the column's kind.
    whole = name in {"series_id", "timestamp", "count"}
    return pa.array(page[name], type=pa.int64() if whole else pa.float64())
