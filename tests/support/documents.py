"""The code blocks of README and docs/, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "docs/*.md",
    "docs/deploy/*.md",
    "examples/README.md",
    "scripts/bench/README.md",
)

_FENCED = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_SEPARATORS = {"&&", "||", "|", ";", "&"}


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        document: Its file, from the repository on.
        line: Where it begins.
        language: What is behind the fence; empty for nothing.
        text: What it holds.
        note: The comment in the line before it; empty for none.
    """

    document: str
    line: int
    language: str
    text: str
    note: str

    @property
    def where(self) -> str:
        """For messages and the names of tests."""
        return f"{self.document}:{self.line}"

    def steps(self) -> list[tuple[str, list[str]]]:
        """The command lines of a console, each with the lines that it prints."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
        return found

    def commands(self) -> Iterator[list[str]]:
        """The simple commands of a shell's or a console's block, as lists of words."""
        if self.language == "console":
            text = "\n".join(command for command, _ in self.steps())
        else:
            text = self.text.replace("\\\n", " ")
        for line in text.splitlines():
            words: list[str] = []
            for word in [*_words(line), ";"]:
                if word not in _SEPARATORS:
                    words.append(word)
                elif words:
                    yield words
                    words = []


def _words(line: str) -> list[str]:
    """The words of a line: no comment, no variable that is set, nothing redirected."""
    words = shlex.split(re.sub(r"\$\((.*?)\)", r"'$(\1)'", line), comments=True)
    if "<" in words:
        words = words[: words.index("<")]
    while words and re.match(r"[A-Z_0-9]+=", words[0]):
        del words[0]
    return words


@cache
def blocks() -> tuple[Block, ...]:
    """All of them, in the order of the documents."""
    found = []
    for pattern in DOCUMENTS:
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text()
            for each in _FENCED.finditer(text):
                line = text.count("\n", 0, each.start("language")) + 1
                name = path.relative_to(ROOT).as_posix()
                note = each["note"] or ""
                found.append(Block(name, line, each["language"], each["text"], note))
    return tuple(found)


def block(document: str, language: str, number: int = 0) -> Block:
    """One block of a document, by its language."""
    mine = [each for each in blocks() if (each.document, each.language) == (document, language)]
    return mine[number]
