"""The position: kept by whoever is elected, never lower, never that of another store."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions import open_etcd
from etcd_actions.errors import OutcomeUnknown, PermissionDenied, Unavailable
from etcd_actions.etcd.api import Compare, Etcd, KeyRange, RangeResult, Txn, TxnResult
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.etcd.election import Leadership
from etcd_actions.record.checkpoint import Checkpoint, Predecessor
from etcd_actions.testing import EtcdServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

PATIENCE = 60

NEWEST = 200
"""A revision that etcd has reached in every test: positions are not above that."""


@pytest.fixture
def key(prefix: bytes) -> bytes:
    return prefix + b"position"


async def elect(etcd: Etcd, prefix: bytes) -> Compare:
    """Make an election's key; returns what holds as long as it is there."""
    key = prefix + b"election"
    while (await etcd.put(prefix + b"more", b"")).revision < NEWEST:
        continue
    created = await etcd.put(key, b"me")
    return Leadership(key, created.revision).fence


async def end_term(etcd: Etcd, prefix: bytes) -> None:
    await etcd.delete(KeyRange.of_key(prefix + b"election"))


async def stored(etcd: Etcd, key: bytes) -> Any:
    [kv] = (await etcd.range(KeyRange.of_key(key))).kvs
    return json.loads(kv.value)


class Flawed:
    """Another connection, with some calls that fail, before or after they are done."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.calls_lost = 0
        self.answers_lost = 0
        self.writes_refused = 0
        self.reads = 0
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    async def range(self, keys: KeyRange, **options: Any) -> RangeResult:
        self._lose()
        self.reads += 1
        return await self._etcd.range(keys, **options)

    async def txn(self, txn: Txn) -> TxnResult:
        self._lose()
        if self.writes_refused:
            self.writes_refused -= 1
            raise PermissionDenied("the role may not write")
        self.writes += 1
        result = await self._etcd.txn(txn)
        if self.answers_lost:
            self.answers_lost -= 1
            raise OutcomeUnknown("the answer is lost")
        return result

    def _lose(self) -> None:
        if self.calls_lost:
            self.calls_lost -= 1
            raise Unavailable("not reached")


@pytest.fixture
async def by_transport(shared_etcd: EtcdServer, transport: TransportName) -> AsyncIterator[Etcd]:
    async with open_etcd(shared_etcd.endpoint, transport=transport) as connection:
        yield connection


async def test_it_is_kept(by_transport: Etcd, prefix: bytes, key: bytes) -> None:
    fence = await elect(by_transport, prefix)
    position = Checkpoint(by_transport, key)
    assert await position.load() == 0
    assert await position.save(7, fence)
    assert await position.save(NEWEST, fence)
    assert position.saved == NEWEST
    cluster_id = (await by_transport.range(KeyRange.of_key(key))).cluster_id
    assert await stored(by_transport, key) == {
        "revision": NEWEST,
        "clusterId": f"{cluster_id:x}",
    }
    assert await Checkpoint(by_transport, key).load() == NEWEST


async def test_only_the_elected_one_writes(by_transport: Etcd, prefix: bytes, key: bytes) -> None:
    fence = await elect(by_transport, prefix)
    position = Checkpoint(by_transport, key)
    assert await position.save(7, fence)
    await end_term(by_transport, prefix)
    assert not await position.save(8, fence)
    # The next term is another one's, on the same key.
    successor = await elect(by_transport, prefix)
    assert not await position.save(8, fence)
    assert (await stored(by_transport, key))["revision"] == position.saved == 7
    assert await Checkpoint(by_transport, key).save(9, successor)
    assert await position.load() == 9


async def test_nobody_writes_before_anybody_was_elected(
    etcd: Etcd, prefix: bytes, key: bytes
) -> None:
    position = Checkpoint(etcd, key)
    assert not await position.save(7, Leadership(prefix + b"election", 12345).fence)
    assert (await etcd.range(KeyRange.of_key(key))).kvs == []
    assert position.saved == 0


async def test_the_first_process_creates_it(etcd: Etcd, prefix: bytes, key: bytes) -> None:
    """A process that starts later begins there, whether or not somebody has led meanwhile."""
    before = (await etcd.put(prefix + b"x", b"")).revision
    first = await Checkpoint(etcd, key).load_or_create()
    assert first == before
    await etcd.put(prefix + b"x", b"")
    second = Checkpoint(etcd, key)
    assert await second.load_or_create() == first
    before_it, _ = await open_term(etcd, prefix, second)
    assert before_it is None
    assert second.saved == first


async def test_a_guard_keeps_it_from_being_created(etcd: Etcd, prefix: bytes, key: bytes) -> None:
    await etcd.put(prefix + b"x", b"")
    guard = Compare.unchanged(prefix + b"x", 0)
    assert await Checkpoint(etcd, key).load_or_create([guard]) == 0
    assert (await etcd.range(KeyRange.of_key(key))).kvs == []


async def test_a_start_does_not_depend_on_creating_it(
    etcd: Etcd, prefix: bytes, key: bytes
) -> None:
    """A write that is refused, or whose answer is lost, is not repeated."""
    flawed = Flawed(etcd)
    flawed.writes_refused = 1
    assert await Checkpoint(flawed, key).load_or_create() == 0
    flawed.answers_lost = 1
    created = await Checkpoint(flawed, key).load_or_create()
    assert created > 0
    assert (await stored(etcd, key))["revision"] == created
    # It exists, also where it cannot be used.
    await etcd.put(key, b"nonsense")
    assert await Checkpoint(flawed, key).load_or_create() == 0
    assert flawed.writes == 1


async def test_it_never_goes_back(etcd: Etcd, prefix: bytes, key: bytes) -> None:
    fence = await elect(etcd, prefix)
    first, second = Checkpoint(etcd, key), Checkpoint(etcd, key)
    assert await second.load() == 0
    assert await first.save(10, fence)
    assert await second.save(5, fence)
    assert await first.save(5, fence)
    assert (first.saved, second.saved) == (10, 10)
    assert (await stored(etcd, key))["revision"] == 10
    assert await second.save(11, fence)
    assert (await stored(etcd, key))["revision"] == 11


async def test_it_begins_anew_where_it_is_gone(etcd: Etcd, prefix: bytes, key: bytes) -> None:
    """The store was wiped, or restored from before: what is lower is news then."""
    fence = await elect(etcd, prefix)
    position = Checkpoint(etcd, key)
    assert await position.save(100, fence)
    await etcd.delete(KeyRange.of_key(key))
    assert await position.save(50, fence)
    assert (await stored(etcd, key))["revision"] == position.saved == 50
    await etcd.delete(KeyRange.of_key(key))
    assert await position.save(60, fence)
    assert (await stored(etcd, key))["revision"] == 60


async def test_a_write_whose_answer_is_lost(etcd: Etcd, prefix: bytes, key: bytes) -> None:
    """The same again, or more, is written: it is its own write that it finds."""
    fence = await elect(etcd, prefix)
    flawed = Flawed(etcd)
    position = Checkpoint(flawed, key)
    for revision, again in [(7, 7), (8, 9)]:
        flawed.answers_lost = 1
        with pytest.raises(OutcomeUnknown):
            await position.save(revision, fence)
        assert await position.save(again, fence)
        assert (await stored(etcd, key))["revision"] == position.saved == again


async def test_that_of_another_cluster_is_not_used(etcd: Etcd, prefix: bytes, key: bytes) -> None:
    fence = await elect(etcd, prefix)
    await etcd.put(key, b'{"revision":100,"clusterId":"cdf818194e3a8c32"}')
    position = Checkpoint(etcd, key)
    with capture_logs() as logs:
        assert await position.load() == 0
        assert await position.load() == 0
    [told] = logs
    assert (told["event"], told["log_level"]) == ("position_unusable", "warning")
    assert "it is of cluster cdf818194e3a8c32" in told["reason"]
    assert await position.save(7, fence)
    assert await Checkpoint(etcd, key).load() == 7


async def test_one_that_etcd_has_yet_to_reach_is_not_used(
    etcd: Etcd, prefix: bytes, key: bytes
) -> None:
    """Nothing can be done with so much, and it would never be overwritten."""
    fence = await elect(etcd, prefix)
    position = Checkpoint(etcd, key)
    found = await etcd.range(KeyRange.of_key(key))
    ahead = {"revision": found.revision + 10**9, "clusterId": f"{found.cluster_id:x}"}
    await etcd.put(key, json.dumps(ahead).encode())
    with capture_logs() as logs:
        assert await position.load() == 0
    assert [line["event"] for line in logs] == ["position_unusable"]
    assert await position.save(7, fence)
    assert await position.load() == 7


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"\xff", "malformed"),
        (b"7", "Expected `object`"),
        (b'{"revision":7}', "missing required field `clusterId`"),
        (b'{"revision":"7","clusterId":"1"}', r"Expected `int`, got `str` - at `\$.revision`"),
        (b'{"revision":-1,"clusterId":"1"}', r">= 0 - at `\$.revision`"),
        (b'{"revision":1e30,"clusterId":"1"}', r"at `\$.revision`"),
    ],
)
async def test_a_bad_value_counts_as_none(
    etcd: Etcd, prefix: bytes, key: bytes, value: bytes, reason: str
) -> None:
    fence = await elect(etcd, prefix)
    put = await etcd.put(key, value)
    position = Checkpoint(etcd, key)
    with capture_logs() as logs:
        assert await position.load() == 0
    assert [(line["event"], line["revision"]) for line in logs] == [
        ("position_unusable", put.revision)
    ]
    assert re.search(reason, logs[0]["reason"])
    assert await position.save(7, fence)
    assert await position.load() == 7


# --- keeping it -----------------------------------------------------------------------


async def test_it_is_kept_up_to_date_and_no_oftener_than_asked(
    etcd: Etcd, prefix: bytes, key: bytes
) -> None:
    fence = await elect(etcd, prefix)
    flawed = Flawed(etcd)
    position = Checkpoint(flawed, key)
    current = 0
    async with trio.open_nursery() as nursery:
        began = trio.current_time()

        async def keep() -> None:
            await position.save_periodically(lambda: current, fence, every=0.05)

        nursery.start_soon(keep)
        while current < NEWEST - 1:
            current += 1
            await trio.sleep(0.001)  # The pace at which the position moves.
        await eventually(lambda: position.saved == NEWEST - 1)
        assert flawed.writes <= 1 + (trio.current_time() - began) / 0.05
        assert (await stored(etcd, key))["revision"] == NEWEST - 1
        # What does not move costs nothing, over some periods.
        calls = (flawed.reads, flawed.writes)
        await trio.sleep(0.2)
        assert (flawed.reads, flawed.writes) == calls
        nursery.cancel_scope.cancel()


async def test_keeping_ends_with_the_term(etcd: Etcd, prefix: bytes, key: bytes) -> None:
    fence = await elect(etcd, prefix)
    position = Checkpoint(etcd, key)
    current = 5
    ended = trio.Event()

    async def keep() -> None:
        await position.save_periodically(lambda: current, fence, every=0.01)
        ended.set()

    with capture_logs() as logs, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep)
            await eventually(lambda: position.saved == 5)
            await end_term(etcd, prefix)
            assert not ended.is_set()
            current = 6
            await ended.wait()
    assert [line["event"] for line in logs] == ["position_fenced_off"]
    assert (await stored(etcd, key))["revision"] == 5


async def test_keeping_outlives_an_etcd_that_is_away(etcd: Etcd, prefix: bytes, key: bytes) -> None:
    fence = await elect(etcd, prefix)
    flawed = Flawed(etcd)
    flawed.calls_lost, flawed.answers_lost = 3, 1
    position = Checkpoint(flawed, key)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:

            async def keep() -> None:
                await position.save_periodically(lambda: 8, fence, every=0.01)

            nursery.start_soon(keep)
            await eventually(lambda: position.saved == 8)
            nursery.cancel_scope.cancel()
    assert [line["failures"] for line in logs] == [1, 2, 4]
    assert {line["event"] for line in logs} == {"position_not_saved"}


# --- whose term it is -----------------------------------------------------------------


async def begin_term(etcd: Etcd, prefix: bytes) -> Leadership:
    """The next leader's."""
    await end_term(etcd, prefix)
    await elect(etcd, prefix)
    [kv] = (await etcd.range(KeyRange.of_key(prefix + b"election"))).kvs
    return Leadership(kv.key, kv.create_revision)


async def open_term(
    etcd: Etcd, prefix: bytes, position: Checkpoint, ttl: int = 10
) -> tuple[Predecessor | None, Leadership]:
    leadership = await begin_term(etcd, prefix)
    before = await position.open_term(leadership.create_revision, ttl, leadership.fence)
    return before, leadership


async def test_a_successor_learns_whether_the_term_before_was_closed(
    etcd: Etcd, prefix: bytes, key: bytes
) -> None:
    """The first one ever has nobody before it; who was killed has not closed its term."""
    first, second, third = (Checkpoint(etcd, key) for _ in range(3))
    before, leadership = await open_term(etcd, prefix, first, ttl=30)
    assert before is None
    assert await first.save(7, leadership.fence)
    # That one is killed.
    before, leadership = await open_term(etcd, prefix, second)
    assert before == Predecessor(30, own=False)
    assert await second.load() == 7
    # What the first one told may land for as long as before.
    before, leadership = await open_term(etcd, prefix, third)
    assert before == Predecessor(30, own=False)
    await third.close_term(leadership.fence)
    assert (await open_term(etcd, prefix, Checkpoint(etcd, key)))[0] is None
    assert (await stored(etcd, key))["revision"] == 7


async def test_a_process_that_leads_again_knows_its_own_calls(
    etcd: Etcd, prefix: bytes, key: bytes
) -> None:
    position = Checkpoint(etcd, key)
    await open_term(etcd, prefix, position)
    assert (await open_term(etcd, prefix, position))[0] == Predecessor(10, own=True)


async def test_a_value_of_before_says_nothing_of_terms(
    etcd: Etcd, prefix: bytes, key: bytes
) -> None:
    """It is read all the same; whoever wrote it may have told anything."""
    await elect(etcd, prefix)
    cluster = f"{(await etcd.range(KeyRange.of_key(key))).cluster_id:x}"
    await etcd.put(key, json.dumps({"revision": 7, "clusterId": cluster}).encode())
    position = Checkpoint(etcd, key)
    assert await position.load() == 7
    assert (await open_term(etcd, prefix, position))[0] == Predecessor(0, own=False)
    assert (await stored(etcd, key))["revision"] == 7


async def test_a_lost_answer_does_not_hide_who_led_before(
    etcd: Etcd, prefix: bytes, key: bytes
) -> None:
    """Opened by a try whose answer is lost, it would find itself."""
    await open_term(etcd, prefix, Checkpoint(etcd, key), ttl=20)
    flawed = Flawed(etcd)
    flawed.answers_lost = 1
    position = Checkpoint(flawed, key)
    leadership = await begin_term(etcd, prefix)
    with pytest.raises(OutcomeUnknown):
        await position.open_term(leadership.create_revision, 10, leadership.fence)
    before = await position.open_term(leadership.create_revision, 10, leadership.fence)
    assert before == Predecessor(20, own=False)


async def test_a_closed_term_can_be_opened_again(etcd: Etcd, prefix: bytes, key: bytes) -> None:
    """The answer to the close was lost, and the process is still the leader."""
    position = Checkpoint(etcd, key)
    _, leadership = await open_term(etcd, prefix, position)
    await position.close_term(leadership.fence)
    assert (await stored(etcd, key))["term"]["closed"]
    before = await position.open_term(leadership.create_revision, 10, leadership.fence)
    assert before is None
    assert not (await stored(etcd, key))["term"]["closed"]


async def test_a_deposed_leader_opens_and_closes_nothing(
    etcd: Etcd, prefix: bytes, key: bytes
) -> None:
    position = Checkpoint(etcd, key)
    _, leadership = await open_term(etcd, prefix, position)
    await end_term(etcd, prefix)
    with pytest.raises(Unavailable):
        await position.close_term(leadership.fence)
    with pytest.raises(Unavailable):
        await position.open_term(leadership.create_revision + 1, 10, leadership.fence)
    assert not (await stored(etcd, key))["term"]["closed"]
