"""docs/architecture.md names files, classes and functions that exist."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

from tests.support.table import table

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "etcd_actions"
PAGE = ROOT / "docs" / "architecture.md"

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"`([^`\n]+)`")
_FILE = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml)|(?:[\w-]+/)+[\w-]*|docs/\S+")
_CLASS = re.compile(r"([A-Z]+[a-z]\w*)(?:\.(\w+))?")
_DEF = re.compile(r"\bdef (\w+)\(")
_FUNCTION = re.compile(r"(?:\w+\.)?([a-z]\w*_\w+|\w+(?=\())(?:\(.*\))?")
# Keys in etcd and parts of an address, which look like folders.
_KEYS = {
    *(
        "traces/",
        "aborts/",
        "claims/",
        "workers/",
        "dead-letters/",
        "election/",
        "position/",
        "runs/",
    ),
    *("run-tasks/", "history/", "tasks/", "projects/", "catalog/", "images/", "signing/"),
}
# Fields, labels and messages of Flyte, gRPC and HTTP.
_FOREIGN = {"ActionsClient"}


def names() -> list[str]:
    """What stands in backticks; without the column of Flyte's own names, and metrics."""
    text = _FENCE.sub("", PAGE.read_text())
    before, flyte, after = text.partition("| in Flyte | here |")
    assert flyte
    rows = re.sub(r"^\|[^|]*\|", "|", after.partition("\n\n")[0], flags=re.MULTILINE)
    text = before + rows + after.partition("\n\n")[2]
    return sorted(
        {n for n in _QUOTED.findall(text) if not n.startswith(("/", "-", "etcd_actions_"))}
    )


@cache
def files() -> list[str]:
    """All files of the package and folders above them, and what else of the project is named."""
    found = [p for p in PACKAGE.rglob("*") if "__pycache__" not in p.parts]
    found += [ROOT / "docs", *(ROOT / "docs").glob("*"), *(ROOT / "tests").rglob("*")]
    found += [PACKAGE, *ROOT.glob("*.*"), ROOT / "schemas", *(ROOT / "schemas").glob("*")]
    found += [*(ROOT / "scripts").rglob("*"), *(ROOT / "examples").glob("*")]
    return [f"/{p.relative_to(ROOT)}" for p in found]


@cache
def definitions() -> tuple[dict[str, set[str]], set[str], set[str]]:
    """The classes of the package with the methods of each, all functions, all words."""
    classes: dict[str, set[str]] = {}
    functions: set[str] = set()
    words: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if "_pb" in path.parts:
            continue
        text = path.read_text()
        words.update(re.findall(r"\w+", text))
        functions.update(_DEF.findall(text))
        for part in re.split(r"^class (?=\w)", text, flags=re.MULTILINE)[1:]:
            name = re.match(r"\w+", part)
            assert name
            classes.setdefault(name[0], set()).update(_DEF.findall(part))
    return classes, functions, words


def missing(name: str) -> str | None:
    """Why the page may not name this; None if it exists, or is no name of the code."""
    classes, functions, words = definitions()
    if name in _KEYS:
        return None
    if _FILE.fullmatch(name):
        return None if any(f.endswith("/" + name.rstrip("/")) for f in files()) else "no such file"
    if (match := _CLASS.fullmatch(name)) and match[1] not in _FOREIGN:
        if match[1] not in classes:
            return "no such class"
        has_it = not match[2] or match[2] in classes[match[1]]
        return None if has_it else f"{match[1]} has no {match[2]}"
    if match := _FUNCTION.fullmatch(name):
        known = functions if name.endswith(")") else words
        return None if match[1] in known else "no such name"
    return None


def test_each_name_of_the_page_exists() -> None:
    wrong = {name: why for name in names() if (why := missing(name))}
    assert wrong == {}


@table(
    ("name", "why"),
    [
        ("watch/resume.py", None),
        ("watch/resumes.py", "no such file"),
        ("Outbox.notify_run_service", None),
        ("Outbox.tell", "Outbox has no tell"),
        ("OutboxOfOld", "no such class"),
        ("no_function_of_ours()", "no such name"),
        ("handler_failed_of_old", "no such name"),
    ],
)
def test_a_name_that_is_gone_is_found(name: str, why: str | None) -> None:
    assert missing(name) == why


def test_the_table_of_packages_has_the_order_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [
        {part.strip().removeprefix("etcd_actions.") for part in layer.split("|")}
        for layer in contracts["contracts"][0]["layers"]
    ]
    table = PAGE.read_text().partition("| package | its one job |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert [{n.rstrip("/").removesuffix(".py") for n in _QUOTED.findall(r)} for r in rows] == layers


@table(
    "page",
    [
        p
        for folder in (ROOT / "docs", ROOT)
        for p in sorted(folder.glob("*.md"))
        if p.name != "CHANGELOG.md"
    ],
    ids=lambda path: path.name,
)
def test_each_module_that_a_page_names_exists(page: Path) -> None:
    """By the end of its path. The changelog may name old ones."""
    named = [n.partition("::")[0] for n in _QUOTED.findall(_FENCE.sub("", page.read_text()))]
    modules = {n for n in named if re.fullmatch(r"(?:[\w.-]+/)*\w+\.(?:py|proto)", n)}
    assert {m for m in modules if not any(f.endswith("/" + m) for f in files())} == set()
