"""`omendb import`: points from CSV into a server or a data directory."""

from __future__ import annotations

import stat
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from omendb.cli.program import target_options
from omendb.errors import OmenError

if TYPE_CHECKING:
    from omendb.cli.csv_reader import CsvBatch
    from omendb.cli.delivery import Delivery
    from omendb.cli.target import Target


@click.command("import", short_help="Import points from CSV, plain or gzip.")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--no-header",
    is_flag=True,
    help="The first line is a point; the columns are series_id, timestamp, value.",
)
@click.option(
    "--batch-rows",
    type=click.IntRange(1, 10_000_000),
    default=50_000,
    show_default=True,
    help="Most points of one insert.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Inserts under way at once. More can be faster; but when the file holds the same "
    "(series_id, timestamp) twice, the later line is then not sure to win.",
)
@click.option(
    "--retry-seconds",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="How long to go on trying while the server is away, overloaded or out of disk space.",
)
@target_options(must_exist=False)
def import_command(
    file: Path,
    target: Target,
    *,
    no_header: bool,
    batch_rows: int,
    in_flight: int,
    retry_seconds: float,
) -> None:
    """Import points from the CSV file FILE, or from standard input when FILE is "-".

    The first line names the columns series_id, timestamp and value, in any order. Text compressed by gzip
    is recognised by itself. An acknowledged row is on stable storage. An import that was cut off can be
    run again as it was: the same points overwrite themselves.

    \b
    Examples:
      omendb import points.csv.gz
      omendb import points.csv --url http://db.example:3000
      cat part-*.csv | omendb import - --no-header
      omendb import points.csv --data-dir ./omendb-data
    """
    from omendb.cli.csv_reader import CsvReader
    from omendb.cli.delivery import Delivery
    from omendb.cli.progress import Progress

    started = time.monotonic()
    with ExitStack() as stack:
        source, total_bytes = _open(file, stack)
        progress = stack.enter_context(Progress(total_bytes))

        def show(batch: CsvBatch) -> None:
            progress.advance(batch.bytes_read, delivery.rows_acknowledged)

        delivery = Delivery(target, in_flight, retry_seconds, on_stored=show, on_wait=progress.note)
        try:
            with delivery:
                reader = CsvReader(source, header=not no_header, batch_rows=batch_rows)
                for batch in reader.batches():
                    delivery.send(batch)
                delivery.finish()
        except OmenError as error:
            raise click.ClickException(f"{file}: {error}\n{_state(delivery)}") from error
        except KeyboardInterrupt:
            progress.note(_state(delivery))
            raise
    seconds = time.monotonic() - started
    rows = delivery.rows_acknowledged
    click.echo(
        f"{delivery.rows_read:,} rows read, {rows:,} rows acknowledged, {seconds:.2f} s, "
        f"{rows / seconds:,.0f} rows/s"
    )


def _open(file: Path, stack: ExitStack) -> tuple[BinaryIO, int | None]:
    """Open FILE; return it with its size when it has one."""
    if file == Path("-"):
        return sys.stdin.buffer, None
    source = stack.enter_context(file.open("rb"))
    about = file.stat()
    return source, about.st_size if stat.S_ISREG(about.st_mode) else None


def _state(delivery: Delivery) -> str:
    return (
        f"{delivery.rows_read:,} rows were read; {delivery.rows_acknowledged:,} were acknowledged and "
        "stay stored. The same import can be run again."
    )
