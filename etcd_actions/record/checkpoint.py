"""The position: every deletion up to this revision is done with.

It is kept in etcd, so that whoever starts lists there, and sees the deletions since. Only the
elected process writes it: each write compares that it still is, and that the position is the
one that it knows, so that it never goes back.

Beside it stands the term of the last leader, and whether that was closed: then nothing of what it
told may still arrive. A leader writes that its term is open before it tells anything, so its
successor knows how long to wait: see :meth:`Checkpoint.open_term`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import msgspec
import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import describe
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
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
    """The term of a leader: the revision at which it began, and its lease's seconds."""

    revision: _Revision
    ttl: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    closed: bool = False


class _Stored(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """The value of the key, in JSON; etcd's own tools show the id of a cluster like this.

    A revision of 0 is none. Before terms were written there was none here.
    """

    revision: _Revision
    cluster_id: str
    term: _StoredTerm | None = None


class Predecessor(NamedTuple):
    """A leader whose term was not closed: what it told may still arrive.

    Attributes:
        ttl: For how many seconds its lease, or that of another one before it, may have lived
            when it lost it; 0 where it did not say.
        own: Whether it was this very process, which knows of its calls by itself.
    """

    ttl: int
    own: bool


class _FencedOff(Unavailable):
    """The fence does not hold any more."""


class Checkpoint:
    """The position under one key. Its calls may be made from several tasks.

    Attributes:
        saved: As it was last read or written; 0 for none.
    """

    def __init__(self, etcd: Etcd, key: bytes) -> None:
        self._etcd = etcd
        self._key = key
        self._cluster_id = ""
        # Of the key as it was last read or written; None before, 0 where it is absent.
        self._mod_revision: int | None = None
        self._refused = 0
        # As it was found, and as it is written from now on.
        self._found_term: _StoredTerm | None = None
        self._unsaid = False
        self._term: _StoredTerm | None = None
        self._own: set[int] = set()
        self._predecessor: Predecessor | None = None
        self.saved = 0

    async def load(self) -> int:
        """Read it; 0 where there is none, or one that cannot be used.

        A value that cannot be read, or is of another store, is logged once.

        Raises:
            EtcdError: etcd could not be asked.
        """
        found = await self._etcd.range(KeyRange.of_key(self._key))
        self._cluster_id = f"{found.cluster_id:x}"
        self._mod_revision = found.kvs[0].mod_revision if found.kvs else 0
        self._found_term, self._unsaid = None, bool(found.kvs)
        self.saved = self._revision_in(found.kvs[0], found.revision) if found.kvs else 0
        return self.saved

    async def open_term(self, revision: int, ttl: int, fence: Compare) -> Predecessor | None:
        """Note that this process leads from now on, and may tell what nobody can take back.

        After an error, or cancelled, it may be called again.

        Args:
            revision: When the term began: no other one has the same.
            ttl: Its lease's time to live, in seconds.
            fence: Holds while this process leads.

        Returns:
            Who led before, where it did not close its term; None where there was nobody, or
            it did.

        Raises:
            EtcdError: etcd did not do it, or maybe did.
            Unavailable: This process does not lead any more.
        """
        while True:
            await self.load()
            found = self._found_term
            if found is not None and found.revision == revision:
                # An earlier try was done after all; it remembered what it found.
                return self._predecessor
            self._predecessor = self._unclosed(found)
            before = self._predecessor.ttl if self._predecessor is not None else 0
            self._own.add(revision)
            # What an older one told may arrive for as long as that one says.
            self._term = _StoredTerm(revision, max(ttl, before))
            if await self._write(self.saved, fence):
                return self._predecessor

    async def close_term(self, fence: Compare) -> None:
        """Note that nothing of what this process told can arrive any more.

        Raises:
            EtcdError: etcd did not do it, or maybe did.
            Unavailable: This process does not lead any more.
        """
        if self._term is None:
            return
        self._term = msgspec.structs.replace(self._term, closed=True)
        while self._found_term != self._term and not await self._write(self.saved, fence):
            await self.load()

    async def save(self, revision: int, fence: Compare) -> bool:
        """Write it, unless it is as high already; False where ``fence`` does not hold any more.

        Cancelled, or after an error, it may have been written all the same: asking for the
        same again is safe.

        Args:
            revision: The position, at least 1.
            fence: Holds while this process leads.

        Raises:
            EtcdError: etcd did not do it, or maybe did.
        """
        if self._mod_revision is None or revision < self.saved:
            # Lower than what is known: the store may be another one.
            await self.load()
        while revision > self.saved:
            try:
                if not await self._write(revision, fence):
                    # An earlier try was done after all, or somebody else has written.
                    await self.load()
            except _FencedOff:
                return False
        return True

    async def keep(self, current: Callable[[], int], fence: Compare, *, every: float) -> None:
        """Save what ``current`` gives whenever it has moved on; returns when fenced off.

        While etcd is away it tries again, for ever. Cancelled it leaves what was saved last.

        Args:
            current: The position that can be claimed now; 0 for none.
            fence: Holds while this process leads.
            every: Seconds between two writes, at least.
        """
        failures = 0
        while True:
            revision = current()
            try:
                if revision not in (0, self.saved) and not await self.save(revision, fence):
                    _log.warning("position_fenced_off", position=revision)
                    return
            except EtcdError as error:
                failures += 1
                if failures & (failures - 1) == 0:
                    _log.warning("position_not_saved", error=str(error), failures=failures)
            else:
                failures = 0
            await trio.sleep(max(every, _BACKOFF.delay(failures) if failures else 0))

    async def _write(self, revision: int, fence: Compare) -> bool:
        """Write both; False where the key is not what is known of it."""
        assert self._mod_revision is not None
        unchanged = Compare(
            self._key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, self._mod_revision
        )
        term = self._term or self._found_term
        value = msgspec.json.encode(_Stored(revision, self._cluster_id, term))
        result = await self._etcd.txn(Txn([fence], [Txn([unchanged], [Put(self._key, value)])]))
        if not result.succeeded:
            raise _FencedOff("this process does not lead any more")
        written = result.responses[0]
        assert isinstance(written, TxnResult)
        if written.succeeded:
            self._mod_revision = result.revision
            self._found_term = term
            self.saved = revision
        return written.succeeded

    def _unclosed(self, found: _StoredTerm | None) -> Predecessor | None:
        if found is None:
            # A value without a term was written by somebody who says nothing of it.
            return Predecessor(0, own=False) if self._unsaid else None
        return None if found.closed else Predecessor(found.ttl, own=found.revision in self._own)

    def _revision_in(self, kv: KeyValue, newest: int) -> int:
        reason = ""
        try:
            stored = msgspec.json.decode(kv.value, type=_Stored)
        except Exception as error:
            # The key may hold anything: a value nested too deeply, say.
            reason = describe(error)
        else:
            if stored.cluster_id != self._cluster_id:
                reason = f"it is of cluster {stored.cluster_id}, and this is {self._cluster_id}"
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
