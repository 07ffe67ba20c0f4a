"""Fixtures of the conformance suite: every etcd at hand, each started once, when first used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import cast

import pytest

from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.testing import EtcdServer, OwnEtcd
from etcd_actions.testing.choice import EtcdSource
from etcd_actions.testing.container import EtcdImage, engine_problem
from etcd_actions.testing.plugin import wanted_etcd
from tests.support.conformance import ConformanceEtcd, etcds_at_hand
from tests.support.everyday import first_everyday


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Once for each etcd; the everyday suite has the first, CI has all."""
    if "conformance_etcd" in metafunc.fixturenames:
        etcds = [pytest.param(each, id=each.label) for each in etcds_at_hand(metafunc.config)]
        metafunc.parametrize("conformance_etcd", first_everyday(etcds))


@pytest.fixture(params=["grpc", "gateway"])
def transport(request: pytest.FixtureRequest) -> TransportName:
    """Each way to talk to etcd, also in the everyday suite."""
    return cast(TransportName, request.param)


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
) -> EtcdServer:
    """Each etcd at hand: for tests that neither stop it nor compact it."""
    return conformance_servers(conformance_etcd)


@pytest.fixture
def own_conformance_server(
    conformance_etcd: ConformanceEtcd,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[OwnEtcd]:
    """One of the test's own, of each kind at hand."""
    if isinstance(conformance_etcd.source, str):
        pytest.skip("an etcd that was given by its address is not ours to stop or compact")
    require(conformance_etcd.source, pytestconfig)
    with conformance_etcd.source.make(tmp_path_factory.mktemp("own-conformance")) as own:
        yield own


@pytest.fixture
def killable_conformance_server(own_conformance_server: OwnEtcd) -> OwnEtcd:
    """One of the test's own, of each kind at hand that survives being killed."""
    if not own_conformance_server.may_be_killed:
        version = own_conformance_server.version
        pytest.skip(f"etcd {version} loses acknowledged writes when it is killed")
    return own_conformance_server


def require(source: EtcdSource, config: pytest.Config) -> None:
    """Skip where a container cannot be had without a download that nobody asked for."""
    if not isinstance(source, EtcdImage):
        return
    if (problem := engine_problem()) is not None:
        pytest.skip(problem)
    if wanted_etcd(config) == "container":
        source.pull()
    elif not source.is_at_hand():
        pytest.skip(f"the engine does not have {source.name}: --etcd=container pulls it")
