"""Calls over the gateway, to servers that do not behave."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.errors import (
    EtcdError,
    InvalidRequest,
    OutcomeUnknown,
    RequestTooLarge,
    Unauthenticated,
    Unavailable,
)
from etcd_actions.etcd import ConnectionSettings, rpc
from etcd_actions.etcd.api import KeyRange, Lease, Put, PutResult, WatchCreate
from etcd_actions.etcd.gateway import http
from etcd_actions.etcd.gateway.transport import GatewayConnection
from etcd_actions.testing import EtcdServer
from tests.support.everyday import first_everyday
from tests.support.http_server import (
    LAST_CHUNK,
    STREAM_HEAD,
    HttpRequest,
    Script,
    ScriptedServer,
    answer,
    chunk,
    serving_http,
)
from tests.support.waiting import eventually

HEADER = b'{"header":{"cluster_id":"1","revision":"9"}}'
READ = rpc.RangeRequest(KeyRange.of_key(b"k"))
WRITE = Put(b"k", b"v")
HTML = b"<html><body>Bad Gateway</body></html>"


@asynccontextmanager
async def connected(
    script: Script, *, request_timeout: float = 5.0, dial_timeout: float = 2.0
) -> AsyncIterator[tuple[ScriptedServer, GatewayConnection]]:
    async with serving_http(script) as server:
        settings = ConnectionSettings(
            endpoints=(server.endpoint,),
            transport="gateway",
            request_timeout=request_timeout,
            dial_timeout=dial_timeout,
        )
        connection = GatewayConnection(server.endpoint, settings, trio.CapacityLimiter(4))
        try:
            yield server, connection
        finally:
            connection.close()


def saying(data: bytes) -> Script:
    async def script(request: HttpRequest) -> None:
        await request.send(data)

    return script


async def hanging(request: HttpRequest) -> None:
    await request.until_closed()


async def resetting(request: HttpRequest) -> None:
    request.reset()


async def read(connection: GatewayConnection, *, token: str = "", within: float = 5) -> object:
    return await connection.call(rpc.RANGE, READ, token=token, within=within)


async def write(connection: GatewayConnection, *, token: str = "", within: float = 5) -> object:
    return await connection.call(rpc.PUT, WRITE, token=token, within=within)


LOST = {
    "502": saying(answer(HTML, "502 Bad Gateway")),
    "503-empty": saying(answer(b"", "503 Service Unavailable")),
    "504-text": saying(answer(b"upstream request timeout", "504 Gateway Timeout")),
    "unknown-status": saying(answer(b"", "599 Odd")),
    "redirect": saying(answer(b"", "307 Temporary Redirect", "Location: http://127.0.0.1:1/")),
    "html": saying(answer(HTML)),
    "other-json": saying(answer(b'{"status":"ok"}')),
    "empty": saying(answer(b"")),
    "truncated-json": saying(answer(HEADER[:-3])),
    "cut-answer": saying(answer(HEADER)[:-3]),
    "cut-chunk": saying(STREAM_HEAD + b"40\r\n" + HEADER),
    "cut-chunks": saying(STREAM_HEAD + chunk(HEADER)),
    "cut-head": saying(b"HTTP/1.1 200 OK\r\nContent-"),
    "no-http": saying(b"\x00\xffgarbage\r\n\r\n"),
    "bad-chunk": saying(STREAM_HEAD + b"zz\r\n" + HEADER),
    "bad-gzip": saying(answer(b"no gzip", "200 OK", "Content-Encoding: gzip")),
    "closed": saying(b""),
    "reset": resetting,
    "error-without-meaning": saying(answer(b'{"code":2,"message":"oh"}', "500 Internal")),
}


@pytest.mark.parametrize("script", first_everyday(LOST.values(), 6), ids=LOST)
async def test_a_lost_answer(script: Script) -> None:
    """A read is Unavailable, a write has an unknown outcome; no other exception comes out."""
    for call, kind in ((read, Unavailable), (write, OutcomeUnknown)):
        async with connected(script) as (_, connection):
            with pytest.raises(Unavailable) as caught:
                await call(connection, token="s3cret")
            assert type(caught.value) is kind
            assert str(connection.endpoint) in str(caught.value)
            assert "s3cret" not in str(caught.value)
            assert " object at " not in str(caught.value)


REFUSED: dict[str, tuple[bytes, str, type[EtcdError], bool]] = {
    "by-text": (
        b'{"code":16,"message":"etcdserver: invalid auth token"}',
        "401 U",
        Unauthenticated,
        False,
    ),
    "by-code": (b'{"code":9,"message":"etcdserver: no such role"}', "400 B", InvalidRequest, False),
    "no-leader": (b'{"code":14,"message":"etcdserver: no leader"}', "503 S", Unavailable, True),
    "busy": (b'{"code":8,"message":"etcdserver: too many requests"}', "429 T", Unavailable, False),
    "unknown-method": (b"Not Found\n", "404 Not Found", InvalidRequest, False),
    "unknown-method-3.6": (
        b'{"code":5,"message":"Not Found","details":[]}',
        "404 N",
        InvalidRequest,
        False,
    ),
    "proxy-limit": (HTML, "413 Request Entity Too Large", RequestTooLarge, False),
}


@pytest.mark.parametrize(("body", "status", "kind", "broken"), REFUSED.values(), ids=REFUSED)
async def test_refusals(body: bytes, status: str, kind: type[EtcdError], broken: bool) -> None:
    """They are told apart, for writes too: nothing was done."""
    for call in (read, write):
        async with connected(saying(answer(body, status))) as (_, connection):
            with pytest.raises(EtcdError) as caught:
                await call(connection)
            assert type(caught.value) is kind
            assert connection.broken is broken


async def test_timeouts_and_what_they_say_of_the_connection() -> None:
    """A read without an answer breaks it, a write does not."""
    async with connected(hanging) as (_, connection):
        with pytest.raises(
            OutcomeUnknown, match=r"KV/Put at 127.0.0.1:\d+: no answer within 0.5 s"
        ):
            # Enough to send it also on a busy machine.
            await write(connection, within=0.5)
        assert not connection.broken
        with pytest.raises(Unavailable):
            await read(connection, within=0.1)
        assert connection.broken


async def test_an_answer_that_trickles_does_not_outlast_the_call() -> None:
    """Each byte renews the socket's time-out; trio's deadline counts all."""

    async def trickle(request: HttpRequest) -> None:
        await request.send(STREAM_HEAD)
        while True:
            await request.send(chunk(b" "))
            await trio.sleep(0.01)  # The pace of a slow server.

    async with connected(trickle) as (_, connection):
        with trio.fail_after(30), pytest.raises(OutcomeUnknown):
            await write(connection, within=0.5)


async def test_slow_bytes_are_an_answer() -> None:
    """One at a time, with spaces in the JSON."""

    async def slow(request: HttpRequest) -> bool:
        body = HEADER.replace(b":", b" : ")
        for byte in answer(body):
            await request.send(bytes((byte,)))
        return True

    async with connected(slow) as (_, connection):
        assert await write(connection) == PutResult(9)


async def test_a_stream_of_one_answer() -> None:
    """A lease is renewed over a stream, whose first message counts."""
    body = b'{"result":{"header":{"revision":"9"},"ID":"5","TTL":"60"}}\n'
    async with connected(saying(STREAM_HEAD + chunk(body) + LAST_CHUNK)) as (_, connection):
        renewed = await connection.call(rpc.LEASE_KEEP_ALIVE, 5, token="", within=5)
        assert renewed == Lease(5, 60)


async def test_headers() -> None:
    """The token and the wish for a leader go with a call; nothing of the environment does."""
    async with connected(saying(answer(HEADER))) as (server, connection):
        await write(connection, token="t.1")
        (post,) = server.posts
        assert post.path == "/v3/kv/put"
        assert post.headers["authorization"] == "t.1"
        assert post.headers["grpc-metadata-hasleader"] == "true"
        assert not any("_" in name for name in post.headers)


async def test_a_connection_is_used_again_but_not_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its other end may be closing it just then, which would lose a write's answer."""

    async def kept(request: HttpRequest) -> bool:
        await request.send(answer(HEADER))
        return True

    async with connected(kept) as (server, connection):
        for _ in range(3):
            await write(connection)
        assert server.accepted == 1
        monkeypatch.setattr(http, "_IDLE_LIMIT", 0.0)
        await write(connection)
        assert server.accepted == 2


GREETINGS: dict[str, bytes | None] = {
    "silent": None,
    "closed": b"Connection: close",
    "no-http": b"garbage\r\nConnection: close\r\n\r\n",
    "502": answer(HTML, "502 Bad Gateway"),
    "wants-tls": answer(b"Client sent an HTTP request to an HTTPS server.", "400 Bad Request"),
}


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
async def test_a_server_that_does_not_greet_gets_no_write(greeting: bytes | None) -> None:
    """So it is certain that nothing was written."""
    async with connected(saying(answer(HEADER)), dial_timeout=0.2) as (server, connection):
        server.greeting = greeting
        with pytest.raises(Unavailable, match="cannot connect") as caught:
            await write(connection)
        assert type(caught.value) is Unavailable
        assert connection.broken
        assert server.posts == []


@pytest.mark.parametrize(
    "greeting",
    [
        answer(b"Not Found", "404 Not Found"),
        answer(HTML, "403 Forbidden"),
        answer(b"{}", "200 OK", "Connection: close"),
        answer(b"x" * 100_000),
        b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n{}",
    ],
)
async def test_any_other_greeting_will_do(greeting: bytes) -> None:
    """Proxies may not know of versions; when one hangs up after it, a new connection is made."""
    async with connected(saying(answer(HEADER))) as (server, connection):
        server.greeting = greeting
        assert await write(connection) == PutResult(9)


async def test_a_cancelled_call_frees_its_thread() -> None:
    """At once, not when the server answers."""
    async with serving_http(hanging) as server:
        settings = ConnectionSettings(endpoints=(server.endpoint,), transport="gateway")
        limiter = trio.CapacityLimiter(2)
        connection = GatewayConnection(server.endpoint, settings, limiter)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(write, connection)
            await eventually(lambda: len(server.posts) == 2)
            nursery.cancel_scope.cancel()
        await eventually(lambda: limiter.borrowed_tokens == 0, within=30)
        connection.close()


async def test_waiting_for_a_thread_says_nothing_of_the_connection() -> None:
    """A write that got none was not sent."""
    async with serving_http(hanging) as server:
        settings = ConnectionSettings(endpoints=(server.endpoint,), transport="gateway")
        connection = GatewayConnection(server.endpoint, settings, trio.CapacityLimiter(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, connection)
            await eventually(lambda: len(server.posts) == 1)
            with pytest.raises(Unavailable) as caught:
                await write(connection, within=0.1)
            assert type(caught.value) is Unavailable
            assert not connection.broken
            nursery.cancel_scope.cancel()
        connection.close()


async def test_the_environment_does_not_divert(
    shared_etcd: EtcdServer, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No proxy of it is used."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with open_etcd(shared_etcd.endpoint, transport="gateway") as etcd:
        assert (await etcd.put(prefix, b"v")).revision > 1


async def test_many_calls_at_a_time(shared_etcd: EtcdServer, prefix: bytes) -> None:
    """More than there are threads; each gets its own answer, and the threads end."""
    before = threading.active_count()
    async with open_etcd(shared_etcd.endpoint, transport="gateway") as etcd:

        async def one(number: int) -> None:
            key = prefix + b"%d" % number
            await etcd.put(key, b"%d" % number)
            (kv,) = (await etcd.range(KeyRange.of_key(key))).kvs
            assert kv.value == b"%d" % number

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)
    assert threading.active_count() <= before + 40


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.slow
def test_without_the_package() -> None:
    """It is said how to get it."""
    program = (
        "import sys, trio\n"
        "sys.modules['etcd3'] = None\n"
        "from etcd_actions import open_etcd\n"
        "async def main():\n"
        "    async with open_etcd(transport='gateway'):\n"
        "        pass\n"
        "trio.run(main)\n"
    )
    done = run_python(program)
    assert done.returncode == 1
    assert (
        "ConfigError: transport gateway: the package etcd3 is missing: "
        "pip install 'etcd-actions[gateway]'"
    ) in done.stderr


@pytest.mark.slow
def test_grpc_does_without_it() -> None:
    """Nobody pays for the import of what is not used."""
    program = (
        "import sys, trio\n"
        "from etcd_actions import open_etcd\n"
        "async def main():\n"
        "    async with open_etcd():\n"
        "        print({'etcd3', 'requests', 'urllib3', 'aiohttp'} & set(sys.modules))\n"
        "trio.run(main)\n"
    )
    done = run_python(program)
    assert done.stdout == "set()\n", done.stderr


async def test_many_watchers_at_once_are_all_created(etcd_server: EtcdServer) -> None:
    """Of several in one body etcd would forget some, now and then."""
    async with open_etcd(etcd_server.endpoint, transport="gateway") as etcd:
        for _ in range(20):
            async with etcd.watch() as stream:
                for number in range(1, 9):
                    keys = KeyRange.of_prefix(b"/nobody/%d/" % number)
                    stream.create(WatchCreate(number, keys, 0))
                created: set[int] = set()
                with trio.fail_after(60):
                    while len(created) < 8:
                        created |= {one.watch_id for one in await stream.receive() if one.created}
