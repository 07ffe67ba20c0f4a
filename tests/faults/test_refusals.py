"""Members that refuse: a learner, which serves nothing, and one whose space is used up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from etcd_actions.errors import EtcdError, NoSpace, OutcomeUnknown, Unavailable
from etcd_actions.etcd import ConnectionSettings, TransportName, open_connection
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.endpoints import parse_endpoints
from tests.support.cluster import EtcdCluster, Member
from tests.support.load import Load, make_run
from tests.support.patient import patiently
from tests.support.recording import RecordingRunService, RecordingSink
from tests.support.scene import judge_delivery, judge_marks, processing, reflecting

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def with_learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EtcdCluster, Member]]:
    """A member with a vote, and one without."""
    directory = tmp_path_factory.mktemp("learner")
    cluster = EtcdCluster(directory)
    learner: Member | None = None
    try:
        cluster.start()
        learner = cluster.add_learner(directory / "learner")
        yield cluster, learner
    finally:
        if learner is not None and learner.running:
            learner.kill()
        cluster.stop()


def settings(transport: TransportName, *endpoints: str) -> ConnectionSettings:
    return ConnectionSettings(
        endpoints=parse_endpoints(endpoints), transport=transport, request_timeout=3
    )


async def refused_by(learner: Member, transport: TransportName) -> str:
    """What a learner says to a write, once it is in step enough to be one."""
    async with open_connection(settings(transport, learner.endpoint)) as etcd:
        while True:
            try:
                await etcd.put(b"refused", b"")
            except Unavailable as error:
                if "learner" in str(error):
                    if isinstance(error, OutcomeUnknown):
                        pytest.fail("what a learner refuses was certainly not done")
                    return str(error)
            else:
                pytest.fail("a learner took a write")
            await trio.sleep(0.02)  # The pace of a client that tries again.


async def test_what_a_learner_refuses_is_done_by_the_next_member(
    with_learner: tuple[EtcdCluster, Member], transport: TransportName, prefix: bytes
) -> None:
    """A write, a read, a lease and a watch: none fails, and none is of unknown outcome."""
    cluster, learner = with_learner
    both = settings(transport, learner.endpoint, *cluster.endpoints)
    with trio.fail_after(60):
        assert "rpc not supported for learner" in await refused_by(learner, transport)
        async with open_connection(both) as etcd:
            await etcd.put(prefix + b"k", b"v")
        async with open_connection(both) as etcd:
            assert len((await etcd.range(KeyRange.of_prefix(prefix))).kvs) == 1
        async with open_connection(both) as etcd:
            await etcd.delete(KeyRange.of_prefix(prefix))
        async with open_connection(both) as etcd:
            lease = await etcd.lease_grant(60)
        async with open_connection(both) as etcd:
            assert (await etcd.lease_keep_alive(lease.id)).ttl > 0


async def test_a_reflector_and_a_processor_that_begin_at_a_learner(
    with_learner: tuple[EtcdCluster, Member], transport: TransportName, prefix: bytes
) -> None:
    """They go on to the member that serves; nothing is lost and each ending is marked once."""
    cluster, learner = with_learner
    both = settings(transport, learner.endpoint, *cluster.endpoints)
    sink = RecordingSink()
    with trio.fail_after(60):
        await refused_by(learner, transport)
        async with (
            open_connection(settings("grpc", *cluster.endpoints)) as direct,
            open_connection(both) as watcher,
            open_connection(both) as etcd,
            reflecting(watcher, prefix, sink),
        ):
            run_service = RecordingRunService(direct)
            async with processing(etcd, prefix, run_service) as processor:
                await Load(direct).play([make_run(prefix, "rl1", 3)])
                await judge_marks([processor], [run_service], direct, prefix)
            await judge_delivery(sink, direct, prefix)


async def test_a_full_store_may_have_applied_what_it_refuses(tmp_path: Path) -> None:
    """The applier of a write that crosses the quota does both; no caller may take it for undone."""
    cluster = EtcdCluster(tmp_path, flags=["--quota-backend-bytes=2000000"])
    refused, there = set[bytes](), set[bytes]()
    try:
        cluster.start()
        with trio.fail_after(60):
            async with (
                open_connection(settings("grpc", *cluster.endpoints)) as etcd,
                trio.open_nursery() as nursery,
            ):

                async def put(key: bytes) -> None:
                    try:
                        await etcd.put(key, b"x" * 1_000_000)
                    except NoSpace:
                        refused.add(key)
                    except EtcdError:
                        # Slow machines: it says nothing of space.
                        return

                for n in range(40):
                    nursery.start_soon(put, b"k%02d" % n)
            async with open_connection(settings("grpc", *cluster.endpoints)) as etcd:
                found = await patiently(etcd.range, KeyRange.of_prefix(b"k"), keys_only=True)
                there = {kv.key for kv in found.kvs}
    finally:
        cluster.stop()
    assert refused & there
