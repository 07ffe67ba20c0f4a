"""A run that recovers another: what succeeded there is not run again."""

from __future__ import annotations

from pathlib import Path

import pytest
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.common.identifier_pb2 import RunIdentifier
from flyteidl2.common.run_pb2 import RELATION_TYPE_RECOVER, RELATION_TYPE_RERUN
from flyteidl2.core.interface_pb2 import Variable
from flyteidl2.core.types_pb2 import LiteralType, SimpleType
from flyteidl2.task.run_pb2 import RunSpec

from etcd_actions import ActionId, ActionsClient, ActionUpdate, Phase
from etcd_actions.actions.recovery import MOST_SOURCES
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.errors import InvalidArgument
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import ANNOTATION_RECOVERED_FROM, ANNOTATION_RECOVERS, build_action_update
from etcd_actions.model import flyte as conversions
from etcd_actions.run_service.requests import record_action, update_action_status
from tests.support import flyte

pytestmark = pytest.mark.memory


def of(run: str, name: str = "a0") -> ActionId:
    return ActionId("p", "d", run, name)


def recovering(source: str, *again: str, project: str = "p") -> RunSpec:
    spec = RunSpec()
    spec.relation.relation_type = RELATION_TYPE_RECOVER
    spec.relation.related_to.CopyFrom(
        RunIdentifier(org="o", project=project, domain="d", name=source)
    )
    spec.recover.force_rerun_actions.extend(again)
    return spec


class Runs:
    """Runs of one root with children."""

    def __init__(self, client: ActionsClient) -> None:
        self.client = client

    async def source(self, run: str = "r1", **phases: Phase) -> None:
        """A run whose children are in some phases."""
        await self.client.enqueue(flyte.task(of(run)))
        for name, phase in phases.items():
            await self.child(run, name)
            await self.end(run, name, phase)

    async def recover(self, run: str, source: str, *again: str) -> None:
        await self.client.enqueue(flyte.task(of(run)), recovering(source, *again))

    async def child(self, run: str, name: str, parent: str = "a0") -> StoredAction:
        return (await self.client.enqueue(flyte.task(of(run, name), parent))).action

    async def end(self, run: str, name: str, phase: Phase, attempt: int = 1) -> None:
        await self.client.put_status(of(run, name), attempt, flyte.status(phase, attempt))

    async def phase(self, run: str, name: str) -> Phase:
        return (await self.child(run, name)).phase


@pytest.fixture
def runs(client: ActionsClient) -> Runs:
    return Runs(client)


def update_of(action: StoredAction) -> ActionUpdate:
    return build_action_update(
        action, key=action.key, revision=action.revision, create_revision=action.create_revision
    )


@pytest.mark.network
async def test_only_what_succeeded_is_taken_over(runs: Runs) -> None:
    ends = {"ok": Phase.SUCCEEDED, "bad": Phase.FAILED, "late": Phase.TIMED_OUT}
    await runs.source("r1", **ends, cut=Phase.ABORTED, busy=Phase.RUNNING)
    await runs.recover("r2", "r1")
    assert (await runs.client.get_task_action(of("r2"))).phase is Phase.UNSPECIFIED
    assert await runs.phase("r2", "ok") is Phase.RECOVERED
    for name in ("bad", "late", "cut", "busy", "new"):
        assert await runs.phase("r2", name) is Phase.UNSPECIFIED, name


async def test_it_is_over_with_the_outputs_where_they_are(runs: Runs) -> None:
    await runs.client.enqueue(flyte.task(of("r1")))
    await runs.child("r1", "ok")
    await runs.end("r1", "ok", Phase.RUNNING, attempt=2)
    await runs.end("r1", "ok", Phase.SUCCEEDED, attempt=2)
    there = await runs.client.get_task_action(of("r1", "ok"))
    assert there.output_uri.endswith("/ok/2")
    await runs.recover("r2", "r1")
    taken = await runs.child("r2", "ok")
    assert taken.is_terminal
    assert taken.end_time
    assert not taken.is_recorded
    assert taken.attempts == 1
    assert taken.output_uri == there.output_uri
    assert update_of(taken).output_uri == there.output_uri
    assert record_action(update_of(taken), taken).recovered_from == flyte.identifier(of("r1", "ok"))
    # The very same request again is no other one.
    assert await runs.child("r2", "ok") == taken


async def test_a_run_that_is_not_recovered_takes_nothing_over(runs: Runs) -> None:
    await runs.source(ok=Phase.SUCCEEDED)
    spec = recovering("r1")
    spec.relation.relation_type = RELATION_TYPE_RERUN
    await runs.client.enqueue(flyte.task(of("r2")), spec)
    taken = await runs.child("r2", "ok")
    assert taken.phase is Phase.UNSPECIFIED
    assert conversions.recovered_from(taken) is None
    assert not record_action(update_of(taken), taken).HasField("recovered_from")


async def test_what_is_named_runs_again(runs: Runs) -> None:
    await runs.source(a1=Phase.SUCCEEDED, a2=Phase.SUCCEEDED)
    await runs.recover("r2", "r1", "a1", "unknown")
    assert await runs.phase("r2", "a1") is Phase.UNSPECIFIED
    assert await runs.phase("r2", "a2") is Phase.RECOVERED


async def test_below_what_runs_again_successes_are_taken_over(runs: Runs) -> None:
    await runs.source()
    await runs.child("r1", "mid")
    await runs.child("r1", "leaf", "mid")
    await runs.end("r1", "leaf", Phase.SUCCEEDED)
    await runs.end("r1", "mid", Phase.FAILED)
    await runs.recover("r2", "r1")
    assert (await runs.child("r2", "mid")).phase is Phase.UNSPECIFIED
    assert (await runs.child("r2", "leaf", "mid")).phase is Phase.RECOVERED


async def test_the_nearest_run_that_has_the_action_decides(runs: Runs) -> None:
    """Of three runs; what one ran again and did not bring to an end is not taken from before."""
    await runs.source("r1", far=Phase.SUCCEEDED, both=Phase.SUCCEEDED, worse=Phase.SUCCEEDED)
    await runs.recover("r2", "r1", "worse", "stale")
    await runs.child("r2", "both")
    await runs.child("r2", "worse")
    await runs.end("r2", "worse", Phase.FAILED)
    await runs.recover("r3", "r2")
    for name, source in (("far", "r1"), ("both", "r2")):
        taken = await runs.child("r3", name)
        assert taken.metadata.annotations[ANNOTATION_RECOVERED_FROM] == source, name
        assert taken.output_uri == (await runs.client.get_task_action(of("r1", name))).output_uri
    assert await runs.phase("r3", "worse") is Phase.UNSPECIFIED


async def test_what_a_run_before_had_to_run_again_is_not_taken_from_behind_it(runs: Runs) -> None:
    await runs.source("r1", stale=Phase.SUCCEEDED)
    await runs.recover("r2", "r1", "stale")
    await runs.recover("r3", "r2")
    assert await runs.phase("r3", "stale") is Phase.UNSPECIFIED


async def test_a_chain_of_runs_is_bounded(runs: Runs) -> None:
    await runs.source("s0", ok=Phase.SUCCEEDED)
    last = MOST_SOURCES + 1
    for number in range(1, last + 1):
        await runs.recover(f"s{number}", f"s{number - 1}")
    assert await runs.phase(f"s{last - 1}", "ok") is Phase.RECOVERED
    # That one has it now.
    assert await runs.phase(f"s{last}", "ok") is Phase.RECOVERED
    root = await runs.client.get_task_action(of(f"s{last}"))
    assert root.metadata.annotations[ANNOTATION_RECOVERS].count("s") == MOST_SOURCES


async def test_what_has_expired_runs_again(runs: Runs, etcd: Etcd) -> None:
    await runs.source(ok=Phase.SUCCEEDED)
    await runs.recover("r2", "r1")
    await etcd.delete(KeyRange.of_key(runs.client.keys.task_action(of("r1", "ok"))))
    assert await runs.phase("r2", "ok") is Phase.UNSPECIFIED


async def test_what_cannot_be_read_runs_again(runs: Runs, etcd: Etcd) -> None:
    await runs.source(ok=Phase.SUCCEEDED)
    await runs.recover("r2", "r1")
    await etcd.put(runs.client.keys.task_action(of("r1", "ok")), b"{")
    assert await runs.phase("r2", "ok") is Phase.UNSPECIFIED


@pytest.mark.memory(jumps=False)
async def test_outputs_that_are_gone_are_computed_again(runs: Runs, tmp_path: Path) -> None:
    def local(run: str, name: str, parent: str = "") -> Action:
        action = flyte.task(of(run, name), parent)
        action.run_output_base = f"{tmp_path}/{run}"
        outputs = action.task.spec.task_template.interface.outputs.variables
        number = LiteralType(simple=SimpleType.INTEGER)
        outputs.add(key="o0", value=Variable(type=number))
        return action

    await runs.client.enqueue(local("r1", "a0"))
    for name in ("kept", "lost"):
        await runs.client.enqueue(local("r1", name, "a0"))
        await runs.end("r1", name, Phase.SUCCEEDED)
    kept = tmp_path / "r1" / "kept" / "1" / "outputs.pb"
    kept.parent.mkdir(parents=True)
    kept.touch()
    await runs.client.enqueue(local("r2", "a0"), recovering("r1"))
    taken = (await runs.client.enqueue(local("r2", "kept", "a0"))).action
    assert taken.phase is Phase.RECOVERED
    assert taken.output_uri == str(kept.parent)
    lost = (await runs.client.enqueue(local("r2", "lost", "a0"))).action
    assert lost.phase is Phase.UNSPECIFIED
    assert lost.output_uri == f"{tmp_path}/r2/lost/1"


async def test_a_condition_keeps_its_value(runs: Runs) -> None:
    client = runs.client
    await runs.source()
    for name in ("said", "open", "empty"):
        await client.enqueue(flyte.condition(of("r1", name), "a0"))
    await client.signal(of("r1", "said"), flyte.boolean(True), "ann")
    # Without a value nobody could go on.
    await runs.end("r1", "empty", Phase.SUCCEEDED)
    await runs.recover("r2", "r1")
    taken = (await client.enqueue(flyte.condition(of("r2", "said"), "a0"))).action
    assert taken.phase is Phase.RECOVERED
    assert conversions.signal_value(taken) == flyte.boolean(True)
    told = update_action_status(update_of(taken))
    assert told.output == flyte.boolean(True)
    assert told.principal.user.id.subject == "ann"
    for name in ("open", "empty"):
        waiting = (await client.enqueue(flyte.condition(of("r2", name), "a0"))).action
        assert not waiting.is_terminal, name


async def test_a_condition_of_another_type_waits_anew(runs: Runs) -> None:
    client = runs.client
    await runs.source()
    await client.enqueue(flyte.condition(of("r1", "said"), "a0"))
    await client.signal(of("r1", "said"), flyte.boolean(True))
    await runs.recover("r2", "r1")
    other = flyte.condition(of("r2", "said"), "a0")
    other.condition.type.simple = SimpleType.STRING
    assert not (await client.enqueue(other)).action.is_terminal


async def snapshot(client: ActionsClient, parent: ActionId) -> list[ActionUpdate]:
    async with client.subscribe(parent, snapshot=True) as updates:
        states = []
        while isinstance(item := await updates.receive(), ActionUpdate):
            states.append(item)
    return states


async def test_traces_are_found_by_who_would_record_them(runs: Runs) -> None:
    client = runs.client
    await runs.source()
    for name in ("t1", "t2", "t3"):
        await client.enqueue(flyte.trace(of("r1", name), "a0"))
    await client.enqueue(flyte.trace(of("r1", "bad"), "a0", phase=Phase.FAILED))
    await runs.recover("r2", "r1", "t3")
    await client.enqueue(flyte.trace(of("r2", "t2"), "a0"))
    told = {each.action_id.name: each for each in await snapshot(client, of("r2"))}
    assert sorted(told) == ["a0", "t1", "t2"]
    assert told["t1"].action_id == of("r2", "t1")
    assert told["t1"].phase is Phase.RECOVERED
    assert told["t1"].output_uri == "s3://out/t1/outputs.pb"
    assert told["t2"].phase is Phase.SUCCEEDED
    # Nothing is written for it, so it is found through a second recovery, too.
    await runs.recover("r3", "r2")
    again = {each.action_id.name for each in await snapshot(client, of("r3"))}
    assert again == {"a0", "t1", "t2"}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (recovering("r1", project="q"), r"run_spec\.relation\.related_to\.project"),
        (recovering(""), r"run_spec\.relation\.related_to\.name"),
        (recovering("r2"), r"run_spec\.relation\.related_to\.name"),
        (recovering("r1", *(f"a{n:024}" for n in range(2000))), r"force_rerun_actions"),
    ],
)
async def test_what_cannot_be_recovered_is_refused(
    client: ActionsClient, spec: RunSpec, field: str
) -> None:
    with pytest.raises(InvalidArgument, match=field):
        await client.enqueue(flyte.task(of("r2")), spec)


async def test_another_projects_run_of_that_name_gives_nothing(runs: Runs) -> None:
    client = runs.client
    await client.enqueue(flyte.task(ActionId("q", "d", "r1", "a0")))
    await client.enqueue(flyte.task(ActionId("q", "d", "r1", "ok"), "a0"))
    await client.put_status(ActionId("q", "d", "r1", "ok"), 1, flyte.status(Phase.SUCCEEDED))
    await runs.recover("r2", "r1")
    assert await runs.phase("r2", "ok") is Phase.UNSPECIFIED
