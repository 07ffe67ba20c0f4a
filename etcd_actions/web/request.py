"""One request: its body as it arrives, its answer as the application gives it."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

import trio

from etcd_actions.web.asgi import ClientGone, Headers, Message, is_protocol_error
from etcd_actions.web.http_limits import HttpLimits
from etcd_actions.web.wakeup import Signal

_MOST_UNREAD: Final = 2**16
# An answer that goes on for longer than that without a part of it is a stream without an end.
_QUIET: Final = 0.25
# What an application may send before others have their turn.
_TURN: Final = 2**16
_COST: Final = 2**10
_CONTROL: Final = re.compile(rb"[\r\n\0]")
_NO_BODY: Final = frozenset({204, 304})


class Reply(Protocol):
    """How a request is answered in one of the protocols. Nothing here waits but ``wait``.

    Attributes:
        has_trailers: Whether an answer may end with headers.
    """

    has_trailers: bool

    def want_body(self) -> None:
        """The application waits for more of the body."""

    def taken(self, count: int) -> None:
        """The application has so many bytes of the body."""

    def begin(self, status: int, headers: Headers) -> None:
        """Send status and headers, at the latest with what comes next."""

    def body(self, data: bytes) -> bool:
        """Send a part of the body; returns whether there is room for more at once."""

    def end(self, data: bytes, trailers: Headers | None) -> bool:
        """Send the rest; returns whether nothing is left to wait for.

        Args:
            data: The last part of the body; it may be empty.
            trailers: The headers after it; None for none.
        """

    async def wait(self) -> None:
        """Wait until there is room, or, after the end, until all is sent.

        Raises:
            ClientGone: The client has taken nothing for too long.
        """

    def break_off(self) -> None:
        """The answer has no end: let the client see that."""


class _Stage(Enum):
    """How far an answer is."""

    WAITING = auto()
    BODY = auto()
    TRAILERS = auto()
    DONE = auto()


class Request:
    """One request that is answered.

    Args:
        reply: What its answer goes to.
        limits: See :class:`HttpLimits`.
        has_body: Whether an answer may have a body: not that to HEAD.

    Attributes:
        body: What of its body has come.
        is_lost: Whether the application was told that its client takes nothing.
        told_at: When it was told that its client sends no more; None for not yet.
    """

    def __init__(self, reply: Reply, limits: HttpLimits, *, has_body: bool = True) -> None:
        self._reply = reply
        self._limits = limits
        self._has_body = has_body
        self._stage = _Stage.WAITING
        self._ends_with_trailers = False
        self._cost = 0
        self._is_sending = False
        self._sent_at = 0.0
        self.body = Body(reply, limits)
        self.told_at: float | None = None
        self.is_lost = False

    @property
    def is_answered(self) -> bool:
        """Whether the answer has begun."""
        return self._stage is not _Stage.WAITING

    async def receive(self) -> Message:
        """ASGI's receive."""
        return await self.body.receive()

    def disconnect(self) -> None:
        """The client is gone, or nobody reads any more."""
        self.body.give_up()

    async def send(self, message: Message) -> None:
        """ASGI's send.

        Raises:
            ClientGone: The client has taken nothing for too long.
            RuntimeError: The application sends what cannot come now.
        """
        try:
            await self._take(message)
        except ClientGone:
            self.is_lost = True
            raise

    async def _take(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and self._stage is _Stage.WAITING:
            status = int(message["status"])
            headers = _checked(message.get("headers", ()))
            self._ends_with_trailers = self._reply.has_trailers and bool(message.get("trailers"))
            self._has_body = self._has_body and status not in _NO_BODY
            self._reply.begin(status, headers)
            self._stage = _Stage.BODY
        elif kind == "http.response.body" and self._stage is _Stage.BODY:
            await self._send_body(message)
        elif kind == "http.response.trailers" and self._stage is _Stage.TRAILERS:
            if message.get("more_trailers", False):
                raise RuntimeError("the trailers of an answer come in one message")
            await self._end(b"", _checked(message.get("headers", ())))
        else:
            raise RuntimeError(f"{kind} cannot be sent at this stage: {self._stage.name}")

    async def _send_body(self, message: Message) -> None:
        data = bytes(message.get("body", b"")) if self._has_body else b""
        is_last = not message.get("more_body", False)
        if is_last and not self._ends_with_trailers:
            await self._end(data, None)
            return
        if is_last:
            self._stage = _Stage.TRAILERS
        if not self._reply.body(data):
            await self._wait()
        self._sent_at = trio.current_time()
        self._cost += len(data) + _COST
        if self._cost > _TURN:
            self._cost = 0
            await trio.lowlevel.checkpoint()

    async def _end(self, data: bytes, trailers: Headers | None) -> None:
        if not self._reply.end(data, trailers):
            await self._wait()
        self._stage = _Stage.DONE

    async def _wait(self) -> None:
        self._is_sending = True
        try:
            await self._reply.wait()
        finally:
            self._is_sending = False
            self._sent_at = trio.current_time()

    async def finish(self) -> None:
        """The application has returned: what it did not answer is answered with 500."""
        if self._stage is _Stage.WAITING:
            self._reply.begin(500, [])
            await self._end(b"", None)
        elif self._stage is not _Stage.DONE:
            self._reply.break_off()
            await self._reply.wait()

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
        if not self.body.is_whole or (self.is_answered and (is_quiet or is_late)):
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


class Body:
    """The body of a request.

    Args:
        reply: Told what the application waits for, and has taken.
        limits: See :class:`HttpLimits`.

    Attributes:
        is_whole: Whether all of it has come.
    """

    def __init__(self, reply: Reply, limits: HttpLimits) -> None:
        self._reply = reply
        self._limits = limits
        self._unread = bytearray()
        self._changed = Signal()
        self._is_over = False
        self._is_delivered = False
        self._on_lost: Callable[[], None] | None = None
        self._until = trio.current_time() + limits.body_timeout
        # Of a long body: seconds that its client has left for the bytes at hand, and these.
        self._patience: float | None = None
        self._progress = 0
        self.is_whole = False

    @property
    def has_room(self) -> bool:
        """Whether so little is unread that more may come."""
        return len(self._unread) < _MOST_UNREAD or self._is_over

    def put(self, data: bytes) -> None:
        """Take a part; what nobody reads any more is dropped."""
        if self._is_over:
            self._reply.taken(len(data))
            return
        self._unread += data
        self._changed.send()

    def end(self) -> None:
        """All of it has come."""
        self.is_whole = True
        self._changed.send()

    def give_up(self) -> None:
        """No more will come, or nobody reads any more."""
        self._is_over = True
        self._changed.send()
        self._report_loss()

    def on_lost(self, callback: Callable[[], None]) -> None:
        """See :func:`~etcd_actions.web.asgi.on_lost`."""
        self._on_lost = callback
        self._report_loss()

    async def changed(self) -> None:
        """Wait until something arrives, is read, or nobody reads any more."""
        await self._changed.wait()

    def take_long(self) -> None:
        """Give it its time by progress, instead of one for all of it."""
        self._patience, self._progress = self._limits.body_timeout, 0

    async def receive(self) -> Message:
        """The next part, or that the client is gone."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._has_news and not self._is_over:
            await self._wait()
        if not self._has_news:
            return {"type": "http.disconnect"}
        data = bytes(self._unread)
        self._unread.clear()
        if self._patience is not None:
            self._progress += len(data)
            if self._progress >= self._limits.long_body_bytes:
                self.take_long()
        self._is_delivered = self.is_whole
        if data:
            self._reply.taken(len(data))
            self._changed.send()
        self._report_loss()
        return {"type": "http.request", "body": data, "more_body": not self.is_whole}

    async def _wait(self) -> None:
        if self.is_whole:
            await self._changed.wait()
            return
        self._reply.want_body()
        since = trio.current_time()
        deadline = self._until if self._patience is None else since + self._patience
        with trio.CancelScope(deadline=deadline) as scope:
            await self._changed.wait()
        if self._patience is not None:
            self._patience -= trio.current_time() - since
        if scope.cancelled_caught:
            self.give_up()

    @property
    def _has_news(self) -> bool:
        return bool(self._unread) or (self.is_whole and not self._is_delivered)

    def _report_loss(self) -> None:
        if self._is_over and not self._has_news and self._on_lost is not None:
            callback, self._on_lost = self._on_lost, None
            callback()


def _checked(headers: object) -> Headers:
    """The headers of an answer, in lower case.

    Raises:
        ValueError: One belongs to the protocol alone, or would be more than one header.
    """
    checked: Headers = []
    for name, value in headers:  # type: ignore[attr-defined]
        if name.startswith(b":"):
            raise ValueError(f"{name!r} is no header of an answer")
        if _CONTROL.search(name) or _CONTROL.search(value):
            raise ValueError(f"header {name!r} has a line break or a NUL in it")
        checked.append((bytes(name).strip().lower(), bytes(value).strip()))
    return checked
