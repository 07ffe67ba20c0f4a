"""The watch of one shard by this process, from its first list until it is not needed any more.

A shard is needed while this process has a duty for it, or while a subscription that was opened on
this watch is open. A subscription stays on the watch on which it was opened, so a hand-over of the
shard neither omits nor repeats an update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.errors import EtcdError
from etcd_actions.pipeline.processor import Processor
from etcd_actions.shards import Duty, Membership, Shard

_BACKOFF: Final = Backoff(initial=0.2, cap=30.0)
_LOOK_AGAIN: Final = 1.0
"""Seconds between two checks whether subscriptions are left."""
HAND_OVER: Final = 2.0
"""Seconds for the calls in flight when a shard is handed over."""

_log: Final = structlog.get_logger(__name__)


class ShardWatch:
    """See the module's text.

    Args:
        shard: The shard.
        processor: Watches it, and stands for its election.
        membership: Receives the report that the watch has listed.
        listing: Limits the lists at a time.
        on_change: Called when :attr:`serves` may have changed.

    Attributes:
        shard: The argument.
        processor: The argument.
        duty: What this process has to do about the shard; None for nothing.
        since: When this process began to watch it, on trio's clock.
        decided: Set once the first list was delivered, or refused.
        failure: Why etcd refused the list; empty if it did not.
    """

    def __init__(
        self,
        shard: Shard,
        processor: Processor,
        membership: Membership,
        listing: trio.CapacityLimiter,
        on_change: Callable[[], None],
    ) -> None:
        self.shard = shard
        self.processor = processor
        self.duty: Duty | None = None
        self.since = trio.current_time()
        self.decided = trio.Event()
        self.failure = ""
        self._membership = membership
        self._listing = listing
        self._on_change = on_change
        self._is_held_back = False
        self._changed = trio.Event()

    @property
    def leads(self) -> bool:
        """Whether this process owns the shard."""
        leader = self.processor.leader
        return leader is not None and leader.is_elected

    @property
    def serves(self) -> bool:
        """Whether it can serve new subscriptions."""
        return self.duty is not None and not self.duty.hands_over and self.processor.watching

    @property
    def is_to_stay(self) -> bool:
        """Whether this process is to keep the shard."""
        return self.duty is not None and self.duty.reports_ready

    async def resign(self) -> None:
        """Give the shard up, after the calls in flight; see :meth:`Leader.resign`."""
        leader = self.processor.leader
        if leader is not None:
            await leader.resign(HAND_OVER)

    def hold_back(self) -> None:
        """Do not stand for election until :meth:`stand_again`."""
        self._is_held_back = True

    def stand_again(self) -> None:
        """Stand for election again, if this is the duty."""
        self._is_held_back = False
        self._signal()

    def assign(self, duty: Duty | None) -> None:
        """Note the present duty; the task of :meth:`run` fulfils it."""
        if duty != self.duty:
            self.duty = duty
            self._signal()
            self._on_change()

    async def run(self) -> None:
        """Watch the shard until it is not needed any more."""
        try:
            while await self._list():
                if not await self._serve():
                    return
        finally:
            self._membership.clear_ready(self.shard)
            self.decided.set()
            self._on_change()

    async def _list(self) -> bool:
        """Start the watch; returns False if the shard is not needed any more."""
        if self.processor.watching:
            return True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_not_needed, nursery.cancel_scope)
            async for attempt in retrying(_BACKOFF, on=EtcdError, report=self._report_refusal):
                with attempt:
                    async with self._listing:
                        await self.processor.start_watching()
            nursery.cancel_scope.cancel("the watch was started")
        self.failure = ""
        self.decided.set()
        self._on_change()
        return self.processor.watching

    async def _cancel_when_not_needed(self, scope: trio.CancelScope) -> None:
        while self._is_needed:
            await self._changed.wait()
        scope.cancel("another process is to watch the shard")

    @property
    def _is_needed(self) -> bool:
        return self.duty is not None or self.processor.subscription_count > 0

    def _report_refusal(self, error: Exception, failures: int, delay: float) -> None:
        self.failure = str(error)
        self.decided.set()
        seldom(_log, "shard_unreadable", shard=str(self.shard))(error, failures, delay)

    async def _serve(self) -> bool:
        """Fulfil one duty after the other.

        Returns:
            Whether the watch has to be started again; False once it is not needed any more.
        """
        processor, leader = self.processor, self.processor.leader
        assert leader is not None
        while True:
            changed, duty = self._changed, self.duty
            if duty is not None and duty.reports_ready:
                self._membership.set_ready(self.shard)
            else:
                self._membership.clear_ready(self.shard)
            if duty is not None and not duty.hands_over:
                if duty.stands and not self._is_held_back:
                    leader.stand()
                await changed.wait()
                continue
            led = self.leads
            await self.resign()
            if led:
                target = "" if duty is None else duty.target
                _log.info("shard_handed_over", shard=str(self.shard), to=target)
            if changed.is_set():
                continue
            if not self._is_needed:
                await processor.stop_watching(0)
                # It may be needed again by now.
                return self._is_needed
            with trio.move_on_after(_LOOK_AGAIN):
                await changed.wait()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
