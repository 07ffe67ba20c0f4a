"""The position: every deletion up to this revision is done with.

It is kept in etcd, so that whoever starts lists there, and sees the deletions since. Only the
elected process writes it: each write compares that it still is, and that the position is the
one that it knows, so that it never goes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
import structlog
import trio

from etcd_actions.backoff import Backoff
from etcd_actions.containment import describe
from etcd_actions.errors import EtcdError
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


class _Stored(msgspec.Struct, rename="camel", frozen=True):
    """The value of the key, in JSON; etcd's own tools show the id of a cluster like this."""

    revision: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    cluster_id: str


class Position:
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
        self.saved = self._revision_in(found.kvs[0], found.revision) if found.kvs else 0
        return self.saved

    async def save(self, revision: int, fence: Compare) -> bool:
        """Write it, unless it is as high already; False where ``fence`` does not hold any more.

        Cancelled, or after an error, it may have been written all the same: asking for the
        same again is safe.

        Args:
            revision: The position, at least 1.
            fence: Holds while this process is the elected one.

        Raises:
            EtcdError: etcd did not do it, or maybe did.
        """
        if self._mod_revision is None or revision < self.saved:
            # Lower than what is known: the store may be another one.
            await self.load()
        while revision > self.saved:
            result = await self._etcd.txn(Txn([fence], [self._write(revision)]))
            if not result.succeeded:
                return False
            written = result.responses[0]
            assert isinstance(written, TxnResult)
            if written.succeeded:
                self._mod_revision = result.revision
                self.saved = revision
            else:
                # An earlier try was done after all, or somebody else has written.
                await self.load()
        return True

    async def keep(self, current: Callable[[], int], fence: Compare, *, every: float) -> None:
        """Save what ``current`` gives whenever it has moved on; returns when fenced off.

        While etcd is away it tries again, for ever. Cancelled it leaves what was saved last.

        Args:
            current: The position that can be claimed now; 0 for none.
            fence: Holds while this process is the elected one.
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

    def _write(self, revision: int) -> Txn:
        assert self._mod_revision is not None
        unchanged = Compare(
            self._key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, self._mod_revision
        )
        value = msgspec.json.encode(_Stored(revision, self._cluster_id))
        return Txn([unchanged], [Put(self._key, value)])

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
                return stored.revision
        if self._refused != kv.mod_revision:
            self._refused = kv.mod_revision
            key = kv.key.decode(errors="backslashreplace")
            _log.warning("position_unusable", key=key, revision=kv.mod_revision, reason=reason)
        return 0
