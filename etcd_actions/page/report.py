"""The page as one document that opens without a server: its modules, its style and its data.

The document loads nothing. Its content security policy, in a meta element, has the hashes of its
own scripts and style, so no other script runs in it, whatever the data are.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from html import escape
from typing import Final

_DOCUMENT: Final = "index.html"
_ENTRY: Final = "app.js"
_SNAPSHOT: Final = "etcd-actions-snapshot"

_IMPORT: Final = re.compile(r'^import \{([^}]*)\} from "\./([\w-]+)\.js";\n', re.MULTILINE)
_EXPORT: Final = re.compile(
    r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE
)
_UNKNOWN: Final = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)
_LOADED: Final = re.compile(r"[ \t]*<(?:link|script)\b[^>]*>(?:</script>)?\n?")
_ATTRIBUTE: Final = re.compile(r'(\w+)="([^"]*)"')
# With one of these in it, the text of a script could end before its end tag.
_ENDS: Final = re.compile(r"</script|<!--|<script", re.IGNORECASE)


def report_document(files: Mapping[str, bytes], snapshot: object, title: str) -> str:
    """The document.

    Args:
        files: The page's files by name.
        snapshot: The data, as JSON has them.
        title: The title until the page sets its own.

    Raises:
        ValueError: The page's files are not of the form that can be joined; a defect.
    """
    document = files[_DOCUMENT].decode()
    hashes: dict[str, list[str]] = {"script-src": [], "style-src": []}

    def inlined(found: re.Match[str]) -> str:
        attributes = dict(_ATTRIBUTE.findall(found[0]))
        name = (attributes.get("src") or attributes.get("href") or "").rpartition("/")[2]
        match attributes.get("rel", attributes.get("type", "script")):
            case "modulepreload":
                return ""
            case "icon":
                return f'<link rel="icon" href="{_data_url(files[name])}">\n'
            case "stylesheet":
                style = files[name].decode()
                hashes["style-src"].append(_hash(style))
                return f"<style>{style}</style>\n"
            case "module":
                script = joined_modules(files, name.removesuffix(".js"))
                hashes["script-src"].append(_hash(script))
                return f'<script type="module">{script}</script>\n'
            case _:
                script = _checked(name, files[name].decode())
                hashes["script-src"].append(_hash(script))
                return f"<script>{script}</script>\n"

    document = _LOADED.sub(inlined, document)
    sources = "; ".join(f"{name} {' '.join(found)}" for name, found in hashes.items())
    policy = f"default-src 'none'; {sources}; img-src data:; base-uri 'none'; form-action 'none'"
    meta = f'<meta http-equiv="content-security-policy" content="{policy}">\n'
    data = f'<script type="application/json" id="{_SNAPSHOT}">{_json(snapshot)}</script>\n'
    document = re.sub("<title>[^<]*</title>", lambda _: f"<title>{escape(title)}</title>", document)
    # The policy comes before everything that it is about.
    return document.replace('<meta charset="utf-8">\n', f'<meta charset="utf-8">\n{meta}{data}', 1)


def joined_modules(files: Mapping[str, bytes], entry: str = "app") -> str:
    """The modules as one: each in a function of its own, after those that it imports."""
    parts = [_as_function(name, files) for name in _in_order(files, entry)]
    return _checked(entry, "\n".join(parts))


def _in_order(files: Mapping[str, bytes], entry: str) -> list[str]:
    """The names of the modules, each after its imports."""
    found: list[str] = []
    open_names: list[str] = []

    def visit(name: str) -> None:
        if name in found:
            return
        if name in open_names:
            raise ValueError(f"modules import each other: {' -> '.join([*open_names, name])}")
        open_names.append(name)
        for imported in _IMPORT.finditer(files[f"{name}.js"].decode()):
            visit(imported[2])
        open_names.pop()
        found.append(name)

    visit(entry)
    return found


def _as_function(name: str, files: Mapping[str, bytes]) -> str:
    code = files[f"{name}.js"].decode()
    exported = list(_exported(code))
    code = _IMPORT.sub(_taken, code)
    code = _EXPORT.sub("", code)
    if unknown := _UNKNOWN.search(code):
        raise ValueError(f"{name}.js: not understood: {unknown[0]}")
    return (
        f"const {_variable(name)} = await (async () => {{\n{code}\n"
        f"return {{{', '.join(exported)}}};\n}})();"
    )


def _exported(code: str) -> Iterator[str]:
    return (found[1] for found in _EXPORT.finditer(code))


def _taken(found: re.Match[str]) -> str:
    names = found[1].replace(" as ", ": ")
    return f"const {{{names}}} = {_variable(found[2])};\n"


def _variable(module: str) -> str:
    return f"module_{module.replace('-', '_')}"


def _checked(name: str, script: str) -> str:
    if found := _ENDS.search(script):
        raise ValueError(f"{name}: {found[0]} cannot be in a script of a document")
    return script


def _json(data: object) -> str:
    """JSON in ASCII that no parser of HTML takes for a tag."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


def _data_url(image: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(image).decode()}"
