"""The processor makes, starts and stops the parts between a change in etcd and the mark.

::

    reflector ── dispatch ──▶ handler ── handle_watch_event ──▶ index
                                              │
                                 handle_task_action_event
                                     │                 │
                          notify_subscribers        outbox (of the leader)
                                                       │ worker
                                              notify_run_service
                                                       │ accepted and terminal
                                         mark_terminal_status_recorded

Any number of processes watch the same keys and serve subscribers. One of them is the leader
(:mod:`etcd_actions.record.leader`), and has a working outbox. A process with ``record=False`` has
neither outbox nor leader.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, overload

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.group_commit import open_group_commit
from etcd_actions.follow import FamilyReader, Handler, Index, SetAside
from etcd_actions.follow.subscriptions import (
    AnySubscription,
    SnapshotEnd,
    Subject,
    Subscription,
    Subscriptions,
    deletion_of,
)
from etcd_actions.model import (
    DEFAULT_KEY_PREFIX,
    DEFAULT_NAMESPACE,
    ActionId,
    ActionUpdate,
    Keyspace,
)
from etcd_actions.pipeline.recording import Recording
from etcd_actions.pipeline.watch_run import WatchParts, WatchRun
from etcd_actions.pipeline.watched_scope import WatchedScope, scope_of, scope_of_run
from etcd_actions.pipeline.watching_settings import WatchingSettings, WatchingStatistics
from etcd_actions.record.leader import Leader
from etcd_actions.record.reporter import CallCounts
from etcd_actions.run_service import NullRunService, RunService
from etcd_actions.shards import EVERYTHING, ShardKeys, ShardRange
from etcd_actions.storage.retention import Retention
from etcd_actions.storage.store import Store
from etcd_actions.watch import Reflector

_REFUSED = (
    "the actions are divided into shards, and this process works without shards: start it with "
    "shards, or remove the shards"
)


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
    """Make a processor. It starts no task before :meth:`Processor.start_watching` is called.

    Leaving the context stops it as :meth:`Processor.stop_watching` does, and ends all
    subscriptions. An exception or a cancellation stops it at once.

    Args:
        etcd: The connection; the caller closes it after this context.
        prefix: The part of the keys before ``<namespace>/<name>``.
        namespace: Watch this namespace only; all namespaces if it is None.
        run_service: Receives the reports; without one, terminal states are marked at once.
        settings: See :class:`WatchingSettings`.
        store: Writes to etcd; by default a group commit of its own over ``etcd``.
        runs: Watch only the objects and traces of runs whose name is this, or begins with
            this and a dash; it needs ``namespace``.
        containment: Counts unexpected failures; by default one of its own.
        on_replaced: Called when the store turns out to be another one, or an older copy of itself.
    """
    settings = settings or WatchingSettings()
    containment = containment or Containment()
    keys = Keyspace(prefix, namespace or DEFAULT_NAMESPACE)
    if runs is not None:
        scope = scope_of_run(keys, runs)
    else:
        # A leader without shards may lead only while no table of shards exists.
        scope = scope_of(keys, namespace, guard=(ShardKeys(keys, namespace).no_table,))
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
            scope=scope,
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


class Processor:
    """Watches TaskActions and handles their changes; see the module docstring.

    :func:`open_processor` makes it.

    Attributes:
        families: Reads actions and their children by the index.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        etcd: Etcd,
        store: Store,
        leases: Retention | None,
        *,
        scope: WatchedScope,
        run_service: RunService,
        settings: WatchingSettings,
        containment: Containment,
        on_replaced: Callable[[], None] | None = None,
    ) -> None:
        if scope.part:
            containment = containment.of(scope.part)
        self._nursery = nursery
        self._on_replaced = on_replaced
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
                scope,
                run_service=run_service,
                settings=settings,
                containment=containment,
            )
            if settings.record
            else None
        )
        self._handler = Handler(
            self._index,
            self._subscriptions,
            self._set_aside,
            reports=self._recording.outbox if self._recording else None,
            timeouts=self._recording.timeouts if self._recording else None,
            reread=store.reread,
            settings=settings.queue,
            containment=containment,
        )
        self._parts = WatchParts(
            etcd=etcd,
            scope=scope,
            index=self._index,
            handler=self._handler,
            set_aside=self._set_aside,
            recording=self._recording,
            settings=settings,
            containment=containment,
            on_replaced=self._forget_revisions,
        )
        self._starting = trio.Lock()
        self._run: WatchRun | None = None
        self.families: FamilyReader = FamilyReader(store, self._index, self._progress)

    def statistics(self) -> WatchingStatistics:
        """The present counts; see :class:`WatchingStatistics`."""
        run, recording = self._run, self._recording
        is_leader = recording is not None and recording.leader.is_elected
        reflector = run.reflector if run else None
        outbox = recording.outbox if recording else None
        counts = outbox.reporter.counts if outbox else CallCounts()
        dead_letters = outbox.reporter.dead_letters.statistics() if outbox else None
        return WatchingStatistics(
            watching=run is not None and run.is_watching,
            reflector=reflector.statistics() if reflector else None,
            handlers=self._handler.statistics() if reflector else None,
            outbox=outbox.statistics() if outbox else None,
            reported=dict(counts.reported),
            rejected=dict(counts.rejected),
            failed=dict(counts.failed),
            interrupted=dict(counts.interrupted),
            call_times={what: times.read() for what, times in counts.times.items() if outbox},
            has_run_service=counts.has_run_service,
            report_lag=counts.lag.read(),
            deferred=outbox.deferred if outbox else 0,
            dead_letters=dead_letters.dead_letters if dead_letters else (),
            dropped_dead_letters=dead_letters.dropped if dead_letters else 0,
            marks=recording.recorder.statistics() if recording else {},
            elected=is_leader,
            collects=is_leader,
            refused=_REFUSED if recording is not None and recording.leader.is_refused else "",
            queued=self._index.queued() if is_leader else {},
            checkpoint=recording.leader.checkpoint if recording else 0,
            subscriptions=len(self._subscriptions),
            undelivered=self._subscriptions.pending(),
            decode_errors=self._set_aside.count,
            undecodable=self._set_aside.keys.reasons(),
            undecodable_since=self._set_aside.keys.since,
        )

    @property
    def leader(self) -> Leader | None:
        """The leader's part; None in a process that only serves subscribers."""
        return None if self._recording is None else self._recording.leader

    @property
    def subscription_count(self) -> int:
        """The number of open subscriptions."""
        return len(self._subscriptions)

    @property
    def index(self) -> Index:
        """The facts of all keys that it has; for readers."""
        return self._index

    @property
    def key_count(self) -> int:
        """The number of keys in its index."""
        return len(self._index)

    def known_keys(self) -> list[bytes]:
        """The keys in its index."""
        return list(self._index)

    def serving(self, subject: Subject) -> Processor | None:
        """The processor that can serve subscriptions to a subject now; None for none."""
        return self if self.watching else None

    @property
    def work(self) -> frozenset[ShardRange]:
        """The ranges whose actions this process is to run, if it runs actions: all."""
        return frozenset({EVERYTHING})

    async def wait_work_changed(self, seen: frozenset[ShardRange]) -> None:
        """It never changes."""
        await trio.sleep_forever()

    def watching_range(self, range_: ShardRange) -> Processor | None:
        """There are no shards."""
        return None

    @property
    def watching(self) -> bool:
        """Whether the first list was delivered, and it is not stopping."""
        return self._run is not None and self._run.is_watching and not self._run.is_stopping

    @overload
    def subscribe(
        self, subject: Subject, *, snapshot: Literal[False] = False
    ) -> Subscription[ActionUpdate]: ...
    @overload
    def subscribe(
        self, subject: Subject, *, snapshot: bool
    ) -> Subscription[ActionUpdate | SnapshotEnd]: ...
    def subscribe(self, subject: Subject, *, snapshot: bool = False) -> AnySubscription:
        """Open a subscription; close it after use.

        It delivers changes that are handled from now on: subscribe before you read the present
        state. See
        :meth:`etcd_actions.follow.subscriptions.Subscriptions.subscribe`.
        """
        return self._subscriptions.subscribe(subject, snapshot=snapshot)

    def start_with(
        self,
        subscription: AnySubscription,
        states: Sequence[ActionUpdate],
        revision: int,
        *,
        others: Iterable[ActionUpdate] = (),
    ) -> None:
        """Deliver a snapshot to a subscription, and the deletions since the snapshot.

        Args:
            subscription: The subscription; it awaits a snapshot.
            states: The states of the actions at ``revision``.
            revision: The revision of the snapshot.
            others: States of objects whose key is not the one that their names require.
        """
        pending = {update.key for update in subscription.waiting()}
        deleted = [
            deletion_of(state, self._index.watched_up_to(state.key))
            for state in states
            if not self._index.expect(state, revision) and state.key not in pending
        ]
        subscription.begin_with([*states, *others], revision)
        for update in deleted:
            subscription.deliver(update)

    def unsubscribe(self, subscription: AnySubscription) -> None:
        """End a subscription after its pending updates.

        Raises:
            InvalidArgument: It was opened by another processor.
        """
        self._subscriptions.unsubscribe(subscription)

    def close_subscriptions(self) -> None:
        """End all subscriptions, each after its pending updates."""
        self._subscriptions.end()

    async def start_watching(self) -> None:
        """Start to list and watch; returns once the first list was delivered.

        While etcd is unavailable it waits without limit. If :meth:`stop_watching` is called in the
        meantime it returns, too. If it is cancelled, or raises, no task is left running, and it can
        be called again. It does nothing if the processor watches already.

        Raises:
            PermissionDenied, Unauthenticated, InvalidRequest: etcd refused the list.
        """
        async with self._starting:
            before = self._run
            if before is not None and not before.ended.is_set():
                if not before.is_stopping:
                    return
                await before.ended.wait()
            self._run = WatchRun(self._parts, before)
            await self._nursery.start(self._run.run)

    async def stop_watching(self, grace: float | None = None) -> None:
        """Accept no more changes, finish the accepted ones, then end.

        It does nothing if the processor does not watch. If it is cancelled, the stop continues.

        Args:
            grace: Seconds for the accepted changes; by default the settings'. Unfinished ones are
                logged. The next start finds them in etcd, unmarked.
        """
        if (run := self._run) is not None:
            run.stop(self._parts.settings.grace if grace is None else grace)
            await run.ended.wait()

    def waiting_conditions(self) -> list[ActionId]:
        """The conditions that wait for a signal; none in a process that does not record."""
        keys = self._recording.timeouts.keys if self._recording else ()
        known = (self._index.get(key) for key in keys)
        return [summary.action_id for summary in known if summary is not None]

    def _progress(self) -> Reflector | None:
        """The watch that keeps the index up to date; None while a key is put off."""
        run = self._run
        if run is None or not run.is_watching or self._handler.has_put_off:
            return None
        return run.reflector

    def _forget_revisions(self) -> None:
        """The store was replaced: revisions of the old one are not valid."""
        self._subscriptions.forget_revisions()
        if self._on_replaced is not None:
            self._on_replaced()
