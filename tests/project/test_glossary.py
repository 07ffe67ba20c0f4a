"""The words that docs/glossary.md rules out become fewer, never more."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.table import table

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
# ``count word`` a line. A word that is not here has a ceiling of none.
CEILINGS = ROOT / "tests" / "data" / "word_ceilings.txt"
FOLDERS = ("etcd_actions", "docs", "scripts", "examples", "schemas", ".ci")
SUFFIXES = {".py", ".md", ".toml", ".proto", ".sh", ""}

# A standard term, names of tests, and names that are stored, exported or logged: these stay.
_ALLOWED = re.compile(
    # What each may begin with: without that the search takes twice as long.
    r"(?=[dtpeaw])(?:dead[\s_-]*letters?|\btest_\w+|position/|etcd_actions_(?:position|held_endings)"
    r"|\b(?:position_(?:compacted|fenced_off|not_saved|unusable)|endings_held|anybody_may_enqueue)\b"
    r"|\bWantedBy\b)",
    re.IGNORECASE,
)
_ROW = re.compile(r"^\| ((?:`[a-z -]+`(?:, )?)+) \|", re.MULTILINE)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# A comment's or a quotation's marks at the beginning of a line: phrases go over them.
_MARGIN = re.compile(r"\n\s*(?:#+:?|>|\*|-)?\s*")


def words_of(glossary: str) -> list[str]:
    """The words in the first column of the last table."""
    table = glossary.partition("## Words that are not used")[2]
    return [word for cell in _ROW.findall(table) for word in re.findall(r"`([^`]+)`", cell)]


def count(text: str, words: list[str]) -> Counter[str]:
    """How often each word is in a text, also as a part of a name."""
    flat = _HUMP.sub(" ", _MARGIN.sub(" ", _ALLOWED.sub(" ", text))).replace("_", " ").lower()
    flat = " ".join(flat.split())
    found = re.findall(r"(?<![\w-])(?:" + "|".join(map(re.escape, words)) + r")(?![\w-])", flat)
    return Counter(found)


def ceilings() -> dict[str, int]:
    rows = (line.split(" ", 1) for line in CEILINGS.read_text().splitlines())
    return {word: int(number) for number, word in rows}


def counted() -> Iterator[Path]:
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docker-compose.yml",
        "CHANGELOG.md",
    ):
        yield ROOT / name
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            generated = "_pb" in path.parts or "__pycache__" in path.parts
            if path.is_file() and path.suffix in SUFFIXES and not generated and path != GLOSSARY:
                yield path


@cache
def counts() -> dict[Path, Counter[str]]:
    words = words_of(GLOSSARY.read_text())
    return {path: count(_text(path), words) for path in counted()}


def _text(path: Path) -> str:
    """A file's text; of the changelog, which quotes old names, without the quotations."""
    text = path.read_text()
    return re.sub(r"`[^`]*`", "`", text) if path.name == "CHANGELOG.md" else text


def test_no_word_is_over_its_ceiling() -> None:
    ceiling = ceilings()
    total = sum(counts().values(), Counter())
    over = {}
    for word, number in total.items():
        if number > ceiling.get(word, 0):
            files = {str(p.relative_to(ROOT)): c[word] for p, c in counts().items() if c[word]}
            over[f"{word}: {number}, allowed {ceiling.get(word, 0)}"] = files
    assert over == {}, "see docs/glossary.md for the word to use instead"


def test_each_ceiling_is_of_a_word_of_the_glossary() -> None:
    assert set(ceilings()) <= set(words_of(GLOSSARY.read_text()))


@table(
    ("text", "word", "number"),
    [
        ("Nobody is told.", "told", 1),
        ("def _tell_status(told: int)", "told", 1),
        ("class DirectlyAsked: ...", "asked", 1),
        ("# it goes\n    # on", "goes on", 1),
        ("> what\n> was", "what was", 1),
        ("a dead letter, DeadLetter, dead_letters", "letter", 0),
        ("upper-case letter", "letter", 1),
        ("`record/test_outbox.py::test_it_is_told`", "told", 0),
        ('side + b"position/"', "position", 0),
        ("storyteller foretold", "told", 0),
    ],
)
def test_words_are_counted_in_text_and_in_names(text: str, word: str, number: int) -> None:
    assert count(text, words_of(GLOSSARY.read_text()))[word] == number
