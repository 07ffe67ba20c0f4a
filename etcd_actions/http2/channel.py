"""Calls to one server: a connection is made when it is needed, and again when it is gone."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias

import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import describe, split
from etcd_actions._internal.logger import get_logger
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import EtcdActionsError
from etcd_actions.http2.errors import CallFailed, Code
from etcd_actions.http2.exchange import Exchange
from etcd_actions.http2.grpc_messages import answer, framed, timeout_field
from etcd_actions.http2.headers import request_head
from etcd_actions.http2.link import CLOSED, KeepAlive, Link
from etcd_actions.http2.sockets import Target, Wire, connect
from etcd_actions.http2.stream import Stream

_REMEMBERED_HEADS: Final = 64
_LARGEST_ANSWER: Final = 512 * 1024 * 1024

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChannelSettings:
    """How a channel behaves. Times are in seconds.

    Attributes:
        dial_timeout: How long connecting may take, up to the server's first words.
        keepalive: How a silent server is found.
        backoff: After a failure to connect none is tried for so long, and calls fail at once;
            None tries for each call.
        largest_answer: Bytes of a message that are taken.
    """

    dial_timeout: float = 5.0
    keepalive: KeepAlive = field(default_factory=KeepAlive)
    backoff: Backoff | None = None
    largest_answer: int = _LARGEST_ANSWER


class Channel:
    """Calls methods of one server; see :mod:`etcd_actions.http2`.

    Its tasks run in the nursery that it is given, and end with :meth:`close`, not before: a
    nursery that is cancelled leaves them be, so that calls in a shielded scope still work.

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
        self._link: Link | None = None
        self._dialling: _Dialling | None = None
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

        It is sent again, once, where the server certainly did nothing with it, as when it ends
        the connection just then. Cancelled, the server may have done it, or may still.

        Where there is a connection with room, as after :meth:`connect`, nothing is awaited before
        it is sent.

        Args:
            path: ``/package.Service/Method``.
            message: The request.
            within: Seconds; the server is told.
            metadata: Names in lower case, and values.
            resend: Whether it is sent again.

        Raises:
            CallFailed: There is no answer; it says whether the server certainly did nothing.
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
        """The same as :meth:`open_stream` for ``async with``, whose end ends the call."""
        exchange = await self.open_stream(path, within=within, metadata=metadata)
        try:
            yield exchange
        finally:
            exchange.close()

    async def open_stream(
        self, path: str, *, within: float = math.inf, metadata: Metadata = ()
    ) -> Exchange:
        """Call a method with a stream of messages for another one; close what it returns.

        It waits for a connection, as long as ``within`` and the settings allow.

        Args:
            path: ``/package.Service/Method``.
            within: Seconds that all of it may last; the server is told.
            metadata: Names in lower case, and values.

        Raises:
            CallFailed: There is no connection.
            ValueError: The metadata cannot be sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        deadline = trio.current_time() + within
        head = self._head(path, metadata)
        link = await self._ready_link(deadline)
        stream = self._open(link, head, b"", deadline, end=False, gathers=False)
        link.opened()
        return Exchange(link, stream)

    async def connect(self, *, within: float = math.inf) -> None:
        """See that there is a connection with room for a call, without a call.

        Nothing is awaited where there is.

        Raises:
            CallFailed: There is none.
        """
        await self._ready_link(trio.current_time() + within)

    def close(self) -> None:
        """End all connections. What is under way fails."""
        self._closed = True
        for scope in list(self._scopes):
            scope.cancel("the channel was closed")

    async def _unary(self, head: bytes, message: bytes, deadline: float) -> bytes:
        link = self._usable_link()
        if link is None or not link.connection.can_open:
            link = await self._ready_link(deadline)
        stream = self._open(link, head, framed(message), deadline, end=True, gathers=True)
        try:
            link.opened()
            if not stream.ended:
                stream.wake = partial(trio.lowlevel.reschedule, trio.lowlevel.current_task())

                def abort(_: object) -> trio.lowlevel.Abort:
                    stream.wake = None
                    return trio.lowlevel.Abort.SUCCEEDED

                await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            link.forget(stream)
        return answer(stream)

    def _open(
        self,
        link: Link,
        head: bytes,
        body: bytes,
        deadline: float,
        *,
        end: bool,
        gathers: bool,
    ) -> Stream:
        """Open a stream on a link that has room; nothing is written yet."""
        if deadline < math.inf:
            left = deadline - trio.current_time()
            if left <= 0:
                raise CallFailed(Code.DEADLINE_EXCEEDED, "no time is left", not_done=True)
            head += timeout_field(left)
        stream = link.connection.open(
            head, body, end=end, largest=self._settings.largest_answer, gathers=gathers
        )
        if deadline < math.inf:
            link.limit(stream, deadline)
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
                # Tokens change.
                self._heads.clear()
            self._heads[key] = head
        return head

    async def _ready_link(self, deadline: float) -> Link:
        """A link with room for one more stream.

        Raises:
            CallFailed: There is none; nothing was sent.
        """
        with trio.move_on_at(deadline):
            while True:
                link = self._usable_link()
                if link is None:
                    link = await self._dialled()
                if link.connection.can_open:
                    return link
                if link.usable:
                    await link.room()
                elif self._link is link:
                    self._link = None
        raise CallFailed(
            Code.DEADLINE_EXCEEDED,
            "no connection in time" if self._link is None else "the server is busy",
            not_done=True,
            connected=self._link is not None,
        )

    def _usable_link(self) -> Link | None:
        if self._link is not None:
            self._link.look_before_use()
        return self._link

    async def _dialled(self) -> Link:
        if self._closed:
            raise CallFailed(
                Code.UNAVAILABLE, "the channel is closed", not_done=True, connected=False
            )
        if self._dialling is None:
            if trio.current_time() < self._not_before:
                raise CallFailed(
                    Code.UNAVAILABLE, self._last_failure, not_done=True, connected=False
                )
            self._dialling = _Dialling()
            try:
                self._nursery.start_soon(self._serve, self._dialling)
            except RuntimeError as error:
                # The nursery is closed.
                self._dialling = None
                raise CallFailed(
                    Code.UNAVAILABLE, str(error), not_done=True, connected=False
                ) from None
        dialling = self._dialling
        await dialling.done.wait()
        if dialling.link is None:
            raise CallFailed(Code.UNAVAILABLE, dialling.failure, not_done=True, connected=False)
        return dialling.link

    async def _serve(self, dialling: _Dialling) -> None:
        """A task: connect, and see to the connection until its end."""
        with trio.CancelScope(shield=True) as scope:
            self._scopes.add(scope)
            if self._closed:
                # Before this task came to run.
                scope.cancel("the channel was closed")
            try:
                await self._connect(dialling)
            except BaseException as error:
                # An error of ours must not end all that runs beside it.
                passing, contained = split(error)
                if contained is not None:
                    dialling.failure = describe(contained)
                    _log.error("connection_failed", target=str(self.target), exc_info=contained)
                if passing is not None:
                    raise passing from None
            finally:
                self._scopes.discard(scope)
                self._dialled_at_last(dialling)

    async def _connect(self, dialling: _Dialling) -> None:
        limit = self._settings.dial_timeout
        wire: Wire | None = None
        with trio.move_on_after(limit) as dial:
            try:
                wire = await connect(self.target)
            except EtcdActionsError as error:
                # A file of TLS: it was good before; it is being replaced, perhaps.
                dialling.failure = str(error)
                return
            except (OSError, RuntimeError, ValueError) as error:
                # No thread for a name or a certificate, or no name at all, counts, too.
                dialling.failure = failure_text(error)
                return
        if wire is None:
            dialling.failure = f"no connection within {limit:g} s"
            return
        link = Link(wire, self._settings.keepalive, self._on_end)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            with trio.move_on_at(dial.deadline):
                try:
                    await link.settled()
                    self._link = dialling.link = link
                except CallFailed as failure:
                    dialling.failure = failure.details
                    if failure.details == CLOSED and self.target.tls is None:
                        dialling.failure += " at once; does it want TLS?"
                    return
            if dialling.link is None:
                dialling.failure = f"no HTTP/2 within {limit:g} s"
                link.close(dialling.failure)
            self._dialled_at_last(dialling)

    def _dialled_at_last(self, dialling: _Dialling) -> None:
        """Tell those who wait for a connection what became of it. Twice is harmless."""
        if dialling.done.is_set():
            return
        dialling.done.set()
        if self._dialling is dialling:
            self._dialling = None
        if dialling.link is not None:
            self._failures = 0
        elif self._settings.backoff is not None:
            self._failures += 1
            self._last_failure = dialling.failure
            self._not_before = trio.current_time() + self._settings.backoff.delay(self._failures)

    def _on_end(self, link: Link) -> None:
        if self._link is link:
            self._link = None


class _Dialling:
    """A connection that is being made, for all who wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.link: Link | None = None
        self.failure = "the channel was closed"


def failure_text(error: BaseException) -> str:
    """Why no connection came to be: the cause, where trio tried several addresses."""
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
    """A channel with tasks of its own, for ``async with``; what the body raises comes out as is."""
    async with owned_tasks() as nursery:
        channel = Channel(nursery, target, settings)
        try:
            yield channel
        finally:
            channel.close()
