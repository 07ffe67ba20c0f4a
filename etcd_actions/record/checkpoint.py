"""The checkpoint: every deletion up to this revision is reported.

It is kept in etcd. A process that starts lists at this revision, and so receives the deletions
since. The process that finds none creates it, before its first list: so the deletions between the
first list and the first leader's work are not lost. After that only the leader writes it. Each of
its writes compares the leader's key, and the checkpoint's last known ``mod_revision``, so the
checkpoint never decreases.

The same key has the term of the last leader, and whether that term is closed: then no call of that
leader can still arrive at the run service. A leader saves an open term before its first call, so
that its successor knows how long to wait: see :meth:`Checkpoint.open_term`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, NamedTuple

import msgspec
import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import describe
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import (
    Compare,
    Etcd,
    KeyRange,
    KeyValue,
    Put,
    Txn,
    TxnResult,
)

_BACKOFF = Backoff(initial=0.2, cap=5.0)

_log = structlog.get_logger(__name__)


_Revision = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _StoredTerm(msgspec.Struct, rename="camel", frozen=True):
    """The term of a leader: the revision at which it started, its lease's seconds."""

    revision: _Revision
    ttl: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    closed: bool = False


class _Stored(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """The value of the key, in JSON.

    Attributes:
        revision: The checkpoint; 0 for none.
        cluster_id: The cluster's id in hex, as etcdctl shows it.
        term: The term of the last leader; None in a value of an older version.
    """

    revision: _Revision
    cluster_id: str
    term: _StoredTerm | None = None


class Predecessor(NamedTuple):
    """A leader whose term was not closed: its calls may still arrive.

    Attributes:
        ttl: The longest time to live, in seconds, of its lease and of those of unclosed terms
            before it; 0 if it was not saved.
        own: Whether the leader was this process, which knows its own calls.
    """

    ttl: int
    own: bool


class _FencedOff(Unavailable):
    """The compare of the leader's key failed."""


class Checkpoint:
    """The checkpoint under one key. Its methods may be called from several tasks.

    Attributes:
        saved: The revision as it was last read or written; 0 for none.
    """

    def __init__(self, etcd: Etcd, key: bytes) -> None:
        self._etcd = etcd
        self._key = key
        self._cluster_id = 0
        # The store's revision when the key was last read.
        self._newest = 0
        # The key's, when it was last read or written: None before that, 0 if it was absent.
        self._mod_revision: int | None = None
        # The mod_revision of the unusable value that was logged.
        self._refused = 0
        # The term that was read, and the one to write from now on.
        self._found_term: _StoredTerm | None = None
        self._exists = False
        self._term: _StoredTerm | None = None
        # The revisions of the terms of this process.
        self._own: set[int] = set()
        self._predecessor: Predecessor | None = None
        self.saved: int = 0

    async def load(self) -> int:
        """Read the checkpoint; 0 if there is none, or none that can be used.

        A value that cannot be decoded, or is of another store, is logged once.

        Raises:
            EtcdError: The read failed.
        """
        found = await self._etcd.range(KeyRange.of_key(self._key))
        self._cluster_id, self._newest = found.cluster_id, found.revision
        self._mod_revision = found.kvs[0].mod_revision if found.kvs else 0
        self._found_term, self._exists = None, bool(found.kvs)
        self.saved = self._revision_in(found.kvs[0], found.revision) if found.kvs else 0
        return self.saved

    async def load_or_create(self, guard: Sequence[Compare] = ()) -> int:
        """Read the checkpoint; if its key is absent, create it at the store's present revision.

        The created one has a closed term. A write that fails is not repeated: then there is no
        checkpoint until a leader saves one. After a cancellation the key may have been created.

        Args:
            guard: What must hold for the key to be created.

        Raises:
            EtcdError: A read failed.
        """
        if await self.load() or self._mod_revision:
            return self.saved
        absent = Compare.unchanged(self._key, 0)
        first = Put(self._key, first_checkpoint(self._newest, self._cluster_id))
        try:
            await self._etcd.txn(Txn([absent, *guard], [first]))
        except EtcdError as error:
            _log.debug("checkpoint_not_created", error=str(error))
        return await self.load()

    async def open_term(self, revision: int, ttl: int, fence: Compare) -> Predecessor | None:
        """Save that this process leads from now on, before its first call to the run service.

        After an error or a cancellation the write may have been applied; it may be called again.

        Args:
            revision: The revision at which the term started; it identifies the term.
            ttl: The lease's time to live, in seconds.
            fence: The compare of the leader's key.

        Returns:
            The leader before, if it did not close its term; None if it did, or there was none.

        Raises:
            EtcdError: The read or the write failed.
            Unavailable: This process is not the leader any more.
        """
        while True:
            await self.load()
            found = self._found_term
            if found is not None and found.revision == revision and not found.closed:
                # The write of an earlier call was applied; that call set the predecessor.
                return self._predecessor
            self._predecessor = self._unclosed(found)
            before = self._predecessor.ttl if self._predecessor is not None else 0
            self._own.add(revision)
            # Calls of a leader before the predecessor may arrive for as long as its lease lived.
            self._term = _StoredTerm(revision, max(ttl, before))
            if await self._write(self.saved, fence):
                return self._predecessor

    async def close_term(self, fence: Compare, revision: int = 0) -> None:
        """Save a revision, and that no call of this process can still arrive, in one write.

        After an error or a cancellation the write may have been applied.

        Args:
            fence: The compare of the leader's key.
            revision: The checkpoint, unless the saved one is higher; 0 for that one.

        Raises:
            EtcdError: The read or the write failed.
            Unavailable: This process is not the leader any more.
        """
        if self._term is None:
            return
        self._term = msgspec.structs.replace(self._term, closed=True)
        while self._found_term != self._term and not await self._write(
            max(revision, self.saved), fence
        ):
            await self.load()

    async def save(self, revision: int, fence: Compare) -> bool:
        """Write a revision, unless the saved one is as high.

        After an error or a cancellation the write may have been applied; it may be called again.

        Args:
            revision: The checkpoint, at least 1.
            fence: The compare of the leader's key.

        Returns:
            Whether this process is still the leader.

        Raises:
            EtcdError: The read or the write failed.
        """
        if self._mod_revision is None or revision < self.saved:
            # A lower revision than the saved one: the store may be another one.
            await self.load()
        while revision > self.saved:
            try:
                if not await self._write(revision, fence):
                    # The write of an earlier call was applied, or another process wrote the key.
                    await self.load()
            except _FencedOff:
                return False
        return True

    async def save_periodically(
        self, current: Callable[[], int], fence: Compare, *, every: float
    ) -> None:
        """Save the revision of ``current`` each time that it has increased.

        It returns when this process is not the leader any more. While etcd is unavailable it
        retries without limit. After a cancellation the last saved revision stays.

        Args:
            current: Returns the revision that can be saved now; 0 for none.
            fence: The compare of the leader's key.
            every: The least number of seconds between two writes.
        """
        while True:
            report = seldom(_log, "position_not_saved")
            async for attempt in retrying(_BACKOFF, on=EtcdError, report=report):
                with attempt:
                    revision = current()
                    if revision in (0, self.saved) or await self.save(revision, fence):
                        continue
                    _log.warning("position_fenced_off", position=revision)
                    return
            await trio.sleep(every)

    async def _write(self, revision: int, fence: Compare) -> bool:
        """Write revision and term; returns False if the key has changed since it was read."""
        assert self._mod_revision is not None
        unchanged = Compare.unchanged(self._key, self._mod_revision)
        term = self._term or self._found_term
        value = msgspec.json.encode(_Stored(revision, f"{self._cluster_id:x}", term))
        result = await self._etcd.txn(Txn([fence], [Txn([unchanged], [Put(self._key, value)])]))
        if not result.succeeded:
            raise _FencedOff("this process is not the leader any more")
        written = result.responses[0]
        assert isinstance(written, TxnResult)
        if written.succeeded:
            self._mod_revision = result.revision
            self._found_term = term
            self.saved = revision
        return written.succeeded

    def _unclosed(self, found: _StoredTerm | None) -> Predecessor | None:
        if found is None:
            # A value without a term is of an older version.
            return Predecessor(0, own=False) if self._exists else None
        return None if found.closed else Predecessor(found.ttl, own=found.revision in self._own)

    def _revision_in(self, kv: KeyValue, newest: int) -> int:
        reason = ""
        try:
            stored = msgspec.json.decode(kv.value, type=_Stored)
        except Exception as error:
            # Any client may have written the key: a value nested too deeply, for example.
            reason = describe(error)
        else:
            if stored.cluster_id != f"{self._cluster_id:x}":
                reason = f"it is of cluster {stored.cluster_id}, and this is {self._cluster_id:x}"
            elif stored.revision > newest:
                reason = f"it is {stored.revision}, and etcd is at {newest}"
            else:
                self._found_term = stored.term
                return stored.revision
        if self._refused != kv.mod_revision:
            self._refused = kv.mod_revision
            key = kv.key.decode(errors="backslashreplace")
            _log.warning("position_unusable", key=key, revision=kv.mod_revision, reason=reason)
        return 0


def first_checkpoint(revision: int, cluster_id: int) -> bytes:
    """The value of a checkpoint before the first leader.

    Args:
        revision: Deletions up to it are not reported: no process has watched.
        cluster_id: The id of the cluster.
    """
    return msgspec.json.encode(_Stored(revision, f"{cluster_id:x}", _StoredTerm(0, 0, closed=True)))


def merged_checkpoint(kvs: Sequence[KeyValue], *, newest: int, cluster_id: int) -> bytes | None:
    """The value of a checkpoint that continues several: as low as the lowest of them.

    It has an open term if one of them has, with the longest time to live of the open ones.

    Args:
        kvs: The keys of the checkpoints, as far as they exist. One that cannot be used counts as
            having no revision, and an open term of unknown time to live.
        newest: The revision of the store.
        cluster_id: The id of the cluster.

    Returns:
        The value; that of a single checkpoint is unchanged. None if there is none.
    """
    if len(kvs) <= 1:
        return kvs[0].value if kvs else None
    revisions: list[int] = []
    terms: list[_StoredTerm] = []
    for kv in kvs:
        stored = _usable(kv, newest, cluster_id)
        revisions.append(stored.revision)
        terms.append(stored.term or _StoredTerm(0, 0))
    # A checkpoint without a revision does not lower the result: it covers no deletion anyway.
    lowest = min((revision for revision in revisions if revision), default=0)
    term = max(terms, key=lambda each: (not each.closed, each.ttl))
    return msgspec.json.encode(_Stored(lowest, f"{cluster_id:x}", term))


def revision_in(kv: KeyValue, *, newest: int, cluster_id: int) -> int:
    """The revision of a checkpoint that a command has read; 0 if it cannot be used.

    Args:
        kv: Its key.
        newest: The revision of the store.
        cluster_id: The id of the cluster.
    """
    return _usable(kv, newest, cluster_id).revision


def _usable(kv: KeyValue, newest: int, cluster_id: int) -> _Stored:
    """The value of a checkpoint's key; one without a revision if it cannot be used."""
    stored = _Stored(0, "")
    with suppress(msgspec.MsgspecError, RecursionError, ValueError):
        stored = msgspec.json.decode(kv.value, type=_Stored)
    if stored.cluster_id != f"{cluster_id:x}" or stored.revision > newest:
        return _Stored(0, "")
    return stored
