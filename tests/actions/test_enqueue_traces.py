"""enqueue: traces, which are created as ended."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
from flyteidl2.workflow.run_definition_pb2 import TraceAction

from etcd_actions import (
    ActionsClient,
    ActionUpdate,
    Phase,
    SnapshotEnd,
    open_actions_client,
)
from etcd_actions.errors import (
    NameTaken,
)
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import (
    FINALIZER_RECORD,
    LABEL_TERMINAL_STATUS_RECORDED,
    ErrorState,
    Keyspace,
)
from etcd_actions.model.conditions import write_phase
from etcd_actions.storage.store import Store
from tests.actions.enqueuing import (
    CHILD,
    ROOT,
    edit,
    named,
)
from tests.actions.stored import T0, Tree
from tests.support import flyte

pytestmark = pytest.mark.memory


async def test_defect_d_a_failed_trace_is_failed(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It keeps its own phase, times and error, and whether running it again may help."""
    await client.enqueue(flyte.task(ROOT))
    error = ErrorState(code="ValueError", kind="USER", message="no", recoverable=True)
    request = flyte.trace(CHILD, "a0", phase=Phase.FAILED)
    request.trace.name = "fetch"
    request.group = "g"
    stored = (await client.enqueue(request, trace_error=error)).action
    assert stored.key == keys.trace(CHILD)
    assert not stored.key.startswith(keys.prefix)
    assert stored.phase is Phase.FAILED
    assert stored.status.error_state == error
    assert stored.status.attempts == 1
    assert stored.metadata.creation_timestamp == "2026-11-23T16:00:00Z"
    assert stored.end_time == "2026-11-23T16:00:01Z"
    assert stored.output_uri == "s3://out/c1/outputs.pb"
    assert (stored.spec.short_name, stored.spec.task_type, stored.spec.group) == (
        "fetch",
        "trace",
        "g",
    )
    assert stored.spec.input_uri == "s3://in/c1"
    assert TraceAction.FromString(stored.spec.trace_spec_bytes) == request.trace
    # Where an API server reads there is nothing.
    assert await Store(etcd).get(keys.task_action(CHILD)) is None


@pytest.mark.parametrize(
    "phase", [phase for phase in Phase if phase is not Phase.WAITING_FOR_RESOURCES]
)
async def test_traces_in_each_phase(client: ActionsClient, phase: Phase) -> None:
    await client.enqueue(flyte.task(ROOT))
    request = flyte.trace(CHILD, "a0", phase=phase)
    request.trace.ClearField("start_time")
    request.trace.ClearField("end_time")
    stored = (await client.enqueue(request)).action
    assert stored.phase is phase
    assert (stored.end_time != "") == phase.is_terminal


async def test_a_trace_with_a_long_name(client: ActionsClient) -> None:
    """It is cut, to be shown; whole it is in the trace's own message."""
    await client.enqueue(flyte.task(ROOT))
    request = flyte.trace(CHILD, "a0")
    request.trace.name = "x" * 100
    stored = (await client.enqueue(request)).action
    assert stored.spec.short_name == "x" * 63
    assert TraceAction.FromString(stored.spec.trace_spec_bytes).name == "x" * 100


async def test_a_trace_recorded_again(client: ActionsClient, etcd: Etcd, keys: Keyspace) -> None:
    """It overwrites, as the same incarnation, and what was recorded of it is recorded anew."""
    await client.enqueue(flyte.task(ROOT))
    first = (await client.enqueue(flyte.trace(CHILD, "a0", phase=Phase.RUNNING))).action

    def change(tree: Tree) -> None:
        write_phase(tree, Phase.SUCCEEDED, now=T0)
        tree["metadata"]["labels"][LABEL_TERMINAL_STATUS_RECORDED] = "true"
        del tree["metadata"]["finalizers"]

    await edit(etcd, keys.trace(CHILD), change)
    again = await client.enqueue(flyte.trace(CHILD, "a0", phase=Phase.FAILED))
    assert again.created
    assert again.action.revision > first.revision
    assert again.action.create_revision == first.create_revision
    assert again.action.metadata.uid == first.metadata.uid
    assert again.action.phase is Phase.FAILED
    assert not again.action.is_recorded
    assert again.action.metadata.finalizers == (FINALIZER_RECORD,)
    # The same bytes are written, too: somebody waits for the notice.
    once_more = (await client.enqueue(flyte.trace(CHILD, "a0", phase=Phase.FAILED))).action
    assert once_more.revision > again.action.revision
    assert once_more.metadata == again.action.metadata


async def test_a_trace_of_another_run_is_not_overwritten(client: ActionsClient) -> None:
    for run, name in (("r1", "x-t1"), ("r1-x", "t1")):
        await client.enqueue(flyte.task(named("a0", run=run)))
        if run == "r1":
            await client.enqueue(flyte.trace(named(name, run=run), "a0"))
    with pytest.raises(NameTaken, match="trace x-t1 of run p/d/r1, below a0"):
        await client.enqueue(flyte.trace(named("t1", run="r1-x"), "a0"))


@pytest.mark.parametrize("watches", [True, False], ids=["watching", "not-watching"])
async def test_subscribers_are_told_of_traces(etcd: Etcd, prefix: bytes, watches: bool) -> None:
    """Each time one is recorded, on any process; who subscribes later finds it, too."""
    error = ErrorState(code="ValueError", kind="USER", message="no", recoverable=False)
    async with (
        open_actions_client(etcd, prefix=prefix) as writer,
        open_actions_client(etcd, prefix=prefix) as reader,
    ):
        if watches:
            await reader.start_watching()
        await writer.enqueue(flyte.task(ROOT))
        revisions = []
        async with reader.subscribe(ROOT) as updates:
            for phase in (Phase.SUCCEEDED, Phase.FAILED):
                written = (
                    await writer.enqueue(
                        flyte.trace(CHILD, "a0", phase=phase),
                        trace_error=error if phase is Phase.FAILED else None,
                    )
                ).action
                update = None
                with trio.fail_after(20):
                    while update is None or update.revision < written.revision:
                        update = await updates.receive()
                # The mark may have come in between: it has a newer revision.
                assert update.action_id == CHILD
                revisions.append(update.revision)
                assert (update.action_type, update.phase, update.uid) == (
                    "trace",
                    phase,
                    written.metadata.uid,
                )
                assert update.output_uri == "s3://out/c1/outputs.pb"
                assert update.error == (error if phase is Phase.FAILED else None)
        assert revisions == sorted(set(revisions))
    async with (
        open_actions_client(etcd, prefix=prefix) as later,
        later.subscribe(ROOT, snapshot=True) as states,
    ):
        found: list[ActionUpdate] = []
        with trio.fail_after(20):
            async for state in states:
                if isinstance(state, SnapshotEnd):
                    break
                found.append(state)
    assert {(each.action_id.name, each.phase) for each in found} == {
        ("a0", Phase.UNSPECIFIED),
        ("c1", Phase.FAILED),
    }
