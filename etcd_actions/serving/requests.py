"""The requests of one connection: each has its boundary, and bounds for what its client does."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio

from etcd_actions.containment import Containment
from etcd_actions.serving.asgi import (
    LONG_BODY,
    Application,
    ClientGone,
    Message,
    is_protocol_error,
)
from etcd_actions.serving.floods import Floods
from etcd_actions.serving.hosts import Hosts
from etcd_actions.serving.limits import HttpLimits

# Parts of a body that wait to be read; the connection is not read meanwhile.
_MOST_WAITING: Final = 10
_LONGEST_PATH: Final = 200
# An answer that goes on for longer than that without a part of it is a stream without an end.
_QUIET: Final = 0.25

_log = structlog.get_logger(__name__)


class Counts:
    """What became of a listener's connections and requests.

    Attributes:
        accepted: Number of connections that were let in.
        refused: Number of those that were not, by reason.
        closed: Number of those that were closed from here, by reason.
        refused_requests: Number of requests that were refused before the application.
        protocol_errors: How often a client left, or broke the protocol, in the middle.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.refused_requests: Counter[str] = Counter()
        self.protocol_errors = 0


class Answering:
    """What answers the requests of a listener.

    Attributes:
        application: Who answers.
        hosts: The names that a request may be for; None for any.
    """

    def __init__(
        self,
        application: Application,
        hosts: Hosts | None,
        limits: HttpLimits,
        containment: Containment,
        counts: Counts,
        floods: Floods,
    ) -> None:
        self.application = application
        self.hosts = hosts
        self.limits = limits
        self.containment = containment
        self.counts = counts
        self.floods = floods

    def protocol_error(self, error: BaseException) -> None:
        """Count that a client left in the middle, or sent what is no HTTP."""
        self.counts.protocol_errors += 1
        _log.debug("client_left", error=f"{type(error).__name__}: {error}")


class Request:
    """One request: its body as it arrives, its answer as it is sent.

    Attributes:
        is_answered: Whether the answer has begun.
        is_whole: Whether the body has arrived.
        is_lost: Whether the application was told that its client takes nothing.
        told_at: When it was told that its client sends no more; None for not yet.
    """

    def __init__(
        self, send: Callable[[Message | None], Awaitable[None]], limits: HttpLimits
    ) -> None:
        self._send = send
        self._limits = limits
        self._parts: deque[Message] = deque()
        self._changed = trio.Event()
        self._over = False
        self._body_until = trio.current_time() + limits.body_timeout
        # Of a long body: seconds that its client has left for the bytes at hand, and these.
        self._patience: float | None = None
        self._progress = 0
        self._is_sending = False
        self._sent_at = 0.0
        self.told_at: float | None = None
        self.is_answered = False
        self.is_whole = False
        self.is_lost = False

    async def put(self, message: Any) -> None:
        """Take a message of the connection's; waits while too many are not read."""
        if message["type"] == "http.disconnect":
            self.disconnect()
            return
        if not message["more_body"]:
            self.is_whole = True
        while len(self._parts) >= _MOST_WAITING and not self._over:
            await self._changed.wait()
        if not self._over:
            self._parts.append(message)
            self._change()

    def disconnect(self) -> None:
        """The client is gone, or nobody reads any more."""
        self._over = True
        self._change()

    def take_long_body(self) -> None:
        """Give the body its time by progress, instead of one for all of it."""
        self._patience, self._progress = self._limits.body_timeout, 0

    async def receive(self) -> Message:
        """ASGI's receive."""
        await trio.lowlevel.checkpoint()
        while not self._parts and not self._over:
            since = trio.current_time()
            deadline = self._body_until if self._patience is None else since + self._patience
            with trio.CancelScope(deadline=float("inf") if self.is_whole else deadline) as scope:
                await self._changed.wait()
            if self._patience is not None:
                self._patience -= trio.current_time() - since
            if scope.cancelled_caught:
                self.disconnect()
        if not self._parts:
            return {"type": "http.disconnect"}
        message = self._parts.popleft()
        if self._patience is not None:
            self._progress += len(message["body"])
            if self._progress >= self._limits.long_body_bytes:
                self.take_long_body()
        self._change()
        return message

    async def send(self, message: Message) -> None:
        """ASGI's send.

        Raises:
            ClientGone: The client has taken nothing for too long.
        """
        self.is_answered = True
        await self._send_in_time(message)

    async def finish(self) -> None:
        """The application has returned: what it did not answer is answered with 500."""
        await self._send_in_time(None)

    async def _send_in_time(self, message: Message | None) -> None:
        seconds = self._limits.stall_timeout
        self._is_sending = True
        try:
            with trio.move_on_after(seconds) as scope:
                try:
                    await self._send(message)
                except ClientGone:
                    self.is_lost = True
                    raise
        finally:
            self._is_sending = False
            self._sent_at = trio.current_time()
        if scope.cancelled_caught:
            self.is_lost = True
            raise ClientGone(f"it has taken nothing for {seconds:g} s")

    def end_of_client(self, since: float) -> None:
        """Its client sends no more: tell the application, where that changes something.

        A body that is not whole will never be. An answer is finished, unless it has no end.

        Args:
            since: When the client ended.
        """
        if self.told_at is not None:
            return
        now = trio.current_time()
        is_quiet = not self._is_sending and now - self._sent_at > _QUIET
        is_late = now - since > self._limits.stall_timeout
        if not self.is_whole or (self.is_answered and (is_quiet or is_late)):
            self.told_at = now
            self.disconnect()

    @property
    def is_overdue(self) -> bool:
        """Whether the application goes on long after it was told."""
        limit = self._limits.stall_timeout
        return self.told_at is not None and trio.current_time() - self.told_at > limit

    def explains(self, error: BaseException) -> bool:
        """Whether an application fails with an error because its client is gone."""
        return is_protocol_error(error) or (self.is_lost and isinstance(error, Exception))

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Requests:
    """The requests of one connection that are under way. To hypercorn it is a task group.

    Args:
        nursery: Where they run.
        answering: What answers them.
        peer: Whose they are.
        changed: Told when the first begins and when the last ends.
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
        """See :meth:`Request.end_of_client`; returns whether any may still be answered."""
        for request in self._open:
            request.end_of_client(since)
        return not all(request.is_overdue for request in self._open)

    @property
    def wait_for_bodies(self) -> bool:
        """Whether a body has not arrived whose request is not answered yet."""
        return any(not (each.is_whole or each.is_answered) for each in self._open)

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run what the protocol needs beside its requests."""
        self._nursery.start_soon(function)

    async def spawn_app(
        self,
        _app: object,
        _config: object,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        """Begin to answer a request; returns what takes its messages."""
        request = Request(send, self._answering.limits)
        self._open.add(request)
        if len(self._open) == 1:
            self._changed(True)
        self._nursery.start_soon(self._answer, request, scope)
        return request.put

    async def _answer(self, request: Request, scope: Message) -> None:
        answering = self._answering
        path = scope["path"][:_LONGEST_PATH]
        identity = f"{scope['method']} {path} of {self._peer}"
        try:
            with answering.containment.unit("request", identity):
                try:
                    await self._apply(request, scope)
                except BaseException as error:
                    if not request.explains(error):
                        raise
                    answering.protocol_error(error)
            request.disconnect()
            with answering.containment.unit("request", identity):
                try:
                    await request.finish()
                except BaseException as error:
                    if not is_protocol_error(error):
                        raise
                    answering.protocol_error(error)
        finally:
            request.disconnect()
            self._open.discard(request)
            if not self._open:
                self._changed(False)

    async def _apply(self, request: Request, scope: Message) -> None:
        answering = self._answering
        refused = None if answering.hosts is None else answering.hosts.refusal(scope)
        if refused is None:
            scope.setdefault("extensions", {})[LONG_BODY] = request.take_long_body
            await answering.application(scope, request.receive, request.send)
            return
        answering.counts.refused_requests[refused] += 1
        shown = [value for name, value in scope["headers"] if name.lower() == refused.encode()]
        answering.floods.warn(
            "request_refused",
            refused,
            peer=self._peer,
            value=b", ".join(shown)[:_LONGEST_PATH].decode(errors="backslashreplace"),
            remedy="--allowed-hosts",
        )
        body = f"{refused} is not allowed: it is no name of this machine to itself\n".encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await request.send({"type": "http.response.start", "status": 403, "headers": headers})
        await request.send({"type": "http.response.body", "body": body})
