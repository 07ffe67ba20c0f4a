"""Says how much of etcd's space has to be freed, so that finished runs never fill it.

A deletion frees nothing by itself: that is done by the compaction that follows, which others see
to. So what was asked for once is not asked for again before history was compacted beyond it.
"""

from __future__ import annotations

from typing import Final

import structlog

from etcd_actions.errors import Compacted, FutureRevision, PermissionDenied
from etcd_actions.etcd.api import Etcd, KeyRange

_LEAST_QUOTA: Final = 1 << 20

_log = structlog.get_logger(__name__)


class Space:
    """How much of an etcd's quota may be in use.

    Args:
        etcd: The connection.
        key: A key that may be read.
        share: The part of the quota, above 0 and at most 1.
        quota: Its bytes; None for what etcd says, as it does from 3.6 on.
    """

    def __init__(self, etcd: Etcd, key: bytes, share: float, quota: int | None = None) -> None:
        self._etcd = etcd
        self._key = key
        self._share = share
        self._quota = quota
        self._asked_at = 0
        self._said: set[str] = set()

    async def excess(self) -> int:
        """How many bytes are in use beyond the share; 0 where that cannot be told.

        Of what is in use the history since the last compaction is a part.

        Raises:
            EtcdError: etcd could not be asked.
        """
        try:
            status = await self._etcd.status()
        except PermissionDenied as error:
            self._say("share_not_enforced", reason=str(error))
            return 0
        quota = self._quota or status.db_size_quota
        if quota < _LEAST_QUOTA:
            self._say(
                "share_not_enforced",
                reason="this etcd does not say what its quota is: give --etcd-quota",
            )
            return 0
        excess = status.db_size_in_use - int(quota * self._share)
        if excess <= 0:
            self._said.discard("share_exceeded")
            return 0
        self._say(
            "share_exceeded",
            in_use=status.db_size_in_use,
            quota=quota,
            share=self._share,
            free=excess,
        )
        if not self._asked_at:
            # How much of it is history only a compaction tells.
            self._asked_at = status.revision
        return excess if await self._is_compacted() else 0

    async def freed(self) -> None:
        """What was asked for was done, as far as it can be: wait for a compaction."""
        self._asked_at = (await self._etcd.range(KeyRange.of_key(self._key))).revision

    async def _is_compacted(self) -> bool:
        """Whether history was compacted since freed space was asked for."""
        try:
            await self._etcd.range(KeyRange.of_key(self._key), revision=self._asked_at)
        except (Compacted, FutureRevision):
            # Of an etcd that was restored nothing was asked for yet.
            return True
        return False

    def _say(self, event: str, **values: object) -> None:
        if event not in self._said:
            self._said.add(event)
            _log.warning(event, **values)
