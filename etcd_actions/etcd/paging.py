"""Reading a large range page by page, all at one revision."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, RangeResult

_FIRST_LIMIT = 500
_LEAST_LIMIT = 50
_MOST_LIMIT = 20_000


@asynccontextmanager
async def open_pages(
    etcd: Etcd,
    keys: KeyRange,
    *,
    revision: int = 0,
    page_bytes: int = 12 * 1024 * 1024,
    keys_only: bool = False,
) -> AsyncIterator[trio.MemoryReceiveChannel[RangeResult]]:
    """Read ``keys`` in pages; the next is fetched while one is used.

    etcd counts the rest of the range for each page, so few large pages are much cheaper than
    many small ones; their number of keys follows the sizes seen, to about ``page_bytes``.

    Args:
        etcd: The connection.
        keys: The range.
        revision: Where to read; 0 takes the newest at the first page and stays there.
        page_bytes: About how large a page may get.
        keys_only: Leave out the values.

    Each page's ``revision`` is the one that was read at. Errors, such as
    :class:`~etcd_actions.errors.Compacted` when a compaction passed the revision, come in
    an exception group, as from any nursery.
    """
    send, receive = trio.open_memory_channel[RangeResult](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_fetch, etcd, keys, revision, page_bytes, keys_only, send)
        async with receive:
            yield receive
        nursery.cancel_scope.cancel("the reader of the pages is done")


async def _fetch(
    etcd: Etcd,
    keys: KeyRange,
    revision: int,
    page_bytes: int,
    keys_only: bool,
    send: trio.MemorySendChannel[RangeResult],
) -> None:
    limit = _FIRST_LIMIT
    async with send:
        while True:
            page = await etcd.range(keys, revision=revision, limit=limit, keys_only=keys_only)
            # A read at an old revision is answered with the store's newest in its header.
            revision = revision or page.revision
            await send.send(page._replace(revision=revision))
            if not page.more:
                return
            if not page.kvs:
                # Taken for the end it would be taken for a deletion of all that follows.
                raise Unavailable("a page of a list is empty, and says that there is more")
            keys = KeyRange(page.kvs[-1].key + b"\0", keys.end)
            size = sum(len(kv.key) + len(kv.value) for kv in page.kvs)
            average = max(1, size // len(page.kvs))
            limit = min(_MOST_LIMIT, max(_LEAST_LIMIT, page_bytes // average))
