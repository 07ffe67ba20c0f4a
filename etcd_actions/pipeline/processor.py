"""From a change in etcd to the mark: puts the parts together, starts and stops them.

::

    reflector ── dispatch ──▶ handler ── handle_watch_event ──▶ index
                                              │
                                 handle_task_action_event
                                     │                 │
                          notify_subscribers        outbox (of the leader)
                                                       │ worker
                                              notify_run_service
                                                       │ accepted and over
                                         mark_terminal_status_recorded

Any number of processes watch the same keys and serve subscribers; one of them leads
(:mod:`etcd_actions.record.leader`), and has its outbox at work. One that records nothing
(``record=False``) has neither outbox nor leader.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, overload

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.errors import EtcdError, Unavailable, first_error
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.etcd.group_commit import open_group_commit
from etcd_actions.follow import FamilyReader, Handler, Index, SetAside
from etcd_actions.follow.subscriptions import (
    AnySubscription,
    SnapshotEnd,
    Subscription,
    Subscriptions,
)
from etcd_actions.model import (
    DEFAULT_KEY_PREFIX,
    DEFAULT_NAMESPACE,
    ActionId,
    ActionUpdate,
    Keyspace,
)
from etcd_actions.pipeline.recording import Recording
from etcd_actions.pipeline.watching_settings import WatchingSettings, WatchingStatistics
from etcd_actions.record.outbox import OutboxStatistics
from etcd_actions.run_service import NullRunService, RunService
from etcd_actions.storage.retention import Retention
from etcd_actions.storage.store import Store
from etcd_actions.storage.watched_keys import watched_keys
from etcd_actions.watch import Reflector

_BACKOFF = Backoff(initial=0.1, cap=5.0)
_RESTARTS = Backoff(initial=0.2, cap=30.0)
_WATCH = "the watch"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Watching:
    """What one start made."""

    reflector: Reflector
    intake: trio.CancelScope
    ended: trio.Event


@asynccontextmanager
async def open_processor(
    etcd: Etcd,
    *,
    prefix: bytes = DEFAULT_KEY_PREFIX,
    namespace: str | None = None,
    run_service: RunService | None = None,
    settings: WatchingSettings | None = None,
    store: Store | None = None,
    runs: str | None = None,
    containment: Containment | None = None,
    on_replaced: Callable[[], None] | None = None,
) -> AsyncIterator[Processor]:
    """Make a processor, which owns tasks from :meth:`Processor.start_watching` on.

    Leaving the context stops it as :meth:`Processor.stop_watching` does, and ends all
    subscriptions; an exception or a cancellation stops it at once.

    Args:
        etcd: The connection; it must live longer.
        prefix: What comes before ``<namespace>/<name>`` in the keys.
        namespace: Watch this namespace only; all when None.
        run_service: Who is told; by default nobody, and endings are marked at once.
        settings: See :class:`WatchingSettings`.
        store: Where to write; by default a group commit of its own over ``etcd``.
        runs: Watch only the objects and traces of runs whose name is this, or begins with
            this and a dash; needs ``namespace``.
        containment: The boundaries of the process; by default the processor has its own.
        on_replaced: Called when the store turns out to be another one, or an older copy of itself.
    """
    settings = settings or WatchingSettings()
    containment = containment or Containment()
    async with AsyncExitStack() as stack:
        if store is None:
            commit = await stack.enter_async_context(open_group_commit(etcd, containment))
            store = Store(etcd, commit.txn, commit.get)
        keep = settings.retain_terminal if settings.record else None
        leases = None if keep is None else Retention(etcd, keep)
        nursery = await stack.enter_async_context(owned_tasks("the processor"))
        processor = Processor(
            nursery,
            etcd,
            store,
            leases,
            prefix=prefix,
            namespace=namespace,
            runs=runs,
            run_service=run_service or NullRunService(),
            settings=settings,
            containment=containment,
            on_replaced=on_replaced,
        )
        try:
            yield processor
            await processor.stop_watching()
        finally:
            processor.close_subscriptions()
        nursery.cancel_scope.cancel("the processor is closed")


class _Life:
    """Whether a processor is started, and what it was started with.

    Attributes:
        watching: What watches now; None where nothing does.
        last: What watches, or watched last.
        starting: Held by the one that starts it.
        start: Cancels a start that waits for etcd.
        grace: Seconds that its end may take.
    """

    def __init__(self, grace: float) -> None:
        self.watching: _Watching | None = None
        self.last: _Watching | None = None
        self.starting = trio.Lock()
        self.start: trio.CancelScope | None = None
        self.grace = grace


class Processor:
    """Watches TaskActions and does what their changes ask for; see the module's text.

    Made by :func:`open_processor`.

    Attributes:
        families: Reads actions and their children by what the watch knows.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        etcd: Etcd,
        store: Store,
        leases: Retention | None,
        *,
        prefix: bytes,
        namespace: str | None,
        runs: str | None,
        run_service: RunService,
        settings: WatchingSettings,
        containment: Containment,
        on_replaced: Callable[[], None] | None = None,
    ) -> None:
        self._containment = containment
        self._on_replaced = on_replaced
        self._nursery = nursery
        self._etcd = etcd
        self._settings = settings
        keyspace = Keyspace(prefix, namespace or DEFAULT_NAMESPACE)
        keys, self._likely_prefix = watched_keys(prefix, namespace)
        traces, _ = watched_keys(keyspace.traces, namespace)
        if runs is not None:
            keys, traces = map(KeyRange.of_prefix, keyspace.run_prefixes(runs)[:2])
            self._likely_prefix = keys.start
        self._keys = (keys, traces)
        self._index = Index()
        self._subscriptions = Subscriptions(containment)
        self._set_aside = SetAside(containment)
        self._recording = (
            Recording(
                etcd,
                store,
                leases,
                self._index,
                self._set_aside,
                keyspace,
                namespace,
                owns=lambda key: any(key in keys for keys in self._keys),
                run_service=run_service,
                settings=settings,
                containment=containment,
            )
            if settings.record
            else None
        )
        # What it has put off outlives a stop: an ending among that may be in no list any more.
        self._handler = Handler(
            self._index,
            self._subscriptions,
            self._set_aside,
            recording=self._recording.outbox if self._recording else None,
            timeouts=self._recording.timeouts if self._recording else None,
            reread=store.reread,
            settings=settings.queue,
            containment=containment,
        )
        self._life = _Life(settings.grace)
        self.families = FamilyReader(store, self._index, self._progress)

    def statistics(self) -> WatchingStatistics:
        """See :class:`WatchingStatistics`."""
        last, recording = self._life.last, self._recording
        outbox = recording.outbox.statistics() if recording else OutboxStatistics.of_none()
        return WatchingStatistics(
            watching=self._life.watching is not None,
            reflector=last.reflector.statistics() if last else None,
            handlers=self._handler.statistics() if last else None,
            outbox=outbox.queue,
            told=outbox.told,
            rejected=outbox.rejected,
            failed=outbox.failed,
            cut=outbox.cut,
            call_times=outbox.call_times,
            held=outbox.held,
            dead_letters=outbox.dead_letters.letters,
            dropped_letters=outbox.dead_letters.dropped,
            marks=recording.recorder.statistics() if recording else {},
            elected=recording is not None and recording.leader.is_elected,
            position=recording.leader.position if recording else 0,
            subscriptions=len(self._subscriptions),
            undelivered=self._subscriptions.pending(),
            decode_errors=self._set_aside.count,
            undecodable=self._set_aside.keys.reasons(),
            undecodable_since=self._set_aside.keys.since,
        )

    @property
    def watching(self) -> bool:
        """Whether it is started, and not told to stop."""
        return self._life.watching is not None and not self._life.watching.intake.cancel_called

    @overload
    def subscribe(
        self, parent: ActionId | str | None, *, snapshot: Literal[False] = False
    ) -> Subscription[ActionUpdate]: ...
    @overload
    def subscribe(
        self, parent: ActionId | str | None, *, snapshot: bool
    ) -> Subscription[ActionUpdate | SnapshotEnd]: ...
    def subscribe(
        self, parent: ActionId | str | None, *, snapshot: bool = False
    ) -> AnySubscription:
        """Subscribe to an action and its children; close the subscription after use.

        It gets what is handled from now on: subscribe before reading the present state. See
        :meth:`etcd_actions.follow.subscriptions.Subscriptions.subscribe`.
        """
        return self._subscriptions.subscribe(parent, snapshot=snapshot)

    def unsubscribe(self, subscription: AnySubscription) -> None:
        """Let the reader of a subscription have what is pending, and then the end.

        Raises:
            InvalidArgument: It was opened by another processor.
        """
        self._subscriptions.unsubscribe(subscription)

    def close_subscriptions(self) -> None:
        """Let every subscriber have what is pending, and then the end."""
        self._subscriptions.end()

    async def start_watching(self) -> None:
        """List and watch; returns once the first list was handed to the workers.

        While etcd is away it waits, for ever, or until it is stopped: then it returns, too.
        When etcd refuses, when it is cancelled or
        fails in any way nothing is left running and it can be called again. While watching
        it does nothing.

        Raises:
            PermissionDenied, Unauthenticated, InvalidRequest: etcd refused the list.
        """
        async with self._life.starting:
            while (watching := self._life.watching) is not None:
                if not watching.intake.cancel_called:
                    return
                await watching.ended.wait()
            with trio.CancelScope() as self._life.start:
                await self._nursery.start(self._watch)

    async def stop_watching(self, grace: float | None = None) -> None:
        """Stop taking in changes, finish what was taken in, then end.

        What is not finished within ``grace`` seconds (by default the settings') is logged
        and given up; it is found again at the next start, since it is still in etcd
        unmarked. When nothing is watched it does nothing; cancelled, it goes on without
        its caller.
        """
        watching = self._life.watching
        if self._life.start is not None:
            # One that waits for etcd; it does nothing to one that has returned.
            self._life.start.cancel("stop_watching")
        if watching is not None:
            self._life.grace = self._settings.grace if grace is None else grace
            watching.intake.cancel("stop_watching")
            await watching.ended.wait()

    def waiting_conditions(self) -> list[ActionId]:
        """The conditions that wait for a signal; none in a process that cannot record."""
        keys = self._recording.timeouts.keys if self._recording else ()
        known = (self._index.get(key) for key in keys)
        return [summary.action_id for summary in known if summary is not None]

    async def _watch(self, *, task_status: trio.TaskStatus[None]) -> None:
        """One start, to its end; where it fails unexpectedly it begins anew after a delay."""
        ended = trio.Event()
        refusal: EtcdError | None = None
        failures = 0
        try:
            while True:
                began = trio.current_time()
                with self._containment.unit("task", _WATCH, parks=True) as unit:
                    refusal = await self._watch_once(ended, task_status)
                stopping = (
                    self._life.watching is not None and self._life.watching.intake.cancel_called
                )
                if not unit.failed or stopping:
                    break
                lived = trio.current_time() - began > _RESTARTS.cap
                failures = 1 if lived else failures + 1
                with trio.CancelScope() as pause:
                    if self._life.watching is not None:
                        self._life.watching = replace(self._life.watching, intake=pause)
                    await trio.sleep(_RESTARTS.delay(failures))
                if pause.cancelled_caught:
                    break
        finally:
            self._containment.forget("task", _WATCH)
            self._life.watching = None
            ended.set()
        if refusal is not None:
            raise refusal

    async def _watch_once(
        self, ended: trio.Event, task_status: trio.TaskStatus[None]
    ) -> EtcdError | None:
        """List and watch until it is stopped; returns why etcd refused the first list, if so."""
        # The list finds what is still undecodable.
        self._set_aside.begin_again()
        intake = trio.CancelScope()
        started = self._life.watching is not None
        keep, recording = self._containment.keep, self._recording
        try:
            start_revision = await self._start_revision()
            handler = self._handler
            reflector = Reflector(
                self._etcd,
                self._keys,
                handler,
                known=self._index,
                start_revision=start_revision,
                merge=handler.latest,
                on_replaced=self._forget_revisions,
                likely_prefix=self._likely_prefix,
                settings=self._settings.reflector,
                containment=self._containment,
            )
            self._index.watched_by(reflector)
            watching = self._life.last = _Watching(reflector, intake, ended)
            standing = recording.leader.standing(self._done_up_to) if recording else nullcontext()
            async with standing, trio.open_nursery() as nursery:
                nursery.start_soon(keep, "task", "the handlers", handler.retry)
                nursery.start_soon(self._containment.heal_later, "task", _WATCH)
                with intake:
                    async with trio.open_nursery() as taking_in:
                        await taking_in.start(reflector.run)
                        self._life.watching = watching
                        if not started:
                            started = True
                            task_status.started()
                with trio.move_on_after(self._life.grace) as scope:
                    await handler.wait_idle()
                    if recording:
                        await recording.outbox.wait_idle()
                if scope.cancelled_caught:
                    self._tell_unfinished()
                nursery.cancel_scope.cancel("the watch was stopped")
        except* EtcdError as group:
            refusal = first_error(group)
        else:
            return None
        if started:
            # Only the first list can be refused.
            raise refusal
        return refusal

    def _progress(self) -> Reflector | None:
        """How far the watch is; None where its index lacks what was put off."""
        watching = self._life.watching
        return None if watching is None or self._handler.has_put_off else watching.reflector

    def _done_up_to(self) -> int:
        """Every change up to this revision was handled; 0 for none."""
        put_off, last = self._handler.oldest_delete, self._life.last
        revision = last.reflector.revision if last else 0
        return revision if put_off is None else min(revision, put_off - 1)

    def _tell_unfinished(self) -> None:
        outbox = self._recording.outbox.statistics().queue if self._recording else None
        handlers, told = self._handler.statistics().keys, outbox.keys if outbox else 0
        if handlers or told:
            _log.warning("stopped_with_unfinished_work", handlers=handlers, outbox=told)

    def _forget_revisions(self) -> None:
        """The store is another one: what was known of the old one's revisions counts no more."""
        self._subscriptions.forget_revisions()
        if self._on_replaced is not None:
            self._on_replaced()

    async def _start_revision(self) -> int:
        """Where the first list is made, so that what was deleted since is seen as it ended."""
        if self._life.last is not None and (revision := self._life.last.reflector.revision):
            return revision
        if self._recording is None or not self._settings.elect:
            return 0
        async for attempt in retrying(_BACKOFF, on=Unavailable, report=seldom(_log, "watch_lost")):
            with attempt:
                # The error of a missing permission to read the actions has precedence.
                await self._etcd.range(self._keys[0], limit=1, keys_only=True)
                revision = await self._recording.leader.start_at()
        return revision
