"""Marks a finished action as recorded, so that it is never handled again.

The mark is the label that Flyte's own service sets, written only after the run service
accepted the ending, and only onto that ending: the write compares ``mod_revision``. The same
write lets the object go: it takes our finalizer away, attaches the lease that will expire it
where recorded actions are kept for a time, or deletes it where its deletion was asked for and
nobody else holds it.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import NamedTuple, Protocol

from etcd_actions.codecs import Released, codec_of
from etcd_actions.errors import DecodeError, LeaseNotFound, OutcomeUnknown
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    FINALIZER_RECORD,
    LABEL_TERMINAL_STATUS_RECORDED,
    ActionUpdate,
    ErrorState,
    Phase,
    build_action_update,
)
from etcd_actions.store import CasResult, Store


class Ending(NamedTuple):
    """What the run service accepted: the mark may go only onto an object that says the same."""

    uid: str
    phase: Phase
    attempts: int
    output_uri: str
    error: ErrorState | None
    signal: str

    @classmethod
    def of(cls, update: ActionUpdate) -> Ending:
        """The ending that an update tells."""
        return cls(
            update.uid,
            update.phase,
            update.attempts,
            update.output_uri,
            update.error,
            update.signal_base64,
        )


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
        if action.is_recorded and action.is_terminal:
            await self._write(seen, _released(seen))

    async def _mark(self, seen: KeyValue, accepted: Ending) -> MarkResult:
        while True:
            released = _released(seen)
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
            update = build_action_update(action, key=current.key, revision=current.mod_revision)
            if Ending.of(update) != accepted:
                return MarkResult.SUPERSEDED
            if action.is_recorded:
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


def _released(seen: KeyValue) -> Released:
    return codec_of(seen.value).release(
        seen.value,
        LABEL_TERMINAL_STATUS_RECORDED,
        "true",
        FINALIZER_RECORD,
        key=seen.key,
        revision=seen.mod_revision,
    )
