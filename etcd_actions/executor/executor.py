"""Runs actions on this machine: claims them, starts their processes, reports how they end.

It knows etcd only by the public client. What it does for an action is one task, which is
begun for whatever is not over: a fresh action, one whose executor fell silent, or one that
runs since before this process was started. So a restart needs nothing but to look again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import structlog
import trio

from etcd_actions.actions.status import ActionStatus
from etcd_actions.actions.stored import StoredTaskAction
from etcd_actions.backoff import Backoff
from etcd_actions.claims import Claim, Claims
from etcd_actions.client import ActionsClient
from etcd_actions.errors import (
    ActionError,
    ClaimLost,
    DecodeError,
    EtcdError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from etcd_actions.executor.attempt import Attempts
from etcd_actions.executor.board import Board
from etcd_actions.executor.command import Command, build_command
from etcd_actions.executor.fork_server import open_fork_server
from etcd_actions.executor.not_started import NotStarted
from etcd_actions.executor.outcome import Outcome, find_outcome
from etcd_actions.executor.places import AttemptPlace
from etcd_actions.executor.settings import ExecutorSettings
from etcd_actions.executor.state_dir import keep_clean, prepare_state_dir
from etcd_actions.model import ActionUpdate, ErrorState, Phase, build_action_update
from etcd_actions.model import flyte as conversions
from etcd_actions.model.taskaction import parse_time

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate
    from google.protobuf.duration_pb2 import Duration

_BACKOFF = Backoff(initial=0.2, cap=5.0)
_MEASURE_EVERY = 0.5
_NOT_BEGUN = (Phase.UNSPECIFIED, Phase.QUEUED)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExecutorStatistics:
    """What an executor does and has done.

    Attributes:
        running: Number of attempts that it follows.
        waiting: How many of them wait for children, and hold no slot.
        open_actions: Number of actions that are not over.
        started: Number of attempts that it started.
        adopted: Number of attempts that another executor had started.
        ended: Number of actions that it ended, by phase.
        retries: Number of attempts that were followed by another one.
    """

    running: int
    waiting: int
    open_actions: int
    started: int
    adopted: int
    ended: dict[str, int]
    retries: int


@asynccontextmanager
async def open_executor(
    client: ActionsClient, settings: ExecutorSettings
) -> AsyncIterator[Executor]:
    """Run actions for as long as the context lasts.

    Leaving it lets the processes that run live on: whoever looks next finds them. The client
    should watch.

    Args:
        client: How actions are followed and reported on; it must live longer.
        settings: See :class:`ExecutorSettings`.

    Raises:
        ConfigError: The state directory cannot be used.
        EtcdError: etcd cannot be asked.
    """
    await trio.to_thread.run_sync(prepare_state_dir, settings.state_dir)
    async with AsyncExitStack() as stack:
        claims = await stack.enter_async_context(client.open_claims(ttl=settings.claim_ttl))
        launcher = await stack.enter_async_context(
            open_fork_server(
                Path(sys.executable), settings.state_dir, client.containment, plain=True
            )
        )
        fork_server = None
        if settings.fork_server:
            fork_server = await stack.enter_async_context(
                open_fork_server(settings.python, settings.state_dir, client.containment)
            )
        nursery = await stack.enter_async_context(trio.open_nursery())
        attempts = Attempts(
            fork_server,
            nursery,
            settings.kill_grace,
            settings.log_bytes,
            launcher,
            client.containment,
        )
        executor = Executor(client, claims, attempts, settings, nursery)
        nursery.start_soon(executor.follow)
        nursery.start_soon(executor.schedule)
        nursery.start_soon(executor.look_again)
        clean = partial(
            keep_clean, settings.state_dir, settings.keep, executor.open_uids, client.containment
        )
        nursery.start_soon(
            client.containment.keep, "state_directory", str(settings.state_dir), clean
        )
        yield executor
        nursery.cancel_scope.cancel("the executor is left")


class _Work:
    """What is done for one action."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended_elsewhere = trio.Event()
        self.place: AttemptPlace | None = None


class _Limits:
    """How long a task may take, of each its end; None for no limit."""

    def __init__(self, action: StoredTaskAction, template: TaskTemplate, attempt: int) -> None:
        created = parse_time(action.metadata.creation_timestamp, "metadata.creationTimestamp")
        created = created or datetime.now(UTC)
        metadata = template.metadata
        self.run = _seconds(metadata.timeout)
        self.deadline = _after(created, _seconds(metadata.timeouts.deadline))
        queued = created
        if attempt > 1:
            history = action.status.phase_history
            queued = (
                parse_time(history[-1].occurred_at, "phaseHistory") or created
                if history
                else created
            )
        self.queued = _after(queued, _seconds(metadata.timeouts.queued_timeout))

    def next_queued(self) -> datetime | None:
        """When waiting for a slot ends."""
        ends = [end for end in (self.queued, self.deadline) if end is not None]
        return min(ends, default=None)


class Executor:
    """Made by :func:`open_executor`."""

    def __init__(
        self,
        client: ActionsClient,
        claims: Claims,
        attempts: Attempts,
        settings: ExecutorSettings,
        nursery: trio.Nursery,
    ) -> None:
        self._client = client
        self._claims = claims
        self._attempts = attempts
        self._settings = settings
        self._nursery = nursery
        self._board = Board()
        self._work: dict[str, _Work] = {}
        self._conditions: set[str] = set()
        self._queued: dict[str, datetime | None] = {}
        self._queueing: set[str] = set()
        self._elsewhere: set[str] = set()
        self._synced = False
        self._bell = trio.Event()
        self._used = 0
        self._groups: set[int] = set()
        self._rings_later = False
        self._measured = -1.0
        self._ended: dict[str, int] = {}
        self._retries = 0

    def statistics(self) -> ExecutorStatistics:
        """See :class:`ExecutorStatistics`."""
        return ExecutorStatistics(
            running=len(self._work),
            waiting=sum(self._board.is_waiting(name) for name in self._work),
            open_actions=len(self._board),
            started=self._attempts.started,
            adopted=self._attempts.adopted,
            ended=dict(self._ended),
            retries=self._retries,
        )

    def open_uids(self) -> set[str] | None:
        """The uids of the actions that are not over; None before all are known."""
        if not self._synced:
            return None
        known = (self._board.get(name) for name in self._board.names())
        return {each.update.uid for each in known if each is not None}

    async def follow(self) -> None:
        """Take in all that happens to actions."""
        async with self._client.subscribe_all() as updates:
            async for item in updates:
                if isinstance(item, ActionUpdate):
                    self._note(item)
                else:
                    self._synced = True
                    self._ring()

    async def schedule(self) -> None:
        """Start what there is room for, whenever something changes."""
        while True:
            self._bell = trio.Event()
            if self._synced:
                await self._start_what_fits()
            with trio.move_on_at(self._next_expiry()):
                await self._bell.wait()

    async def look_again(self) -> None:
        """Notice whose claims are gone, of others' and of our own."""
        every = self._settings.claim_ttl / 3
        while True:
            lost = self._claims.lost
            with trio.move_on_after(every):
                await lost.wait()
                # Whoever took over finds the processes; so do we, if nobody did.
                for work in self._work.values():
                    work.scope.cancel("the claims are lost")
            try:
                taken = await self._claims.taken()
            except EtcdError as error:
                _log.debug("claims_unreadable", error=str(error))
                continue
            self._elsewhere &= taken
            self._ring()

    def _note(self, update: ActionUpdate) -> None:
        if update.namespace != self._client.namespace or not self._board.note(update):
            return
        name = update.name
        if update.is_deleted or update.phase.is_terminal:
            self._queued.pop(name, None)
            self._elsewhere.discard(name)
            if (work := self._work.get(name)) is not None:
                work.ended_elsewhere.set()
        self._ring()

    def _ring(self) -> None:
        self._bell.set()

    async def _start_what_fits(self) -> None:
        ready = []
        for name in self._board.names():
            known = self._board.get(name)
            assert known is not None
            if known.is_condition:
                if name not in self._conditions:
                    self._conditions.add(name)
                    self._nursery.start_soon(self._serve_condition, name)
            elif name not in self._work and name not in self._elsewhere:
                ready.append(name)
        ready.sort(key=self._board.order)
        now, room = datetime.now(UTC), True
        for name in ready:
            known = self._board.get(name)
            if known is None or name in self._work:
                continue
            update = known.update
            place = self._place(update.uid, max(update.attempts, 1))
            expires = self._queued.get(name)
            # What was started already has its process, and what is too late needs none.
            begun = update.phase not in _NOT_BEGUN and place.was_started
            late = expires is not None and expires <= now
            if not begun and not late and room:
                room = await self._has_room()
            if begun or late or room:
                work = self._work[name] = _Work()
                self._nursery.start_soon(self._do, name, work)
            elif name not in self._queued and name not in self._queueing:
                self._queueing.add(name)
                self._nursery.start_soon(self._queue, name)

    def _next_expiry(self) -> float:
        """When, on trio's clock, the next action has waited too long for a slot."""
        ends = [end for end in self._queued.values() if end is not None]
        if not ends:
            return float("inf")
        left = (min(ends) - datetime.now(UTC)).total_seconds()
        return trio.current_time() + max(left, 0.05)

    async def _has_room(self) -> bool:
        busy = sum(not self._board.is_waiting(name) for name in self._work)
        if busy >= self._settings.slots:
            return False
        most = self._settings.memory
        if most is None or not self._work:
            return True
        pids = [None if work.place is None else work.place.pid for work in self._work.values()]
        groups = {pid for pid in pids if pid is not None}
        if len(groups) < len(pids):
            # What begins now is not in any measurement yet.
            self._ring_later()
            return False
        if groups != self._groups or trio.current_time() - self._measured > _MEASURE_EVERY:
            self._groups = groups
            self._used = await trio.to_thread.run_sync(_memory_of, groups)
            self._measured = trio.current_time()
            if self._used >= most:
                self._ring_later()
        return self._used < most

    def _ring_later(self) -> None:
        """Look again in a while: memory that becomes free rings no bell."""
        if not self._rings_later:
            self._rings_later = True
            self._nursery.start_soon(self._ring_after_a_while)

    async def _ring_after_a_while(self) -> None:
        await trio.sleep(_MEASURE_EVERY)
        self._rings_later = False
        self._ring()

    async def _queue(self, name: str) -> None:
        """Say of an action that it waits for a slot, and learn for how long it may."""
        try:
            known = self._board.get(name)
            if known is None:
                return
            action = await self._client.get_task_action(known.update.action_id)
            attempt = max(action.status.attempts, 1)
            if action.phase is Phase.UNSPECIFIED:
                action = await self._client.put_status(
                    known.update.action_id, attempt, ActionStatus(Phase.QUEUED)
                )
                self._note(_update(action))
            template = conversions.task_template(action)
            self._queued[name] = (
                None if template is None else _Limits(action, template, attempt).next_queued()
            )
            if self._queued[name] is not None:
                self._ring()
        except (ActionError, DecodeError) as error:
            # It is over, or cannot be read: whoever starts it says so.
            _log.debug("not_queued", action=name, reason=str(error))
            self._queued[name] = None
        except EtcdError as error:
            _log.debug("not_queued", action=name, reason=str(error))
            await trio.sleep(_BACKOFF.delay(1))
            self._ring()
        finally:
            self._queueing.discard(name)

    async def _do(self, name: str, work: _Work) -> None:
        """Do all that is to be done for one action."""
        failures = 0
        try:
            with work.scope:
                while True:
                    try:
                        await self._run(name, work)
                    except EtcdError as error:
                        failures += 1
                        delay = _BACKOFF.delay(failures)
                        if failures & (failures - 1) == 0:
                            _log.warning("action_delayed", action=name, error=str(error))
                        await trio.sleep(delay)
                    else:
                        return
        except (NotFound, FailedPrecondition) as error:
            # It was ended, deleted or taken over by somebody else.
            _log.info("action_left", action=name, reason=str(error))
            if isinstance(error, ClaimLost):
                self._elsewhere.add(name)
            await self._end_process(name, work)
        finally:
            del self._work[name]
            self._queued.pop(name, None)
            self._ring()

    async def _end_process(self, name: str, work: _Work) -> None:
        """End the process of an action that is over; one that somebody took over goes on."""
        if work.place is not None and self._board.get(name) is None:
            await self._attempts.end(work.place)

    async def _run(self, name: str, work: _Work) -> None:
        known = self._board.get(name)
        if known is None:
            return
        action_id = known.update.action_id
        action = await self._client.get_task_action(action_id)
        if action.is_terminal:
            self._note(_update(action))
            return
        claim = await self._claims.claim(action_id, action.metadata.uid, action.create_revision)
        if claim is None:
            self._elsewhere.add(name)
            return
        # Somebody may have ended it, and let it go, between the two.
        action = await self._client.get_task_action(action_id)
        try:
            while not action.is_terminal:
                action = await self._run_attempt(action, claim, work)
                self._note(_update(action))
        finally:
            with trio.move_on_after(2, shield=True):
                try:
                    await self._claims.release(claim)
                except EtcdError as error:
                    _log.debug("claim_not_released", action=name, error=str(error))
        if action.phase is not Phase.SUCCEEDED:
            await self._abort_children(action)

    async def _run_attempt(
        self, action: StoredTaskAction, claim: Claim, work: _Work
    ) -> StoredTaskAction:
        """Run one attempt to its end, and report that; gives the action as it is then."""
        attempt = max(action.status.attempts, 1)
        try:
            template = _template(action)
            command = build_command(action, template, attempt, self._settings)
        except (DecodeError, InvalidArgument) as error:
            failure = ErrorState(code="InvalidSpec", kind="USER", message=str(error))
            return await self._report(action, attempt, Phase.FAILED, claim, failure)
        limits = _Limits(action, template, attempt)
        place = work.place = self._place(action.metadata.uid, attempt)
        if not place.was_started and not place.is_alive:
            late = _late(limits)
            if late is not None:
                return await self._report(action, attempt, Phase.TIMED_OUT, claim, late)
            action = await self._report(action, attempt, Phase.RUNNING, claim)
        _log.info("attempt", action=action.metadata.name, attempt=attempt)
        try:
            outcome = await self._follow_process(action, template, place, command, limits, work)
        finally:
            self._attempts.forget(place)
        place.shorten_log(self._settings.log_bytes)
        if outcome is None:
            # Ended by somebody else: the process is gone, and the object says the rest.
            return await self._client.get_task_action(action.action_id)
        if outcome.error is None:
            return await self._report(action, attempt, Phase.SUCCEEDED, claim)
        most = template.metadata.retries.retries + 1
        if outcome.recoverable and attempt < most:
            self._retries += 1
            return await self._report(action, attempt + 1, Phase.QUEUED, claim)
        timed_out = outcome.error.code in ("MAX_RUNTIME_EXCEEDED", "DEADLINE_EXCEEDED")
        phase = Phase.TIMED_OUT if timed_out else Phase.FAILED
        return await self._report(action, attempt, phase, claim, outcome.error)

    async def _follow_process(
        self,
        action: StoredTaskAction,
        template: TaskTemplate,
        place: AttemptPlace,
        command: Command,
        limits: _Limits,
        work: _Work,
    ) -> Outcome | None:
        """Start it, or find it, and wait; None where somebody else has ended the action."""
        try:
            await self._attempts.begin(place, command)
        except NotStarted as error:
            return Outcome(error.error, error.by_machine)
        ended = trio.Event()
        too_long: ErrorState | None = None
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await self._attempts.wait_ended(place)
                ended.set()
                nursery.cancel_scope.cancel("the process has ended")

            async def interrupt() -> None:
                await work.ended_elsewhere.wait()
                nursery.cancel_scope.cancel("the action is over")

            async def limit() -> None:
                nonlocal too_long
                too_long = await _until_too_long(limits)
                nursery.cancel_scope.cancel("it takes too long")

            nursery.start_soon(wait)
            nursery.start_soon(interrupt)
            nursery.start_soon(limit)
        if not ended.is_set():
            _log.info(
                "attempt_interrupted",
                action=action.metadata.name,
                reason="too long" if too_long else "the action is over",
            )
            await self._attempts.end(place)
            if too_long is None:
                return None
            return Outcome(too_long, too_long.code == "MAX_RUNTIME_EXCEEDED")
        return await find_outcome(
            place,
            command.outputs,
            declares_outputs=bool(template.interface.outputs.variables),
        )

    async def _report(
        self,
        action: StoredTaskAction,
        attempt: int,
        phase: Phase,
        claim: Claim,
        error: ErrorState | None = None,
    ) -> StoredTaskAction:
        """Report until etcd has it; a report whose answer was lost may be made again."""
        failures = 0
        status = ActionStatus(phase, cache_status=action.status.cache_status)
        reported: StoredTaskAction | None = None
        while reported is None:
            try:
                reported = await self._client.put_status(
                    action.action_id, attempt, status, error=error, claim=claim
                )
            except EtcdError as trouble:
                failures += 1
                if failures & (failures - 1) == 0:
                    _log.warning("not_reported", action=action.metadata.name, error=str(trouble))
                await trio.sleep(_BACKOFF.delay(failures))
        self._note(_update(reported))
        if phase.is_terminal:
            self._ended[phase.name] = self._ended.get(phase.name, 0) + 1
            _log.info(
                "action_ended",
                action=action.metadata.name,
                attempt=attempt,
                phase=phase.name,
                error=error.code if error else None,
            )
        return reported

    async def _abort_children(self, action: StoredTaskAction) -> None:
        """End what is below an action that failed: nobody waits for it any more."""
        for child in self._board.children(action.metadata.name):
            known = self._board.get(child)
            if known is None:
                continue
            reason = f"its parent {action.spec.action_name} is over: {action.phase.name}"
            try:
                await self._client.abort_action(known.update.action_id, reason)
            except NotFound:
                continue

    async def _serve_condition(self, name: str) -> None:
        """Say that a condition waits, and end it when it has waited too long."""
        try:
            known = self._board.get(name)
            if known is None:
                return
            action_id = known.update.action_id
            failures = 0
            while self._board.get(name) is not None:
                try:
                    action = await self._client.get_task_action(action_id)
                    ends = await self._pause(action)
                    if ends is None:
                        return
                    left = (ends - datetime.now(UTC)).total_seconds()
                    if left > 0:
                        await trio.sleep(left)
                        continue
                    message = "nobody signalled it in time"
                    timed_out = await self._client.put_status(
                        action_id,
                        max(action.status.attempts, 1),
                        ActionStatus(Phase.TIMED_OUT),
                        error=ErrorState(code="ConditionTimedOut", kind="USER", message=message),
                    )
                    self._note(_update(timed_out))
                except EtcdError as error:
                    failures += 1
                    _log.debug("condition_delayed", action=name, error=str(error))
                    await trio.sleep(_BACKOFF.delay(failures))
        except (ActionError, DecodeError) as error:
            # It was signalled, aborted or deleted meanwhile.
            _log.debug("condition_left", action=name, reason=str(error))
        finally:
            if self._board.get(name) is None:
                self._conditions.discard(name)

    async def _pause(self, action: StoredTaskAction) -> datetime | None:
        """Say that it waits; gives when it has waited too long, None for never."""
        if action.is_terminal:
            self._note(_update(action))
            return None
        if action.phase is not Phase.PAUSED:
            paused = await self._client.put_status(
                action.action_id, max(action.status.attempts, 1), ActionStatus(Phase.PAUSED)
            )
            self._note(_update(paused))
        condition = conversions.condition_action(action)
        created = parse_time(action.metadata.creation_timestamp, "metadata.creationTimestamp")
        if condition is None or created is None:
            return None
        return _after(created, _seconds(condition.timeout))

    def _place(self, uid: str, attempt: int) -> AttemptPlace:
        return AttemptPlace(self._settings.state_dir, uid, attempt)


def _update(action: StoredTaskAction) -> ActionUpdate:
    return build_action_update(
        action,
        key=action.key,
        revision=action.revision,
        create_revision=action.create_revision,
    )


def _template(action: StoredTaskAction) -> TaskTemplate:
    template = conversions.task_template(action)
    if template is None:
        raise InvalidArgument("spec.taskTemplate", "it is empty")
    return template


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _after(start: datetime, seconds: float) -> datetime | None:
    return start + timedelta(seconds=seconds) if seconds > 0 else None


def _late(limits: _Limits) -> ErrorState | None:
    """Why an attempt is not begun any more."""
    now = datetime.now(UTC)
    if limits.deadline is not None and now >= limits.deadline:
        return _too_long("DEADLINE_EXCEEDED", "its deadline has passed")
    if limits.queued is not None and now >= limits.queued:
        return _too_long("QUEUED_TIMEOUT_EXCEEDED", "it waited too long for a slot")
    return None


async def _until_too_long(limits: _Limits) -> ErrorState:
    """Return when an attempt has run too long, and why."""
    run = trio.current_time() + limits.run if limits.run > 0 else float("inf")
    deadline = float("inf")
    if limits.deadline is not None:
        left = (limits.deadline - datetime.now(UTC)).total_seconds()
        deadline = trio.current_time() + left
    await trio.sleep_until(min(run, deadline))
    if deadline <= run:
        return _too_long("DEADLINE_EXCEEDED", "its deadline has passed")
    return _too_long("MAX_RUNTIME_EXCEEDED", f"it ran longer than {limits.run:g} s")


def _too_long(code: str, message: str) -> ErrorState:
    return ErrorState(code=code, kind="USER", message=message)


def _memory_of(groups: set[int]) -> int:
    """The bytes that groups of processes have in memory."""
    used = 0
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) in groups:
                used += process.memory_info().rss
        except (psutil.Error, ProcessLookupError):
            # It has ended meanwhile.
            continue
    return used
