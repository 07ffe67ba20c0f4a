"""What is to be done for an action behind its handlers: tell the run service, then mark.

A router of its own: a run service that hangs or refuses slows no subscriber. Each action has
its turn in order, its states conflate, and what fails is tried again after a back-off, for
ever; only what the run service will never accept is set aside as a dead letter, unmarked, and
what cannot be decoded until the next good write.

One process at a time has an outbox at work, see :mod:`etcd_actions.election`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog
import trio

from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.codecs import codec_of
from etcd_actions.containment import Containment
from etcd_actions.errors import DecodeError, RunServiceRejected
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    ACTION_TYPE_TRACE,
    ActionUpdate,
    Phase,
    Summary,
    TaskAction,
    build_action_update,
    mark_number,
    parse_key,
    task_action_name,
)
from etcd_actions.recorder import Ending, MarkResult, Recorder
from etcd_actions.router import Reread, Router, RouterSettings, RouterStatistics
from etcd_actions.run_service import RunService
from etcd_actions.tracing import span
from etcd_actions.watch import Change, ChangeKind

_MOST_DEAD_LETTERS = 10_000
_NO_ENDING = -1
_BEFORE_RUNNING = (
    Phase.UNSPECIFIED,
    Phase.QUEUED,
    Phase.WAITING_FOR_RESOURCES,
    Phase.INITIALIZING,
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """What the run service will never accept.

    Attributes:
        key: The action's key.
        revision: The state that was refused.
        what: ``record`` or ``status``.
        code: A number of ``google.rpc.Code``.
        error: What the run service said.
    """

    key: bytes
    revision: int
    what: str
    code: int
    error: str


@dataclass(frozen=True, kw_only=True)
class OutboxStatistics:
    """What an outbox holds and has done.

    Attributes:
        router: The queue; None before the first time it worked.
        told: Number of calls that the run service accepted, by ``record`` and ``status``.
        rejected: Number of calls that it will never accept, likewise.
        failed: Number of calls that failed and are made again, likewise.
        dead_letters: The newest of these, by action and call; accepted later, one goes.
    """

    router: RouterStatistics | None
    told: dict[str, int]
    rejected: dict[str, int]
    failed: dict[str, int]
    dead_letters: tuple[DeadLetter, ...]


class Known(Protocol):
    """Looks up what is remembered of a key."""

    def __call__(self, key: bytes, /) -> Summary | None:
        """Return its summary, None for a key that is not known."""


class _Delivery(Change, frozen=True, gc=False):
    """A change on its way to the run service; a deletion carries what is to be told."""

    update: ActionUpdate | None = None


class Outbox:
    """See the module's text.

    Args:
        run_service: Who is told.
        recorder: Who marks.
        aborter: Ends what is to be deleted and is not over.
        orphans: Collects what a deleted action leaves behind; None where others do.
        known: See :class:`Known`.
        reread: See :class:`~etcd_actions.router.Router`.
        traces: What the keys of traces begin with.
        prefix: What the keys of the other actions begin with.
        on_deletion_told: Called with the key and revision of a deletion that is done.
        on_undecodable: Called with a change whose value cannot be decoded, and why.
        workers: How many actions have their turn side by side.
        settings: Limits of the queue.
        containment: Where unexpected failures are counted.
    """

    def __init__(
        self,
        *,
        run_service: RunService,
        recorder: Recorder,
        aborter: Aborter,
        orphans: OrphanCollector | None,
        known: Known,
        reread: Reread,
        prefix: bytes,
        traces: bytes,
        on_deletion_told: Callable[[bytes, int], None],
        on_undecodable: Callable[[Change, DecodeError], None],
        workers: int,
        settings: RouterSettings,
        containment: Containment,
    ) -> None:
        self._containment = containment
        self._on_undecodable = on_undecodable
        self._run_service = run_service
        self._recorder = recorder
        self._aborter = aborter
        self._orphans = orphans
        self._known = known
        self._reread = reread
        self._prefix = prefix
        self._traces = traces
        self._on_deletion_told = on_deletion_told
        self._workers = workers
        self._settings = settings
        self._router: Router | None = None
        self._working = False
        self._introduced: dict[bytes, tuple[int, str]] = {}
        self._accepted: dict[bytes, Ending] = {}
        # By key a number for the mark of the ending that was told last, `_NO_ENDING` where
        # something else was, or may have been.
        self._last_told: dict[bytes, int] = {}
        self._has_children: set[bytes] = set()
        # Deleted by their mark, which nobody saw: all of them is told.
        self._done_with: set[tuple[bytes, str]] = set()
        self._told: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._dead_letters: dict[tuple[bytes, str], DeadLetter] = {}

    @property
    def working(self) -> bool:
        """Whether it takes deliveries."""
        return self._working

    def statistics(self) -> OutboxStatistics:
        """See :class:`OutboxStatistics`."""
        return OutboxStatistics(
            router=self._router.statistics() if self._router else None,
            told=dict(self._told),
            rejected=dict(self._rejected),
            failed=dict(self._failed),
            dead_letters=tuple(self._dead_letters.values()),
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Take deliveries and work on them; on leaving what is not done is given up.

        It is in etcd still, unmarked, and found again.
        """
        # Another process may have told something else since.
        self._last_told.clear()
        router = self._router = Router(
            self.notify_run_service,
            self._reread,
            self._settings,
            containment=self._containment,
            unit="delivery",
        )
        keep = self._containment.keep
        async with trio.open_nursery() as nursery:
            for _ in range(self._workers):
                nursery.start_soon(keep, "task", "a worker of the outbox", router.worker)
            nursery.start_soon(keep, "task", "retries of the outbox", router.retry_failed)
            self._working = True
            try:
                yield
            finally:
                self._working = False
                nursery.cancel_scope.cancel("the outbox does not work any more")

    async def wait_idle(self) -> None:
        """Return once nothing is left to be done."""
        if self._router is not None:
            await self._router.wait_idle()

    def oldest_delete(self) -> int | None:
        """The lowest revision of a delete that is not done yet, None without one."""
        return self._router.oldest_delete() if self._router is not None else None

    def wants(self, change: Change, summary: Summary) -> bool:
        """Whether there is anything to do for a state, or a deletion."""
        if not self._working:
            return False
        if change.is_delete:
            return True
        if summary.recorded:
            # Where nobody holds what is to be deleted it is deleted here: what a finalizer's
            # owner did with a plain put, an API server would have answered with the deletion.
            free = summary.deleting and not summary.held_by_others
            return (
                summary.held
                or free
                or self._recorder.wants_lease(change.lease)
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

    def deliver(self, change: Change, update: ActionUpdate | None) -> None:
        """Queue a state, or a deletion with what is to be told of it. Never waits."""
        assert self._router is not None
        self._router.dispatch((_delivery(change, update),))

    def forget(self, key: bytes) -> None:
        """The key is gone, and nothing is to be told of it."""
        self._introduced.pop(key, None)
        self._accepted.pop(key, None)
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
            await self._end_deleted(update)
            return
        try:
            await self._handle(delivery)
        except DecodeError as error:
            # Trying again would cure nothing; another value comes by the watch.
            self._on_undecodable(delivery, error)
            self._accepted.pop(key, None)

    async def _handle(self, delivery: Change) -> None:
        key, value = delivery.key, delivery.value or b""
        action = codec_of(value).decode(value, key=key, revision=delivery.mod_revision)
        update = build_action_update(
            action,
            key=key,
            revision=delivery.mod_revision,
            create_revision=delivery.create_revision,
        )
        seen = _key_value(delivery)
        state = action.state(delivery.create_revision)
        if state.recorded and not self._is_another(key, state.mark):
            await self._recorder.maintain(seen)
            return
        if state.stray:
            # The noted state comes by the watch.
            await self._recorder.disown(seen)
            return
        # Whoever else holds what is to be deleted ends it; when only we do, it is ended here.
        asked = action.is_deleting and not action.is_terminal
        if asked and await self._aborter.deletion_asked(seen):
            return
        ending = Ending.of(update)
        accepted = self._accepted.get(key) == ending or await self._tell(update, action)
        if accepted and update.phase.is_terminal:
            self._accepted[key] = ending
            self._last_told[key] = mark_number(ending.mark(delivery.create_revision))
            if await self.mark_terminal_status_recorded(seen, ending) is MarkResult.DELETED:
                self._done_with.add((key, update.uid))
        self._accepted.pop(key, None)

    async def mark_terminal_status_recorded(self, seen: KeyValue, ending: Ending) -> MarkResult:
        """Label an ending that the run service accepted, by compare-and-swap.

        Raises:
            EtcdError: etcd did not do it now; it is tried again.
        """
        with span("mark", {"uid": ending.uid, "phase": ending.phase.name}):
            return await self._recorder.mark(seen, ending)

    async def _tell(self, update: ActionUpdate, action: TaskAction | None) -> bool:
        """Tell a state; whether it was accepted, and not refused for ever."""
        self._last_told[update.key] = _NO_ENDING
        if update.action_type == ACTION_TYPE_TRACE:
            # Recorded again it may say something else. Flyte's run service takes any trace that
            # is recorded for one that succeeded.
            accepted = await self._offer("record", update, action)
            if accepted and update.phase is not Phase.SUCCEEDED:
                accepted = await self._offer("status", update, action)
            return accepted
        incarnation = (update.create_revision, update.uid)
        first = self._introduced.get(update.key) != incarnation
        if first:
            await self._offer("record", update, action)
            self._introduced[update.key] = incarnation
        told = update
        if update.key in self._has_children and update.phase in _BEFORE_RUNNING:
            told = msgspec.structs.replace(update, phase=Phase.RUNNING)
        accepted = True
        if told.phase is not Phase.UNSPECIFIED:
            accepted = await self._offer("status", told, action)
        if update.phase.is_terminal or update.is_deleted:
            self._has_children.discard(update.key)
        if first and update.parent and not update.is_deleted:
            self._promote_parent(update)
        return accepted

    async def _offer(self, what: str, update: ActionUpdate, action: TaskAction | None) -> bool:
        letter = (update.key, what)
        try:
            with span(f"run_service.{what}", {"action": update.name, "phase": update.phase.name}):
                if what == "record":
                    await self._run_service.record_action(update, action)
                else:
                    await self._run_service.update_action_status(update)
        except RunServiceRejected as error:
            self._rejected[what] += 1
            self._dead_letters.pop(letter, None)
            self._dead_letters[letter] = DeadLetter(
                key=update.key,
                revision=update.revision,
                what=what,
                code=error.code,
                error=str(error),
            )
            if len(self._dead_letters) > _MOST_DEAD_LETTERS:
                del self._dead_letters[next(iter(self._dead_letters))]
            _log.error(
                "run_service_rejected",
                what=what,
                key=update.key.decode(errors="backslashreplace"),
                revision=update.revision,
                code=error.code,
                error=str(error),
            )
            return False
        except trio.Cancelled:
            raise
        except BaseException:
            self._failed[what] += 1
            raise
        self._told[what] += 1
        self._dead_letters.pop(letter, None)
        return True

    def _promote_parent(self, child: ActionUpdate) -> None:
        """Have the parent told as RUNNING, in its own turn, if it is not that far by itself.

        So it can never come behind the parent's ending, and has the parent's own attempts.
        """
        if not self._is_wanted(Phase.RUNNING, False):
            return
        name = task_action_name(child.action_id.run, child.parent)
        parent = self._prefix + f"{child.namespace}/{name}".encode(errors="replace")
        known = self._known(parent)
        if known is None or known.phase not in _BEFORE_RUNNING or parent in self._has_children:
            return
        self._has_children.add(parent)
        if self._router is not None:
            self._router.dispatch(
                (
                    Change(
                        ChangeKind.MODIFIED,
                        parent,
                        None,
                        known.create_revision,
                        known.revision,
                        1,
                    ),
                )
            )

    async def _end_deleted(self, update: ActionUpdate) -> None:
        """Tell a deletion, if anybody wants to know, and see to what it leaves behind."""
        is_trace = update.key.startswith(self._traces)
        was_told = update.recorded or (update.key, update.uid) in self._done_with
        wanted = not is_trace and not was_told
        if wanted and self._is_wanted(update.phase, True):
            await self._tell(update, None)
        if not is_trace and self._is_proper(update):
            if self._orphans is not None:
                await self._orphans.owner_gone(update)
            await self._aborter.action_gone(update.action_id, update.namespace)
        self._done_with.discard((update.key, update.uid))
        self.forget(update.key)
        self._on_deletion_told(update.key, update.revision)

    def _is_proper(self, update: ActionUpdate) -> bool:
        """Whether it was under its own key: one that was not has left nothing behind."""
        try:
            _, name = parse_key(self._prefix, update.key)
        except DecodeError:
            return False
        return name == update.action_id.object_name


def _delivery(change: Change, update: ActionUpdate | None) -> _Delivery:
    return _Delivery(
        change.kind,
        change.key,
        change.value,
        change.create_revision,
        change.mod_revision,
        change.version,
        change.lease,
        update=update,
    )


def _key_value(change: Change) -> KeyValue:
    return KeyValue(
        change.key,
        change.value or b"",
        change.create_revision,
        change.mod_revision,
        change.version,
        change.lease,
    )
