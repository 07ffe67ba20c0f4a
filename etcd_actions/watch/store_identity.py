"""Whether a store is still the one that was watched, and the known bugs of its version.

A store can be replaced behind the same address, by a restore or a wiped directory. The cluster id,
the revision and two reference keys detect that: the newest put and the newest delete that were
delivered, read back at their own revisions.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from etcd_actions.errors import Compacted, FutureRevision, InvalidRequest, PermissionDenied
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue
from etcd_actions.etcd.versions import (
    EtcdVersion,
    free_of_known_bugs,
    has_reliable_progress,
    known_bugs,
)
from etcd_actions.watch.change import Change

_logged: set[EtcdVersion] = set()
"""The versions whose known bugs this process has logged: a process has several reflectors."""

_log = structlog.get_logger(__name__)


class StoreIdentity:
    """Detects that etcd's store was replaced, and reads its version.

    Args:
        etcd: The connection.
        first_key: A key that is read for the store's revision.

    Attributes:
        suspicion: Why all keys have to be listed again; empty if it is the same store.
            ``replaced``: the cluster id or a reference key differs. ``went_back``: the store's
            revision is lower than before. ``unverifiable``: a compaction took the history of the
            reference keys. ``failed``: the reflector could not process a response.
        reports_progress: Whether the progress notifications of the store's version are reliable.
    """

    def __init__(self, etcd: Etcd, first_key: bytes) -> None:
        self._etcd = etcd
        self._first_key = KeyRange.of_key(first_key)
        self._cluster_id = 0
        self._last_put: KeyValue | None = None
        self._last_delete: KeyValue | None = None
        self.suspicion = ""
        self.reports_progress = False

    def forget_references(self) -> None:
        """Drop the reference keys: the changes that are delivered next provide others."""
        self._last_put = self._last_delete = None

    async def verify(self, done: int) -> int:
        """Check whether this still is the store that was watched; sets :attr:`suspicion`.

        Args:
            done: The highest revision up to which changes were delivered.

        Returns:
            The store's revision.

        Raises:
            EtcdError: A read failed. :attr:`suspicion` has the results of the reads before it.
        """
        newest = await self._etcd.range(self._first_key, keys_only=True)
        if self._cluster_id and newest.cluster_id != self._cluster_id:
            self.suspicion = "replaced"
        elif newest.revision < done:
            self.suspicion = "went_back"
        elif self.suspicion in ("", "unverifiable", "failed"):
            self.suspicion = await self._detect_restore() or self.suspicion
        self._cluster_id = newest.cluster_id
        try:
            version = EtcdVersion.parse((await self._etcd.status()).version)
        except (PermissionDenied, InvalidRequest, ValueError):
            # A user without permission, a proxy without this method, an unknown version.
            self.reports_progress = False
        else:
            self.reports_progress = has_reliable_progress(version)
            _log_known_bugs(version)
        return newest.revision

    async def _detect_restore(self) -> str:
        """Read the reference keys at their revisions; returns the suspicion, empty for none."""
        put, delete = self._last_put, self._last_delete
        try:
            if delete is not None:
                key, revision = KeyRange.of_key(delete.key), delete.mod_revision
                after = await self._etcd.range(key, revision=revision, keys_only=True)
                before = await self._etcd.range(key, revision=revision - 1, keys_only=True)
                if after.kvs or not before.kvs:
                    return "replaced"
        except FutureRevision:
            return "went_back"
        except Compacted:
            # A delete without history proves nothing: the put decides.
            delete = None
        if put is None:
            return "" if delete is not None or self._last_delete is None else "unverifiable"
        key = KeyRange.of_key(put.key)
        try:
            return (
                ""
                if (await self._etcd.range(key, revision=put.mod_revision)).kvs == [put]
                else "replaced"
            )
        except FutureRevision:
            return "went_back"
        except Compacted:
            # A put that is unchanged at the newest revision proves as much; else only a list can.
            return "" if (await self._etcd.range(key)).kvs == [put] else "unverifiable"

    def remember(self, changes: Sequence[Change]) -> None:
        """Keep the newest put and the newest delete as reference keys.

        The revisions of ``changes`` are in no order: ranges are watched side by side, and a list is
        sorted by key.
        """
        put = delete = None
        newest_put = self._last_put.mod_revision if self._last_put else 0
        newest_delete = self._last_delete.mod_revision if self._last_delete else 0
        for change in changes:
            kv = change.kv
            revision = kv.mod_revision
            if kv.version:
                if revision > newest_put:
                    put, newest_put = kv, revision
            elif revision > newest_delete and not change.synthesised:
                delete, newest_delete = kv, revision
        if put is not None:
            self._last_put = put.plain()
        if delete is not None:
            self._last_delete = delete


def _log_known_bugs(version: EtcdVersion) -> None:
    """Log that a version has known bugs, once a process; `doctor` lists them."""
    if version in _logged:
        return
    _logged.add(version)
    if bugs := known_bugs(version):
        log = _log.info if all(bug.averted for bug in bugs) else _log.warning
        log(
            "etcd_has_known_bugs",
            version=str(version),
            bugs=len(bugs),
            fixed_in=str(free_of_known_bugs(version)),
            see="etcd-actions doctor",
        )
