"""The request to end: an orderly end in bounded time.

The time is bounded even if the event loop is blocked or too busy to read a clock: when the time has
passed, a thread ends the process.
"""

from __future__ import annotations

import _thread
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Final, TypeVar

import trio

from etcd_actions._internal.logger import get_logger

T = TypeVar("T")

GRACE: Final = 10.0
"""Seconds in which a command without a setting for it ends."""
LEAST_GRACE: Final = 1.0
"""Seconds that an orderly end has at least: it releases leases and keys in etcd."""

_FOR_MAIN_THREAD: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The part of the grace that is reserved for a forced end, and its upper limit in seconds.
_FORCED_PART: Final = 0.1
_FORCED_MOST: Final = 0.5

_log = get_logger(__name__)


class Stop:
    """The request to end the process, with the time that it may take.

    Args:
        grace: Seconds from the request to the end of the process; less than 1 counts as 1.
        forced_code: Returns the exit code for the failure when the grace has passed; None if
            the process must not be ended.

    Attributes:
        failure: Why the process has to end; None for a signal.
        doing: The part that the end waits for, as text for a log.
        on_hangup: Called for a SIGHUP; None if that requests the end.
    """

    def __init__(
        self,
        grace: float = GRACE,
        *,
        forced_code: Callable[[Exception | None], int] | None = None,
    ) -> None:
        self.failure: Exception | None = None
        self.doing = "the work in progress"
        self.on_hangup: Callable[[], None] | None = None
        self._grace = max(grace, LEAST_GRACE)
        self._forced_code = forced_code
        self._event = trio.Event()
        self._interruptible: set[trio.CancelScope] = set()
        self._when_forced: list[Callable[[], None]] = []
        self._deadline: float | None = None
        self._is_forced = False

    @property
    def requested(self) -> bool:
        """Whether the end is requested."""
        return self._event.is_set()

    @property
    def remaining(self) -> float:
        """Seconds until the process is ended, counted from the request; never negative."""
        if self._deadline is None:
            return self._grace
        return max(0.0, self._deadline - time.monotonic())

    def request(self, failure: Exception | None = None) -> None:
        """Request the end; the first failure is kept.

        A failure after the grace has passed is not kept: the forced end causes some itself.
        """
        if not self._is_forced:
            self.failure = self.failure or failure
        self.start_grace()
        self._event.set()
        for scope in self._interruptible:
            scope.cancel("end requested")

    async def wait(self) -> None:
        """Return once the end is requested."""
        await self._event.wait()

    @contextmanager
    def interrupts(self) -> Iterator[Callable[[], None]]:
        """Cancel the body when the end is requested.

        Yields a function; after its call a request no longer cancels the body.
        """
        with trio.CancelScope() as scope:
            self._interruptible.add(scope)
            try:
                if self.requested:
                    scope.cancel("end requested")
                yield lambda: self._interruptible.discard(scope)
            finally:
                self._interruptible.discard(scope)

    def when_forced(self, function: Callable[[], None]) -> None:
        """Call a function, in another thread, before the process is ended by force."""
        self._when_forced.append(function)

    async def enter(
        self, stack: AsyncExitStack, context: AbstractAsyncContextManager[T], doing: str
    ) -> T:
        """Enter a context; while it is left, the end waits for ``doing``."""

        def leave() -> None:
            self.doing = doing

        value = await stack.enter_async_context(context)
        stack.callback(leave)
        return value

    def raise_failure(self) -> None:
        """Raise the failure, if there is one."""
        if self.failure is not None:
            raise self.failure

    def start_grace(self) -> None:
        """Start the grace period. A signal handler may call this: it uses no lock of threading."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._grace
            if self._forced_code is not None:
                # The thread inherits the mask. A second signal that the kernel gave to the thread
                # would not interrupt a call in which the main thread is blocked.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_MAIN_THREAD)
                _thread.start_new_thread(self._force, (self._deadline, self._forced_code))
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _force(self, deadline: float, code: Callable[[Exception | None], int]) -> None:
        early = min(_FORCED_MOST, self._grace * _FORCED_PART)
        time.sleep(max(0.0, deadline - early - time.monotonic()))
        _log.warning("stopped_late", grace=self._grace, waiting_for=self.doing)
        self._is_forced = True
        for function in self._when_forced:
            function()
        os._exit(code(self.failure))
