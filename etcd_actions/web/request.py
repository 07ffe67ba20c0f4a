"""One request: its body as it arrives, and its response as the application sends it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

import trio

from etcd_actions.web.asgi import ClientDisconnected, Headers, Message, is_protocol_error
from etcd_actions.web.http_limits import HttpLimits
from etcd_actions.web.wakeup import Wakeup

# Bytes of a body that wait for the application before nothing more is read.
_MOST_UNREAD: Final = 2**16
# Seconds without a part after which a response counts as an endless stream.
_QUIET: Final = 0.25
# Bytes that an application may send before other tasks run; each message counts as _COST more.
_TURN: Final = 2**16
_COST: Final = 2**10
_CONTROL: Final = re.compile(rb"[\r\n\0]")
_NO_BODY: Final = frozenset({204, 304})


class Reply(Protocol):
    """Sends a response in one of the protocols. Only ``wait`` waits.

    Attributes:
        has_trailers: Whether a response may end with headers.
    """

    has_trailers: bool

    def request_body(self) -> None:
        """Request more of the body: the application waits for it."""

    def consumed(self, count: int) -> None:
        """Note that the application has read ``count`` bytes of the body."""

    def start(self, status: int, headers: Headers) -> None:
        """Send status and headers, at the latest with the next part."""

    def body(self, data: bytes) -> bool:
        """Send a part of the body; returns whether more can be sent at once."""

    def end(self, data: bytes, trailers: Headers | None) -> bool:
        """Send the last part, which may be empty, and trailers.

        Returns whether all is sent.
        """

    async def wait(self) -> None:
        """Wait until more can be sent or, after the end, until all is sent.

        Raises:
            ClientDisconnected: The client has read nothing for too long.
        """

    def break_off(self) -> None:
        """Show the client that the response is incomplete."""


class _Stage(Enum):
    """The stage of a response."""

    WAITING = auto()
    BODY = auto()
    TRAILERS = auto()
    DONE = auto()


class Request:
    """One request.

    Args:
        reply: Sends the response.
        limits: See :class:`HttpLimits`.
        has_body: Whether the response may have a body: not to HEAD.

    Attributes:
        body: Its body.
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
        self._disconnected_at: float | None = None
        self._has_failed = False

    @property
    def is_answered(self) -> bool:
        """Whether the response has started."""
        return self._stage is not _Stage.WAITING

    def disconnect(self) -> None:
        """End the body: the client left, or the application reads no more."""
        self.body.give_up()

    async def send(self, message: Message) -> None:
        """ASGI's send.

        Raises:
            ClientDisconnected: The client has read nothing for too long.
            RuntimeError: The application sent a message that is invalid at this stage.
        """
        try:
            await self._send(message)
        except ClientDisconnected:
            self._has_failed = True
            raise

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and self._stage is _Stage.WAITING:
            status = int(message["status"])
            headers = _checked(message.get("headers", ()))
            self._ends_with_trailers = self._reply.has_trailers and bool(message.get("trailers"))
            self._has_body = self._has_body and status not in _NO_BODY
            self._reply.start(status, headers)
            self._stage = _Stage.BODY
        elif kind == "http.response.body" and self._stage is _Stage.BODY:
            await self._send_body(message)
        elif kind == "http.response.trailers" and self._stage is _Stage.TRAILERS:
            if message.get("more_trailers", False):
                raise RuntimeError("the trailers of a response are one message")
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
        """Finish the response after the application has returned; 500 if it has not responded."""
        if self._stage is _Stage.WAITING:
            self._reply.start(500, [])
            await self._end(b"", None)
        elif self._stage is not _Stage.DONE:
            self._reply.break_off()
            await self._reply.wait()

    def end_of_client(self, since: float) -> None:
        """Disconnect the application if its client sends no more, and that matters.

        It does if the body is incomplete, or if the response is an endless stream. Any other
        response is finished.

        Args:
            since: When the client's end arrived, on trio's clock.
        """
        if self._disconnected_at is not None:
            return
        now = trio.current_time()
        is_quiet = not self._is_sending and now - self._sent_at > _QUIET
        is_late = now - since > self._limits.stall_timeout
        if not self.body.is_complete or (self.is_answered and (is_quiet or is_late)):
            self._disconnected_at = now
            self.disconnect()

    @property
    def is_overdue(self) -> bool:
        """Whether the application still runs long after it was disconnected."""
        limit = self._limits.stall_timeout
        return (
            self._disconnected_at is not None
            and trio.current_time() - self._disconnected_at > limit
        )

    def explains(self, error: BaseException) -> bool:
        """Whether an application failed because its client left."""
        return is_protocol_error(error) or (self._has_failed and isinstance(error, Exception))


class Body:
    """The body of a request.

    Args:
        reply: Receives the application's requests and progress.
        limits: See :class:`HttpLimits`.

    Attributes:
        is_complete: Whether all of it has arrived.
    """

    def __init__(self, reply: Reply, limits: HttpLimits) -> None:
        self._reply = reply
        self._limits = limits
        self._unread = bytearray()
        self._changed = Wakeup()
        self._has_ended = False
        self._is_delivered = False
        self._on_disconnect: Callable[[], None] | None = None
        self._until = trio.current_time() + limits.body_timeout
        # For a long body: the seconds that remain for the present bytes, and their number.
        self._patience: float | None = None
        self._progress = 0
        self.is_complete = False

    @property
    def has_capacity(self) -> bool:
        """Whether more may arrive: few bytes are unread, or the application reads no more."""
        return len(self._unread) < _MOST_UNREAD or self._has_ended

    def put(self, data: bytes) -> None:
        """Add a part; it is dropped if the application reads no more."""
        if self._has_ended:
            self._reply.consumed(len(data))
            return
        self._unread += data
        self._changed.send()

    def end(self) -> None:
        """Note that the complete body has arrived."""
        self.is_complete = True
        self._changed.send()

    def give_up(self) -> None:
        """End the body: no more arrives, or the application reads no more."""
        self._has_ended = True
        self._changed.send()
        self._report_disconnect()

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """See :func:`~etcd_actions.web.asgi.on_disconnect`."""
        self._on_disconnect = callback
        self._report_disconnect()

    async def changed(self) -> None:
        """Wait until a part arrives, is read, or the body ends."""
        await self._changed.wait()

    def take_long(self) -> None:
        """Limit the time for each part of a long body, in place of the time for all of it."""
        self._patience, self._progress = self._limits.body_timeout, 0

    def take_endless(self) -> None:
        """Limit the time no more."""
        self._patience, self._until = None, math.inf

    async def receive(self) -> Message:
        """ASGI's receive: the next part, or that the client left."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._has_data and not self._has_ended:
            await self._wait()
        if not self._has_data:
            return {"type": "http.disconnect"}
        data = bytes(self._unread)
        self._unread.clear()
        if self._patience is not None:
            self._progress += len(data)
            if self._progress >= self._limits.long_body_bytes:
                self.take_long()
        self._is_delivered = self.is_complete
        if data:
            self._reply.consumed(len(data))
            self._changed.send()
        self._report_disconnect()
        return {"type": "http.request", "body": data, "more_body": not self.is_complete}

    async def _wait(self) -> None:
        if self.is_complete:
            await self._changed.wait()
            return
        self._reply.request_body()
        since = trio.current_time()
        deadline = self._until if self._patience is None else since + self._patience
        with trio.CancelScope(deadline=deadline) as scope:
            await self._changed.wait()
        if self._patience is not None:
            self._patience -= trio.current_time() - since
        if scope.cancelled_caught:
            self.give_up()

    @property
    def _has_data(self) -> bool:
        return bool(self._unread) or (self.is_complete and not self._is_delivered)

    def _report_disconnect(self) -> None:
        if self._has_ended and not self._has_data and self._on_disconnect is not None:
            callback, self._on_disconnect = self._on_disconnect, None
            callback()


def _checked(headers: object) -> Headers:
    """The headers of a response, with names in lower case.

    Raises:
        ValueError: A header is reserved for the protocol, or has a line break or a NUL.
    """
    checked: Headers = []
    for name, value in headers:  # type: ignore[attr-defined]
        if name.startswith(b":"):
            raise ValueError(f"{name!r} is not a header of a response")
        if _CONTROL.search(name) or _CONTROL.search(value):
            raise ValueError(f"header {name!r} has a line break or a NUL in it")
        checked.append((bytes(name).strip().lower(), bytes(value).strip()))
    return checked
