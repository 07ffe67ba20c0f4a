"""The interpreters with Flyte's SDK, made when the first test wants them, and a Ray cluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from etcd_actions import ActionsClient, open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.cli.command import ROOT
from tests.sdk.service import Site
from tests.support.etcd_server import EtcdServer
from tests.support.ray_cluster import RayCluster, open_ray_cluster


@pytest.fixture(scope="session")
def sdk_python() -> Path:
    """The python of a virtual environment with the unmodified SDK."""
    return _made()


@pytest.fixture(scope="session")
def oldest_sdk_python() -> Path:
    """The same with the oldest version of the SDK that is supported."""
    return _made("oldest")


@pytest.fixture(scope="session")
def ray_python() -> Path:
    """The python of a virtual environment with Ray and the SDK, which is large: not made here.

    ``ETCD_ACTIONS_TEST_RAY`` names one. Where it is set, one that is missing is an error.
    """
    named = os.environ.get("ETCD_ACTIONS_TEST_RAY")
    python = ROOT / ".venv-sdk-ray" / "bin" / "python" if named is None else Path(named)
    if not (python.parents[1] / "stamp").exists():
        assert named is None, f"ETCD_ACTIONS_TEST_RAY: {named} is not a python with Ray"
        pytest.skip("there is no Ray: make its environment with scripts/_ray-venv (480 MB)")
    return python


@pytest.fixture(scope="module")
def ray_cluster(ray_python: Path) -> Iterator[RayCluster]:
    """A Ray cluster, to be started by the test, since an earlier one may have killed parts."""
    with open_ray_cluster(ray_python) as cluster:
        yield cluster


@pytest.fixture
async def ray_site(
    ray_cluster: RayCluster,
    shared_etcd: EtcdServer,
    prefix: bytes,
    tmp_path: Path,
    ray_python: Path,
) -> Site:
    """A site whose services submit to the running cluster."""
    await ray_cluster.start()
    site = Site(tmp_path, shared_etcd.endpoint, prefix, ray_python)
    site.executor = ("--executor", "ray", "--ray-address", ray_cluster.address)
    return site


@pytest.fixture
async def ray_client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    """A client that reads the actions of the site."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


def _made(*version: str) -> Path:
    made = subprocess.run(
        [ROOT / "scripts" / "_sdk-venv", *version], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"the SDK's environment cannot be made: {made.stderr[-500:]}")
    return Path(made.stdout.strip())
