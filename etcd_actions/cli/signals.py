"""Ctrl-C and SIGTERM: the first asks for an orderly end in bounded time, the second ends at once.

The time is bounded whatever hangs: a thread of its own ends the process when it is over, also
while the event loop is blocked or too busy to look at a clock.
"""

from __future__ import annotations

import _thread
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final

import trio

from etcd_actions._internal.logger import get_logger
from etcd_actions.cli.exit_codes import report
from etcd_actions.cli.first_signal import current_signals

GRACE: Final = 10.0
"""Seconds in which a command ends that has no setting for it."""
LEAST_GRACE: Final = 1.0
"""Seconds that an orderly end has at least: what is held in etcd is let go of in that time."""

# Of the grace, what is kept for an end that has to be forced, and its upper limit in seconds.
_FORCED_PART: Final = 0.1
_FORCED_MOST: Final = 0.5
_OK: Final = 0

_log = get_logger(__name__)


class Stop:
    """The wish to end; made by :func:`open_stop`.

    Args:
        grace: See :func:`open_stop`.
        forces: Whether the process is ended when the grace is over.

    Attributes:
        failure: Why the command cannot go on, None where somebody just asked it to end.
        doing: What the end is waiting for, in words.
        on_hangup: Called for a SIGHUP; None where that asks for the end.
    """

    def __init__(self, grace: float = GRACE, *, forces: bool = False) -> None:
        self.failure: Exception | None = None
        self.doing = "the work at hand"
        self.on_hangup: Callable[[], None] | None = None
        self._grace = max(grace, LEAST_GRACE)
        self._forces = forces
        self._event = trio.Event()
        self._interruptible: set[trio.CancelScope] = set()
        self._forced: list[Callable[[], None]] = []
        self._deadline: float | None = None

    @property
    def requested(self) -> bool:
        """Whether to end."""
        return self._event.is_set()

    @property
    def remaining(self) -> float:
        """Seconds until the process is ended, counted from the wish; never negative."""
        if self._deadline is None:
            return self._grace
        return max(0.0, self._deadline - time.monotonic())

    def request(self, failure: Exception | None = None) -> None:
        """Ask for an orderly end; the first failure is kept."""
        self.failure = self.failure or failure
        self._bound()
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

    def when_forced(self, function: Callable[[], None]) -> None:
        """Call a function, in another thread, before the process is ended by force."""
        self._forced.append(function)

    def before_leaving(self, stack: AsyncExitStack, doing: str) -> None:
        """Say what the end waits for while the context that was entered last is left."""

        def say() -> None:
            self.doing = doing

        stack.callback(say)

    def raise_failure(self) -> None:
        """Raise the failure, if there is one."""
        if self.failure is not None:
            raise self.failure

    def _bound(self) -> None:
        """Count from now on; callable in a signal handler, for which threading is too much."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._grace
            if self._forces:
                _thread.start_new_thread(self._force, ())

    def _force(self) -> None:
        """End the process when the time is over."""
        assert self._deadline is not None
        early = min(_FORCED_MOST, self._grace * _FORCED_PART)
        time.sleep(max(0.0, self._deadline - early - time.monotonic()))
        _log.warning("stopped_late", grace=self._grace, waiting_for=self.doing)
        for function in self._forced:
            function()
        os._exit(_OK if self.failure is None else report(self.failure))


class _Listener:
    """Hands signals on to the event loop; its methods are called in a signal handler."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._token = trio.lowlevel.current_trio_token()

    def asked_to_end(self, number: int) -> None:
        self._stop._bound()
        self._soon(lambda: self._end(number))

    def hung_up(self, number: int) -> None:
        if self._stop.on_hangup is None:
            self.asked_to_end(number)
        else:
            self._soon(self._hang_up)

    def _soon(self, function: Callable[[], None]) -> None:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            # The command is done: there is nobody left to be told.
            return

    def _end(self, number: int) -> None:
        if not self._stop.requested:
            _log.info("stopping", signal=signal.Signals(number).name)
            self._stop.request()

    def _hang_up(self) -> None:
        if self._stop.on_hangup is not None:
            self._stop.on_hangup()


@asynccontextmanager
async def open_stop(grace: float = GRACE) -> AsyncIterator[Stop]:
    """Listen to the signals for as long as the context lasts.

    Args:
        grace: Seconds after the first signal, or the first :meth:`Stop.request`, at which the
            process is ended, whatever it is waiting for; less than 1 counts as 1.
    """
    with current_signals() as signals:
        stop = Stop(grace, forces=signals.owns_process)
        with signals.listening(_Listener(stop)):
            yield stop


@contextmanager
def at_once(function: Callable[[], None]) -> Iterator[None]:
    """Call a function before a second signal ends the process during the body."""
    with current_signals() as signals:
        before, signals.at_once = signals.at_once, function
        try:
            yield
        finally:
            signals.at_once = before
