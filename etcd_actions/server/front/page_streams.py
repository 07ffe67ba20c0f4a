"""Streams for the page, as lines of JSON: the changes of runs, and the state of the cluster.

They are not methods, since Flyte has none of these. Their clients are admitted and counted like
those of methods; their streams have a limit of their own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import trio
from connectrpc.code import Code
from google.protobuf.json_format import MessageToDict

from etcd_actions.errors import EtcdActionsError
from etcd_actions.server.caller import CALLER
from etcd_actions.server.error_codes import Refusal
from etcd_actions.web import ClientDisconnected, respond

if TYPE_CHECKING:
    from etcd_actions.client import ActionsClient
    from etcd_actions.runs.run_index import RunIndex
    from etcd_actions.server.application import Calls
    from etcd_actions.server.front.run_messages import RunMessages
    from etcd_actions.server.streams import Streams
    from etcd_actions.web import Message, Receive, Send

Lines = AsyncGenerator[object, None]
"""The values that a stream sends, each as a line of JSON; None is an empty line."""

_HEADERS: Final = (
    (b"content-type", b"application/x-ndjson"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# With the requests of its images and scripts a page of another origin sends no Origin. Browsers
# state the relation in this header instead; other clients do not send it.
_SITE: Final = b"sec-fetch-site"
_OWN_SITES: Final = (b"same-origin", b"none")
_STATUSES: Final = {
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
}


class PageStream:
    """The route of one stream; see :class:`~etcd_actions.server.application.Route`.

    Args:
        path: Its path.
        client: Its containment is the boundary of each request.
        calls: Admits the clients.
        lines: Generates the lines for one client.
    """

    def __init__(
        self, path: str, client: ActionsClient, calls: Calls, lines: Callable[[], Lines]
    ) -> None:
        self._path = path
        self._client = client
        self._calls = calls
        self._lines = lines

    def answers(self, path: str) -> bool:
        """Whether a request for a path is answered here."""
        return path == self._path

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request: with the lines, or with a JSON object that has the error."""
        if (unusable := await _unusable(scope, receive)) is not None:
            status, text = unusable
            await respond(send, status, text, _HEADERS[1:])
            return
        began = trio.current_time()
        response = _Response(send)
        refusal: Refusal | None = Refusal(Code.INTERNAL, "it failed: see the log of the service")
        disconnected: ClientDisconnected | None = None
        with self._client.containment.unit("request", f"page {self._path}"):
            try:
                await self._calls.admit_request(scope)
                async with aclosing(self._lines()) as lines:
                    async for line in lines:
                        await response.send_line(line)
                refusal = None
            except Refusal as raised:
                refusal = raised
            except EtcdActionsError as raised:
                refusal = Refusal(Code.UNAVAILABLE, str(raised))
            except ClientDisconnected as raised:
                # It is not a failure of the service: the listener counts it.
                disconnected, refusal = raised, None
        self._calls.count(self._path, "ok" if refusal is None else refusal.code.value, began)
        if disconnected is not None:
            raise disconnected
        await response.end(refusal)


async def _unusable(scope: Message, receive: Receive) -> tuple[HTTPStatus, bytes] | None:
    """The status and text for a request that no stream answers; None if one may."""
    if scope["method"] != "GET":
        return HTTPStatus.METHOD_NOT_ALLOWED, b"use GET\n"
    sites = [value for name, value in scope["headers"] if name.lower() == _SITE]
    if any(site not in _OWN_SITES for site in sites):
        return HTTPStatus.FORBIDDEN, b"use the page of this service\n"
    # The server reports the client's end only after the body was read. The body is empty.
    body = await receive()
    if body["type"] != "http.request" or body.get("body") or body.get("more_body"):
        return HTTPStatus.BAD_REQUEST, b"send no body\n"
    return None


class _Response:
    """The response to one request: lines of JSON, or an error.

    Args:
        send: ASGI's.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_started = False

    async def send_line(self, line: object) -> None:
        """Send a line, after the headers; None is an empty line."""
        if not self._is_started:
            self._is_started = True
            start = {"type": "http.response.start", "status": 200}
            await self._send({**start, "headers": list(_HEADERS)})
        data = b"\n" if line is None else json.dumps(line).encode() + b"\n"
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, refusal: Refusal | None) -> None:
        """End the lines; if there are none because of a refusal, send that instead."""
        if self._is_started or refusal is None:
            await self._send({"type": "http.response.body", "body": b""})
            return
        status = _STATUSES.get(refusal.code, HTTPStatus.SERVICE_UNAVAILABLE)
        error = json.dumps({"code": refusal.code.value, "message": refusal.message}).encode()
        await respond(self._send, status, error, _HEADERS[1:], kind="application/json")


def run_changes(
    index: RunIndex, streams: Streams, messages: RunMessages, keepalive: float
) -> Callable[[], Lines]:
    """Make the stream of runs that change or are new, each in its latest state.

    It does not send the runs that exist at the start. A client lists these once it has the first
    line, so it misses no change.
    """

    async def lines() -> Lines:
        with streams.open_for_page() as stream:
            await index.ready()
            with index.watch(None) as watch:
                yield None
                while not stream.has_ended:
                    changed = await stream.receive(watch, keepalive)
                    if stream.has_ended:
                        return
                    may_use = CALLER.get().may_use
                    chosen = [each for each in changed or () if may_use(each.project)]
                    if not chosen:
                        yield None
                        continue
                    streams.sent += len(chosen)
                    yield MessageToDict(messages.watched(chosen))

    return lines
