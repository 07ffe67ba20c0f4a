"""The watch from a start to its stop: list, watch, work while leading, drain at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import structlog
import trio

from etcd_actions._internal.backoff import Backoff, Restarts
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.errors import EtcdError, Unavailable, first_error
from etcd_actions.etcd.api import Etcd
from etcd_actions.follow import Handler, Index, SetAside
from etcd_actions.pipeline.recording import Recording
from etcd_actions.pipeline.watched_scope import WatchedScope
from etcd_actions.pipeline.watching_settings import WatchingSettings
from etcd_actions.watch import Reflector

_BACKOFF = Backoff(initial=0.1, cap=5.0)
_RESTARTS = Backoff(initial=0.2, cap=30.0)
_WATCH = "the watch"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class WatchParts:
    """The parts of a processor that each start of its watch uses.

    Attributes:
        etcd: The connection.
        scope: The keys to watch.
        index: The facts of the keys.
        handler: Handles the changes. The changes that it put off outlive a stop: a terminal state
            among them may be missing from the next list.
        set_aside: The values that cannot be decoded.
        recording: The outbox and the leader; None in a process that only serves subscribers.
        settings: See :class:`WatchingSettings`.
        containment: Counts unexpected failures.
        on_replaced: Called when the store was replaced by another one.
    """

    etcd: Etcd
    scope: WatchedScope
    index: Index
    handler: Handler
    set_aside: SetAside
    recording: Recording | None
    settings: WatchingSettings
    containment: Containment
    on_replaced: Callable[[], None]


class WatchRun:
    """Runs the watch of a processor once.

    Args:
        parts: The parts of the processor.
        before: The run before this one; None for the first.

    Attributes:
        reflector: The newest reflector, of this run or of the run before; None before the first.
        is_watching: Whether the first list was delivered, and the run has not ended.
        is_stopping: Whether :meth:`stop` was called.
        listed: Set once the first list of the newest reflector was delivered.
        ended: Set when :meth:`run` ends.
    """

    def __init__(self, parts: WatchParts, before: WatchRun | None) -> None:
        self.reflector: Reflector | None = before.reflector if before else None
        self.is_watching = False
        self.is_stopping = False
        self.listed = trio.Event()
        self.ended = trio.Event()
        # The revision of the newest reflector that has listed.
        self._delivered_up_to: int = before._delivered_up_to if before else 0
        self._parts = parts
        self._grace = parts.settings.grace
        self._intake: trio.CancelScope | None = None

    def stop(self, grace: float) -> None:
        """Accept no more changes, and end within ``grace`` seconds after that."""
        self._grace = grace
        self.is_stopping = True
        if self._intake is not None:
            self._intake.cancel("stop_watching")

    def done_up_to(self) -> int:
        """Every change up to this revision was handled; 0 for none."""
        put_off = self._parts.handler.oldest_delete
        revision = self.reflector.revision if self.reflector else 0
        return revision if put_off is None else min(revision, put_off - 1)

    def received(self) -> int:
        """The number of changes that the present watch delivered."""
        return self.reflector.statistics().events if self.reflector else 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Watch until stopped; after an unexpected failure start again, with a delay.

        ``nursery.start`` returns once the first list was delivered, or the run was stopped.

        Raises:
            PermissionDenied, Unauthenticated, InvalidRequest: etcd refused the first list.
        """
        containment = self._parts.containment
        refusal: EtcdError | None = None
        restarts = Restarts(_RESTARTS)
        try:
            while True:
                restarts.begin()
                with containment.unit("task", _WATCH, parks=True) as unit:
                    refusal = await self._watch(task_status)
                if not unit.failed or self.is_stopping:
                    break
                with self._until_stopped():
                    await trio.sleep(restarts.delay())
            if refusal is None and not self.is_watching:
                task_status.started()
        finally:
            containment.forget("task", _WATCH)
            self.is_watching = False
            self.ended.set()
        if refusal is not None:
            raise refusal

    async def _watch(self, task_status: trio.TaskStatus[None]) -> EtcdError | None:
        """List and watch until stopped; returns why etcd refused the first list, if it did."""
        parts, keep, recording = self._parts, self._parts.containment.keep, self._parts.recording
        # The list finds the values that are still undecodable.
        parts.set_aside.begin_again()
        try:
            with self._until_stopped() as intake:
                start_revision = await self._start_revision()
            if intake.cancelled_caught:
                return None
            reflector = self.reflector = self._new_reflector(start_revision)
            listed = self.listed = trio.Event()
            standing = recording.leader.standing(self) if recording else nullcontext()
            async with standing, trio.open_nursery() as nursery:
                nursery.start_soon(keep, "task", "the handlers", parts.handler.retry)
                nursery.start_soon(parts.containment.forget_later, "task", _WATCH)
                with self._until_stopped():
                    async with trio.open_nursery() as taking_in:
                        await taking_in.start(reflector.run)
                        listed.set()
                        if not self.is_watching:
                            self.is_watching = True
                            task_status.started()
                await self._drain()
                nursery.cancel_scope.cancel("the watch was stopped")
        except* EtcdError as group:
            refusal = first_error(group)
        else:
            return None
        if self.is_watching:
            # Only the first list can be refused.
            raise refusal
        return refusal

    def _new_reflector(self, start_revision: int) -> Reflector:
        parts = self._parts
        reflector = Reflector(
            parts.etcd,
            parts.scope.watched,
            parts.handler,
            known=parts.index,
            start_revision=start_revision,
            merge=parts.handler.latest,
            on_replaced=parts.on_replaced,
            likely_prefix=parts.scope.likely_prefix,
            settings=parts.settings.reflector,
            containment=parts.containment,
        )
        parts.index.watched_by(reflector)
        return reflector

    async def _start_revision(self) -> int:
        """The revision of the first list, so that deletions since then are delivered."""
        parts = self._parts
        if self.reflector is not None:
            # It is 0 if that reflector has not listed.
            self._delivered_up_to = self.reflector.revision or self._delivered_up_to
        if self._delivered_up_to:
            return self._delivered_up_to
        if parts.recording is None or not parts.settings.elect:
            return 0
        revision = 0
        async for attempt in retrying(_BACKOFF, on=Unavailable, report=seldom(_log, "watch_lost")):
            with attempt:
                # Raise a missing permission to read the actions before one to read the checkpoint.
                await parts.etcd.range(parts.scope.objects, limit=1, keys_only=True)
                revision = await parts.recording.leader.start_at()
        return revision

    async def _drain(self) -> None:
        """Handle all received changes within the grace; log unfinished work."""
        handler, recording = self._parts.handler, self._parts.recording
        with trio.move_on_after(self._grace) as scope:
            await handler.wait_idle()
            if recording:
                await recording.outbox.wait_idle()
        if not scope.cancelled_caught:
            return
        queue = recording.outbox.statistics() if recording else None
        handlers, reports = handler.statistics().keys, queue.keys if queue else 0
        if handlers or reports:
            _log.warning("stopped_with_unfinished_work", handlers=handlers, outbox=reports)

    @contextmanager
    def _until_stopped(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as self._intake:
            if self.is_stopping:
                self._intake.cancel("stop_watching")
            yield self._intake
