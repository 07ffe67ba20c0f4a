"""Conditions with a time-out: ended by the leader, where no executor runs, and by nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client, open_etcd
from etcd_actions.actions.condition_timeouts import ConditionTimeouts
from etcd_actions.codecs import CODEC_NAMES, codec_of, json
from etcd_actions.config.settings import CodecName
from etcd_actions.errors import NotFound
from etcd_actions.etcd.api import Compare, CompareResult, CompareTarget, Etcd, KeyRange, KeyValue
from etcd_actions.model import Keyspace
from etcd_actions.model.conditions import rfc3339
from etcd_actions.storage.store import Fence, FencedStore, Store
from tests.executor.fakes import SetClock
from tests.executor.tasks import until
from tests.record.test_outbox import SETTINGS, Scripted
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")
DAYS = 86400.0
NEVER = Compare(b"/nowhere", CompareTarget.CREATE_REVISION, CompareResult.EQUAL, -1)


def named(name: str) -> ActionId:
    return ActionId("p", "d", "r1", name)


def _waiting(client: ActionsClient) -> int:
    """How many conditions a client has noted."""
    recording = client._processor._recording  # type: ignore[union-attr]
    return len(recording.timeouts) if recording is not None else 0


async def wait(client: ActionsClient, name: str, seconds: int) -> None:
    """Enqueue a condition, below a root that is there already."""
    condition = flyte.condition(named(name), "a0")
    condition.condition.timeout.seconds = seconds
    await client.enqueue(condition)


@asynccontextmanager
async def leading(
    etcd: Etcd,
    prefix: bytes,
    clock: SetClock,
    service: Scripted | None = None,
    *,
    elect: bool = True,
    record: bool = True,
    codec: CodecName = "json",
) -> AsyncIterator[ActionsClient]:
    settings = replace(SETTINGS, clock=clock, elect=elect, record=record)
    async with open_actions_client(
        etcd, prefix=prefix, run_service=service or Scripted(), settings=settings, codec=codec
    ) as client:
        await client.start_watching()
        if elect and record:
            await eventually(lambda: client.statistics().elected)
        yield client


async def phase_of(client: ActionsClient, name: str) -> Phase:
    return (await client.get_task_action(named(name))).phase


async def until_ended(client: ActionsClient, name: str) -> Phase:
    return (await until(client, named(name))).phase


@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
@pytest.mark.parametrize("elect", [True, False], ids=["elected", "alone"])
async def test_it_ends_in_time_without_an_executor_and_is_told_and_marked(
    etcd: Etcd, prefix: bytes, codec: CodecName, elect: bool
) -> None:
    """As Flyte's executor would end it; one without a time-out waits on."""
    clock, service = SetClock(), Scripted()
    async with leading(etcd, prefix, clock, service, elect=elect, codec=codec) as client:
        await client.enqueue(flyte.task(ROOT))
        await wait(client, "w1", 900)
        await wait(client, "w2", 0)
        await wait(client, "w3", 2000)
        clock.passed += 850
        await client.put_status(ROOT, 1, flyte.status(Phase.RUNNING))
        await eventually(lambda: Phase.RUNNING in service.of("a0", "status"))
        assert not (await client.get_task_action(named("w1"))).is_terminal
        clock.passed += 60
        assert await until_ended(client, "w1") is Phase.TIMED_OUT
        ended = (await client.get_task_action(named("w1"))).status
        assert ended.error_state is not None
        assert (ended.error_state.code, ended.error_state.kind) == ("ConditionTimedOut", "USER")
        assert next(each.reason for each in ended.conditions if each.type == "Failed") == "TimedOut"
        await eventually(lambda: service.of("w1", "status") == [Phase.TIMED_OUT])
        await eventually(lambda: client.statistics().marks.get("marked") == 1)
        for name in ("w2", "w3"):
            assert not (await client.get_task_action(named(name))).is_terminal


@pytest.mark.parametrize("step", [-10 * DAYS, 10 * DAYS])
async def test_a_step_of_the_wall_clock_changes_nothing(
    etcd: Etcd, prefix: bytes, step: float
) -> None:
    clock = SetClock()
    async with leading(etcd, prefix, clock) as client:
        await client.enqueue(flyte.task(ROOT))
        await wait(client, "w1", 900)
        await eventually(lambda: _waiting(client) == 1)
        clock.stepped = step
        clock.passed += 850
        await wait(client, "w2", 10_000_000)
        assert not (await client.get_task_action(named("w1"))).is_terminal
        clock.passed += 60
        assert await until_ended(client, "w1") is Phase.TIMED_OUT


async def test_a_restart_counts_from_the_creation(etcd: Etcd, prefix: bytes) -> None:
    """What was over while nobody ran ends at the start; what was not has what is left."""
    clock = SetClock()
    async with leading(etcd, prefix, clock) as client:
        await client.enqueue(flyte.task(ROOT))
        await wait(client, "w1", 900)
        await wait(client, "w2", 2000)
    clock.passed += 1000
    async with leading(etcd, prefix, clock) as client:
        assert await until_ended(client, "w1") is Phase.TIMED_OUT
        assert not (await client.get_task_action(named("w2"))).is_terminal
        clock.passed += 1001
        assert await until_ended(client, "w2") is Phase.TIMED_OUT


async def test_a_takeover_ends_what_the_last_leader_did_not(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """The next one knows the conditions already, and writes with its own leadership."""
    clock = SetClock()
    async with open_etcd(shared_etcd.endpoint) as other:
        settings = replace(SETTINGS, clock=clock)
        async with open_actions_client(other, prefix=prefix, settings=settings) as second:
            async with leading(etcd, prefix, clock) as first:
                await second.start_watching()
                await first.enqueue(flyte.task(ROOT))
                await wait(first, "w1", 900)
                await eventually(lambda: _waiting(second) == 1)
                assert not second.statistics().elected
            await eventually(lambda: second.statistics().elected)
            clock.passed += 901
            assert await until_ended(second, "w1") is Phase.TIMED_OUT


async def test_a_signal_that_comes_first_wins(etcd: Etcd, prefix: bytes) -> None:
    """Also one that Flyte's service has written and nobody has made the end of."""
    clock = SetClock()
    async with leading(etcd, prefix, clock) as client:
        await client.enqueue(flyte.task(ROOT))
        for name in ("w1", "w2", "w3"):
            await wait(client, name, 900)
        await client.signal(named("w1"), flyte.boolean(True))
        store, key = Store(etcd), Keyspace(prefix).task_action(named("w2"))
        kv = await store.get(key)
        assert kv is not None
        tree = codec_of(kv.value).decode_tree(kv.value)
        tree.setdefault("status", {})["signalValue"] = "CgQKAhgB"
        assert (await store.compare_and_put(kv, codec_of(kv.value).encode_tree(tree))).applied
        clock.passed += 901
        assert await until_ended(client, "w3") is Phase.TIMED_OUT
        assert await phase_of(client, "w1") is Phase.SUCCEEDED
        assert not (await client.get_task_action(named("w2"))).is_terminal


async def test_who_does_not_lead_ends_nothing(etcd: Etcd, prefix: bytes) -> None:
    """The write compares the leadership; it is tried again, and counts once it holds."""
    clock, fence = SetClock(), Fence()
    fence.compare = NEVER
    async with leading(etcd, prefix, clock, record=False) as client:
        await client.enqueue(flyte.task(ROOT))
        await wait(client, "w1", 900)
        key = Keyspace(prefix).task_action(named("w1"))
        kv = await Store(etcd).get(key)
        assert kv is not None
        timeouts = ConditionTimeouts(FencedStore(Store(etcd), fence), clock=clock)
        timeouts.note(key, json.summarize(kv.value, revision=1, create_revision=kv.create_revision))
        clock.passed += 901
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timeouts.end_in_time)
            await eventually(lambda: timeouts._failures.get(key) == 1)
            clock.passed += 1.1
            await eventually(lambda: timeouts._failures.get(key) == 2)
            assert not (await client.get_task_action(named("w1"))).is_terminal
            fence.compare = None
            clock.passed += 1.1
            assert await until_ended(client, "w1") is Phase.TIMED_OUT
            nursery.cancel_scope.cancel()
        # One that only subscribes had noted nothing.
        assert _waiting(client) == 0


async def test_what_is_deleted_or_made_again_counts_anew(etcd: Etcd, prefix: bytes) -> None:
    clock = SetClock()
    async with leading(etcd, prefix, clock) as client:
        await client.enqueue(flyte.task(ROOT))
        await wait(client, "w1", 900)
        await eventually(lambda: _waiting(client) == 1)
        await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(named("w1"))))
        await eventually(lambda: _waiting(client) == 0)
        clock.passed += 901
        with pytest.raises(NotFound):
            await client.get_task_action(named("w1"))


@pytest.mark.parametrize("error", [RuntimeError("oh"), MemoryError(), RecursionError()])
async def test_something_unexpected_parks_that_condition_alone(
    etcd: Etcd, prefix: bytes, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, for ever; the others end in time."""
    clock, failing, ended = SetClock(), [True], ConditionTimeouts._ended

    def fail(timeouts: ConditionTimeouts, kv: KeyValue) -> bytes:
        if failing and kv.key.endswith(b"w1"):
            raise error
        return ended(timeouts, kv)

    monkeypatch.setattr(ConditionTimeouts, "_ended", fail)
    async with leading(etcd, prefix, clock) as client:
        await client.enqueue(flyte.task(ROOT))
        for name in ("w1", "w2"):
            await wait(client, name, 900)
        clock.passed += 901
        assert await until_ended(client, "w2") is Phase.TIMED_OUT
        await eventually(lambda: [each.kind for each in client.containment.parked] == ["condition"])
        failing.clear()
        clock.passed += 31
        assert await until_ended(client, "w1") is Phase.TIMED_OUT
        await eventually(lambda: not client.containment.parked)


async def test_one_that_cannot_be_read_holds_up_no_other(etcd: Etcd, prefix: bytes) -> None:
    """It is logged; an executor would end it as FAILED."""
    clock = SetClock()
    created = rfc3339(datetime.now(UTC) - timedelta(days=1))
    broken = {
        "apiVersion": "flyte.org/v1",
        "kind": "TaskAction",
        "metadata": {"name": "r1-w0", "uid": "u", "creationTimestamp": created},
        "spec": {
            "project": "p",
            "domain": "d",
            "runName": "r1",
            "actionName": "w0",
            "actionType": "condition",
            "conditionSpec": "////",
        },
    }
    async with leading(etcd, prefix, clock) as client:
        with capture_logs() as logs:
            key = Keyspace(prefix).task_action(named("w0"))
            await etcd.put(key, json.encode_tree(broken))
            await client.enqueue(flyte.task(ROOT))
            await wait(client, "w1", 900)
            clock.passed += 901
            assert await until_ended(client, "w1") is Phase.TIMED_OUT
        assert [each["key"] for each in logs if each["event"] == "condition_unreadable"] == [
            key.decode()
        ]


async def test_one_that_is_created_again_while_it_is_read_is_ended_in_time(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer about the incarnation before does not end the check of the present one."""
    clock, key = SetClock(), Keyspace(prefix, "flyte").task_action(named("c1"))
    async with leading(etcd, prefix, clock) as client:
        recording = client._processor._recording  # type: ignore[union-attr]
        assert recording is not None
        timeouts = recording.timeouts
        get, read, goes_on = timeouts._store.get, trio.Event(), trio.Event()

        async def slow(key: bytes, *, revision: int = 0) -> KeyValue | None:
            found = await get(key, revision=revision)
            read.set()
            await goes_on.wait()
            return found

        monkeypatch.setattr(timeouts._store, "get", slow)
        await client.enqueue(flyte.task(ROOT))
        await wait(client, "c1", 60)
        await read.wait()
        (before,) = (await etcd.range(KeyRange.of_key(key))).kvs
        await etcd.delete(KeyRange.of_key(key))
        created = (await etcd.put(key, before.value)).revision
        await eventually(
            lambda: (
                (seen := timeouts._open.get(key)) is not None and seen.create_revision == created
            )
        )
        goes_on.set()
        clock.passed += 120
        assert await until_ended(client, "c1") is Phase.TIMED_OUT
