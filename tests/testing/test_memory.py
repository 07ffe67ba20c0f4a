"""What an etcd in memory does that a real one is not asked for: faults, orders, its clock."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
import trio.testing

from etcd_actions.errors import (
    InvalidRequest,
    LeaseNotFound,
    NoSpace,
    OutcomeUnknown,
    PermissionDenied,
    RequestTooLarge,
    Unavailable,
)
from etcd_actions.etcd.api import AlarmType, Etcd, KeyRange, Put, Txn, WatchCreate, WatchStream
from etcd_actions.testing import MemoryClient, MemoryStore, any_call
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory

KEY = b"/k"
KEYS = KeyRange.of_key(KEY)


@pytest.fixture
def client(memory: MemoryStore) -> MemoryClient:
    return memory.client(request_timeout=3)


def test_the_example_of_the_documentation() -> None:
    """As it stands there."""
    text = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    (example,) = [
        each
        for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "MemoryStore" in each
    ]
    names: dict[str, Any] = {}
    exec(compile(example, "docs/testing.md", "exec"), names)
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(partial(names["test_what_a_lost_answer_leaves"], clock), clock=clock)


async def value(etcd: Etcd) -> bytes | None:
    kvs = (await etcd.range(KEYS)).kvs
    return kvs[0].value if kvs else None


async def next_values(stream: WatchStream) -> list[bytes]:
    """The values of the next events; ``created`` is no event."""
    while True:
        values = [event.value for each in await stream.receive() for event in each.events]
        if values:
            return values


async def test_clients_share_a_store(memory: MemoryStore) -> None:
    """A client that is closed, or cut off, takes nothing from the others."""
    one, other = memory.client(), memory.client()
    await one.put(KEY, b"1")
    assert await value(other) == b"1"
    one.close()
    with pytest.raises(trio.ClosedResourceError, match="closed"):
        await one.range(KEYS)
    other.faults.cut()
    assert await value(memory.client()) == b"1"


async def test_a_cut_ends_what_is_under_way(memory: MemoryStore, client: MemoryClient) -> None:
    """Reads are unavailable, writes of unknown outcome; the stream fails after what it got."""
    async with client.watch() as stream:
        stream.create(WatchCreate(1, KEYS, 0))
        await client.put(KEY, b"before")
        client.faults.latency = 1
        with pytest.RaisesGroup(OutcomeUnknown, Unavailable):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.put, KEY, b"under way")
                nursery.start_soon(client.range, KEYS)
                await trio.testing.wait_all_tasks_blocked()
                client.faults.cut()
        client.faults.latency = 0
        await memory.client().put(KEY, b"after")
        assert await next_values(stream) == [b"before"]
        with pytest.raises(Unavailable):
            await stream.receive()
    with pytest.raises(Unavailable) as caught:
        await client.put(KEY, b"not sent")
    assert not isinstance(caught.value, OutcomeUnknown)
    async with client.watch() as stream:
        with pytest.raises(Unavailable):
            await stream.receive()
    client.faults.heal()
    assert await value(client) == b"after"


async def test_a_broken_connection_is_made_again(client: MemoryClient) -> None:
    """Only what was under way feels it."""
    async with client.watch() as stream:
        client.faults.break_connections()
        await client.put(KEY, b"1")
        with pytest.raises(Unavailable):
            await stream.receive()
    assert await value(client) == b"1"


@pytest.mark.parametrize("applied", [True, False])
async def test_an_answer_is_lost(client: MemoryClient, applied: bool) -> None:
    """The write was applied, or was not; the caller cannot tell, and the next call is answered."""
    client.faults.lose_answer(applied=applied, which=lambda call: call.method == "KV/Txn")
    await client.put(KEY, b"0")
    with pytest.raises(OutcomeUnknown):
        await client.txn(Txn([], [Put(KEY, b"1")]))
    assert await value(client) == (b"1" if applied else b"0")
    await client.txn(Txn([], [Put(KEY, b"2")]))
    assert await value(client) == b"2"


async def test_a_lost_read_changes_nothing(client: MemoryClient) -> None:
    client.faults.lose_answer(applied=True, which=any_call, times=2)
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            await client.range(KEYS)
        assert not isinstance(caught.value, OutcomeUnknown)
    assert await value(client) is None


async def test_a_refusal_is_of_the_calls_that_count(client: MemoryClient) -> None:
    """And it names what the caller needs, as etcd's own."""
    client.faults.refuse(
        PermissionDenied("etcdserver: permission denied"),
        which=lambda call: isinstance(call.request, Put) and call.request.key == KEY,
    )
    await client.put(b"/other", b"")
    with pytest.raises(PermissionDenied, match="needs"):
        await client.put(KEY, b"")
    await client.put(KEY, b"")


async def test_a_watcher_is_refused(client: MemoryClient) -> None:
    """As by an etcd whose user may not watch; the answer names who needs what."""
    client.faults.watch_refusal = "etcdserver: permission denied"
    async with client.watch() as stream:
        stream.create(WatchCreate(1, KEYS, 0))
        (refused,) = await stream.receive()
        assert (refused.watch_id, refused.created, refused.canceled) == (-1, True, True)
        assert "permission denied: the user of" in refused.cancel_reason
        client.faults.watch_refusal = ""
        stream.create(WatchCreate(2, KEYS, 0))
        (created,) = await stream.receive()
        assert (created.watch_id, created.canceled) == (2, False)


async def test_a_call_is_held_before_it_is_done(memory: MemoryStore, client: MemoryClient) -> None:
    """So that something happens between a read and the write that depends on it."""
    async with trio.open_nursery() as nursery:
        with client.faults.hold() as held:
            nursery.start_soon(client.put, KEY, b"late")
            await held.reached.wait()
            assert held.call is not None
            assert held.call.request == Put(KEY, b"late")
            await memory.client().put(KEY, b"early")
            assert await value(client) == b"early"
    assert await value(client) == b"late"


async def test_a_stall_is_silence(client: MemoryClient) -> None:
    """Calls time out, and the stream fails when the connection is trusted no longer."""
    async with client.watch() as stream:
        stream.create(WatchCreate(1, KEYS, 0))
        await stream.receive()
        client.faults.stall()
        began = trio.current_time()
        with pytest.raises(OutcomeUnknown):
            await client.put(KEY, b"")
        assert trio.current_time() - began == pytest.approx(3)
        with pytest.raises(Unavailable):
            await stream.receive()
        assert trio.current_time() - began == pytest.approx(13)
    client.faults.heal()
    assert await value(client) is None


async def test_messages_take_their_time(client: MemoryClient) -> None:
    """Each way, and those of streams too."""
    async with client.watch() as stream:
        stream.create(WatchCreate(1, KEYS, 0))
        await stream.receive()
        client.faults.latency = 0.5
        began = trio.current_time()
        await client.put(KEY, b"1")
        assert trio.current_time() - began == pytest.approx(1)
        assert await next_values(stream) == [b"1"]
        assert trio.current_time() - began == pytest.approx(1)


async def test_leases_end_on_trios_clock(memory: MemoryStore, client: MemoryClient) -> None:
    """A reader that waits hears of it at that moment; a renewal begins the time again."""
    short, renewed = await client.lease_grant(3), await client.lease_grant(3)
    began = trio.current_time()
    await client.put(KEY, b"1", lease=short.id)
    await client.put(b"/renewed", b"1", lease=renewed.id)
    async with client.watch() as stream:
        stream.create(WatchCreate(1, KeyRange.of_prefix(b"/"), 0))
        await stream.receive()
        await trio.sleep(2)
        await client.lease_keep_alive(renewed.id)
        ends: list[tuple[bytes, bool, int]] = []
        while len(ends) < 2:
            for response in await stream.receive():
                now = trio.current_time() - began
                ends += [(event.key, event.is_delete, round(now)) for event in response.events]
    assert ends == [(KEY, True, 3), (b"/renewed", True, 5)]
    with pytest.raises(LeaseNotFound):
        await memory.client().lease_keep_alive(short.id)


async def test_without_space_only_writes_are_refused(
    memory: MemoryStore, client: MemoryClient
) -> None:
    await client.put(KEY, b"1")
    memory.alarms.add(AlarmType.NOSPACE)
    refused: list[Callable[[], Awaitable[object]]] = [
        lambda: client.put(KEY, b"2"),
        # A put on a branch that is not taken counts.
        lambda: client.txn(Txn([], [], [Txn([], [Put(KEY, b"2")])])),
        lambda: client.lease_grant(60),
    ]
    for each in refused:
        with pytest.raises(NoSpace):
            await each()
    assert (await client.alarms())[0].type is AlarmType.NOSPACE
    assert (await client.status()).errors
    assert await value(client) == b"1"
    assert (await client.delete(KEYS)).deleted == 1
    memory.alarms.clear()
    await client.put(KEY, b"3")


async def test_what_is_no_request_is_refused(client: MemoryClient) -> None:
    """Before anything is done."""
    with pytest.raises(InvalidRequest, match="cannot be written"):
        await client.put("text", b"")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="key is not provided"):
        await client.put(b"", b"")
    with pytest.raises(RequestTooLarge):
        await client.txn(Txn([], [Put(b"/%d" % n, b"x" * 800_000) for n in range(2)]))
    assert (await client.status()).revision == 1


@pytest.mark.parametrize("order", ["answers_first", "events_first"])
async def test_the_order_of_answer_and_event_is_chosen(
    order: Literal["answers_first", "events_first"],
) -> None:
    client = MemoryStore(order=order).client()
    assert {await first_of_both(client, b"%d" % n) for n in range(20)} == {order}


@pytest.mark.parametrize("seed", first_everyday(range(3)))
async def test_both_orders_come(seed: int) -> None:
    client = MemoryStore(seed=seed).client()
    orders = {await first_of_both(client, b"%d" % n) for n in range(60)}
    assert orders == {"answers_first", "events_first"}


async def first_of_both(client: MemoryClient, key: bytes) -> str:
    """What arrives first: the answer to a put, or its event."""
    arrived: list[str] = []
    async with client.watch() as stream, trio.open_nursery() as nursery:
        stream.create(WatchCreate(1, KeyRange.of_key(key), 0))
        await stream.receive()

        async def read() -> None:
            await stream.receive()
            arrived.append("events_first")

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await client.put(key, b"")
        arrived.append("answers_first")
    return arrived[0]


async def test_every_call_is_a_checkpoint(client: MemoryClient) -> None:
    """A call that is cancelled before it begins is not done."""
    async with client.watch() as stream:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: client.range(KEYS),
            lambda: client.put(KEY, b""),
            lambda: client.delete(KEYS),
            lambda: client.txn(Txn([], [Put(KEY, b"")])),
            lambda: client.compact(1),
            lambda: client.lease_grant(5),
            client.status,
            stream.receive,
        ]
        for call in calls:
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught
            with trio.testing.assert_checkpoints():
                stream.request_progress()
                await call()
    assert (await client.status()).revision == 4


async def test_a_watcher_hears_how_far_it_is(client: MemoryClient) -> None:
    """After ten minutes without an event, where it asked for that."""
    async with client.watch() as stream:
        stream.create(WatchCreate(1, KEYS, 0, progress_notify=True))
        await stream.receive()
        began = trio.current_time()
        (response,) = await stream.receive()
        assert (response.watch_id, response.revision, response.events) == (1, 1, ())
        assert trio.current_time() - began == pytest.approx(600)
