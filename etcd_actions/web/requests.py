"""The requests of one connection: each has a boundary and a task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from etcd_actions.web.answering import Answering
from etcd_actions.web.asgi import (
    ENDLESS_BODY,
    LONG_BODY,
    ON_DISCONNECT,
    Message,
    is_protocol_error,
    respond,
)
from etcd_actions.web.request import Reply, Request

_LONGEST_PATH: Final = 200


class Requests:
    """The requests of one connection that are in progress.

    Args:
        nursery: Runs the requests.
        answering: The application with its limits.
        peer: The client's address.
        changed: Called with True when the first starts, with False when the last ends.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        answering: Answering,
        peer: str,
        changed: Callable[[bool], None],
    ) -> None:
        self._nursery = nursery
        self._answering = answering
        self._peer = peer
        self._changed = changed
        self._open: set[Request] = set()

    def __len__(self) -> int:
        return len(self._open)

    def end_of_client(self, since: float) -> bool:
        """See :meth:`Request.end_of_client`; returns whether a request may still be answered."""
        for request in self._open:
            request.end_of_client(since)
        return not all(request.is_overdue for request in self._open)

    @property
    def wait_for_bodies(self) -> bool:
        """Whether a request is not answered and its body has not arrived."""
        return any(not (each.body.is_complete or each.is_answered) for each in self._open)

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run a task of the protocol."""
        self._nursery.start_soon(function)

    def start(self, scope: Message, reply: Reply) -> Request:
        """Start the task that answers a request."""
        has_body = scope["method"] != "HEAD"
        request = Request(reply, self._answering.limits, has_body=has_body)
        self._open.add(request)
        if len(self._open) == 1:
            self._changed(True)
        self._nursery.start_soon(self._answer, request, scope)
        return request

    async def _answer(self, request: Request, scope: Message) -> None:
        try:
            try:
                await self._apply(request, scope)
            except BaseException as error:
                self._caught(scope, error, explained=request.explains(error))
            request.disconnect()
            try:
                await request.finish()
            except BaseException as error:
                self._caught(scope, error, explained=is_protocol_error(error))
        finally:
            request.disconnect()
            self._open.discard(request)
            if not self._open:
                self._changed(False)

    def _caught(self, scope: Message, error: BaseException, *, explained: bool) -> None:
        """Contain an error; a cancellation is raised again."""
        if explained:
            self._answering.protocol_error(error)
            return
        identity = f"{scope['method']} {scope['path'][:_LONGEST_PATH]} of {self._peer}"
        self._answering.containment.caught("request", identity, error)

    async def _apply(self, request: Request, scope: Message) -> None:
        answering = self._answering
        refused = None if answering.hosts is None else answering.hosts.refusal(scope)
        if refused is None:
            extensions = scope["extensions"]
            extensions[LONG_BODY] = request.body.take_long
            extensions[ENDLESS_BODY] = request.body.take_endless
            extensions[ON_DISCONNECT] = request.body.on_disconnect
            await answering.application(scope, request.body.receive, request.send)
            return
        answering.counts.refused_requests[refused] += 1
        shown = [value for name, value in scope["headers"] if name.lower() == refused.encode()]
        answering.log_limits.report(
            "request_refused",
            refused,
            peer=self._peer,
            value=b", ".join(shown)[:_LONGEST_PATH].decode(errors="backslashreplace"),
            remedy="--allowed-hosts",
        )
        body = f"{refused} is not allowed: it is not a name of this machine\n".encode()
        await respond(request.send, 403, body)
