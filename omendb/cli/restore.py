"""`omendb restore`: a backup back into a data directory, checked before and after."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("restore", short_help="Copy a backup into a data directory; checks every byte.")
@click.argument("backup", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--force",
    is_flag=True,
    help="Also when TARGET_DIR is not empty; a store in it is moved to TARGET_DIR/replaced-N.",
)
def restore_command(backup: Path, target_dir: Path, *, force: bool) -> None:
    """Check every checksum of BACKUP, copy it to TARGET_DIR, and check the copy.

    BACKUP is a backup, or the data directory of a stopped server. A damaged one is refused before
    anything is changed.

    \b
    Examples:
      omendb restore /mnt/backups/monday ./omendb-data
      omendb restore ./omendb-data/backups/before-upgrade ./omendb-data --force
    """
    from omendb.storage.fs import OsFileSystem
    from omendb.storage.restore import restore

    # Resolved, so that two names of one directory are known to be the same.
    done = restore(
        OsFileSystem(),
        backup.resolve(),
        target_dir.resolve(),
        force=force,
        progress=lambda name: click.echo(name),
    )
    if done.replaced is not None:
        click.echo(f"The store that was there is in {done.replaced} now; remove it when nobody needs it.")
    click.echo(
        f"{target_dir}: restored {done.rows:,} rows ({done.files:,} files, {done.bytes:,} bytes, "
        "all checksums match)"
    )
