"""enqueue: below a parent that exists and goes on, and under no mark of an abort."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.lowlevel

from etcd_actions import (
    ActionsClient,
    Phase,
)
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.enqueue import Enqueuer
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.codecs import json
from etcd_actions.errors import (
    Aborted,
    AlreadyExists,
)
from etcd_actions.etcd.api import Etcd, KeyRange, Txn, TxnResult
from etcd_actions.model import (
    LABEL_TERMINAL_STATUS_RECORDED,
    Keyspace,
)
from etcd_actions.storage.store import Store
from tests.actions.enqueuing import (
    CHILD,
    ROOT,
    START,
    edit,
    is_write,
    kv_of,
    named,
    run_spec,
)
from tests.actions.stored import Tree
from tests.support import flyte

pytestmark = pytest.mark.memory


class Meanwhile:
    """Somebody else acts between the read and the first write."""

    def __init__(self, etcd: Etcd, act: Callable[[], Awaitable[object]]) -> None:
        self._etcd = etcd
        self._act = act
        self.writes = 0

    async def __call__(self, txn: Txn) -> TxnResult:
        """Let him act, then do it."""
        if is_write(txn):
            self.writes += 1
            if self.writes == 1:
                await self._act()
        return await self._etcd.txn(txn)


async def test_no_such_parent(client: ActionsClient) -> None:
    for request in (
        flyte.task(CHILD, "a0"),
        flyte.condition(CHILD, "a0"),
        flyte.trace(CHILD, "a0"),
    ):
        with pytest.raises(Aborted, match="there is no action a0 of run p/d/r1"):
            await client.enqueue(request)


async def test_a_parent_of_another_project(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    with pytest.raises(Aborted, match="r1-a0 is action a0 of run p/d/r1"):
        await client.enqueue(flyte.task(named("c1", project="q"), "a0"))


async def test_defect_i_a_parent_that_is_being_deleted(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    await client.enqueue(flyte.task(ROOT))

    def change(tree: Tree) -> None:
        tree["metadata"]["deletionTimestamp"] = START

    await edit(etcd, keys.task_action(ROOT), change)
    for request in (flyte.task(CHILD, "a0"), flyte.trace(CHILD, "a0")):
        with pytest.raises(Aborted, match="is being deleted"):
            await client.enqueue(request)


async def test_a_parent_that_was_aborted(client: ActionsClient) -> None:
    """With no mark of it: it was reported."""
    await client.enqueue(flyte.task(ROOT))
    await client.put_status(ROOT, 1, flyte.status(Phase.ABORTED))
    with pytest.raises(Aborted, match="is aborted"):
        await client.enqueue(flyte.task(CHILD, "a0"))


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED, Phase.TIMED_OUT])
async def test_defect_a_a_late_child_of_a_recorded_parent(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, phase: Phase
) -> None:
    """It takes over no system label: a mark would hide it for ever, and it would be deleted."""
    await client.enqueue(flyte.task(ROOT), run_spec())
    await client.put_status(ROOT, 1, flyte.status(phase))

    def change(tree: Tree) -> None:
        tree["metadata"]["labels"][LABEL_TERMINAL_STATUS_RECORDED] = "true"
        tree["metadata"]["labels"]["flyte.org/later"] = "label"

    await edit(etcd, keys.task_action(ROOT), change)
    parent = await client.get_task_action(ROOT)
    assert parent.is_recorded
    assert parent.metadata.labels["flyte.org/termination-status"] == "terminated"
    for request, key in (
        (flyte.task(CHILD, "a0"), keys.task_action(CHILD)),
        (flyte.condition(named("w1"), "a0"), keys.task_action(named("w1"))),
        (flyte.trace(named("t1"), "a0", phase=Phase.RUNNING), keys.trace(named("t1"))),
    ):
        await client.enqueue(request)
        labels = StoredAction.of(await kv_of(etcd, key)).metadata.labels
        system = {label for label in labels if label.startswith("flyte.org/")}
        assert system == {
            "flyte.org/project",
            "flyte.org/domain",
            "flyte.org/run",
            "flyte.org/action",
            "flyte.org/action-type",
            "flyte.org/is-root",
        }


async def test_defect_g_a_parent_that_is_made_again_meanwhile(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """The child belongs to the one that is there."""
    await client.enqueue(flyte.task(ROOT), run_spec())

    async def again() -> None:
        await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
        await client.enqueue(flyte.task(ROOT, name="g"), run_spec(team="red"))

    meanwhile = Meanwhile(etcd, again)
    stored = (
        await Enqueuer(Store(etcd, meanwhile), keys, json).enqueue(flyte.task(CHILD, "a0"))
    ).action
    root = await client.get_task_action(ROOT)
    assert [each.uid for each in stored.metadata.owner_references] == [root.metadata.uid]
    assert stored.metadata.labels["team"] == "red"
    assert meanwhile.writes == 2


async def test_a_parent_that_goes_meanwhile(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    await client.enqueue(flyte.task(ROOT))

    async def delete() -> None:
        await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))

    enqueuer = Enqueuer(Store(etcd, Meanwhile(etcd, delete)), keys, json)
    with pytest.raises(Aborted, match="the parent is gone"):
        await enqueuer.enqueue(flyte.task(CHILD, "a0"))
    assert await Store(etcd).get(keys.task_action(CHILD)) is None


async def test_the_name_is_taken_meanwhile(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """By the same, which is found, or by another one."""
    await client.enqueue(flyte.task(ROOT))

    async def take() -> None:
        await client.enqueue(flyte.task(CHILD, "a0"))

    taken = Store(etcd, Meanwhile(etcd, take))
    assert not (await Enqueuer(taken, keys, json).enqueue(flyte.task(CHILD, "a0"))).created
    await etcd.delete(KeyRange.of_key(keys.task_action(CHILD)))
    taken = Store(etcd, Meanwhile(etcd, take))
    with pytest.raises(AlreadyExists):
        await Enqueuer(taken, keys, json).enqueue(flyte.task(CHILD, "a0", name="g"))


async def test_a_busy_parent_starves_nobody(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Its state changes before each write of a child; none needs a third try for that."""
    await client.enqueue(flyte.task(ROOT))
    changes = writes = 0

    async def keep_changing() -> None:
        nonlocal changes
        while True:
            attempt = changes + 1
            await client.put_status(ROOT, attempt, flyte.status(Phase.RUNNING, attempt))
            changes = attempt

    async def after_a_change(txn: Txn) -> TxnResult:
        nonlocal writes
        if is_write(txn):
            writes += 1
            before = changes
            while changes == before:
                await trio.lowlevel.checkpoint()
        return await etcd.txn(txn)

    enqueuer = Enqueuer(Store(etcd, after_a_change), keys, json)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_changing)
        with trio.fail_after(60):
            for number in range(50):
                request = flyte.task(named(f"c{number}"), "a0")
                assert (await enqueuer.enqueue(request)).created
        nursery.cancel_scope.cancel()
    assert writes <= 2 * 50
    assert changes >= 50


async def _three_levels(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.task(named("c1"), "a0"))
    await client.enqueue(flyte.task(named("g1"), "c1"))
    await client.enqueue(flyte.task(named("c2"), "a0"))


def _going_on_again(tree: Tree) -> None:
    """Somebody overwrote what the abort had written."""
    del tree["status"]


@pytest.mark.parametrize(
    ("aborted", "above"), [("g1", "the parent"), ("c1", "an action above"), ("a0", "an action")]
)
async def test_the_mark_of_an_abort_at_any_depth(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, aborted: str, above: str
) -> None:
    """It counts though no object says so, which are overwritten by others as a whole."""
    await _three_levels(client)
    await client.abort_action(named(aborted))
    for name in ("a0", "c1", "g1"):
        if (await client.get_task_action(named(name))).phase is Phase.ABORTED:
            await edit(etcd, keys.task_action(named(name)), _going_on_again)
    for request in (
        flyte.task(named("x1"), "g1"),
        flyte.condition(named("x1"), "g1"),
        flyte.trace(named("x1"), "g1"),
    ):
        with pytest.raises(Aborted, match=f"{above}.* is aborted: {aborted}"):
            await client.enqueue(request)
    assert await Store(etcd).get(keys.task_action(named("x1"))) is None


async def test_the_mark_of_another_subtree(client: ActionsClient) -> None:
    """What is beside it, and what is above, goes on."""
    await _three_levels(client)
    await client.abort_action(named("c1"))
    assert (await client.enqueue(flyte.task(named("x1"), "c2"))).created
    assert (await client.enqueue(flyte.task(named("x2"), "a0"))).created


async def test_the_mark_of_another_run(client: ActionsClient) -> None:
    """Also of one whose keys lie within this one's, and of a name that this one could have."""
    await _three_levels(client)
    other = named("a0", run="r1-x")
    await client.enqueue(flyte.task(other))
    await client.abort_action(other)
    assert (await client.enqueue(flyte.task(named("x1"), "g1"))).created
    # The mark's key is also that of action ``x-a0`` of this run, were there one.
    with pytest.raises(Aborted, match="r1-x-a0 is action a0 of run p/d/r1-x"):
        await client.enqueue(flyte.task(named("x2"), "x-a0"))


async def test_the_mark_of_another_run_that_has_an_ancestors_name_now(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It says nothing of what had the name before."""
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.task(named("x-a0"), "a0"))
    await client.enqueue(flyte.task(named("g1"), "x-a0"))
    await etcd.delete(KeyRange.of_key(keys.task_action(named("x-a0"))))
    other = named("a0", run="r1-x")
    await client.enqueue(flyte.task(other))
    await client.abort_action(other)
    assert (await client.enqueue(flyte.task(named("x1"), "g1"))).created


async def test_an_abort_between_the_read_and_the_write(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Of the parent, of what is above it; and of another subtree, which only costs a try."""
    await _three_levels(client)
    for number, aborted in enumerate(("c2", "c1")):
        other = aborted == "c2"

        async def abort(aborted: str = aborted) -> None:
            await Aborter(Store(etcd), keys).abort_action(named(aborted))

        meanwhile = Meanwhile(etcd, abort)
        enqueuer = Enqueuer(Store(etcd, meanwhile), keys, json)
        child = named(f"x{number}")
        if other:
            assert (await enqueuer.enqueue(flyte.task(child, "g1"))).created
            assert meanwhile.writes == 2
        else:
            with pytest.raises(Aborted, match="aborted"):
                await enqueuer.enqueue(flyte.task(child, "g1"))
            assert meanwhile.writes == 1
            assert await Store(etcd).get(keys.task_action(child)) is None


async def test_a_mark_that_cannot_be_read(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It counts."""
    await _three_levels(client)
    await etcd.put(keys.abort(named("c1")), b"{")
    with pytest.raises(Aborted, match="above it is aborted: c1"):
        await client.enqueue(flyte.task(named("x1"), "g1"))
    await etcd.put(keys.abort(named("x1")), b"{")
    with pytest.raises(Aborted, match=r"delete .*r1-x1"):
        await client.enqueue(flyte.task(named("x1"), "a0"))


@pytest.mark.parametrize("name", ["a0", "c1"])
async def test_an_action_made_again_after_its_abort(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, name: str
) -> None:
    """The mark of the abort ends with it: left, nothing could ever be enqueued below it.

    What was below the one before is aborted first.
    """
    await _three_levels(client)
    again = named(name)
    await client.abort_action(again)
    await edit(etcd, keys.task_action(named("g1")), _going_on_again)
    await etcd.delete(KeyRange.of_key(keys.task_action(again)))
    parent = "" if name == "a0" else "a0"
    assert (await client.enqueue(flyte.task(again, parent))).created
    assert await Store(etcd).get(keys.abort(again)) is None
    if name == "c1":
        assert (await client.get_task_action(named("g1"))).phase is Phase.ABORTED
    assert (await client.enqueue(flyte.task(named("x1"), name))).created


async def test_the_mark_of_an_incarnation_before(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Flyte's service makes an action again and knows of no marks: it is another action."""
    await _three_levels(client)
    await client.abort_action(named("c2"))

    def change(tree: Tree) -> None:
        _going_on_again(tree)
        tree["metadata"]["uid"] = "5f4a7a52-5b35-4a0a-9d4f-0f7b7e6a7c11"

    await edit(etcd, keys.task_action(named("c2")), change)
    assert (await client.enqueue(flyte.task(named("x1"), "c2"))).created
