"""From a change in etcd to the mark: wires reflector, router, subscriptions and recorder.

::

    reflector ── dispatch_event ──▶ router ── worker ──▶ handle_watch_event
                                                               │ decode, remember
                                                  handle_task_action_event
                                                     │                 │
                                     notify_subscribers        outbox (a router of its own)
                                                                       │ worker
                                                              notify_run_service
                                                                       │ accepted and over
                                                    mark_terminal_status_recorded

The methods have the names of Flyte's ``ActionsClient``, so that someone who knows the Go
code finds each. The run service has its own router behind the handlers, so one that hangs
or refuses slows no subscriber: its keys conflate, and are tried again, apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, EtcdError, first_error
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue
from etcd_actions.model import (
    DEFAULT_KEY_PREFIX,
    ActionId,
    ActionUpdate,
    Phase,
    Summary,
    TaskAction,
    build_action_update,
    pack,
    summarize,
    unpack,
)
from etcd_actions.recorder import Ending, MarkResult, Recorder
from etcd_actions.router import Router, RouterSettings, RouterStatistics
from etcd_actions.run_service import NullRunService, RunService
from etcd_actions.store import Store
from etcd_actions.subscriptions import Subscription, Subscriptions
from etcd_actions.watch import Change, Reflector, ReflectorSettings, ReflectorStatistics

_LIKELY_NAMESPACE = "flyte"
_LIKELY_RUN = b"r"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProcessorSettings:
    """How a processor works.

    Attributes:
        workers: How many keys are handled side by side. Handlers wait for nothing but
            dropped values, so a few are enough.
        outbox_workers: How many calls to the run service, and marks, are under way at once.
        grace: Seconds that stopping may take to finish the work at hand.
        reflector: How the prefix is watched.
        router: Limits of the router of the handlers, and of the outbox.
    """

    workers: int = 32
    outbox_workers: int = 128
    grace: float = 10.0
    reflector: ReflectorSettings = field(default_factory=ReflectorSettings)
    router: RouterSettings = field(default_factory=RouterSettings)


@dataclass(frozen=True, kw_only=True)
class ProcessorStatistics:
    """What a processor holds and has done since it was started.

    Attributes:
        watching: Whether it is started.
        reflector: The watch; None before the first start.
        router: The handlers' queue; None before the first start.
        outbox: The run service's queue; None before the first start.
        subscriptions: Number of open subscriptions.
        decode_errors: Number of values that could not be decoded.
        undecodable: The keys that hold such a value now, and why it cannot be decoded.
        marks: Number of marks by result, see :class:`~etcd_actions.recorder.MarkResult`.
    """

    watching: bool
    reflector: ReflectorStatistics | None
    router: RouterStatistics | None
    outbox: RouterStatistics | None
    subscriptions: int
    decode_errors: int
    undecodable: dict[bytes, str]
    marks: dict[str, int]


class _Delivery(Change, frozen=True, gc=False):
    """A change on its way to the run service; a deletion carries what is to be told."""

    update: ActionUpdate | None = None


@dataclass(frozen=True)
class _Watching:
    """What one start made."""

    reflector: Reflector
    router: Router
    outbox: Router
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
    """
    async with trio.open_nursery() as nursery:
        processor = Processor(
            nursery,
            etcd,
            prefix=prefix,
            namespace=namespace,
            run_service=run_service or NullRunService(),
            settings=settings or ProcessorSettings(),
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
        *,
        prefix: bytes,
        namespace: str | None,
        run_service: RunService,
        settings: ProcessorSettings,
    ) -> None:
        self._nursery = nursery
        self._etcd = etcd
        self._run_service = run_service
        self._settings = settings
        self._keys, self._likely_prefix = watched_keys(prefix, namespace)
        self._store = Store(etcd)
        self._recorder = Recorder(self._store)
        self._subscriptions = Subscriptions()
        self._watching: _Watching | None = None
        self._starting = trio.Lock()
        self._start: trio.CancelScope | None = None
        self._grace = settings.grace
        self._last: _Watching | None = None
        self._known: dict[bytes, bytes] = {}
        self._undecodable: dict[bytes, str] = {}
        self._decode_errors = 0
        self._introduced: dict[bytes, tuple[int, str]] = {}
        self._accepted: dict[bytes, Ending] = {}

    def statistics(self) -> ProcessorStatistics:
        """See :class:`ProcessorStatistics`."""
        last = self._last
        return ProcessorStatistics(
            watching=self._watching is not None,
            reflector=last.reflector.statistics() if last else None,
            router=last.router.statistics() if last else None,
            outbox=last.outbox.statistics() if last else None,
            subscriptions=len(self._subscriptions),
            decode_errors=self._decode_errors,
            undecodable=dict(self._undecodable),
            marks=self._recorder.statistics(),
        )

    def subscribe(self, parent: ActionId) -> Subscription[ActionUpdate]:
        """Subscribe to an action and its children; close the subscription after use.

        It gets what is handled from now on: subscribe before reading the present state.
        """
        return self._subscriptions.subscribe(parent)

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

    async def handle_watch_event(self, change: Change) -> None:
        """Decode a change, remember what its deletion will need, and act on it.

        A value that cannot be decoded is counted, logged and set aside until the next good
        write of its key: it is nothing that trying again would cure.
        """
        key, revision = change.key, change.mod_revision
        if change.is_delete:
            packed = self._known.get(key)
            previous = self._decode(key, change.prev_value, 0) if change.prev_value else None
            told = False
            if packed is not None:
                told = self.handle_task_action_event(change, unpack(packed), previous)
            elif previous is not None:
                summary = summarize(previous, revision)
                told = self.handle_task_action_event(change, summary, previous)
            # Otherwise it is known, to the next start too, until the run service accepts.
            if not told:
                self._known.pop(key, None)
            self._undecodable.pop(key, None)
            return
        value = change.value or b""
        try:
            summary = codec_of(value).summarize(
                value, key=key, revision=revision, create_revision=change.create_revision
            )
        except DecodeError as error:
            self._set_aside(key, error)
            return
        self._known[key] = pack(summary)
        if self._undecodable:
            self._undecodable.pop(key, None)
        self.handle_task_action_event(change, summary)

    def handle_task_action_event(
        self, change: Change, summary: Summary, previous: TaskAction | None = None
    ) -> bool:
        """Tell subscribers, then queue what the run service is to be told, if anything.

        Args:
            change: What happened.
            summary: The facts by which it is decided who is to be told.
            previous: For a deletion the last object, where etcd sent it.
        """
        deleted = change.is_delete
        skip = self.should_skip_task_action(summary)
        phase = Phase.ABORTED if deleted and not summary.is_terminal else summary.phase
        tell_run_service = not skip and self._run_service.wants(phase, deleted)
        tell_subscribers = self._subscriptions.wants(summary)
        if deleted and not tell_run_service:
            self._introduced.pop(change.key, None)
        if not tell_run_service and not tell_subscribers:
            return False
        source: TaskAction | Summary | None = previous or summary
        if not deleted:
            source = self._decode(change.key, change.value or b"", change.mod_revision)
        if source is None:
            return False
        update = build_action_update(
            source,
            key=change.key,
            revision=change.mod_revision,
            create_revision=summary.create_revision,
            deleted=deleted,
        )
        if tell_subscribers:
            self.notify_subscribers(update)
        if tell_run_service and self._last is not None:
            told = update if deleted else None
            self._last.outbox.dispatch((_delivery(change, told),))
        return tell_run_service

    def should_skip_task_action(self, summary: Summary) -> bool:
        """Whether the run service has accepted the ending already: the object is labelled.

        Unlike in Flyte's service such objects do reach subscribers: a process that did not
        write the mark itself may see nothing but the marked state.
        """
        return summary.recorded

    def notify_subscribers(self, update: ActionUpdate) -> None:
        """Hand an update to the subscriptions. Never waits."""
        self._subscriptions.notify(update)

    async def notify_run_service(self, delivery: Change) -> None:
        """Tell the run service until it accepts, then mark an ending.

        The action is recorded once per incarnation, before its first status. After an
        acceptance only the mark is tried again.
        """
        key = delivery.key
        action: TaskAction | None = None
        update = delivery.update if isinstance(delivery, _Delivery) else None
        if update is None:
            value = delivery.value or b""
            action = codec_of(value).decode(value, key=key, revision=delivery.mod_revision)
            update = build_action_update(
                action,
                key=key,
                revision=delivery.mod_revision,
                create_revision=delivery.create_revision,
            )
        ending = Ending.of(update)
        if self._accepted.get(key) != ending:
            incarnation = (update.create_revision, update.uid)
            if self._introduced.get(key) != incarnation:
                await self._run_service.record_action(update, action)
                self._introduced[key] = incarnation
            await self._run_service.update_action_status(update)
        if update.is_deleted:
            self._introduced.pop(key, None)
            packed = self._known.get(key)
            # The key may have been made again meanwhile.
            if packed is not None and unpack(packed).revision < delivery.mod_revision:
                del self._known[key]
        elif update.phase.is_terminal:
            self._accepted[key] = ending
            await self.mark_terminal_status_recorded(delivery, update)
        self._accepted.pop(key, None)

    async def mark_terminal_status_recorded(
        self, change: Change, update: ActionUpdate
    ) -> MarkResult:
        """Label an ending that the run service accepted, by compare-and-swap.

        Raises:
            EtcdError: etcd did not do it now; the outbox tries again.
        """
        seen = KeyValue(
            change.key,
            change.value or b"",
            change.create_revision,
            change.mod_revision,
            change.version,
            change.lease,
        )
        return await self._recorder.mark(seen, Ending.of(update))

    def _decode(self, key: bytes, value: bytes, revision: int) -> TaskAction | None:
        """Decode the whole of a value; one that cannot be is set aside."""
        try:
            return codec_of(value).decode(value, key=key, revision=revision)
        except DecodeError as error:
            self._set_aside(key, error)
            return None

    def _set_aside(self, key: bytes, error: DecodeError) -> None:
        self._decode_errors += 1
        self._undecodable[key] = error.reason
        _log.error(
            "value_undecodable",
            key=key.decode(errors="backslashreplace"),
            revision=error.revision,
            reason=error.reason,
        )

    async def _watch(self, *, task_status: trio.TaskStatus[None]) -> None:
        """One start, to its end."""
        # The list finds what is still undecodable.
        self._undecodable.clear()
        reread = self._store.reread
        router = Router(self.handle_watch_event, reread, self._settings.router)
        outbox = Router(self.notify_run_service, reread, self._settings.router)
        reflector = Reflector(
            self._etcd,
            self._keys,
            router,
            known={key: unpack(packed).revision for key, packed in self._known.items()},
            likely_prefix=self._likely_prefix,
            settings=self._settings.reflector,
        )
        watching = _Watching(reflector, router, outbox, trio.CancelScope(), trio.Event())
        self._last = watching
        refusal: EtcdError | None = None
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._settings.workers):
                    nursery.start_soon(self.worker, router)
                for _ in range(self._settings.outbox_workers):
                    nursery.start_soon(self.worker, outbox)
                nursery.start_soon(router.retry_failed)
                nursery.start_soon(outbox.retry_failed)
                with watching.intake:
                    async with trio.open_nursery() as intake:
                        await intake.start(reflector.run)
                        self._watching = watching
                        task_status.started()
                with trio.move_on_after(self._grace) as scope:
                    await router.wait_idle()
                    await outbox.wait_idle()
                if scope.cancelled_caught:
                    _log.warning(
                        "stopped_with_unfinished_work",
                        handlers=router.statistics().keys,
                        outbox=outbox.statistics().keys,
                    )
                nursery.cancel_scope.cancel("the watch was stopped")
        except* EtcdError as group:
            refusal = first_error(group)
        finally:
            self._watching = None
            watching.ended.set()
        if refusal is not None:
            raise refusal


def watched_keys(prefix: bytes, namespace: str | None) -> tuple[KeyRange, bytes]:
    """The range of keys to watch, and what most of them begin with."""
    whole = prefix if namespace is None else prefix + namespace.encode() + b"/"
    likely = prefix + f"{namespace or _LIKELY_NAMESPACE}/".encode() + _LIKELY_RUN
    return KeyRange.of_prefix(whole), likely


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
