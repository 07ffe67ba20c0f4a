"""An object is what its key, create_revision and uid say together, and nothing succeeds unrun.

Objects are written here as a restore, a copy or a replay would write them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.errors import NotFound
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.reports import Reports
from tests.executor.fakes import Bench
from tests.executor.tasks import ROOT, Machine, named, until
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory(jumps=False)

Tree = dict[str, Any]
WRITES_OUTPUTS = 'echo "$RUN_NAME" >"$OUT/whose"; touch "$OUT/outputs.pb"'


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end_all()


def root_of(run: str) -> ActionId:
    return ActionId("p", "d", run, "a0", "o")


class Copies:
    """Writes objects that are made from others."""

    def __init__(self, etcd: Etcd, prefix: bytes) -> None:
        self._etcd = etcd
        self._prefix = prefix

    async def read(self, run: str) -> KeyValue:
        (kv,) = (await self._etcd.range(KeyRange.of_key(self._key(run)))).kvs
        return kv

    async def write(self, value: bytes, run: str, **metadata: str) -> None:
        """Write a copy of an object as another run's root, with what is given in its metadata."""
        tree: Tree = json.loads(value)
        tree["metadata"] |= {"name": f"{run}-a0"} | metadata
        tree["spec"]["runName"] = run
        tree["spec"]["runOutputBase"] = tree["spec"]["runOutputBase"] + f"/{run}"
        await self._etcd.put(self._key(run), json.dumps(tree).encode())

    async def put(self, value: bytes, run: str) -> None:
        await self._etcd.put(self._key(run), value)

    async def delete(self, run: str) -> None:
        await self._etcd.delete(KeyRange.of_key(self._key(run)))

    def _key(self, run: str) -> bytes:
        return self._prefix + f"flyte/{run}-a0".encode()


@pytest.fixture
def copies(etcd: Etcd, prefix: bytes) -> Copies:
    return Copies(etcd, prefix)


# What runs.


async def test_copies_with_one_uid_and_with_hostile_ones_all_run_and_have_their_own_outputs(
    client: ActionsClient, machine: Machine, copies: Copies, tmp_path: Path
) -> None:
    await client.enqueue(machine.task(ROOT, WRITES_OUTPUTS))
    value = (await copies.read("r1")).value
    uids = {
        "same": json.loads(value)["metadata"]["uid"],
        "none": "",
        "up": "../../x",
        "dots": "..",
        "nul": "a\0b",
        "line": "a\nb",
        "slash": "/",
        "long": "u" * 300_000,
        "wide": "\u202eé" * 100,
    }
    for run, uid in uids.items():
        await copies.write(value, run, uid=uid)
    before = {path.name for path in tmp_path.iterdir()}
    async with machine.executor(client):
        for run in ("r1", *uids):
            action = await until(client, root_of(run))
            assert (run, action.phase) == (run, Phase.SUCCEEDED)
            assert (Path(action.output_uri) / "whose").read_text() == f"{run}\n"
    assert len(machine.starts("a0")) == 1 + len(uids)
    assert len(list((machine.state_dir / "attempts").iterdir())) == 1 + len(uids)
    assert {path.name for path in tmp_path.iterdir()} == before | {"state"}
    assert {path.name for path in machine.state_dir.iterdir()} == {
        "attempts",
        "outputs",
        "launcher.log",
        "fork-server.log",
    }


@pytest.mark.slow
async def test_two_that_have_one_directory_of_outputs_run_one_after_the_other(
    client: ActionsClient, machine: Machine, copies: Copies
) -> None:
    """What the first one left is never taken for what the second one did."""
    go = machine.runs / "go"
    script = f"""
    touch "$RUNS/began.$RUN_NAME"
    [ "$RUN_NAME" = r1 ] || exit 0
    until [ -e {go} ]; do sleep 0.05; done
    touch "$OUT/outputs.pb"
    """
    declares = _declaring_outputs
    await client.enqueue(machine.task(ROOT, script, change=declares))
    async with machine.executor(client) as executor:
        await eventually((machine.runs / "began.r1").exists)
        await client.enqueue(machine.task(root_of("r2"), script, change=declares))
        await until(client, root_of("r2"), Phase.QUEUED)
        await eventually(lambda: executor.statistics().running == 1)
        assert "action" not in {each.kind for each in client.containment.parked}
        go.touch()
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED
        second = await until(client, root_of("r2"))
    assert (machine.runs / "began.r2").exists()
    assert second.phase is Phase.FAILED
    assert second.status.error_state is not None
    assert second.status.error_state.code == "OutputsNotFound"


@pytest.mark.slow
async def test_outputs_of_an_earlier_incarnation_are_no_success(
    client: ActionsClient, machine: Machine, copies: Copies
) -> None:
    """Deleted and written again with the same uid, while no executor was there to see it."""
    script = 'if [ "$(ls "$RUNS" | wc -l)" = 1 ]; then touch "$OUT/outputs.pb"; fi; exit 7'
    await client.enqueue(machine.task(ROOT, script))
    value = (await copies.read("r1")).value
    async with machine.executor(client):
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED
    await copies.delete("r1")
    await copies.put(value, "r1")
    async with machine.executor(client):
        action = await until(client, ROOT)
    assert action.phase is Phase.FAILED
    assert len(machine.starts("a0")) == 2


@pytest.mark.slow
async def test_what_the_version_before_started_is_not_started_again(
    client: ActionsClient, machine: Machine
) -> None:
    go = machine.runs / "go"
    script = f'until [ -e {go} ]; do sleep 0.05; done; touch "$OUT/outputs.pb"'
    await client.enqueue(machine.task(ROOT, script))
    async with machine.executor(client):
        action = await until(client, ROOT, Phase.RUNNING)
    place = AttemptDirectory(machine.state_dir, action.incarnation, 1)
    (place.path / "object").unlink()
    place.path.parent.rename(machine.state_dir / "attempts" / action.metadata.uid)
    shutil.rmtree(machine.state_dir / "outputs")
    async with machine.executor(client) as executor:
        await eventually(lambda: executor.statistics().adopted == 1)
        go.touch()
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED
    assert len(machine.starts("a0")) == 1


# What is told.


async def test_an_object_that_is_written_again_with_its_uid_runs_again(
    bench: Bench, copies: Copies
) -> None:
    async with bench.executor():
        await bench.enqueue(ROOT)
        value = (await copies.read("r1")).value
        for number in (1, 2):
            await eventually(lambda: bench.attempts.started == number)  # noqa: B023
            await until(bench.client, ROOT, Phase.RUNNING)
            bench.attempts.finish("r1-a0")
            await until(bench.client, ROOT, Phase.SUCCEEDED)
            await copies.delete("r1")
            await copies.put(value, "r1")
        await eventually(lambda: bench.attempts.started == 3)


async def test_an_attempt_whose_object_was_written_again_with_its_uid_is_ended(
    bench: Bench, copies: Copies
) -> None:
    async with bench.executor():
        await bench.enqueue(ROOT)
        value = (await copies.read("r1")).value
        await until(bench.client, ROOT, Phase.RUNNING)
        await copies.delete("r1")
        await copies.put(value, "r1")
        await eventually(lambda: bench.attempts.ended == ["r1-a0"])
        await eventually(lambda: bench.attempts.started == 2)


async def test_what_a_restore_made_unfinished_is_told_from_what_it_left_and_not_run_again(
    bench: Bench, copies: Copies
) -> None:
    """Key, create_revision and uid are the same: as far as anybody can know, it ran."""
    await bench.enqueue(ROOT)
    value = (await copies.read("r1")).value
    async with bench.executor():
        await until(bench.client, ROOT, Phase.RUNNING)
        bench.attempts.finish("r1-a0")
        await until(bench.client, ROOT, Phase.SUCCEEDED)
        await copies.put(value, "r1")
        assert (await bench.client.get_task_action(ROOT)).phase is not Phase.SUCCEEDED
        await until(bench.client, ROOT, Phase.SUCCEEDED)
    assert bench.attempts.started == 1


async def written_again(client: ActionsClient, copies: Copies) -> StoredAction:
    """An action as it was before its object was deleted and written again with the same uid."""
    before = await client.get_task_action(ROOT)
    value = (await copies.read("r1")).value
    await copies.delete("r1")
    await copies.put(value, "r1")
    return before


@pytest.mark.parametrize(
    "phase", first_everyday([Phase.SUCCEEDED, Phase.FAILED, Phase.TIMED_OUT, Phase.RUNNING])
)
async def test_a_report_is_never_made_on_another_incarnation(
    bench: Bench, copies: Copies, phase: Phase
) -> None:
    await bench.enqueue(ROOT)
    before = await written_again(bench.client, copies)
    reports = Reports(bench.client, lambda action: None)
    with pytest.raises(NotFound, match="another was made under its name"):
        await reports.report(before, 1, phase, None)
    assert (await bench.client.get_task_action(ROOT)).phase is Phase.UNSPECIFIED


async def test_an_abort_that_means_an_object_ends_no_other(bench: Bench, copies: Copies) -> None:
    await bench.enqueue(ROOT)
    before = await written_again(bench.client, copies)
    with pytest.raises(NotFound, match="another was made under its name"):
        await bench.client.abort_action(ROOT, incarnation=before.incarnation)
    present = await bench.client.get_task_action(ROOT)
    assert present.phase is Phase.UNSPECIFIED
    await bench.client.abort_action(ROOT, incarnation=present.incarnation)
    assert (await bench.client.get_task_action(ROOT)).phase is Phase.ABORTED


async def test_a_claim_of_an_earlier_incarnation_is_none_of_the_present_one(
    bench: Bench, copies: Copies
) -> None:
    await bench.enqueue(ROOT)
    async with bench.client.open_claims() as claims:
        first = await bench.client.get_task_action(ROOT)
        claim = await claims.claim(ROOT, first.incarnation)
        assert claim is not None
        await written_again(bench.client, copies)
        present = await bench.client.get_task_action(ROOT)
        assert await claims.claim(ROOT, present.incarnation) not in (None, claim)
        assert await claims.claim(ROOT, first.incarnation) is None


async def test_a_marker_of_an_abort_counts_for_no_object_that_is_written_again(
    bench: Bench, copies: Copies
) -> None:
    """An elected process that finishes aborts would end what nobody aborted."""
    await bench.enqueue(ROOT)
    value = (await copies.read("r1")).value
    await bench.client.abort_action(ROOT)
    await copies.delete("r1")
    await copies.put(value, "r1")
    await bench.enqueue(named("c1"), "a0")
    await bench.client._aborter.resume()
    for action_id in (ROOT, named("c1")):
        assert not (await bench.client.get_task_action(action_id)).is_terminal


def _declaring_outputs(action: Any) -> None:
    action.task.spec.task_template.interface.outputs.variables.add(key="o0")
