"""What every transport promises, on every version of etcd at hand."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing

from etcd_actions.errors import (
    Compacted,
    FutureRevision,
    InvalidRequest,
    LeaseNotFound,
    OutcomeUnknown,
    RequestTooLarge,
    Unavailable,
)
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    DeleteResult,
    Event,
    Get,
    KeyRange,
    Put,
    PutResult,
    RangeResult,
    Txn,
    TxnResult,
    WatchCreate,
    WatchResponse,
    WatchStream,
)
from etcd_actions.etcd.paging import open_pages
from etcd_actions.storage.store import Store
from etcd_actions.testing import EtcdServer, MemoryStore, OwnEtcd
from tests.etcd.conftest import Connect
from tests.support.etcd_server import free_port
from tests.support.recording import RecordingSink
from tests.support.scene import judge_delivery, reflecting
from tests.support.waiting import eventually

pytestmark = pytest.mark.conformance


@pytest.fixture
async def etcd(
    conformance_server: EtcdServer | MemoryStore, connect: Connect
) -> AsyncIterator[EtcdClient]:
    """A connection, by each transport, to each etcd."""
    async with connect(conformance_server.endpoint) as connection:
        yield connection


def whole(prefix: bytes) -> KeyRange:
    return KeyRange.of_prefix(prefix)


async def events_of(stream: WatchStream, count: int) -> list[Event]:
    events: list[Event] = []
    with trio.fail_after(60):
        while len(events) < count:
            events += [event for response in await stream.receive() for event in response.events]
    return events


async def next_response(stream: WatchStream) -> Sequence[WatchResponse]:
    with trio.fail_after(60):
        return await stream.receive()


async def test_put_range_delete(etcd: EtcdClient, prefix: bytes) -> None:
    """Revisions, versions and counts are etcd's."""
    first = await etcd.put(prefix + b"a", b"1")
    second = await etcd.put(prefix + b"a", b"2")
    await etcd.put(prefix + b"b", bytes(range(256)))
    found = await etcd.range(whole(prefix), limit=1)
    (kv,) = found.kvs
    assert (kv.key, kv.value, kv.version) == (prefix + b"a", b"2", 2)
    assert (kv.create_revision, kv.mod_revision) == (first.revision, second.revision)
    assert (found.more, found.total) == (True, 2)
    assert found.revision >= second.revision
    assert found.cluster_id != 0
    then = await etcd.range(whole(prefix), revision=first.revision)
    assert [kv.value for kv in then.kvs] == [b"1"]
    names = await etcd.range(whole(prefix), keys_only=True)
    assert [(kv.key, kv.value) for kv in names.kvs] == [(prefix + b"a", b""), (prefix + b"b", b"")]
    assert (await etcd.range(whole(prefix), count_only=True)).total == 2
    assert (await etcd.delete(whole(prefix))).deleted == 2
    assert (await etcd.range(whole(prefix))).kvs == []


async def test_a_closed_connection_raises_the_same_from_each_method(
    conformance_server: EtcdServer | MemoryStore, connect: Connect, prefix: bytes
) -> None:
    async with connect(conformance_server.endpoint) as etcd:
        await etcd.put(prefix, b"1")
    keys = KeyRange.of_key(prefix)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: etcd.range(keys),
        lambda: etcd.put(prefix, b"2"),
        lambda: etcd.delete(keys),
        lambda: etcd.txn(Txn((), [Get(keys)])),
        lambda: etcd.compact(1),
        lambda: etcd.lease_grant(5),
        lambda: etcd.lease_keep_alive(1),
        lambda: etcd.lease_revoke(1),
        etcd.status,
        etcd.alarms,
        etcd.members,
        etcd.auth_enabled,
        lambda: etcd.user_roles("root"),
        lambda: etcd.role_permissions("root"),
        etcd.watch().__aenter__,
    ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError, match=r"^the connection to etcd is closed$"):
            await call()


async def test_transaction_takes_one_branch_at_one_revision(
    etcd: EtcdClient, prefix: bytes
) -> None:
    """Compare, both branches, all operations, and nested transactions with results of their own."""
    key = prefix + b"k"
    absent = Compare(key, CompareTarget.VERSION, CompareResult.EQUAL, 0)
    txn = Txn(
        [absent],
        [
            Put(key, b"v"),
            Txn([absent], [Put(prefix + b"n", b"w")], [Get(whole(prefix))]),
            Get(whole(prefix)),
        ],
        [Get(KeyRange.of_key(key)), Delete(whole(prefix))],
    )
    done = await etcd.txn(txn)
    assert done.succeeded
    put, nested, read = done.responses
    assert isinstance(put, PutResult)
    assert isinstance(nested, TxnResult)
    # A nested compare sees the state before the whole transaction.
    assert nested.succeeded
    assert isinstance(read, RangeResult)
    assert {kv.mod_revision for kv in read.kvs} == {done.revision, put.revision}
    assert [kv.key for kv in read.kvs] == [key, prefix + b"n"]
    again = await etcd.txn(txn)
    assert not again.succeeded
    found, deleted = again.responses
    assert isinstance(found, RangeResult)
    assert found.kvs[0].value == b"v"
    assert isinstance(deleted, DeleteResult)
    assert deleted.deleted == 2


@pytest.mark.parametrize(
    ("target", "operand"),
    [
        (CompareTarget.VALUE, b"v"),
        (CompareTarget.VERSION, 1),
        (CompareTarget.LEASE, 0),
    ],
)
async def test_compare_targets(
    etcd: EtcdClient, prefix: bytes, target: CompareTarget, operand: int | bytes
) -> None:
    """Each target compares what it says."""
    key = prefix + b"k"
    await etcd.put(key, b"v")
    for result, holds in ((CompareResult.EQUAL, True), (CompareResult.NOT_EQUAL, False)):
        txn = Txn([Compare(key, target, result, operand)], [], [])
        assert (await etcd.txn(txn)).succeeded is holds


async def test_compare_over_a_range(etcd: EtcdClient, prefix: bytes) -> None:
    """A range compare holds when every key in it does."""
    first = await etcd.put(prefix + b"a", b"")
    keys = whole(prefix)

    def none_newer(than: int) -> Txn:
        target, less = CompareTarget.CREATE_REVISION, CompareResult.LESS
        return Txn([Compare(keys.start, target, less, than + 1, keys.end)], [])

    assert (await etcd.txn(none_newer(first.revision))).succeeded
    await etcd.put(prefix + b"b", b"")
    assert not (await etcd.txn(none_newer(first.revision))).succeeded


async def test_several_ranges_on_one_stream(etcd: EtcdClient, prefix: bytes) -> None:
    """Each watcher gets its own range, from its own revision, in order."""
    first = await etcd.put(prefix + b"a1", b"x")
    await etcd.put(prefix + b"b1", b"y")
    await etcd.delete(KeyRange.of_key(prefix + b"a1"))
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, KeyRange(prefix + b"a", prefix + b"b"), first.revision))
        stream.create(WatchCreate(2, KeyRange(prefix + b"b", prefix + b"c"), first.revision))
        by_id: dict[int, list[tuple[bytes, bytes, bool]]] = {1: [], 2: []}
        created = set()
        with trio.fail_after(60):
            while sum(map(len, by_id.values())) < 3:
                for response in await stream.receive():
                    if response.created:
                        created.add(response.watch_id)
                    for event in response.events:
                        row = (event.key.removeprefix(prefix), event.value, event.is_delete)
                        by_id[response.watch_id].append(row)
        assert created == {1, 2}
        assert by_id == {1: [(b"a1", b"x", False), (b"a1", b"", True)], 2: [(b"b1", b"y", False)]}


async def test_previous_values_on_demand(etcd: EtcdClient, prefix: bytes) -> None:
    """With prev_kv a delete tells what was there; without, it does not."""
    start = await etcd.put(prefix + b"k", b"before")
    await etcd.delete(whole(prefix))
    for prev_kv in (True, False):
        async with etcd.watch() as stream:
            stream.create(WatchCreate(1, whole(prefix), start.revision + 1, prev_kv=prev_kv))
            (event,) = await events_of(stream, 1)
            assert event.is_delete
            assert (event.prev_kv is not None) is prev_kv
            assert event.prev_kv is None or event.prev_kv.value == b"before"


@pytest.mark.bulk
async def test_a_large_revision_comes_in_fragments(etcd: EtcdClient, prefix: bytes) -> None:
    """More than etcd sends in one message: the parts are marked, all but the last."""
    puts = [Put(prefix + b"%03d" % number, b"x" * 14_000) for number in range(100)]
    results = [await etcd.txn(Txn([], puts)) for _ in range(3)]
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, whole(prefix), results[0].revision))
        fragments: list[bool] = []
        count = 0
        with trio.fail_after(60):
            while count < 300:
                for response in await stream.receive():
                    if response.events:
                        fragments.append(response.fragment)
                        count += len(response.events)
    assert any(fragments)
    assert fragments[-1] is False
    assert count == 300


async def test_cancelling_a_watcher_ends_its_events(etcd: EtcdClient, prefix: bytes) -> None:
    """The other watcher of the stream goes on."""
    now = await etcd.put(prefix + b"k", b"")
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, whole(prefix), now.revision + 1))
        stream.create(WatchCreate(2, whole(prefix), now.revision + 1))
        stream.cancel(1)
        cancelled = False
        with trio.fail_after(60):
            while not cancelled:
                responses = await stream.receive()
                cancelled = any(r.canceled and r.watch_id == 1 for r in responses)
        await etcd.put(prefix + b"k", b"")
        ids: list[int] = []
        with trio.fail_after(60):
            while not ids:
                ids = [r.watch_id for r in await stream.receive() if r.events]
        assert ids == [2]


async def test_a_watch_below_the_compaction_is_cancelled(
    own_conformance_server: OwnEtcd | MemoryStore, connect: Connect
) -> None:
    """With the revision that is still readable, and no header revision to resume from."""
    async with (
        connect(own_conformance_server.endpoint) as etcd,
        etcd.watch() as stream,
    ):
        revision = 0
        for _ in range(5):
            revision = (await etcd.put(b"k", b"")).revision
        await etcd.compact(revision - 1)
        with pytest.raises(Compacted):
            await etcd.range(KeyRange.of_key(b"k"), revision=revision - 2)
        assert (await etcd.range(KeyRange.of_key(b"k"), revision=revision - 1)).kvs
        stream.create(WatchCreate(7, KeyRange.of_key(b"k"), 1))
        responses: list[WatchResponse] = []
        while not any(response.canceled for response in responses):
            responses += await next_response(stream)
        last = responses[-1]
        assert (last.watch_id, last.compact_revision, last.revision) == (7, revision - 1, 0)


async def test_leases(etcd: EtcdClient, prefix: bytes) -> None:
    """Grant, renew, revoke: the keys of a lease go with it."""
    lease = await etcd.lease_grant(60)
    await etcd.put(prefix + b"k", b"", lease=lease.id)
    assert (await etcd.range(whole(prefix))).kvs[0].lease == lease.id
    assert (await etcd.lease_keep_alive(lease.id)).ttl == lease.ttl
    await etcd.lease_revoke(lease.id)
    assert (await etcd.range(whole(prefix))).kvs == []
    with pytest.raises(LeaseNotFound):
        await etcd.lease_keep_alive(lease.id)
    with pytest.raises(LeaseNotFound):
        await etcd.lease_revoke(lease.id)
    with pytest.raises(LeaseNotFound):
        await etcd.put(prefix + b"k", b"", lease=lease.id)


@pytest.mark.slow
async def test_a_lease_that_nobody_renews_expires(etcd: EtcdClient, prefix: bytes) -> None:
    """Its keys are deleted at one revision, which a watch sees; not before its time."""
    lease = await etcd.lease_grant(2)
    began = trio.current_time()
    puts = [Put(prefix + b"%d" % number, b"", lease.id) for number in range(3)]
    await etcd.txn(Txn([], [*puts, Put(prefix + b"stays", b"")]))
    # The last put counts: it hangs on no lease.
    await etcd.put(puts[2].key, b"")
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, whole(prefix), 0))
        events = await events_of(stream, 2)
    assert trio.current_time() - began >= lease.ttl - 0.1
    assert [(event.key, event.is_delete) for event in events] == [(p.key, True) for p in puts[:2]]
    assert len({event.mod_revision for event in events}) == 1
    assert [kv.key for kv in (await etcd.range(whole(prefix))).kvs] == [
        puts[2].key,
        prefix + b"stays",
    ]


async def test_refusals_are_told_apart(etcd: EtcdClient, prefix: bytes) -> None:
    """Each has an error of its own, and none is taken for an outage."""
    with pytest.raises(RequestTooLarge):
        await etcd.put(prefix + b"big", b"x" * 2_000_000)
    with pytest.raises(FutureRevision):
        await etcd.range(whole(prefix), revision=10**12)
    with pytest.raises(InvalidRequest, match="duplicate key"):
        await etcd.txn(Txn([], [Put(prefix, b""), Put(prefix, b"")]))
    with pytest.raises(InvalidRequest, match="too many operations"):
        await etcd.txn(Txn([], [Put(prefix + b"%d" % n, b"") for n in range(129)]))


async def test_status(etcd: EtcdClient, conformance_server: EtcdServer | MemoryStore) -> None:
    """The member tells its version."""
    status = await etcd.status()
    assert status.version == str(conformance_server.version)
    assert status.leader != 0
    assert status.db_size > 0


async def test_the_next_endpoint_is_used_after_a_failure(
    conformance_server: EtcdServer | MemoryStore, connect: Connect
) -> None:
    """The call itself tries each member once."""
    nobody = f"127.0.0.1:{free_port()}"
    async with connect(f"{nobody},{conformance_server.endpoint}") as etcd:
        assert (await etcd.status()).version == str(conformance_server.version)
    async with connect(f"{nobody},127.0.0.1:{free_port()}") as etcd:
        with pytest.raises(Unavailable):
            await etcd.status()


async def test_a_stopped_server_is_a_timeout(
    own_conformance_server: OwnEtcd | MemoryStore, connect: Connect
) -> None:
    """A read is Unavailable, a write has an unknown outcome, and the stream fails with them."""
    server = own_conformance_server
    async with (
        connect(server.endpoint, request_timeout=1.5) as etcd,
        etcd.watch() as stream,
    ):
        stream.create(WatchCreate(1, KeyRange.of_key(b"k"), 1))
        await next_response(stream)
        # A connection is there, so the write leaves this machine.
        await etcd.put(b"k", b"")
        await next_response(stream)
        server.suspend()
        with pytest.raises(OutcomeUnknown):
            await etcd.put(b"k", b"")
        with trio.move_on_after(0.1) as waiting:
            await stream.receive()
        # A slow write says nothing of the connection, a slow read does.
        assert waiting.cancelled_caught
        with pytest.raises(Unavailable) as caught:
            await etcd.range(KeyRange.of_key(b"k"))
        assert not isinstance(caught.value, OutcomeUnknown)
        with pytest.raises(Unavailable):
            await next_response(stream)
        server.resume()
        with trio.fail_after(60):
            while True:
                try:
                    await etcd.range(KeyRange.of_key(b"k"))
                    break
                except Unavailable:
                    continue


async def test_cancellation_frees_everything(etcd: EtcdClient, prefix: bytes) -> None:
    """Cancelled calls and streams leave no thread, and the connection goes on working."""
    await etcd.put(prefix + b"k", b"")
    before = threading.active_count()
    for _ in range(20):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery, etcd.watch() as stream:
                stream.create(WatchCreate(1, whole(prefix), 1))
                nursery.start_soon(etcd.range, whole(prefix))
                nursery.start_soon(etcd.put, prefix + b"k", b"")
                await stream.receive()
                scope.cancel()
    await eventually(lambda: threading.active_count() <= before + 2)
    assert (await etcd.range(whole(prefix))).total == 1


async def test_pages_are_of_one_revision(
    etcd: EtcdClient, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that are written between two pages are not seen; sizes are bounded by bytes."""
    monkeypatch.setattr("etcd_actions.etcd.paging._FIRST_LIMIT", 5)
    monkeypatch.setattr("etcd_actions.etcd.paging._LEAST_LIMIT", 1)
    for number in range(40):
        await etcd.put(prefix + b"%02d" % number, b"x" * 1000)
    sizes: list[int] = []
    seen: list[bytes] = []
    revision = 0
    async with open_pages(etcd, whole(prefix), page_bytes=10_500) as pages:
        async for page in pages:
            await etcd.put(prefix + b"%02d" % (39 if not sizes else 0), b"new")
            sizes.append(len(page.kvs))
            seen += [kv.key for kv in page.kvs if kv.value != b"new"]
            revision = page.revision
    assert seen == [prefix + b"%02d" % number for number in range(40)]
    assert sizes == [5, *[10] * 3, 5]
    assert 0 < revision < (await etcd.range(whole(prefix))).revision


async def test_a_page_reader_may_stop_early(etcd: EtcdClient, prefix: bytes) -> None:
    """Leaving the context ends the fetching."""
    for number in range(3):
        await etcd.put(prefix + b"%d" % number, b"")
    async with open_pages(etcd, whole(prefix)) as pages:
        assert (await pages.receive()).total == 3


@pytest.mark.bulk
async def test_an_answer_of_many_megabytes(etcd: EtcdClient, prefix: bytes) -> None:
    """Larger than what gRPC takes unless it is told to; keys and values are any bytes."""
    for number in range(6):
        await etcd.put(prefix + bytes((number, 0, 255)), bytes((number,)) * 1_000_000)
    found = await etcd.range(whole(prefix))
    assert [(kv.key, len(kv.value), kv.value[:1]) for kv in found.kvs] == [
        (prefix + bytes((number, 0, 255)), 1_000_000, bytes((number,))) for number in range(6)
    ]


@pytest.mark.bulk
async def test_a_watch_from_the_past_brings_history(etcd: EtcdClient, prefix: bytes) -> None:
    """Every change since, in order, though etcd sends them in several messages."""
    first = (await etcd.put(prefix + b"k", b"0")).revision
    for batch in range(25):
        puts = [Put(prefix + b"%d-%d" % (batch, number), b"v") for number in range(100)]
        await etcd.txn(Txn([], puts))
    for number in range(1, 40):
        await etcd.put(prefix + b"k", b"%d" % number)
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, whole(prefix), first))
        events = await events_of(stream, 2540)
    assert [e.value for e in events if e.key == prefix + b"k"] == [b"%d" % n for n in range(40)]
    revisions = [event.mod_revision for event in events]
    assert revisions == sorted(revisions)
    assert len({event.key for event in events}) == 2501


async def test_a_later_range_on_an_open_stream(etcd: EtcdClient, prefix: bytes) -> None:
    """A watcher may be added, and one that ended asked for again under another id."""
    now = await etcd.put(prefix + b"a", b"")
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, KeyRange(prefix + b"a", prefix + b"b"), now.revision + 1))
        await next_response(stream)
        stream.create(WatchCreate(2, KeyRange(prefix + b"b", prefix + b"c"), now.revision + 1))
        await etcd.put(prefix + b"a", b"1")
        await etcd.put(prefix + b"b", b"2")
        by_id: dict[int, bytes] = {}
        with trio.fail_after(60):
            while len(by_id) < 2:
                for response in await stream.receive():
                    for event in response.events:
                        by_id[response.watch_id] = event.value
        assert by_id == {1: b"1", 2: b"2"}


async def test_what_operators_ask(
    etcd: EtcdClient, conformance_server: EtcdServer | MemoryStore
) -> None:
    """Members and alarms; and whether users are wanted, from 3.5 on."""
    (member,) = await etcd.members()
    assert member.id == (await etcd.status()).member_id
    assert not member.is_learner
    assert all(url.startswith("http://") for url in member.client_urls)
    assert await etcd.alarms() == ()
    if conformance_server.version < (3, 5, 0):
        with pytest.raises(InvalidRequest):
            await etcd.auth_enabled()
    else:
        assert await etcd.auth_enabled() is False
    with pytest.raises(InvalidRequest, match="user name not found"):
        await etcd.user_roles("nobody")
    with pytest.raises(InvalidRequest, match="role name not found"):
        await etcd.role_permissions("nothing")


async def test_a_write_that_is_cancelled_is_done_or_not(etcd: EtcdClient, prefix: bytes) -> None:
    """Never half, and the connection goes on."""
    for number in range(20):
        with trio.move_on_after(number / 10_000):
            await etcd.txn(Txn([], [Put(prefix + b"%d-%d" % (number, n), b"") for n in range(3)]))

    async def whole_writes() -> bool:
        keys = [kv.key.split(b"-")[-2] for kv in (await etcd.range(whole(prefix))).kvs]
        return all(keys.count(key) == 3 for key in keys)

    assert await whole_writes()


async def test_the_reflector_follows(etcd: EtcdClient, prefix: bytes) -> None:
    """What is there, then what changes, over whatever carries it."""
    sink = RecordingSink()
    first = (await etcd.put(prefix + b"flyte/r-a0", b"1")).revision
    async with reflecting(etcd, prefix, sink):
        await etcd.put(prefix + b"flyte/r-a0", b"2")
        await etcd.txn(Txn([], [Put(prefix + b"flyte/r-%d" % n, b"v") for n in range(100)]))
        await etcd.delete(KeyRange.of_key(prefix + b"flyte/r-a0"))
        await judge_delivery(sink, etcd, prefix, since=first)


@pytest.mark.bulk
async def test_compare_and_swap_under_contention(etcd: EtcdClient, prefix: bytes) -> None:
    """Of any number of writers at once one wins each round, and no increment is lost."""
    store = Store(etcd)
    key = prefix + b"counter"
    await etcd.put(key, b"0")

    async def increment() -> None:
        for _ in range(5):
            applied = False
            while not applied:
                seen = await store.get(key)
                assert seen is not None
                applied = (await store.compare_and_put(seen, b"%d" % (int(seen.value) + 1))).applied

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(increment)
    final = await store.get(key)
    assert final is not None
    assert (final.value, final.version) == (b"40", 41)
