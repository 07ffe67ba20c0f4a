"""Runs one action: claims it, starts its attempts, reports their outcomes."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final

import structlog
import trio

from etcd_actions._internal.histogram import TASK_BOUNDS, Histogram
from etcd_actions._internal.tracing import TRACEPARENT, below, span, traceparent
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.errors import DecodeError, EtcdError, InvalidArgument
from etcd_actions.executor.attempt_follower import AttemptFollower, PreparedAttempt
from etcd_actions.executor.attempts.attempt_command import Command, build_command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory, directory_of
from etcd_actions.executor.attempts.attempt_limits import DEADLINE, RUN_TOO_LONG, Limits
from etcd_actions.executor.attempts.start_errors import (
    NotStarted,
    OutputsInUse,
    of_os_error,
)
from etcd_actions.executor.cache.caching import HIT, CacheRequest, Caching
from etcd_actions.executor.images.image_environments import NotBuiltYet
from etcd_actions.executor.launchers.attempts import Attempts
from etcd_actions.executor.lost_attempts import (
    MOST_LOST,
    STARTED,
    WORKER_LOST,
    loss_of,
    losses,
    note_lost,
    noted_loss,
    unseen_loss,
)
from etcd_actions.executor.provisions import Provisions
from etcd_actions.executor.scheduling.schedule import Due
from etcd_actions.executor.shared import RunningAction, Shared
from etcd_actions.executor.shared_logs import copied_log
from etcd_actions.executor.task_templates import invalid_spec, template_of
from etcd_actions.model import ANNOTATION_TRACEPARENT, ErrorState, Phase
from etcd_actions.storage.claims import Claim, Claims

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

# Seconds for the release of a claim; it expires with its lease if that takes longer.
_RELEASE_WITHIN: Final = 2.0
# Seconds between checks whether the directory of outputs is free.
_OUTPUTS_AGAIN: Final = 1.0
# Seconds until an action that was started without a slot, and needs one, is scheduled again.
_SLOT_AGAIN: Final = 0.2
# Seconds until an action is scheduled again that was claimed by a worker without sure claims.
_UNSURE_AGAIN: Final = 0.5
_UNSURE: Final = "its worker could not renew its claims in time"
# Seconds for which a worker leaves an action to other workers after it could not start it.
_ELSEWHERE_FIRST: Final = 5.0

_TRACEPARENT: Final = TRACEPARENT.upper()

_log = structlog.get_logger(__name__)


class ActionRun:
    """Runs actions of one executor: one call of :meth:`run` for one action.

    Args:
        shared: The parts of the executor.
        claims: Claims actions.
        attempts: Starts processes.
        caching: The cached results.
        provisions: Adds environments and secrets to commands.

    Attributes:
        retries: Number of attempts that were followed by another one.
        times: How long attempts were followed, by outcome; see ``ExecutorStatistics``.
        lost_claims: Number of claims that another executor was faster to create.
    """

    def __init__(
        self,
        shared: Shared,
        claims: Claims,
        attempts: Attempts,
        caching: Caching,
        provisions: Provisions,
    ) -> None:
        self._shared = shared
        self._claims = claims
        self._attempts = attempts
        self._caching = caching
        self._provisions = provisions
        self._follower = AttemptFollower(shared, attempts)
        self._report = shared.reports.report
        self._is_worker = shared.settings.offer is not None
        self.retries = 0
        self.lost_claims = 0
        self.times: defaultdict[str, Histogram] = defaultdict(partial(Histogram, TASK_BOUNDS))

    async def run(self, action: StoredAction, work: RunningAction) -> StoredAction | None:
        """Run an action until it is terminal, delayed, or another executor's.

        ``work.not_before`` is set if it is delayed, ``work.elsewhere`` if another executor has it.
        Cancelled, its process lives on, and its claim is released.

        Returns:
            The action, if this call ended it; else None.

        Raises:
            ActionError: Another process ended, deleted or claimed it.
            NotStarted: The machine cannot start it now.
            EtcdError: etcd cannot be read or written.
        """
        if action.is_terminal:
            self._shared.note(action)
            return None
        if self._is_delayed(action, work):
            return None
        incarnation = action.incarnation
        claimed = await self._claims.claim_and_read(action.action_id, incarnation)
        if claimed is None:
            self.lost_claims += 1
            work.elsewhere = True
            return None
        claim = claimed.claim
        try:
            # It may have ended since it was read.
            action = self._shared.client.note_read(action.action_id, claimed.object)
            while not action.is_terminal and action.incarnation == incarnation:
                action = await self._run_attempt(action, claim, work)
                self._shared.note(action)
                if work.not_before is not None or self._is_delayed(action, work):
                    break
        finally:
            if self._is_worker and work.place is not None:
                await self._end_before_release(work.place)
            with trio.move_on_after(_RELEASE_WITHIN, shield=True):
                await self._caching.release(work.name)
                try:
                    await self._claims.release(claim)
                except EtcdError as error:
                    _log.debug("claim_not_released", action=work.name, error=str(error))
        return action if action.is_terminal and action.incarnation == incarnation else None

    async def _end_before_release(self, place: AttemptDirectory) -> None:
        """End a worker's attempt: once the claim is released, another worker starts the next."""
        if place.is_alive and not self._attempts.outlive_worker:
            with trio.CancelScope(shield=True):
                note_lost(place, WORKER_LOST)
                place.kill(signal.SIGKILL)
                await self._attempts.end(place)

    def limits(self, action: StoredAction, name: str) -> Limits:
        """The limits of the present attempt.

        Raises:
            InvalidArgument: One is invalid, or there is no template.
            DecodeError: The template cannot be read.
        """
        return self._limits(action, name, template_of(action))

    async def needs_slot(self, action: StoredAction, name: str) -> bool:
        """Whether an action needs a process and so a slot; False if it has a cached result.

        Raises:
            InvalidArgument: There is no template.
            DecodeError: The template cannot be read.
        """
        return not await self._caching.is_known(action, template_of(action), name)

    def _limits(self, action: StoredAction, name: str, template: TaskTemplate) -> Limits:
        limits = Limits.of(
            template,
            max(action.status.attempts, 1),
            created=self._shared.ages.created(name),
            queued=self._shared.ages.queued(name, action),
        )
        # An attempt that was lost with its worker does not count as one of the task's retries.
        return replace(limits, attempts=limits.attempts + losses(action))

    def _is_delayed(self, action: StoredAction, work: RunningAction) -> bool:
        """Whether the back-off after the last attempt has not ended; then sets its alarms."""
        if action.phase is not Phase.QUEUED or action.status.attempts < 2:
            return False
        try:
            attempt = self._prepare(action, work.name)
        except (DecodeError, InvalidArgument):
            # Its attempt fails with this error once it is claimed.
            return False
        limits, now = attempt.limits, self._shared.clock.monotonic()
        if attempt.place.was_started or limits.not_before <= now or limits.late(now) is not None:
            return False
        self._set_expiry(work, limits)
        work.not_before = limits.not_before
        return True

    def _prepare(self, action: StoredAction, name: str) -> PreparedAttempt:
        """The present attempt of an action.

        Raises:
            InvalidArgument: It cannot run; the field is named.
            DecodeError: The template cannot be read.
        """
        number = max(action.status.attempts, 1)
        template = template_of(action)
        command = build_command(action, template, number, self._shared.settings)
        limits = self._limits(action, name, template)
        place = directory_of(self._shared.settings.state_dir, action.incarnation, number)
        declares_outputs = bool(template.interface.outputs.variables)
        return PreparedAttempt(number, template, command, limits, place, declares_outputs)

    async def _run_attempt(
        self, action: StoredAction, claim: Claim, work: RunningAction
    ) -> StoredAction:
        """Run one attempt to its end, and report that; returns the action."""
        number = max(action.status.attempts, 1)
        try:
            attempt = self._prepare(action, work.name)
        except (DecodeError, InvalidArgument) as error:
            return await self._report(action, number, Phase.FAILED, claim, invalid_spec(error))
        place = attempt.place
        if action.phase in STARTED:
            # Until it is known where it runs, an abort has to end it.
            work.place = place
            await self._attempts.find(place)
            work.place = None
        if self._is_worker and (loss := loss_of(action, place)) is not None:
            return await self._report_loss(action, number, claim, loss)
        task = CacheRequest(work.name, action, attempt.template, place, attempt.command.outputs)
        if not place.was_started and not place.is_alive:
            late = attempt.limits.late(self._shared.clock.monotonic())
            if late is not None:
                return await self._report(action, number, Phase.TIMED_OUT, claim, late)
            result = await self._caching.look(task)
            if result.status == HIT:
                return await self._report(action, number, Phase.SUCCEEDED, claim, cache_status=HIT)
            if result.waits is not None or not work.has_slot:
                after = _SLOT_AGAIN if result.waits is None else result.waits
                return await self._delay(action, attempt, claim, work, after)
            attempt = attempt._replace(cache_status=result.status)
        else:
            attempt = attempt._replace(is_found=True)
            await self._caching.reserve_again(task)
        work.place = place
        created_by = action.metadata.annotations.get(ANNOTATION_TRACEPARENT, "")
        about: dict[str, str | int] = {"action": action.metadata.name, "attempt": number}
        with below(created_by), span("task", about), ExitStack() as held:
            try:
                attempt = await self._provide(action, attempt, held)
                await self._attempts.find(place)
                if self._is_worker and action.phase not in STARTED:
                    if not self._claims.are_sure:
                        return await self._delay(action, attempt, claim, work, _UNSURE_AGAIN)
                    action = await self._announce(action, attempt, claim)
                    if not (self._attempts.outlive_worker or self._claims.are_sure):
                        raise NotStarted.because(_UNSURE, by_machine=True)
                await self._begin(place, attempt.command)
            except InvalidArgument as error:
                work.place = None
                return await self._report(action, number, Phase.FAILED, claim, invalid_spec(error))
            except NotBuiltYet as busy:
                return await self._delay(action, attempt, claim, work, busy.again)
            except OutputsInUse as busy:
                _log.info("attempt_delayed", action=work.name, reason=str(busy))
                return await self._delay(action, attempt, claim, work, _OUTPUTS_AGAIN)
            except NotStarted as failure:
                return await self._handle_not_started(action, attempt, claim, work, failure)
            self._provisions.note(attempt.template, place)
            return await self._run_to_end(action, attempt, claim, work, task)

    async def _announce(
        self, action: StoredAction, attempt: PreparedAttempt, claim: Claim
    ) -> StoredAction:
        """Report a worker's attempt before its start: so no other worker ever repeats it."""
        waits = self._attempts.outlive_worker
        phase = Phase.INITIALIZING if waits else Phase.RUNNING
        return await self._report(
            action, attempt.number, phase, claim, cache_status=attempt.cache_status
        )

    async def _handle_not_started(
        self,
        action: StoredAction,
        attempt: PreparedAttempt,
        claim: Claim,
        work: RunningAction,
        failure: NotStarted,
    ) -> StoredAction:
        """Report an attempt that could not be started, unless a later start may succeed here.

        Raises:
            NotStarted: A later start here may succeed.
        """
        if not failure.may_run:
            work.place = None
        if not failure.by_machine:
            return await self._report(action, attempt.number, Phase.FAILED, claim, failure.error)
        if self._is_worker and not self._attempts.outlive_worker:
            # It is RUNNING: another worker may be able to start it.
            work.not_before = self._shared.clock.monotonic() + _ELSEWHERE_FIRST
            return await self._report_loss(action, attempt.number, claim, failure.error)
        if action.phase is Phase.UNSPECIFIED:
            await self._report(action, attempt.number, Phase.QUEUED, claim)
        self._set_expiry(work, attempt.limits)
        raise failure

    async def _provide(
        self, action: StoredAction, attempt: PreparedAttempt, held: ExitStack
    ) -> PreparedAttempt:
        """The attempt with its final command: with the image's environment, secrets and trace."""

        def command(variables: Mapping[str, str]) -> Command:
            if not variables:
                return attempt.command
            return build_command(
                action, attempt.template, attempt.number, self._shared.settings, variables
            )

        found = await self._provisions.command_for(attempt.template, attempt.place, command, held)
        # The task continues the trace: the SDK sends it with the calls that the task makes.
        if task_span := traceparent():
            environment = {_TRACEPARENT: task_span} | found.environment
            found = replace(found, environment=environment)
        return attempt._replace(command=found)

    async def _begin(self, place: AttemptDirectory, command: Command) -> None:
        try:
            await self._attempts.begin(place, command)
        except OSError as error:
            raise of_os_error(command.arguments[0], error, "program") from error

    def _set_expiry(self, work: RunningAction, limits: Limits) -> None:
        """Set the alarm for the end of the time that the action may wait for a slot."""
        self._shared.schedule.at(Due.EXPIRED, work.name, limits.waiting_ends())

    async def _delay(
        self,
        action: StoredAction,
        attempt: PreparedAttempt,
        claim: Claim,
        work: RunningAction,
        seconds: float,
    ) -> StoredAction:
        """Delay an attempt that cannot start yet by some seconds, in which it holds no slot."""
        work.place = None
        if action.phase is Phase.UNSPECIFIED:
            action = await self._report(action, attempt.number, Phase.QUEUED, claim)
        self._set_expiry(work, attempt.limits)
        work.not_before = self._shared.clock.monotonic() + seconds
        return action

    async def _run_to_end(
        self,
        action: StoredAction,
        attempt: PreparedAttempt,
        claim: Claim,
        work: RunningAction,
        task: CacheRequest,
    ) -> StoredAction:
        """Follow an attempt that was started, and report its outcome."""
        number, limits, place = attempt.number, attempt.limits, attempt.place
        self._shared.capacity.began(work.name, place)
        began = perf_counter()
        _log.info("attempt_followed", action=action.metadata.name, attempt=number)
        async with self._with_shared_log(attempt):
            action, outcome = await self._follower.follow(action, attempt, claim, work)
        took = perf_counter() - began
        if outcome is None:
            self.times["ENDED_ELSEWHERE"].observe(took)
            # Another process ended the action: its object has the phase.
            return await self._shared.client.get_task_action(action.action_id)
        unseen = self._is_worker and attempt.is_found and outcome.is_unseen
        if (loss := noted_loss(place) or (unseen_loss() if unseen else None)) is not None:
            # It was ended for another worker.
            self.times["RETRIED"].observe(took)
            work.not_before = self._shared.clock.monotonic()
            return await self._report_loss(action, number, claim, loss)
        if outcome.error is None:
            self.times[Phase.SUCCEEDED.name].observe(took)
            status = await self._caching.keep(task)
            return await self._report(action, number, Phase.SUCCEEDED, claim, cache_status=status)
        if outcome.recoverable and number < limits.attempts:
            self.retries += 1
            self.times["RETRIED"].observe(took)
            return await self._report(
                action, number + 1, Phase.QUEUED, claim, error_before=outcome.error
            )
        timed_out = outcome.error.code in (RUN_TOO_LONG, DEADLINE)
        phase = Phase.TIMED_OUT if timed_out else Phase.FAILED
        self.times[phase.name].observe(took)
        return await self._report(action, number, phase, claim, outcome.error)

    @asynccontextmanager
    async def _with_shared_log(self, attempt: PreparedAttempt) -> AsyncIterator[None]:
        """Have the log of a worker's attempt copied while the context is open."""
        settings, outputs = self._shared.settings, attempt.command.outputs
        if settings.offer is None or isinstance(outputs, str):
            yield
            return
        containment = self._shared.client.containment
        async with copied_log(attempt.place, outputs, settings.log_bytes, containment):
            yield

    async def _report_loss(
        self, action: StoredAction, number: int, claim: Claim, loss: ErrorState
    ) -> StoredAction:
        """Report that an attempt was lost: the next one follows, or the action has failed."""
        if loss.code == WORKER_LOST and losses(action, WORKER_LOST) + 1 >= MOST_LOST:
            message = f"{MOST_LOST} workers were lost while they ran it: it may be the cause"
            error = ErrorState(code=WORKER_LOST, kind="SYSTEM", message=message)
            return await self._report(action, number, Phase.FAILED, claim, error)
        self.retries += 1
        _log.warning("attempt_lost", action=action.metadata.name, attempt=number, code=loss.code)
        return await self._report(action, number + 1, Phase.QUEUED, claim, error_before=loss)
