"""What the run service is told, when, and what is marked then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.errors import RunServiceRejected, RunServiceUnavailable
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import ActionObject, ActionUpdate, Keyspace
from etcd_actions.pipeline.watching_settings import WatchingSettings
from etcd_actions.record.leader import Leader
from etcd_actions.run_service import RunService
from etcd_actions.run_service.grpc_run_service import open_run_service
from etcd_actions.testing import MemoryStore
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.run_service_server import Fault, RunServiceServer
from tests.support.scene import PROCESSOR
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")
SETTINGS = replace(
    PROCESSOR,
    elect=True,
    collect_orphans=True,
    save_every=0.05,
    election_ttl=2,
    # An old etcd does not tell that nothing has changed: it is looked after so long.
    reflector=replace(PROCESSOR.reflector, dead_after=0.6),
)
# Behind a leader that is killed, what it may have told is held so long that a machine under load
# does not miss it.
LONG = replace(SETTINGS, election_ttl=10)


def named(name: str) -> ActionId:
    return ActionId("p", "d", "r1", name)


class Scripted(RunService):
    """Accepts, or raises what it was told to; keeps every call that it accepted, in order."""

    def __init__(self, *, wants_all: bool = True) -> None:
        self.told: list[tuple[str, str, Phase]] = []
        self.updates: list[ActionUpdate] = []
        self.calls: list[tuple[str, str]] = []
        self.failures: dict[tuple[str, str], list[Exception]] = {}
        self._wants_all = wants_all

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        return self._wants_all

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        self._take("record", update)

    async def update_action_status(self, update: ActionUpdate) -> None:
        self._take("status", update)

    def _take(self, what: str, update: ActionUpdate) -> None:
        name = update.action_id.name
        self.calls.append((what, name))
        if failures := self.failures.get((what, name)):
            raise failures.pop(0)
        self.told.append((what, name, update.phase))
        self.updates.append(update)

    def of(self, name: str, what: str = "status") -> list[Phase]:
        return [phase for kind, who, phase in self.told if (kind, who) == (what, name)]


@asynccontextmanager
async def watching(
    etcd: Etcd, prefix: bytes, service: Scripted, settings: WatchingSettings = SETTINGS
) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(
        etcd, prefix=prefix, run_service=service, settings=settings
    ) as client:
        await client.start_watching()
        await eventually(lambda: client.statistics().elected)
        yield client


async def tell(client: ActionsClient, name: str, phases: Iterable[Phase], attempt: int = 1) -> None:
    for phase in phases:
        await client.put_status(named(name), attempt, flyte.status(phase, attempt))


def is_idle(client: ActionsClient) -> bool:
    statistics = client.statistics()
    router, outbox = statistics.handlers, statistics.outbox
    return router is not None and outbox is not None and not router.keys and not outbox.keys


async def test_recorded_once_before_its_first_status(etcd: Etcd, prefix: bytes) -> None:
    """Upstream's TestNotifyRunService_DeduplicateRecordAction and _DuplicateAddedSkips..."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await eventually(lambda: service.of("a0", "record") == [Phase.UNSPECIFIED])
        for phase in (Phase.QUEUED, Phase.RUNNING, Phase.SUCCEEDED):
            await tell(client, "a0", [phase])
            await eventually(lambda phase=phase: service.of("a0")[-1:] == [phase])  # type: ignore[misc]
        await eventually(lambda: client.statistics().marks == {"marked": 1})
    assert len(service.of("a0", "record")) == 1
    assert service.of("a0") == [Phase.QUEUED, Phase.RUNNING, Phase.SUCCEEDED]


async def test_a_failed_record_is_told_again_first(etcd: Etcd, prefix: bytes) -> None:
    """Upstream's ..._FailedRecordAllowsRetry; its status never overtakes it (defects 3, 5)."""
    service = Scripted()
    service.failures["record", "a0"] = [RunServiceUnavailable("scripted")] * 3
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.SUCCEEDED])
        await eventually(lambda: client.statistics().marks == {"marked": 1})
    assert [what for what, _, _ in service.told] == ["record", "status"]
    assert service.calls.count(("record", "a0")) == 4


async def test_attempts_and_cache_status_are_told(etcd: Etcd, prefix: bytes) -> None:
    """Upstream's ..._UpdateActionStatusIncludesAttemptsAndCacheStatus."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        status = flyte.status(Phase.RUNNING, 3)
        status.cache_status = 2
        await client.put_status(ROOT, 3, status)
        await eventually(lambda: service.of("a0")[-1:] == [Phase.RUNNING])
    assert (service.updates[-1].attempts, service.updates[-1].cache_status) == (3, 2)


async def test_a_rejected_ending_is_never_marked(etcd: Etcd, prefix: bytes) -> None:
    """Upstream's ..._RejectedStatusUpdateSkipsTerminalLabel: a dead letter until accepted."""
    service = Scripted()
    service.failures["status", "a0"] = [RunServiceRejected("no", code=3)]
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.FAILED])
        await eventually(lambda: len(client.statistics().dead_letters) == 1)
        await eventually(lambda: is_idle(client))
        (letter,) = client.statistics().dead_letters
        assert (letter.what, letter.code) == ("status", 3)
        assert letter.key == Keyspace(prefix).task_action(ROOT)
        assert client.statistics().rejected == {"status": 1}
        assert client.statistics().marks == {}
        assert not (await client.get_task_action(ROOT)).is_recorded
        # A start later it is offered again.
        await client.stop_watching()
        await client.start_watching()
        await eventually(lambda: client.statistics().marks == {"marked": 1})
        assert client.statistics().dead_letters == ()


async def test_what_changes_while_a_term_starts_is_reported_once(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch has delivered it by the time at which the backlog is looked at."""
    service = Scripted()
    deliver_backlog = Leader._deliver_backlog
    delivered = trio.Event()

    async def late(self: Leader) -> None:
        await eventually(lambda: Phase.RUNNING in service.of("a0"))
        await deliver_backlog(self)
        delivered.set()

    monkeypatch.setattr(Leader, "_deliver_backlog", late)
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.RUNNING])
        await delivered.wait()
        await eventually(lambda: is_idle(client))
    assert service.of("a0").count(Phase.RUNNING) == 1


async def test_what_another_leader_saw_deleted_is_forgotten(
    prefix: bytes, autojump_clock: MockClock
) -> None:
    """What was reported of a key takes memory, and this process is not asked about its deletion."""
    store = MemoryStore()
    etcd, service = store.client(), Scripted()
    election = KeyRange.of_key(Keyspace(prefix).election("flyte"))
    key = Keyspace(prefix).task_action(ROOT)
    async with watching(etcd, prefix, service) as client:
        outbox = client._processor._recording.outbox  # type: ignore[union-attr]
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.RUNNING])
        await eventually(lambda: service.of("a0")[-1:] == [Phase.RUNNING])
        other = open_actions_client(
            store.client(), prefix=prefix, run_service=Scripted(), settings=SETTINGS
        )
        async with other as second:
            await second.start_watching()
            while not second.statistics().elected:
                await etcd.delete(election)
                await trio.sleep(0.1)  # On a clock that jumps: one of the two is elected.
            deleted = await etcd.delete(KeyRange.of_key(key))
            await eventually(lambda: client.statistics().checkpoint >= deleted.revision)
            assert set(outbox._reported) == {key}
        await eventually(lambda: outbox.working)
        assert not outbox._reported
    assert Phase.ABORTED not in service.of("a0")


async def test_a_rejected_record_does_not_withhold_the_status(etcd: Etcd, prefix: bytes) -> None:
    """It is a dead letter of its own, and told once."""
    service = Scripted()
    service.failures["record", "a0"] = [RunServiceRejected("no", code=3)]
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.RUNNING, Phase.SUCCEEDED])
        await eventually(lambda: client.statistics().marks == {"marked": 1})
        assert [each.what for each in client.statistics().dead_letters] == ["record"]
    assert service.of("a0")[-1] is Phase.SUCCEEDED
    assert service.calls.count(("record", "a0")) == 1


async def test_the_first_child_makes_its_parent_running(etcd: Etcd, prefix: bytes) -> None:
    """Upstream's ..._ChildAddedPromotesParentToRunning and _RootActionAddedDoesNotPromoteParent."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.QUEUED])
        await eventually(lambda: service.of("a0") == [Phase.QUEUED])
        for name in ("c1", "c2"):
            await client.enqueue(flyte.task(named(name), "a0"))
        await eventually(lambda: service.of("a0") == [Phase.QUEUED, Phase.RUNNING])
        await eventually(lambda: is_idle(client))
        # What is told of the parent itself stays as far as that.
        await tell(client, "a0", [Phase.INITIALIZING])
        await eventually(lambda: len(service.of("a0")) == 3)
    assert service.of("a0") == [Phase.QUEUED, Phase.RUNNING, Phase.RUNNING]
    assert (service.of("c1"), service.of("c2")) == ([], [])


@pytest.mark.parametrize(
    "phase", first_everyday([Phase.RUNNING, Phase.PAUSED, Phase.FAILED, Phase.TIMED_OUT])
)
async def test_a_parent_that_is_further_is_not_promoted(
    etcd: Etcd, prefix: bytes, phase: Phase
) -> None:
    """Defect c: a late child would revive a failed parent, with attempts of 0."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [phase])
        await eventually(lambda: service.of("a0") == [phase])
        await client.enqueue(flyte.task(named("c1"), "a0"))
        await eventually(lambda: len(service.of("c1", "record")) == 1)
        await eventually(lambda: is_idle(client))
    assert service.of("a0") == [phase]


async def test_an_ending_found_at_the_start_is_told(etcd: Etcd, prefix: bytes) -> None:
    """Upstream's ..._SkipsTerminalAddedEventsOnlyWhenInBloomFilter, first half."""
    async with open_actions_client(etcd, prefix=prefix, settings=SETTINGS) as writer:
        await writer.enqueue(flyte.task(ROOT))
        await tell(writer, "a0", [Phase.SUCCEEDED])
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await eventually(lambda: client.statistics().marks == {"marked": 1})
    assert service.of("a0") == [Phase.SUCCEEDED]


async def test_made_and_deleted_at_once_it_is_told(etcd: Etcd, prefix: bytes) -> None:
    """Upstream's TestHandleWatchEvent_CreateThenDeleteStillRecords and _DeleteAfterRecord..."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))
        await eventually(lambda: service.of("a0") == [Phase.ABORTED])
    assert len(service.of("a0", "record")) == 1


@pytest.mark.network
async def test_a_condition_with_its_value(etcd: Etcd, prefix: bytes) -> None:
    """Upstream's TestNotifyRunService_Condition, over gRPC: output and principal."""
    with RunServiceServer() as server:
        async with (
            open_run_service(server.endpoint) as service,
            open_actions_client(
                etcd, prefix=prefix, run_service=service, settings=SETTINGS
            ) as client,
        ):
            await client.start_watching()
            await client.enqueue(flyte.task(ROOT))
            await client.enqueue(flyte.condition(named("c1"), "a0"))
            await client.signal(named("c1"), flyte.boolean(True), "alice")
            await eventually(lambda: client.statistics().marks == {"marked": 1})
    (record,) = [each for each in server.told if (each.what, each.name) == ("record", "c1")]
    assert record.request.condition.name == "c1"
    assert record.request.parent == "a0"
    told = [each.request for each in server.told if (each.what, each.name) == ("status", "c1")]
    assert told[-1].status.phase == Phase.SUCCEEDED
    assert told[-1].output.scalar.primitive.boolean
    assert told[-1].principal.user.id.subject == "alice"
    assert told[-1].status.end_time.seconds >= told[-1].status.start_time.seconds > 0


@pytest.mark.network
async def test_reason_and_actor_of_an_abort(etcd: Etcd, prefix: bytes) -> None:
    """Defect 13: they reach the run service, for the whole subtree, and subscribers."""
    with RunServiceServer() as server:
        async with (
            open_run_service(server.endpoint) as service,
            open_actions_client(
                etcd, prefix=prefix, run_service=service, settings=SETTINGS
            ) as client,
            client.subscribe(ROOT) as updates,
        ):
            await client.start_watching()
            await client.enqueue(flyte.task(ROOT))
            await client.enqueue(flyte.task(named("c1"), "a0"))
            await client.abort_action(ROOT, "too slow", "alice")
            await eventually(lambda: client.statistics().marks.get("marked") == 2)
            with trio.fail_after(20):
                async for update in updates:
                    if (update.action_id.name, update.phase) == ("c1", Phase.ABORTED):
                        break
            assert (update.abort_reason, update.aborted_by) == ("too slow", "alice")
    for name in ("a0", "c1"):
        told = [each.request for each in server.told if (each.what, each.name) == ("status", name)]
        assert told[-1].status.phase == Phase.ABORTED
        assert told[-1].abort_reason == "too slow"
        assert told[-1].principal.user.id.subject == "alice"


@pytest.mark.network
@pytest.mark.parametrize("phase", first_everyday([Phase.SUCCEEDED, Phase.FAILED]))
async def test_a_trace_is_told_as_what_it_is(etcd: Etcd, prefix: bytes, phase: Phase) -> None:
    """Defect d: by its record, with its own phase; durable; recorded again it is told again."""
    with RunServiceServer() as server:
        server.script("record", Fault(code=14), Fault(code=14), name="t1")
        async with (
            open_run_service(server.endpoint) as service,
            open_actions_client(
                etcd, prefix=prefix, run_service=service, settings=SETTINGS
            ) as client,
        ):
            await client.enqueue(flyte.task(ROOT))
            await client.enqueue(flyte.trace(named("t1"), "a0", phase=phase))
            await client.start_watching()
            await eventually(lambda: client.statistics().marks.get("marked") == 1)
            await client.enqueue(flyte.trace(named("t1"), "a0", phase=phase))
            await eventually(lambda: client.statistics().marks.get("marked") == 2)
    told = [each for each in server.told if each.name == "t1"]
    once = ["record"] if phase is Phase.SUCCEEDED else ["record", "status"]
    assert [each.what for each in told] == once * 2
    assert {each.request.trace.phase for each in told if each.what == "record"} == {phase}
    assert server.told_phases("t1") == ([] if phase is Phase.SUCCEEDED else [phase, phase])


async def test_a_deletion_that_nobody_saw_is_told_once(etcd: Etcd, prefix: bytes) -> None:
    """The next start begins at the position, and sees it in the history."""
    service = Scripted()
    key = Keyspace(prefix).task_action(ROOT)
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        written = await client.put_status(ROOT, 1, flyte.status(Phase.RUNNING))
        await eventually(lambda: client.statistics().checkpoint >= written.revision)
    assert service.of("a0") in ([Phase.RUNNING], [Phase.UNSPECIFIED, Phase.RUNNING])
    deleted = await etcd.delete(KeyRange.of_key(key))
    async with watching(etcd, prefix, service) as client:
        await eventually(lambda: service.of("a0")[-1] is Phase.ABORTED)
        await eventually(lambda: client.statistics().checkpoint >= deleted.revision)
    async with watching(etcd, prefix, service) as client:
        await eventually(lambda: is_idle(client))
    assert service.of("a0").count(Phase.ABORTED) == 1


async def test_only_the_elected_one_tells(etcd: Etcd, prefix: bytes) -> None:
    """When it is gone, without a word, the other begins with what is unmarked."""
    first, second = Scripted(), Scripted()
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        life = trio.CancelScope()

        async def lead() -> None:
            with life:
                async with watching(etcd, prefix, first):
                    ready.set()
                    await trio.sleep_forever()

        nursery.start_soon(lead)
        await ready.wait()
        async with open_actions_client(
            etcd, prefix=prefix, run_service=second, settings=SETTINGS
        ) as client:
            await client.start_watching()
            first.failures["status", "a0"] = [RunServiceUnavailable("scripted")] * 1000
            await client.enqueue(flyte.task(ROOT))
            await tell(client, "a0", [Phase.SUCCEEDED])
            await eventually(lambda: len(first.calls) > 3)
            assert second.calls == []
            life.cancel()
            await eventually(lambda: client.statistics().marks == {"marked": 1})
            # At once, and again when nothing of the other one can land behind it.
            assert second.of("a0") == [Phase.SUCCEEDED] * 2
            assert (await client.get_task_action(ROOT)).is_recorded
