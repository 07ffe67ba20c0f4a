"""Computes the space to free in etcd, so that terminal runs never fill the quota.

A deletion frees nothing before the next compaction, which this package does not start. So after a
deletion no more is requested until history is compacted beyond it.
"""

from __future__ import annotations

from typing import Final

import structlog

from etcd_actions.errors import Compacted, FutureRevision, PermissionDenied
from etcd_actions.etcd.api import Etcd, KeyRange

_LEAST_QUOTA: Final = 1 << 20

_log = structlog.get_logger(__name__)


class Space:
    """The share of an etcd's quota that may be in use.

    Args:
        etcd: The connection.
        key: A key that may be read.
        share: The share of the quota, above 0 and at most 1.
        quota: The quota in bytes; None to read it from etcd, which reports it from 3.6 on.
    """

    def __init__(self, etcd: Etcd, key: bytes, share: float, quota: int | None = None) -> None:
        self._etcd = etcd
        self._key = key
        self._share = share
        self._quota = quota
        self._requested_at = 0
        self._logged: set[str] = set()

    async def excess(self) -> int:
        """The number of bytes in use beyond the share; 0 if unknown.

        The bytes in use include the history since the last compaction.

        Raises:
            EtcdError: etcd could not be read.
        """
        try:
            status = await self._etcd.status()
        except PermissionDenied as error:
            self._warn_once("share_not_enforced", reason=str(error))
            return 0
        quota = self._quota or status.db_size_quota
        if quota < _LEAST_QUOTA:
            self._warn_once(
                "share_not_enforced",
                reason="this etcd does not report its quota: give --etcd-quota",
            )
            return 0
        excess = status.db_size_in_use - int(quota * self._share)
        if excess <= 0:
            self._logged.discard("share_exceeded")
            return 0
        self._warn_once(
            "share_exceeded",
            in_use=status.db_size_in_use,
            quota=quota,
            share=self._share,
            free=excess,
        )
        if not self._requested_at:
            # Only a compaction shows how much of it is history.
            self._requested_at = status.revision
        return excess if await self._is_compacted() else 0

    async def freed(self) -> None:
        """Note that the runs were deleted: no more is requested before the next compaction."""
        self._requested_at = (await self._etcd.range(KeyRange.of_key(self._key))).revision

    async def _is_compacted(self) -> bool:
        """Whether a compaction has passed the last request."""
        try:
            await self._etcd.range(KeyRange.of_key(self._key), revision=self._requested_at)
        except (Compacted, FutureRevision):
            # A restored etcd has received no request.
            return True
        return False

    def _warn_once(self, event: str, **values: object) -> None:
        if event not in self._logged:
            self._logged.add(event)
            _log.warning(event, **values)
