"""Delivers the updates of an action and of its children to subscribers.

A subscription conflates: of each action it has the newest state that was not received yet.
So it never loses the last state, its memory is bounded by the number of its actions, and a
subscriber that stops reading harms no other.

A subscription may begin with a snapshot: the states at one revision, a :class:`SnapshotEnd`, and
then newer states. States that arrive while the snapshot is read wait for it. Of these, the ones up
to the snapshot's revision are dropped.

A subscription is a unit of :mod:`etcd_actions._internal.containment`: if the delivery of an update
fails, that subscription alone ends. Its reader gets an error, and subscribes again with a snapshot.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast, final, overload

import msgspec
import trio

from etcd_actions._internal.containment import Containment, describe
from etcd_actions._internal.parking import Parking
from etcd_actions.errors import InvalidArgument, Unavailable
from etcd_actions.model import ActionId, ActionUpdate, RunId, Summary, canonical_name


class SnapshotEnd(NamedTuple):
    """Follows the last state of a snapshot, which was read at ``revision``."""

    revision: int


Item_co = TypeVar("Item_co", covariant=True, bound="ActionUpdate | SnapshotEnd")


class SubscriptionStatistics(NamedTuple):
    """The counts of a subscription.

    Attributes:
        pending: Number of updates that wait to be received.
        conflated: Number of updates that a newer one replaced before they were received.
    """

    pending: int
    conflated: int


class _Topic(NamedTuple):
    """The parts by which updates are matched; the organisation is not in the stored object."""

    project: str
    domain: str
    run: str
    name: str


# No project and no action has this name: names contain no slash.
_ALL = _Topic("/", "", "", "")
_ALL_OF_RUN = "/"


class RunActions(NamedTuple):
    """All actions of a run, as the subject of a subscription."""

    run: RunId


Subject: TypeAlias = ActionId | RunId | RunActions | None
"""The subject of a subscription: an action and its children; a run, whose only child is its root;
all actions of a run; all actions (None)."""

_REPLACED: Final = object()
"""Stands between the updates of one store and those of its replacement."""


class _Backlog:
    """Number of updates that wait to be received."""

    __slots__ = ("updates",)

    def __init__(self) -> None:
        self.updates: int = 0


@final
class Subscription(trio.abc.ReceiveChannel[Item_co]):
    """The updates of one action and its children, from the time it was opened on.

    Iterate over it inside ``async with``. One task may receive at a time. It ends
    (:class:`trio.EndOfChannel`) when it is unsubscribed or the processor is closed; closing
    it while another task receives raises :class:`trio.ClosedResourceError` there. One that
    failed raises :class:`~etcd_actions.errors.Unavailable`: subscribe again.

    Attributes:
        subject: The subject, as it was requested.
        org: The organization of the subject; empty for any.
        replaced: How often the store was replaced by another one, counted when the updates before
            the replacement have been received. The revisions of later updates restart.
    """

    def __init__(
        self,
        subject: Subject,
        on_close: Callable[[Subscription[Any]], None],
        backlog: _Backlog,
        *,
        snapshot: bool,
    ) -> None:
        self.subject = subject
        self.org: str = _org_of(subject)
        self._backlog = backlog
        self._on_close = on_close
        self._snapshot: deque[Any] = deque()
        # The number of `_REPLACED` among them, which are no updates.
        self._boundaries = 0
        self._awaits_snapshot = snapshot
        self._other_store = False
        self._newer_than = 0
        # Taking the first key of a dict takes longer with each key that was taken before.
        self._pending: OrderedDict[bytes, Any] = OrderedDict()
        self._conflated = 0
        self._closed = False
        self._ended = False
        self._failure: str | None = None
        self._parking = Parking()
        self.replaced: int = 0

    def statistics(self) -> SubscriptionStatistics:
        """The present counts; see :class:`SubscriptionStatistics`."""
        return SubscriptionStatistics(self._count(), self._conflated)

    def _count(self) -> int:
        return len(self._snapshot) - self._boundaries + len(self._pending)

    def _leave_backlog(self) -> None:
        """Subtract its pending updates from the number of all subscriptions."""
        self._backlog.updates -= self._count()
        self._backlog = _Backlog()
        self._backlog.updates = self._count()

    def receive_nowait(self) -> Item_co:
        """The next update.

        Raises:
            trio.WouldBlock: There is none.
            trio.ClosedResourceError: The subscription was closed.
            trio.EndOfChannel: No more will come.
            Unavailable: The subscription failed, and updates may be missing.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if self._failure is not None:
            raise Unavailable(f"the subscription failed, subscribe again: {self._failure}")
        while self._snapshot:
            item = self._snapshot.popleft()
            if item is not _REPLACED:
                self._backlog.updates -= 1
                return cast(Item_co, item)
            self._boundaries -= 1
            self.replaced += 1
        if self._pending and not self._awaits_snapshot:
            self._backlog.updates -= 1
            return cast(Item_co, self._pending.popitem(last=False)[1])
        if self._ended:
            raise trio.EndOfChannel
        raise trio.WouldBlock

    async def receive(self) -> Item_co:
        """Return the next update. Cancellation loses none.

        Raises:
            trio.ClosedResourceError: The subscription was closed.
            trio.EndOfChannel: No more will come.
            Unavailable: The subscription failed, and updates may be missing.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                update = self.receive_nowait()
            except trio.WouldBlock:
                await self._parking.park()
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return update

    async def aclose(self) -> None:
        """End the subscription. Idempotent."""
        if not self._closed:
            self._closed = True
            self._drop()
            self._on_close(self)
            self._parking.wake()
        await trio.lowlevel.checkpoint()

    def begin_with(self, states: Iterable[ActionUpdate], revision: int) -> None:
        """Deliver the snapshot that was read at ``revision``; later only newer updates.

        If the store was replaced since the subscription was opened, the snapshot may be of either
        store. Then all updates that arrived are delivered after it.
        """
        before = self._count()
        self._snapshot.extend(states)
        self._snapshot.append(SnapshotEnd(revision))
        self._backlog.updates += self._count() - before
        self._awaits_snapshot = False
        if self._other_store:
            self._restart()
        self.skip_to(revision)
        self._parking.wake()

    def skip_to(self, revision: int) -> None:
        """Deliver only updates newer than ``revision``, which was read since this was opened.

        If the store was replaced since then, the revision may be of the old one, and is ignored.
        """
        if self._other_store:
            return
        self._newer_than = revision
        before = self._count()
        self._pending = OrderedDict(
            (key, update) for key, update in self._pending.items() if update.revision > revision
        )
        self._backlog.updates += self._count() - before

    def waiting(self) -> list[ActionUpdate]:
        """The updates that wait for the snapshot."""
        return list(self._pending.values()) if self._awaits_snapshot else []

    def _forget_revisions(self) -> None:
        """Accept any revision: the store was replaced, and its revisions restart."""
        self._newer_than = 0
        self._other_store = True
        if self._awaits_snapshot:
            return
        self._snapshot.extend(self._pending.values())
        self._pending.clear()
        self._restart()

    def _restart(self) -> None:
        self._snapshot.append(_REPLACED)
        self._boundaries += 1

    def deliver(self, update: ActionUpdate) -> None:
        """Queue an update for the reader, in place of an older one of its action."""
        if update.revision <= self._newer_than:
            return
        pending = self._pending.get(update.key)
        if pending is not None:
            self._conflated += 1
            same = update.incarnation.may_be(pending.incarnation)
            if update.partial and same and update.phase == pending.phase:
                # A deletion by the index alone has fewer fields than the state that it replaces.
                update = msgspec.structs.replace(
                    pending, revision=update.revision, is_deleted=update.is_deleted
                )
        self._pending[update.key] = update
        self._backlog.updates += pending is None
        self._parking.wake()

    def _end(self) -> None:
        self._ended = True
        self._parking.wake()

    def _fail(self, failure: str) -> None:
        self._failure = failure
        self._drop()
        self._parking.wake()

    def _drop(self) -> None:
        self._backlog.updates -= self._count()
        self._pending.clear()
        self._snapshot.clear()
        self._boundaries = 0


AnySubscription: TypeAlias = Subscription[Any]


class Subscriptions:
    """All open subscriptions, by their subjects.

    Args:
        containment: Counts subscriptions that fail; by default one of its own.
    """

    def __init__(self, containment: Containment | None = None) -> None:
        self._containment = containment or Containment()
        self._by_topic: defaultdict[_Topic, set[AnySubscription]] = defaultdict(set)
        self._backlog = _Backlog()
        self._count = 0
        # The numbers of subscriptions to all actions, and to all actions of a run.
        self._of_all = 0
        self._of_runs = 0

    def __len__(self) -> int:
        return self._count

    def pending(self) -> int:
        """The number of updates that wait to be received, of all subscriptions together."""
        return self._backlog.updates

    @overload
    def subscribe(
        self, subject: Subject, *, snapshot: Literal[False] = False
    ) -> Subscription[ActionUpdate]: ...
    @overload
    def subscribe(
        self, subject: Subject, *, snapshot: bool
    ) -> Subscription[ActionUpdate | SnapshotEnd]: ...
    def subscribe(self, subject: Subject, *, snapshot: bool = False) -> AnySubscription:
        """Open a subscription.

        Args:
            subject: See :data:`Subject`. An empty ``org`` stands for any: it is not part of the
                stored object. The root of a run may be named ``a0`` or like its run.
            snapshot: Whether updates wait until :meth:`Subscription.begin_with` was called.
        """
        subscription: AnySubscription = Subscription(
            subject, self._forget, self._backlog, snapshot=snapshot
        )
        self._by_topic[_topic_of(subject)].add(subscription)
        self._count += 1
        self._of_all += subject is None
        self._of_runs += isinstance(subject, RunActions)
        return subscription

    def unsubscribe(self, subscription: AnySubscription) -> None:
        """End a subscription after its pending updates. Idempotent.

        Raises:
            InvalidArgument: It is the subscription of another client.
        """
        if subscription._on_close != self._forget:
            raise InvalidArgument("subscription", "it was opened by another client")
        self._forget(subscription)
        subscription._end()

    def has_reader_of(self, summary: Summary) -> bool:
        """Whether there is a subscription to this action, its parent, its run or all actions."""
        if not self._by_topic:
            return False
        if self._of_all:
            return True
        run = (summary.project, summary.domain, summary.run)
        name, parent = _names(summary.run, summary.action, summary.parent)
        if (*run, name) in self._by_topic or (*run, parent) in self._by_topic:
            return True
        return bool(self._of_runs) and (*run, _ALL_OF_RUN) in self._by_topic

    def notify(self, update: ActionUpdate) -> None:
        """Deliver an update to its subscriptions. Never waits, never fails."""
        action_id = update.action_id
        run = (action_id.project, action_id.domain, action_id.run)
        for name in _names(action_id.run, action_id.name, update.parent):
            self._notify(_Topic(*run, name), update)
        if self._of_runs:
            self._notify(_Topic(*run, _ALL_OF_RUN), update)
        if self._of_all:
            self._notify(_ALL, update)

    def forget_revisions(self) -> None:
        """Accept any revision from now on: the store was replaced."""
        for subscriptions in self._by_topic.values():
            for subscription in subscriptions:
                subscription._forget_revisions()

    def end(self) -> None:
        """End all subscriptions, each after its pending updates."""
        for subscriptions in self._by_topic.values():
            for subscription in subscriptions:
                subscription._end()

    def _notify(self, topic: _Topic, update: ActionUpdate) -> None:
        subscriptions = self._by_topic.get(topic)
        if subscriptions is None:
            return
        failed: list[tuple[AnySubscription, BaseException]] = []
        for subscription in subscriptions:
            try:
                requested, org = subscription.org, update.action_id.org
                if requested and org and requested != org:
                    continue
                subscription.deliver(update)
            except BaseException as error:
                failed.append((subscription, error))
        for subscription, failure in failed:
            self._forget(subscription)
            subscription._fail(describe(failure))
        for subscription, failure in failed:
            self._containment.caught("subscription", str(subscription.subject), failure)

    def _forget(self, subscription: AnySubscription) -> None:
        topic = _topic_of(subscription.subject)
        subscriptions = self._by_topic.get(topic)
        if subscriptions is None or subscription not in subscriptions:
            return
        subscriptions.remove(subscription)
        subscription._leave_backlog()
        self._count -= 1
        self._of_all -= subscription.subject is None
        self._of_runs -= isinstance(subscription.subject, RunActions)
        if not subscriptions:
            del self._by_topic[topic]


def deletion_of(shown: ActionUpdate, revision: int) -> ActionUpdate:
    """The update of a deletion, made from the last state that a subscriber received."""
    return msgspec.structs.replace(shown, revision=revision, is_deleted=True, partial=True)


def _names(run: str, action: str, parent: str) -> tuple[str, str]:
    """The names by which subscribers name an action, and its parent."""
    return canonical_name(run, action), canonical_name(run, parent)


def _topic_of(subject: Subject) -> _Topic:
    if subject is None:
        return _ALL
    if isinstance(subject, RunActions):
        subject, name = subject.run, _ALL_OF_RUN
    else:
        name = "" if isinstance(subject, RunId) else canonical_name(subject.run, subject.name)
    return _Topic(subject.project, subject.domain, subject.run, name)


def _org_of(subject: Subject) -> str:
    if isinstance(subject, RunActions):
        subject = subject.run
    return "" if subject is None else subject.org
