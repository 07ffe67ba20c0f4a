"""How far back etcd's history reaches."""

from __future__ import annotations

import trio

from etcd_actions.errors import Compacted, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, WatchCreate
from etcd_actions.etcd.reasons import error_kind


async def find_oldest_revision(etcd: Etcd, keys: KeyRange, *, within: float = 10.0) -> int:
    """The oldest revision that etcd can still read; 1 where nothing was ever compacted.

    etcd names it only to a watch that begins below it. Where there was no compaction such a
    watch would make etcd read all of its history, so a read first checks whether there was.

    Args:
        etcd: The connection.
        keys: What may be watched; the answer is the same for all keys.
        within: Seconds that the watch may take.

    Raises:
        EtcdError: etcd did not answer, or does not let these keys be watched.
    """
    try:
        await etcd.range(KeyRange.of_key(keys.start), revision=1, count_only=True)
    except Compacted:
        with trio.move_on_after(within):
            async with etcd.watch() as stream:
                stream.create(WatchCreate(1, keys, 1))
                while True:
                    try:
                        responses = await stream.receive()
                    except trio.EndOfChannel:
                        # Silent for as long as its transport trusts silence.
                        break
                    for response in responses:
                        if response.compact_revision:
                            return response.compact_revision
                        if response.canceled:
                            reason = response.cancel_reason or "etcd cancelled the watch"
                            raise (error_kind(reason) or Unavailable)(f"watch: {reason}") from None
        raise Unavailable("a watch below the compaction revision is not cancelled") from None
    return 1
