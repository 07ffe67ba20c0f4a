"""Marks a finished action as recorded, so that it is never handled again.

The mark is the label that Flyte's own service sets, written only after the run service
accepted the ending, and only onto that ending: the write compares ``mod_revision``.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import NamedTuple

from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, LeaseNotFound, OutcomeUnknown
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    LABEL_TERMINAL_STATUS_RECORDED,
    ActionUpdate,
    ErrorState,
    Phase,
    build_action_update,
)
from etcd_actions.store import Store


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
    ALREADY = "already"
    """Somebody had written it, or this call did and lost the answer."""
    SUPERSEDED = "superseded"
    """The object says something else now, which is to be handled first."""
    GONE = "gone"
    """The object was deleted."""


class Recorder:
    """Writes marks; any number may run at the same time, in any number of processes."""

    def __init__(self, store: Store) -> None:
        self._store = store
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

    async def _mark(self, seen: KeyValue, accepted: Ending) -> MarkResult:
        while True:
            codec = codec_of(seen.value)
            value = codec.add_label(seen.value, LABEL_TERMINAL_STATUS_RECORDED, "true")
            try:
                applied, current = await self._store.compare_and_put(seen, value)
            except (OutcomeUnknown, LeaseNotFound):
                applied, current = False, await self._store.get(seen.key)
                if current is not None and current.mod_revision == seen.mod_revision:
                    raise
            if applied:
                return MarkResult.MARKED
            if current is None:
                return MarkResult.GONE
            try:
                action = codec_of(current.value).decode(current.value)
            except DecodeError:
                return MarkResult.SUPERSEDED
            update = build_action_update(action, key=current.key, revision=current.mod_revision)
            if Ending.of(update) != accepted:
                return MarkResult.SUPERSEDED
            if action.is_recorded:
                return MarkResult.ALREADY
            seen = current
