"""An etcd to break: the same holds of a process and of a container."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_actions import open_etcd
from etcd_actions.errors import EmbeddedEtcdError, Unavailable
from etcd_actions.etcd.api import KeyRange
from etcd_actions.testing import (
    EtcdContainer,
    EtcdProcess,
    EtcdServer,
    OwnEtcd,
    etcd_server,
    free_port,
)
from etcd_actions.testing.container import EtcdImage, engine_problem
from etcd_actions.testing.etcd_process import best_binary

pytestmark = pytest.mark.faults

KEY = KeyRange.of_key(b"k")


@pytest.fixture
def needs_image() -> None:
    """Skips where a container cannot be had without a download."""
    if (problem := engine_problem()) is not None:
        pytest.skip(problem)
    if not EtcdImage.default().is_available():
        pytest.skip(f"the engine does not have {EtcdImage.default().name}")


@pytest.fixture(params=["process", "container"])
def stopped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnEtcd]:
    """One of each kind, not started."""
    own: OwnEtcd
    if request.param == "container":
        request.getfixturevalue("needs_image")
        own = EtcdContainer(tmp_path)
    else:
        own = EtcdProcess(tmp_path)
    yield own
    own.close()


@pytest.fixture
def own(stopped: OwnEtcd) -> OwnEtcd:
    """The same, started."""
    stopped.start()
    return stopped


async def put(own: OwnEtcd, value: bytes) -> None:
    async with open_etcd(own.endpoint) as etcd:
        await etcd.put(b"k", value)


async def get(own: OwnEtcd) -> list[bytes]:
    async with open_etcd(own.endpoint) as etcd:
        return [kv.value for kv in (await etcd.range(KEY)).kvs]


async def answers(own: OwnEtcd) -> bool:
    async with open_etcd(own.endpoint, request_timeout=0.3) as etcd:
        try:
            await etcd.range(KEY)
        except Unavailable:
            return False
    return True


async def test_the_data_stay_when_it_is_killed(own: OwnEtcd) -> None:
    """Same data, same address, same version."""
    if not own.may_be_killed:
        pytest.skip("no etcd at hand that survives being killed")
    endpoint, version = own.endpoint, own.version
    await put(own, b"kept")
    own.kill()
    assert not await answers(own)
    own.start()
    assert await get(own) == [b"kept"]
    assert (own.endpoint, own.version) == (endpoint, version)
    assert EtcdServer.at(endpoint).version == version == own.shared().version


async def test_a_suspended_one_goes_on_where_it_was(own: OwnEtcd) -> None:
    """It answers nothing meanwhile; it can be stopped as it is."""
    await put(own, b"kept")
    own.suspend()
    assert not await answers(own)
    own.resume()
    assert await get(own) == [b"kept"]
    own.suspend()
    own.stop()
    own.stop()
    own.start()
    assert await get(own) == [b"kept"]


async def test_data_are_wiped_and_restored(own: OwnEtcd) -> None:
    """A copy can come back more than once, also after the store was replaced."""
    await put(own, b"saved")
    own.stop()
    own.save("backup")
    own.start()
    await put(own, b"later")
    for _ in range(2):
        own.stop()
        own.wipe()
        own.start()
        assert await get(own) == []
        own.stop()
        own.restore("backup")
        own.start()
        assert await get(own) == [b"saved"]


async def test_flags_count_from_the_next_start(own: OwnEtcd) -> None:
    """The data stay."""
    await put(own, b"kept")
    own.stop()
    own.flags.append("--max-request-bytes=1000")
    own.start()
    assert await get(own) == [b"kept"]
    assert "request is too large" in refusal(own, "put", "big", "x" * 2000)


def refusal(own: OwnEtcd, *arguments: str) -> str:
    with pytest.raises(RuntimeError) as caught:
        own.etcdctl(*arguments)
    return str(caught.value)


def test_etcdctl_comes_with_it(own: OwnEtcd) -> None:
    """What it prints is returned, what it refuses is raised."""
    own.etcdctl("put", "k", "v")
    assert own.etcdctl("get", "k", "--print-value-only") == "v\n"
    assert "nonsense" in refusal(own, "nonsense")


def test_its_log_tells_why_it_does_not_start(stopped: OwnEtcd) -> None:
    """Not just that it did not."""
    stopped.flags.append("--listen-peer-urls=http://203.0.113.1:1")
    with pytest.raises(EmbeddedEtcdError, match=r"203\.0\.113\.1"):
        stopped.start()


def test_what_is_not_running_cannot_be_killed(stopped: OwnEtcd) -> None:
    """It is a mistake of the test, not of etcd."""
    with pytest.raises(RuntimeError):
        stopped.kill()
    with pytest.raises(RuntimeError):
        stopped.etcdctl("version") if isinstance(stopped, EtcdContainer) else stopped.suspend()


def test_as_a_context_manager_it_is_gone_afterwards(tmp_path: Path) -> None:
    """Its address, too, is nobody's then."""
    with EtcdProcess(tmp_path) as own:
        server = own.shared()
        assert EtcdServer.at(server.endpoint).where == server.endpoint
    with pytest.raises(Unavailable, match=server.endpoint):
        EtcdServer.at(server.endpoint)


def test_a_container_is_removed(needs_image: None, tmp_path: Path) -> None:
    """Nothing of it stays at the engine."""
    with EtcdContainer(tmp_path) as own:
        engine = own._running().client
        name = own._running().id
        assert name in [container.id for container in engine.containers.list()]
    assert name not in [container.id for container in engine.containers.list(all=True)]
    engine.close()


def test_an_image_that_is_not_to_be_had(needs_image: None, tmp_path: Path) -> None:
    """The error names it."""
    with pytest.raises(EmbeddedEtcdError, match=r"127\.0\.0\.1:1/no/such"):
        EtcdContainer(tmp_path, image="127.0.0.1:1/no/such:image").start()


def test_where_no_engine_runs_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an error of ours; nothing is left open."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert "no container engine answers" in str(engine_problem())
    with pytest.raises(EmbeddedEtcdError, match="no container engine answers"):
        EtcdContainer(tmp_path)


def test_a_program_that_is_no_etcd_is_named(tmp_path: Path) -> None:
    """Before anything is started."""
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    with pytest.raises(EmbeddedEtcdError, match="other does not report its version, but: b'hello"):
        EtcdProcess(tmp_path, binary=other)
    with pytest.raises(EmbeddedEtcdError, match="absent"):
        EtcdProcess(tmp_path, binary=tmp_path / "absent")
    assert EtcdProcess(tmp_path).binary == best_binary().path


def test_nobody_answers_at_a_free_port() -> None:
    """So it is no etcd."""
    endpoint = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=endpoint):
        EtcdServer.at(endpoint)


@pytest.mark.skipif(sys.platform != "linux", reason="there are no abstract sockets")
def test_a_lasting_port_is_given_once_though_nobody_listens_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = etcd_server.lasting_port(), etcd_server.free_port()
    monkeypatch.setattr(etcd_server, "_LASTING_PORTS", [first] * 50 + [second])
    assert etcd_server.lasting_port() == second
