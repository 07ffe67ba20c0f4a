"""The open streams: each can be ended from outside, at once and without an error.

A stream waits in one place, in `Stream.receive`. Whoever wants it to end, because its client
left or the service ends, interrupts that; its generator then returns, and the client sees a
stream that is over. Flyte's SDK opens another one and begins with its snapshot, so nothing is
lost. A stream that is cancelled instead would end with an error code, and with CANCELED the SDK
waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

import trio
from connectrpc.code import Code

from etcd_actions.server.error_codes import Refusal

Item_co = TypeVar("Item_co", covariant=True)


class Source(Protocol[Item_co]):
    """What a stream's items come from."""

    async def receive(self) -> Item_co:
        """The next one; a cancelled call has taken none."""
        ...


class Connection:
    """The request that is being answered, as far as its client is still there."""

    def __init__(self) -> None:
        self.is_lost = False
        self.on_lost: Callable[[], None] = lambda: None
        self._watch: Callable[[], None] | None = None

    def watch(self, callback: Callable[[], None] | None) -> None:
        """Have a function called when the client is gone, at once if it is; None for no more."""
        self._watch = callback
        if callback is not None and self.is_lost:
            callback()

    def lost(self) -> None:
        """The client is gone."""
        self.is_lost = True
        if self._watch is not None:
            self._watch()
        self.on_lost()


CONNECTION: ContextVar[Connection] = ContextVar("CONNECTION")
"""The connection of the request that the task at hand answers."""


class Stream:
    """One open stream."""

    def __init__(self, is_over: bool) -> None:
        self.is_over = is_over
        self._waiting: trio.CancelScope | None = None

    def end(self) -> None:
        """Let the generator return, at once or when it waits next."""
        self.is_over = True
        if self._waiting is not None:
            self._waiting.cancel("the stream is to end")

    async def wait(self, seconds: float) -> None:
        """Wait, but no longer than the stream lasts."""
        if self.is_over:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(seconds) as self._waiting:
            await trio.sleep_forever()

    async def receive(self, updates: Source[Item_co], patience: float) -> Item_co | None:
        """The next item; None when the stream is over, or after ``patience`` seconds.

        Raises:
            trio.EndOfChannel: No more will come.
        """
        if self.is_over:
            await trio.lowlevel.checkpoint()
            return None
        with trio.move_on_after(patience) as self._waiting:
            return await updates.receive()
        return None


class Streams:
    """All open streams.

    Attributes:
        sent: Number of updates that were given out.
        conflated: Number of states that a newer one replaced, of streams that are closed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Stream] = set()
        self._draining = False
        self.sent = 0
        self.conflated = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def draining(self) -> bool:
        """Whether no stream is opened any more."""
        return self._draining

    def drain(self) -> None:
        """End all streams, and open no more."""
        self._draining = True
        for stream in self._open:
            stream.end()

    @contextmanager
    def open(self) -> Iterator[Stream]:
        """Count a stream for as long as the context lasts.

        Raises:
            Refusal: There are too many, or the service is about to end.
        """
        if self._draining:
            raise Refusal(Code.UNAVAILABLE, "the service is ending")
        if len(self._open) >= self._most:
            raise Refusal(
                Code.RESOURCE_EXHAUSTED, f"there are {self._most} open streams, the most allowed"
            )
        connection = CONNECTION.get()
        stream = Stream(connection.is_lost)
        connection.on_lost = stream.end
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.remove(stream)
