"""How a channel connects, to whom, and what it says where it cannot."""

from __future__ import annotations

import math
import socket
import ssl
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from etcd_actions._internal.backoff import Backoff
from etcd_actions.http2 import CallFailed, Channel, ChannelSettings, Code, Target, open_channel
from etcd_actions.http2.connection import ClientConnection
from tests.support.etcd_server import free_port
from tests.support.http2_server import answering, serving, silent
from tests.support.waiting import eventually

PATIENCE = 30.0


async def echo(channel: Channel, message: bytes = b"message") -> None:
    assert await channel.unary("/s/m", message, within=PATIENCE) == message


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, protocols: list[str]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("server.example").configure_cert(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def encrypted(authority: trustme.CA, server: Target, name: str | None) -> Target:
    def context() -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(made)
        return made

    return Target(host=server.host, port=server.port, tls=context, server_name=name)


class TestConnecting:
    async def test_nobody_listens(self) -> None:
        async with open_channel(Target(host="127.0.0.1", port=free_port())) as channel:
            with pytest.raises(CallFailed, match="Connection refused") as caught:
                await echo(channel)
        failure = caught.value
        assert (failure.code, failure.not_done, failure.connected) == (
            Code.UNAVAILABLE,
            True,
            False,
        )

    async def test_no_such_name(self) -> None:
        async with open_channel(Target(host="etcd.invalid", port=1)) as channel:
            with pytest.raises(CallFailed, match="connecting failed"):
                await echo(channel)

    async def test_a_server_that_says_nothing(self) -> None:
        """It accepts the connection, and is given up after the dial time-out."""
        settings = ChannelSettings(dial_timeout=0.1)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            target = Target(host="127.0.0.1", port=listener.getsockname()[1])
            async with open_channel(target, settings) as channel:
                with trio.fail_after(PATIENCE), pytest.raises(CallFailed, match="no HTTP/2 within"):
                    await echo(channel)

    async def test_a_server_of_another_kind(self) -> None:
        async def serve(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            target = Target(host="127.0.0.1", port=listeners[0].socket.getsockname()[1])
            async with open_channel(target) as channel:
                with pytest.raises(CallFailed, match=r"speaks HTTP/1\.1 only") as caught:
                    await echo(channel)
                assert caught.value.not_done
            nursery.cancel_scope.cancel("seen enough")

    async def test_after_a_failure_calls_fail_at_once_for_a_while(self) -> None:
        """And then the next try finds the server that has come."""
        port = free_port()
        settings = ChannelSettings(backoff=Backoff(0.5, 0.5))
        async with open_channel(Target(host="127.0.0.1", port=port), settings) as channel:
            for _ in range(20):
                with pytest.raises(CallFailed, match="Connection refused"):
                    await echo(channel)
            assert channel._failures == 1
            with trio.fail_after(PATIENCE):
                while channel._failures < 2:
                    with pytest.raises(CallFailed, match="Connection refused"):
                        await echo(channel)

    async def test_a_caller_that_gives_up_leaves_the_connection_to_others(self) -> None:
        async with serving(answering) as server, open_channel(server.target) as channel:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(channel.connect, within=math.inf))
                    await trio.lowlevel.checkpoint()
                    scope.cancel("not wanted")
            await echo(channel)
            assert len(server.connections) == 1

    async def test_a_unix_socket(self, tmp_path: Path) -> None:
        path = tmp_path / "socket"
        async with serving(answering, unix=path) as server:
            async with open_channel(server.target) as channel:
                await echo(channel, b"x" * 300_000)
            assert server.last.peer.requests[1].headers[":authority"] == "localhost"

    async def test_an_address_of_version_6(self) -> None:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
        async with serving(answering, host="::1") as server, open_channel(server.target) as channel:
            await echo(channel)
            assert server.last.peer.requests[1].headers[":authority"].startswith("[::1]:")

    async def test_a_closed_channel(self) -> None:
        async with serving(silent) as server, open_channel(server.target) as channel:
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    with pytest.raises(CallFailed, match="closed"):
                        await echo(channel)

                nursery.start_soon(call)
                await eventually(lambda: bool(server.connections and server.last.open_calls))
                channel.close()
            with pytest.raises(CallFailed, match="the channel is closed"):
                await echo(channel)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unexpected"),
        MemoryError(),
        SystemExit(1),
        BaseExceptionGroup("several", [RuntimeError("a"), SystemExit(1)]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_goes_wrong_inside_ends_one_connection(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls fail, the next one connects anew, and nothing else ends."""
    async with serving(answering) as server, open_channel(server.target) as channel:
        await echo(channel)
        with monkeypatch.context() as patched:

            def receive(_: ClientConnection, __: bytes) -> None:
                raise error

            patched.setattr(ClientConnection, "receive", receive)
            with pytest.raises(CallFailed) as caught:
                await echo(channel)
            assert not caught.value.not_done
        await echo(channel)
        assert len(server.connections) == 2


class TestEncrypted:
    """TLS, and HTTP/2 agreed on by ALPN or not."""

    async def test_calls(self, authority: trustme.CA) -> None:
        """Small ones, and such that fill sockets in both directions."""
        context = server_context(authority, ["h2"])
        async with serving(answering, context=context) as server:
            target = encrypted(authority, server.target, "server.example")
            async with open_channel(target) as channel:
                await echo(channel)
                async with trio.open_nursery() as nursery:
                    for size in (1, 70_000, 5_000_000):
                        nursery.start_soon(echo, channel, b"x" * size)
            assert server.last.peer.requests[1].headers[":scheme"] == "https"

    async def test_a_server_that_chooses_no_protocol_may_speak_it_all_the_same(
        self, authority: trustme.CA
    ) -> None:
        context = server_context(authority, [])
        async with serving(answering, context=context) as server:
            target = encrypted(authority, server.target, "server.example")
            async with open_channel(target) as channel:
                await echo(channel)

    @pytest.mark.parametrize("name", [None, "other.example"])
    async def test_another_name(self, authority: trustme.CA, name: str | None) -> None:
        context = server_context(authority, ["h2"])
        async with (
            serving(answering, context=context) as server,
            open_channel(encrypted(authority, server.target, name)) as channel,
        ):
            with pytest.raises(CallFailed, match="mismatch") as caught:
                await echo(channel)
            assert caught.value.not_done
