"""What is to be done for an action behind its handlers: tell the run service, then mark.

A queue of its own: a run service that hangs or refuses slows no subscriber. Each action has
its turn in order, its states conflate, and what fails is tried again after a back-off, for
ever; only what the run service will never accept is set aside as a dead letter, which is in
etcd before anything is marked, and what cannot be decoded until the next good write.

One process at a time has an outbox at work, see :mod:`etcd_actions.etcd.election`. What it tells
cannot be fenced, so:

- Every call is begun, and ends, while the leader's lease is surely alive.
- An ending that was accepted while a call of an older leader, or one of unknown outcome, could
  still land behind it is told again when that is over, and only then marked. It waits apart, see
  :mod:`etcd_actions.record.held_endings`.
- A state from before the term is told only if it still is the newest: another leader may have
  told, and marked, what came after it. So is the deletion of what was made again since.
- After an ending was accepted nothing but a newer attempt, another incarnation or another ending
  is told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import msgspec
import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.histogram import Distribution, Histogram
from etcd_actions._internal.tracing import span
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.codecs import codec_of
from etcd_actions.dead_letters import DeadLetterStatistics, LetterBook
from etcd_actions.errors import DecodeError, RunServiceActionUnknown, RunServiceRejected
from etcd_actions.etcd.api import KeyValue
from etcd_actions.etcd.term import Term
from etcd_actions.follow import Index, SetAside
from etcd_actions.follow.workqueue import WorkQueue, WorkQueueSettings, WorkQueueStatistics
from etcd_actions.model import (
    ACTION_TYPE_TRACE,
    ActionObject,
    ActionUpdate,
    Incarnation,
    Phase,
    Summary,
    build_action_update,
    mark_number,
    parse_key,
    task_action_name,
)
from etcd_actions.record.held_endings import HeldEndings
from etcd_actions.record.leader_calls import LeaderCalls, LeaseTooShort
from etcd_actions.record.recorder import Ending, MarkResult, Recorder
from etcd_actions.run_service import RunService
from etcd_actions.run_service.protocol import keeps_order, tell_status
from etcd_actions.storage.store import Store
from etcd_actions.watch import Change

_NO_ENDING = -1
_MOST_OF_A_UID = 128
_BYTES_OF_OBJECTS = 256 * 1024
"""Bytes of values that wait up to which their decoded objects are kept with them."""
_BEFORE_RUNNING = (
    Phase.UNSPECIFIED,
    Phase.QUEUED,
    Phase.WAITING_FOR_RESOURCES,
    Phase.INITIALIZING,
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class OutboxStatistics:
    """What an outbox holds and has done.

    Attributes:
        queue: The queue; None before the first time it worked.
        told: Number of calls that the run service accepted, by ``record`` and ``status``.
        rejected: Number of calls that it will never accept, likewise.
        failed: Number of calls that failed and are made again, likewise.
        cut: Number of calls that ended with the time of the lease, and are made again, likewise.
        held: Number of endings that were accepted, and are told again before they are marked.
        call_times: How long calls took, whatever came of them, likewise.
        dead_letters: The letters about these, by action and call; accepted later, one goes.
    """

    queue: WorkQueueStatistics | None
    told: dict[str, int]
    rejected: dict[str, int]
    failed: dict[str, int]
    cut: dict[str, int]
    held: int
    call_times: dict[str, Distribution]
    dead_letters: DeadLetterStatistics

    @classmethod
    def of_none(cls) -> OutboxStatistics:
        """Those of a process that has none."""
        nothing: dict[str, int] = {}
        letters = DeadLetterStatistics(letters=(), dropped=0)
        return cls(
            queue=None,
            told=nothing,
            rejected=nothing,
            failed=nothing,
            cut=nothing,
            held=0,
            call_times={},
            dead_letters=letters,
        )


class _Delivery(Change, frozen=True, gc=False):
    """A change on its way to the run service; a deletion carries what is to be told.

    One without that is none: letters about an object that is gone are offered again.
    """

    update: ActionUpdate | None = None
    read: bool = False
    """Whether its value was read in this term, when it was the newest."""
    action: ActionObject | None = None
    """The decoded value, if it is available."""

    def without_value(self) -> Change:
        """The same change with its value dropped."""
        return msgspec.structs.replace(super().without_value(), action=None)


class Outbox:
    """See the module's text.

    Args:
        index: What is known of the keys, and of the deletions that are not done with.
        store: Where values are read again.
        run_service: Who is told.
        recorder: Who marks.
        aborter: Ends what is to be deleted and is not over.
        orphans: Collects what a deleted action leaves behind.
        letters: Where what is refused for good is written.
        traces: What the keys of traces begin with.
        prefix: What the keys of the other actions begin with.
        set_aside: Where a value goes that was good enough for the handlers, but not to be told.
        workers: How many actions have their turn side by side.
        settings: Limits of the queue.
        containment: Where unexpected failures are counted.
    """

    def __init__(
        self,
        index: Index,
        store: Store,
        *,
        run_service: RunService,
        recorder: Recorder,
        aborter: Aborter,
        orphans: OrphanCollector,
        letters: LetterBook,
        set_aside: SetAside,
        prefix: bytes,
        traces: bytes,
        workers: int,
        settings: WorkQueueSettings,
        containment: Containment,
    ) -> None:
        self._containment = containment
        self._index = index
        self._store = store
        self._set_aside = set_aside
        self._run_service = run_service
        self._recorder = recorder
        self._aborter = aborter
        self._orphans = orphans
        self._letters = letters
        self._prefix = prefix
        self._traces = traces
        self._workers = workers
        self._settings = settings
        self._queue: WorkQueue | None = None
        self._working = False
        self._calls = LeaderCalls()
        self._held = HeldEndings(self._give_back)
        self._introduced: dict[bytes, Incarnation] = {}
        # What was accepted, and when that call was begun.
        self._accepted: dict[bytes, tuple[Incarnation, Ending, float]] = {}
        # Of what ended: which incarnation, and its attempts.
        self._ended: dict[bytes, tuple[Incarnation, int]] = {}
        # By key a number for the mark of the ending that was told last, `_NO_ENDING` where
        # something else was, or may have been.
        self._last_told: dict[bytes, int] = {}
        self._has_children: set[bytes] = set()
        # Deleted by their mark, which nobody saw: all of them is told.
        self._done_with: set[Incarnation] = set()
        # Of which a deletion from before the term was told.
        self._told_late: set[bytes] = set()
        self._told: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._cut: Counter[str] = Counter()
        self._call_times = {"record": Histogram(), "status": Histogram()}

    @property
    def working(self) -> bool:
        """Whether it takes deliveries."""
        return self._working

    def statistics(self) -> OutboxStatistics:
        """See :class:`OutboxStatistics`."""
        return OutboxStatistics(
            queue=self._queue.statistics() if self._queue else None,
            told=dict(self._told),
            rejected=dict(self._rejected),
            failed=dict(self._failed),
            cut=dict(self._cut),
            held=len(self._held),
            call_times={what: times.read() for what, times in self._call_times.items()},
            dead_letters=self._letters.statistics(),
        )

    @property
    def doubt_until(self) -> float:
        """Until when something that was told by this outbox, or before it, may still land."""
        return self._calls.doubt_until

    @asynccontextmanager
    async def at_work(
        self, term: Term | None = None, *, hold_until: float = -math.inf
    ) -> AsyncIterator[None]:
        """Take deliveries and work on them; on leaving what is not done is given up.

        It is in etcd still, unmarked, and found again.

        Args:
            term: Calls are made only while its lease is surely alive; None for ever.
            hold_until: Until when what other processes told may still land, in trio's time.
        """
        if keeps_order(self._run_service):
            # Whatever lands late changes nothing, and nothing false can be told.
            self._calls.begin(None, -math.inf)
        else:
            self._calls.begin(term, hold_until)
        self._held = HeldEndings(self._give_back)
        # Others may have told something since.
        self._accepted.clear()
        self._last_told.clear()
        self._told_late.clear()
        queue = self._queue = WorkQueue(
            self.notify_run_service,
            self._read_again,
            self._settings,
            containment=self._containment,
            unit="delivery",
        )
        keep = self._containment.keep
        fence = None if term is None else term.leadership.fence
        async with self._letters.at_work(fence, self.redeliver), trio.open_nursery() as nursery:
            for _ in range(self._workers):
                nursery.start_soon(keep, "task", "a worker of the outbox", queue.worker)
            nursery.start_soon(keep, "task", "retries of the outbox", queue.retry_failed)
            nursery.start_soon(keep, "task", "endings to be told again", self._held.run)
            self._working = True
            try:
                yield
            finally:
                self._working = False
                # In etcd they are unmarked still: the next leader finds them.
                self._held = HeldEndings(self._give_back)
                nursery.cancel_scope.cancel("the outbox does not work any more")

    async def wait_idle(self) -> None:
        """Return once nothing is left to be done now; what is held does not count."""
        if self._queue is not None:
            await self._queue.wait_idle()

    def close_if_settled(self) -> bool:
        """Make no more calls, if all is done and nothing that was told can still land."""
        busy = self._queue is not None and self._queue.has_work
        if busy or len(self._held) or trio.current_time() < self.doubt_until:
            return False
        self._calls.close()
        return True

    def wants(self, change: Change, summary: Summary) -> bool:
        """Whether there is anything to do for a state, or a deletion."""
        if not self._working:
            return False
        if change.is_delete or self._letters.asked(change.key):
            return True
        if summary.recorded:
            # Where nobody holds what is to be deleted it is deleted here: what a finalizer's
            # owner did with a plain put, an API server would have answered with the deletion.
            free = summary.deleting and not summary.held_by_others
            return (
                summary.held
                or free
                or self._recorder.wants_lease(change.kv.lease)
                or self._is_another(change.key, summary.mark)
            )
        phase = summary.phase
        asked = summary.deleting and not phase.is_terminal
        return summary.stray or asked or self._is_wanted(phase, False)

    def _is_another(self, key: bytes, mark: int) -> bool:
        """Whether something else than what a mark is about was told last of a key.

        A writer that puts an older copy of a whole object back brings its mark with it. Flyte's
        own, a label alone, counts for whatever it is on.
        """
        return mark != 0 and self._last_told.get(key, mark) != mark

    def _is_wanted(self, phase: Phase, deleted: bool) -> bool:
        """Whether the run service wants a state; where it cannot say it is told."""
        try:
            return self._run_service.wants(phase, deleted)
        except BaseException as error:
            self._containment.caught("run_service", "wants", error)
            return True

    def deliver(
        self, change: Change, update: ActionUpdate | None, action: ActionObject | None = None
    ) -> None:
        """Queue a state, or a deletion with what is to be told of it. Never waits.

        A few decoded objects are kept with their states; of many the bytes are enough.

        Args:
            change: What happened.
            update: What is to be told of a deletion.
            action: The decoded object of a state, where it is at hand.
        """
        assert self._queue is not None
        if self._queue.pending_bytes > _BYTES_OF_OBJECTS:
            action = None
        self._queue.dispatch((_delivery(change, update, action=action),))

    def redeliver(self, key: bytes) -> None:
        """Have the letters about an object that is known, or gone, offered again in its turn."""
        if self._queue is None:
            return
        known = self._index.get(key)
        if known is None:
            self._queue.dispatch((_Delivery.deletion(key, 0),))
        else:
            self._queue.dispatch((Change.unread(key, known.create_revision, known.revision),))

    def forget(self, key: bytes) -> None:
        """The key is gone, and nothing is to be told of it."""
        self._introduced.pop(key, None)
        self._accepted.pop(key, None)
        self._ended.pop(key, None)
        self._held.drop(key)
        self._last_told.pop(key, None)
        self._has_children.discard(key)

    async def notify_run_service(self, delivery: Change) -> None:
        """Tell the run service until it accepts, then mark an ending.

        The action is recorded once per incarnation, before its first status. After an
        acceptance only the mark is tried again.
        """
        key = delivery.key
        update = delivery.update if isinstance(delivery, _Delivery) else None
        if update is not None:
            await self._end_deleted(delivery, update)
            return
        try:
            if delivery.is_delete:
                await self._redeliver_gone(key)
            elif (newest := await self._if_newest(delivery)) is not None:
                await self._handle(newest)
        except DecodeError as error:
            # Trying again would cure nothing; another value comes by the watch.
            known = self._index.get(key)
            is_newest = known is not None and known.revision == delivery.mod_revision
            if is_newest and key not in self._set_aside:
                self._set_aside.add(delivery, error)
            self._accepted.pop(key, None)
            await self._letters.unanswerable(key, f"the object cannot be read: {error.reason}")

    async def _if_newest(self, delivery: Change) -> Change | None:
        """A state; None for one from before the term behind which there is a newer one.

        Another leader may have told, and marked, that one. etcd is asked only while the watch has
        yet to come to where the term began.
        """
        key, revision = delivery.key, delivery.mod_revision
        began = self._calls.term_revision
        was_read = isinstance(delivery, _Delivery) and delivery.read
        if was_read or revision >= began or self._index.is_newest(key, revision, began):
            return delivery
        return await self._store.newest(delivery)

    async def _read_again(self, change: Change) -> Change | None:
        found = await self._store.newest(change)
        return None if found is None else _delivery(found, None, read=True)

    async def _handle(self, delivery: Change) -> None:
        key, value = delivery.key, delivery.value
        action = delivery.action if isinstance(delivery, _Delivery) else None
        if action is None:
            action = codec_of(value).decode(value, key=key, revision=delivery.mod_revision)
        update = build_action_update(
            action,
            key=key,
            revision=delivery.mod_revision,
            create_revision=delivery.create_revision,
        )
        seen = delivery.kv.plain()
        self._let_go(key)
        if retry := self._letters.asked(key):
            # The record first, then the status, whichever of the two was refused.
            self._introduced.pop(key, None)
            self._accepted.pop(key, None)
        state = action.state(delivery.create_revision)
        if state.recorded and not self._is_another(key, state.mark):
            if retry:
                await self._tell_state(update, action, value, retry)
                self._last_told[key] = state.mark
            await self._recorder.maintain(seen)
            return
        if state.stray:
            # The noted state comes by the watch.
            await self._recorder.disown(seen)
            return
        # Whoever else holds what is to be deleted ends it; when only we do, it is ended here.
        asked = action.is_deleting and not update.phase.is_terminal
        if asked and await self._aborter.deletion_asked(seen):
            return
        if not update.phase.is_terminal:
            self._accepted.pop(key, None)
            if not self._is_over(update):
                await self._tell_state(update, action, value, retry)
            return
        ending = Ending.of(update)
        which, until = update.incarnation, self._until(key)
        *accepted, began = self._accepted.get(key, (None, None, -math.inf))
        if accepted != [which, ending] or began < until <= trio.current_time():
            began = trio.current_time()
            if not await self._tell_state(update, action, value, retry):
                self._accepted.pop(key, None)
                return
            # It is kept for as long as the object is there: one of both is enough.
            if (known := self._introduced.get(key)) == which:
                which = known
            self._accepted[key] = which, ending, began
            self._ended[key] = which, update.attempts
            self._last_told[key] = mark_number(ending.mark(delivery.create_revision))
        if began < (until := self._until(key)):
            self._held.hold(delivery.without_value(), until)
            return
        await self._letters.carry(update, value)
        if await self.mark_terminal_status_recorded(seen, ending) is MarkResult.DELETED:
            self._done_with.add(which)
        self._accepted.pop(key, None)

    def _is_over(self, update: ActionUpdate) -> bool:
        """Whether the ending of this attempt, or of a newer one, was accepted."""
        if update.action_type == ACTION_TYPE_TRACE:
            return False
        which, attempts = self._ended.get(update.key, (None, -1))
        return which == update.incarnation and update.attempts <= attempts

    def _until(self, key: bytes) -> float:
        """Until when something that was told of an action may still land."""
        unsettled = getattr(self._run_service, "unsettled_until", None)
        own: float = -math.inf if unsettled is None else unsettled(key)
        return max(self._calls.hold_until, own)

    def _give_back(self, change: Change) -> bool:
        return self._queue is not None and self._queue.dispatch_if_idle(change)

    def _let_go(self, key: bytes) -> None:
        """Something newer of a key is handled: what is held of it need not be told again."""
        held = self._held.get(key)
        self._held.drop(key)
        if isinstance(held, _Delivery) and held.update is not None:
            self._done_with.discard(held.update.incarnation)
            self._index.forget_deletion(key, held.mod_revision)

    async def mark_terminal_status_recorded(self, seen: KeyValue, ending: Ending) -> MarkResult:
        """Label an ending that the run service accepted, by compare-and-swap.

        Raises:
            EtcdError: etcd did not do it now; it is tried again.
        """
        with span("mark", {"uid": ending.uid[:_MOST_OF_A_UID], "phase": ending.phase.name}):
            return await self._recorder.mark(seen, ending)

    async def _tell(
        self, update: ActionUpdate, action: ActionObject | None, value: bytes | None
    ) -> bool:
        """Tell a state; whether it was accepted, and not refused for ever."""
        self._last_told[update.key] = _NO_ENDING
        if update.action_type == ACTION_TYPE_TRACE:
            # Recorded again it may say something else. Flyte's run service takes any trace that
            # is recorded for one that succeeded.
            accepted = await self._offer("record", update, action, value)
            if accepted and update.phase is not Phase.SUCCEEDED:
                accepted = await self._offer("status", update, action, value)
            return accepted
        first = self._introduced.get(update.key) != update.incarnation
        recorded: bool | None = None
        if first:
            recorded = await self._offer("record", update, action, value)
            self._introduced[update.key] = update.incarnation
        told = update
        if update.key in self._has_children and update.phase in _BEFORE_RUNNING:
            told = msgspec.structs.replace(update, phase=Phase.RUNNING)
        accepted = True
        if told.phase is not Phase.UNSPECIFIED:
            accepted = await self._tell_status(told, action, value, recorded)
        if update.phase.is_terminal or update.is_deleted:
            self._has_children.discard(update.key)
        if first and update.parent and not update.is_deleted:
            self._promote_parent(update)
        return accepted

    async def _tell_status(
        self,
        update: ActionUpdate,
        action: ActionObject | None,
        value: bytes | None,
        recorded: bool | None,
    ) -> bool:
        """Tell a status; where the run service does not know the action, record that first.

        Once a try: what follows is up to the back-off. Without a record it stays unknown.

        Args:
            update: The state.
            action: The stored object, None where it is gone.
            value: Its bytes, likewise.
            recorded: Whether a record was accepted, or not, just now; None for neither.
        """
        try:
            return await self._offer("status", update, action, value)
        except RunServiceActionUnknown as error:
            # Whatever comes of it, the next try begins with the record.
            self._introduced.pop(update.key, None)
            if recorded:
                raise
            if recorded is None and await self._offer("record", update, action, value):
                return await self._offer("status", update, action, value)
            self._introduced[update.key] = update.incarnation
            await self._refused("status", update, value, error.code, str(error))
            return False

    async def _offer(
        self, what: str, update: ActionUpdate, action: ActionObject | None, value: bytes | None
    ) -> bool:
        """Make a call; whether it was accepted, and not refused for ever."""
        began = perf_counter()
        try:
            with span(f"run_service.{what}", {"action": update.name, "phase": update.phase.name}):
                if what == "record":
                    call = partial(self._run_service.record_action, update, action)
                else:
                    call = partial(tell_status, self._run_service, update, action)
                await self._calls.make(call)
        except RunServiceRejected as error:
            await self._refused(what, update, value, error.code, str(error))
            return False
        except trio.Cancelled:
            raise
        except LeaseTooShort:
            self._cut[what] += 1
            raise
        except BaseException:
            self._failed[what] += 1
            raise
        finally:
            self._call_times[what].observe(perf_counter() - began)
        self._told[what] += 1
        await self._letters.accepted(what, update)
        return True

    async def _refused(
        self, what: str, update: ActionUpdate, value: bytes | None, code: int, error: str
    ) -> None:
        """Count what was refused for good, and write it down."""
        self._rejected[what] += 1
        _log.error(
            "run_service_rejected",
            what=what,
            key=update.key.decode(errors="backslashreplace"),
            revision=update.revision,
            code=code,
            error=error,
        )
        await self._letters.refused(what, update, value, code=code, error=error)

    def _promote_parent(self, child: ActionUpdate) -> None:
        """Have the parent told as RUNNING, in its own turn, if it is not that far by itself.

        So it can never come behind the parent's ending, and has the parent's own attempts.
        """
        if not self._is_wanted(Phase.RUNNING, False):
            return
        name = task_action_name(child.action_id.run, child.parent)
        parent = self._prefix + f"{child.namespace}/{name}".encode(errors="replace")
        known = self._index.get(parent)
        if known is None or known.phase not in _BEFORE_RUNNING or parent in self._has_children:
            return
        # Another run's action may have the key by now.
        run = child.action_id
        if (known.project, known.domain, known.run) != (run.project, run.domain, run.run):
            return
        self._has_children.add(parent)
        if self._queue is not None:
            self._queue.dispatch((Change.unread(parent, known.create_revision, known.revision),))

    async def _end_deleted(self, delivery: Change, update: ActionUpdate) -> None:
        """Tell a deletion, if anybody wants to know, and see to what it leaves behind."""
        key = update.key
        held = self._held.get(key)
        if held is not None and held.mod_revision != delivery.mod_revision:
            self._let_go(key)
        is_trace = key.startswith(self._traces)
        was_told = update.recorded or update.incarnation in self._done_with
        # What had the key before was told as deleted only now: this is to be the last word.
        was_told = was_told and key not in self._told_late
        wanted = not is_trace and not was_told and self._is_wanted(update.phase, True)
        if wanted and delivery.mod_revision < self._calls.term_revision:
            wanted = not await self._is_followed(update)
            if wanted:
                self._told_late.add(key)
        began, accepted = trio.current_time(), wanted and await self._tell(update, None, None)
        await self._letters.carry(update, None)
        if not is_trace and self._is_proper(update):
            await self._orphans.owner_gone(update)
            await self._aborter.action_gone(update.action_id, update.namespace)
        if accepted and began < (until := self._until(key)):
            self._held.hold(delivery, until)
            return
        # What was asked for while the object was still there has no other turn.
        await self._redeliver_gone(key)
        self._done_with.discard(update.incarnation)
        self.forget(key)
        self._index.forget_deletion(key, update.revision)

    async def _is_followed(self, deleted: ActionUpdate) -> bool:
        """Whether the action was made again: another leader may have told all of that."""
        kv = await self._store.get(deleted.key)
        if kv is None:
            return False
        try:
            action = codec_of(kv.value).decode(kv.value, key=kv.key, revision=kv.mod_revision)
        except DecodeError:
            return False
        return action.action_id == deleted.action_id

    async def _tell_state(
        self, update: ActionUpdate, action: ActionObject, value: bytes, retry: frozenset[str]
    ) -> bool:
        """Tell a state, and with it what letters about its object are to be tried again."""
        accepted = await self._tell(update, action, value)
        if retry:
            await self._letters.settle(update, retry)
            # Letters about another action, that had the key before.
            await self._tell_kept(update.key, retry)
        return accepted

    async def _redeliver_gone(self, key: bytes) -> None:
        """Offer again what the letters keep of an object that is gone."""
        retry = self._letters.asked(key)
        if retry and not await self._letters.is_there(key):
            await self._tell_kept(key, retry)
            if self._held.get(key) is None:
                self.forget(key)

    async def _tell_kept(self, key: bytes, retry: frozenset[str]) -> None:
        introduced = self._introduced.pop(key, None)
        for kept in await self._letters.kept(key, retry):
            action = None
            if kept.value is not None:
                action = codec_of(kept.value).decode(kept.value, key=key)
            await self._tell(kept.update, action, kept.value)
            self._introduced.pop(key, None)
            await self._letters.settle(kept.update, retry)
        if introduced is not None:
            self._introduced[key] = introduced

    def _is_proper(self, update: ActionUpdate) -> bool:
        """Whether it was under its own key: one that was not has left nothing behind."""
        try:
            _, name = parse_key(self._prefix, update.key)
        except DecodeError:
            return False
        return name == update.action_id.object_name


def _delivery(
    change: Change,
    update: ActionUpdate | None,
    *,
    read: bool = False,
    action: ActionObject | None = None,
) -> _Delivery:
    return _Delivery(
        change.kind,
        change.kv,
        value_dropped=change.value_dropped,
        update=update,
        read=read,
        action=action,
    )
