"""Which connections are open: within the budget, and with descriptors left for the rest."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions.errors import ConfigError
from etcd_actions.monitoring.monitoring import _LIMITS as PROBES
from etcd_actions.web import HttpLimits, descriptors
from etcd_actions.web.open_connections import Connections
from tests.support.waiting import eventually
from tests.web.listeners import (
    Served,
    Small,
    connect,
    get,
    request,
    served,
    sockets,
)

DESCRIPTORS = Path("/proc/self/fd")


async def ok(stream: trio.SocketStream, sent: bytes = request("/ok")) -> bool:
    """Whether a request is answered on a connection that is kept."""
    await stream.send_all(sent)
    data = b""
    with trio.fail_after(10):
        while not data.endswith((b"\r\n\r\nok", b"\r\n\r\nwaited")):
            part = await stream.receive_some()
            if not part:
                return False
            data += part
    return data.startswith(b"HTTP/1.1 200")


async def test_a_new_connection_replaces_the_oldest_without_a_request() -> None:
    application = Small()
    limits = HttpLimits(connections=4, connections_per_address=4)
    async with served(application, limits) as server, AsyncExitStack() as stack:
        busy = await stack.enter_async_context(await connect(server.address))
        await busy.send_all(request("/wait"))
        await eventually(lambda: application.waiting == 1)
        served_once = await stack.enter_async_context(await connect(server.address))
        assert await ok(served_once)
        with sockets(server.address, 50) as idle:
            await server.is_well()
            statistics = server.listener.statistics()
            assert statistics.open_connections <= 4
            assert statistics.closed["replaced"] >= 48
            assert len(idle) == 50
        application.go.set()
        assert await ok(busy, b"")


async def test_where_all_have_requests_a_new_connection_is_closed_and_counted() -> None:
    application = Small()
    limits = HttpLimits(connections=2, connections_per_address=2)
    with capture_logs() as logs:
        async with served(application, limits) as server, AsyncExitStack() as stack:
            for _ in range(2):
                stream = await stack.enter_async_context(await connect(server.address))
                await stream.send_all(request("/wait"))
            await eventually(lambda: application.waiting == 2)
            with sockets(server.address, 30) as refused:
                await eventually(lambda: server.listener.statistics().refused == {"address": 30})
                assert all(each.recv(1) == b"" for each in refused)
            application.go.set()
            await eventually(lambda: application.waiting == 0)
            await server.is_well()
    lines = [line for line in logs if line["event"] == "connections_refused"]
    assert [(line["reason"], line["listener"]) for line in lines] == [("address", "--listen")]


async def test_where_requests_are_short_a_new_connection_replaces_a_busy_one() -> None:
    application = Small()
    limits = HttpLimits(connections=2, connections_per_address=2, replaces_busy=True)
    async with served(application, limits) as server, AsyncExitStack() as stack:
        for _ in range(2):
            stream = await stack.enter_async_context(await connect(server.address))
            await stream.send_all(request("/wait"))
        await eventually(lambda: application.waiting == 2)
        await server.is_well()
        application.go.set()


async def test_addresses_are_counted_apart_and_a_network_of_ipv6_as_one() -> None:
    connections = Connections(10, 2, replaces_busy=False)
    for number in range(2):
        connections.add("peer", f"2001:db8::{number}", lambda: None)
    full = connections.limit_for("2001:db8::ffff")
    assert full is not None
    assert full[0] == "address"
    assert connections.limit_for("2001:db8:0:1::1") is None
    assert connections.limit_for("10.0.0.1") is None


async def test_what_makes_room_for_a_new_connection(autojump_clock: object) -> None:
    """Unused ones first, then the longest idle; what is young or has a request, last."""
    connections = Connections(5, 5, replaces_busy=True)
    slots = {}
    for name in ("idle", "busy", "unused"):
        slots[name] = connections.add(name, "10.0.0.1", lambda: None)
    slots["idle"].busy()
    slots["idle"].idle()
    slots["busy"].busy()
    await trio.sleep(2)
    for name in ("young idle", "young"):
        slots[name] = connections.add(name, "10.0.0.1", lambda: None)
    slots["young idle"].busy()
    slots["young idle"].idle()
    order = []
    while (slot := connections.replaceable("10.0.0.1")) is not None:
        order.append(slot.peer)
        slot.replace()
    assert order == ["unused", "idle", "young", "young idle", "busy"]
    assert len(connections) == 0


async def test_an_address_does_not_push_out_one_that_has_fewer(autojump_clock: object) -> None:
    connections = Connections(6, 5, replaces_busy=False)
    for number in range(4):
        connections.add(f"many {number}", "10.0.0.1", lambda: None).busy()
    few = [connections.add(f"few {number}", "10.0.0.2", lambda: None) for number in range(2)]
    for slot in few:
        slot.busy()
        slot.idle()
    await trio.sleep(2)
    assert connections.limit_for("10.0.0.1") == ("total", None)
    assert connections.limit_for("10.0.0.3") == ("total", few[0])
    few[0].replace()
    few[1].replace()
    unused = connections.add("unused", "10.0.0.2", lambda: None)
    connections.add("other", "10.0.0.4", lambda: None).busy()
    await trio.sleep(2)
    assert connections.limit_for("10.0.0.1") == ("total", unused)


async def test_a_connection_that_is_not_counted_is_not_open() -> None:
    """Also one whose place was taken before it was looked at for the first time."""
    application = Small()
    limits = HttpLimits(connections=6, connections_per_address=4)
    async with served(application, limits) as server:
        used = []
        with sockets(server.address, 4) as found:
            for each in found:
                each.setblocking(False)
                each.send(request("/ok"))
            await eventually(lambda: server.listener.statistics().accepted == 4)
            await trio.testing.wait_all_tasks_blocked(0.05)
            used.extend(found)
            with sockets(server.address, 40) as more:
                for each in more:
                    each.setblocking(False)
                    with suppress(OSError):
                        each.send(request("/ok"))
                statistics = server.listener.statistics
                await eventually(lambda: statistics().accepted == 44)
                await trio.testing.wait_all_tasks_blocked(0.2)
                still_open = [each for each in used + more if is_open(each)]
                assert len(still_open) == statistics().open_connections <= 4


def is_open(sock: socket.socket) -> bool:
    try:
        while sock.recv(2**16):
            continue
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """A process that may have few more descriptors than it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = taken() + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def taken() -> int:
    return len(list(DESCRIPTORS.iterdir()))


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="needs /proc")
async def test_connections_leave_descriptors_to_the_rest(few_descriptors: int) -> None:
    """Both ends are in this process here, so that the limit is met from both sides."""
    async with served() as server, AsyncExitStack() as stack:
        limit = descriptors.ceiling(HttpLimits())
        open_ones = 0
        while taken() < limit + 5 and open_ones < 400:
            stream = await stack.enter_async_context(await connect(server.address))
            assert stream is not None
            open_ones += 1
        statistics = server.listener.statistics
        await eventually(lambda: statistics().refused.get("descriptors", 0) > 0)
        assert few_descriptors - taken() > 20


@pytest.mark.parametrize("most", [16, 64, 128, 200, 256, 257, 300, 1024, 10_240, 2**20])
def test_probes_have_descriptors_that_the_service_cannot_take(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "limit", lambda: most)
    service, probes = descriptors.ceiling(HttpLimits()), descriptors.ceiling(PROBES)
    assert most // 2 <= service < probes < most
    assert probes - service >= most // 10


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        assert descriptors.raise_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_more_connections_than_descriptors_are_refused_with_the_flag() -> None:
    limits = HttpLimits(connections=2**31)
    with pytest.raises(ConfigError, match="--listen: 2147483648 connections"):
        async with served(limits=limits):
            raise AssertionError("it serves")


@pytest.mark.parametrize("many", [100])
async def test_an_idle_flood_does_not_keep_others_out(many: int) -> None:
    limits = HttpLimits(connections=20)
    async with served(limits=limits) as server:
        with sockets(server.address, many):
            for _ in range(5):
                assert await get(server.address, "/ok") == (200, b"ok")
        await _is_empty(server)


async def _is_empty(server: Served) -> None:
    await eventually(lambda: server.listener.statistics().open_connections == 0)
