"""Reading a large range page by page, all at one revision.

The number of keys of a page is computed from the sizes of the page before. It grows by at most a
factor of ten, so that a page of small values is not followed by thousands of large ones. Pages are
not smaller, because etcd counts the rest of the range for each page.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final, NamedTuple

import trio

from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, RangeResult

PAGE_BYTES: Final = 8 * 1024 * 1024
"""About the size of a page."""

_FIRST_LIMIT = 20
_LEAST_LIMIT = 1
_MOST_LIMIT = 20_000
_GROWTH = 10


class Rest(NamedTuple):
    """The keys of a range that were not read, and the number of keys of the next page."""

    keys: KeyRange
    limit: int


def first_rest(keys: KeyRange) -> Rest:
    """All of a range, with a small first page: the sizes of its values are not known."""
    return Rest(keys, _FIRST_LIMIT)


@asynccontextmanager
async def open_pages(
    etcd: Etcd,
    keys: KeyRange,
    *,
    revision: int = 0,
    page_bytes: int = PAGE_BYTES,
    keys_only: bool = False,
) -> AsyncIterator[trio.MemoryReceiveChannel[RangeResult]]:
    """Read ``keys`` in pages as :func:`read_pages` does; fetch the next page while one is used.

    Raises:
        EtcdError: As from :func:`read_pages`; the body was cancelled.
    """
    pages = read_pages(etcd, keys, revision=revision, page_bytes=page_bytes, keys_only=keys_only)
    send, receive = trio.open_memory_channel[RangeResult](0)
    refusal: EtcdError | None = None

    async def forward() -> None:
        nonlocal refusal
        async with send, aclosing(pages):
            try:
                async for page in pages:
                    await send.send(page)
                    del page
            except EtcdError as error:
                refusal = error
                nursery.cancel_scope.cancel("a page cannot be read")
            except trio.BrokenResourceError:
                # The reader left before the last page.
                return

    async with owned_tasks("the reading of pages") as nursery:
        nursery.start_soon(forward)
        async with receive:
            yield receive
        nursery.cancel_scope.cancel("the reader of the pages is done")
    if refusal is not None:
        raise refusal


async def read_pages(
    etcd: Etcd,
    keys: KeyRange,
    *,
    revision: int = 0,
    page_bytes: int = PAGE_BYTES,
    keys_only: bool = False,
) -> AsyncGenerator[RangeResult]:
    """Read ``keys`` in pages. A caller that leaves the loop early has to close the generator.

    Args:
        etcd: The connection.
        keys: The range.
        revision: The revision of all pages; 0 for the newest one at the first page.
        page_bytes: About the size of a page.
        keys_only: Whether to omit the values.

    Yields:
        Pages; the ``revision`` of each is the one at which it was read.

    Raises:
        Compacted: A compaction passed the revision.
        EtcdError: A read failed for another reason.
    """
    rest: Rest | None = first_rest(keys)
    while rest is not None:
        page, rest = await read_page(
            etcd, rest, revision=revision, page_bytes=page_bytes, keys_only=keys_only
        )
        revision = page.revision
        yield page
        # Only its reader keeps it in memory.
        del page


async def read_page(
    etcd: Etcd,
    rest: Rest,
    *,
    revision: int = 0,
    page_bytes: int = PAGE_BYTES,
    keys_only: bool = False,
) -> tuple[RangeResult, Rest | None]:
    """Read one page; returns it with the rest of the range, None after the last page.

    Args:
        etcd: The connection.
        rest: The range, and the number of keys.
        revision: The revision of the read; 0 for the newest one.
        page_bytes: About the size of the next page.
        keys_only: Whether to omit the values.

    Raises:
        Compacted: A compaction passed the revision.
        EtcdError: The read failed for another reason.
    """
    keys, limit = rest
    page = await etcd.range(keys, revision=revision, limit=limit, keys_only=keys_only)
    if revision:
        # A read at an old revision is answered with the store's newest in its header.
        page = page._replace(revision=revision)
    if not page.more:
        return page, None
    if not page.kvs:
        # As the end of the list, this would mean that all further keys are deleted.
        raise Unavailable("a page of a list is empty, although etcd reports more keys")
    return page, _next(page, rest, page_bytes)


def _next(page: RangeResult, before: Rest, page_bytes: int) -> Rest:
    """What is left of a range after a page of it."""
    size = sum(len(kv.key) + len(kv.value) for kv in page.kvs)
    fitting = max(_LEAST_LIMIT, page_bytes * len(page.kvs) // max(1, size))
    keys = KeyRange(page.kvs[-1].key + b"\0", before.keys.end)
    return Rest(keys, min(_MOST_LIMIT, before.limit * _GROWTH, fitting))
