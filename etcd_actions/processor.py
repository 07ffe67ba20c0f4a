"""From a change in etcd to the mark: wires reflector, router, subscriptions and outbox.

::

    reflector ── dispatch_event ──▶ router ── worker ──▶ handle_watch_event
                                                               │ decode, remember
                                                  handle_task_action_event
                                                     │                 │
                                     notify_subscribers        outbox (of the elected one)
                                                                       │ worker
                                                              notify_run_service
                                                                       │ accepted and over
                                                    mark_terminal_status_recorded

The methods have the names of Flyte's ``ActionsClient``, so that someone who knows the Go
code finds each; those of the last two steps are the outbox's.

Any number of processes watch the same keys and serve subscribers. One of them, elected by an
etcd lease, has its outbox at work: it tells the run service, marks, finishes aborts, ends
conditions in time, collects what was orphaned, and keeps the position. A new leader begins
with what it knows to be unmarked, and with the deletions that it saw since the position.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, overload

import structlog
import trio

from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.condition_timeouts import ConditionTimeouts
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.backoff import Backoff
from etcd_actions.clock import Clock
from etcd_actions.codecs import codec_of
from etcd_actions.containment import Containment, describe
from etcd_actions.dead_letters import DeadLetter, LetterBook
from etcd_actions.election import Election, open_election
from etcd_actions.errors import (
    DecodeError,
    EtcdError,
    Unavailable,
    first_error,
)
from etcd_actions.etcd.api import Compare, Etcd, KeyRange
from etcd_actions.group_commit import open_group_commit
from etcd_actions.leader_calls import LANDING
from etcd_actions.model import (
    API_VERSION,
    DEFAULT_KEY_PREFIX,
    DEFAULT_NAMESPACE,
    ActionId,
    ActionUpdate,
    Keyspace,
    Summary,
    TaskAction,
    build_action_update,
    pack,
    summarize,
    unpack,
)
from etcd_actions.outbox import Outbox
from etcd_actions.position import Position
from etcd_actions.recorder import Recorder
from etcd_actions.retention import Retention
from etcd_actions.router import Router, RouterSettings, RouterStatistics
from etcd_actions.run_service import NullRunService, RunService
from etcd_actions.store import Fence, FencedStore, Store
from etcd_actions.subscriptions import AnySubscription, SnapshotEnd, Subscription, Subscriptions
from etcd_actions.term import Term
from etcd_actions.undecodable import Undecodable
from etcd_actions.watch import Change, ChangeKind, Reflector, ReflectorSettings, ReflectorStatistics
from etcd_actions.watched_keys import watched_keys

_BACKOFF = Backoff(initial=0.1, cap=5.0)
_RESTARTS = Backoff(initial=0.2, cap=30.0)
_CLEANING = Backoff(initial=0.5, cap=60.0)
_WATCH = "the watch"
_TERM = "the leader's work"
_MOST_VERSIONS = 100
_LOOK_AGAIN = 60.0
"""Seconds between two tries to decode what could not be for lack of memory or the like."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProcessorSettings:
    """How a processor works. Times are in seconds.

    Attributes:
        record: Whether to tell the run service, and to mark, at all; without it a processor
            serves subscribers only, and writes nothing.
        elect: Whether to do that only while elected, as one of all processes on this prefix.
            Without it this one always does, and keeps no position.
        collect_orphans: Whether to end and delete what lost its parent, as Kubernetes'
            garbage collector does where there is one. What goes on without an owner
            reference, and names a parent that is not there, is collected in any case: nobody
            else does it.
        finalizer: Whether our finalizer holds objects until their end is recorded.
        election_ttl: For how long the elected one may be silent before another takes over.
        save_every: How often the elected one saves the position.
        workers: How many keys are handled side by side. Handlers wait for nothing but
            dropped values, so a few are enough.
        outbox_workers: How many calls to the run service, and marks, are under way at once.
        most_dead_letters: How many dead letters are kept; the oldest go.
        retain_terminal: For how long recorded actions are kept before they expire; None
            for ever, where something else collects them. With an action that expires goes
            what is below it, also what still goes on: choose longer than that may last.
        grace: How long stopping may take to finish the work at hand.
        reflector: How the prefix is watched.
        router: Limits of the router of the handlers, and of the outbox.
        clock: What time-outs of conditions are counted on.
    """

    record: bool = True
    elect: bool = True
    collect_orphans: bool = True
    finalizer: bool = True
    election_ttl: int = 10
    save_every: float = 5.0
    workers: int = 32
    outbox_workers: int = 256
    most_dead_letters: int = 10_000
    retain_terminal: float | None = None
    grace: float = 10.0
    reflector: ReflectorSettings = field(default_factory=ReflectorSettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    clock: Clock = field(default_factory=Clock)


@dataclass(frozen=True, kw_only=True)
class ProcessorStatistics:
    """What a processor holds and has done since it was started.

    Attributes:
        watching: Whether it is started.
        reflector: The watch; None before the first start.
        router: The handlers' queue; None before the first start.
        outbox: The run service's queue; None before this process was first to have one.
        told: Number of calls that the run service accepted, by ``record`` and ``status``.
        rejected: Number of calls that it will never accept, likewise.
        failed: Number of calls that failed and are made again, likewise.
        cut: Number of calls that ended with the time of the leader's lease, likewise.
        held: Number of endings that are told again, after a takeover, before they are marked.
        dead_letters: The letters about these that are in etcd, by action and call, and what is
            no letter among them; empty while another process is elected.
        dropped_letters: Number of these that made room for newer ones.
        marks: Number of marks by result, see :class:`~etcd_actions.recorder.MarkResult`.
        elected: Whether this process is the one that records and marks.
        position: Every deletion up to this revision is done with, as last saved or read.
        subscriptions: Number of open subscriptions.
        undelivered: Number of updates that their readers have yet to receive.
        decode_errors: Number of values that could not be decoded.
        undecodable: The keys that hold such a value now, and why it cannot be decoded.
        undecodable_since: When the first of these was found, in seconds since 1970; None
            without one.
    """

    watching: bool
    reflector: ReflectorStatistics | None
    router: RouterStatistics | None
    outbox: RouterStatistics | None
    told: dict[str, int]
    rejected: dict[str, int]
    failed: dict[str, int]
    cut: dict[str, int]
    held: int
    dead_letters: tuple[DeadLetter, ...]
    dropped_letters: int
    marks: dict[str, int]
    elected: bool
    position: int
    subscriptions: int
    undelivered: int
    decode_errors: int
    undecodable: dict[bytes, str]
    undecodable_since: float | None


@dataclass(frozen=True)
class _Watching:
    """What one start made."""

    reflector: Reflector
    router: Router
    intake: trio.CancelScope
    ended: trio.Event


@asynccontextmanager
async def open_processor(
    etcd: Etcd,
    *,
    prefix: bytes = DEFAULT_KEY_PREFIX,
    namespace: str | None = None,
    run_service: RunService | None = None,
    settings: ProcessorSettings | None = None,
    store: Store | None = None,
    runs: str | None = None,
    containment: Containment | None = None,
) -> AsyncIterator[Processor]:
    """Make a processor, which owns tasks from :meth:`Processor.start_watching` on.

    Leaving the context stops it as :meth:`Processor.stop_watching` does, and ends all
    subscriptions; an exception or a cancellation stops it at once.

    Args:
        etcd: The connection; it must live longer.
        prefix: What comes before ``<namespace>/<name>`` in the keys.
        namespace: Watch this namespace only; all when None.
        run_service: Who is told; by default nobody, and endings are marked at once.
        settings: See :class:`ProcessorSettings`.
        store: Where to write; by default a group commit of its own over ``etcd``.
        runs: Watch only the objects and traces of runs whose name is this, or begins with
            this and a dash; needs ``namespace``.
        containment: The boundaries of the process; by default the processor has its own.
    """
    settings = settings or ProcessorSettings()
    containment = containment or Containment()
    async with AsyncExitStack() as stack:
        if store is None:
            commit = await stack.enter_async_context(open_group_commit(etcd, containment))
            store = Store(etcd, commit.txn)
        keep = settings.retain_terminal if settings.record else None
        leases = None if keep is None else Retention(etcd, keep)
        nursery = await stack.enter_async_context(trio.open_nursery())
        fence = Fence()
        processor = Processor(
            nursery,
            etcd,
            store,
            Recorder(FencedStore(store, fence), leases),
            prefix=prefix,
            namespace=namespace,
            runs=runs,
            run_service=run_service or NullRunService(),
            settings=settings,
            containment=containment,
            fence=fence,
        )
        try:
            yield processor
            await processor.stop_watching()
        finally:
            processor.close_subscriptions()
        nursery.cancel_scope.cancel("the processor is closed")


class Processor:
    """Watches TaskActions and does what their changes ask for; see the module's text.

    Made by :func:`open_processor`.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        etcd: Etcd,
        store: Store,
        recorder: Recorder,
        *,
        prefix: bytes,
        namespace: str | None,
        runs: str | None,
        run_service: RunService,
        settings: ProcessorSettings,
        containment: Containment,
        fence: Fence | None = None,
    ) -> None:
        self._containment = containment
        self._nursery = nursery
        self._etcd = etcd
        self._store = store
        self._recorder = recorder
        # What the recorder's writes compare.
        self._fence = fence or Fence()
        self._settings = settings
        self._keyspace = Keyspace(prefix, namespace or DEFAULT_NAMESPACE)
        keys, self._likely_prefix = watched_keys(prefix, namespace)
        traces, _ = watched_keys(self._keyspace.traces, namespace)
        if runs is not None:
            keys, traces = map(KeyRange.of_prefix, self._keyspace.run_prefixes(runs)[:2])
            self._likely_prefix = keys.start
        self._keys = (keys, traces)
        self._subscriptions = Subscriptions(containment)
        self._timeouts = ConditionTimeouts(store, clock=settings.clock, containment=containment)
        self._aborter = Aborter(
            store, self._keyspace, finalizer=settings.finalizer, containment=containment
        )
        self._orphans = OrphanCollector(
            store,
            self._keyspace,
            unowned_only=not settings.collect_orphans,
            finalizer=settings.finalizer,
            containment=containment,
        )
        self._election_key = self._keyspace.election(namespace)
        self._position = Position(etcd, self._keyspace.position(namespace))
        self._outbox = Outbox(
            run_service=run_service,
            recorder=recorder,
            aborter=self._aborter,
            orphans=self._orphans,
            known=self._summary_of,
            newest=store.newest,
            is_newest=self._is_newest,
            present=store.get,
            letters=LetterBook(
                etcd,
                store,
                self._keyspace,
                owns=self._owns,
                settings=settings.reflector,
                containment=containment,
                most=settings.most_dead_letters,
            ),
            prefix=prefix,
            traces=self._keyspace.traces,
            on_deletion_told=self._forget_deletion,
            on_undecodable=self._set_aside_delivery,
            workers=settings.outbox_workers,
            settings=settings.router,
            containment=containment,
        )
        self._watching: _Watching | None = None
        self._starting = trio.Lock()
        self._start: trio.CancelScope | None = None
        self._grace = settings.grace
        self._last: _Watching | None = None
        self._election: Election | None = None
        self._known: dict[bytes, bytes] = {}
        self._earlier: dict[bytes, bytes] = {}
        # By key, what is to be told of its deletions, by their revisions.
        self._deletions: dict[bytes, dict[int, ActionUpdate]] = {}
        self._undecodable = Undecodable()
        self._doubtful: dict[bytes, Change] = {}
        self._decode_errors = 0
        self._versions: set[str] = set()

    def statistics(self) -> ProcessorStatistics:
        """See :class:`ProcessorStatistics`."""
        last, outbox = self._last, self._outbox.statistics()
        return ProcessorStatistics(
            watching=self._watching is not None,
            reflector=last.reflector.statistics() if last else None,
            router=last.router.statistics() if last else None,
            outbox=outbox.router,
            told=outbox.told,
            rejected=outbox.rejected,
            failed=outbox.failed,
            cut=outbox.cut,
            held=outbox.held,
            dead_letters=outbox.dead_letters.letters,
            dropped_letters=outbox.dead_letters.dropped,
            marks=self._recorder.statistics(),
            elected=self._election is not None and self._election.is_leader,
            position=self._position.saved,
            subscriptions=len(self._subscriptions),
            undelivered=self._subscriptions.pending(),
            decode_errors=self._decode_errors,
            undecodable=self._undecodable.reasons(),
            undecodable_since=self._undecodable.since,
        )

    @property
    def watching(self) -> bool:
        """Whether it is started, and not told to stop."""
        return self._watching is not None and not self._watching.intake.cancel_called

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
        :meth:`etcd_actions.subscriptions.Subscriptions.subscribe`.
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
        async with self._starting:
            while (watching := self._watching) is not None:
                if not watching.intake.cancel_called:
                    return
                await watching.ended.wait()
            with trio.CancelScope() as self._start:
                await self._nursery.start(self._watch)

    async def stop_watching(self, grace: float | None = None) -> None:
        """Stop taking in changes, finish what was taken in, then end.

        What is not finished within ``grace`` seconds (by default the settings') is logged
        and given up; it is found again at the next start, since it is still in etcd
        unmarked. When nothing is watched it does nothing; cancelled, it goes on without
        its caller.
        """
        watching = self._watching
        if self._start is not None:
            # One that waits for etcd; it does nothing to one that has returned.
            self._start.cancel("stop_watching")
        if watching is not None:
            self._grace = self._settings.grace if grace is None else grace
            watching.intake.cancel("stop_watching")
            await watching.ended.wait()

    def dispatch_event(self, change: Change) -> None:
        """Queue a change for the workers. Never waits; order per key is kept."""
        if self._last is not None:
            self._last.router.dispatch((change,))

    async def worker(self, router: Router) -> None:
        """Handle what a router holds, one key at a time, until cancelled."""
        await router.worker()

    def waiting_conditions(self) -> list[ActionId]:
        """The conditions that wait for a signal; none in a process that cannot record."""
        known = (self._known.get(key) for key in self._timeouts.keys)
        return [unpack(packed).action_id for packed in known if packed is not None]

    async def handle_watch_event(self, change: Change) -> None:
        """Decode a change, remember what its deletion will need, and act on it.

        A value that cannot be decoded is counted, logged and set aside until the next good
        write of its key: it is nothing that trying again would cure. Where the decoder failed
        for another reason it is looked at again, seldom.
        """
        key, revision = change.key, change.mod_revision
        if change.is_delete:
            packed = self._known.get(key)
            self._forget_undecodable(key)
            self._timeouts.forget(key)
            previous = self._decode(change, change.prev_value) if change.prev_value else None
            if packed is not None:
                self.handle_task_action_event(change, unpack(packed), previous)
            elif previous is not None:
                self.handle_task_action_event(change, summarize(previous, revision), previous)
            # Not before: a handler that fails is called again, and needs it then.
            self._known.pop(key, None)
            return
        value = change.value or b""
        try:
            summary = codec_of(value).summarize(
                value, key=key, revision=revision, create_revision=change.create_revision
            )
        except BaseException as error:
            self._set_aside(change, error)
            return
        self._known[key] = pack(summary)
        if summary.condition and self._settings.record:
            self._timeouts.note(key, summary)
        if summary.other_version:
            self._note_version(summary.other_version, change)
        if self._undecodable:
            self._forget_undecodable(key)
        self.handle_task_action_event(change, summary)

    def handle_task_action_event(
        self, change: Change, summary: Summary, previous: TaskAction | None = None
    ) -> None:
        """Tell subscribers, then queue what the run service is to be told, if anything.

        Args:
            change: What happened.
            summary: The facts by which it is decided who is to be told.
            previous: For a deletion the last object, where etcd sent it.
        """
        deleted = change.is_delete
        tell_subscribers = self._subscriptions.wants(summary)
        queue = (deleted and self._settings.record) or self._outbox.wants(change, summary)
        if not queue and not tell_subscribers:
            return
        source: TaskAction | Summary | None = previous or summary
        if not deleted:
            # The outbox decodes for itself, when its turn comes.
            source = None
            if tell_subscribers:
                source = self._decode(change, change.value or b"")
                if source is None:
                    return
        update = None
        if source is not None:
            try:
                update = build_action_update(
                    source,
                    key=change.key,
                    revision=change.mod_revision,
                    create_revision=summary.create_revision,
                    deleted=deleted,
                )
            except BaseException as error:
                if deleted:
                    raise
                self._set_aside(change, error)
                return
        if tell_subscribers and update is not None:
            self.notify_subscribers(update)
        if not queue:
            return
        if deleted and update is not None:
            # Whoever is elected has to know it until it is done with.
            self._deletions.setdefault(change.key, {})[change.mod_revision] = update
        if self._outbox.working:
            self._outbox.deliver(change, update if deleted else None)

    def should_skip_task_action(self, summary: Summary) -> bool:
        """Whether the run service has been told already: the object is labelled.

        Unlike in Flyte's service such objects do reach subscribers: a process that did not
        write the mark itself may see nothing but the marked state.
        """
        return summary.recorded

    def notify_subscribers(self, update: ActionUpdate) -> None:
        """Hand an update to the subscriptions. Never waits."""
        self._subscriptions.notify(update)

    def _owns(self, key: bytes) -> bool:
        """Whether this process watches a key."""
        return any(key in keys for keys in self._keys)

    def _summary_of(self, key: bytes) -> Summary | None:
        packed = self._known.get(key)
        return None if packed is None else unpack(packed)

    def _is_newest(self, key: bytes, revision: int, since: int) -> bool:
        """Whether a state surely was the newest of its key at another revision.

        All changes up to then have come, of this key none waits for a handler, and the last one
        that was handled is this.
        """
        last, packed = self._last, self._known.get(key)
        return (
            last is not None
            and packed is not None
            and last.reflector.revision_of(key) >= since
            and not last.router.has_work_for(key)
            and unpack(packed).revision == revision
        )

    def _forget_deletion(self, key: bytes, revision: int) -> None:
        """A deletion is done with, and so are those of the key before it."""
        deletions = self._deletions.get(key, {})
        for each in [each for each in deletions if each <= revision]:
            del deletions[each]
        if not deletions:
            self._deletions.pop(key, None)

    def _decode(self, change: Change, value: bytes) -> TaskAction | None:
        """Decode the whole of a value; one that cannot be is set aside."""
        key, revision = change.key, 0 if change.is_delete else change.mod_revision
        try:
            return codec_of(value).decode(value, key=key, revision=revision)
        except BaseException as error:
            self._set_aside(change, error)
            return None

    def _set_aside(self, change: Change, error: BaseException) -> None:
        """Count, log and list a value that cannot be decoded."""
        key = change.key
        doubtful = not isinstance(error, DecodeError) or error.doubtful
        if not isinstance(error, DecodeError):
            text = key.decode(errors="backslashreplace")
            reason = describe(self._containment.caught("value", text, error))
        else:
            reason = error.reason
        self._decode_errors += 1
        if change.is_delete:
            # What it was: nothing is there any more that could heal.
            doubtful = False
        else:
            self._undecodable.add(key, reason)
        if doubtful:
            self._doubtful[key] = Change(
                ChangeKind.MODIFIED,
                key,
                None,
                change.create_revision,
                change.mod_revision,
                change.version,
                change.lease,
            )
        else:
            self._doubtful.pop(key, None)
        with self._containment.unit("log_line", "value_undecodable"):
            _log.error(
                "value_undecodable",
                key=key.decode(errors="backslashreplace"),
                revision=change.mod_revision,
                reason=reason,
            )

    def _set_aside_delivery(self, change: Change, error: DecodeError) -> None:
        """The same of a value that was good enough for the handlers, but not to be told."""
        packed = self._known.get(change.key)
        if packed is not None and unpack(packed).revision == change.mod_revision:
            self._set_aside(change, error)

    def _note_version(self, version: str, change: Change) -> None:
        """Say once that objects are stored at another version of the API."""
        if version in self._versions or len(self._versions) >= _MOST_VERSIONS:
            return
        self._versions.add(version)
        with self._containment.unit("log_line", "stored_at_another_version"):
            _log.warning(
                "stored_at_another_version",
                version=version,
                known=API_VERSION,
                key=change.key.decode(errors="backslashreplace"),
                revision=change.mod_revision,
            )

    def _forget_undecodable(self, key: bytes) -> None:
        self._undecodable.forget(key)
        self._doubtful.pop(key, None)

    async def _look_again(self, router: Router) -> None:
        """Now and then handle again what could not be decoded for want of something else."""
        while True:
            await trio.sleep(_LOOK_AGAIN)
            for key, change in list(self._doubtful.items()):
                # With newer work for the key it heals, or comes here again, by itself.
                if router.dispatch_if_idle(change):
                    self._doubtful.pop(key, None)

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
                stopping = self._watching is not None and self._watching.intake.cancel_called
                if not unit.failed or stopping:
                    break
                lived = trio.current_time() - began > _RESTARTS.cap
                failures = 1 if lived else failures + 1
                with trio.CancelScope() as pause:
                    if self._watching is not None:
                        self._watching = replace(self._watching, intake=pause)
                    await trio.sleep(_RESTARTS.delay(failures))
                if pause.cancelled_caught:
                    break
        finally:
            self._containment.forget("task", _WATCH)
            self._watching = None
            ended.set()
        if refusal is not None:
            raise refusal

    async def _watch_once(
        self, ended: trio.Event, task_status: trio.TaskStatus[None]
    ) -> EtcdError | None:
        """List and watch until it is stopped; returns why etcd refused the first list, if so."""
        # The list finds what is still undecodable.
        self._undecodable.begin_again()
        self._doubtful.clear()
        self._earlier = dict(self._known)
        intake = trio.CancelScope()
        started = self._watching is not None
        keep = self._containment.keep
        try:
            start_revision = await self._start_revision()
            router = Router(
                self.handle_watch_event,
                self._store.reread,
                self._settings.router,
                containment=self._containment,
            )
            reflector = Reflector(
                self._etcd,
                self._keys,
                router,
                known={key: unpack(packed).revision for key, packed in self._known.items()},
                start_revision=start_revision,
                on_replaced=self._subscriptions.forget_revisions,
                likely_prefix=self._likely_prefix,
                settings=self._settings.reflector,
                containment=self._containment,
            )
            watching = self._last = _Watching(reflector, router, intake, ended)
            async with self._lead(watching), trio.open_nursery() as nursery:
                for _ in range(self._settings.workers):
                    work = partial(self.worker, router)
                    nursery.start_soon(keep, "task", "a worker of the handlers", work)
                nursery.start_soon(keep, "task", "retries of the handlers", router.retry_failed)
                look_again = partial(self._look_again, router)
                nursery.start_soon(keep, "task", "a second look", look_again)
                nursery.start_soon(self._containment.heal_later, "task", _WATCH)
                with intake:
                    async with trio.open_nursery() as taking_in:
                        await taking_in.start(reflector.run)
                        self._earlier.clear()
                        self._watching = watching
                        if not started:
                            started = True
                            task_status.started()
                with trio.move_on_after(self._grace) as scope:
                    await router.wait_idle()
                    await self._outbox.wait_idle()
                if scope.cancelled_caught:
                    outbox = self._outbox.statistics().router
                    handlers, told = router.statistics().keys, outbox.keys if outbox else 0
                    if handlers or told:
                        _log.warning("stopped_with_unfinished_work", handlers=handlers, outbox=told)
                nursery.cancel_scope.cancel("the watch was stopped")
        except* EtcdError as group:
            refusal = first_error(group)
        else:
            return None
        if started:
            # Only the first list can be refused.
            raise refusal
        return refusal

    async def _start_revision(self) -> int:
        """Where the first list is made: deletions since are seen then."""
        if not (self._settings.record and self._settings.elect) or self._known:
            return 0
        failures = 0
        while True:
            try:
                # Whether the actions may be read at all is the first to be told.
                await self._etcd.range(self._keys[0], limit=1, keys_only=True)
                return await self._position.load()
            except Unavailable as error:
                failures += 1
                delay = _BACKOFF.delay(failures)
                if failures & (failures - 1) == 0:
                    _log.warning("watch_lost", error=str(error), retry_in=round(delay, 3))
                await trio.sleep(delay)

    @asynccontextmanager
    async def _lead(self, watching: _Watching) -> AsyncIterator[None]:
        """Have the outbox at work while this process is the one to do it."""
        settings = self._settings
        if not settings.record:
            yield
        elif not settings.elect:
            async with self._outbox.at_work(), trio.open_nursery() as nursery:
                self._begin_work(nursery, None)
                yield
                nursery.cancel_scope.cancel("the watch was stopped")
        else:
            async with (
                open_election(
                    self._etcd,
                    self._election_key,
                    ttl=settings.election_ttl,
                    containment=self._containment,
                ) as self._election,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._serve_terms, self._election, watching)
                yield
                await self._save_position(watching, self._election)
                nursery.cancel_scope.cancel("the watch was stopped")

    async def _serve_terms(self, election: Election, watching: _Watching) -> None:
        """Work while elected, for ever; meanwhile follow the leader's position.

        When the work fails unexpectedly another process may lead: this one gives up, and
        stands again after a while.
        """
        failures = 0
        while True:
            began = trio.current_time()
            with self._containment.unit("task", _TERM, parks=True) as term:
                await self._serve_term(election, watching)
            if term.failed:
                election.give_up()
                lived = trio.current_time() - began > _RESTARTS.cap
                failures = 1 if lived else failures + 1
                await trio.sleep(_RESTARTS.delay(failures))

    async def _serve_term(self, election: Election, watching: _Watching) -> None:
        """Wait to be elected, then work while that lasts."""
        keep = self._containment.keep
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "task", "following the position", self._follow_position)
            await election.wait_leader()
            nursery.cancel_scope.cancel("elected")
        if (term := election.term) is None:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work, term, watching)
            await term.over.wait()
            nursery.cancel_scope.cancel("no longer elected")

    async def _work(self, term: Term, watching: _Watching) -> None:
        """Tell and mark, until cancelled."""
        keep, fence = self._containment.keep, term.leadership.fence
        hold_until = await self._open_term(term)
        self._fence.compare = fence
        async with (
            self._outbox.at_work(term, hold_until=hold_until),
            trio.open_nursery() as nursery,
        ):
            self._begin_work(nursery, fence)
            save = partial(
                self._position.keep,
                lambda: self._done_up_to(watching),
                fence,
                every=self._settings.save_every,
            )
            nursery.start_soon(keep, "task", "saving the position", save)
            nursery.start_soon(self._containment.heal_later, "task", _TERM)
            await trio.sleep_forever()

    def _begin_work(self, nursery: trio.Nursery, fence: Compare | None) -> None:
        """Do what was left undone, and from now on what the one process at work has to."""
        keep = self._containment.keep
        self._deliver_backlog()
        nursery.start_soon(keep, "task", "cleaning up", self._clean_up)
        timeouts = partial(self._timeouts.end_in_time, lambda: fence)
        nursery.start_soon(keep, "task", "time-outs of conditions", timeouts)

    async def _open_term(self, term: Term) -> float:
        """Note that this process leads; returns until when what others told may still land."""
        failures = 0
        revision, fence = term.leadership.create_revision, term.leadership.fence
        while True:
            try:
                before = await self._position.open_term(revision, term.ttl, fence)
            except EtcdError as error:
                failures += 1
                delay = _BACKOFF.delay(failures)
                if failures & (failures - 1) == 0:
                    _log.warning("term_not_opened", error=str(error), retry_in=round(delay, 3))
                await trio.sleep(delay)
                continue
            if before is None:
                return -math.inf
            if before.own:
                return self._outbox.doubt_until
            hold = (before.ttl or term.ttl) + LANDING
            _log.info("endings_held", seconds=hold)
            return term.began + hold

    def _deliver_backlog(self) -> None:
        """Have everything done that is known to be undone; in the order of each key."""
        for key, deletions in self._deletions.items():
            for revision, update in deletions.items():
                self._outbox.deliver(Change(ChangeKind.DELETED, key, b"", 0, revision, 0), update)
        for key, packed in self._known.items():
            if self._earlier.get(key) is packed:
                # This start has not come to it yet: it is going to be given out again.
                continue
            summary = unpack(packed)
            # Without its value, which is read again; what its lease is shows then.
            change = Change(
                ChangeKind.MODIFIED, key, None, summary.create_revision, summary.revision, 1
            )
            if self._outbox.wants(change, summary):
                self._outbox.deliver(change, None)

    async def _clean_up(self) -> None:
        """Finish what was left half-way: aborts, and what lost its parent unseen."""
        failures = 0
        while True:
            try:
                await self._aborter.resume()
                await self._orphans.sweep()
            except EtcdError as error:
                failures += 1
                away = isinstance(error, Unavailable)
                delay = (_BACKOFF if away else _CLEANING).delay(failures)
                if failures & (failures - 1) == 0:
                    _log.warning(
                        "clean_up_failed",
                        error=str(error),
                        failures=failures,
                        retry_in=round(delay, 3),
                    )
                await trio.sleep(delay)
            else:
                return

    async def _follow_position(self) -> None:
        """Forget the deletions that the elected process is done with."""
        while True:
            try:
                position = await self._position.load()
            except EtcdError as error:
                _log.debug("position_unreadable", error=str(error))
            else:
                for key in list(self._deletions):
                    self._forget_deletion(key, position)
            await trio.sleep(self._settings.save_every)

    async def _save_position(self, watching: _Watching, election: Election) -> None:
        """Save it once more at the end; what is not saved is only looked at again.

        Where nothing is left that may still land a successor need not wait for it.
        """
        if not election.is_leader:
            return
        with trio.move_on_after(1), self._containment.unit("task", "saving the position"):
            try:
                await self._position.save(self._done_up_to(watching), election.fence)
                if self._outbox.close_if_settled():
                    await self._position.close_term(election.fence)
            except EtcdError as error:
                _log.info("position_not_saved", error=str(error))

    def _done_up_to(self, watching: _Watching) -> int:
        """Every deletion up to this revision is done with.

        Puts do not count: what they made is in the list that a successor begins with.
        """
        oldest = [min(deletions) for deletions in self._deletions.values()]
        if (waiting := watching.router.oldest_delete()) is not None:
            oldest.append(waiting)
        return min([watching.reflector.revision, *(revision - 1 for revision in oldest)])
