"""The page's own streams: what they send, to which clients, and when they end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h2.connection
import pytest
import trio

from etcd_actions import ActionId, ActionsClient, Phase, WatchingSettings, open_actions_client
from etcd_actions.app.cluster_sources import cluster_sources
from etcd_actions.errors import RunServiceRejected
from etcd_actions.etcd.connecting import open_connection
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.etcd.member_states import open_member_states
from etcd_actions.monitoring import Health
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.application import Calls, Route
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.page_streams import Lines, PageStream
from etcd_actions.server.service_settings import PageSettings
from etcd_actions.server.streams import CONNECTION, Connection, Streams
from etcd_actions.testing import EtcdServer, OwnEtcd
from etcd_actions.web import HttpLimits
from tests.page.reading import DEADLINE, reading
from tests.page.test_static_files import get
from tests.record.test_outbox import Scripted
from tests.server.conftest import LOOPBACK
from tests.server.front.conftest import Lists
from tests.support import flyte
from tests.support.runs import record, status
from tests.support.waiting import eventually


def settings(tokens: Path | None = None, **more: Any) -> ServerSettings:
    return ServerSettings(bind=LOOPBACK, token_file=tokens, page=PageSettings(), **more)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("of-all\nof-p projects=p\nof-q projects=q\n")
    return path


def names(line: Mapping[str, Any]) -> list[str]:
    return [each["action"]["id"]["run"]["name"] for each in line["runs"]]


async def test_a_change_of_a_run_is_sent_and_the_runs_that_there_are_are_not(
    client: ActionsClient, lists: Lists
) -> None:
    await lists.put(record("old"))
    front = FrontDoor(client=client, keepalive=60, index=lists.index)
    async with open_actions_server(client, settings(), front=front) as server:
        async with reading(server, "/page/runs") as lines:
            assert lines.headers["content-type"] == "application/x-ndjson"
            assert lines.headers["cache-control"] == "no-store"
            assert await lines.next() is None
            await lists.put(record("new"))
            assert names(await lines.next()) == ["new"]
            await lists.put(record("old", status=status(Phase.FAILED)))
            line = await lines.next()
            assert names(line) == ["old"]
            assert line["runs"][0]["action"]["status"]["phase"] == "ACTION_PHASE_FAILED"
        await eventually(lambda: server.statistics().open_streams == 0)


async def test_a_silent_stream_is_sent_an_empty_line(client: ActionsClient, lists: Lists) -> None:
    front = FrontDoor(client=client, keepalive=0.02, index=lists.index)
    async with (
        open_actions_server(client, settings(), front=front) as server,
        reading(server, "/page/runs") as lines,
    ):
        assert [await lines.next() for _ in range(3)] == [None, None, None]


async def test_a_client_is_sent_runs_of_its_projects_only(
    client: ActionsClient, lists: Lists, tokens: Path
) -> None:
    front = FrontDoor(client=client, keepalive=60, index=lists.index)
    async with open_actions_server(client, settings(tokens), front=front) as server:
        for token in ("", "wrong"):
            async with reading(server, "/page/runs", token) as lines:
                assert lines.status == 401
                assert (await lines.next())["code"] == "unauthenticated"
        async with reading(server, "/page/runs", "of-q") as lines:
            assert await lines.next() is None
            await lists.put(record("of-p"))
            await lists.put(record("of-q", project="q"))
            line = None
            while line is None:
                line = await lines.next()
            assert names(line) == ["of-q"]


async def test_too_many_streams_and_other_methods_are_refused(
    client: ActionsClient, lists: Lists
) -> None:
    front = FrontDoor(client=client, keepalive=60, index=lists.index)
    async with open_actions_server(client, settings(max_streams=1), front=front) as server:
        assert (await get(server, "/page/runs", "POST")).status == 405
        assert (await get(server, "/page/cluster")).status == 404
        async with reading(server, "/page/runs") as first:
            assert await first.next() is None
            refused = await get(server, "/page/runs")
            assert (refused.status, refused.json["code"]) == (429, "resource_exhausted")
        await eventually(lambda: server.statistics().open_streams == 0)
        async with reading(server, "/page/runs") as second:
            assert await second.next() is None
        await eventually(lambda: server.statistics().open_streams == 0)
        counted = server.statistics()
        assert counted.calls["/page/runs", "resource_exhausted"] == 1
        assert counted.calls["/page/runs", "ok"] == 2
        assert sum(counted.times["/page/runs"].counts) == 3


def test_streams_of_the_page_take_none_from_the_clients_of_methods() -> None:
    connection = CONNECTION.set(Connection())
    try:
        streams = Streams(1)
        with streams.open_for_page(), streams.open():
            assert len(streams) == 2
            for opened in (streams.open, streams.open_for_page):
                with pytest.raises(Refusal, match="the most allowed"), opened():
                    pytest.fail("it was opened")
    finally:
        CONNECTION.reset(connection)


async def test_a_client_that_reads_nothing_and_one_that_sends_a_body_harm_no_other(
    client: ActionsClient, lists: Lists
) -> None:
    front = FrontDoor(client=client, keepalive=0.01, index=lists.index)
    async with open_actions_server(client, settings(grace=0.2), front=front) as server:
        address = server.address
        for more in (b"content-length: 5\r\n\r\nhello", b"content-length: 9999999\r\n\r\nx"):
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                await stream.send_all(b"GET /page/runs HTTP/1.1\r\nhost: localhost\r\n" + more)
                with trio.fail_after(DEADLINE):
                    assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 ")
        silent = [await trio.open_tcp_stream(address.host, address.port) for _ in range(20)]
        for stream in silent:
            await stream.send_all(b"GET /page/runs HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await eventually(lambda: server.statistics().open_streams == len(silent))
        async with reading(server, "/page/runs") as lines:
            assert await lines.next() is None
            await lists.put(record("new"))
            line = None
            while line is None:
                line = await lines.next()
            assert names(line) == ["new"]
        with trio.fail_after(DEADLINE):
            for stream in silent:
                await stream.aclose()
        await eventually(lambda: server.statistics().open_streams == 0)


async def test_the_streams_end_with_the_service(client: ActionsClient, lists: Lists) -> None:
    front = FrontDoor(client=client, keepalive=60, index=lists.index)
    async with open_actions_server(client, settings(), front=front) as server:
        async with reading(server, "/page/runs") as lines:
            assert await lines.next() is None
            server.drain()
            with pytest.raises(EOFError):
                await lines.next()
        assert (await get(server, "/page/runs")).status == 503


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_page_of_another_origin_opens_no_stream(
    client: ActionsClient, lists: Lists, site: str
) -> None:
    """A browser sends no Origin with the request of an image or a script."""
    front = FrontDoor(client=client, keepalive=60, index=lists.index)
    async with open_actions_server(client, settings(max_streams=1), front=front) as server:
        refused = await get(server, "/page/runs", headers={"sec-fetch-site": site})
        assert refused.status == 403
        assert server.statistics().open_streams == 0


@asynccontextmanager
async def cluster(
    etcd: EtcdServer | OwnEtcd,
    prefix: bytes,
    settings: ServerSettings,
    service: Scripted | None = None,
    watching: WatchingSettings | None = None,
) -> AsyncIterator[tuple[ActionsServer, ActionsClient]]:
    connection = ConnectionSettings(endpoints=parse_endpoints(etcd.endpoint), request_timeout=2)
    async with (
        open_connection(connection) as connected,
        open_member_states(connected) as members,
        open_actions_client(
            connected, prefix=prefix, run_service=service, settings=watching
        ) as client,
    ):
        await client.start_watching()
        health = Health(client, connected, prefix, silence_limit=30)
        sources = cluster_sources(members, health, lambda: None)
        front = FrontDoor(client=client, keepalive=60, cluster=sources)
        async with open_actions_server(client, settings, front=front) as server:
            yield server, client


def keys_of(client: ActionsClient) -> int:
    reflector = client.statistics().reflector
    return 0 if reflector is None else reflector.keys


async def test_the_state_has_health_members_rates_and_the_leader(
    shared_etcd: EtcdServer, prefix: bytes
) -> None:
    async with cluster(shared_etcd, prefix, settings()) as (server, client):
        await client.enqueue(flyte.task(ActionId("p", "d", "r", "a0")))
        await eventually(lambda: client.statistics().elected and keys_of(client) == 1)
        async with reading(server, "/page/cluster") as lines:
            state = await lines.next()
            assert {each["name"]: each["reason"] for each in state["checks"]}["etcd"] == ""
            (member,) = state["members"]
            assert member["up"]
            assert member["leads"]
            assert member["revision"] > 0
            assert state["watch"]["keys"] == 1
            assert state["watch"]["streaming"]
            assert state["leader"]
            assert state["counts"]["changes"] >= 1
            assert state["streams"] == 1
            assert state["executor"] is None
            later = await lines.next()
            assert later["at"] > state["at"]
        await eventually(lambda: server.statistics().open_streams == 0)


async def test_the_state_has_the_shards(
    shared_etcd: EtcdServer, prefix: bytes, tokens: Path
) -> None:
    """A client of one project sees no range: it begins with the name of a run."""
    shared = WatchingSettings(shards=2)
    async with cluster(shared_etcd, prefix, settings(tokens), watching=shared) as (server, client):
        await eventually(lambda: all(each.owned for each in client.statistics().shards))
        async with reading(server, "/page/cluster", "of-all") as lines:
            state = await lines.next()
        async with reading(server, "/page/cluster", "of-p") as lines:
            limited = await lines.next()
    assert state["member"] == client.statistics().member
    assert state["shardMembers"] == 1
    assert [each["id"] for each in state["shards"]] == ["0000", "0001"]
    for each in state["shards"]:
        assert (each["owner"], each["owned"], each["problem"]) == (state["member"], True, "")
    assert [each["start"] for each in state["shards"]] == ["flyte/", "flyte/ri0"]
    assert [each["start"] for each in limited["shards"]] == ["", ""]


async def test_many_clients_share_a_sample(shared_etcd: EtcdServer, prefix: bytes) -> None:
    found: list[dict[str, Any]] = []
    async with cluster(shared_etcd, prefix, settings()) as (server, _):

        async def read() -> None:
            async with reading(server, "/page/cluster") as lines:
                found.append(await lines.next())

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
    assert len(found) == 20
    assert len({each["at"] for each in found}) <= 2


async def test_a_client_sees_dead_letters_of_its_projects_and_no_keys_of_others(
    shared_etcd: EtcdServer, prefix: bytes, tokens: Path
) -> None:
    service = Scripted()
    service.failures["record", "a0"] = [RunServiceRejected("no <b>such</b> run", code=3)]
    async with cluster(shared_etcd, prefix, settings(tokens), service) as (server, client):
        await client.enqueue(flyte.task(ActionId("p", "d", "r", "a0")))
        await eventually(lambda: len(client.statistics().dead_letters) == 1)
        assert (await get(server, "/page/cluster")).status == 401
        for token, count in (("of-all", 1), ("of-p", 1), ("of-q", 0)):
            async with reading(server, "/page/cluster", token) as lines:
                letters = (await lines.next())["deadLetters"]
            assert letters["count"] == len(letters["shown"]) == count
            if count:
                (letter,) = letters["shown"]
                assert letter["action"] == "p/d/r/a0"
                assert letter["error"] == "no <b>such</b> run"


@pytest.mark.faults
@pytest.mark.slow
async def test_an_etcd_without_an_answer_is_reported_and_the_stream_lives(
    own_etcd: OwnEtcd, prefix: bytes
) -> None:
    async with (
        cluster(own_etcd, prefix, settings()) as (server, _),
        reading(server, "/page/cluster") as lines,
    ):
        assert all(not each["reason"] for each in (await lines.next())["checks"])
        own_etcd.suspend()
        try:
            with trio.fail_after(DEADLINE):
                state = await lines.next()
                while all(each["up"] for each in state["members"]):
                    state = await lines.next()
        finally:
            own_etcd.resume()
        assert {each["name"]: each["reason"] for each in state["checks"]}["etcd"]
        with trio.fail_after(DEADLINE):
            while not all(each["up"] for each in state["members"]):
                state = await lines.next()


@dataclass(frozen=True, kw_only=True)
class LargeLines(FrontDoor):
    """It has a stream of large lines in place of the page's own streams."""

    def page_streams(self, calls: Calls, streams: Streams) -> Iterable[Route]:
        async def lines() -> Lines:
            with streams.open() as stream:
                while not stream.has_ended:
                    yield "x" * 1_000_000

        yield PageStream("/page/large", self.client, calls, lines)


async def test_a_client_that_reads_nothing_is_disconnected_and_is_no_failure(
    client: ActionsClient,
) -> None:
    limited = settings(http=HttpLimits(stall_timeout=0.2))
    front = LargeLines(client=client, keepalive=60)
    async with open_actions_server(client, limited, front=front) as server:
        address = server.address
        peer = h2.connection.H2Connection()
        peer.initiate_connection()
        pairs = {"method": "GET", "path": "/page/large", "scheme": "http", "authority": "localhost"}
        peer.send_headers(1, [(f":{name}", value) for name, value in pairs.items()], True)
        async with await trio.open_tcp_stream(address.host, address.port) as stream:
            # The window of the stream is never enlarged.
            await stream.send_all(peer.data_to_send())
            await eventually(lambda: server.statistics().open_streams == 1)
            await eventually(lambda: server.statistics().open_streams == 0)
    assert client.containment.failures == {}
