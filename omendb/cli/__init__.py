"""The `omendb` program: one command, one subcommand a job.

Commands import what they need when they run: `omendb --help` must not wait for NumPy, Arrow or Numba.
"""

from __future__ import annotations

import click

from omendb.cli.backup import backup_command
from omendb.cli.import_csv import import_command
from omendb.cli.program import Program
from omendb.cli.query import query_command
from omendb.cli.repair import repair_command
from omendb.cli.restore import restore_command
from omendb.cli.serve import serve_command
from omendb.cli.stats import stats_command
from omendb.cli.verify import verify_command
from omendb.cli.warmup import warmup_command

__all__ = ["main"]


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="omendb", prog_name="omendb", message="%(prog)s %(version)s")
def main() -> None:
    """OmenDB: a durable time-series database with a learned index over plain Parquet files.

    A point is (series_id, timestamp, value): two 64-bit integers and a 64-bit float. Timestamps are in
    the unit of your choice. The same (series_id, timestamp) written twice: the later write wins.

    \b
    Examples:
      omendb serve
      omendb import points.csv.gz
      omendb query --series-id 1 --start 1700000000000 --limit 10
    """


for command in (
    serve_command,
    import_command,
    query_command,
    stats_command,
    verify_command,
    backup_command,
    restore_command,
    repair_command,
    warmup_command,
):
    main.add_command(command)
