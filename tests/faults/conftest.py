"""Clusters to break: three members with TLS on both sides, and users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from etcd_actions.etcd import ConnectionSettings, EtcdClient, TransportName, User, open_connection
from etcd_actions.etcd.endpoints import parse_endpoints
from tests.support.cluster import WORKER, Certificates, EtcdCluster, Member, ServerTls

DIAL_TIMEOUT = 0.5
REQUEST_TIMEOUT = 1.0


@dataclass(frozen=True)
class Way:
    """A way to a cluster: with its certificates, as a user, over a transport."""

    cluster: EtcdCluster
    transport: TransportName

    def open(
        self,
        *endpoints: str,
        user: User = WORKER,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> AbstractAsyncContextManager[EtcdClient]:
        """Connect; to all members where no endpoints are given."""
        return open_connection(
            ConnectionSettings(
                endpoints=parse_endpoints(endpoints or self.cluster.endpoints),
                transport=self.transport,
                tls=self.cluster.tls,
                user=user,
                dial_timeout=DIAL_TIMEOUT,
                request_timeout=request_timeout,
            )
        )

    def in_use(self, etcd: EtcdClient) -> Member:
        """The member that a client talks to, or will."""
        settings, current = etcd.settings, etcd._current
        number = etcd._next % len(settings.endpoints)
        endpoint = settings.endpoints[number] if current is None else current.connection.endpoint
        return next(each for each in self.cluster.members if each.endpoint == str(endpoint))


def secure_cluster(directory: Path) -> EtcdCluster:
    """Three members that want a certificate and a user."""
    certs = Certificates(directory / "ca")
    return EtcdCluster(
        directory,
        size=3,
        tls=ServerTls(
            pair=certs.issue("server", "127.0.0.1", "localhost"), ca=certs.ca, client_certs=True
        ),
        client=certs.issue("client", "client"),
    )


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """For all tests that leave its history as it is."""
    cluster = secure_cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        cluster.enable_auth()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(running_cluster: EtcdCluster) -> Iterator[EtcdCluster]:
    """A healthy cluster, also for the next test."""
    running_cluster.heal()
    yield running_cluster
    running_cluster.heal()


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    """A cluster of the test's own."""
    cluster = secure_cluster(tmp_path)
    try:
        cluster.start()
        cluster.enable_auth()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def way(cluster: EtcdCluster, transport: TransportName) -> Way:
    """To the cluster that others use too."""
    return Way(cluster, transport)
