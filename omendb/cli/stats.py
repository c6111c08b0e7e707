"""`omendb stats`: the figures of a store, for people or as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from omendb.cli.program import target_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omendb.cli.target import Target


@click.command("stats", short_help="Show what a store holds.")
@click.option("--index", is_flag=True, help="Figures of the learned index instead.")
@click.option("--json", "as_json", is_flag=True, help="The JSON of the HTTP API.")
@target_options(must_exist=True)
def stats_command(target: Target, *, index: bool, as_json: bool) -> None:
    """Show what a store holds: rows, series, segments, bytes, time range.

    \b
    Examples:
      omendb stats
      omendb stats --index --json
      omendb stats --data-dir ./omendb-data
    """
    figures = target.index_stats() if index else target.stats()
    if as_json:
        import orjson

        click.echo(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
        return
    lines = list(_lines(figures))
    width = max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        click.echo(f"{name:<{width}}  {text}".rstrip())


def _lines(figures: dict[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    """Yield a name and a text a figure; figures inside figures are indented."""
    for key, value in figures.items():
        name = indent + key.replace("_", " ")
        if isinstance(value, dict):
            yield name, ""
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            for position, entry in enumerate(value):
                yield f"{name} {position}", ""
                yield from _lines(entry, indent + "  ")
        else:
            yield name, _text(key, value)


def _text(key: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_text(key, entry) for entry in value) or "-"
    if key == "unix_seconds" and isinstance(value, float):
        return datetime.fromtimestamp(value, UTC).isoformat(" ", "seconds")
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if not isinstance(value, int):
        return str(value)
    if "timestamp" in key:
        return str(value)  # to be copied into a query
    text = f"{value:,}"
    if "bytes" in key and value >= 1024:
        text += f" ({_bytes(value)})"
    return text


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
