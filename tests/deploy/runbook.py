"""What the runbook runs inside the pod."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

RUNBOOK = Path(__file__).parent.parent.parent / "docs" / "runbook.md"


def commands_in_pod() -> list[list[str]]:
    """Return the command of each ``kubectl exec ... -- COMMAND``, without what its output is piped to."""
    text = RUNBOOK.read_text().replace("\\\n", " ")
    found = re.findall(r"kubectl exec [^\n]*? -- +([^|\n]+?)(?= \||\n)", text)
    assert found, "the runbook runs nothing in the pod?"
    return [shlex.split(command) for command in found]


def programs_in_pod() -> set[str]:
    """Return the programs that must be in the image: those of the commands, and those that they start."""
    programs: set[str] = set()
    for words in commands_in_pod():
        programs.add(words[0])
        if "-exec" in words:
            programs.add(words[words.index("-exec") + 1])
        if any("pgrep" in word for word in words):
            programs.add("pgrep")
    return programs
