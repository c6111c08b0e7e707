"""`omendb backup`: a consistent copy of a store, while it is written to or offline."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from omendb.cli.program import target_options

if TYPE_CHECKING:
    from omendb.cli.target import Target


@click.command("backup", short_help="Copy a store, as it is now, while it is in use.")
@click.argument("name", metavar="[NAME|DIRECTORY]", required=False)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Check every checksum of the backup before it counts as one.",
)
@target_options(must_exist=True)
def backup_command(target: Target, *, name: str | None, verify: bool) -> None:
    """Copy a store, as it is now: everything acknowledged before the call, consistent, while writes go on.

    A server keeps the backup below its data directory, in backups/NAME; the name is made from the time
    when none is given. With --data-dir, a NAME with a slash is a directory of your choice. Segments are
    hard links where the file system allows: copy the backup to another disk to be safe from this one.

    \b
    Examples:
      omendb backup
      omendb backup before-upgrade --url http://127.0.0.1:3000
      omendb backup --data-dir ./omendb-data /mnt/backups/monday
    """
    if name is not None and os.sep in name:
        made = target.backup_to(name, verify=verify)
    else:
        made = target.backup(name, verify=verify)
    how = "segments are hard links" if made["linked"] else "segments were copied"
    checked = "all checksums match" if made["verified"] else "not verified"
    click.echo(f"{made['path']}")
    click.echo(
        f"{made['rows']:,} rows in {made['segments']:,} segments and the log up to record "
        f"{made['sequence']:,}, {made['bytes']:,} bytes, {how}, {checked}, "
        f"{made['duration_seconds']:.3f} s"
    )
