"""Tells subscribers what became of an action and of its children.

A subscription conflates: of each action it holds the newest state that was not received yet.
So it never loses a last state, its memory is bounded by the number of its actions, and a
subscriber that stops reading harms nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple, final

import msgspec
import trio

from etcd_actions.model import ActionId, ActionUpdate, Summary


class SubscriptionStatistics(NamedTuple):
    """``pending`` updates wait to be received; ``conflated`` ones a newer state replaced."""

    pending: int
    conflated: int


class _Topic(NamedTuple):
    """What updates are matched by. The organisation is not part of the stored object."""

    project: str
    domain: str
    run: str
    name: str


@final
class Subscription(trio.abc.ReceiveChannel[ActionUpdate]):
    """The updates of one action and its children, from the time it was opened on.

    Iterate over it inside ``async with``. One task may receive at a time. It ends
    (:class:`trio.EndOfChannel`) when the processor is closed; closing it while another task
    receives raises :class:`trio.ClosedResourceError` there.
    """

    def __init__(self, parent: ActionId, on_close: Callable[[Subscription], None]) -> None:
        self.parent = parent
        self._on_close = on_close
        self._pending: dict[bytes, ActionUpdate] = {}
        self._conflated = 0
        self._closed = False
        self._ended = False
        self._receiver: trio.lowlevel.Task | None = None

    def statistics(self) -> SubscriptionStatistics:
        """How far behind the subscriber is."""
        return SubscriptionStatistics(len(self._pending), self._conflated)

    def receive_nowait(self) -> ActionUpdate:
        """The next update.

        Raises:
            trio.WouldBlock: There is none.
            trio.ClosedResourceError: The subscription was closed.
            trio.EndOfChannel: No more will come.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if self._pending:
            return self._pending.pop(next(iter(self._pending)))
        if self._ended:
            raise trio.EndOfChannel
        raise trio.WouldBlock

    async def receive(self) -> ActionUpdate:
        """The next update, when there is one. Cancellation loses nothing."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                update = self.receive_nowait()
            except trio.WouldBlock:
                await self._park()
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return update

    async def aclose(self) -> None:
        """End the subscription; twice is harmless."""
        if not self._closed:
            self._closed = True
            self._pending.clear()
            self._on_close(self)
            self._wake()
        await trio.lowlevel.checkpoint()

    def _notify(self, update: ActionUpdate) -> None:
        pending = self._pending.get(update.key)
        if pending is not None:
            self._conflated += 1
            if update.partial and update.uid == pending.uid and update.phase == pending.phase:
                # A deletion told from memory knows less than the ending it would replace.
                update = msgspec.structs.replace(
                    pending, revision=update.revision, is_deleted=update.is_deleted
                )
        self._pending[update.key] = update
        self._wake()

    def _end(self) -> None:
        self._ended = True
        self._wake()

    async def _park(self) -> None:
        if self._receiver is not None:
            raise trio.BusyResourceError("another task receives from this subscription")
        self._receiver = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._receiver = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self) -> None:
        if self._receiver is not None:
            task, self._receiver = self._receiver, None
            trio.lowlevel.reschedule(task)


class Subscriptions:
    """All open subscriptions, by what they are subscribed to."""

    def __init__(self) -> None:
        self._by_topic: defaultdict[_Topic, set[Subscription]] = defaultdict(set)

    def __len__(self) -> int:
        return sum(len(subscriptions) for subscriptions in self._by_topic.values())

    def subscribe(self, parent: ActionId) -> Subscription:
        """Open a subscription for an action and its children.

        An empty ``org`` stands for any: it is not part of the stored object.
        """
        subscription = Subscription(parent, self._forget)
        self._by_topic[_topic(parent, parent.name)].add(subscription)
        return subscription

    def wants(self, summary: Summary) -> bool:
        """Whether anybody subscribed to this action or to its parent."""
        if not self._by_topic:
            return False
        run = (summary.project, summary.domain, summary.run)
        return (*run, summary.action) in self._by_topic or (*run, summary.parent) in self._by_topic

    def notify(self, update: ActionUpdate) -> None:
        """Hand an update to its subscribers. Never waits, never fails."""
        self._notify(_topic(update.action_id, update.action_id.name), update)
        if update.parent:
            self._notify(_topic(update.action_id, update.parent), update)

    def end(self) -> None:
        """No more updates will come: readers get what is pending, then the end."""
        for subscriptions in self._by_topic.values():
            for subscription in subscriptions:
                subscription._end()

    def _notify(self, topic: _Topic, update: ActionUpdate) -> None:
        for subscription in self._by_topic.get(topic, ()):
            wanted, org = subscription.parent.org, update.action_id.org
            if not wanted or not org or wanted == org:
                subscription._notify(update)

    def _forget(self, subscription: Subscription) -> None:
        topic = _topic(subscription.parent, subscription.parent.name)
        self._by_topic[topic].discard(subscription)
        if not self._by_topic[topic]:
            del self._by_topic[topic]


def _topic(action_id: ActionId, name: str) -> _Topic:
    return _Topic(action_id.project, action_id.domain, action_id.run, name)
