"""`omendb verify`: every checksum of every file of a data directory, offline."""

from __future__ import annotations

from pathlib import Path

import click

from omendb.errors import OmenError

CLEAN, DAMAGED, UNREADABLE = 0, 1, 2
"""The exit codes."""


@click.command("verify", short_help="Check every checksum of every file, offline.")
@click.argument("data_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_context
def verify_command(context: click.Context, /, data_dir: Path) -> None:
    """Check every checksum of every file below DATA_DIR; nothing is changed.

    The exit code is the verdict: 0 clean, 1 damaged, 2 could not be read.

    \b
    Example:
      omendb verify ./omendb-data && echo clean
    """
    from omendb.storage.fs import OsFileSystem
    from omendb.storage.verify import verify

    try:
        report = verify(OsFileSystem(), data_dir, lambda name: click.echo(f"checking {name}"))
    except (OmenError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        click.echo(f"{data_dir}: cannot be read")
        context.exit(UNREADABLE)
    for warning in report.warnings:
        click.echo(f"warning: {warning}")
    for finding in report.findings:
        click.echo(f"{finding.path}: damaged at offset {finding.offset}: {finding.reason}")
    places = len(report.findings)
    verdict = f"damaged in {places} place{'s' if places != 1 else ''}" if places else "clean"
    click.echo(f"{data_dir}: {verdict} ({report.files:,} files, {report.bytes:,} bytes checked)")
    context.exit(DAMAGED if places else CLEAN)
