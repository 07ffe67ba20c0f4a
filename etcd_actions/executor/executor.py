"""Runs actions on this machine: claims them, starts their processes, reports how they end.

It knows etcd only by the public client. What it does for an action is one task, which is
begun for whatever is not over: a fresh action, one whose executor fell silent, or one that
runs since before this process was started. So a restart needs nothing but to look again.

Each action has a boundary. Whatever goes wrong inside it parks that action alone: it is tried again
with a back-off, for as long as it is not over.
"""

from __future__ import annotations

import math
from pathlib import Path

import structlog
import trio

from etcd_actions._internal.clock import Clock
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.actions.stored_action import StoredAction, same_run
from etcd_actions.client import ActionsClient
from etcd_actions.errors import ClaimLost, EtcdError, FailedPrecondition, NotFound, RequestTooLarge
from etcd_actions.executor.action_run import ActionRun, Callbacks, Work
from etcd_actions.executor.attempts.attempt_directories import directories_of, place_of
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.attempts_port import AttemptsPort
from etcd_actions.executor.cache.caching import Caching
from etcd_actions.executor.executor_settings import ExecutorSettings
from etcd_actions.executor.executor_statistics import ExecutorStatistics
from etcd_actions.executor.intake import Intake, Taker
from etcd_actions.executor.provisions import Provisions
from etcd_actions.executor.reports import Reports
from etcd_actions.executor.scheduling.ages import Ages
from etcd_actions.executor.scheduling.board import Board
from etcd_actions.executor.scheduling.capacity import Room
from etcd_actions.executor.scheduling.failures import DELAYED, PARKED, PATIENCE, Failures
from etcd_actions.executor.scheduling.schedule import Alarm, Due, Schedule
from etcd_actions.executor.scheduling.turns import Turns
from etcd_actions.executor.visits import Host, Visits
from etcd_actions.executor.waiting_conditions import Conditions
from etcd_actions.model import ActionUpdate, Phase
from etcd_actions.storage.claims import Claims

_NOT_BEGUN = (Phase.UNSPECIFIED, Phase.QUEUED)

_log = structlog.get_logger(__name__)


class Executor:
    """Made by :func:`~etcd_actions.executor.open_executor`, which runs its loops under boundaries.

    Attributes:
        intake: What takes in the states of actions.
        visits: What looks at the objects of actions that wait.
    """

    def __init__(
        self,
        client: ActionsClient,
        claims: Claims,
        attempts: AttemptsPort,
        settings: ExecutorSettings,
        nursery: trio.Nursery,
        clock: Clock,
        provisions: Provisions,
    ) -> None:
        self._client = client
        self._containment = client.containment
        self._claims = claims
        self._attempts = attempts
        self._settings = settings
        self._nursery = nursery
        self._clock = clock
        turns = Turns(settings.slots)
        self._board = Board(turns)
        self._ages = Ages(clock)
        self._schedule = Schedule(turns)
        self._failures = Failures(clock)
        self.intake = Intake(
            client,
            clock,
            Taker(
                take_in=self._take_in,
                known=self._known,
                synced=self._after_snapshot,
                replaced=self._board.forget_revisions,
                failed=self._not_taken,
            ),
        )
        note = self.intake.note_action
        self._reports = Reports(client, note)
        self._room = Room(
            self._board,
            settings.slots,
            settings.memory,
            client.containment,
            self._ring_later,
        )
        self._caching = Caching(client, claims, settings, clock, self._hasten)
        self._runs = ActionRun(
            client,
            claims,
            attempts,
            self._reports,
            settings,
            clock,
            self._ages,
            Callbacks(
                note=note,
                began=self._room.began,
                healed=self._heal,
                expires=lambda name, when: self._schedule.at(Due.EXPIRED, name, when),
            ),
            self._caching,
            provisions,
        )
        self.visits = Visits(
            client,
            self._board,
            self._schedule,
            self._failures,
            Conditions(client, self._reports, note),
            clock,
            Host(
                note=note,
                limits=self._runs.limits,
                needs_slot=self._runs.needs_slot,
                is_attended=lambda name: name in self._work,
                ring=self._ring,
            ),
        )
        self._work: dict[str, Work] = {}
        # Of what is parked while its process runs.
        self._left_running: dict[str, AttemptDirectory] = {}
        self._synced = False
        self._bell = trio.Event()
        self._rings_at = math.inf

    def statistics(self) -> ExecutorStatistics:
        """See :class:`ExecutorStatistics`."""
        return ExecutorStatistics(
            running=len(self._work),
            waiting=self._board.waiting,
            open_actions=len(self._board),
            started=self._attempts.started,
            adopted=self._attempts.adopted,
            ended=dict(self._reports.ended),
            retries=self._runs.retries,
            cache=dict(self._caching.results),
        )

    def open_actions(self) -> set[str] | None:
        """The directories' names of what is not over; None before all of it is known."""
        if not self._synced:
            return None
        return {name for each in self._known() for name in directories_of(each.incarnation)}

    async def schedule(self) -> None:
        """Start what there is room for, whenever something changes."""
        while True:
            self._bell = trio.Event()
            if self._synced:
                await self._start_what_fits()
            left = self._schedule.next_alarm() - self._clock.monotonic()
            # Never at once: what is due and cannot be done now must not keep us busy.
            left = min(max(left, 0.01), self._clock.look_every, self._rings_at)
            self._rings_at = math.inf
            with trio.move_on_after(left):
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
            for name in self._schedule.keep_elsewhere(taken):
                self._admit(name, examine=True)
            self._ring()
            try:
                await self._caching.tidy()
            except EtcdError as error:
                _log.debug("reservations_not_released", error=str(error))

    def _known(self) -> list[ActionUpdate]:
        known = (self._board.get(name) for name in self._board.names())
        return [each.update for each in known if each is not None]

    def _after_snapshot(self) -> None:
        self._synced = True
        self._ring()

    def _not_taken(self, name: str, again: float) -> None:
        self._schedule.at(Due.NOTE, name, again)
        self._ring()

    def _take_in(self, update: ActionUpdate, live: bool) -> None:
        name = update.name
        before = self._board.get(name)
        object_before = None if before is None else before.update.incarnation
        if not self._board.note(update):
            return
        for moved in self._board.moved():
            self._schedule.reorder(moved, self._board.order(moved))
        known = self._board.get(name)
        if known is None or object_before not in (None, known.update.incarnation):
            self._over(name)
        if known is not None:
            self._ages.note(name, update, live=live)
            self._admit(name, first=object_before != known.update.incarnation)
        self._ring()

    def _over(self, name: str) -> None:
        """Nothing is to be done for an action any more."""
        self._schedule.drop(name)
        self._ages.drop(name)
        self._failures.drop(name)
        self._containment.forget("action", name)
        if (work := self._work.get(name)) is not None:
            work.ended_elsewhere.set()
        if (place := self._left_running.pop(name, None)) is not None:
            self._nursery.start_soon(self._end_left, name, place)

    def _is_over(self, name: str, place: AttemptDirectory) -> bool:
        """Whether an attempt's action is over; one of its name may have been made since."""
        known = self._board.get(name)
        return known is None or known.update.incarnation != place.incarnation

    def _admit(self, name: str, *, first: bool = False, examine: bool = False) -> None:
        """Put an action that is not attended to where it belongs.

        Args:
            name: Which.
            first: Whether it was not known before.
            examine: Whether another executor may have started it.
        """
        known = self._board.get(name)
        if known is None or name in self._work or self._schedule.keeps_waiting(name):
            return
        if known.is_condition:
            # Once: from then on alarms do, and news where it could not be dealt with.
            if first or name in self._failures:
                self.visits.add(name)
        elif examine or (first and not self._synced) or known.update.phase not in _NOT_BEGUN:
            self._schedule.examine(name)
        elif self._schedule.is_ready(name):
            self._schedule.reorder(name, self._board.order(name))
        else:
            self._ready(name)

    def _ready(self, name: str) -> None:
        known = self._board.get(name)
        if known is not None:
            order = self._board.order(name)
            self._schedule.ready(name, order, known.run, known.update.most_at_once)

    async def _start_what_fits(self) -> None:
        await self._examine()
        now = self._clock.monotonic()
        while (alarm := self._schedule.take_due(now)) is not None:
            with self._containment.unit("action", alarm.name) as unit:
                self._wake(alarm)
            if unit.failed:
                self._schedule.at(alarm.due, alarm.name, self._failures.again(alarm.name, PARKED))
            # Thousands may be due at once, and others have to get on, too.
            await trio.lowlevel.checkpoint()
        while (name := self._schedule.first()) is not None and await self._room.has_room():
            if not self._schedule.is_ready(name):
                continue
            with self._containment.unit("action", name) as unit:
                self._begin(name)
            if unit.failed:
                self._schedule.delay(name, self._failures.again(name, PARKED), wakes=True)
        for name in self._schedule.take_unvisited():
            if name not in self._failures:
                self.visits.add(name)

    async def _examine(self) -> None:
        """Attend at once to what was started already: it has its process."""
        names = self._schedule.unexamined()
        if not names:
            return
        started: set[str] = set()
        with self._containment.unit("executor", "examination"):
            known = {name: known for name in names if (known := self._board.get(name)) is not None}
            updates = {name: each.update for name, each in known.items()}
            started = await trio.to_thread.run_sync(
                _started, self._settings.state_dir, updates, abandon_on_cancel=True
            )
        for name in names:
            if not self._schedule.is_unexamined(name):
                continue
            if name in started:
                self._begin(name)
            else:
                self._ready(name)

    def _wake(self, alarm: Alarm) -> None:
        name = alarm.name
        if alarm.due is Due.NOTE:
            self.intake.again(name)
            return
        known = self._board.get(name)
        if known is None or name in self._work:
            return
        if alarm.due is Due.VISIT:
            self.visits.add(name)
        elif alarm.due is Due.AGAIN:
            self._admit(name)
        elif not self._schedule.is_elsewhere(name):
            # What is too late, or has a cached result, needs no process.
            self._begin(name, has_room=False)

    def _hasten(self, name: str) -> None:
        """What an action waited for has happened."""
        self._schedule.hasten(name, self._clock.monotonic())
        self._ring()

    def _begin(self, name: str, *, has_room: bool = True) -> None:
        self._schedule.begin(name)
        self._left_running.pop(name, None)
        work = self._work[name] = Work(name, self._failures.count(name), has_room=has_room)
        self._room.enter(name)
        self._nursery.start_soon(self._do, work)

    async def _do(self, work: Work) -> None:
        """Do all that is to be done for one action."""
        name = work.name
        done = failed = False
        try:
            with (
                work.scope,
                self._containment.unit("action", name, parks=True) as unit,
            ):
                await self._attend(work)
                done = True
            failed = unit.failed
        finally:
            del self._work[name]
            self._room.leave(name)
            self._put_back(work, done=done, failed=failed)
            self._ring()

    def _put_back(self, work: Work, *, done: bool, failed: bool) -> None:
        """An action that was attended to and is not over goes on later."""
        name = work.name
        known = self._board.get(name)
        if failed and work.place is not None:
            if self._is_over(name, work.place):
                self._nursery.start_soon(self._end_left, name, work.place)
            else:
                self._left_running[name] = work.place
        if known is None:
            # It has ended meanwhile: nobody else will say that it is not parked.
            self._heal(name)
        elif failed:
            self._schedule.delay(name, self._failures.again(name, PARKED), wakes=True)
        elif work.elsewhere:
            self._schedule.elsewhere(name)
        elif work.not_before is not None:
            self._failures.drop(name)
            self._schedule.delay(name, work.not_before, wakes=False)
        elif done:
            # It is not what was expected: its news is on its way.
            self._schedule.delay(name, self._failures.again(name, DELAYED), wakes=True)
        else:
            self._admit(name, examine=True)

    async def _attend(self, work: Work) -> None:
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
                    action = await self._client.get_task_action(action_id)
                    ended = await self._runs.run(action, work)
        except ClaimLost as error:
            _log.info("action_left", action=work.name, reason=str(error))
            work.elsewhere = True
            await self._end_process(work)
        except (NotFound, FailedPrecondition) as error:
            # It was ended or deleted by somebody else, of which news is to come.
            _log.info("action_left", action=work.name, reason=str(error))
            await self._end_process(work)
            if self._board.get(work.name) is not None and work.failures >= PATIENCE:
                raise
        else:
            if ended is not None and ended.phase is not Phase.SUCCEEDED:
                for child in self._board.children(work.name):
                    if (known := self._board.get(child)) is not None:
                        self._nursery.start_soon(self._abort_child, ended, known.update)

    async def _end_process(self, work: Work) -> None:
        """End the process of an action that is over; one that somebody took over goes on."""
        if work.place is None:
            return
        if self._is_over(work.name, work.place):
            await self._attempts.end(work.place)
        elif not work.elsewhere:
            self._left_running[work.name] = work.place

    async def _end_left(self, name: str, place: AttemptDirectory) -> None:
        with self._containment.unit("attempt", name):
            await self._attempts.end(place)

    async def _abort_child(self, parent: StoredAction, child: ActionUpdate) -> None:
        """End what is below an action that failed: nobody waits for it any more."""
        reason = f"its parent {parent.spec.action_name} is over: {parent.phase.name}"
        name, incarnation = child.name, child.incarnation
        failures = 0
        while (known := self._board.get(name)) is not None:
            if known.update.incarnation != incarnation:
                break
            if not same_run(known.update.action_id, parent.action_id):
                # The parent's name was another run's before, which left this.
                return
            with self._containment.unit("abort", name, parks=True) as unit:
                try:
                    await self._client.abort_action(
                        known.update.action_id, reason, incarnation=incarnation
                    )
                except NotFound:
                    return
                except EtcdError as error:
                    _log.debug("child_not_aborted", action=name, error=str(error))
                else:
                    return
            failures += 1
            await trio.sleep((PARKED if unit.failed else DELAYED).delay(failures))
        self._containment.forget("abort", name)

    def _heal(self, name: str) -> None:
        self._failures.drop(name)
        self._containment.forget("action", name)

    def _ring(self) -> None:
        self._bell.set()

    def _ring_later(self, seconds: float) -> None:
        """Look again in a while: memory that becomes free rings no bell."""
        self._rings_at = min(self._rings_at, seconds)


def _started(state_dir: Path, updates: dict[str, ActionUpdate]) -> set[str]:
    """Those whose present attempt began to run."""
    return {
        name
        for name, each in updates.items()
        if place_of(state_dir, each.incarnation, max(each.attempts, 1)).was_started
    }
