"""The public ActionsClient: every method of Flyte's, on bare etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import wraps
from typing import Final, Literal, TypeVar, cast, overload
from weakref import WeakKeyDictionary

import msgspec
import trio

from etcd_actions._internal.containment import Containment, describe
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.actions.abort import Aborter, AbortResult
from etcd_actions.actions.enqueue import Enqueued, Enqueuer
from etcd_actions.actions.listing import Lister, Listing
from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.recovery import Recovery
from etcd_actions.actions.signal import signal
from etcd_actions.actions.status import Status, put_status
from etcd_actions.actions.stored_action import StoredAction, check_identity, missing
from etcd_actions.catalog import Catalog
from etcd_actions.codecs import codec_named
from etcd_actions.dead_letters import DeadLetter, DeadLetterOperations
from etcd_actions.errors import (
    ConfigError,
    EtcdActionsError,
    InvalidArgument,
    NotFound,
    UnexpectedFailure,
)
from etcd_actions.etcd.api import Etcd, KeyValue, Put
from etcd_actions.etcd.group_commit import GroupCommit, GroupCommitStatistics, open_group_commit
from etcd_actions.follow.subscriptions import WHOLE_RUN, AnySubscription, SnapshotEnd, Subscription
from etcd_actions.images import Images
from etcd_actions.model import (
    DEFAULT_KEY_PREFIX,
    DEFAULT_NAMESPACE,
    ActionId,
    ActionUpdate,
    ErrorState,
    Incarnation,
    Keyspace,
    NamespaceTemplate,
    build_action_update,
)
from etcd_actions.model.flyte_types import (
    Action,
    ActionIdentifier,
    EnrichedIdentity,
    RunIdentifier,
    RunSpec,
)
from etcd_actions.model.flyte_types import Literal as LiteralValue
from etcd_actions.pipeline.processor import Processor, open_processor
from etcd_actions.pipeline.shared_watches import Scope, SharedWatches
from etcd_actions.pipeline.watching_settings import WatchingSettings, WatchingStatistics
from etcd_actions.run_service import NullRunService, RunService
from etcd_actions.storage.claims import Claim, Claims, claimed_by, open_claims
from etcd_actions.storage.store import Store

_TURN: Final = 64
"""Actions of a snapshot that are told before others have their turn."""


@asynccontextmanager
async def open_actions_client(
    etcd: Etcd,
    *,
    prefix: bytes = DEFAULT_KEY_PREFIX,
    namespace: str = DEFAULT_NAMESPACE,
    namespace_template: str | NamespaceTemplate | None = None,
    all_namespaces: bool = False,
    run_service: RunService | None = None,
    codec: str = "json",
    settings: WatchingSettings | None = None,
    containment: Containment | None = None,
) -> AsyncIterator[ActionsClient]:
    """Make a client; leaving the context stops watching and ends all subscriptions.

    Args:
        etcd: The connection; it must live longer.
        prefix: What comes before ``<namespace>/<name>`` in the keys.
        namespace: The Kubernetes namespace of all actions.
        namespace_template: Names the namespace of each action by its project and domain
            instead, such as ``{project}-{domain}``; then all namespaces are watched, recorded
            and marked. See :class:`~etcd_actions.model.NamespaceTemplate`.
        all_namespaces: Watch, record and mark in all others, too.
        run_service: Who is told of each action, and before an ending is marked; nobody by
            default.
        codec: How new objects are stored: ``json``, which a Kubernetes API server reads,
            too, ``protobuf`` or ``msgpack``.
        settings: How it watches, and whether its finalizer is on what it creates, see
            :class:`~etcd_actions.pipeline.processor.WatchingSettings`.
        containment: The boundaries of the process; by default the client has its own.

    Raises:
        ConfigError: There is no such codec, or the template makes no namespaces.
    """
    template = namespace_template
    if isinstance(template, str):
        try:
            template = NamespaceTemplate(template)
        except ValueError as error:
            raise ConfigError(f"namespace_template: {template!r} {error}") from None
    settings = settings or WatchingSettings()
    containment = containment or Containment()
    form = codec_named(codec)
    async with open_group_commit(etcd, containment) as commit:
        store = Store(etcd, commit.txn, commit.get)
        keys = Keyspace(prefix, namespace, template=template)
        cache = ReadCache()
        async with (
            open_processor(
                etcd,
                prefix=prefix,
                namespace=None if all_namespaces else keys.namespace,
                run_service=run_service,
                settings=settings,
                store=store,
                containment=containment,
                on_replaced=cache.clear,
            ) as processor,
            owned_tasks("the client") as nursery,
        ):
            client = ActionsClient(
                nursery,
                etcd,
                commit,
                store,
                keys,
                processor,
                Enqueuer(store, keys, form, finalizer=settings.finalizer, cache=cache),
                cache,
                settings,
                containment,
            )
            try:
                yield client
            finally:
                client._watches.end_subscriptions()
            nursery.cancel_scope.cancel("the client is closed")


_Method = TypeVar("_Method", bound=Callable[..., Awaitable[object]])


def _request(method: _Method) -> _Method:
    """Make a method the boundary of a request: what it raises is an error of this package."""

    @wraps(method)
    async def contained(client: ActionsClient, *args: object, **kwargs: object) -> object:
        try:
            return await method(client, *args, **kwargs)
        except (EtcdActionsError, trio.ClosedResourceError):
            raise
        except BaseException as error:
            failure = client.containment.caught("request", method.__name__, error)
            raise UnexpectedFailure(f"{method.__name__}: {describe(failure)}") from failure

    return cast(_Method, contained)


class ActionsClient:
    """Enqueues, aborts and reads actions, tells what becomes of them, and marks their ends.

    Each method works by itself; :meth:`start_watching` makes this process one of those that
    record and mark. Actions are named by an :class:`~etcd_actions.model.ActionId` or by
    Flyte's ``ActionIdentifier``. All methods raise
    :class:`~etcd_actions.errors.ActionError` for what the caller or the action's state is
    the cause of, :class:`~etcd_actions.errors.UnexpectedFailure`, which is one of these, for
    what is not foreseen, and :class:`~etcd_actions.errors.EtcdError` when etcd did not do it.
    A cancelled write may have been done: asking for the same again is safe.

    Made by :func:`open_actions_client`.

    Attributes:
        containment: The boundaries of what it does, and of what is built on it.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        etcd: Etcd,
        commit: GroupCommit,
        store: Store,
        keys: Keyspace,
        processor: Processor,
        enqueuer: Enqueuer,
        cache: ReadCache,
        settings: WatchingSettings,
        containment: Containment,
    ) -> None:
        self.containment = containment
        self._nursery = nursery
        self._etcd = etcd
        self._commit = commit
        self._store = store
        self._keys = keys
        self._processor = processor
        self._enqueuer = enqueuer
        self._cache = cache
        self._settings = settings
        self._aborter = Aborter(store, keys, finalizer=settings.finalizer)
        self._lister = Lister(store, keys, cache)
        self._recovery = Recovery(store, keys)
        self._desk = DeadLetterOperations(etcd, store, keys)
        self._watches = SharedWatches(self._watcher)
        self._subscribed: WeakKeyDictionary[AnySubscription, Processor] = WeakKeyDictionary()

    @property
    def keys(self) -> Keyspace:
        """Where everything is kept, for what is built on the client."""
        return self._keys

    @property
    def store(self) -> Store:
        """Reads and writes of single keys, for what is built on the client."""
        return self._store

    @property
    def namespace(self) -> str | None:
        """The namespace of its actions; None where each project and domain has its own."""
        return self._keys.namespace

    def namespace_of(self, action_id: ActionId) -> str:
        """The namespace of an action.

        Raises:
            InvalidArgument: Its project and domain make none.
        """
        return self._keys.namespace_of(action_id)

    def statistics(self) -> WatchingStatistics:
        """What the watching does and has done."""
        return self._processor.statistics()

    def waiting_conditions(self) -> list[ActionId]:
        """The conditions that wait for a signal, as far as the watch has told of them."""
        return self._processor.waiting_conditions()

    def group_commit_statistics(self) -> GroupCommitStatistics:
        """How its writes went to etcd."""
        return self._commit.statistics()

    @_request
    async def enqueue(
        self,
        action: Action,
        run_spec: RunSpec | None = None,
        *,
        trace_error: ErrorState | None = None,
        beside: Sequence[Put] = (),
    ) -> Enqueued:
        """Create an action: a task, a condition or a trace. Asking for the same again is safe.

        A child needs its parent, and takes over from it what Flyte's service takes over. A
        trace that was recorded before is recorded anew.

        Args:
            action: Flyte's message.
            run_spec: What holds for the whole run; of a child only the start time counts.
            trace_error: Why a failed trace failed, which Flyte's message has no field for.
            beside: Keys that are created in the same transaction, each of them new. Where the
                same request made the action before nothing is written.

        Raises:
            InvalidArgument: A field is missing, or has a value that Flyte's schema forbids.
            AlreadyExists: The action exists, and another request made it; or a key of
                ``beside`` does.
            NameTaken: Its key holds the object of another action, or an unreadable value: of
                another project's run of that name, say.
            Aborted: The parent is gone, or it or what is above it is being aborted.
            ConfigError: ``flyteidl2`` is not installed.
        """
        return await self._enqueuer.enqueue(
            action, run_spec, trace_error=trace_error, beside=beside
        )

    @_request
    async def abort_action(
        self,
        action_id: ActionId | ActionIdentifier,
        reason: str = "",
        aborted_by: str | EnrichedIdentity = "",
        *,
        incarnation: Incarnation | None = None,
    ) -> AbortResult:
        """End an action and all below it as ABORTED; nothing can be enqueued there any more.

        What is over keeps its own ending. Safe to run again, also after it was cut off. With an
        ``incarnation`` that object is ended, and none that was made under its name since.

        Raises:
            NotFound: There is no such action, or it is another incarnation.
        """
        return await self._aborter.abort_action(
            action_id_of(action_id), reason, aborted_by, incarnation=incarnation
        )

    @_request
    async def put_status(
        self,
        action_id: ActionId | ActionIdentifier,
        attempt: int,
        status: Status,
        *,
        error: ErrorState | None = None,
        error_before: ErrorState | None = None,
        message: str = "",
        claim: Claim | None = None,
        incarnation: Incarnation | None = None,
        seen: StoredAction | None = None,
    ) -> StoredAction:
        """Report how far an action is: phase, attempts, cache status, and why it failed.

        docs/status.md says what is stored, in the form of Flyte's executor, and which phases may
        follow which. The same report again writes nothing. Reads that start afterwards see the
        report. Cancelled, it was done completely or not at all.

        Args:
            action_id: The action.
            attempt: The attempt that the report is about, from 1 on.
            status: The report, an :class:`ActionStatus` or Flyte's message.
            error: Why the action failed, with FAILED, TIMED_OUT and ABORTED.
            error_before: Why the attempt before failed, with a report that starts another one.
            message: One line for people.
            claim: The report counts only while this claim holds.
            incarnation: The report counts only for this object; by default for that of ``seen``,
                else for the one that is stored.
            seen: The caller's last state of the action. The report is written on it, and the
                action is read only after a conflict; without it, it may be read first.

        Raises:
            NotFound: There is no such action, or it is another incarnation.
            ClaimLost: The claim does not hold any more.
            FailedPrecondition: The attempt is an older one, or the action has ended.
            InvalidArgument: The status cannot be stored, or ``seen`` is another action.
        """
        return await put_status(
            self._store,
            self._keys,
            action_id_of(action_id),
            attempt,
            status,
            error=error,
            error_before=error_before,
            message=message,
            fence=None if claim is None else claim.fence,
            incarnation=incarnation,
            cache=self._cache,
            seen=seen,
        )

    @_request
    async def signal(
        self,
        action_id: ActionId | ActionIdentifier,
        value: LiteralValue,
        signalled_by: str | EnrichedIdentity = "",
    ) -> StoredAction:
        """Give a condition the value that it waits for, which ends it. Twice the same is fine.

        Raises:
            InvalidArgument: The value is no boolean, integer, float or string, or of
                another type than the condition declares.
            NotFound: There is no such action.
            FailedPrecondition: It is no condition, has another value, or is over.
        """
        return await signal(
            self._store,
            self._keys,
            action_id_of(action_id),
            value,
            signalled_by,
            cache=self._cache,
        )

    def note_read(self, action_id: ActionId, kv: KeyValue | None) -> StoredAction:
        """Decode an object that was read with something else: the next report needs no read.

        Args:
            action_id: Which action it is to be.
            kv: What its key holds; None for nothing.

        Raises:
            NotFound: There is no object, or it is another action's.
            DecodeError: What is stored cannot be read.
        """
        if kv is None:
            raise NotFound(missing(action_id, self._keys))
        found = StoredAction.of(kv)
        check_identity(found, action_id)
        self._cache.put(kv)
        return found

    @_request
    async def list_run_actions(
        self, run: ActionId | RunIdentifier, *, traces: bool = False
    ) -> Listing:
        """All tasks and conditions of a run, at one revision, and its traces if asked for."""
        return await self._lister.list_run_actions(_run_of(run), traces=traces)

    @_request
    async def list_child_actions(
        self, parent: ActionId | ActionIdentifier, *, traces: bool = False
    ) -> Listing:
        """An action and its direct children, at one revision, and their traces if asked for."""
        parent = action_id_of(parent)
        if self._processor.watching:
            known = await self._processor.families.read(parent, self._keys, traces=traces)
            if known is not None:
                return known
        return await self._lister.list_child_actions(parent, traces=traces)

    @_request
    async def get_task_action(self, action_id: ActionId | ActionIdentifier) -> StoredAction:
        """One action as it is now.

        Raises:
            NotFound: There is no such action.
            DecodeError: What is stored cannot be read.
        """
        return await self._lister.get_task_action(action_id_of(action_id))

    def key_of(self, action_id: ActionId) -> bytes:
        """The etcd key of a task's or condition's object.

        Raises:
            InvalidArgument: Its names make none.
        """
        try:
            return self._keys.task_action(action_id)
        except ValueError as error:
            raise InvalidArgument("action_id", str(error)) from None

    @_request
    async def claimed_by(self, action_id: ActionId | ActionIdentifier) -> str:
        """Who runs an action now, ``<host>/<process>``; empty where nobody says so."""
        return await claimed_by(self._store, self._keys, action_id_of(action_id))

    @_request
    async def dead_letters(self) -> list[DeadLetter]:
        """What the run service refused for good, of all namespaces, the oldest first.

        All at one revision. What is no letter in their place is among them, and says so.
        """
        return await self._desk.letters()

    @_request
    async def retry_dead_letter(
        self, letter: DeadLetter, *, wait: bool = False
    ) -> DeadLetter | None:
        """Have the leader tell an action again: its record, then its status.

        It is asked by a write to the letter, and does it in the action's own turn. Asked
        again, it stays one request. Cancelled, the request may have been made, and stays.

        Args:
            letter: Which one; another revision of it will do.
            wait: Return when the request is answered, however long that takes.

        Returns:
            None where there is no letter any more: what it was about was accepted, or somebody
            deleted it. Else the letter as it is now; with ``wait`` it has the new refusal, or
            in ``note`` why nothing could be told.

        Raises:
            FailedPrecondition: It is no letter that can be read.
        """
        asked = await self._desk.retry(letter)
        return asked if asked is None or not wait else await self._desk.wait_answer(asked)

    @_request
    async def wait_dead_letter(self, asked: DeadLetter) -> DeadLetter | None:
        """Return once a request for another try is answered, however long that takes.

        Args:
            asked: What :meth:`retry_dead_letter` returned.

        Returns:
            As :meth:`retry_dead_letter` with ``wait``.
        """
        return await self._desk.wait_answer(asked)

    @_request
    async def delete_dead_letter(self, letter: DeadLetter) -> bool:
        """Give up on a letter: the run service goes without; whether it was deleted.

        One that has changed since it was read stays. An ending that is not marked is told
        again by the next process that is elected, and may be refused again.
        """
        return await self._desk.delete(letter)

    @_request
    async def dead_letter_objects(self, letters: Collection[DeadLetter]) -> dict[bytes, int]:
        """Which of the letters' objects are still there, with the ``create_revision`` of each."""
        return await self._desk.objects(letters)

    @_request
    async def is_anybody_elected(self) -> bool:
        """Whether a process is elected below the prefix: who offers letters again.

        One that works without an election cannot be seen.
        """
        return await self._desk.is_served()

    @overload
    def subscribe(
        self, parent: ActionId | ActionIdentifier | str, *, snapshot: Literal[False] = False
    ) -> AbstractAsyncContextManager[Subscription[ActionUpdate]]: ...
    @overload
    def subscribe(
        self, parent: ActionId | ActionIdentifier | str, *, snapshot: bool
    ) -> AbstractAsyncContextManager[Subscription[ActionUpdate | SnapshotEnd]]: ...
    def subscribe(
        self, parent: ActionId | ActionIdentifier | str, *, snapshot: bool = False
    ) -> AbstractAsyncContextManager[AnySubscription]:
        """Get the updates of an action and of its children, traces among them.

        Each action's updates come in order. Of one whose updates are not read in time the
        older ones are left out, never the last; ``statistics()`` of the subscription counts
        them. A client that does not watch watches the action's run for all its subscriptions.

        Args:
            parent: The action; its organisation counts where both sides know it. An empty
                name stands for what is above the root, as in Flyte's own interface. A bare
                name stands for the actions of that name in all runs of all projects: two
                runs have an ``a0`` each, so it is hardly ever what is wanted.
            snapshot: Begin with the states at one revision, and a
                :class:`~etcd_actions.follow.subscriptions.SnapshotEnd`. Nothing older follows, and
                nothing newer is missing. In a run that recovers another the traces that the
                same action recorded there are among them, as RECOVERED.

        Raises:
            EtcdError: On entering, when etcd cannot be read.
        """
        if not isinstance(parent, str):
            parent = _parent_of(parent)
        return self._subscribe(parent, snapshot)

    def subscribe_all(
        self,
    ) -> AbstractAsyncContextManager[Subscription[ActionUpdate | SnapshotEnd]]:
        """Get the updates of all actions, beginning with a snapshot.

        For those who run actions, or show them: see :meth:`subscribe`.

        Raises:
            EtcdError: On entering, when etcd cannot be read.
        """
        return self._subscribe(None, True)

    def subscribe_run(
        self, run: ActionId | RunIdentifier, *, snapshot: bool = True
    ) -> AbstractAsyncContextManager[Subscription[ActionUpdate | SnapshotEnd]]:
        """Get the updates of all actions of a run, beginning with a snapshot unless told not to.

        Raises:
            EtcdError: On entering, when etcd cannot be read.
        """
        return self._subscribe(msgspec.structs.replace(_run_of(run), name=WHOLE_RUN), snapshot)

    @property
    def images(self) -> Images:
        """The definitions of images; see :class:`~etcd_actions.images.Images`."""
        return Images(self._etcd, self._keys)

    def open_claims(self, *, ttl: int = 15) -> AbstractAsyncContextManager[Claims]:
        """Open claims, by which this process says that it runs an action.

        Args:
            ttl: Seconds after which the claims of a process that fell silent are free again.
        """
        return open_claims(
            self._etcd, self._store, self._keys, ttl=ttl, containment=self.containment
        )

    def open_catalog(self, keep: float) -> Catalog:
        """The cached results; see :class:`~etcd_actions.catalog.Catalog`.

        Args:
            keep: Seconds that a result is kept after it was used for the last time.
        """
        return Catalog(self._etcd, self._store, keep)

    async def unsubscribe(self, subscription: AnySubscription) -> None:
        """End a subscription: its reader gets what is pending, then the end. Twice is fine.

        Raises:
            InvalidArgument: It is another client's.
        """
        processor = self._subscribed.get(subscription)
        if processor is None:
            raise InvalidArgument("subscription", "it was opened by another client")
        processor.unsubscribe(subscription)
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def watching(self, *, grace: float | None = None) -> AsyncIterator[None]:
        """Watch for as long as the context lasts; see :meth:`start_watching`.

        Leaving it stops as :meth:`stop_watching` does; after an exception or a cancellation it
        stops without finishing the queued work, which the next leader finds unmarked in etcd.

        Args:
            grace: Seconds that the queued work may take; by default the settings'.

        Raises:
            EtcdError: On entering, when etcd refuses the list. While etcd is away it waits.
        """
        await self.start_watching()
        try:
            yield
        except BaseException:
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

        While etcd is away it waits, until it is stopped. While the client watches it does
        nothing. Cancelled, nothing is left running.

        Raises:
            EtcdError: etcd refused the list, for a lack of permission for instance.
        """
        await self._processor.start_watching()

    async def stop_watching(self, grace: float | None = None) -> None:
        """Stop the watch, finish the queued work within ``grace`` seconds, resign as the leader.

        Work that is not finished is logged, and found unmarked at the next start. Subscriptions
        stay open. Cancelled, it continues in the background. Without a watch it does nothing.

        Args:
            grace: Seconds; by default the settings'.
        """
        await self._processor.stop_watching(grace)

    @asynccontextmanager
    async def _subscribe(
        self, parent: ActionId | str | None, snapshot: bool
    ) -> AsyncIterator[AnySubscription]:
        async with AsyncExitStack() as stack:
            processor = self._processor
            if shared := not processor.watching:
                processor = await stack.enter_async_context(self._watches.of(self._scope(parent)))
            subscription = processor.subscribe(parent, snapshot=snapshot)
            self._subscribed[subscription] = processor
            await stack.enter_async_context(subscription)
            if shared:
                if not snapshot:
                    subscription.skip_to(await self._lister.revision())
                await processor.start_watching()
            if snapshot:
                listing = await self._states_of(parent, processor, subscription)
                states = await _updates(listing)
                if isinstance(parent, ActionId) and parent.name not in ("", WHOLE_RUN):
                    states += await self._recovery.traces(parent, listing)
                subscription.begin_with(states, listing.revision)
            yield subscription

    def _scope(self, parent: ActionId | str | None) -> Scope:
        """What a subscription needs to be watched."""
        if isinstance(parent, ActionId):
            return Scope(self._keys.namespace_of(parent), parent.run)
        return Scope(self._keys.namespace, None)

    def _watcher(self, scope: Scope) -> Processor:
        """One that watches for subscriptions only, and writes nothing."""
        return Processor(
            self._nursery,
            self._etcd,
            self._store,
            None,
            prefix=self._keys.prefix,
            namespace=scope.namespace,
            runs=scope.run,
            run_service=NullRunService(),
            settings=replace(self._settings, record=False),
            containment=self.containment,
        )

    async def _states_of(
        self, parent: ActionId | str | None, processor: Processor, subscription: AnySubscription
    ) -> Listing:
        if parent is None:
            return await self._lister.list_all()
        if isinstance(parent, str):
            return await self._lister.list_named(parent)
        if parent.name == WHOLE_RUN:
            return await self._lister.list_run_actions(parent, traces=True)
        if parent.name:
            known = await processor.families.read(
                parent, self._keys, traces=True, since=subscription.awaited
            )
            if known is not None:
                return known
        return await self._lister.list_child_actions(parent, traces=True)


def action_id_of(identifier: ActionId | ActionIdentifier) -> ActionId:
    """Take Flyte's identifier of an action, too.

    Raises:
        InvalidArgument: A part of it is missing; ``org`` may be.
    """
    identifier = _parent_of(identifier)
    _check(identifier, "name")
    return identifier


def _parent_of(identifier: ActionId | ActionIdentifier) -> ActionId:
    """The same of an action that may be none: the parent of a root has no name."""
    if not isinstance(identifier, ActionId):
        run = identifier.run
        identifier = ActionId(run.project, run.domain, run.name, identifier.name, run.org)
    _check(identifier)
    return identifier


def _run_of(run: ActionId | RunIdentifier) -> ActionId:
    if not isinstance(run, ActionId):
        run = ActionId(run.project, run.domain, run.name, "", run.org)
    _check(run)
    return run


def _check(action_id: ActionId, *more: str) -> None:
    for part in ("project", "domain", "run", *more):
        text = getattr(action_id, part)
        if not text or "/" in text:
            raise InvalidArgument(_FIELDS[part], f"{text!r} is no name: give one, without a slash")


_FIELDS = {
    "project": "action_id.run.project",
    "domain": "action_id.run.domain",
    "run": "action_id.run.name",
    "name": "action_id.name",
}


async def _updates(listing: Listing) -> list[ActionUpdate]:
    """What a snapshot tells of what was read. Others have their turn in between."""
    updates = []
    for number, action in enumerate(listing.actions, 1):
        if not number % _TURN:
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
