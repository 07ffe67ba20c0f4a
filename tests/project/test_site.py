"""What scripts/docs makes of docs/. CI builds the site; these tests need no builder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import etcd_actions
from scripts.site import __main__ as site
from scripts.site import api, settings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_the_reference_has_each_public_name_and_each_link_of_it_leads_somewhere() -> None:
    page = api.page()
    anchors = re.findall(r"^#+ .*\{#([\w.]+)\}$", page, re.MULTILINE)
    assert len(anchors) == len(set(anchors))
    assert set(etcd_actions.__all__) - {"__version__", "errors"} <= set(anchors)
    assert set(re.findall(r"\]\(#([\w.]+)\)", page)) <= set(anchors)
    assert "#### ActionsClient.enqueue {#ActionsClient.enqueue}" in page


def test_the_reference_has_what_the_page_of_public_names_lists() -> None:
    table = (DOCS / "api.md").read_text().partition("## Other modules")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| `[\w.]+` \| (.*) \|$", table, re.MULTILINE)
    names = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert names
    assert names <= set(re.findall(r"\{#(\w+)\}$", api.page(), re.MULTILINE))


@pytest.mark.slow
def test_the_reference_shows_no_object_s_address_and_no_markup_of_docstrings() -> None:
    page = api.page()
    assert " at 0x" not in page
    assert ":class:" not in page


def test_the_tables_of_settings_are_up_to_date() -> None:
    """``scripts/docs --write`` writes them."""
    page = (DOCS / "configuration.md").read_text()
    assert settings.with_tables(page) == page


def test_tables_that_are_old_are_replaced() -> None:
    page = "# x\n\n## All settings\n\ntext\n\n### Old\n\n| `--old` |\n\n## Next\n"
    made = settings.with_tables(page)
    assert made.startswith("# x\n\n## All settings\n\ntext\n\n### ")
    assert made.endswith("|\n\n## Next\n")
    assert "--old" not in made
    assert "| `--endpoints` |" in made


def test_a_page_without_their_section_is_refused() -> None:
    with pytest.raises(ValueError, match="All settings"):
        settings.with_tables("# x\n")


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one page in docs/, and a README."""
    monkeypatch.setattr(site, "ROOT", tmp_path)
    monkeypatch.setattr(site, "BUILD", tmp_path / "build")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# readme\n")
    (tmp_path / "compose.yml").write_text("services: {}\n")
    (tmp_path / "build" / "pages").mkdir(parents=True)
    return tmp_path


def relinked(root: Path, text: str) -> str:
    page = root / "docs" / "one.md"
    page.write_text(text)
    sources = {page: "one.md", root / "README.md": "index.md"}
    return site._relinked(page, root / "build" / "pages" / "one.md", sources)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("[a](../README.md#x)", "[a](index.md#x)"),
        ("[a](#here)", "[a](#here)"),
        ("[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
        ("[a](../compose.yml)", "[a](files/compose.yml)"),
    ],
)
def test_links_are_those_of_the_site(pages: Path, text: str, made: str) -> None:
    assert relinked(pages, text) == made


def test_a_file_that_a_page_links_to_comes_along(pages: Path) -> None:
    relinked(pages, "[a](../compose.yml)")
    assert (pages / "build" / "pages" / "files" / "compose.yml").read_text() == "services: {}\n"


def test_a_link_to_nothing_is_an_error(pages: Path) -> None:
    with pytest.raises(site.Broken, match=r"docs/one\.md links to \.\./nothing\.md"):
        relinked(pages, "[a](../nothing.md)")


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example.org/x.js">',
        '<link rel="stylesheet" href="//fonts.example.org/x.css">',
        '<link href="https://fonts.example.org" rel="preconnect">',
        "<img alt=x src=http://example.org/x.png>",
        "@font-face{src:url(https://fonts.example.org/x.woff2)}",
    ],
)
def test_what_a_browser_would_fetch_is_found(pages: Path, html: str) -> None:
    (pages / "build" / "html").mkdir()
    page = pages / "build" / "html" / "one.html"
    page.write_text(f"<a href='https://example.org/'>x</a>{html}")
    ((found, _),) = site._fetched()
    assert found == page


def test_a_page_that_the_navigation_lacks_is_an_error(pages: Path) -> None:
    (pages / "build" / "zensical.toml").write_text(
        '[project]\nnav = [{ "A" = [{ "B" = "b.md" }] }]'
    )
    (pages / "build" / "pages" / "c.md").write_text("# c\n")
    with pytest.raises(site.Broken, match=r"\['c\.md'\]; not there: \['b\.md'\]"):
        site._check_navigation()
