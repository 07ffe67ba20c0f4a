"""Who may connect, and for which name: users of this machine, Host and Origin."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions.errors import ConfigError
from etcd_actions.web import Bind, peers
from etcd_actions.web.hosts import Hosts
from etcd_actions.web.peers import Peers, open_peers
from tests.support.everyday import first_everyday
from tests.support.table import table
from tests.support.waiting import eventually
from tests.web.listeners import connect, get, h2_client, request, rest, served

OWN = frozenset({os.geteuid()})
STRANGER = 54_321
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")

# All is imported before the files of this python may be out of reach.
ASK = """
import os, socket, sys
host, port, uid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
sock.close()
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
sock.settimeout(20)
try:
    sock.connect((host, port))
    sock.sendall(b"GET /ok HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n")
    print(sock.recv(100)[:12].decode() or "closed")
except OSError:
    print("closed")
"""


def ask_as(uid: int, address: tuple[str, int]) -> str:
    """What another user gets."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, address[0], str(address[1]), str(uid)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


@needs_linux
@needs_root
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_another_user_of_this_machine_gets_nothing(host: str) -> None:
    with capture_logs() as logs:
        async with served(bind=Bind(host, 0), users=OWN) as server:
            for _ in range(3):
                asked = await trio.to_thread.run_sync(ask_as, STRANGER, server.address)
                assert asked == "closed"
            assert server.listener.statistics().refused == {"user": 3}
            await server.is_well()
    lines = [line for line in logs if line["event"] == "connections_refused"]
    assert [(line["reason"], line["uid"]) for line in lines] == [("user", STRANGER)]


@needs_linux
@needs_root
async def test_the_user_that_tasks_run_as_is_let_in() -> None:
    async with served(users=OWN | {STRANGER}) as server:
        assert await trio.to_thread.run_sync(ask_as, STRANGER, server.address) == "HTTP/1.1 200"


@pytest.fixture(params=["netlink", "proc"])
def asked(request: pytest.FixtureRequest) -> Iterator[Peers]:
    """Both ways to ask the kernel."""
    if request.param == "proc":
        yield Peers(None)
    else:
        with open_peers("--listen") as found:
            yield found


@contextmanager
def connection(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            yield client, accepted


def ends(accepted: socket.socket) -> tuple[peers.Address, peers.Address]:
    return accepted.getpeername()[:2], accepted.getsockname()[:2]


@needs_linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernel_tells_the_user_of_the_other_end(asked: Peers, host: str) -> None:
    with connection(host) as (_, accepted):
        assert asked.uid(*ends(accepted)) == os.geteuid()


@needs_linux
def test_a_connection_by_ipv4_to_a_socket_of_ipv6_is_found(asked: Peers) -> None:
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server,
        socket.create_connection(("127.0.0.1", server.getsockname()[1])),
    ):
        accepted, _ = server.accept()
        with accepted:
            peer, here = ends(accepted)
            assert peer[0].startswith("::ffff:")
            assert asked.uid(peer, here) == os.geteuid()


@needs_linux
def test_a_client_that_sends_no_more_is_still_known(asked: Peers) -> None:
    with connection() as (client, accepted):
        client.shutdown(socket.SHUT_WR)
        assert asked.uid(*ends(accepted)) == os.geteuid()


@needs_linux
def test_a_socket_that_is_closed_is_nobodys_and_not_roots(asked: Peers) -> None:
    """The kernel shows it as user 0: a client that closes at once would pass for root."""
    with connection() as (client, accepted):
        client.close()
        assert asked.uid(*ends(accepted)) is None


@needs_linux
def test_a_connection_that_there_is_not_is_nobodys(asked: Peers) -> None:
    with connection() as (_, accepted):
        peer, here = ends(accepted)
        assert asked.uid((peer[0], 1), here) is None
        assert asked.uid(("192.0.2.1", peer[1]), here) is None
        # A listener is no connection.
        assert asked.uid(here, peer) == os.geteuid()


async def test_where_the_kernel_does_not_tell_it_does_not_listen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "_search", lambda *_: None)
    monkeypatch.setattr(peers, "_query", lambda *_: None)
    with pytest.raises(ConfigError, match=r"--listen: .*--listen-users any"):
        async with served(users=OWN):
            raise AssertionError("it listens")


@needs_linux
async def test_where_netlink_is_not_allowed_the_tables_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "_query", lambda *_: None)
    async with served(users=OWN) as server:
        await server.is_well()


GOOD = ["localhost", "LOCALHOST.", "127.0.0.1", "127.8.9.10", "[::1]", "[::ffff:127.0.0.1]"]
BAD = [
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.evil.example",
    "0.0.0.0",
    "192.168.0.1",
    "[::2]",
    "user@localhost",
    "localhost,evil.example",
    "evil.example#localhost",
]


@pytest.mark.parametrize("port", ["", ":1", ":65535"])
@pytest.mark.parametrize("host", GOOD)
async def test_names_of_this_machine_to_itself_are_answered(host: str, port: str) -> None:
    hosts = Hosts()
    headers = [(b"host", f"{host}{port}".encode()), (b"origin", f"http://{host}{port}".encode())]
    assert hosts.refusal({"headers": headers}) is None


@pytest.mark.parametrize("host", first_everyday(BAD, 3))
async def test_a_page_that_lets_its_name_point_here_gets_nothing(host: str) -> None:
    with capture_logs() as logs:
        async with served() as server:
            async with await connect(server.address) as stream:
                data = f"GET /ok HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
                await stream.send_all(data.encode())
                assert (await rest(stream)).startswith(b"HTTP/1.1 403 ")
            assert (await get(server.address, "/ok", f"origin: http://{host}"))[0] == 403
            async with h2_client(server.address) as client:
                number = await client.ask("/ok", ("origin", f"https://{host}:1"))
                assert await client.is_answered(number) == 403
            assert server.listener.statistics().refused_requests == {"host": 1, "origin": 2}
            await server.is_well()
    lines = [line for line in logs if line["event"] == "request_refused"]
    assert [line["reason"] for line in lines] == ["host", "origin"]


@pytest.mark.parametrize("origin", ["null", "file://", "", "localhost", "chrome-extension://a"])
async def test_an_origin_that_is_no_page_of_this_machine_is_refused(origin: str) -> None:
    async with served() as server:
        assert (await get(server.address, "/ok", f"origin: {origin}"))[0] == 403


async def test_the_authority_of_http_2_counts() -> None:
    async with served() as server, h2_client(server.address) as client:
        number = client.connection.get_next_available_stream_id()
        client.connection.send_headers(
            number,
            [
                (":method", "GET"),
                (":path", "/ok"),
                (":scheme", "http"),
                (":authority", "evil.example"),
            ],
            end_stream=True,
        )
        await client.flush()
        assert await client.is_answered(number) == 403


async def test_a_proxys_name_can_be_allowed() -> None:
    async with (
        served(allowed_hosts=["flyte.example"]) as server,
        await connect(server.address) as stream,
    ):
        await stream.send_all(
            b"GET /ok HTTP/1.1\r\nhost: Flyte.example:443\r\n"
            b"origin: https://flyte.example\r\nconnection: close\r\n\r\n"
        )
        assert (await rest(stream)).startswith(b"HTTP/1.1 200 ")


async def test_beyond_this_machine_every_name_is_answered() -> None:
    async with served(bind=Bind("0.0.0.0", 0)) as server:
        address = ("127.0.0.1", server.listener.address.port)
        async with await connect(address) as stream:
            await stream.send_all(request("/ok").replace(b"localhost", b"flyte.example"))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        await eventually(lambda: server.listener.statistics().open_connections == 0)


@table(
    ("host", "is_loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("127.evil.example", False),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_a_name_that_begins_like_an_address_is_none(host: str, is_loopback: bool) -> None:
    """With --executor local it would open the machine to the owner of the name."""
    assert Bind(host, 1).is_loopback is is_loopback
