"""The methods of the client; ``watching.py`` and ``dead_letters.py`` have the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime

from etcd_actions._internal.argument_types import checks_types
from etcd_actions._internal.containment import Containment
from etcd_actions.actions.abort import Aborter, AbortResult
from etcd_actions.actions.enqueue import Enqueued, Enqueuer
from etcd_actions.actions.listing import Lister, Listing
from etcd_actions.actions.read_cache import ReadCache
from etcd_actions.actions.signal import signal
from etcd_actions.actions.status import ActionStatus, Status, put_status
from etcd_actions.actions.stored_action import StoredAction, check_identity, missing
from etcd_actions.catalog import Catalog
from etcd_actions.client.arguments import action_id_of, expect, run_id_of
from etcd_actions.client.counting import RunCounter
from etcd_actions.client.requests import request
from etcd_actions.client.subscribing import Subscribing
from etcd_actions.client.watching import WatchRequests
from etcd_actions.dead_letters import DeadLetterOperations
from etcd_actions.errors import InvalidArgument, NotFound
from etcd_actions.etcd.api import Etcd, KeyValue, Put
from etcd_actions.etcd.group_commit import GroupCommit, GroupCommitStatistics
from etcd_actions.images import Images
from etcd_actions.model import (
    ActionId,
    ErrorState,
    Incarnation,
    Keyspace,
    RunId,
)
from etcd_actions.model.flyte_types import (
    Action,
    ActionIdentifier,
    EnrichedIdentity,
    RunIdentifier,
    RunSpec,
)
from etcd_actions.model.flyte_types import Literal as LiteralValue
from etcd_actions.pipeline.sharded_processor import AnyProcessor
from etcd_actions.storage.claims import Claim, Claims, claimed_by, open_claims
from etcd_actions.storage.store import Store


class ActionsClient(WatchRequests):
    """Enqueues, aborts and reads actions, delivers their updates, and records terminal states.

    Each method works by itself; :meth:`watching` makes this process one of those that record
    and mark. Actions are named by an :class:`~etcd_actions.model.ActionId` or by Flyte's
    ``ActionIdentifier``, runs by a :class:`~etcd_actions.model.RunId` or Flyte's
    ``RunIdentifier``.

    A request raises:

    - :class:`~etcd_actions.errors.ActionError` for its arguments or the state of the action;
    - of these, :class:`~etcd_actions.errors.WrongType`, a TypeError, for an argument of another
      type, and :class:`~etcd_actions.errors.UnexpectedFailure` for any other exception, which is
      logged;
    - :class:`~etcd_actions.errors.EtcdError` if etcd refuses it or cannot be reached;
    - :class:`trio.ClosedResourceError` after the client is closed.

    A cancelled write may have been applied; the same request again is safe.

    :func:`open_actions_client` makes it.
    """

    def __init__(
        self,
        etcd: Etcd,
        commit: GroupCommit,
        store: Store,
        keys: Keyspace,
        cache: ReadCache,
        containment: Containment,
        processor: AnyProcessor,
        enqueuer: Enqueuer,
        aborter: Aborter,
        lister: Lister,
        subscribing: Subscribing,
    ) -> None:
        super().__init__(
            containment, DeadLetterOperations(etcd, store, keys), processor, subscribing
        )
        self._etcd = etcd
        self._commit = commit
        self._store = store
        self._keys = keys
        self._cache = cache
        self._enqueuer = enqueuer
        self._aborter = aborter
        self._lister = lister

    @property
    def keys(self) -> Keyspace:
        """The keys of its actions, for code that builds on the client."""
        return self._keys

    @property
    def store(self) -> Store:
        """Reads and writes of single keys, for code that builds on the client."""
        return self._store

    @property
    def namespace(self) -> str | None:
        """The namespace of its actions; None if each project and domain has its own."""
        return self._keys.namespace

    def namespace_of(self, action_id: ActionId) -> str:
        """Return the namespace of an action.

        Raises:
            InvalidArgument: The template makes no valid namespace of its project and domain.
        """
        expect("action_id", action_id, ActionId)
        return self._keys.namespace_of(action_id)

    def key_of(self, action_id: ActionId) -> bytes:
        """Return the etcd key of the object of a task or a condition.

        Raises:
            InvalidArgument: A part of its identity is empty, or has a slash.
        """
        expect("action_id", action_id, ActionId)
        try:
            return self._keys.task_action(action_id)
        except ValueError as error:
            raise InvalidArgument("action_id", str(error)) from None

    def group_commit_statistics(self) -> GroupCommitStatistics:
        """Return the counts of its group commit; see :class:`GroupCommitStatistics`."""
        return self._commit.statistics()

    @request
    async def enqueue(
        self,
        action: Action,
        run_spec: RunSpec | None = None,
        *,
        trace_error: ErrorState | None = None,
        companions: Sequence[Put] = (),
    ) -> Enqueued:
        """Create an action: a task, a condition or a trace. The same request again is safe.

        A child needs its parent, and inherits from it what Flyte's service has it inherit. A
        trace replaces the one that was stored before.

        Args:
            action: Flyte's message.
            run_spec: The settings of the run; of a child's only the start time counts.
            trace_error: Why a failed trace failed; Flyte's message has no field for it.
            companions: Keys that are created in the same transaction, each of them new. If the
                same request created the action before, nothing is written.

        Raises:
            InvalidArgument: A field is missing, or has a value that Flyte's schema forbids.
            AlreadyExists: Another request created the action; or a key of ``companions`` exists.
            NameTaken: Its key has the object of another action, such as one of another
                project's run of the same name, or an unreadable value.
            Aborted: The parent does not exist, or it or an action above it is aborted.
            ConfigError: ``flyteidl2`` is not installed.
        """
        expect("action", action, "Action")
        expect("run_spec", run_spec, "RunSpec", None)
        expect("trace_error", trace_error, ErrorState, None)
        return await self._enqueuer.enqueue(
            action, run_spec, trace_error=trace_error, companions=companions
        )

    @request
    async def abort_action(
        self,
        action_id: ActionId | ActionIdentifier,
        reason: str = "",
        aborted_by: str | EnrichedIdentity = "",
        *,
        incarnation: Incarnation | None = None,
    ) -> AbortResult:
        """End an action and all actions below it as ABORTED.

        Afterwards no action can be enqueued below it. A terminal action keeps its phase. The same
        request again is safe, also after a cancellation.

        Args:
            action_id: The action.
            reason: The reason, for people.
            aborted_by: The subject, or Flyte's message with it.
            incarnation: Abort only this object; by default the one that is stored.

        Raises:
            NotFound: There is no such action, or it is another incarnation.
        """
        expect("reason", reason, str)
        expect("aborted_by", aborted_by, str, "EnrichedIdentity")
        expect("incarnation", incarnation, Incarnation, None)
        return await self._aborter.abort_action(
            action_id_of(action_id), reason, aborted_by, incarnation=incarnation
        )

    @request
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

        docs/status.md has the stored fields, in the form of Flyte's executor, and the allowed
        orders of phases. The same report again writes nothing. Reads that start afterwards return
        the report. After a cancellation it was applied completely or not at all.

        Args:
            action_id: The action.
            attempt: The attempt that the report is about, from 1 on.
            status: The report, an :class:`ActionStatus` or Flyte's message.
            error: Why the action failed, with FAILED, TIMED_OUT and ABORTED.
            error_before: Why the attempt before failed, with a report that starts another one.
            message: One line for people.
            claim: Write the report only while this claim exists.
            incarnation: Write the report only to this object; by default to the one of ``seen``,
                or else to the one that is stored.
            seen: The caller's last state of the action. The report is added to that state, and the
                action is read only after a conflict. Without it, the action may be read first.

        Raises:
            NotFound: There is no such action, or it is another incarnation.
            ClaimLost: The claim does not hold any more.
            FailedPrecondition: The attempt is an older one, or the action is terminal.
            InvalidArgument: The status cannot be stored, or ``seen`` is another action.
        """
        expect("attempt", attempt, int)
        if not hasattr(status, "phase"):
            expect("status", status, ActionStatus)
        for part in ("phase", "attempts", "cache_status"):
            expect(f"status.{part}", getattr(status, part, None), int)
        expect("status.end_time", getattr(status, "end_time", None), datetime, "Timestamp", None)
        expect("error", error, ErrorState, None)
        expect("error_before", error_before, ErrorState, None)
        expect("message", message, str)
        expect("claim", claim, Claim, None)
        expect("incarnation", incarnation, Incarnation, None)
        expect("seen", seen, StoredAction, None)
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

    @request
    async def signal(
        self,
        action_id: ActionId | ActionIdentifier,
        value: bool | float | str | LiteralValue,
        signalled_by: str | EnrichedIdentity = "",
    ) -> StoredAction:
        """Deliver the value that a condition waits for, which ends it. The same again is safe.

        Args:
            action_id: The condition.
            value: A boolean, an integer, a float or a string, or Flyte's message with one.
            signalled_by: The subject, or Flyte's message with it.

        Raises:
            InvalidArgument: The value has another type than the condition declares.
            NotFound: There is no such action.
            FailedPrecondition: It is not a condition, has another value, or is terminal.
        """
        expect("value", value, bool, int, float, str, "Literal")
        expect("signalled_by", signalled_by, str, "EnrichedIdentity")
        return await signal(
            self._store,
            self._keys,
            action_id_of(action_id),
            value,
            signalled_by,
            cache=self._cache,
        )

    def note_read(self, action_id: ActionId, kv: KeyValue | None) -> StoredAction:
        """Decode an object that the caller read in a transaction, and put it into the read cache.

        Args:
            action_id: The action to which the object has to belong.
            kv: The key and its value; None if the key does not exist.

        Raises:
            NotFound: There is no object, or it is another action's.
            DecodeError: The object cannot be decoded.
        """
        expect("action_id", action_id, ActionId)
        expect("kv", kv, KeyValue, None)
        if kv is None:
            raise NotFound(missing(action_id, self._keys))
        found = StoredAction.of(kv)
        check_identity(found, action_id)
        self._cache.put(kv)
        return found

    @request
    async def list_run_actions(
        self, run: RunId | RunIdentifier, *, traces: bool = False
    ) -> Listing:
        """Return the tasks and conditions of a run, at one revision, and its traces on request.

        A value that cannot be decoded is logged and omitted.
        """
        return await self._lister.list_run_actions(run_id_of(run), traces=traces)

    def count_actions(self, run: RunId | RunIdentifier) -> RunCounter:
        """Return a counter of the actions of a run, which needs the watch; close it after use."""
        self._check_open()
        return RunCounter(self._processor, self._keys, run_id_of(run))

    @request
    async def list_child_actions(
        self, parent: ActionId | ActionIdentifier, *, traces: bool = False
    ) -> Listing:
        """Return an action and its children, at one revision; with their traces if requested."""
        parent = action_id_of(parent)
        processor = self._processor.serving(parent)
        if processor is not None:
            known = await processor.families.read(parent, self._keys, traces=traces)
            if known is not None:
                return known
        return await self._lister.list_child_actions(parent, traces=traces)

    @request
    async def get_task_action(self, action_id: ActionId | ActionIdentifier) -> StoredAction:
        """Return the present state of one action.

        Raises:
            NotFound: There is no such action.
            DecodeError: The stored value cannot be decoded.
        """
        return await self._lister.get_task_action(action_id_of(action_id))

    @request
    async def claimed_by(self, action_id: ActionId | ActionIdentifier) -> str:
        """Return which process claims an action, ``<host>/<process>``; empty for none."""
        return await claimed_by(self._store, self._keys, action_id_of(action_id))

    @property
    def images(self) -> Images:
        """The definitions of images; see :class:`~etcd_actions.images.Images`."""
        return Images(self._etcd, self._keys)

    @checks_types
    def open_claims(self, *, ttl: int = 15) -> AbstractAsyncContextManager[Claims]:
        """Open claims, by which this process claims actions that it runs.

        Args:
            ttl: Seconds after which the claims of a process that stopped responding expire.

        Raises:
            EtcdError: On entering, if etcd grants no lease.
        """
        self._check_open()
        return open_claims(
            self._etcd, self._store, self._keys, ttl=ttl, containment=self.containment
        )

    @checks_types
    def open_catalog(self, keep: float) -> Catalog:
        """Return the cached results; see :class:`~etcd_actions.catalog.Catalog`.

        Args:
            keep: Seconds that a result is kept after its last use.
        """
        return Catalog(self._etcd, self._store, keep)
