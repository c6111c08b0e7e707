"""The table of settings in `docs/operations.md` says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from omendb.cli.serve import CONFIG_DIR
from omendb.config import SPECS, Spec
from omendb.settings_source import SOURCES

PAGE = (Path(__file__).parents[1] / "docs/operations.md").read_text()
HEAD = "| setting | unit | default | accepts | what it is | more | less | a change |"


def row(spec: Spec) -> str:
    """Return the line of the table that describes a setting."""
    default = str(spec.default).lower() if spec.kind == "boolean" else str(spec.default)
    words = ("true: ", "false: ") if spec.kind == "boolean" else ("", "")
    more, less = (
        word + effect.removesuffix(".") for word, effect in zip(words, (spec.more, spec.less), strict=True)
    )
    cells = [
        f"`{spec.name}`",
        spec.unit,
        f"`{default}`" if default else "empty",
        spec.range,
        spec.help.removesuffix("."),
        more,
        less,
        "live" if spec.live else "restart",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_row_of_each_setting_is_what_the_code_says(spec: Spec) -> None:
    assert row(spec) in PAGE.splitlines(), f"docs/operations.md should say:\n{row(spec)}"


def test_there_is_no_row_of_a_setting_that_is_not_there() -> None:
    lines = PAGE.splitlines()
    start = lines.index(HEAD) + 2
    rows = lines[start : lines.index("", start)]

    assert rows == [row(spec) for spec in SPECS.values()]


def test_every_source_is_named_in_the_order_of_precedence() -> None:
    places = [PAGE.find(f"`{source}`") for source in SOURCES]

    assert -1 not in places
    assert places == sorted(places)
    assert f"`{CONFIG_DIR}`" in PAGE
