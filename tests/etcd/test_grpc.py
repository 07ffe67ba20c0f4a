"""What only the gRPC transport has."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from etcd_actions import open_etcd
from etcd_actions.etcd import ConnectionSettings
from etcd_actions.etcd.api import Etcd, KeyRange, WatchCreate
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.etcd.grpc.transport import grpc_connections
from etcd_actions.etcd.grpc.watch import GrpcWatchStream
from etcd_actions.http2.connection import STREAM_WINDOW
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually


async def test_the_buffer_of_a_stream_is_bounded_by_bytes(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """A reader that does not read holds etcd back, not memory; nothing is lost by it."""
    async with trio.open_nursery() as nursery:
        settings = ConnectionSettings(endpoints=parse_endpoints(shared_etcd.endpoint))
        connection = grpc_connections(settings, nursery)(settings.endpoints[0])
        async with connection.watch(token="") as stream:
            assert isinstance(stream, GrpcWatchStream)
            assert stream._exchange is not None
            arrived = stream._exchange._stream
            now = await etcd.put(prefix + b"k", b"")
            stream.create(WatchCreate(1, KeyRange.of_prefix(prefix), now.revision + 1))
            for _ in range(40):
                await etcd.put(prefix + b"k", b"x" * 1_000_000)
            await eventually(lambda: arrived.size > 15_000_000)
            assert arrived.size <= STREAM_WINDOW
            events = 0
            with trio.fail_after(60):
                while events < 40:
                    events += sum(len(response.events) for response in await stream.receive())
        connection.close()
    assert events == 40


@pytest.mark.slow
async def test_a_large_answer_holds_up_neither_the_watch_nor_a_lease(
    shared_etcd: EtcdServer, prefix: bytes
) -> None:
    """100 MiB over the connection that they use: renewals and events come in the middle of it."""
    renewed = seen = 0
    async with open_etcd(shared_etcd.endpoint, request_timeout=60) as etcd:
        for number in range(100):
            await etcd.put(prefix + b"large/%d" % number, bytes(1024 * 1024))
        lease = await etcd.lease_grant(60)
        async with etcd.watch() as stream, trio.open_nursery() as nursery:
            stream.create(WatchCreate(1, KeyRange.of_prefix(prefix + b"small/"), 0))

            async def watch() -> None:
                nonlocal seen
                while True:
                    seen += sum(len(response.events) for response in await stream.receive())

            async def renew() -> None:
                nonlocal renewed
                while True:
                    await etcd.put(prefix + b"small/k", b"")
                    await etcd.lease_keep_alive(lease.id)
                    renewed += 1

            nursery.start_soon(watch)
            nursery.start_soon(renew)
            await eventually(lambda: seen > 3 and renewed > 3)
            before = (seen, renewed)
            with trio.fail_after(60):
                listed = await etcd.range(KeyRange.of_prefix(prefix + b"large/"))
            assert seen > before[0] + 1
            assert renewed > before[1] + 1
            nursery.cancel_scope.cancel("seen enough")
        assert sum(len(kv.value) for kv in listed.kvs) == 100 * 1024 * 1024
        await etcd.delete(KeyRange.of_prefix(prefix))


async def test_a_client_that_was_closed_connects_no_more(
    shared_etcd: EtcdServer, prefix: bytes
) -> None:
    """A task that outlives it gets an error, and does not keep its end waiting."""
    with trio.fail_after(30):
        async with open_etcd(shared_etcd.endpoint) as etcd:
            await etcd.put(prefix + b"k", b"")
        with pytest.raises(trio.ClosedResourceError, match="closed"):
            await etcd.put(prefix + b"k", b"")
        async with trio.open_nursery() as nursery, open_etcd(shared_etcd.endpoint) as other:
            closing = trio.Event()

            async def late() -> None:
                await closing.wait()
                with pytest.raises(trio.ClosedResourceError, match="closed"):
                    await other.put(prefix + b"k", b"")

            await other.put(prefix + b"k", b"")
            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            closing.set()
