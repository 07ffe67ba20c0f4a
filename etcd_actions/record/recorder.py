"""Marks a finished action as recorded, so that it is never handled again.

The mark is the label that Flyte's own service sets, and an annotation that says which ending
it is about (:mod:`etcd_actions.model.mark`). It is written only after the run service
accepted the ending, and only onto that ending: the write compares ``mod_revision``. The same
write lets the object go: it takes our finalizer away, attaches the lease that will expire it
where recorded actions are kept for a time, or deletes it where its deletion was asked for and
nobody else holds it.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from etcd_actions.codecs import NO_TEXTS, Released, codec_of
from etcd_actions.errors import DecodeError, LeaseNotFound, OutcomeUnknown
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
from etcd_actions.storage.store import CasResult, Store


class Ending(NamedTuple):
    """What the run service accepted: the mark may go only onto an object that says the same."""

    uid: str
    phase: Phase
    attempts: int
    output_uri: str
    error: ErrorState | None
    signal: str
    subject: str
    """A digest of which action it is."""
    details: str
    """A digest of what the mark says besides phase and attempt."""

    @classmethod
    def of(cls, update: ActionUpdate) -> Ending:
        """The ending that an update tells."""
        which = update.action_id
        return cls(
            update.uid,
            update.phase,
            update.attempts,
            update.output_uri,
            update.error,
            update.signal_base64,
            subject_digest(which.project, which.domain, which.run, which.name, update.uid),
            details_digest(
                update.error,
                update.signal_base64,
                update.output_uri if update.action_type == ACTION_TYPE_TRACE else "",
            ),
        )

    def mark(self, create_revision: int) -> str:
        """What the annotation says of it, on an object that was created then."""
        return mark_text(self.phase, self.attempts, create_revision, self.subject, self.details)


class MarkResult(enum.Enum):
    """How an attempt to mark ended."""

    MARKED = "marked"
    """This call wrote the mark."""
    DELETED = "deleted"
    """This call deleted the object: that had been asked for, and we were the last to hold it."""
    ALREADY = "already"
    """Somebody had written it, or this call did and lost the answer."""
    SUPERSEDED = "superseded"
    """The object says something else now, which is to be handled first."""
    GONE = "gone"
    """The object was deleted."""


class Leases(Protocol):
    """Where the leases come from that expire what is recorded."""

    async def lease(self) -> int:
        """The lease of what is marked now."""
        ...

    def lost(self, lease: int) -> None:
        """A lease is not there any more."""
        ...


class Recorder:
    """Writes marks; any number may run at the same time, in any number of processes.

    Args:
        store: Where to write.
        leases: What expires recorded actions; by default nothing does.
    """

    def __init__(self, store: Store, leases: Leases | None = None) -> None:
        self._store = store
        self._leases = leases
        self._results: Counter[str] = Counter()

    def statistics(self) -> dict[str, int]:
        """Number of calls by :class:`MarkResult`."""
        return dict(self._results)

    async def mark(self, seen: KeyValue, accepted: Ending) -> MarkResult:
        """Mark the object ``seen`` as recorded, if it still ends as ``accepted``.

        Whoever changed the object meanwhile keeps the change: on a conflict it is
        looked at again. When an answer is lost the object is read: it may be marked. If not,
        the error is raised, and the same write may be tried again: it compares the revision,
        so only one can land.

        Raises:
            EtcdError: etcd did not do it, such as
                :class:`~etcd_actions.errors.NoSpace`; the mark is still to be made.
        """
        result = await self._mark(seen, accepted)
        self._results[result.value] += 1
        return result

    def wants_lease(self, lease: int) -> bool:
        """Whether a recorded object with this lease, 0 for none, is to get one."""
        return lease == 0 and self._leases is not None

    async def maintain(self, seen: KeyValue) -> None:
        """Let go of an object that is recorded, as its mark should have.

        Our finalizer may be there because another service wrote the mark; the lease may be
        gone because a write by an API server detached it. An object that changes meanwhile
        is left alone: its newer state comes by the watch.

        Raises:
            DecodeError: It cannot be read.
            EtcdError: etcd did not do it; it may be tried again.
        """
        action = codec_of(seen.value).decode(seen.value, key=seen.key, revision=seen.mod_revision)
        if action.state(seen.create_revision).recorded:
            await self._write(seen, _released(seen))

    async def disown(self, seen: KeyValue) -> None:
        """Note that the label on an object which goes on is about no ending.

        Somebody set it, or Flyte's service passed it on from a parent that was over. Without
        the note it would count for the ending that is still to come, which nobody would be
        told of. What the object became meanwhile, an ending too, gets the note all the same,
        unless it is another one, or has a mark.

        Raises:
            DecodeError: It cannot be read.
            EtcdError: etcd did not do it; it may be tried again.
        """
        current: KeyValue | None = seen
        while current is not None and current.create_revision == seen.create_revision:
            codec = codec_of(current.value)
            metadata = codec.decode(
                current.value, key=current.key, revision=current.mod_revision
            ).metadata
            labelled = metadata.labels.get(LABEL_TERMINAL_STATUS_RECORDED) == "true"
            if not labelled or ANNOTATION_RECORDED in metadata.annotations:
                return
            noted = codec.release(
                current.value,
                LABEL_TERMINAL_STATUS_RECORDED,
                "true",
                None,
                annotations={ANNOTATION_RECORDED: NOTHING},
                key=current.key,
                revision=current.mod_revision,
            )
            applied, current = await self._store.compare_and_put(current, noted.value)
            if applied:
                return

    async def _mark(self, seen: KeyValue, accepted: Ending) -> MarkResult:
        mark = {ANNOTATION_RECORDED: accepted.mark(seen.create_revision)}
        while True:
            released = _released(seen, mark)
            try:
                applied, current = await self._write(seen, released)
            except (OutcomeUnknown, LeaseNotFound):
                applied, current = False, await self._store.get(seen.key)
                if current is not None and current.mod_revision == seen.mod_revision:
                    raise
            if applied:
                return MarkResult.DELETED if released.delete else MarkResult.MARKED
            if current is None:
                return MarkResult.GONE
            if current.create_revision != seen.create_revision:
                # Another object, whatever its uid is: the run service did not accept its ending.
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
            if Ending.of(update) != accepted:
                return MarkResult.SUPERSEDED
            if update.recorded:
                return MarkResult.ALREADY
            if current.mod_revision == seen.mod_revision:
                # The label is there for the one who writes it, and not for those who read.
                raise DecodeError(
                    "it cannot be marked", key=current.key, revision=current.mod_revision
                )
            seen = current

    async def _write(self, seen: KeyValue, released: Released) -> CasResult:
        if released.delete:
            return await self._store.compare_and_delete(seen)
        # A lease asks nobody: what others hold, they have to let go before it gets one.
        if self._leases is None or seen.lease or released.held:
            return await self._store.compare_and_put(seen, released.value)
        while True:
            lease = await self._leases.lease()
            try:
                return await self._store.compare_and_put(seen, released.value, lease=lease)
            except LeaseNotFound:
                self._leases.lost(lease)


def _released(seen: KeyValue, mark: Mapping[str, str] = NO_TEXTS) -> Released:
    return codec_of(seen.value).release(
        seen.value,
        LABEL_TERMINAL_STATUS_RECORDED,
        "true",
        FINALIZER_RECORD,
        annotations=mark,
        key=seen.key,
        revision=seen.mod_revision,
    )
