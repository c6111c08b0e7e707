"""Reads the Containerfile: its stages, and what the image's configuration will be."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CONTAINERFILE = ROOT / "Containerfile"


@dataclass
class Stage:
    """One stage: the image that it begins with, and its instructions as (name, text)."""

    base: str
    instructions: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        """Return the texts of all instructions of a name."""
        return [text for found, text in self.instructions if found == name]

    def one(self, name: str) -> str:
        """Return the text of the only instruction of a name."""
        (text,) = self.all(name)
        return text

    def pairs(self, name: str) -> dict[str, str]:
        """Return the ``key=value`` pairs of all ENV or LABEL instructions."""
        words = [word for text in self.all(name) for word in shlex.split(text)]
        return dict(word.split("=", 1) for word in words)

    def environment(self) -> dict[str, str]:
        """Return what a process in the image finds in its environment."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {name: value.replace("$PATH", path) for name, value in self.pairs("ENV").items()}

    def command(self) -> list[str]:
        """Return the command in its exec form."""
        words = json.loads(self.one("CMD"))
        assert isinstance(words, list)
        return words

    def packages(self) -> set[str]:
        """Return the Debian packages that are installed by name."""
        names: set[str] = set()
        for text in self.all("RUN"):
            for command in text.split("&&"):
                words = shlex.split(command)
                if words[:2] == ["apt-get", "install"]:
                    names.update(word for word in words[2:] if not word.startswith("-"))
        return names


def stages(text: str | None = None) -> list[Stage]:
    """Return the stages of a Containerfile, in order."""
    text = CONTAINERFILE.read_text() if text is None else text
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: list[Stage] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            found.append(Stage(rest.split()[0], []))
        else:
            found[-1].instructions.append((name, rest.strip()))
    return found
