"""Somebody writes over the keys that this package keeps for itself."""

from __future__ import annotations

import pytest
import trio

from etcd_actions import ActionId, open_actions_client
from etcd_actions.errors import Aborted, ActionError, EtcdError, InvalidArgument
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.etcd.election import open_election
from etcd_actions.model import Keyspace
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")


async def test_a_leader_defends_its_key(etcd: Etcd, prefix: bytes) -> None:
    """Written over, the key hangs on no lease: it would outlive its leader for ever."""
    key = prefix + b"election"

    async def is_defended() -> bool:
        return bool((await etcd.range(KeyRange.of_key(key))).kvs[0].lease)

    async with open_election(etcd, key, ttl=5) as election:
        with trio.fail_after(20):
            leadership = await election.wait_leader()
        for value in (b"garbage", b"\xff" * 1_000_000):
            await etcd.put(key, value)
            await eventually_holds(is_defended)
        assert election.leadership == leadership
    assert (await etcd.range(KeyRange.of_key(key))).kvs == []


async def test_a_key_without_a_lease_holds_up_no_election_for_ever(
    etcd: Etcd, prefix: bytes
) -> None:
    key = prefix + b"election"
    await etcd.put(key, b"somebody wrote this")
    began = trio.current_time()
    async with open_election(etcd, key, ttl=2) as election:
        with trio.fail_after(20):
            await election.wait_leader()
        assert trio.current_time() - began >= 2


async def test_a_leader_that_gives_up_lets_another_one_lead(etcd: Etcd, prefix: bytes) -> None:
    """Never both: the one is no leader from that moment on."""
    key = prefix + b"election"
    async with open_election(etcd, key, ttl=5) as one:
        with trio.fail_after(20):
            await one.wait_leader()
            async with open_election(etcd, key, ttl=5) as other:
                one.give_up()
                assert not one.is_leader
                await other.wait_leader()
                assert not one.is_leader
                assert one.statistics().losses == {"failed": 1}
            # It stands again.
            await one.wait_leader()


async def test_a_claim_without_a_lease_is_nobodys(etcd: Etcd, prefix: bytes) -> None:
    """Written over, it would keep the action from being run for ever."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        action = (await client.enqueue(flyte.task(ROOT))).action
        key = Keyspace(prefix).claim(ROOT)
        async with client.open_claims() as one, client.open_claims() as other:
            await etcd.put(key, b"garbage")
            assert await one.taken() == set()
            before = await one.claim(ROOT, action.incarnation)
            assert before is not None
            assert await other.claim(ROOT, action.incarnation) is None
            await etcd.put(key, b"garbage")
            after = await other.claim(ROOT, action.incarnation)
            assert after is not None
            # The fence of the first one does not hold any more.
            assert after.create_revision > before.create_revision


@pytest.mark.parametrize(
    "value",
    first_everyday(
        [
            b"",
            b"garbage",
            b"[" * 200_000,
            b'{"x":' + b"[" * 200_000,
            b'{"revision":' + b"1" * 5_000 + b',"clusterId":"0"}',
            b'{"revision":1,"clusterId":"\xff"}',
        ],
        2,
    ),
    ids=lambda value: repr(value[:20]),
)
async def test_a_position_and_a_marker_that_are_garbage_stop_nothing(
    etcd: Etcd, prefix: bytes, value: bytes
) -> None:
    keys = Keyspace(prefix)
    await etcd.put(keys.checkpoint(keys.namespace), value)
    await etcd.put(keys.aborts + b"flyte/r9-a0", value)
    await etcd.put(keys.aborts + b"\xff/\xfe", value)
    async with open_actions_client(etcd, prefix=prefix) as client:
        with trio.fail_after(20):
            await client.start_watching()
            await client.enqueue(flyte.task(ROOT))
            await eventually(lambda: client.statistics().elected)
        assert client.containment.failures == {}


@pytest.mark.parametrize("seconds", [-(2**63), -62135596801, 253402300800, 2**63 - 1])
async def test_absurd_times_are_the_callers(etcd: Etcd, prefix: bytes, seconds: int) -> None:
    from flyteidl2.task.run_pb2 import RunSpec  # noqa: PLC0415

    spec = RunSpec()
    spec.run_start_time.seconds = seconds
    async with open_actions_client(etcd, prefix=prefix) as client:
        with pytest.raises(InvalidArgument, match="run_start_time"):
            await client.enqueue(flyte.task(ROOT), spec)


async def test_absurd_requests_are_the_callers(etcd: Etcd, prefix: bytes) -> None:
    """Nested too deeply to be encoded, larger than anything that can be stored."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        deep = flyte.task(ROOT)
        at = deep.task.spec.task_template.interface.inputs.variables.add().value.type
        for _ in range(3_000):
            at = at.collection_type
        at.simple = 1
        large = flyte.task(ROOT)
        large.task.spec.task_template.container.args.append("x" * (9 << 20))
        for odd in (deep, large):
            with pytest.raises((ActionError, EtcdError)):
                await client.enqueue(odd)
        assert client.containment.failures == {}
        assert (await client.enqueue(flyte.task(ROOT))).created


async def test_a_marker_that_is_about_another_action_holds_no_request_for_ever(
    etcd: Etcd, prefix: bytes
) -> None:
    """A copy of a marker under another key: it is told, and what to do."""
    marker = (
        b'{"uid":"u","project":"p","domain":"d","run":"r2","name":"a0","org":"","reason":"",'
        b'"abortedBy":"","at":"x"}'
    )
    key = Keyspace(prefix).abort(ROOT)
    await etcd.put(key, marker)
    with trio.fail_after(20):
        async with open_actions_client(etcd, prefix=prefix) as client:
            with pytest.raises(Aborted, match="cannot be read: delete"):
                await client.enqueue(flyte.task(ROOT))
            await etcd.delete(KeyRange.of_key(key))
            assert (await client.enqueue(flyte.task(ROOT))).created
