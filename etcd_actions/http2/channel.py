"""Calls methods of one server; connects for the first call, and again after a failure."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import describe, split
from etcd_actions._internal.logger import get_logger
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions._internal.parking import Parking
from etcd_actions.errors import EtcdActionsError
from etcd_actions.http2.connection import STREAM_WINDOW
from etcd_actions.http2.errors import CallFailed, Code
from etcd_actions.http2.exchange import Exchange
from etcd_actions.http2.grpc_messages import answer, framed, timeout_field
from etcd_actions.http2.headers import request_head
from etcd_actions.http2.live_connection import CLOSED, KeepAlive, LiveConnection
from etcd_actions.http2.sockets import Target, Wire, connect
from etcd_actions.http2.stream import Stream

_REMEMBERED_HEADS: Final = 64
"""The most cached header blocks of requests."""
_LARGEST_ANSWER: Final = 512 * 1024 * 1024

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """How a channel behaves. Times are in seconds.

    Attributes:
        dial_timeout: The time for connecting, until the server's settings have arrived.
        keepalive: How a silent server is detected.
        backoff: The time, after a failure to connect, in which calls fail at once; None to connect
            for each call.
        largest_answer: The most bytes of a message.
        stream_window: The most bytes of a stream that wait for its reader.
    """

    dial_timeout: float = 5.0
    keepalive: KeepAlive = field(default_factory=KeepAlive)
    backoff: Backoff | None = None
    largest_answer: int = _LARGEST_ANSWER
    stream_window: int = STREAM_WINDOW


class Channel:
    """Calls methods of one server; see :mod:`etcd_actions.http2`.

    Its tasks run in a nursery of the caller and end with :meth:`close`, not before: they survive
    the cancellation of the nursery, so that calls in a shielded scope still work.

    Attributes:
        target: The server.
    """

    def __init__(
        self, nursery: trio.Nursery, target: Target, settings: ChannelSettings | None = None
    ) -> None:
        self.target = target
        self._nursery = nursery
        self._settings = settings or ChannelSettings()
        self._heads: dict[tuple[str, Metadata], bytes] = {}
        self._live: LiveConnection | None = None
        self._attempt: _ConnectAttempt | None = None
        self._scopes: set[trio.CancelScope] = set()
        self._failures = 0
        self._not_before = -math.inf
        self._last_failure = ""
        self._closed = False

    async def unary(
        self,
        path: str,
        message: bytes,
        *,
        within: float,
        metadata: Metadata = (),
        resend: bool = True,
    ) -> bytes:
        """Call a method with one message, for one.

        The call is sent once more if the server certainly did nothing with it, as when it ends
        the connection at that moment. After a cancellation the server may have done it, or may
        still do it.

        If a connection has capacity, as after :meth:`connect`, nothing is awaited before the
        message is sent.

        Args:
            path: ``/package.Service/Method``.
            message: The request.
            within: Seconds; the server receives them, too.
            metadata: Names in lower case, and values.
            resend: Whether the call is sent once more.

        Raises:
            CallFailed: There is no answer; its ``not_done`` says whether the server did nothing.
            ValueError: The metadata cannot be sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        deadline = trio.current_time() + within
        head = self._head(path, metadata)
        try:
            return await self._unary(head, message, deadline)
        except CallFailed as failure:
            again = resend and failure.not_done and failure.connected
            if not again or trio.current_time() >= deadline:
                raise
        return await self._unary(head, message, deadline)

    @asynccontextmanager
    async def stream(
        self, path: str, *, within: float = math.inf, metadata: Metadata = ()
    ) -> AsyncIterator[Exchange]:
        """:meth:`open_stream` for ``async with``, whose end ends the call."""
        exchange = await self.open_stream(path, within=within, metadata=metadata)
        try:
            yield exchange
        finally:
            exchange.close()

    async def open_stream(
        self, path: str, *, within: float = math.inf, metadata: Metadata = ()
    ) -> Exchange:
        """Call a method with a stream of messages in either direction; close the returned call.

        It waits for a connection, as long as ``within`` and the settings allow.

        Args:
            path: ``/package.Service/Method``.
            within: Seconds for the complete call; the server receives them, too.
            metadata: Names in lower case, and values.

        Raises:
            CallFailed: There is no connection.
            ValueError: The metadata cannot be sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        deadline = trio.current_time() + within
        head = self._head(path, metadata)
        live = await self._with_capacity(deadline)
        stream = self._open(live, head, b"", deadline, unary=False)
        live.opened()
        return Exchange(live, stream)

    async def connect(self, *, within: float = math.inf) -> None:
        """Wait for a connection with capacity for a call; awaits nothing if there is one.

        Raises:
            CallFailed: There is none.
        """
        await self._with_capacity(trio.current_time() + within)

    def close(self) -> None:
        """End all connections; calls in progress fail."""
        self._closed = True
        for scope in list(self._scopes):
            scope.cancel("the channel was closed")

    async def _unary(self, head: bytes, message: bytes, deadline: float) -> bytes:
        live = self._checked_connection()
        if live is None or not live.connection.can_open:
            live = await self._with_capacity(deadline)
        stream = self._open(live, head, framed(message), deadline, unary=True)
        try:
            live.opened()
            if not stream.ended:
                parking = Parking()
                stream.wake = parking.wake
                await parking.park()
        finally:
            live.forget(stream)
        try:
            return answer(stream)
        finally:
            # The stream has its failure, whose traceback has the stream: the data would stay until
            # the next collection of garbage.
            stream.chunks.clear()

    def _open(
        self, live: LiveConnection, head: bytes, body: bytes, deadline: float, *, unary: bool
    ) -> Stream:
        """Open a stream on a connection that has capacity; nothing is written yet."""
        if deadline < math.inf:
            left = deadline - trio.current_time()
            if left <= 0:
                raise CallFailed(Code.DEADLINE_EXCEEDED, "no time is left", not_done=True)
            head += timeout_field(left)
        stream = live.connection.open(
            head, body, end=unary, largest=self._settings.largest_answer, gathers=unary
        )
        if deadline < math.inf:
            live.limit(stream, deadline)
        return stream

    def _head(self, path: str, metadata: Metadata) -> bytes:
        key = (path, metadata)
        head = self._heads.get(key)
        if head is None:
            head = request_head(
                encrypted=self.target.tls is not None,
                authority=self.target.authority,
                path=path,
                metadata=metadata,
            )
            if len(self._heads) >= _REMEMBERED_HEADS:
                # Heads with old tokens would accumulate.
                self._heads.clear()
            self._heads[key] = head
        return head

    async def _with_capacity(self, deadline: float) -> LiveConnection:
        """A connection with capacity for one more stream.

        Raises:
            CallFailed: There is none; nothing was sent.
        """
        with trio.move_on_at(deadline):
            while True:
                live = self._checked_connection()
                if live is None:
                    live = await self._connected()
                if live.connection.can_open:
                    return live
                if live.usable:
                    await live.wait_for_capacity()
                elif self._live is live:
                    self._live = None
        raise CallFailed(
            Code.DEADLINE_EXCEEDED,
            "no connection in time" if self._live is None else "the server is busy",
            not_done=True,
            connected=self._live is not None,
        )

    def _checked_connection(self) -> LiveConnection | None:
        if self._live is not None:
            self._live.check_before_use()
        return self._live

    async def _connected(self) -> LiveConnection:
        """Wait for the attempt to connect that all callers share."""
        if self._closed:
            raise _no_connection("the channel is closed")
        attempt = self._attempt
        if attempt is None:
            if trio.current_time() < self._not_before:
                raise _no_connection(self._last_failure)
            attempt = self._attempt = _ConnectAttempt()
            try:
                self._nursery.start_soon(self._serve, attempt)
            except RuntimeError as error:
                # The nursery is closed.
                self._attempt = None
                raise _no_connection(str(error)) from None
        await attempt.done.wait()
        if attempt.live is None:
            raise _no_connection(attempt.failure)
        return attempt.live

    async def _serve(self, attempt: _ConnectAttempt) -> None:
        """A task: connect, and serve the connection until its end."""
        with trio.CancelScope(shield=True) as scope:
            self._scopes.add(scope)
            if self._closed:
                # The channel was closed before this task started.
                scope.cancel("the channel was closed")
            try:
                await self._connect(attempt)
            except BaseException as error:
                # A defect here must not end the tasks in the caller's nursery.
                passing, contained = split(error)
                if contained is not None:
                    attempt.failure = describe(contained)
                    _log.error("connection_failed", target=str(self.target), exc_info=contained)
                if passing is not None:
                    raise passing from None
            finally:
                self._scopes.discard(scope)
                self._finish(attempt)

    async def _connect(self, attempt: _ConnectAttempt) -> None:
        limit = self._settings.dial_timeout
        wire: Wire | None = None
        with trio.move_on_after(limit) as dial:
            try:
                wire = await connect(self.target)
            except EtcdActionsError as error:
                # A TLS file that was valid before: perhaps it is being replaced.
                attempt.failure = str(error)
                return
            except (OSError, RuntimeError, ValueError) as error:
                # Others: no thread for a name or a certificate, or a malformed name.
                attempt.failure = failure_text(error)
                return
        if wire is None:
            attempt.failure = f"no connection within {limit:g} s"
            return
        live = LiveConnection(
            wire, self._settings.keepalive, self._on_end, self._settings.stream_window
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live.run)
            with trio.move_on_at(dial.deadline):
                try:
                    await live.wait_ready()
                    self._live = attempt.live = live
                except CallFailed as failure:
                    attempt.failure = failure.details
                    if failure.details == CLOSED and self.target.tls is None:
                        attempt.failure += " at once; does it require TLS?"
                    return
            if attempt.live is None:
                attempt.failure = f"no HTTP/2 within {limit:g} s"
                live.close(attempt.failure)
            self._finish(attempt)

    def _finish(self, attempt: _ConnectAttempt) -> None:
        """Wake the callers that wait for a connection. Idempotent."""
        if attempt.done.is_set():
            return
        attempt.done.set()
        if self._attempt is attempt:
            self._attempt = None
        if attempt.live is not None:
            self._failures = 0
        elif self._settings.backoff is not None:
            self._failures += 1
            self._last_failure = attempt.failure
            self._not_before = trio.current_time() + self._settings.backoff.delay(self._failures)

    def _on_end(self, live: LiveConnection) -> None:
        if self._live is live:
            self._live = None


class _ConnectAttempt:
    """An attempt to connect, for all callers that wait."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.live: LiveConnection | None = None
        self.failure = "the channel was closed"


def _no_connection(details: str) -> CallFailed:
    return CallFailed(Code.UNAVAILABLE, details, not_done=True, connected=False)


def failure_text(error: BaseException) -> str:
    """Why there is no connection; the first cause if trio tried several addresses."""
    if isinstance(error.__cause__, BaseExceptionGroup):
        error = error.__cause__.exceptions[0]
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"connecting failed: {error.strerror}"
    return f"connecting failed: {describe(error)}"


@asynccontextmanager
async def open_channel(
    target: Target, settings: ChannelSettings | None = None
) -> AsyncIterator[Channel]:
    """A channel with its own tasks, for ``async with``; errors of the body are raised ungrouped."""
    async with owned_tasks("the HTTP/2 channel") as nursery:
        channel = Channel(nursery, target, settings)
        try:
            yield channel
        finally:
            channel.close()
