"""Runs actions on this machine: claims them, starts their processes, reports their outcomes.

It reads and writes etcd through the public client alone. Each action that runs has one trio task,
whether this process, an earlier one or another executor started its attempt. So a restart needs no
code of its own.

Each action has a boundary. An unexpected failure parks that action alone: it is retried with a
back-off until it is terminal.
"""

from __future__ import annotations

import math

import structlog
import trio

from etcd_actions._internal.clock import Clock
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.errors import ClaimLost, EtcdError, FailedPrecondition, NotFound, RequestTooLarge
from etcd_actions.executor.action_run import ActionRun
from etcd_actions.executor.attempts.attempt_directory import (
    AttemptDirectory,
    directory_names,
    started_attempts,
)
from etcd_actions.executor.cache.caching import Caching
from etcd_actions.executor.child_aborts import ChildAborts
from etcd_actions.executor.executor_settings import ExecutorSettings
from etcd_actions.executor.executor_statistics import ExecutorStatistics
from etcd_actions.executor.handover import Handover
from etcd_actions.executor.intake import Intake
from etcd_actions.executor.launchers.attempts import Attempts
from etcd_actions.executor.own_actions import OwnActions
from etcd_actions.executor.placement import Placement
from etcd_actions.executor.provisions import Provisions
from etcd_actions.executor.reports import Reports
from etcd_actions.executor.scheduling.ages import Ages
from etcd_actions.executor.scheduling.board import Board
from etcd_actions.executor.scheduling.capacity import Capacity
from etcd_actions.executor.scheduling.failures import DELAYED, PARKED, PATIENCE, Failures
from etcd_actions.executor.scheduling.schedule import Alarm, Due, Schedule
from etcd_actions.executor.scheduling.turns import Turns
from etcd_actions.executor.shared import RunningAction, Shared
from etcd_actions.executor.visits import Visits
from etcd_actions.model import ActionUpdate, Phase
from etcd_actions.storage.claims import Claims

_NOT_STARTED = (Phase.UNSPECIFIED, Phase.QUEUED)
# Seconds until an action that waits for a blocked one is examined again.
_AFTER_BLOCKED = 1.0
# Seconds by which a worker delays a visit that another worker makes first.
_VISIT_LATER = 5.0
# Seconds between checks whether the claims were renewed.
_CLAIMS_AGAIN = 0.2

_log = structlog.get_logger(__name__)


class Executor:
    """Runs actions; created by :func:`~etcd_actions.executor.open_executor`, which runs its loops.

    Attributes:
        intake: Follows actions.
        own: The actions that this executor runs.
        visits: Reads the objects of actions that wait.
        placement: Selects the actions of a worker; None for an executor that runs each action.
        handover: Ends the attempts of a worker.
    """

    def __init__(
        self,
        client: ActionsClient,
        claims: Claims,
        attempts: Attempts,
        settings: ExecutorSettings,
        nursery: trio.Nursery,
        clock: Clock,
        provisions: Provisions,
    ) -> None:
        self._containment = client.containment
        self._claims = claims
        self._attempts = attempts
        self._nursery = nursery
        turns = Turns(settings.slots)
        board, schedule = self._board, self._schedule = Board(turns), Schedule(turns)
        failures = self._failures = Failures(clock)
        self.intake = Intake(client, clock, board, schedule, self._receive, self._wake)
        note = self.intake.note_action
        self._shared = Shared(
            client=client,
            settings=settings,
            clock=clock,
            board=board,
            schedule=schedule,
            failures=failures,
            ages=Ages(clock),
            capacity=Capacity(
                board, settings.slots, settings.memory, client.containment, self._wake_later
            ),
            reports=Reports(client, note),
            note=note,
            wake=self._wake,
        )
        self._caching = Caching(client, claims, settings, clock, self._hasten)
        self._runs = ActionRun(self._shared, claims, attempts, self._caching, provisions)
        self.visits = Visits(self._shared, self._runs)
        self.placement = (
            None if settings.offer is None else Placement(self._shared, claims, settings.offer)
        )
        self.handover = Handover(self._shared, claims, attempts)
        # The attempts of parked actions.
        self._left_running: dict[str, AttemptDirectory] = {}
        self.own = OwnActions(
            self._shared,
            self.intake,
            unfinished=self._unfinished,
            admit=lambda name: self._admit(name, examine=True),
            forget=self._forget,
        )
        self._child_aborts = ChildAborts(self._shared, nursery, self.own.recheck)
        self._changed = trio.Event()
        self._wakes_within = math.inf

    def statistics(self) -> ExecutorStatistics:
        """The present counts."""
        shared = self._shared
        return ExecutorStatistics(
            running=len(shared.running),
            waiting=shared.board.waiting,
            open_actions=len(shared.board),
            started=self._attempts.started,
            adopted=self._attempts.adopted,
            ended=dict(shared.reports.ended),
            retries=self._runs.retries,
            attempt_times={name: times.read() for name, times in self._runs.times.items()},
            cache=dict(self._caching.results),
            queued=shared.schedule.ready_count
            + (0 if self.placement is None else self.placement.blocked),
            unplaced=0 if self.placement is None else self.placement.unplaced,
            lost_claims=self._runs.lost_claims,
        )

    def open_actions(self) -> set[str] | None:
        """The names of the directories of all open actions; None before these are known."""
        if not self.own.is_synced:
            return None
        board = self._board
        known = [board.get(name) for name in board.names()]
        return {
            name
            for each in known
            if each is not None
            for name in directory_names(each.update.incarnation)
        }

    async def schedule(self) -> None:
        """Start actions while slots are free, after each change; does not return."""
        while True:
            self._changed = trio.Event()
            if self.own.is_synced:
                await self._start_ready()
            left = self._schedule.next_alarm() - self._shared.clock.monotonic()
            # Never at once: an alarm that cannot be processed now must not keep the loop busy.
            left = min(max(left, 0.01), self._shared.clock.look_every, self._wakes_within)
            self._wakes_within = math.inf
            with trio.move_on_after(left):
                await self._changed.wait()

    async def follow_claims(self) -> None:
        """Detect claims that have ended, of other executors and of this one; does not return."""
        every = self._shared.settings.claim_ttl / 3
        if self.placement is not None:
            await self.placement.refresh()
        while True:
            lost = self._claims.lost
            with trio.move_on_after(every):
                await lost.wait()
                if self.placement is not None:
                    await self.handover.give_up()
                # The next owner of the claims finds the processes, also if it is this executor.
                for work in self._shared.running.values():
                    work.scope.cancel("the claims are lost")
            try:
                if self.placement is not None:
                    await self.placement.refresh()
                elsewhere = self._schedule.has_elsewhere
                taken = await self._claims.taken() if elsewhere else set[str]()
            except EtcdError as error:
                _log.debug("claims_unreadable", error=str(error))
                continue
            for name in self._schedule.keep_elsewhere(taken):
                if self.placement is not None:
                    self.placement.note_unclaimed(name)
                self._admit(name, examine=True)
            self._wake()
            try:
                await self._caching.tidy()
            except EtcdError as error:
                _log.debug("reservations_not_released", error=str(error))

    def _receive(self, update: ActionUpdate, live: bool) -> None:
        """Process the state of an action; ``live`` is False if it is part of a snapshot."""
        name = update.name
        before = self._board.get(name)
        object_before = None if before is None else before.update.incarnation
        if not self._board.note(update):
            return
        for moved in self._board.moved():
            self._schedule.reorder(moved, self._order(moved))
        known = self._board.get(name)
        if known is None or object_before not in (None, known.update.incarnation):
            self._remove(name)
        if known is not None:
            self._shared.ages.note(name, update, live=live)
            self._admit(name, first=object_before != known.update.incarnation)
        self._wake()

    def _remove(self, name: str) -> None:
        """Forget an action, or an incarnation of it, that has ended."""
        self._schedule.drop(name)
        self._shared.ages.drop(name)
        self._shared.forget_failures(name)
        if self.placement is not None:
            self.placement.forget(name)
        if (work := self._shared.running.get(name)) is not None:
            work.ended.set()
        if (place := self._left_running.pop(name, None)) is not None:
            self._nursery.start_soon(self._end_left, name, place)

    def _unfinished(self) -> list[str]:
        """The actions that run here, have a process here, or are being aborted by this executor."""
        return [*self._shared.running, *self._left_running, *self._child_aborts.open]

    def _forget(self, name: str) -> None:
        """Forget an action that another process runs, and whose updates are not received."""
        self._board.forget(name)
        self._remove(name)

    def _has_ended(self, name: str, place: AttemptDirectory) -> bool:
        """Whether an attempt's action has ended; its name may have another one."""
        known = self._board.get(name)
        return known is None or known.update.incarnation != place.incarnation

    def _admit(self, name: str, *, first: bool = False, examine: bool = False) -> None:
        """Schedule an action that does not run.

        Args:
            name: The action.
            first: Whether it is new.
            examine: Whether another executor may have started it.
        """
        known, schedule = self._board.get(name), self._schedule
        if known is None or name in self._shared.running or schedule.keeps_waiting(name):
            return
        if not (self.own.has(name) or name in self._left_running):
            return
        if (placement := self.placement) is not None and placement.does_not_fit(name):
            return
        if known.is_condition:
            # An alarm requests each later visit. An update requests one only after a failure.
            if first or examine or name in self._failures:
                self._visit(name)
        elif (
            examine
            or (first and self.own.is_listing(name))
            or known.update.phase not in _NOT_STARTED
        ):
            self._schedule.examine(name)
        elif self._schedule.is_ready(name):
            self._schedule.reorder(name, self._order(name))
        elif first and placement is not None and (wait := placement.head_start(name)):
            until = self._shared.clock.monotonic() + wait
            self._schedule.delay(name, until, wakes=False)
        else:
            self._ready(name)

    def _order(self, name: str) -> tuple[int, int]:
        """The sort key of a ready action, see :data:`~.scheduling.turns.Order`."""
        depth, age = self._board.order(name)
        return (depth, age if self.placement is None else age + self.placement.age_penalty(name))

    def _ready(self, name: str) -> None:
        known = self._board.get(name)
        if known is not None:
            order = self._order(name)
            self._schedule.ready(name, order, known.run, known.update.most_at_once)

    async def _start_ready(self) -> None:
        await self._examine()
        now = self._shared.clock.monotonic()
        while (alarm := self._schedule.take_due(now)) is not None:
            with self._containment.unit("action", alarm.name) as unit:
                self._process(alarm)
            if unit.failed:
                self._schedule.at(alarm.due, alarm.name, self._failures.again(alarm.name, PARKED))
            # Thousands may be due at once: let other tasks run.
            await trio.lowlevel.checkpoint()
        if self.handover.starts_nothing:
            # A renewal of the claims causes no update.
            self._wake_later(_CLAIMS_AGAIN)
            return
        if self.placement is not None:
            for blocked in self.placement.unblocked():
                # One that began a moment ago is blocked until its work takes its needs.
                if await self._shared.capacity.is_free() and blocked not in self._shared.running:
                    self._begin(blocked)
        while (
            name := self._schedule.first()
        ) is not None and await self._shared.capacity.is_free():
            if not self._schedule.is_ready(name):
                continue
            if self.placement is not None and self.placement.must_wait(name):
                again = self._shared.clock.monotonic() + _AFTER_BLOCKED
                self._schedule.delay(name, again, wakes=False)
                continue
            with self._containment.unit("action", name) as unit:
                self._begin(name)
            if unit.failed:
                self._schedule.delay(name, self._failures.again(name, PARKED), wakes=True)
        for name in self._schedule.take_unvisited():
            if name not in self._failures:
                self._visit(name)

    def _visit(self, name: str) -> None:
        """Request a visit to an action that waits; all workers but one delay theirs."""
        if self.placement is None or not self.placement.head_start(name):
            self.visits.add(name)
        else:
            later = self._shared.clock.monotonic() + _VISIT_LATER
            self._schedule.at(Due.VISIT, name, later)

    async def _examine(self) -> None:
        """Continue the unexamined actions whose attempt was started; schedule the others.

        The former need no free slot: their process runs, or has ended.
        """
        names = self._schedule.unexamined()
        if not names:
            return
        started: set[str] = set()
        with self._containment.unit("executor", "examination"):
            known = {name: known for name in names if (known := self._board.get(name)) is not None}
            present = {
                name: (each.update.incarnation, max(each.update.attempts, 1))
                for name, each in known.items()
            }
            started = await trio.to_thread.run_sync(
                started_attempts, self._shared.settings.state_dir, present, abandon_on_cancel=True
            )
        for name in names:
            if not self._schedule.is_unexamined(name):
                continue
            if name in started:
                self._begin(name)
            elif self.placement is not None and self.placement.is_elsewhere(name):
                self._schedule.elsewhere(name)
            else:
                self._ready(name)

    def _process(self, alarm: Alarm) -> None:
        name = alarm.name
        if alarm.due is Due.NOTE:
            self.intake.again(name)
            return
        known = self._board.get(name)
        if known is None or name in self._shared.running or not self.own.has(name):
            return
        if alarm.due is Due.VISIT:
            self.visits.add(name)
        elif alarm.due is Due.AGAIN:
            self._admit(name)
        elif not self._schedule.is_elsewhere(name):
            # An action that is too late, or has a cached result, needs no process.
            self._begin(name, has_slot=False)

    def _hasten(self, name: str) -> None:
        """End the delay of an action that waited for a cached result."""
        self._schedule.hasten(name, self._shared.clock.monotonic())
        self._wake()

    def _begin(self, name: str, *, has_slot: bool = True) -> None:
        self._schedule.begin(name)
        self._left_running.pop(name, None)
        work = self._shared.running[name] = RunningAction(
            name, self._failures.count(name), has_slot
        )
        self._shared.capacity.enter(name)
        self._nursery.start_soon(self._do, work)

    async def _do(self, work: RunningAction) -> None:
        """Run one action inside its boundary, then schedule it unless it has ended."""
        name = work.name
        done = failed = False
        try:
            with (
                work.scope,
                self._containment.unit("action", name, parks=True) as unit,
            ):
                await self._run(work)
                done = True
            failed = unit.failed
        finally:
            del self._shared.running[name]
            self._shared.capacity.leave(name)
            if self.placement is not None:
                self.placement.note_ended(name)
            self._reschedule(work, done=done, failed=failed)
            self._wake()
            self.own.recheck()

    def _reschedule(self, work: RunningAction, *, done: bool, failed: bool) -> None:
        """Schedule an action that ran and has not ended."""
        name = work.name
        known = self._board.get(name)
        if failed and work.place is not None:
            if self._has_ended(name, work.place):
                self._nursery.start_soon(self._end_left, name, work.place)
            else:
                self._left_running[name] = work.place
        if known is None:
            # It has ended: no other part unparks it.
            self._shared.forget_failures(name)
        elif failed:
            self._schedule.delay(name, self._failures.again(name, PARKED), wakes=True)
        elif work.elsewhere:
            if self.placement is not None:
                self.placement.forget(name)
            self._schedule.elsewhere(name)
        elif self.placement is not None and self.placement.does_not_fit(name):
            self._failures.drop(name)
            self._visit(name)
        elif work.not_before is not None:
            self._failures.drop(name)
            self._schedule.delay(name, work.not_before, wakes=False)
        elif done:
            # It was in an unexpected state: the update of a newer state will follow.
            self._schedule.delay(name, self._failures.again(name, DELAYED), wakes=True)
        else:
            self._admit(name, examine=True)

    async def _run(self, work: RunningAction) -> None:
        known = self._board.get(work.name)
        if known is None:
            return
        action_id = known.update.action_id
        report = seldom(_log, "action_delayed", action=work.name)
        ended: StoredAction | None = None
        try:
            async for attempt in retrying(
                DELAYED, on=EtcdError, unless=RequestTooLarge, report=report
            ):
                with attempt:
                    action = await self._shared.client.get_task_action(action_id)
                    if self.placement is not None and not self.placement.admits(action, work):
                        return
                    ended = await self._runs.run(action, work)
        except ClaimLost as error:
            _log.info("action_left", action=work.name, reason=str(error))
            work.elsewhere = True
            await self._end_process(work)
        except (NotFound, FailedPrecondition) as error:
            # Another process ended or deleted it: the update will follow.
            _log.info("action_left", action=work.name, reason=str(error))
            await self._end_process(work)
            if self._board.get(work.name) is not None and work.failures >= PATIENCE:
                raise
        else:
            if ended is not None and ended.phase is not Phase.SUCCEEDED:
                self._child_aborts.start(work.name, ended)

    async def _end_process(self, work: RunningAction) -> None:
        """End the process of an action that has ended; leave one that another executor follows."""
        if work.place is None:
            return
        if self._has_ended(work.name, work.place):
            await self._attempts.end(work.place)
        elif not work.elsewhere:
            self._left_running[work.name] = work.place

    async def _end_left(self, name: str, place: AttemptDirectory) -> None:
        with self._containment.unit("attempt", name):
            await self._attempts.end(place)

    def _wake(self) -> None:
        self._changed.set()

    def _wake_later(self, seconds: float) -> None:
        """Check again within so many seconds: free memory causes no update."""
        self._wakes_within = min(self._wakes_within, seconds)
