"""The store: values that were dropped, and compare-and-swap."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from etcd_actions import open_etcd
from etcd_actions.etcd import paging
from etcd_actions.etcd.api import Etcd, KeyRange, RangeResult
from etcd_actions.storage.store import Store
from etcd_actions.watch import Change
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.memory


def dropped(key: bytes, revision: int) -> Change:
    return Change.unread(key, revision, revision)


async def test_a_dropped_value_is_read_at_its_own_revision(etcd: Etcd, prefix: bytes) -> None:
    """Though the key has moved on, or is gone: what is newer is still to come."""
    store, key = Store(etcd), prefix + b"k"
    first = await etcd.put(key, b"first")
    await etcd.put(key, b"second")
    found = await store.reread(dropped(key, first.revision))
    assert found is not None
    assert (found.value, found.mod_revision) == (b"first", first.revision)
    await etcd.delete(KeyRange.of_key(key))
    again = await store.reread(dropped(key, first.revision))
    assert again is not None
    assert again.value == b"first"


async def test_a_compacted_value_counts_if_it_is_the_newest(own_etcd: EtcdServer) -> None:
    """Else nobody needs it: the watch brings the newer one."""
    async with open_etcd(own_etcd.endpoint) as etcd:
        store = Store(etcd)
        kept, old = await etcd.put(b"kept", b"v"), await etcd.put(b"moved", b"1")
        new = await etcd.put(b"moved", b"2")
        await etcd.compact(new.revision)
        found = await store.reread(dropped(b"kept", kept.revision))
        assert found is not None
        assert found.value == b"v"
        assert await store.reread(dropped(b"moved", old.revision)) is None


async def test_a_value_of_a_store_that_went_back_is_skipped(etcd: Etcd, prefix: bytes) -> None:
    """It never was there: waiting for its revision would block what was listed instead."""
    await etcd.put(prefix + b"k", b"restored")
    assert await Store(etcd).reread(dropped(prefix + b"k", 10**12)) is None


class Pages:
    """An etcd that notes how many keys each answer to a read had, and at which revision."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def range(self, keys: KeyRange, **options: Any) -> RangeResult:
        found = await self._etcd.range(keys, **options)
        self.sizes.append(len(found.kvs))
        return found


async def test_each_of_many_keys_is_read_in_pages_of_some_megabytes(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large values come few at a time; all are of one revision, whatever is written meanwhile."""
    monkeypatch.setattr(paging, "_FIRST_LIMIT", 2)
    size = paging.PAGE_BYTES // 8
    for number in range(17):
        await etcd.put(prefix + b"%02d" % number, bytes(size - len(prefix) - 2))
    pages: Any = Pages(etcd)
    seen: list[bytes] = []
    async with aclosing(Store(pages).each(KeyRange.of_prefix(prefix))) as kvs:
        async for kv in kvs:
            if not seen:
                await etcd.delete(KeyRange.of_key(prefix + b"16"))
            seen.append(kv.key.removeprefix(prefix))
    assert seen == [b"%02d" % number for number in range(17)]
    assert pages.sizes == [2, 8, 7]


async def test_pages_of_small_values_grow_in_steps(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small values first do not have thousands of large ones asked for."""
    monkeypatch.setattr(paging, "_FIRST_LIMIT", 1)
    for number in range(120):
        await etcd.put(prefix + b"%03d" % number, b"small")
    pages: Any = Pages(etcd)
    async with aclosing(Store(pages).each(KeyRange.of_prefix(prefix))) as kvs:
        assert len([kv async for kv in kvs]) == 120
    assert pages.sizes == [1, 10, 100, 9]


async def test_compare_and_put(etcd: Etcd, prefix: bytes) -> None:
    """Only over what was seen; the loser is told what is there, equal bytes are not written."""
    store, key = Store(etcd), prefix + b"k"
    await etcd.put(key, b"1")
    seen = await store.get(key)
    assert seen is not None
    done = await store.compare_and_put(seen, b"2")
    assert done.applied
    assert done.current == await store.get(key)
    late = await store.compare_and_put(seen, b"3")
    assert late == (False, done.current)
    assert done.current is not None
    same = await store.compare_and_put(done.current, b"2")
    assert same == (False, done.current)
    await etcd.delete(KeyRange.of_key(key))
    assert await store.compare_and_put(done.current, b"4") == (False, None)


async def test_compare_and_put_with_a_lease(etcd: Etcd, prefix: bytes) -> None:
    """It stays unless another is named; for another one equal bytes are written, too."""
    store, key = Store(etcd), prefix + b"k"
    one, other = await etcd.lease_grant(60), await etcd.lease_grant(60)
    await etcd.put(key, b"1", lease=one.id)
    seen = await store.get(key)
    assert seen is not None
    stays = (await store.compare_and_put(seen, b"2")).current
    assert stays is not None
    assert (stays.value, stays.lease) == (b"2", one.id)
    moved = (await store.compare_and_put(stays, b"2", lease=other.id)).current
    assert moved is not None
    assert (moved.lease, moved.version) == (other.id, 3)
    assert await store.compare_and_put(moved, b"2", lease=other.id) == (False, moved)
    await etcd.lease_revoke(one.id)
    assert await store.get(key) == moved
    freed = (await store.compare_and_put(moved, b"2", lease=0)).current
    await etcd.lease_revoke(other.id)
    assert await store.get(key) == freed
    assert freed is not None


async def test_compare_and_delete(etcd: Etcd, prefix: bytes) -> None:
    """Only what was seen; the loser is told what is there."""
    store, key = Store(etcd), prefix + b"k"
    await etcd.put(key, b"1")
    seen = await store.get(key)
    assert seen is not None
    newer = (await store.compare_and_put(seen, b"2")).current
    assert await store.compare_and_delete(seen) == (False, newer)
    assert newer is not None
    assert await store.compare_and_delete(newer) == (True, None)
    assert await store.get(key) is None
    assert await store.compare_and_delete(newer) == (False, None)
