"""Fixtures of the conformance suite: every etcd at hand, each started once, when first used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Literal, Protocol

import pytest

from etcd_actions.etcd import ConnectionSettings, EtcdClient, TransportName, open_connection
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.testing import EtcdServer, MemoryClient, MemoryStore, OwnEtcd
from etcd_actions.testing.choice import EtcdSource
from etcd_actions.testing.container import EtcdImage, engine_problem
from etcd_actions.testing.plugin import requested_etcd
from tests.support.cluster import EtcdCluster
from tests.support.conformance import MEMORY, ConformanceEtcd, etcds_at_hand
from tests.support.everyday import first_everyday


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """By each transport to each etcd, and in memory; the everyday suite has one etcd, CI all.

    It also has no test marked ``bulk`` over the gateway.
    """
    if "conformance_etcd" not in metafunc.fixturenames:
        return
    etcds = [pytest.param(each, id=each.label) for each in etcds_at_hand(metafunc.config)]
    is_bulk = metafunc.definition.get_closest_marker("bulk") is not None
    marks = {"grpc": [], "gateway": [pytest.mark.slow] if is_bulk else []}
    cases = [
        pytest.param(
            transport,
            *each.values,
            marks=[*each.marks, *marks[transport]],
            id=f"{transport}-{each.id}",
        )
        for each in first_everyday(etcds)
        for transport in ("grpc", "gateway")
    ]
    if not requested_etcd(metafunc.config):
        cases.append(pytest.param("memory", MEMORY, id="memory"))
    metafunc.parametrize(("conformance_transport", "conformance_etcd"), cases)


@asynccontextmanager
async def _closing(client: MemoryClient) -> AsyncIterator[EtcdClient]:
    try:
        yield client
    finally:
        client.close()


class Connect(Protocol):
    """Opens a connection to an etcd of the conformance suite."""

    def __call__(
        self, endpoints: str, /, *, request_timeout: float = 5.0
    ) -> AbstractAsyncContextManager[EtcdClient]:
        """Connect to these endpoints."""
        ...


@pytest.fixture
def connect(
    conformance_transport: TransportName | Literal["memory"],
    memory: MemoryStore,
    request: pytest.FixtureRequest,
) -> Connect:
    """How the transport under test connects."""
    if conformance_transport == "memory":
        request.node.user_properties.append(("etcd-version", f"as {memory.version}"))

    def connect(
        endpoints: str, /, *, request_timeout: float = 5.0
    ) -> AbstractAsyncContextManager[EtcdClient]:
        if conformance_transport == "memory":
            client = memory.client(endpoints=endpoints, request_timeout=request_timeout)
            return _closing(client)
        return open_connection(
            ConnectionSettings(
                endpoints=parse_endpoints(endpoints),
                transport=conformance_transport,
                request_timeout=request_timeout,
            )
        )

    return connect


@pytest.fixture(scope="session")
def conformance_servers(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Callable[[ConformanceEtcd], EtcdServer]]:
    """The running ones: those asked for so far."""
    running: dict[ConformanceEtcd, EtcdServer] = {}
    with ExitStack() as stack:

        def server_of(etcd: ConformanceEtcd) -> EtcdServer:
            if etcd not in running:
                if isinstance(etcd.source, str):
                    running[etcd] = EtcdServer.at(etcd.source)
                else:
                    require(etcd.source, pytestconfig)
                    own = etcd.source.make(tmp_path_factory.mktemp("conformance"))
                    running[etcd] = stack.enter_context(own).shared()
            return running[etcd]

        yield server_of


@pytest.fixture
def conformance_server(
    conformance_etcd: ConformanceEtcd,
    conformance_servers: Callable[[ConformanceEtcd], EtcdServer],
    memory: MemoryStore,
) -> EtcdServer | MemoryStore:
    """Each etcd at hand: for tests that neither stop it nor compact it."""
    if conformance_etcd == MEMORY:
        return memory
    return conformance_servers(conformance_etcd)


@pytest.fixture
def own_conformance_server(
    conformance_etcd: ConformanceEtcd,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
    memory: MemoryStore,
) -> Iterator[OwnEtcd | MemoryStore]:
    """One of the test's own, of each kind at hand."""
    if conformance_etcd == MEMORY:
        yield memory
        return
    if isinstance(conformance_etcd.source, str):
        pytest.skip("an etcd that was given by its address is not ours to stop or compact")
    require(conformance_etcd.source, pytestconfig)
    with conformance_etcd.source.make(tmp_path_factory.mktemp("own-conformance")) as own:
        yield own


def require(source: EtcdSource, config: pytest.Config) -> None:
    """Skip where a container cannot be had without a download that nobody asked for."""
    if not isinstance(source, EtcdImage):
        return
    if (problem := engine_problem()) is not None:
        pytest.skip(problem)
    if requested_etcd(config) == "container":
        source.pull()
    elif not source.is_available():
        pytest.skip(f"the engine does not have {source.name}: --etcd=container pulls it")


@pytest.fixture(scope="module")
def users_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Wants users; its tokens end after three seconds unused."""
    flags = ["--auth-token=simple", "--auth-token-ttl=3"]
    cluster = EtcdCluster(tmp_path_factory.mktemp("auth"), flags=flags)
    try:
        cluster.start()
        cluster.enable_auth()
        yield cluster
    finally:
        cluster.stop()
