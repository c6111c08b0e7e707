"""`omendb query`: points and windows to standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from omendb.cli.program import target_options

if TYPE_CHECKING:
    from omendb.cli.target import Target


@click.command("query", short_help="Write points or windows as CSV or JSON.")
@click.option("--start", type=int, help="First timestamp, inclusive.")
@click.option("--end", type=int, help="Last timestamp, inclusive.")
@click.option(
    "--series-id",
    type=click.IntRange(0),
    multiple=True,
    help="Only this series; may be given several times.  [default: all]",
)
@click.option("--limit", type=click.IntRange(1), help="Most rows of the answer.")
@click.option(
    "--step", type=click.IntRange(1), help="Answer windows of this many timestamp units, not points."
)
@click.option(
    "--agg",
    default="mean",
    show_default=True,
    metavar="NAME[,NAME...]",
    help="What to tell of each window: count, sum, min, max, mean, first, last, stddev.",
)
@click.option(
    "--by",
    type=click.Choice(["series_id", "", "none"]),
    default="series_id",
    show_default=True,
    help="A row a series and window, or (none, or an empty text) a row a window for all series together.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "json", "columns"]),
    default="csv",
    show_default=True,
    help="CSV text, JSON rows, or JSON columns; the JSON is that of the HTTP API.",
)
@target_options(must_exist=True)
def query_command(
    target: Target,
    *,
    start: int | None,
    end: int | None,
    series_id: tuple[int, ...],
    limit: int | None,
    step: int | None,
    agg: str,
    by: str,
    form: str,
) -> None:
    """Write points, or windows of them, in the order of (series_id, timestamp).

    \b
    Examples:
      omendb query > all.csv
      omendb query --series-id 1 --series-id 2 --start 1000 --end 1999
      omendb query --step 3600000 --agg mean,max --format json
    """
    from omendb.cli.target import Question

    by_series = by == "series_id"
    if not by_series and step is None:
        raise click.UsageError("--by needs --step, the length of a window.")
    names = tuple(name.strip() for name in agg.split(",")) if step is not None else ()
    question = Question(start, end, tuple(series_id), limit, step, names, by_series)
    output = sys.stdout.buffer
    if form == "csv":
        from omendb.cli.csv_writer import write_csv

        write_csv(target.pages(question), question.columns, output)
    else:
        for piece in target.document(question, form):
            output.write(piece)
        output.write(b"\n")
    output.flush()
