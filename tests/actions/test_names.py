"""Names: actions of several projects, domains and runs can have one key.

"Already exists" is said of the very action only: Flyte's SDK and its run service take it for "it
goes on". And nobody who asks for one action is given, or changes, another one.
"""

from __future__ import annotations

import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionStatus,
    Phase,
    SnapshotEnd,
)
from etcd_actions.actions.abort import Aborter
from etcd_actions.codecs import codec_of
from etcd_actions.errors import Aborted, ActionError, AlreadyExists, NameTaken, NotFound
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store
from tests.support import flyte

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")
OTHERS = {
    "project": ActionId("q", "d", "r1", "a0"),
    "domain": ActionId("p", "e", "r1", "a0"),
    "organisation": ActionId("p", "d", "r1", "a0", "acme"),
}


async def refusal(client: ActionsClient, action: Action) -> NameTaken:
    with pytest.raises(ActionError) as caught:
        await client.enqueue(action)
    assert isinstance(caught.value, NameTaken)
    return caught.value


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", ["task", "condition"])
async def test_another_runs_object_in_the_way_is_a_failed_precondition(
    client: ActionsClient, keys: Keyspace, kind: str, other: str
) -> None:
    """The message says what stands where, how far it is, and what can be done."""
    make = flyte.condition if kind == "condition" else flyte.task
    there = ActionId("p", "d", "r1", "a0", "o")
    before = (await client.enqueue(flyte.task(there))).action
    wanted = OTHERS[other]
    error = await refusal(client, make(wanted, ""))
    for word in (
        f"{kind} a0 of run {wanted.project}/{wanted.domain}/r1",
        keys.task_action(there).decode(),
        "task a0 of run p/d/r1 in organisation o, in phase UNSPECIFIED",
        "give another name, or end and delete run p/d/r1",
    ):
        assert word in str(error)
    assert ("a namespace of its own" in str(error)) == (other != "organisation")
    assert await client.get_task_action(there) == before


@pytest.mark.network
async def test_names_of_runs_and_actions_that_meet_at_a_dash(client: ActionsClient) -> None:
    """Run ``r1-x`` with action ``a0`` gives what run ``r1`` with action ``x-a0`` gives."""
    await client.enqueue(flyte.task(ActionId("p", "d", "r1-x", "a0")))
    await client.enqueue(flyte.task(ROOT))
    child = flyte.task(ActionId("p", "d", "r1", "x-a0"), "a0")
    error = await refusal(client, child)
    assert "task a0 of run p/d/r1-x, in phase" in str(error)
    assert "namespace" not in str(error)


async def test_a_trace_is_not_taken_for_another_runs(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    other = ActionId("q", "d", "r1", "t1")
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.trace(ActionId("p", "d", "r1", "t1"), "a0"))
    await client.abort_action(ROOT)
    await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
    await client.enqueue(flyte.task(ActionId("q", "d", "r1", "a0")))
    error = await refusal(client, flyte.trace(other, "a0"))
    assert "holds trace t1 of run p/d/r1, below a0" in str(error)


async def key_value(etcd: Etcd, key: bytes) -> KeyValue:
    kv = await Store(etcd).get(key)
    assert kv is not None
    return kv


async def test_an_unreadable_value_in_the_way_is_a_failed_precondition(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Nobody knows whose it is; it is not overwritten, and healed it is in nobody's way."""
    key = keys.task_action(ROOT)
    await etcd.put(key, b"{}")
    error = await refusal(client, flyte.task(ROOT))
    assert "cannot be read" in str(error)
    assert key.decode() in str(error)
    await etcd.delete(KeyRange.of_key(key))
    assert (await client.enqueue(flyte.task(ROOT))).created


async def test_another_runs_object_that_is_being_deleted_asks_for_another_try(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    stored = (await client.enqueue(flyte.task(ROOT))).action
    kv = await key_value(etcd, stored.key)
    tree = codec_of(kv.value).decode_tree(kv.value)
    tree["metadata"]["deletionTimestamp"] = "2026-11-23T16:00:00Z"
    await etcd.put(kv.key, codec_of(kv.value).encode_tree(tree))
    error = await refusal(client, flyte.task(OTHERS["project"]))
    assert "it is being deleted: try again" in str(error)
    # The very action that is being deleted is still the very action.
    with pytest.raises(AlreadyExists):
        await client.enqueue(flyte.task(ROOT, name="g"))
    await etcd.delete(KeyRange.of_key(kv.key))
    assert (await client.enqueue(flyte.task(OTHERS["project"]))).created


async def test_of_two_runs_at_once_one_is_created_and_the_other_is_told(
    client: ActionsClient,
) -> None:
    """In one group of transactions, too."""
    outcomes: list[object] = []

    async def enqueue(action_id: ActionId) -> None:
        try:
            outcomes.append((await client.enqueue(flyte.task(action_id))).created)
        except NameTaken as error:
            outcomes.append(type(error))

    async with trio.open_nursery() as nursery:
        for project in "abcdefgh":
            nursery.start_soon(enqueue, ActionId(project, "d", "r1", "a0"))
    assert outcomes.count(True) == 1
    assert outcomes.count(NameTaken) == 7


async def test_a_copied_digest_makes_no_other_action_the_same(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """A restore or an edit may have put another run's object there, annotations and all."""
    stored = (await client.enqueue(flyte.task(ROOT))).action
    kv = await key_value(etcd, stored.key)
    tree = codec_of(kv.value).decode_tree(kv.value)
    tree["spec"]["project"] = "q"
    await etcd.put(kv.key, codec_of(kv.value).encode_tree(tree))
    await refusal(client, flyte.task(ROOT))


@pytest.mark.parametrize("other", OTHERS)
async def test_nobody_is_given_or_changes_another_runs_action(
    client: ActionsClient, other: str
) -> None:
    there = ActionId("p", "d", "r1", "a0", "o")
    before = (await client.enqueue(flyte.task(there))).action
    wanted = OTHERS[other]
    with pytest.raises(NotFound, match="r1-a0 is action a0 of run p/d/r1"):
        await client.get_task_action(wanted)
    with pytest.raises(NotFound):
        await client.put_status(wanted, 1, ActionStatus(Phase.RUNNING))
    with pytest.raises(NotFound):
        await client.signal(wanted, flyte.boolean(True))
    with pytest.raises(NotFound):
        await client.abort_action(wanted)
    with pytest.raises(Aborted, match="the parent is gone"):
        await client.enqueue(
            flyte.task(ActionId(wanted.project, wanted.domain, "r1", "c1", wanted.org), "a0")
        )
    assert (await client.list_run_actions(wanted.run_id)).actions == []
    assert (await client.list_child_actions(wanted)).actions == []
    await client.start_watching()
    async with (
        client.subscribe(wanted, snapshot=True) as updates,
        client.subscribe(there) as witness,
    ):
        with trio.fail_after(20):
            assert isinstance(await updates.receive(), SnapshotEnd)
            await client.put_status(there, 1, ActionStatus(Phase.RUNNING))
            while (await witness.receive()).phase is not Phase.RUNNING:
                pass
        # All subscribers of a state are told of it at once.
        with pytest.raises(trio.WouldBlock):
            updates.receive_nowait()
    assert before.metadata == (await client.get_task_action(there)).metadata


async def test_a_trace_is_found_beside_another_runs_task(client: ActionsClient) -> None:
    """They have one name, under two keys."""
    await client.enqueue(flyte.task(ActionId("p", "d", "r1-x", "a0")))
    await client.enqueue(flyte.task(ROOT))
    trace = ActionId("p", "d", "r1", "x-a0")
    await client.enqueue(flyte.trace(trace, "a0"))
    assert (await client.get_task_action(trace)).action_id == trace


async def test_an_abort_finishes_another_runs_and_does_not_answer_for_it(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """The aborted root was deleted before what was below it: its marker still counts."""
    child = ActionId("p", "d", "r1", "c1")
    await client.enqueue(flyte.task(ROOT))
    stored = (await client.enqueue(flyte.task(child, "a0"))).action
    kv = await key_value(etcd, stored.key)
    await client.abort_action(ROOT)
    await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
    # The abort was cut off before it came to the child.
    await etcd.put(kv.key, kv.value)
    with pytest.raises(NotFound, match="there is no action a0 of run q/d/r1"):
        await client.abort_action(OTHERS["project"])
    assert (await client.get_task_action(child)).phase is Phase.ABORTED
    # The one that is meant is still found, by its marker.
    assert (await Aborter(Store(etcd), keys).abort_action(ROOT)).aborted == ()
