"""`omendb repair`: shows what is damaged and what mending it drops, and does it when told to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omendb.storage.repair import Loss, Plan

WHOLE, DAMAGED = 0, 1
"""The exit codes: nothing is left to repair, or there is."""

LOSSES_SHOWN = 20


@click.command("repair", short_help="Make a damaged data directory start again; shows first what that drops.")
@click.argument("data_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do it; without this option nothing is changed.")
@click.pass_context
def repair_command(context: click.Context, /, data_dir: Path, *, yes: bool) -> None:
    """Show what is damaged below DATA_DIR and which rows a repair drops; with --yes, repair it.

    Damaged segments and cut logs are kept in DATA_DIR/quarantine. No server may be using the directory.
    When you have a backup, compare first: omendb restore loses nothing that was in it.

    \b
    Examples:
      omendb repair ./omendb-data
      omendb repair ./omendb-data --yes
    """
    from omendb.storage import filenames, repair
    from omendb.storage.fs import OsFileSystem
    from omendb.storage.verify import verify

    fs = OsFileSystem()
    lock = fs.lock(data_dir / filenames.LOCK)
    try:
        plan = repair.examine(fs, data_dir, lambda name: click.echo(f"checking {name}"))
        for line in _lines(plan):
            click.echo(line)
        if plan.is_empty:
            click.echo(f"{data_dir}: nothing to repair")
            return
        if not yes:
            click.echo("Nothing was changed. To do this:")
            click.echo(f"  omendb repair {data_dir} --yes")
            context.exit(DAMAGED)
        repair.carry_out(fs, data_dir, plan)
    finally:
        lock.close()
    report = verify(fs, data_dir)
    for finding in report.findings:
        click.echo(f"{finding.path}: damaged at offset {finding.offset}: {finding.reason}")
    if report.findings:
        click.echo(f"{data_dir}: still damaged; run it again")
        context.exit(DAMAGED)
    click.echo(f"{data_dir}: repaired ({report.files:,} files, {report.rows:,} rows, all checksums match)")


def _lines(plan: Plan) -> Iterator[str]:
    for damage in plan.segments:
        rows = damage.entry.rows
        yield f"{damage.path}: {damage.reason}"
        yield (
            f"  goes to quarantine; {damage.kept_rows:,} of its {rows:,} rows match their checksums and go "
            f"into a new segment, {rows - damage.kept_rows:,} are lost"
        )
    for _, reason in plan.indexes:
        yield f"{reason}"
        yield "  the learned index is rebuilt from its segment; nothing is lost"
    for names in plan.catalog:
        first, count = names.entry.first_id, names.entry.count
        yield f"{names.path}: {names.reason}"
        yield (
            f"  goes to quarantine; series {first} to {first + count - 1} keep their ids and points, and get "
            f'names like lost{{series_id="{first}"}} where the log does not have theirs'
        )
    log = plan.log
    if log is not None:
        rows = sum(loss.rows for loss in log.losses)
        yield f"{log.path}: offset {log.offset}: {log.reason}"
        yield (
            f"  the log ends there from now on; {len(log.later_files)} later files go to quarantine, with a "
            f"copy of this one; {log.records:,} readable records with {rows:,} rows, and "
            f"{log.unreadable_bytes:,} bytes that cannot be read, are dropped"
        )
    for name in plan.unnamed:
        yield f"data/{name}: not named by the manifest, is removed"
    yield from _loss_lines(plan.losses, plan.lost_rows)


def _loss_lines(losses: list[Loss], rows: int) -> Iterator[str]:
    if not losses:
        return
    yield f"Rows that are dropped: {rows:,}. Where they had replaced older values, those show again."
    for loss in losses[:LOSSES_SHOWN]:
        series = f"series {loss.first_series}"
        if loss.last_series != loss.first_series:
            series = f"some of series {loss.first_series} to {loss.last_series}"
        yield f"  {series}: {loss.rows:,} rows, timestamps {loss.first_timestamp} to {loss.last_timestamp}"
    if len(losses) > LOSSES_SHOWN:
        yield f"  and of {len(losses) - LOSSES_SHOWN:,} more series"
