"""Uploads and downloads by plain HTTP, at URLs that are signed.

A URL says what may be done at it, and is its own proof: no token is asked for. What is uploaded
goes to the store as it arrives. No more than some uploads go on at once: others wait, unread.
"""

from __future__ import annotations

import base64
import binascii
import errno
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Final, Literal
from urllib.parse import quote, unquote_to_bytes

import structlog
import trio

from etcd_actions._internal.quoting import printable
from etcd_actions.blobs import (
    Blob,
    BlobError,
    BlobExists,
    BlobMismatch,
    BlobStore,
    BlobTooLarge,
    BlobUnusable,
    Grant,
    UrlSigner,
)
from etcd_actions.blobs.signing import BadSignature, Expired
from etcd_actions.errors import ActionError, DecodeError, EtcdError
from etcd_actions.server.front.local_files import LocalFiles
from etcd_actions.web import Message, Receive, Send, take_long_body

PATH: Final = "/blobs/"
STORED: Final = "stored/"
"""Below it are blobs of the store, by their keys."""
LOCAL: Final = "local/"
"""Below it are other files of this machine, by their paths."""

_UPLOADS: Final = 32
_DOWNLOADS: Final = 128
_PATIENCE: Final = 300.0
"""Seconds that a transfer waits for others."""
_RETRY_AFTER: Final = b"2"
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_TYPES: Final = {".html": "text/html; charset=utf-8", ".txt": "text/plain; charset=utf-8"}
# A report is a task's: it must not act as a page of this service.
_SAFE: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox allow-scripts allow-popups"),
    (b"cache-control", b"private, no-store"),
)

_log = structlog.get_logger(__name__)


class _Answer(Exception):
    """A request is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, why: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(why)
        self.status = status
        self.headers = headers


class _CutOff(Exception):
    """The client sends no more of its body."""


class Transfers:
    """The route; see :class:`~etcd_actions.server.application.Route`.

    Args:
        store: Where blobs are.
        local: Other files that a URL may name; None for none.
        signer: Who signs.
        most: Bytes of an upload, at most.
    """

    path = PATH

    def __init__(
        self, store: BlobStore, local: LocalFiles | None, signer: UrlSigner, most: int
    ) -> None:
        self._store = store
        self._local = local
        self._signer = signer
        self._most = most
        self._uploads = trio.Semaphore(_UPLOADS)
        self._downloads = trio.Semaphore(_DOWNLOADS)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await self._answer(scope, receive, send)
        except _Answer as answer:
            await _tell(send, answer, is_head=scope["method"] == "HEAD")

    async def url(self, origin: str, grant: Grant) -> str:
        """The URL of a grant.

        Args:
            origin: How the client reaches this server.
            grant: What is allowed; its path begins with ``stored/`` or ``local/``.

        Raises:
            EtcdError: The secret of signatures could not be read, or made.
            DecodeError: It is none.
        """
        return f"{origin}{PATH}{quote(grant.path)}?{await self._signer.query(grant)}"

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        method = scope["method"]
        if method not in ("GET", "HEAD", "PUT"):
            allow = (b"allow", b"GET, HEAD, PUT")
            raise _Answer(HTTPStatus.METHOD_NOT_ALLOWED, "GET, HEAD and PUT are known here", allow)
        grant = await self._grant("PUT" if method == "PUT" else "GET", scope)
        try:
            if method == "PUT":
                await self._put(grant, scope, receive, send)
            else:
                await self._get(grant, scope, send)
        except ActionError as error:
            raise _Answer(HTTPStatus.BAD_REQUEST, str(error)) from None
        except BlobUnusable as error:
            raise _Answer(HTTPStatus.NOT_FOUND, str(error)) from None
        except BlobError as error:
            _log.warning("transfer_failed", method=method, path=grant.path[:200], error=str(error))
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _FULL:
                raise _Answer(HTTPStatus.INSUFFICIENT_STORAGE, str(error)) from None
            retry = (b"retry-after", _RETRY_AFTER)
            raise _Answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error), retry) from None

    async def _grant(self, method: Literal["GET", "PUT"], scope: Message) -> Grant:
        raw = scope.get("raw_path") or quote(scope["path"]).encode()
        try:
            path = unquote_to_bytes(raw).decode().removeprefix(PATH)
        except UnicodeDecodeError:
            raise _Answer(HTTPStatus.NOT_FOUND, "the path is not UTF-8") from None
        query = scope["query_string"].decode("latin-1")
        try:
            return await self._signer.check(method, path, query)
        except BadSignature as error:
            raise _Answer(HTTPStatus.FORBIDDEN, str(error)) from None
        except Expired as error:
            raise _Answer(HTTPStatus.GONE, str(error)) from None
        except (EtcdError, DecodeError) as error:
            raise _Answer(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"signatures cannot be verified: {error}",
                (b"retry-after", _RETRY_AFTER),
            ) from None

    async def _put(self, grant: Grant, scope: Message, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        self._check_announced(grant, headers)
        take_long_body(scope)
        async with _turn(self._uploads):
            try:
                async with aclosing(_body(receive)) as parts:
                    await self._store.put(
                        grant.path.removeprefix(STORED),
                        parts,
                        most=self._most if grant.length is None else grant.length,
                        length=grant.length,
                        md5=grant.md5,
                    )
            except BlobTooLarge as error:
                raise _Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
            except BlobMismatch as error:
                raise _Answer(HTTPStatus.BAD_REQUEST, str(error)) from None
            except BlobExists as error:
                raise _Answer(HTTPStatus.CONFLICT, str(error)) from None
            except _CutOff:
                raise _Answer(
                    HTTPStatus.REQUEST_TIMEOUT, "the body did not arrive: send it again"
                ) from None
        await _send_all(send, HTTPStatus.OK, ((b"content-length", b"0"),), b"")

    def _check_announced(self, grant: Grant, headers: Mapping[bytes, bytes]) -> None:
        """Refuse what cannot be right before it arrives."""
        if not grant.path.startswith(STORED):
            raise _Answer(HTTPStatus.FORBIDDEN, "only what is stored can be put")
        length = headers.get(b"content-length")
        if length is not None:
            size = int(length) if length.isdigit() and len(length) < 19 else -1
            if size > (self._most if grant.length is None else grant.length):
                most = self._most if grant.length is None else grant.length
                raise _Answer(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"{size} bytes are announced, and {most} are taken",
                )
            if grant.length is not None and size != grant.length:
                raise _Answer(
                    HTTPStatus.BAD_REQUEST,
                    f"{size} bytes are announced, and the URL is for {grant.length}",
                )
        announced = headers.get(b"content-md5")
        if announced is not None and grant.md5 and _md5(announced) != grant.md5:
            raise _Answer(
                HTTPStatus.BAD_REQUEST, "content-md5 is another than that which the URL is for"
            )

    async def _get(self, grant: Grant, scope: Message, send: Send) -> None:
        async with _turn(self._downloads), self._open(grant.path, 0, 0) as blob:
            if blob is None:
                raise _Answer(HTTPStatus.NOT_FOUND, "there is no such file, or no more")
            size = blob.info.size
        headers_in = _headers(scope)
        # Files have no validator here, so a condition on one never holds.
        wanted = None if b"if-range" in headers_in else headers_in.get(b"range")
        start, end, status = _range(wanted, size)
        headers = [
            *_SAFE,
            (b"accept-ranges", b"bytes"),
            (b"content-type", _type_of(grant.path).encode()),
            (b"content-disposition", _disposition(grant.path)),
            (b"content-length", b"%d" % (end - start)),
        ]
        if status is HTTPStatus.PARTIAL_CONTENT:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, size)))
        if scope["method"] == "HEAD":
            await _send_all(send, status, headers, b"")
            return
        async with _turn(self._downloads), self._open(grant.path, start, end - start) as blob:
            if blob is None or blob.info.size != size:
                raise _Answer(HTTPStatus.NOT_FOUND, "the file was deleted, or replaced")
            await send({"type": "http.response.start", "status": status, "headers": headers})
            try:
                async for part in blob.parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except BlobError as error:
                # A task may cut its file at any time. The client sees that bytes are missing.
                _log.warning("download_cut", path=grant.path[:200], error=str(error))
                return
            await send({"type": "http.response.body", "body": b""})

    def _open(self, path: str, start: int, length: int) -> AbstractAsyncContextManager[Blob | None]:
        if path.startswith(STORED):
            return self._store.read(path.removeprefix(STORED), start, length)
        if self._local is None or not path.startswith(LOCAL):
            raise _Answer(HTTPStatus.NOT_FOUND, "there is nothing of that name")
        return self._local.read(path.removeprefix(LOCAL), start, length)


@asynccontextmanager
async def _turn(semaphore: trio.Semaphore) -> AsyncIterator[None]:
    """Wait until there is room for one more."""
    with trio.move_on_after(_PATIENCE) as scope:
        await semaphore.acquire()
    if scope.cancelled_caught:
        raise _Answer(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "too many transfers are under way: try again",
            (b"retry-after", _RETRY_AFTER),
        )
    try:
        yield
    finally:
        semaphore.release()


async def _body(receive: Receive) -> AsyncGenerator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _CutOff
        yield message["body"]
        if not message["more_body"]:
            return


def _headers(scope: Message) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in scope["headers"]}


def _md5(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _range(header: bytes | None, size: int) -> tuple[int, int, HTTPStatus]:
    """First byte, the one after the last, and the status.

    What is no single range of bytes counts as none, as RFC 9110 allows.
    """
    found = _RANGE.fullmatch((header or b"").decode("latin-1").strip())
    if found is None or found[1] == found[2] == "":
        return 0, size, HTTPStatus.OK
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start = int(found[1])
        end = min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < start:
            return 0, size, HTTPStatus.OK
    if start >= end:
        raise _Answer(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"there are {size} bytes",
            (b"content-range", b"bytes */%d" % size),
        )
    return start, end, HTTPStatus.PARTIAL_CONTENT


def _type_of(path: str) -> str:
    return _TYPES.get(PurePosixPath(path).suffix.lower(), "application/octet-stream")


def _disposition(path: str) -> bytes:
    name = PurePosixPath(path).name
    kind = "inline" if PurePosixPath(path).suffix.lower() in _TYPES else "attachment"
    return f"{kind}; filename*=UTF-8''{quote(name, safe='')}".encode()


async def _tell(send: Send, answer: _Answer, *, is_head: bool) -> None:
    body = f"{printable(str(answer))}\n".encode()
    headers = (
        *answer.headers,
        *_SAFE,
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    )
    await _send_all(send, answer.status, headers, b"" if is_head else body)


async def _send_all(send: Send, status: HTTPStatus, headers: object, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
