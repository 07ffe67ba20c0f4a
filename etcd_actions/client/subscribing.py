"""Opens subscriptions: with a snapshot if requested, and on a shared watch if needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final
from weakref import WeakKeyDictionary

import trio

from etcd_actions.actions.listing import Lister, Listing
from etcd_actions.actions.recovery import Recovery
from etcd_actions.errors import InvalidArgument
from etcd_actions.follow.subscriptions import ALL_OF_RUN, AnySubscription
from etcd_actions.model import ActionId, ActionUpdate, Keyspace, build_action_update
from etcd_actions.pipeline.processor import Processor
from etcd_actions.pipeline.shared_watches import Scope, SharedWatches

_BATCH: Final = 64
"""Actions of a snapshot that are converted before other tasks run."""


class Subscribing:
    """Opens subscriptions of one client.

    Args:
        keys: Where its actions are.
        processor: Its own, which serves all subscriptions while it watches.
        watcher: Makes a processor that only serves subscriptions.
        lister: Reads the snapshots.
        recovery: Reads the traces of a run that another one recovers.

    Attributes:
        watches: The watches that serve subscriptions while the client does not watch.
        processors: By open subscription, what serves it.
    """

    def __init__(
        self,
        keys: Keyspace,
        processor: Processor,
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
        self, parent: ActionId | None, *, snapshot: bool
    ) -> AsyncIterator[AnySubscription]:
        """Open one, of an action, of a run, or of all; see :meth:`Subscriptions.subscribe`."""
        async with AsyncExitStack() as stack:
            processor = self._processor
            if shared := not processor.watching:
                processor = await stack.enter_async_context(self.watches.of(self._scope(parent)))
            subscription = processor.subscribe(parent, snapshot=snapshot)
            self.processors[subscription] = processor
            await stack.enter_async_context(subscription)
            if shared:
                if not snapshot:
                    subscription.skip_to(await self._lister.revision())
                await processor.start_watching()
            if snapshot:
                listing = await self._states_of(parent, processor, subscription)
                states = await _updates(listing)
                traces: list[ActionUpdate] = []
                if parent is not None and parent.name not in ("", ALL_OF_RUN):
                    traces = await self._recovery.traces(parent, listing)
                processor.start_with(subscription, states, listing.revision, others=traces)
            yield subscription

    def unsubscribe(self, subscription: AnySubscription) -> None:
        """End one; its reader gets the pending updates first.

        Raises:
            InvalidArgument: It is another client's.
        """
        processor = self.processors.get(subscription)
        if processor is None:
            raise InvalidArgument("subscription", "it was opened by another client")
        processor.unsubscribe(subscription)

    def _scope(self, parent: ActionId | None) -> Scope:
        """What has to be watched."""
        if parent is None:
            return Scope(self._keys.namespace, None)
        return Scope(self._keys.namespace_of(parent), parent.run)

    async def _states_of(
        self, parent: ActionId | None, processor: Processor, subscription: AnySubscription
    ) -> Listing:
        if parent is None:
            return await self._lister.list_all()
        if parent.name == ALL_OF_RUN:
            return await self._lister.list_run_actions(parent, traces=True)
        if parent.name:
            known = await processor.families.read(
                parent, self._keys, traces=True, since=subscription.awaited
            )
            if known is not None:
                return known
        return await self._lister.list_child_actions(parent, traces=True)


async def _updates(listing: Listing) -> list[ActionUpdate]:
    """The states that were read, as updates; other tasks run in between."""
    updates = []
    for number, action in enumerate(listing.actions, 1):
        if not number % _BATCH:
            await trio.lowlevel.checkpoint()
        updates.append(
            build_action_update(
                action,
                key=action.key,
                revision=action.revision,
                create_revision=action.create_revision,
            )
        )
    return updates
