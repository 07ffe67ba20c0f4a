"""enqueue: created exactly once, also where it is repeated or an answer is lost."""

from __future__ import annotations

import base64

import pytest
import trio
import trio.lowlevel
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.task.run_pb2 import RunSpec

from etcd_actions import (
    ActionId,
    ActionsClient,
    Phase,
)
from etcd_actions.actions.enqueue import Enqueuer
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.codecs import json
from etcd_actions.errors import (
    Aborted,
    AlreadyExists,
    NameTaken,
    OutcomeUnknown,
    Unavailable,
)
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue, Txn, TxnResult
from etcd_actions.model import (
    ANNOTATION_DIGEST,
    Keyspace,
)
from etcd_actions.storage.store import Store
from tests.actions.enqueuing import (
    CHILD,
    ROOT,
    as_flyte_writes,
    edit,
    is_write,
    kv_of,
    named,
    placeholder,
    run_spec,
)
from tests.actions.stored import Tree
from tests.support import flyte

pytestmark = pytest.mark.memory


class LostAnswer:
    """The answer of the first write is lost, which was done, or not."""

    def __init__(self, etcd: Etcd, *, applied: bool) -> None:
        self._store = Store(etcd)
        self._etcd = etcd
        self._applied = applied
        self.lost = False

    async def __call__(self, txn: Txn) -> TxnResult:
        """Do it, or not, and do not tell."""
        if not is_write(txn) or self.lost:
            return await self._etcd.txn(txn)
        self.lost = True
        if self._applied:
            await self._etcd.txn(txn)
        raise OutcomeUnknown("the answer was lost")


class AwayAfterwards(Store):
    """A store whose first write goes unanswered, and which cannot be read after it."""

    async def txn(self, txn: Txn) -> TxnResult:
        """Read; a write is lost."""
        if is_write(txn):
            raise OutcomeUnknown("the answer was lost")
        return await super().txn(txn)

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """It is away."""
        raise Unavailable(f"away: {key!r} at {revision}")


async def test_defect_6_the_same_twice_is_one_write(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Also by an equal message that was built anew, and however far the action is by then."""
    first = await client.enqueue(flyte.task(ROOT), run_spec())
    assert first.created
    assert await client.enqueue(flyte.task(ROOT), run_spec()) == (first.action, False)
    assert (await kv_of(etcd, keys.task_action(ROOT))).version == 1
    await client.put_status(ROOT, 1, flyte.status(Phase.RUNNING))
    again = await client.enqueue(flyte.task(ROOT), run_spec())
    assert (again.created, again.action.phase) == (False, Phase.RUNNING)
    assert (await kv_of(etcd, keys.task_action(ROOT))).version == 2


async def test_many_at_once(client: ActionsClient, etcd: Etcd, keys: Keyspace) -> None:
    """One of them creates it."""
    await client.enqueue(flyte.task(ROOT))
    created = []

    async def enqueue() -> None:
        created.append((await client.enqueue(flyte.task(CHILD, "a0"))).created)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(enqueue)
    assert sorted(created) == [False] * 19 + [True]
    assert (await kv_of(etcd, keys.task_action(CHILD))).version == 1


async def test_maps_in_another_order_are_the_same(client: ActionsClient) -> None:
    """A map has no order: not in the message, and not in the digest."""
    one, other = RunSpec(), RunSpec()
    names = [f"label-{number}" for number in range(30)]
    one.labels.values.update(dict.fromkeys(names, "v"))
    other.labels.values.update(dict.fromkeys(reversed(names), "v"))
    assert (await client.enqueue(flyte.task(ROOT), one)).created
    assert not (await client.enqueue(flyte.task(ROOT), other)).created


async def test_the_same_by_the_roots_other_name(client: ActionsClient) -> None:
    """``a0`` and the run's own name are one action, as itself and as a parent."""
    assert (await client.enqueue(flyte.task(ROOT))).created
    other = flyte.task(ROOT)
    other.action_id.name = "r1"
    assert not (await client.enqueue(other)).created
    assert (await client.enqueue(flyte.task(CHILD, "a0"))).created
    assert not (await client.enqueue(flyte.task(CHILD, "r1"))).created


async def test_what_is_not_used_does_not_count(client: ActionsClient) -> None:
    """An empty run specification is none; of a child only the start time counts."""
    assert (await client.enqueue(flyte.task(ROOT))).created
    assert not (await client.enqueue(flyte.task(ROOT), RunSpec())).created
    assert (await client.enqueue(flyte.task(CHILD, "a0"))).created
    ignored = RunSpec()
    ignored.labels.values["team"] = "red"
    assert not (await client.enqueue(flyte.task(CHILD, "a0"), ignored)).created
    with pytest.raises(AlreadyExists):
        await client.enqueue(flyte.task(CHILD, "a0"), run_spec())


async def test_other_content_under_the_same_name(client: ActionsClient) -> None:
    """It is told what is there, and nothing is changed."""
    first = (await client.enqueue(flyte.task(ROOT), run_spec())).action
    with pytest.raises(AlreadyExists, match=r"r1-a0 exists .*task a0 of run p/d/r1, in phase"):
        await client.enqueue(flyte.task(ROOT, name="g"), run_spec())
    with pytest.raises(AlreadyExists):
        await client.enqueue(flyte.task(ROOT), run_spec(more="labels"))
    assert await client.get_task_action(ROOT) == first


async def test_another_parent_or_kind(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.task(named("c2"), "a0"))
    await client.enqueue(flyte.task(CHILD, "a0"))
    for other in (
        flyte.task(CHILD, "c2"),
        flyte.task(CHILD),
        flyte.condition(CHILD, "a0"),
    ):
        with pytest.raises(AlreadyExists, match="task c1 of run p/d/r1, below a0"):
            await client.enqueue(other)


async def test_an_object_that_flyte_wrote(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It has no digest: identity and content are compared, whatever the order of the bytes."""
    requests = (placeholder(ROOT), placeholder(CHILD, "a0"), flyte.condition(named("w1"), "a0"))
    for request in requests:
        if request.HasField("task"):
            request.task.spec.task_template.config.update({"a": "1", "b": "2"})
        await client.enqueue(request, run_spec())
        key = keys.task_action(_action_id(request))
        await as_flyte_writes(etcd, key)
        assert not (await client.enqueue(request, run_spec())).created
        assert (await kv_of(etcd, key)).version == 2
        other = Action()
        other.CopyFrom(request)
        if other.HasField("task"):
            other.task.spec.task_template.container.args.append("more")
        else:
            other.condition.prompt = "more"
        with pytest.raises(AlreadyExists):
            await client.enqueue(other, run_spec())
    elsewhere = requests[0]
    elsewhere.action_id.run.project = "q"
    with pytest.raises(NameTaken, match="run p/d/r1"):
        await client.enqueue(elsewhere, run_spec())


async def test_a_child_that_flyte_wrote_with_the_placeholder(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Flyte leaves it in there where a child has no start time of its own."""
    await client.enqueue(flyte.task(ROOT), run_spec())
    stored = (await client.enqueue(flyte.task(CHILD, "a0"))).action
    request = placeholder(CHILD, "a0")

    def change(tree: Tree) -> None:
        del tree["metadata"]["annotations"]
        template = request.task.spec.task_template.SerializeToString()
        tree["spec"]["taskTemplate"] = _base64(template)

    await edit(etcd, stored.key, change)
    assert not (await client.enqueue(request)).created


async def test_one_of_ours_whose_digest_was_taken_away(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """The start time that it was created with is still noted."""
    await client.enqueue(placeholder(ROOT))

    def change(tree: Tree) -> None:
        del tree["metadata"]["annotations"][ANNOTATION_DIGEST]

    await edit(etcd, keys.task_action(ROOT), change)
    assert not (await client.enqueue(placeholder(ROOT))).created


async def test_something_unreadable_in_its_place(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It is not overwritten; a template that cannot be read is no template."""
    await etcd.put(keys.task_action(ROOT), b"{}")
    with pytest.raises(NameTaken, match="cannot be read"):
        await client.enqueue(flyte.task(ROOT))
    with pytest.raises(Aborted, match="the parent cannot be read"):
        await client.enqueue(flyte.task(CHILD, "a0"))
    await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
    await client.enqueue(flyte.task(ROOT))

    def change(tree: Tree) -> None:
        del tree["metadata"]["annotations"]
        tree["spec"]["taskTemplate"] = _base64(b"\xff\xff")

    await edit(etcd, keys.task_action(ROOT), change)
    with pytest.raises(AlreadyExists):
        await client.enqueue(flyte.task(ROOT))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _action_id(action: Action) -> ActionId:
    run = action.action_id.run
    return ActionId(run.project, run.domain, run.name, action.action_id.name, run.org)


def _each_kind() -> list[Action]:
    return [
        flyte.task(ROOT),
        flyte.task(CHILD, "a0"),
        flyte.condition(CHILD, "a0"),
        flyte.trace(CHILD, "a0"),
    ]


@pytest.mark.parametrize("request_", _each_kind(), ids=["root", "child", "condition", "trace"])
async def test_a_lost_answer_of_a_write_that_was_done(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, request_: Action
) -> None:
    """It is found, as what this call created."""
    if request_.parent_action_name:
        await client.enqueue(flyte.task(ROOT))
    lossy = LostAnswer(etcd, applied=True)
    enqueued = await Enqueuer(Store(etcd, lossy), keys, json).enqueue(request_)
    assert lossy.lost
    assert enqueued.created
    assert (await kv_of(etcd, enqueued.action.key)).version == 1


@pytest.mark.parametrize("request_", _each_kind(), ids=["root", "child", "condition", "trace"])
async def test_a_lost_answer_of_a_write_that_was_not_done(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, request_: Action
) -> None:
    """It may still come: that is told, and asking again creates it once."""
    if request_.parent_action_name:
        await client.enqueue(flyte.task(ROOT))
    enqueuer = Enqueuer(Store(etcd, LostAnswer(etcd, applied=False)), keys, json)
    with pytest.raises(OutcomeUnknown):
        await enqueuer.enqueue(request_)
    enqueued = await enqueuer.enqueue(request_)
    assert enqueued.created
    assert (await kv_of(etcd, enqueued.action.key)).version == 1


async def test_a_write_that_comes_late(etcd: Etcd, keys: Keyspace) -> None:
    """Between a lost answer and the next try the write is done after all: it is the same."""
    late: list[Txn] = []

    async def lose(txn: Txn) -> TxnResult:
        if is_write(txn) and not late:
            late.append(txn)
            raise OutcomeUnknown("the answer was lost")
        return await etcd.txn(txn)

    enqueuer = Enqueuer(Store(etcd, lose), keys, json)
    with pytest.raises(OutcomeUnknown):
        await enqueuer.enqueue(flyte.task(ROOT))
    await etcd.txn(late[0])
    assert not (await enqueuer.enqueue(flyte.task(ROOT))).created
    assert not (await etcd.txn(late[0])).succeeded


async def test_a_lost_answer_and_no_way_to_look(etcd: Etcd, keys: Keyspace) -> None:
    """The failed read must not make it an error that says that nothing was written."""
    with pytest.raises(OutcomeUnknown):
        await Enqueuer(AwayAfterwards(etcd), keys, json).enqueue(flyte.task(ROOT))


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.SUCCEEDED], ids=["other", "same-bytes"])
async def test_a_trace_recorded_again_and_the_answer_lost(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, phase: Phase
) -> None:
    """It has the identity that it had before: content and revision tell that it was written.

    The same bytes at the old revision were not: nobody was told of them again.
    """
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.trace(CHILD, "a0"))
    again = flyte.trace(CHILD, "a0", phase=phase)
    with pytest.raises(OutcomeUnknown):
        await Enqueuer(Store(etcd, LostAnswer(etcd, applied=False)), keys, json).enqueue(again)
    assert (await kv_of(etcd, keys.trace(CHILD))).version == 1
    await Enqueuer(Store(etcd, LostAnswer(etcd, applied=True)), keys, json).enqueue(again)
    kv = await kv_of(etcd, keys.trace(CHILD))
    assert (kv.version, StoredAction.of(kv).phase) == (2, phase)
