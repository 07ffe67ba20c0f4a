"""Uploads and downloads by plain HTTP, at signed URLs.

The signature of a URL proves that its client may use it: no token is needed. An upload is stored as
it arrives. The number of transfers at once is limited; the bodies of further uploads are read when
an earlier transfer has ended.
"""

from __future__ import annotations

import base64
import binascii
import errno
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
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
from etcd_actions.web import Message, Receive, Send, respond, take_long_body

PATH: Final = "/blobs/"
STORED: Final = "stored/"
"""The start of paths of blobs, which end with their keys."""
LOCAL: Final = "local/"
"""The start of paths of other files of this machine, which end with their paths."""

# The most uploads, and the most downloads, at a time; others wait.
_UPLOADS: Final = 32
_DOWNLOADS: Final = 128
_PATIENCE: Final = 300.0
"""Seconds that a transfer waits for others."""
_RETRY: Final = (b"retry-after", b"2")
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_TYPES: Final = {".html": "text/html; charset=utf-8", ".txt": "text/plain; charset=utf-8"}
# A task writes its report: it must not act as a page of this service.
_SAFE: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox allow-scripts allow-popups"),
    (b"cache-control", b"private, no-store"),
)

_log = structlog.get_logger(__name__)


class _Failed(Exception):
    """The request has failed: the response is a status and the message."""

    def __init__(self, status: HTTPStatus, reason: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


class _Interrupted(Exception):
    """The client stopped sending its body."""


class Transfers:
    """The route; see :class:`~etcd_actions.server.application.Route`.

    Args:
        store: The blob store.
        local: Reads other files that a URL may name; None for none.
        signer: Signs and verifies URLs.
        most: Bytes of an upload, at most.
    """

    def __init__(
        self, store: BlobStore, local: LocalFiles | None, signer: UrlSigner, most: int
    ) -> None:
        self._store = store
        self._local = local
        self._signer = signer
        self._most = most
        self._uploads = trio.Semaphore(_UPLOADS)
        self._downloads = trio.Semaphore(_DOWNLOADS)

    def answers(self, path: str) -> bool:
        """Whether a request for a path is answered here."""
        return path.startswith(PATH)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await self._answer(scope, receive, send)
        except _Failed as failed:
            await respond(
                send,
                failed.status,
                f"{printable(str(failed))}\n".encode(),
                (*failed.headers, *_SAFE),
                kind="text/plain; charset=utf-8",
                is_head=scope["method"] == "HEAD",
            )

    async def url(self, origin: str, grant: Grant) -> str:
        """The URL of a grant.

        Args:
            origin: How the client reaches this server.
            grant: The permission; its path starts with ``stored/`` or ``local/``.

        Raises:
            EtcdError: The secret of signatures could not be read, or created.
            DecodeError: The stored secret is invalid.
        """
        return f"{origin}{PATH}{quote(grant.path)}?{await self._signer.query(grant)}"

    def open(
        self, path: str, start: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[Blob | None]:
        """Open a file by its path; None if there is none."""
        if path.startswith(STORED):
            return self._store.read(path.removeprefix(STORED), start, length)
        if self._local is None or not path.startswith(LOCAL):
            raise _Failed(HTTPStatus.NOT_FOUND, "there is no file of that name")
        return self._local.read(path.removeprefix(LOCAL), start, length)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        method = scope["method"]
        if method not in ("GET", "HEAD", "PUT"):
            allow = (b"allow", b"GET, HEAD, PUT")
            raise _Failed(HTTPStatus.METHOD_NOT_ALLOWED, "use GET, HEAD or PUT", allow)
        grant = await self._grant("PUT" if method == "PUT" else "GET", scope)
        try:
            if method == "PUT":
                await self._put(grant, scope, receive, send)
            else:
                await self._get(grant, scope, send)
        except ActionError as error:
            raise _Failed(HTTPStatus.BAD_REQUEST, str(error)) from None
        except BlobUnusable as error:
            raise _Failed(HTTPStatus.NOT_FOUND, str(error)) from None
        except BlobError as error:
            _log.warning("transfer_failed", method=method, path=grant.path[:200], error=str(error))
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _FULL:
                raise _Failed(HTTPStatus.INSUFFICIENT_STORAGE, str(error)) from None
            raise _Failed(HTTPStatus.SERVICE_UNAVAILABLE, str(error), _RETRY) from None

    async def _grant(self, method: Literal["GET", "PUT"], scope: Message) -> Grant:
        raw = scope.get("raw_path") or quote(scope["path"]).encode()
        try:
            path = unquote_to_bytes(raw).decode().removeprefix(PATH)
        except UnicodeDecodeError:
            raise _Failed(HTTPStatus.NOT_FOUND, "the path is not UTF-8") from None
        query = scope["query_string"].decode("latin-1")
        try:
            return await self._signer.check(method, path, query)
        except BadSignature as error:
            raise _Failed(HTTPStatus.FORBIDDEN, str(error)) from None
        except Expired as error:
            raise _Failed(HTTPStatus.GONE, str(error)) from None
        except (EtcdError, DecodeError) as error:
            reason = f"signatures cannot be verified: {error}"
            raise _Failed(HTTPStatus.SERVICE_UNAVAILABLE, reason, _RETRY) from None

    async def _put(self, grant: Grant, scope: Message, receive: Receive, send: Send) -> None:
        most = self._most if grant.length is None else grant.length
        _check_announced(grant, most, _headers(scope))
        take_long_body(scope)
        async with _turn(self._uploads):
            try:
                async with aclosing(_body(receive)) as parts:
                    key = grant.path.removeprefix(STORED)
                    await self._store.put(key, parts, most=most, length=grant.length, md5=grant.md5)
            except BlobTooLarge as error:
                raise _Failed(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
            except BlobMismatch as error:
                raise _Failed(HTTPStatus.BAD_REQUEST, str(error)) from None
            except BlobExists as error:
                raise _Failed(HTTPStatus.CONFLICT, str(error)) from None
            except _Interrupted:
                raise _Failed(
                    HTTPStatus.REQUEST_TIMEOUT, "the body did not arrive: send it again"
                ) from None
        await _send_all(send, HTTPStatus.OK, [(b"content-length", b"0")])

    async def _get(self, grant: Grant, scope: Message, send: Send) -> None:
        async with _turn(self._downloads), self.open(grant.path, 0, 0) as blob:
            if blob is None:
                raise _Failed(HTTPStatus.NOT_FOUND, "there is no such file, or it was deleted")
            size = blob.info.size
        requested = _headers(scope)
        # Files have no validator here, so a condition on one never holds.
        byte_range = None if b"if-range" in requested else requested.get(b"range")
        start, end, status = _range(byte_range, size)
        headers = [
            *_SAFE,
            (b"accept-ranges", b"bytes"),
            *_content_headers(PurePosixPath(grant.path)),
            (b"content-length", b"%d" % (end - start)),
        ]
        if status is HTTPStatus.PARTIAL_CONTENT:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, size)))
        if scope["method"] == "HEAD":
            await _send_all(send, status, headers)
            return
        async with _turn(self._downloads), self.open(grant.path, start, end - start) as blob:
            if blob is None or blob.info.size != size:
                raise _Failed(HTTPStatus.NOT_FOUND, "the file was deleted, or replaced")
            await send({"type": "http.response.start", "status": status, "headers": headers})
            try:
                async for part in blob.parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except BlobError as error:
                # A task may truncate its file at any time. The client detects the missing bytes.
                _log.warning("download_cut", path=grant.path[:200], error=str(error))
                return
            await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def _turn(semaphore: trio.Semaphore) -> AsyncIterator[None]:
    """Wait for capacity, and occupy it while the context is open.

    Raises:
        _Failed: 503 if there is none within :data:`_PATIENCE`.
    """
    with trio.move_on_after(_PATIENCE) as scope:
        await semaphore.acquire()
    if scope.cancelled_caught:
        reason = "too many transfers are in progress: try again"
        raise _Failed(HTTPStatus.SERVICE_UNAVAILABLE, reason, _RETRY)
    try:
        yield
    finally:
        semaphore.release()


async def _body(receive: Receive) -> AsyncGenerator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Interrupted
        yield message["body"]
        if not message["more_body"]:
            return


def _headers(scope: Message) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in scope["headers"]}


def _check_announced(grant: Grant, most: int, headers: Mapping[bytes, bytes]) -> None:
    """Refuse an upload by its headers, before its body arrives."""
    if not grant.path.startswith(STORED):
        raise _Failed(
            HTTPStatus.FORBIDDEN, "this URL is of a file, not of a blob: nothing can be uploaded"
        )
    length = headers.get(b"content-length")
    if length is not None:
        size = int(length) if length.isdigit() and len(length) < 19 else -1
        if size > most:
            raise _Failed(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"content-length is {size}, above the largest that is accepted, {most}",
            )
        if grant.length is not None and size != grant.length:
            raise _Failed(
                HTTPStatus.BAD_REQUEST,
                f"content-length is {size}, and the URL is for {grant.length} bytes",
            )
    announced = headers.get(b"content-md5")
    if announced is not None and grant.md5 and _md5(announced) != grant.md5:
        raise _Failed(
            HTTPStatus.BAD_REQUEST, "content-md5 differs from the MD5 that the URL is for"
        )


def _md5(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _range(header: bytes | None, size: int) -> tuple[int, int, HTTPStatus]:
    """The range of bytes to send, its end excluded, and the status of the response.

    A header other than a single range of bytes is ignored, as RFC 9110 allows.

    Raises:
        _Failed: 416 if the file has none of the requested bytes.
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
        raise _Failed(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"there are {size} bytes",
            (b"content-range", b"bytes */%d" % size),
        )
    return start, end, HTTPStatus.PARTIAL_CONTENT


def _content_headers(path: PurePosixPath) -> Iterator[tuple[bytes, bytes]]:
    """The headers content-type and content-disposition of a file."""
    shown = _TYPES.get(path.suffix.lower())
    yield b"content-type", (shown or "application/octet-stream").encode()
    kind = "attachment" if shown is None else "inline"
    name = quote(path.name, safe="")
    yield b"content-disposition", f"{kind}; filename*=UTF-8''{name}".encode()


async def _send_all(send: Send, status: HTTPStatus, headers: list[tuple[bytes, bytes]]) -> None:
    """Send a response without a body."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
