"""Opens subscriptions: with a snapshot if requested, and on a shared watch if needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final
from weakref import WeakKeyDictionary

import trio

from etcd_actions.actions.listing import Lister, Listing
from etcd_actions.actions.recovery import Recovery
from etcd_actions.actions.stored_action import update_of
from etcd_actions.errors import InvalidArgument, Unavailable
from etcd_actions.follow.subscriptions import AnySubscription, RunActions, Subject
from etcd_actions.model import ActionId, ActionUpdate, Keyspace
from etcd_actions.pipeline.processor import Processor
from etcd_actions.pipeline.sharded_processor import AnyProcessor
from etcd_actions.pipeline.shared_watches import Scope, SharedWatches
from etcd_actions.shards import EVERYTHING, ShardRange

_BATCH: Final = 64
"""Actions of a snapshot that are converted before other tasks run."""


class Subscribing:
    """Opens subscriptions of one client.

    Args:
        keys: The keyspace of the actions.
        processor: The client's own processor. It serves the subscriptions to the runs that it
            watches.
        watcher: Makes a processor that only serves subscriptions.
        lister: Reads the snapshots.
        recovery: Reads the traces of a run that another one recovers.

    Attributes:
        watches: The watches that serve subscriptions to runs that the client does not watch.
        processors: The processor that serves each open subscription.
    """

    def __init__(
        self,
        keys: Keyspace,
        processor: AnyProcessor,
        watcher: Callable[[Scope], Processor],
        lister: Lister,
        recovery: Recovery,
    ) -> None:
        self.watches: SharedWatches = SharedWatches(watcher)
        self.processors: WeakKeyDictionary[AnySubscription, Processor] = WeakKeyDictionary()
        self._keys = keys
        self._processor = processor
        self._lister = lister
        self._recovery = recovery

    @asynccontextmanager
    async def subscribe(
        self, subject: Subject, *, snapshot: bool
    ) -> AsyncIterator[AnySubscription]:
        """Open a subscription, until the context is left.

        Args:
            subject: See :data:`~etcd_actions.follow.subscriptions.Subject`.
            snapshot: Whether it begins with a snapshot.

        Raises:
            EtcdError: A read failed, or etcd refused the watch.
        """
        async with AsyncExitStack() as stack:
            own = self._processor.serving(subject)
            if own is not None:
                processor = own
            else:
                processor = await stack.enter_async_context(self.watches.of(self._scope(subject)))
            subscription = processor.subscribe(subject, snapshot=snapshot)
            self.processors[subscription] = processor
            await stack.enter_async_context(subscription)
            if own is None:
                if not snapshot:
                    subscription.skip_to(await self._lister.revision())
                await processor.start_watching()
            if snapshot:
                listing = await self._states_of(subject, processor, subscription)
                states = await _updates(listing)
                traces: list[ActionUpdate] = []
                if isinstance(subject, ActionId):
                    traces = await self._recovery.traces(subject, listing)
                processor.start_with(subscription, states, listing.revision, others=traces)
            yield subscription

    @asynccontextmanager
    async def subscribe_range(self, range_: ShardRange) -> AsyncIterator[AnySubscription]:
        """Open a subscription to all actions of a shard that the client serves, with a snapshot.

        It stays on the watch of that shard, also when another process gets the shard.

        Args:
            range_: The range of the shard; that of everything is a subscription to all actions.

        Raises:
            Unavailable: The client does not serve the shard any more.
            EtcdError: A read failed.
        """
        if range_ == EVERYTHING:
            async with self.subscribe(None, snapshot=True) as everything:
                yield everything
            return
        processor = self._processor.watching_range(range_)
        if processor is None:
            raise Unavailable(f"the shard {range_} is not served here any more")
        subscription = processor.subscribe(None, snapshot=True)
        self.processors[subscription] = processor
        async with subscription:
            keys = self._keys
            ranges = [range_.keys(keys.prefix), range_.keys(keys.traces)]
            listing = await self._lister.list_ranges(ranges)
            processor.start_with(subscription, await _updates(listing), listing.revision)
            yield subscription

    def unsubscribe(self, subscription: AnySubscription) -> None:
        """End a subscription after its pending updates.

        Raises:
            InvalidArgument: Another client opened it.
        """
        processor = self.processors.get(subscription)
        if processor is None:
            raise InvalidArgument("subscription", "it was opened by another client")
        processor.unsubscribe(subscription)

    def _scope(self, subject: Subject) -> Scope:
        """The scope of the watch that a subscription needs."""
        if subject is None:
            return Scope(self._keys.namespace, None)
        run = subject.run if isinstance(subject, RunActions) else subject
        return Scope(self._keys.namespace_of(run), run.run)

    async def _states_of(
        self, subject: Subject, processor: Processor, subscription: AnySubscription
    ) -> Listing:
        if subject is None:
            return await self._lister.list_all()
        if isinstance(subject, RunActions):
            return await self._lister.list_run_actions(subject.run, traces=True)
        if isinstance(subject, ActionId):
            known = await processor.families.read(
                subject, self._keys, traces=True, since=subscription.waiting
            )
            if known is not None:
                return known
        return await self._lister.list_child_actions(subject, traces=True)


async def _updates(listing: Listing) -> list[ActionUpdate]:
    """The states of a listing, as updates; other tasks run in between."""
    updates = []
    for number, action in enumerate(listing.actions, 1):
        if not number % _BATCH:
            await trio.lowlevel.checkpoint()
        updates.append(update_of(action))
    return updates
