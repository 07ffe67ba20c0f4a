"""From gRPC's threads to trio: completions of calls, without a thread for each.

Completions go through one deque and one idempotent bell, so a burst of answers costs one
wake-up of the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import trio

from etcd_actions.logger import get_logger

_log = get_logger(__name__)


class Future(Protocol):
    """What grpcio's untyped call objects offer."""

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        """Call back, on a thread of gRPC's, when the call is over."""

    def cancel(self) -> bool:
        """End the call."""
        ...

    def code(self) -> Any:
        """How it ended."""
        ...

    def details(self) -> str | None:
        """Why, in words."""
        ...

    def result(self) -> Any:
        """The answer, where there is one."""
        ...


class Bell:
    """Runs functions in trio's thread, called from any other; bursts ring once.

    One that raises is logged, and the others are run: raised further it would end the process,
    and the others would wait for ever.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._waiting: deque[Callable[[], None]] = deque()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run a function soon, in order; never, when trio's run is over."""
        self._waiting.append(function)
        try:
            self._token.run_sync_soon(self._run, idempotent=True)
        except trio.RunFinishedError:
            # Nobody is left to be told.
            self._waiting.clear()

    def _run(self) -> None:
        while self._waiting:
            try:
                self._waiting.popleft()()
            except (Exception, SystemExit) as error:
                _log.error("callback_failed", exc_info=error)
            except BaseExceptionGroup as error:
                _log.error("callback_failed", exc_info=error)


async def finished(future: Future, bell: Bell) -> None:
    """Wait for a call; on cancellation cancel it too."""
    task = trio.lowlevel.current_task()
    waiting = True

    def wake() -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            trio.lowlevel.reschedule(task)

    def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
        nonlocal waiting
        waiting = False
        future.cancel()
        return trio.lowlevel.Abort.SUCCEEDED

    future.add_done_callback(lambda _: bell.call_soon(wake))
    await trio.lowlevel.wait_task_rescheduled(abort)
