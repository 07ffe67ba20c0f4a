"""The catalogue on a real etcd: entries expire, are renewed by use, and rubbish is none."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from etcd_actions import open_actions_client
from etcd_actions.catalog import Catalog, Entry, digest_of, scope_of
from etcd_actions.catalog.cached_result import decode, encode
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import (
    ANNOTATION_CACHE_SCOPE,
    ActionObject,
    Keyspace,
    ObjectMeta,
    TaskActionSpec,
)
from etcd_actions.storage.store import Store

pytestmark = pytest.mark.memory

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def an_entry(**changes: object) -> Entry:
    entry = Entry(
        cache_key="k",
        project="p",
        domain="d",
        run="r1",
        action="a0",
        attempt=1,
        digest=digest_of(b"x"),
        outputs=b"x",
        created=NOW,
        kept_until=NOW,
    )
    return msgspec.structs.replace(entry, **changes)


class Scene:
    def __init__(self, etcd: Etcd, prefix: bytes) -> None:
        self.etcd = etcd
        self.store = Store(etcd)
        self.now = NOW
        self.key = Keyspace(prefix).catalog + b"entries/k"

    def catalog(self, keep: timedelta = 30 * DAY) -> Catalog:
        return Catalog(self.etcd, self.store, keep.total_seconds(), lambda: self.now)


@pytest.fixture
def scene(etcd: Etcd, prefix: bytes) -> Scene:
    return Scene(etcd, prefix)


@pytest.mark.network
async def test_an_entry_that_is_used_moves_to_a_younger_lease(scene: Scene) -> None:
    before, after = scene.catalog(), scene.catalog()
    await before.put(scene.key, an_entry())
    found = await before.look(scene.key, "k")
    assert found is not None
    assert found.entry == an_entry(kept_until=NOW + 30 * DAY)
    assert (await scene.etcd.lease_keep_alive(found.kv.lease)).ttl >= 30 * 86400
    # Used a moment later nothing is written.
    await after.renew(found)
    assert await after.look(scene.key, "k") == found
    scene.now += 2 * DAY
    await after.renew(found)
    renewed = await after.look(scene.key, "k")
    assert renewed is not None
    assert renewed.entry.kept_until == NOW + 32 * DAY
    assert renewed.kv.lease not in (0, found.kv.lease)
    # The old lease goes, and the entry stays.
    await scene.etcd.lease_revoke(found.kv.lease)
    assert await after.look(scene.key, "k") == renewed
    await scene.etcd.lease_revoke(renewed.kv.lease)
    assert await after.look(scene.key, "k") is None
    # With its lease gone the next one is made.
    await after.put(scene.key, an_entry())
    await before.put(scene.key, an_entry(run="r2"))
    last = await after.look(scene.key, "k")
    assert last is not None
    assert last.entry.run == "r2"


async def test_an_entry_without_a_lease_gets_one(scene: Scene) -> None:
    await scene.etcd.put(scene.key, encode(an_entry(kept_until=NOW + 300 * DAY)))
    catalog = scene.catalog()
    found = await catalog.look(scene.key, "k")
    assert found is not None
    await catalog.renew(found)
    found = await catalog.look(scene.key, "k")
    assert found is not None
    assert found.kv.lease


async def test_what_was_replaced_meanwhile_stays(scene: Scene) -> None:
    catalog = scene.catalog()
    await catalog.put(scene.key, an_entry())
    found = await catalog.look(scene.key, "k")
    assert found is not None
    await catalog.put(scene.key, an_entry(run="r2"))
    await catalog.forget(found)
    scene.now += 2 * DAY
    await catalog.renew(found)
    there = await catalog.look(scene.key, "k")
    assert there is not None
    assert there.entry.run == "r2"
    await catalog.forget(there)
    assert await catalog.look(scene.key, "k") is None


CHANGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: b"",
    lambda data: data[:-3],
    lambda data: b"\xff\xfe",
    lambda data: b"[" * 10_000,
    lambda data: data.replace(b'"cache_key":"k"', b'"cache_key":"other"'),
    lambda data: data.replace(b'"cache_key"', b'"form":2,"cache_key"'),
    lambda data: data.replace(b"Z", b""),
)


async def test_what_cannot_be_read_is_deleted(scene: Scene) -> None:
    for change in CHANGES:
        data = change(encode(an_entry()))
        with pytest.raises(DecodeError):
            decode(data, "k")
        await scene.etcd.put(scene.key, data)
        assert await scene.catalog().look(scene.key, "k") is None
        assert await scene.store.get(scene.key) is None


def an_action(project: str, domain: str, scope: str = "") -> ActionObject:
    annotations = {ANNOTATION_CACHE_SCOPE: scope} if scope else {}
    return ActionObject.new(
        ObjectMeta("r1-a0", annotations=annotations), TaskActionSpec(project, domain, "r1", "a0")
    )


def test_projects_share_results_only_where_their_runs_say_so() -> None:
    keys = Keyspace()
    places = [("p", "d"), ("p", "e"), ("p/d", ""), ("", "p/d"), ("global", "d")]
    scopes = [scope_of(keys, an_action(*place)) for place in places]
    scopes.append(scope_of(keys, an_action("p", "d", "global")))
    assert scopes[-1] == scope_of(keys, an_action("q", "e", "global"))
    ends = {key for scope in scopes for key in (scope.entry("k"), scope.reservation("k"))}
    assert len(ends) == 2 * len(scopes)
    assert all(end.startswith(keys.catalog) for end in ends)


async def test_a_reservation_is_one_subjects_and_goes_with_its_holder(
    etcd: Etcd, prefix: bytes
) -> None:
    key = Keyspace(prefix).catalog + b"reserved/k"
    async with open_actions_client(etcd, prefix=prefix) as client, client.open_claims() as other:
        async with client.open_claims() as claims:
            held = await claims.reserve(key, "one")
            assert held is not None
            assert await claims.reserve(key, "one") == held
            assert await claims.reserve(key, "two") is None
            assert await other.reserve(key, "one") is None
            await claims.unreserve(key, "two")
            await other.unreserve(key, "one")
            assert await claims.reserve(key, "one") == held
            await claims.unreserve(key, "one")
            assert await claims.reserve(key, "two") is not None
            assert await other.reserve(key, "one") is None
        assert await other.reserve(key, "one") is not None
