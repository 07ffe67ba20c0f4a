"""The document of a report: how the page's modules and data become one file."""

from __future__ import annotations

import base64
import json
import re
from hashlib import sha256
from html.parser import HTMLParser

import pytest

from etcd_actions.page.report import joined_modules, report_document
from etcd_actions.page.static_files import static_files

HOSTILE = {
    "a": "</script><script>alert(1)</script>",
    "b": "<!--<script>",
    "c": "\u2028\u2029\x00\ud800 & &lt; ' \"",
}


class Parts(HTMLParser):
    """The scripts and styles of a document, and its attributes that load something."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.texts: list[tuple[str, dict[str, str | None], str]] = []
        self.loads: list[str] = []
        self.policy = ""
        self._open: tuple[str, dict[str, str | None]] | None = None
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if named.get("http-equiv") == "content-security-policy":
            self.policy = named["content"] or ""
        self._open = (tag, named) if tag in ("script", "style") else None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.texts.append((*self._open, data))
            self._open = None


def test_a_report_has_its_data_as_they_are_and_loads_nothing() -> None:
    parts = Parts(report_document(static_files(), HOSTILE, "a <title>"))
    data = [text for _, named, text in parts.texts if named.get("type") == "application/json"]
    assert json.loads(data[0]) == HOSTILE
    assert "<" not in data[0]
    # The link that skips to the content, and the icon.
    assert [each[:10] for each in parts.loads] == ["data:image", "#main"]


def test_only_what_the_policy_names_can_run() -> None:
    parts = Parts(report_document(static_files(), HOSTILE, "t"))
    hashes = {
        tag: [
            f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
            for kind, named, text in parts.texts
            if kind == tag and named.get("type") != "application/json"
        ]
        for tag in ("script", "style")
    }
    directives = dict(each.strip().split(" ", 1) for each in parts.policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"].split() == hashes["script"]
    assert directives["style-src"].split() == hashes["style"]
    assert len(hashes["script"]) == 2
    assert directives["img-src"] == "data:"
    assert {directives["base-uri"], directives["form-action"]} == {"'none'"}


def test_the_title_is_text() -> None:
    document = report_document(static_files(), {}, "</title><script>alert(1)</script>")
    assert "&lt;/title&gt;&lt;script&gt;" in document


def test_each_module_comes_once_and_after_its_imports() -> None:
    joined = joined_modules(static_files())
    order = re.findall(r"^const module_(\w+) = await", joined, re.MULTILINE)
    assert order[-1] == "app"
    assert len(set(order)) == len(order)
    for at, name in enumerate(order):
        code = static_files()[f"{name}.js"].decode()
        imported = re.findall(r'from "\./([\w-]+)\.js"', code)
        assert set(imported) <= set(order[:at])


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (
            {
                "app.js": 'import { a } from "./b.js";\nexport const c = 1;\n',
                "b.js": 'import { c } from "./app.js";\nexport const a = 1;\n',
            },
            "app -> b -> app",
        ),
        ({"app.js": 'import * as b from "./b.js";\n'}, r"import \* as b"),
        ({"app.js": "export default 1;\n"}, "export default"),
        ({"app.js": "export let a = 1;\n"}, "export let"),
        ({"app.js": 'const a = "</script>";\n'}, "</script"),
        ({"app.js": "// <!-- a comment\n"}, "<!--"),
    ],
)
def test_modules_of_another_form_are_refused(files: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        joined_modules({name: code.encode() for name, code in files.items()})
