"""The runbook's code blocks, each with a name: its heading, and its first comment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

RUNBOOK = Path(__file__).parent.parent.parent / "docs" / "runbook.md"


class Block(NamedTuple):
    """One code block.

    Attributes
    ----------
    name : str
        Unique: ``HEADING: FIRST COMMENT OR LINE``.
    language : str
    text : str
        As it stands there, without the indentation of the list that it is in.
    """

    name: str
    language: str
    text: str


def blocks() -> list[Block]:
    """Return all code blocks, in order."""
    found: list[Block] = []
    heading = ""
    lines = iter(RUNBOOK.read_text().splitlines())
    for line in lines:
        title = re.match(r"#+ (.*)|\d+\. \*\*(.*)\*\*$|\*\*(.*):\*\*$", line)
        if title and not title[3]:
            heading = title[1] or title[2]
        begin = re.match(r"( *)```(\w+)$", line)
        if begin is None:
            continue
        indent = len(begin[1])
        body: list[str] = []
        for inner in lines:
            if inner.strip() == "```":
                break
            body.append(inner[indent:])
        found.append(Block(f"{heading}: {_first_words(body)}", begin[2], "\n".join(body) + "\n"))
    names = [block.name for block in found]
    assert len(set(names)) == len(names), names
    return found


def _first_words(body: list[str]) -> str:
    for line in body:
        text = line.strip()
        if text and not text.startswith("#!"):
            return text.lstrip("# ")
    raise AssertionError("an empty block")


def scripts() -> list[Block]:
    """Return the blocks for a shell."""
    return [block for block in blocks() if block.language == "bash"]
