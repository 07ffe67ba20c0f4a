"""Writes the mark: the label that an action's terminal state is recorded.

The mark is the label that Flyte's own service sets, and an annotation with the terminal state that
it is about (:mod:`etcd_actions.model.mark`). It is written only after the run service accepted that
state, and only onto that state: the write compares ``mod_revision``. The same transaction releases
the object: it removes our finalizer and attaches the lease that expires recorded actions, or it
deletes the object if its deletion was requested and no other finalizer remains. It also writes the
companions, the records of our own run service.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from etcd_actions.codecs import NO_TEXTS, Released, codec_of
from etcd_actions.errors import (
    DecodeError,
    InvalidRequest,
    LeaseNotFound,
    OutcomeUnknown,
    RequestTooLarge,
)
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    ACTION_TYPE_TRACE,
    ANNOTATION_RECORDED,
    FINALIZER_RECORD,
    LABEL_TERMINAL_STATUS_RECORDED,
    ActionUpdate,
    ErrorState,
    Phase,
    build_action_update,
    details_digest,
    mark_text,
    subject_digest,
)
from etcd_actions.model.mark import NOTHING
from etcd_actions.run_service.protocol import MarkCompanions
from etcd_actions.storage.store import CasResult, KeyChange, Store

_TRIES: Final = 3
"""Failed transactions after which the companions are written separately."""


class TerminalState(NamedTuple):
    """A terminal state that the run service accepted. Only an object in this state is marked."""

    uid: str
    phase: Phase
    attempts: int
    output_uri: str
    error: ErrorState | None
    signal: str
    subject: str
    """A digest of the action's identity."""
    details: str
    """A digest of error, signal and, of a trace, output."""

    @classmethod
    def of(cls, update: ActionUpdate) -> TerminalState:
        """The terminal state in an update."""
        named = update.action_id
        return cls(
            update.uid,
            update.phase,
            update.attempts,
            update.output_uri,
            update.error,
            update.signal_base64,
            subject_digest(named.project, named.domain, named.run, named.name, update.uid),
            details_digest(
                update.error,
                update.signal_base64,
                update.output_uri if update.action_type == ACTION_TYPE_TRACE else "",
            ),
        )

    def mark(self, create_revision: int) -> str:
        """The annotation's text, for an object with this ``create_revision``."""
        return mark_text(self.phase, self.attempts, create_revision, self.subject, self.details)


class MarkResult(enum.Enum):
    """How an attempt to mark ended."""

    MARKED = "marked"
    """This call wrote the mark."""
    DELETED = "deleted"
    """This call deleted the object: its deletion was requested, and our finalizer was the last."""
    ALREADY = "already"
    """Another process wrote the mark, or this call did and its answer was lost."""
    SUPERSEDED = "superseded"
    """The object has another state, which has to be handled first."""
    GONE = "gone"
    """The object was deleted."""


class LeaseSource(Protocol):
    """Provides the leases that expire recorded actions."""

    async def lease(self) -> int:
        """The lease for an action that is marked now."""

    def lost(self, lease: int) -> None:
        """A lease does not exist any more."""


class Recorder:
    """Writes marks. Any number of calls may run at a time, in any number of processes.

    Args:
        store: Writes to etcd.
        leases: Provides the leases that expire recorded actions; by default none expire.
    """

    def __init__(self, store: Store, leases: LeaseSource | None = None) -> None:
        self._store = store
        self._leases = leases
        self._results: Counter[str] = Counter()

    def statistics(self) -> dict[str, int]:
        """Number of calls by :class:`MarkResult`."""
        return dict(self._results)

    async def mark(
        self, seen: KeyValue, accepted: TerminalState, companions: MarkCompanions | None = None
    ) -> MarkResult:
        """Mark an object as recorded, if it still has the state that was accepted.

        A concurrent change of the object is never overwritten: the object is read again and
        compared. If the answer of the write is lost, the object is read, too. If it is unchanged,
        the error is raised, and the same call may be repeated.

        Args:
            seen: The object as it was read.
            accepted: The state that the run service accepted.
            companions: Keys to write in the same transaction. They are written separately, before
                the mark, in three cases: other writers changed the object three times, the
                transaction is too large, or another process wrote the mark.

        Raises:
            EtcdError: The mark was not written, as for :class:`~etcd_actions.errors.NoSpace`. The
                companions may have been written separately.
            RunServiceError: The companions cannot be stored.
        """
        result = await self._mark(seen, accepted, companions)
        self._results[result.value] += 1
        return result

    def needs_lease(self, lease: int) -> bool:
        """Whether a recorded object with this lease (0 for none) has to get one."""
        return lease == 0 and self._leases is not None

    async def release(self, seen: KeyValue) -> None:
        """Release a recorded object that is not released yet; the module's text says how.

        It can still have our finalizer if another service wrote the mark, and it can lack the lease
        if a write by an API server detached that. An object that changed during the call is left
        alone: the watch delivers its newer state.

        Raises:
            DecodeError: The object cannot be decoded.
            EtcdError: The write failed; it may be repeated.
        """
        action = codec_of(seen.value).decode(seen.value, key=seen.key, revision=seen.mod_revision)
        if action.state(seen.create_revision).recorded:
            await self._write(seen, _released(seen))

    async def disown(self, seen: KeyValue) -> None:
        """Note on an object that is not terminal that its label is stray: of no terminal state.

        A user set the label, or Flyte's service copied it from a parent that was terminal. Without
        the note the label would count for the coming terminal state, which would never be reported.
        A newer state of the incarnation, also a terminal one, gets the note, too, unless it has a
        mark.

        Raises:
            DecodeError: The object cannot be decoded.
            EtcdError: The write failed; it may be repeated.
        """
        current: KeyValue | None = seen
        while current is not None and current.create_revision == seen.create_revision:
            codec = codec_of(current.value)
            key, revision = current.key, current.mod_revision
            metadata = codec.decode(current.value, key=key, revision=revision).metadata
            labelled = metadata.labels.get(LABEL_TERMINAL_STATUS_RECORDED) == "true"
            if not labelled or ANNOTATION_RECORDED in metadata.annotations:
                return
            noted = _released(current, {ANNOTATION_RECORDED: NOTHING}, finalizer=None)
            applied, current = await self._store.compare_and_put(current, noted.value)
            if applied:
                return

    async def _mark(
        self, seen: KeyValue, accepted: TerminalState, companions: MarkCompanions | None
    ) -> MarkResult:
        mark = {ANNOTATION_RECORDED: accepted.mark(seen.create_revision)}
        tries = _TRIES
        while True:
            released = _released(seen, mark)
            changes = () if companions is None else companions.changes
            try:
                applied, current = await self._write(seen, released, changes)
            except (OutcomeUnknown, LeaseNotFound):
                applied, current = False, await self._store.get(seen.key)
                if current is not None and current.mod_revision == seen.mod_revision:
                    raise
            except (InvalidRequest, RequestTooLarge):
                if companions is None:
                    raise
                await companions.write()
                companions = None
                continue
            if applied:
                return MarkResult.DELETED if released.delete else MarkResult.MARKED
            result = _why_not(seen, current, accepted)
            if result is None and current is not None:
                tries -= 1
                if companions is None and current.mod_revision == seen.mod_revision:
                    # The write failed though the object is as it was read.
                    raise DecodeError(
                        "it cannot be marked", key=current.key, revision=current.mod_revision
                    )
                seen = current
            if companions is not None and (result is not None or not tries):
                await companions.write()
                companions = None
            if result is not None:
                return result

    async def _write(
        self, seen: KeyValue, released: Released, companions: Sequence[KeyChange] = ()
    ) -> CasResult:
        store = self._store
        if released.delete:
            return await store.compare_and_delete(seen, companions=companions)
        # A lease expires an object with finalizers, too: attach it when only ours remained.
        if self._leases is None or seen.lease or released.held:
            return await store.compare_and_put(seen, released.value, companions=companions)
        while True:
            lease = await self._leases.lease()
            try:
                return await store.compare_and_put(
                    seen, released.value, lease=lease, companions=companions
                )
            except LeaseNotFound:
                self._leases.lost(lease)


def _why_not(
    seen: KeyValue, current: KeyValue | None, accepted: TerminalState
) -> MarkResult | None:
    """The result for an object that must not be marked; None if it must be."""
    if current is None:
        return MarkResult.GONE
    if current.create_revision != seen.create_revision:
        # Another incarnation, even with the same uid: the run service did not accept its state.
        return MarkResult.SUPERSEDED
    try:
        action = codec_of(current.value).decode(current.value)
    except DecodeError:
        return MarkResult.SUPERSEDED
    update = build_action_update(
        action,
        key=current.key,
        revision=current.mod_revision,
        create_revision=current.create_revision,
    )
    if TerminalState.of(update) != accepted:
        return MarkResult.SUPERSEDED
    return MarkResult.ALREADY if update.recorded else None


def _released(
    seen: KeyValue, mark: Mapping[str, str] = NO_TEXTS, finalizer: str | None = FINALIZER_RECORD
) -> Released:
    return codec_of(seen.value).release(
        seen.value,
        LABEL_TERMINAL_STATUS_RECORDED,
        "true",
        finalizer,
        annotations=mark,
        key=seen.key,
        revision=seen.mod_revision,
    )
