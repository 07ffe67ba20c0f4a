"""Builds the site into build/site/html, without network, and fails at whatever is not right.

That is a link to a page, heading or file that is not there, a page that the navigation does not
have, and anything that a reader's browser would fetch from another host.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from scripts.site import api, settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BUILD = ROOT / "build" / "site"
CONFIG = "zensical.toml"

# Pages that are elsewhere in the repository, by their names in the site.
ELSEWHERE = {
    "index.md": ROOT / "README.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "security.md": ROOT / "SECURITY.md",
    "examples.md": ROOT / "examples" / "README.md",
    "measuring.md": ROOT / "scripts" / "bench" / "README.md",
}
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\ssrc=[\"']?(?:https?:)?//"
    r"|<link\b(?=[^>]*\srel=[\"']?(?:stylesheet|icon|preload|preconnect))[^>]*\shref=[\"']?(?:https?:)?//"
    r"|(?:url\(|@import )[\"']?(?:https?:)?//"
)


class Broken(Exception):
    """The site cannot be built as it is."""


def main() -> None:
    """Build the site, or write what is generated in docs/."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="only write the tables of docs/configuration.md"
    )
    if parser.parse_args().write:
        page = DOCS / "configuration.md"
        page.write_text(settings.with_tables(page.read_text()))
        return
    try:
        build()
    except Broken as error:
        sys.exit(f"scripts/docs: {error}")
    print(BUILD / "html" / "index.html")


def build() -> None:
    """Make the pages, have them built, and look at what came out."""
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(DOCS, BUILD / "pages")
    sources = {path: path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*")}
    sources |= {path: name for name, path in ELSEWHERE.items()}
    for path, name in sources.items():
        if path.suffix == ".md":
            page = BUILD / "pages" / name
            page.write_text(_relinked(path, page, sources))
    (BUILD / "pages" / "api-reference.md").write_text(api.page())
    shutil.copy(Path(__file__).with_name(CONFIG), BUILD)
    _check_navigation()
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", CONFIG],
        cwd=BUILD,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        # In strict mode it ends by a traceback of its own, which says nothing.
        text, _, _ = (done.stdout + done.stderr).partition("Traceback (most recent call last)")
        raise Broken(re.sub(r"\x1b\[[0-9;]*m", "", text))
    fetched = sorted({f"{path.relative_to(BUILD)}: {text}" for path, text in _fetched()})
    if fetched:
        raise Broken("a browser would fetch from other hosts:\n" + "\n".join(fetched))


def _relinked(path: Path, page: Path, sources: dict[Path, str]) -> str:
    """The text of a page, whose links are those of the site.

    Raises:
        Broken: A link leads to a file that is not there.
    """

    def link(found: re.Match[str]) -> str:
        target, hash_, anchor = found[1].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return found[1]
        there = (path.parent / target).resolve()
        if there not in sources:
            if not there.exists():
                raise Broken(f"{path.relative_to(ROOT)} links to {target}, which is not there")
            # A file of the repository: it comes along.
            name = f"files/{there.relative_to(ROOT).as_posix()}"
            (BUILD / "pages" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there, BUILD / "pages" / name)
        else:
            name = sources[there]
        relative = os.path.relpath(BUILD / "pages" / name, page.parent)
        return relative + hash_ + anchor

    return _LINK.sub(link, path.read_text())


def _check_navigation() -> None:
    """Every page is in the navigation, and is there.

    Raises:
        Broken: One is not.
    """
    named = set(_pages(tomllib.loads((BUILD / CONFIG).read_text())["project"]["nav"]))
    there = {path.relative_to(BUILD / "pages").as_posix() for path in BUILD.rglob("*.md")}
    if named != there:
        raise Broken(
            f"not in the navigation: {sorted(there - named)}; not there: {sorted(named - there)}"
        )


def _pages(entries: list[dict[str, object]]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            if isinstance(value, list):
                yield from _pages(value)
            else:
                yield str(value)


def _fetched() -> Iterator[tuple[Path, str]]:
    for path in sorted((BUILD / "html").rglob("*")):
        if path.suffix in (".html", ".css"):
            for found in _FETCHED.finditer(path.read_text()):
                yield path, found[0][-120:]


if __name__ == "__main__":
    main()
