"""Reads all values of a range in limited time, counts them by kind, and keeps a few examples."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, TypeVar

import trio

from etcd_actions.doctor.subject import as_text
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.etcd.paging import open_pages

_PAGE_BYTES = 4 << 20
_BATCH = 100

_T = TypeVar("_T")
_R = TypeVar("_R")


class Examples:
    """Keys of one kind: their number, and the first few with a text each."""

    def __init__(self, most: int) -> None:
        self.count = 0
        self._most = most
        self._first: list[tuple[bytes, str]] = []

    def add(self, key: bytes, text: object) -> None:
        """Count a key."""
        self.count += 1
        if len(self._first) < self._most:
            self._first.append((key, str(text)))

    @property
    def first(self) -> str:
        """The first key as text; there must be one."""
        return as_text(self._first[0][0])

    def __str__(self) -> str:
        named = "; ".join(f"{as_text(key)} ({text})" for key, text in self._first)
        return f"{self.count}: {named}{and_more(self.count, len(self._first))}"


class Scanned(NamedTuple):
    """The extent of a scan.

    Attributes:
        total: The number of keys of the range; 0 if unknown.
        complete: Whether all of them were read in time.
    """

    total: int
    complete: bool


async def scan(
    etcd: EtcdClient, keys: KeyRange, seconds: float, take: Callable[[KeyValue], object]
) -> Scanned:
    """Call ``take`` with each key and value of a range, for at most ``seconds``.

    Raises:
        EtcdError: A page cannot be read.
    """
    total = 0
    with trio.move_on_after(seconds) as scope:
        async with open_pages(etcd, keys, page_bytes=_PAGE_BYTES) as pages:
            async for page in pages:
                total = total or page.total
                for number, kv in enumerate(page.kvs):
                    take(kv)
                    if number % _BATCH == 0:
                        await trio.lowlevel.checkpoint()
    return Scanned(total, complete=not scope.cancelled_caught)


async def side_by_side(check: Callable[[_T], Awaitable[_R]], items: Iterable[_T]) -> list[_R]:
    """Run one check for all items in parallel; the results are in the order of the items."""
    found: dict[int, _R] = {}

    async def call(index: int, item: _T) -> None:
        found[index] = await check(item)

    async with trio.open_nursery() as nursery:
        for index, item in enumerate(items):
            nursery.start_soon(call, index, item)
    return [found[index] for index in range(len(found))]


def and_more(count: int, shown: int) -> str:
    """The end of a text that shows some of several things."""
    return f"; and {count - shown} more" if count > shown else ""
