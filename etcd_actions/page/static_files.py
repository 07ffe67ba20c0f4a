"""Serves the page's files: a table that is read once; no part of a request names a file.

The files are public: they hold no data. The browser reads the data with the methods of the service,
which check the token of the client and its projects.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

from etcd_actions.web import respond

if TYPE_CHECKING:
    from etcd_actions.web import Message, Receive, Send

FOLDER: Final = "/page/"
"""The path of all files but the document."""

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_KINDS: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_DOCUMENT: Final = "index.html"
# The path of Run.url: the document reads the run's name from it.
_RUN: Final = re.compile(r"/v2/domain/[^/]+/project/[^/]+/runs/[^/]+/?")
# A new version has the same paths: browsers check whether their copy is current.
_FILES_ARE_KEPT: Final = (b"cache-control", b"no-cache")
_VARIES: Final = (b"vary", b"accept-encoding")
_NOT_KEPT: Final = (b"cache-control", b"no-store")


class _File(NamedTuple):
    """One file.

    Attributes:
        body: Its content.
        compressed: Its content, compressed by gzip.
        kind: Its content type.
        tag: Its ETag. It is weak because both forms have it.
    """

    body: bytes
    compressed: bytes
    kind: str
    tag: bytes


class StaticFiles:
    """A route; see :class:`~etcd_actions.server.application.Route`.

    Args:
        config: The settings that the page reads first: whether it offers to abort and signal
            (``actions``), whether the service needs a token (``token``), and the seconds after
            which a silent stream is sent a message (``keepalive``).
    """

    def __init__(self, config: Mapping[str, object]) -> None:
        self._files = {name: _file(name, body) for name, body in static_files().items()}
        self._config = json.dumps(config).encode()

    def answers(self, path: str) -> bool:
        """Whether a request for a path is answered here."""
        return path == "/" or path.startswith(FOLDER) or _RUN.fullmatch(path) is not None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, method = scope["path"], scope["method"]
        is_head = method == "HEAD"
        if method not in ("GET", "HEAD"):
            refused = (*_HEADERS, _NOT_KEPT, (b"allow", b"GET, HEAD"))
            await respond(send, 405, b"use GET or HEAD\n", refused)
            return
        name = path.removeprefix(FOLDER) if path.startswith(FOLDER) else _DOCUMENT
        if name == "config.json":
            headers = (*_HEADERS, _NOT_KEPT)
            kind = "application/json"
            await respond(send, 200, self._config, headers, kind=kind, is_head=is_head)
            return
        file = self._files.get(name)
        if file is None:
            headers = (*_HEADERS, _NOT_KEPT)
            await respond(send, 404, b"the page is at /\n", headers, is_head=is_head)
            return
        described = [*_HEADERS, _FILES_ARE_KEPT, _VARIES, (b"etag", b"W/" + file.tag)]
        if file.tag in [tag.removeprefix(b"W/") for tag in _values(scope, b"if-none-match")]:
            await send({"type": "http.response.start", "status": 304, "headers": described})
            await send({"type": "http.response.body", "body": b""})
            return
        body = file.body
        if b"gzip" in _values(scope, b"accept-encoding"):
            body = file.compressed
            described.append((b"content-encoding", b"gzip"))
        await respond(send, 200, body, described, kind=file.kind, is_head=is_head)


def static_files() -> dict[str, bytes]:
    """The files by name, as the package has them."""
    folder = resources.files("etcd_actions.page").joinpath("static")
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


def _file(name: str, body: bytes) -> _File:
    tag = sha256(body).hexdigest()[:32]
    kind = _KINDS[name.rpartition(".")[2]]
    return _File(body, gzip.compress(body, mtime=0), kind, f'"{tag}"'.encode())


def _values(scope: Message, header: bytes) -> list[bytes]:
    """The values of a header that is a list; one with a parameter, such as ``gzip;q=0``, is not."""
    found = [value for name, value in scope["headers"] if name.lower() == header]
    return [each.strip() for value in found for each in value.split(b",")]
