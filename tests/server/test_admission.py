"""Who may ask, how often, how much; and what is told when not."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import grpc
import pytest
import trio
import trustme
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase
from etcd_actions.errors import ConfigError
from etcd_actions.model import ErrorState
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.rate_limit import RateLimit
from etcd_actions.server.tokens import Tokens
from etcd_actions.web import Bind, HttpLimits, ServerTls
from tests.server.clients import SENTINEL, ConnectClient, Failed, GrpcClient, Reading
from tests.server.conftest import LOOPBACK
from tests.support import flyte
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory(jumps=False)

ROOT = ActionId("p", "d", "r1", "a0", "o")
KINDS = (GrpcClient, ConnectClient)
WATCH = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(ROOT))


async def enqueue(asker: GrpcClient | ConnectClient) -> None:
    request = pb.EnqueueRequest(action=flyte.task(ROOT))
    await trio.to_thread.run_sync(asker.call, "Enqueue", request)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_token_is_demanded(
    client: ActionsClient, tmp_path: Path, kind: type[GrpcClient | ConnectClient]
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# of the team\nfirst\n\nsecond\n")
    settings = ServerSettings(bind=LOOPBACK, token_file=tokens)
    async with open_actions_server(client, settings) as server:
        address = str(server.address)
        for token in ("first", "second"):
            await enqueue(kind(address, token))
        for token in ("", "third", "# of the team"):
            with pytest.raises(Failed) as caught:
                await enqueue(kind(address, token))
            assert caught.value.code == "unauthenticated"
            assert "first" not in caught.value.message
            stream = kind(address, token).stream(WATCH)
            reading = Reading(stream)
            await reading.run()
            assert isinstance(reading.error, Failed)
            assert reading.error.code == "unauthenticated"
        tokens.write_text("third, and longer\nfourth\n")
        await enqueue(kind(address, "fourth"))
        with pytest.raises(Failed):
            await enqueue(kind(address, "first"))
        assert "first" not in repr(Tokens(tokens))


@pytest.mark.parametrize("content", ["", "# nothing\n", None])
async def test_a_file_without_tokens_is_refused(
    client: ActionsClient, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="tokens"):
        async with open_actions_server(client, ServerSettings(bind=LOOPBACK, token_file=path)):
            raise AssertionError("it serves")


def test_a_rate_is_kept_by_client() -> None:
    now = 0.0
    limit = RateLimit(2, clock=lambda: now)
    for _ in range(4):
        limit.take("a")
    with pytest.raises(Refusal, match="2 requests a second"):
        limit.take("a")
    limit.take("b")
    now = 1.0
    limit.take("a")
    limit.take("a")
    with pytest.raises(Refusal):
        limit.take("a")


async def test_too_many_requests_are_told_to_slow_down(client: ActionsClient) -> None:
    settings = ServerSettings(bind=LOOPBACK, rate=1)
    async with open_actions_server(client, settings) as server:
        codes = []
        for kind in (*KINDS, *KINDS, *KINDS):
            try:
                await enqueue(kind(str(server.address)))
            except Failed as error:
                codes.append(error.code)
        assert set(codes) == {"resource_exhausted"}
        assert server.statistics().calls["Enqueue", "resource_exhausted"] == len(codes)


# connectrpc leaves a generator to the collector there.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_that_is_too_large_fails_for_good(
    client: ActionsClient, kind: type[GrpcClient | ConnectClient]
) -> None:
    """RESOURCE_EXHAUSTED would be tried again for ever by Flyte's SDK."""
    settings = ServerSettings(bind=LOOPBACK, message_bytes=100)
    async with open_actions_server(client, settings) as server:
        with pytest.raises(Failed) as caught:
            await enqueue(kind(str(server.address)))
    assert caught.value.code == "invalid_argument"
    assert "100" in caught.value.message


async def test_more_streams_than_allowed_are_refused(client: ActionsClient) -> None:
    settings = ServerSettings(bind=LOOPBACK, max_streams=1)
    async with open_actions_server(client, settings) as server, trio.open_nursery() as nursery:
        one = Reading(ConnectClient(str(server.address)).stream(WATCH))
        nursery.start_soon(one.run)
        await one.until(lambda state: state == SENTINEL)
        for kind in KINDS:
            two = Reading(kind(str(server.address)).stream(WATCH))
            await two.run()
            assert isinstance(two.error, Failed)
            assert two.error.code == "resource_exhausted"
        one.close()
        nursery.cancel_scope.cancel()


async def test_headers_have_a_limit(client: ActionsClient) -> None:
    settings = ServerSettings(bind=LOOPBACK, http=HttpLimits(header_bytes=2000))
    async with open_actions_server(client, settings) as server:
        with pytest.raises(Failed) as caught:
            await enqueue(ConnectClient(str(server.address), "x" * 70_000))
        assert caught.value.code.startswith("http 4")
        await enqueue(ConnectClient(str(server.address)))


async def test_tls_and_client_certificates(client: ActionsClient, tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, cert, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(ca)
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    settings = ServerSettings(bind=LOOPBACK, tls=ServerTls(cert=cert, key=key, client_ca=ca))
    mine = authority.issue_cert("somebody")
    async with open_actions_server(client, settings) as server:
        address = str(server.address)
        context = ssl.create_default_context(cafile=str(ca))
        mine.configure_cert(context)
        await enqueue(ConnectClient(address, tls=context))
        stranger = ssl.create_default_context(cafile=str(ca))
        with pytest.raises((ssl.SSLError, OSError)):
            await enqueue(ConnectClient(address, tls=stranger))
        credentials = grpc.ssl_channel_credentials(
            ca.read_bytes(), mine.private_key_pem.bytes(), mine.cert_chain_pems[0].bytes()
        )

        def over_grpc() -> None:
            with grpc.secure_channel(address, credentials) as channel:
                call = channel.unary_unary(
                    "/flyteidl2.actions.ActionsService/Enqueue",
                    request_serializer=pb.EnqueueRequest.SerializeToString,
                    response_deserializer=pb.EnqueueResponse.FromString,
                )
                call(pb.EnqueueRequest(action=flyte.task(ROOT)), timeout=20)

        await trio.to_thread.run_sync(over_grpc)


async def test_certificates_are_read_anew_when_asked(client: ActionsClient, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    before, after = trustme.CA(), trustme.CA()

    def issue(authority: trustme.CA) -> ssl.SSLContext:
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    trusts_before = issue(before)
    settings = ServerSettings(bind=LOOPBACK, tls=ServerTls(cert=cert, key=key))
    async with open_actions_server(client, settings) as server:
        address = str(server.address)
        await enqueue(ConnectClient(address, tls=trusts_before))
        trusts_after = issue(after)
        server.reload()
        await enqueue(ConnectClient(address, tls=trusts_after))
        with pytest.raises((ssl.SSLError, OSError)):
            await enqueue(ConnectClient(address, tls=trusts_before))
        key.write_text("no key")
        with pytest.raises(ConfigError, match="cert"):
            server.reload()
        await enqueue(ConnectClient(address, tls=trusts_after))


async def test_what_cannot_be_served_is_told(
    client: ActionsClient, server: ActionsServer, tmp_path: Path
) -> None:
    nothing = tmp_path / "nothing"
    for settings, word in (
        (ServerSettings(bind=server.address), "--listen"),
        (ServerSettings(bind=Bind("no.such.host.invalid", 1)), "no.such.host"),
        (ServerSettings(bind=LOOPBACK, tls=ServerTls(cert=nothing, key=nothing)), "nothing"),
    ):
        with pytest.raises(ConfigError, match=word):
            async with open_actions_server(client, settings):
                raise AssertionError("it serves")


async def test_what_is_no_http_harms_nobody(client: ActionsClient, server: ActionsServer) -> None:
    def garbage() -> None:
        with socket.create_connection(server.address, timeout=20) as sock:
            sock.sendall(b"\x00\xff garbage\r\n\r\n")
            sock.settimeout(20)
            sock.recv(1000)

    await trio.to_thread.run_sync(garbage)
    await enqueue(ConnectClient(str(server.address)))


async def test_calls_are_counted(client: ActionsClient, server: ActionsServer) -> None:
    await enqueue(GrpcClient(str(server.address)))
    with pytest.raises(Failed):
        await trio.to_thread.run_sync(
            ConnectClient(str(server.address)).call, "Abort", pb.AbortRequest()
        )
    statistics = server.statistics()
    assert statistics.calls == {("Enqueue", "ok"): 1, ("Abort", "invalid_argument"): 1}
    assert set(statistics.times) == {"Enqueue", "Abort"}


@pytest.mark.slow
async def test_a_client_that_takes_nothing_is_given_up(client: ActionsClient) -> None:
    """Over HTTP/1.1, where the system's buffers are all there is between the two."""
    await client.enqueue(flyte.task(ROOT))
    message = "x" * 30_000
    for number in range(150):
        child = ActionId("p", "d", "r1", f"c{number}", "o")
        await client.enqueue(flyte.task(child, "a0"))
        error = ErrorState(code="E", kind="USER", message=message)
        await client.put_status(child, 1, ActionStatus(Phase.FAILED), error=error)
    settings = ServerSettings(bind=LOOPBACK, http=HttpLimits(stall_timeout=0.5))
    async with open_actions_server(client, settings) as server:
        stream = ConnectClient(str(server.address)).stream(WATCH)
        await eventually(lambda: server.statistics().updates > 0)
        assert server.statistics().open_streams == 1
        await eventually(lambda: server.statistics().open_streams == 0)
        assert server.statistics().updates < 151
        stream.close()
