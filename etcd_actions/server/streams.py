"""The open streams: each can be ended by another task, at once and without an error.

A stream waits at one point, in `Stream.receive`. When its client left or the service ends, that
wait is interrupted. The generator then returns, and the client receives the end of the stream.
Flyte's SDK opens another stream, which starts with a snapshot, so nothing is lost. A cancelled
stream would end with an error code instead, and with CANCELED the SDK waits without limit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio
from connectrpc.code import Code

from etcd_actions.server.error_codes import Refusal

if TYPE_CHECKING:
    from etcd_actions.follow.subscriptions import SnapshotEnd, Subscription
    from etcd_actions.model import ActionUpdate

Item_co = TypeVar("Item_co", covariant=True)
_Item = TypeVar("_Item", bound="ActionUpdate | SnapshotEnd")


class Source(Protocol[Item_co]):
    """The source of a stream's items."""

    async def receive(self) -> Item_co:
        """Return the next item; a cancelled call loses none."""


class Connection:
    """Whether the client of the current request is still connected."""

    def __init__(self) -> None:
        self.is_lost = False
        self.on_disconnect: Callable[[], None] = lambda: None
        self._watch: Callable[[], None] | None = None

    def watch(self, callback: Callable[[], None] | None) -> None:
        """Call a function when the client left, at once if it has; None to stop that."""
        self._watch = callback
        if callback is not None and self.is_lost:
            callback()

    def lost(self) -> None:
        """Note that the client left."""
        self.is_lost = True
        if self._watch is not None:
            self._watch()
        self.on_disconnect()


CONNECTION: ContextVar[Connection] = ContextVar("CONNECTION")
"""The connection of the request that the current task answers."""


class Stream:
    """One open stream."""

    def __init__(self, has_ended: bool) -> None:
        self.has_ended = has_ended
        self._waiting: trio.CancelScope | None = None

    def end(self) -> None:
        """Let the generator return, now or when it waits next."""
        self.has_ended = True
        if self._waiting is not None:
            self._waiting.cancel("the stream has to end")

    async def wait(self, seconds: float) -> None:
        """Sleep, but no longer than the stream lasts."""
        if self.has_ended:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(seconds) as self._waiting:
            await trio.sleep_forever()

    async def receive(self, updates: Source[Item_co], patience: float) -> Item_co | None:
        """Return the next item; None at the end of the stream, or after ``patience`` seconds.

        Raises:
            trio.EndOfChannel: No more items follow.
        """
        if self.has_ended:
            await trio.lowlevel.checkpoint()
            return None
        with trio.move_on_after(patience) as self._waiting:
            return await updates.receive()
        return None


class Streams:
    """All open streams.

    Args:
        most: The most open streams of methods, and of the page's own.

    Attributes:
        sent: Number of updates that were sent.
        conflated: Number of states that a newer one replaced, of streams that are closed.
        is_draining: Whether no stream can be opened any more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Stream] = set()
        self._of_page = 0
        self.is_draining = False
        self.sent = 0
        self.conflated = 0

    def __len__(self) -> int:
        return len(self._open)

    def drain(self) -> None:
        """End all streams, and open no more."""
        self.is_draining = True
        for stream in self._open:
            stream.end()

    @contextmanager
    def open_for_page(self) -> Iterator[Stream]:
        """Count a stream of the page while the context is open.

        The page's streams have a limit of their own, so browsers take none from other clients.

        Raises:
            Refusal: See :meth:`open`.
        """
        with self._counted(self._of_page) as stream:
            self._of_page += 1
            try:
                yield stream
            finally:
                self._of_page -= 1

    @contextmanager
    def open(self) -> Iterator[Stream]:
        """Count a stream while the context is open.

        Raises:
            Refusal: There are too many, or the service is shutting down.
        """
        with self._counted(len(self._open) - self._of_page) as stream:
            yield stream

    @contextmanager
    def _counted(self, count: int) -> Iterator[Stream]:
        """A new stream; ``count`` is the number of open streams of its kind."""
        if self.is_draining:
            raise Refusal(Code.UNAVAILABLE, "the service is shutting down")
        if count >= self._most:
            raise Refusal(
                Code.RESOURCE_EXHAUSTED, f"there are {self._most} open streams, the most allowed"
            )
        connection = CONNECTION.get()
        stream = Stream(connection.is_lost)
        connection.on_disconnect = stream.end
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.remove(stream)

    @asynccontextmanager
    async def follow(
        self, subscription: AbstractAsyncContextManager[Subscription[_Item]]
    ) -> AsyncIterator[tuple[Stream, Subscription[_Item]]]:
        """A stream that delivers a subscription, and counts its conflated states at the end."""
        with self.open() as stream:
            async with subscription as updates:
                try:
                    yield stream, updates
                finally:
                    self.conflated += updates.statistics().conflated
