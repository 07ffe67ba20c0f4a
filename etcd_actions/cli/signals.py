"""SIGINT and SIGTERM in a command: the first requests an orderly end, the second ends at once."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from etcd_actions._internal.logger import get_logger
from etcd_actions.app.stop import GRACE, Stop
from etcd_actions.cli.exit_codes import ExitCode, report
from etcd_actions.cli.first_signal import current_signals

_log = get_logger(__name__)


class _Listener:
    """Forwards signals to the event loop; its methods run in a signal handler."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._token = trio.lowlevel.current_trio_token()

    def stop_requested(self, number: int) -> None:
        self._stop.start_grace()
        self._soon(lambda: self._end(number))

    def hung_up(self, number: int) -> None:
        if self._stop.on_hangup is None:
            self.stop_requested(number)
        else:
            self._soon(self._stop.on_hangup)

    def _soon(self, function: Callable[[], None]) -> None:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            # The command has ended already.
            return

    def _end(self, number: int) -> None:
        if not self._stop.requested:
            _log.info("stopping", signal=signal.Signals(number).name)
            self._stop.request()


@asynccontextmanager
async def open_stop(grace: float = GRACE) -> AsyncIterator[Stop]:
    """Have a first signal request a :class:`Stop` while the context is open.

    Args:
        grace: Seconds from the signal on after which the process ends, finished or not.
    """
    with current_signals() as signals:
        stop = Stop(grace, forced_code=_forced_code if signals.owns_process else None)
        with signals.listening(_Listener(stop)):
            yield stop


def _forced_code(failure: Exception | None) -> int:
    return ExitCode.OK if failure is None else report(failure)


@contextmanager
def before_forced_exit(function: Callable[[], None]) -> Iterator[None]:
    """Have a function called if a signal ends the process at once while the context is open."""
    with current_signals() as signals:
        before, signals.before_forced_exit = signals.before_forced_exit, function
        try:
            yield
        finally:
            signals.before_forced_exit = before
