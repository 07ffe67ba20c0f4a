"""The client's methods that watch, and that subscribe to updates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Literal, overload

import trio

from etcd_actions._internal.argument_types import checks_types
from etcd_actions._internal.containment import Containment
from etcd_actions.client.arguments import expect, parent_id_of, run_id_of
from etcd_actions.client.dead_letters import DeadLetterRequests
from etcd_actions.client.own_work import OwnWork
from etcd_actions.client.subscribing import Subscribing
from etcd_actions.dead_letters import DeadLetterOperations
from etcd_actions.errors import InvalidArgument
from etcd_actions.follow.subscriptions import (
    AnySubscription,
    RunActions,
    SnapshotEnd,
    Subject,
    Subscription,
)
from etcd_actions.model import ActionId, ActionUpdate, RunId
from etcd_actions.model.flyte_types import ActionIdentifier, RunIdentifier
from etcd_actions.pipeline.sharded_processor import AnyProcessor
from etcd_actions.pipeline.watching_settings import WatchingStatistics


class WatchRequests(DeadLetterRequests):
    """Watches, and delivers the updates of actions."""

    def __init__(
        self,
        containment: Containment,
        dead_letters: DeadLetterOperations,
        processor: AnyProcessor,
        subscribing: Subscribing,
    ) -> None:
        super().__init__(containment, dead_letters)
        self._processor = processor
        self._subscribing = subscribing

    @property
    def work(self) -> OwnWork:
        """The actions that this process is to run, for an executor that builds on the client."""
        return OwnWork(self._processor, self._subscribing)

    def statistics(self) -> WatchingStatistics:
        """Return the present counts of the watch; see :class:`WatchingStatistics`."""
        return self._processor.statistics()

    def watches(self, run: RunId) -> bool:
        """Whether the client's watch has the actions of a run: not those of shards of others."""
        try:
            return self._processor.serving(RunActions(run)) is not None
        except InvalidArgument:
            return False

    def waiting_conditions(self) -> list[ActionId]:
        """Return the conditions that wait for a signal, as far as the watch has received them."""
        return self._processor.waiting_conditions()

    @overload
    def subscribe(
        self, parent: ActionId | RunId | ActionIdentifier, *, snapshot: Literal[False] = False
    ) -> AbstractAsyncContextManager[Subscription[ActionUpdate]]: ...
    @overload
    def subscribe(
        self, parent: ActionId | RunId | ActionIdentifier, *, snapshot: bool
    ) -> AbstractAsyncContextManager[Subscription[ActionUpdate | SnapshotEnd]]: ...
    def subscribe(
        self, parent: ActionId | RunId | ActionIdentifier, *, snapshot: bool = False
    ) -> AbstractAsyncContextManager[AnySubscription]:
        """Receive the updates of an action and of its children, traces among them.

        The updates of each action come in order. A reader that lags misses older updates of an
        action, never the last one; ``statistics()`` of the subscription counts them. A client
        that does not watch opens one watch of the run for all its subscriptions to that run.

        Args:
            parent: The action. Its organization counts if both sides have one. A run stands for
                the parent of its root, as an empty name does in Flyte's message: the subscription
                receives the updates of the root alone.
            snapshot: Start with the states at one revision, and a
                :class:`~etcd_actions.follow.subscriptions.SnapshotEnd`. Nothing older follows, and
                nothing newer is missing. In a run that recovers another one the traces of the
                same action there are among them, as RECOVERED.

        Raises:
            EtcdError: On entering, when etcd cannot be read.
        """
        return self._subscribe(parent_id_of(parent), snapshot)

    def subscribe_all(
        self,
    ) -> AbstractAsyncContextManager[Subscription[ActionUpdate | SnapshotEnd]]:
        """Receive the updates of all actions, after a snapshot; see :meth:`subscribe`.

        Raises:
            EtcdError: On entering, when etcd cannot be read.
        """
        return self._subscribe(None, True)

    def subscribe_run(
        self, run: RunId | RunIdentifier, *, snapshot: bool = True
    ) -> AbstractAsyncContextManager[Subscription[ActionUpdate | SnapshotEnd]]:
        """Receive the updates of all actions of a run, by default after a snapshot.

        Raises:
            EtcdError: On entering, when etcd cannot be read.
        """
        return self._subscribe(RunActions(run_id_of(run)), snapshot)

    async def unsubscribe(self, subscription: AnySubscription) -> None:
        """End a subscription: its reader gets the pending updates, then the end.

        Raises:
            InvalidArgument: Another client opened it.
        """
        expect("subscription", subscription, Subscription)
        self._subscribing.unsubscribe(subscription)
        await trio.lowlevel.checkpoint()

    @checks_types
    @asynccontextmanager
    async def watching(self, *, grace: float | None = None) -> AsyncIterator[None]:
        """Watch for as long as the context lasts; see :meth:`start_watching`.

        Leaving it stops as :meth:`stop_watching` does; after an exception or a cancellation it
        stops without finishing the queued work, which the next leader finds unmarked in etcd.

        Args:
            grace: Seconds that the queued work may take; by default the settings'.

        Raises:
            EtcdError: On entering, if etcd refuses the list. While etcd is unavailable it waits.
        """
        await self.start_watching()
        try:
            yield
        except BaseException:
            # After a cancellation the stop continues in the background. Raise the body's error.
            with suppress(trio.Cancelled):
                await self.stop_watching(0)
            raise
        await self.stop_watching(grace)

    async def start_watching(self) -> None:
        """List and watch the prefix, until :meth:`stop_watching`; returns after the list.

        A client that watches

        - serves all of its subscriptions from this one watch;
        - stands for election, with all clients on this prefix that watch. The leader reports
          each change to the run service, marks each terminal action that the run service has
          accepted, and removes our finalizer from it;
        - as the leader also ends conditions whose timeout has passed, deletes recorded actions
          after ``retain_terminal``, and aborts and deletes orphans: actions whose parent is
          missing, as Kubernetes' garbage collector does.

        With ``WatchingSettings(record=False)`` it only serves subscriptions, and writes nothing.
        To enqueue, report, list and subscribe a client need not watch.

        While etcd is unavailable it waits, until it is stopped. If the client watches already, it
        does nothing. After a cancellation no task is left running.

        Raises:
            EtcdError: etcd refused the list, for example for a lack of permission.
        """
        self._check_open()
        await self._processor.start_watching()

    async def stop_watching(self, grace: float | None = None) -> None:
        """Stop the watch, finish the queued work within ``grace`` seconds, resign as the leader.

        Unfinished work is logged, and found unmarked at the next start. Subscriptions stay open.
        After a cancellation the stop continues in the background. Without a watch it does nothing.

        Args:
            grace: Seconds; by default the settings'.
        """
        expect("grace", grace, float, int, None)
        await self._processor.stop_watching(grace)
        await trio.lowlevel.checkpoint()

    def _subscribe(
        self, subject: Subject, snapshot: bool
    ) -> AbstractAsyncContextManager[AnySubscription]:
        self._check_open()
        return self._subscribing.subscribe(subject, snapshot=snapshot)

    def _close(self) -> None:
        self._closed = True
        self._subscribing.watches.end_subscriptions()
