"""Probes are answered whatever others do with the port."""

from __future__ import annotations

import http.client
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from etcd_actions import ActionsClient, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.monitoring import Monitoring, open_monitoring
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.web import Bind, HttpLimits
from tests._internal.test_containment import UNEXPECTED
from tests.support.waiting import eventually
from tests.web.listeners import connect, h2_client, request, rest, sockets

LOOPBACK = Bind("127.0.0.1", 0)


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
async def monitoring(client: ActionsClient, etcd: Etcd, prefix: bytes) -> AsyncIterator[Monitoring]:
    async with open_monitoring(
        client, etcd, LOOPBACK, prefix=prefix, silence_limit=30
    ) as monitoring:
        yield monitoring


def where(monitoring: Monitoring) -> tuple[str, int]:
    return monitoring.address.host, monitoring.address.port


async def get(address: tuple[str, int], path: str) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        connection = http.client.HTTPConnection(*address, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, body

    return await trio.to_thread.run_sync(ask)


async def is_ready(monitoring: Monitoring) -> bool:
    return (await get(where(monitoring), "/readyz"))[0] == 200


async def test_probes_are_answered_while_idle_connections_hold_the_port(
    monitoring: Monitoring,
) -> None:
    with sockets(where(monitoring), 200):
        for _ in range(10):
            assert await is_ready(monitoring)


async def test_probes_are_answered_while_requests_hold_the_port(monitoring: Monitoring) -> None:
    """Clients that take nothing of their answers."""
    async with AsyncExitStack() as stack:
        for _ in range(70):
            client = await stack.enter_async_context(h2_client(where(monitoring), window=0))
            await client.ask("/metrics")
        for _ in range(5):
            assert await is_ready(monitoring)


async def test_probes_are_answered_while_the_service_is_full(
    client: ActionsClient, monitoring: Monitoring
) -> None:
    settings = ServerSettings(bind=LOOPBACK, http=HttpLimits(connections=50))
    async with open_actions_server(client, settings) as server:
        monitoring.metrics.listeners["service"] = server.connections
        with sockets((server.address.host, server.address.port), 300):
            await eventually(lambda: server.connections().accepted == 300)
            assert await is_ready(monitoring)
            _, text = await get(where(monitoring), "/metrics")
    found = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    # One address may have half of them.
    assert found["etcd_actions_http_connections", "service", "idle"] == 25
    assert found["etcd_actions_http_connections", "monitoring", "busy"] == 1
    assert found["etcd_actions_http_connections_accepted_total", "service"] == 300
    assert found["etcd_actions_http_connections_closed_total", "service", "replaced"] == 275


@pytest.mark.parametrize("error", UNEXPECTED)
async def test_an_exception_in_a_request_ends_it_alone(
    client: ActionsClient,
    monitoring: Monitoring,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail() -> bytes:
        raise error

    async with h2_client(where(monitoring)) as asker:
        with monkeypatch.context() as patch:
            patch.setattr(monitoring.metrics, "text", fail)
            assert await asker.is_answered(await asker.ask("/metrics")) == 500
        assert await asker.is_answered(await asker.ask("/metrics")) == 200
    assert await is_ready(monitoring)
    assert client.containment.failures == {"request": 1}


async def test_data_for_a_path_that_there_is_not_harms_nobody(monitoring: Monitoring) -> None:
    async with h2_client(where(monitoring)) as asker:
        number = await asker.ask("/nothing", method="POST", end=False)
        assert await asker.is_answered(number) == 405
        await asker.stream.send_all(b"\0\0\4\0\0" + number.to_bytes(4, "big") + b"late")
        assert await asker.is_answered(await asker.ask("/healthz")) == 200


async def test_a_page_that_lets_its_name_point_here_reads_no_metrics(
    monitoring: Monitoring,
) -> None:
    async with await connect(where(monitoring)) as stream:
        await stream.send_all(
            request("/metrics", "connection: close").replace(b"localhost", b"evil.example")
        )
        assert (await rest(stream)).startswith(b"HTTP/1.1 403 ")
