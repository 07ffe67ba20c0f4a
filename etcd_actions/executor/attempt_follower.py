"""Follows one attempt to its end: reports RUNNING, applies its limits, reads its outcome."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import trio

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.errors import ActionError
from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.attempt_limits import RUN_TOO_LONG, Limits
from etcd_actions.executor.attempts.outcome import Outcome, find_outcome
from etcd_actions.executor.attempts.start_errors import is_of_machine
from etcd_actions.executor.launchers.attempts import Attempts
from etcd_actions.executor.shared import RunningAction, Shared
from etcd_actions.model import ErrorState, Phase
from etcd_actions.storage.claims import Claim

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

# Seconds that an attempt has to run before the failures of its action are forgotten.
_FORGET_AFTER: Final = 5.0
# Seconds that a launcher may take to run a command before its action is reported as waiting.
_QUEUED_AFTER: Final = 0.5

_log = structlog.get_logger(__name__)


class PreparedAttempt(NamedTuple):
    """An attempt that can be started.

    Attributes:
        number: Its number, from 1 on.
        template: The template of its task.
        command: Its command.
        limits: Its limits.
        place: Its directory.
        declares_outputs: Whether the task has outputs.
        cache_status: The action's cache status, a number of ``CatalogCacheStatus``; None keeps it.
        is_found: Whether it was started before: by an earlier process, or before a failure.
    """

    number: int
    template: TaskTemplate
    command: Command
    limits: Limits
    place: AttemptDirectory
    declares_outputs: bool
    cache_status: int | None = None
    is_found: bool = False


class AttemptFollower:
    """Follows attempts of one executor, one call for each.

    Args:
        shared: The parts of the executor.
        attempts: Waits for the ends of attempts, and ends them.
    """

    def __init__(self, shared: Shared, attempts: Attempts) -> None:
        self._shared = shared
        self._attempts = attempts

    async def follow(
        self, action: StoredAction, attempt: PreparedAttempt, claim: Claim, work: RunningAction
    ) -> tuple[StoredAction, Outcome | None]:
        """Report RUNNING once the command runs, and wait for the attempt's end.

        An attempt that exceeds a limit, or whose action has ended, is ended. Cancelled, it lives
        on.

        Returns:
            The action and the outcome; no outcome if another process has ended the action.

        Raises:
            ActionError: Another process ended, deleted or claimed the action.
            EtcdError: etcd cannot be written.
        """
        place, limits = attempt.place, attempt.limits
        launched, ended = trio.Event(), trio.Event()
        too_long: ErrorState | None = None
        running = action if action.phase is Phase.RUNNING else None
        refused: ActionError | None = None

        async def report_running() -> StoredAction:
            return await self._shared.reports.report(
                action, attempt.number, Phase.RUNNING, claim, cache_status=attempt.cache_status
            )

        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await self._attempts.wait_ended(place, launched)
                ended.set()
                nursery.cancel_scope.cancel("the process has ended")

            async def interrupt() -> None:
                await work.ended.wait()
                nursery.cancel_scope.cancel("the action has ended")

            async def limit(started: float) -> None:
                # Ends the attempt at its limit; ``started`` is infinite before its start.
                nonlocal too_long
                ends, error = limits.running_ends(started)
                await self._shared.clock.sleep_until(ends)
                too_long = error
                nursery.cancel_scope.cancel("it takes too long")

            async def limit_run() -> None:
                await launched.wait()
                ran = place.running_for() or 0.0
                place.note_start(ran)
                await limit(self._shared.clock.monotonic() - ran)

            async def report() -> None:
                nonlocal action, running, refused
                try:
                    with trio.move_on_after(_QUEUED_AFTER):
                        await launched.wait()
                    if not launched.is_set() and action.phase is Phase.UNSPECIFIED:
                        action = await self._shared.reports.report(
                            action, attempt.number, Phase.QUEUED, claim
                        )
                    await launched.wait()
                    if running is None:
                        running = await report_running()
                except ActionError as error:
                    refused = error
                    nursery.cancel_scope.cancel("another process ended or claimed the action")
                    return
                await trio.sleep(_FORGET_AFTER)
                self._shared.forget_failures(work.name)

            for task in (wait, interrupt, limit_run, report):
                nursery.start_soon(task)
            # Until the command runs only the deadline of the action counts.
            nursery.start_soon(limit, math.inf)
        if refused is not None:
            raise refused
        if not ended.is_set():
            _log.info(
                "attempt_interrupted",
                action=action.metadata.name,
                reason="the action has ended" if too_long is None else "too long",
            )
            await self._attempts.end(place)
            if too_long is None:
                return action, None
        if running is None and not work.ended.is_set():
            running = await report_running()
        if too_long is not None and not ended.is_set():
            return running or action, Outcome(too_long, too_long.code == RUN_TOO_LONG)
        return running or action, await self._outcome(attempt)

    async def _outcome(self, attempt: PreparedAttempt) -> Outcome:
        """Read the outcome of an attempt; an unreadable one is a failure."""
        try:
            return await find_outcome(
                attempt.place,
                attempt.command.outputs,
                declares_outputs=attempt.declares_outputs,
            )
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and is_of_machine(error):
                raise
            message = f"the files of the attempt cannot be read: {error}"
            state = ErrorState(code="OutcomeUnreadable", kind="SYSTEM", message=message)
            return Outcome(state, True)
