"""Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends at once."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
import trio

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_log = structlog.get_logger(__name__)


class Stop:
    """The wish to end; made by :func:`open_stop`.

    Attributes:
        failure: Why the command cannot go on, None where somebody just asked it to end.
        at_once: Called before a second signal ends the process, to restore the terminal.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.at_once: Callable[[], None] = lambda: None
        self._event = trio.Event()
        self._interruptible: set[trio.CancelScope] = set()

    @property
    def requested(self) -> bool:
        """Whether to end."""
        return self._event.is_set()

    def request(self, failure: Exception | None = None) -> None:
        """Ask for an orderly end; the first failure is kept."""
        self.failure = self.failure or failure
        self._event.set()
        for scope in self._interruptible:
            scope.cancel("asked to end")

    async def wait(self) -> None:
        """Return once the end was asked for."""
        await self._event.wait()

    @contextmanager
    def interrupts(self) -> Iterator[Callable[[], None]]:
        """Cancel the body when the end is asked for.

        Gives a function that ends this: what follows it is let finish.
        """
        with trio.CancelScope() as scope:
            self._interruptible.add(scope)
            try:
                if self.requested:
                    scope.cancel("asked to end")
                yield lambda: self._interruptible.discard(scope)
            finally:
                self._interruptible.discard(scope)

    def raise_failure(self) -> None:
        """Raise the failure, if there is one."""
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def open_stop() -> AsyncIterator[Stop]:
    """Listen to the signals for as long as the context lasts."""
    stop = Stop()
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for number in signals:
                    if stop.requested:
                        stop.at_once()
                        os._exit(128 + number)
                    _log.info("stopping", signal=signal.Signals(number).name)
                    stop.request()

            nursery.start_soon(listen)
            yield stop
            nursery.cancel_scope.cancel("the command is done")


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let a Ctrl-C end the process wherever it is, also in a write that nobody reads.

    For commands that only read. As an exception it would wait for trio's next checkpoint when
    it comes within trio's own code, and a write to a full pipe may never end.
    """
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
