"""Runs one action: claims it, starts its attempts, reports how they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import trio

from etcd_actions._internal.clock import Clock
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.errors import ActionError, DecodeError, EtcdError, InvalidArgument
from etcd_actions.executor.attempts.attempt_clock import note_beginning
from etcd_actions.executor.attempts.attempt_command import Command, build_command
from etcd_actions.executor.attempts.attempt_directories import place_of
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.attempt_limits import DEADLINE, RUN_TOO_LONG, Limits
from etcd_actions.executor.attempts.attempts_port import AttemptsPort, begin, is_of_machine
from etcd_actions.executor.attempts.not_started import NotStarted, OutputsInUse
from etcd_actions.executor.attempts.outcome import Outcome, find_outcome
from etcd_actions.executor.cache.caching import HIT, Caching, Task
from etcd_actions.executor.executor_settings import ExecutorSettings
from etcd_actions.executor.images.image_environments import NotBuiltYet
from etcd_actions.executor.provisions import Provisions
from etcd_actions.executor.reports import Reports
from etcd_actions.executor.scheduling.ages import Ages
from etcd_actions.model import ErrorState, Phase
from etcd_actions.model import flyte as conversions
from etcd_actions.storage.claims import Claim, Claims

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

INVALID_SPEC: Final = "InvalidSpec"
_RELEASE_WITHIN = 2.0
# An attempt that goes on for so long is no failure any more.
_HEALS_AFTER = 5.0
# Seconds after which it is looked whether the directory of outputs is free.
_OUTPUTS_AGAIN = 1.0
# Seconds after which an action that looked as if it needed no slot waits for one.
_ROOM_AGAIN = 0.2

_log = structlog.get_logger(__name__)


class Work:
    """What is done for one action.

    Attributes:
        name: What the executor calls the action, ``<namespace>/<name>``.
        scope: Cancelled when the claims are lost.
        ended_elsewhere: Set when the action is over, here or elsewhere.
        place: Where its present attempt is; None before it began.
        elsewhere: Set where another executor has it.
        not_before: Where set, it is not tried before that time.
        failures: How often in a row it could not be dealt with.
        has_room: Whether there is a slot for it. Without one no attempt is started: it ends
            where it needs none.
    """

    def __init__(self, name: str, failures: int, *, has_room: bool = True) -> None:
        self.name = name
        self.has_room = has_room
        self.scope = trio.CancelScope()
        self.ended_elsewhere = trio.Event()
        self.place: AttemptDirectory | None = None
        self.elsewhere = False
        self.not_before: float | None = None
        self.failures = failures


@dataclass(frozen=True)
class Callbacks:
    """What an action's run reports.

    Attributes:
        note: An action, as etcd has it now.
        began: An attempt of an action was started, or found.
        healed: What failed before goes on.
        expires: Until when an action may wait; None for ever.
    """

    note: Callable[[StoredAction], None]
    began: Callable[[str, AttemptDirectory], None]
    healed: Callable[[str], None]
    expires: Callable[[str, float | None], None]


class _Attempt(NamedTuple):
    number: int
    template: TaskTemplate
    command: Command
    limits: Limits
    place: AttemptDirectory
    declares_outputs: bool
    cache_status: int | None = None


class ActionRun:
    """Runs actions of one executor, one call for each.

    Args:
        client: How actions are read.
        claims: What says that an action is ours.
        attempts: What starts processes.
        reports: What tells etcd.
        settings: See :class:`ExecutorSettings`.
        clock: What limits are counted on.
        ages: When actions began to count.
        callbacks: See :class:`Callbacks`.
        caching: What has the results of others.
        provisions: What attempts get beside their commands.
    """

    def __init__(
        self,
        client: ActionsClient,
        claims: Claims,
        attempts: AttemptsPort,
        reports: Reports,
        settings: ExecutorSettings,
        clock: Clock,
        ages: Ages,
        callbacks: Callbacks,
        caching: Caching,
        provisions: Provisions,
    ) -> None:
        self._client = client
        self._claims = claims
        self._attempts = attempts
        self._reports = reports
        self._settings = settings
        self._clock = clock
        self._ages = ages
        self._callbacks = callbacks
        self._caching = caching
        self._provisions = provisions
        self.retries = 0

    async def run(self, action: StoredAction, work: Work) -> StoredAction | None:
        """Run an action until it is over, or is not to be run now; the work says which.

        Returns:
            The action, where it was ended here; else None.

        Raises:
            ActionError: It was ended, deleted or taken over by somebody else.
            NotStarted: The machine cannot start it now.
            EtcdError: etcd cannot be asked.
        """
        if action.is_terminal:
            self._callbacks.note(action)
            return None
        if self._put_off(action, work):
            return None
        incarnation = action.incarnation
        claimed = await self._claims.claim_and_read(action.action_id, incarnation)
        if claimed is None:
            work.elsewhere = True
            return None
        claim = claimed.claim
        try:
            # It may have been ended since it was seen.
            action = self._client.note_read(action.action_id, claimed.object)
            while not action.is_terminal and action.incarnation == incarnation:
                action = await self._run_attempt(action, claim, work)
                self._callbacks.note(action)
                if work.not_before is not None or self._put_off(action, work):
                    break
        finally:
            with trio.move_on_after(_RELEASE_WITHIN, shield=True):
                await self._caching.release(work.name)
                try:
                    await self._claims.release(claim)
                except EtcdError as error:
                    _log.debug("claim_not_released", action=work.name, error=str(error))
        return action if action.is_terminal and action.incarnation == incarnation else None

    def limits(self, action: StoredAction, name: str) -> Limits:
        """The limits of the present attempt.

        Raises:
            InvalidArgument: They cannot be used.
            DecodeError: There is no template that can be read.
        """
        return self._limits(action, name, template_of(action))

    async def needs_slot(self, action: StoredAction, name: str) -> bool:
        """Whether an action has to run, as far as can be told; where not, it ends at once.

        Raises:
            InvalidArgument: There is no template.
            DecodeError: It cannot be read.
        """
        return not await self._caching.is_known(action, template_of(action), name)

    def _limits(self, action: StoredAction, name: str, template: TaskTemplate) -> Limits:
        return Limits.of(
            template,
            max(action.status.attempts, 1),
            created=self._ages.created(name),
            queued=self._ages.queued(name, action),
        )

    def _put_off(self, action: StoredAction, work: Work) -> bool:
        """Whether the back-off after the attempt before is not over: then nobody holds a slot."""
        if action.phase is not Phase.QUEUED or action.status.attempts < 2:
            return False
        try:
            attempt = self._prepare(action, work.name)
        except (DecodeError, InvalidArgument):
            # It ends with that as soon as it is claimed.
            return False
        limits, now = attempt.limits, self._clock.monotonic()
        if attempt.place.was_started or limits.not_before <= now or limits.late(now) is not None:
            return False
        self._callbacks.expires(work.name, limits.waiting_ends())
        work.not_before = limits.not_before
        return True

    def _prepare(self, action: StoredAction, name: str) -> _Attempt:
        """Say how an attempt is run.

        Raises:
            InvalidArgument: It cannot be; the field is named.
            DecodeError: What is stored cannot be read.
        """
        number = max(action.status.attempts, 1)
        template = template_of(action)
        command = build_command(action, template, number, self._settings)
        limits = self._limits(action, name, template)
        place = place_of(self._settings.state_dir, action.incarnation, number)
        declares_outputs = bool(template.interface.outputs.variables)
        return _Attempt(number, template, command, limits, place, declares_outputs)

    async def _run_attempt(self, action: StoredAction, claim: Claim, work: Work) -> StoredAction:
        """Run one attempt to its end, and report that; gives the action as it is then."""
        number = max(action.status.attempts, 1)
        try:
            attempt = self._prepare(action, work.name)
        except (DecodeError, InvalidArgument) as error:
            return await self._report(action, number, Phase.FAILED, claim, invalid_spec(error))
        limits, place = attempt.limits, attempt.place
        task = Task(work.name, action, attempt.template, place, attempt.command.outputs)
        if not place.was_started and not place.is_alive:
            late = limits.late(self._clock.monotonic())
            if late is not None:
                return await self._report(action, number, Phase.TIMED_OUT, claim, late)
            looked = await self._caching.look(task)
            if looked.status == HIT:
                return await self._report(action, number, Phase.SUCCEEDED, claim, cache_status=HIT)
            if looked.waits is not None or not work.has_room:
                after = _ROOM_AGAIN if looked.waits is None else looked.waits
                return await self._wait(action, attempt, claim, work, after)
            attempt = attempt._replace(cache_status=looked.status)
        else:
            await self._caching.reserve_again(task)
        work.place = place
        with ExitStack() as held:
            try:
                attempt = await self._provide(action, attempt, held)
                await begin(self._attempts, place, attempt.command)
            except InvalidArgument as error:
                work.place = None
                return await self._report(action, number, Phase.FAILED, claim, invalid_spec(error))
            except NotBuiltYet as busy:
                return await self._wait(action, attempt, claim, work, busy.again)
            except OutputsInUse as busy:
                _log.info("attempt_waits", action=work.name, reason=str(busy))
                return await self._wait(action, attempt, claim, work, _OUTPUTS_AGAIN)
            except NotStarted as failure:
                work.place = None
                if not failure.by_machine:
                    return await self._report(action, number, Phase.FAILED, claim, failure.error)
                if action.phase is Phase.UNSPECIFIED:
                    await self._report(action, number, Phase.QUEUED, claim)
                self._callbacks.expires(work.name, limits.waiting_ends())
                raise
            self._provisions.note(attempt.template, place)
            return await self._run_to_end(action, attempt, claim, work, task)

    async def _provide(self, action: StoredAction, attempt: _Attempt, held: ExitStack) -> _Attempt:
        """The attempt with all that it needs; see :meth:`Provisions.command_for`."""

        def command(variables: Mapping[str, str]) -> Command:
            if not variables:
                return attempt.command
            return build_command(
                action, attempt.template, attempt.number, self._settings, variables
            )

        found = await self._provisions.command_for(attempt.template, attempt.place, command, held)
        return attempt._replace(command=found)

    async def _wait(
        self,
        action: StoredAction,
        attempt: _Attempt,
        claim: Claim,
        work: Work,
        seconds: float,
    ) -> StoredAction:
        """Let an attempt that cannot begin yet be tried later, without a slot."""
        work.place = None
        if action.phase is Phase.UNSPECIFIED:
            action = await self._report(action, attempt.number, Phase.QUEUED, claim)
        self._callbacks.expires(work.name, attempt.limits.waiting_ends())
        work.not_before = self._clock.monotonic() + seconds
        return action

    async def _run_to_end(
        self,
        action: StoredAction,
        attempt: _Attempt,
        claim: Claim,
        work: Work,
        task: Task,
    ) -> StoredAction:
        """Follow an attempt that has begun, and report how it ended."""
        number, limits, place = attempt.number, attempt.limits, attempt.place
        self._callbacks.began(work.name, place)
        _log.info("attempt", action=action.metadata.name, attempt=number)
        try:
            action, outcome = await self._follow_process(action, attempt, claim, work)
        finally:
            self._attempts.forget(place)
        if outcome is None:
            # Ended by somebody else: the process is gone, and the object says the rest.
            return await self._client.get_task_action(action.action_id)
        if outcome.error is None:
            status = await self._caching.keep(task)
            return await self._report(action, number, Phase.SUCCEEDED, claim, cache_status=status)
        if outcome.recoverable and number < limits.attempts:
            self.retries += 1
            return await self._reports.report(
                action, number + 1, Phase.QUEUED, claim, error_before=outcome.error
            )
        timed_out = outcome.error.code in (RUN_TOO_LONG, DEADLINE)
        phase = Phase.TIMED_OUT if timed_out else Phase.FAILED
        return await self._report(action, number, phase, claim, outcome.error)

    async def _follow_process(
        self, action: StoredAction, attempt: _Attempt, claim: Claim, work: Work
    ) -> tuple[StoredAction, Outcome | None]:
        """Say that it runs, and wait; no outcome where somebody else has ended the action."""
        place, limits = attempt.place, attempt.limits
        ran = place.running_for() or 0.0
        note_beginning(place.path, ran)
        ends, too_long = limits.running_ends(self._clock.monotonic() - ran)
        ended, over = trio.Event(), False
        running = action if action.phase is Phase.RUNNING else None
        refused: ActionError | None = None
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await self._attempts.wait_ended(place)
                ended.set()
                nursery.cancel_scope.cancel("the process has ended")

            async def interrupt() -> None:
                await work.ended_elsewhere.wait()
                nursery.cancel_scope.cancel("the action is over")

            async def limit() -> None:
                nonlocal over
                await self._clock.sleep_until(ends)
                over = True
                nursery.cancel_scope.cancel("it takes too long")

            async def tell() -> None:
                nonlocal running, refused
                try:
                    if running is None:
                        running = await self._report_running(action, attempt, claim)
                except ActionError as error:
                    refused = error
                    nursery.cancel_scope.cancel("it is not ours to run")
                    return
                await trio.sleep(_HEALS_AFTER)
                self._callbacks.healed(work.name)

            for task in (wait, interrupt, limit, tell):
                nursery.start_soon(task)
        if refused is not None:
            raise refused
        if not ended.is_set():
            _log.info(
                "attempt_interrupted",
                action=action.metadata.name,
                reason="too long" if over else "the action is over",
            )
            await self._attempts.end(place)
            if not over:
                return action, None
        if running is None and not work.ended_elsewhere.is_set():
            running = await self._report_running(action, attempt, claim)
        if over and not ended.is_set():
            return running or action, Outcome(too_long, too_long.code == RUN_TOO_LONG)
        return running or action, await self._outcome(attempt)

    async def _outcome(self, attempt: _Attempt) -> Outcome:
        """Look at what an attempt left; what nobody can make sense of is a failure, too."""
        try:
            return await find_outcome(
                attempt.place,
                attempt.command.outputs,
                declares_outputs=attempt.declares_outputs,
            )
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and is_of_machine(error):
                raise
            message = f"what the attempt left cannot be read: {error}"
            state = ErrorState(code="OutcomeUnreadable", kind="SYSTEM", message=message)
            return Outcome(state, True)

    async def _report_running(
        self, action: StoredAction, attempt: _Attempt, claim: Claim
    ) -> StoredAction:
        return await self._report(
            action, attempt.number, Phase.RUNNING, claim, cache_status=attempt.cache_status
        )

    async def _report(
        self,
        action: StoredAction,
        attempt: int,
        phase: Phase,
        claim: Claim,
        error: ErrorState | None = None,
        *,
        cache_status: int | None = None,
    ) -> StoredAction:
        return await self._reports.report(
            action, attempt, phase, claim, error, cache_status=cache_status
        )


def template_of(action: StoredAction) -> TaskTemplate:
    """The task template of an action.

    Raises:
        InvalidArgument: There is none.
        DecodeError: It cannot be read.
    """
    template = conversions.task_template(action)
    if template is None:
        raise InvalidArgument("spec.taskTemplate", "it is empty")
    return template


def invalid_spec(error: DecodeError | InvalidArgument) -> ErrorState:
    """What an action ends with that cannot be run as it is.

    What the store gives an object, such as its name, is not its caller's to choose.
    """
    field = error.field if isinstance(error, InvalidArgument) else ""
    kind = "SYSTEM" if field.startswith("metadata.") else "USER"
    return ErrorState(code=INVALID_SPEC, kind=kind, message=str(error))
