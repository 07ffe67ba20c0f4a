"""The delivered revision of each key: a reflector compares its lists with them.

A sink with an index of its own notes each change there when it accepts it, and the reflector uses
that index (:class:`etcd_actions.follow.Index`). For all other sinks :class:`NotingSink` keeps the
revisions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import length_hint
from typing import Protocol

from etcd_actions.etcd.api import KeyRange
from etcd_actions.watch.change import Change


class DeliveredRevisions(Protocol):
    """The keys that were delivered and not deleted since."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...

    def revision_of(self, key: bytes, /) -> int:
        """The ``mod_revision`` that was delivered last; 0 for a key that is not known.

        Negative if the key's state has to be delivered again.
        """

    def expected_in(self, keys: KeyRange, revision: int, /) -> Collection[bytes]:
        """Keys that the sink's readers got from another read than the watch, up to a revision.

        A list without such a key delivers its deletion, as for a delivered key.
        """

    def redeliver_all(self) -> None:
        """Make each revision negative: the state, or the deletion, of each key is delivered."""


class Sink(Protocol):
    """Receives the changes."""

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Accept changes, in order. Must not fail."""

    async def wait_list_capacity(self) -> None:
        """Return when there is capacity for another page of a list."""

    async def wait_stream_capacity(self) -> None:
        """Return at once; at a hard limit, when there is capacity again."""


class NotingSink:
    """Notes the revisions of the changes that a sink accepted.

    Args:
        sink: Receives the changes.
        earlier: Keys that an earlier reflector delivered: they are delivered again.
    """

    def __init__(self, sink: Sink, earlier: Mapping[bytes, int] | None = None) -> None:
        self._sink = sink
        self._revisions = {key: -revision for key, revision in (earlier or {}).items()}

    def __len__(self) -> int:
        return len(self._revisions)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._revisions)

    def revision_of(self, key: bytes, /) -> int:
        """See :class:`DeliveredRevisions`."""
        return self._revisions.get(key, 0)

    def expected_in(self, _keys: KeyRange, _revision: int, /) -> Collection[bytes]:
        """See :class:`DeliveredRevisions`."""
        return ()

    def redeliver_all(self) -> None:
        """See :class:`DeliveredRevisions`."""
        self._revisions = {key: -abs(revision) for key, revision in self._revisions.items()}

    def dispatch(self, changes: Sequence[Change], /) -> None:
        """Deliver changes to the sink, and note those that it certainly accepted.

        If the sink fails at a change, that key is delivered again by the next list. The changes
        after it are not noted, so that list finds them, too.
        """
        batch = _Batch(changes)
        try:
            self._sink.dispatch(batch)
        except BaseException:
            read = batch.taken
            self._note(batch[: max(0, read - 1)])
            if read:
                doubtful = batch[read - 1]
                before = self._revisions.get(doubtful.key, doubtful.mod_revision)
                self._revisions[doubtful.key] = -abs(before)
            raise
        self._note(changes)

    async def wait_list_capacity(self) -> None:
        """See :class:`Sink`."""
        await self._sink.wait_list_capacity()

    async def wait_stream_capacity(self) -> None:
        """See :class:`Sink`."""
        await self._sink.wait_stream_capacity()

    def _note(self, changes: Sequence[Change]) -> None:
        revisions = self._revisions
        for change in changes:
            kv = change.kv
            if kv.version:
                revisions[kv.key] = kv.mod_revision
            else:
                revisions.pop(kv.key, None)


class _Batch(list[Change]):
    """Changes for a sink; counts how many the sink has read."""

    __slots__ = ("_taking",)

    def __init__(self, changes: Sequence[Change]) -> None:
        super().__init__(changes)
        self._taking: Iterator[Change] | None = None

    def __iter__(self) -> Iterator[Change]:
        iterator = super().__iter__()
        if self._taking is None:
            self._taking = iterator
        return iterator

    @property
    def taken(self) -> int:
        """The number of changes that the sink has read. It may have failed at the last of these."""
        return 0 if self._taking is None else len(self) - length_hint(self._taking)
