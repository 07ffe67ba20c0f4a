"""The same bounds and boundaries where connections are encrypted."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from etcd_actions.web import HttpLimits, ServerTls
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually
from tests.web.listeners import DEADLINE, Served, Small, connect, request, served


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> ServerTls:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return ServerTls(cert=cert, key=key)


@asynccontextmanager
async def client(
    server: Served, authority: trustme.CA
) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    stream = trio.SSLStream(
        await connect(server.address), context, server_hostname="localhost", https_compatible=True
    )
    with trio.fail_after(DEADLINE):
        try:
            await stream.do_handshake()
            yield stream
        finally:
            await trio.aclose_forcefully(stream)


async def rest(stream: trio.SSLStream[trio.SocketStream]) -> bytes:
    data = b""
    while part := await stream.receive_some():
        data += part
    return data


async def test_an_idle_connection_is_closed(tls: ServerTls, authority: trustme.CA) -> None:
    async with (
        served(limits=HttpLimits(idle_timeout=0.1), tls=tls) as server,
        client(server, authority) as stream,
    ):
        await stream.send_all(request("/ok"))
        assert (await rest(stream)).endswith(b"\r\n\r\nok")
        await eventually(lambda: server.listener.statistics().open_connections == 0)
        assert server.listener.statistics().closed == {"idle": 1}
        assert server.containment.failures == {}


async def test_an_answer_comes_whole_before_the_connection_is_closed(
    tls: ServerTls, authority: trustme.CA
) -> None:
    async with served(tls=tls) as server, client(server, authority) as stream:
        await stream.send_all(request("/ok", "connection: close"))
        assert (await rest(stream)).endswith(b"\r\n\r\nok")
        assert server.containment.failures == {}


@pytest.mark.parametrize(
    "sent", first_everyday([b"", b"\x16\x03", b"GET /ok HTTP/1.1\r\n\r\n", b"\xff" * 3000], 2)
)
async def test_a_handshake_that_comes_to_nothing_ends_its_connection_alone(
    tls: ServerTls, authority: trustme.CA, sent: bytes
) -> None:
    limits = HttpLimits(handshake_timeout=0.2)
    async with served(limits=limits, tls=tls) as server:
        async with await connect(server.address) as stream:
            await stream.send_all(sent)
            with trio.fail_after(DEADLINE):
                try:
                    while await stream.receive_some():
                        continue
                except trio.BrokenResourceError:
                    assert sent
        await eventually(lambda: server.listener.statistics().open_connections == 0)
        assert server.listener.statistics().closed == {"handshake": 1}
        assert server.containment.failures == {}
        async with client(server, authority) as other:
            await other.send_all(request("/ok", "connection: close"))
            assert (await rest(other)).endswith(b"ok")


async def test_requests_under_way_are_finished_when_it_ends(
    tls: ServerTls, authority: trustme.CA
) -> None:
    application = Small()
    async with trio.open_nursery() as nursery:
        end = trio.Event()

        async def serve(task_status: trio.TaskStatus[Served]) -> None:
            async with served(application, tls=tls, on_leave=application.go.set) as server:
                task_status.started(server)
                await end.wait()
            assert server.containment.failures == {}

        server = await nursery.start(serve)
        async with client(server, authority) as stream:
            await stream.send_all(request("/wait"))
            await eventually(lambda: application.waiting == 1)
            end.set()
            assert (await rest(stream)).endswith(b"waited")


async def test_a_client_that_takes_nothing_is_given_up(
    tls: ServerTls, authority: trustme.CA
) -> None:
    application = Small()
    async with (
        served(application, HttpLimits(stall_timeout=0.3), tls=tls) as server,
        client(server, authority) as stream,
    ):
        await stream.send_all(request("/large"))
        await eventually(lambda: application.begun == 1)
        await eventually(lambda: application.waiting == 0)
        await eventually(lambda: server.listener.statistics().open_connections == 0)
        assert server.containment.failures == {}
