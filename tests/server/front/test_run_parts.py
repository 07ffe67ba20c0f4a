"""A stream of a large run: its first actions come early, and none is lost while others change."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import trio
from flyteidl2.workflow.run_definition_pb2 import EnrichedAction

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase
from etcd_actions.cli.reader import ACTIONS_AT_ONCE
from etcd_actions.etcd.api import Delete, KeyRange, Txn
from etcd_actions.runs.reading import Part, RunReader, Unread
from etcd_actions.server.front.action_tree import ActionTree, SharedNodes
from etcd_actions.server.front.run_streams import MOST_AT_ONCE, TURN, Follower
from etcd_actions.server.streams import CONNECTION, Connection, Streams
from tests.support import flyte

pytestmark = pytest.mark.memory(jumps=False)

ROOT = ActionId("p", "d", "r1", "a0")
CHILDREN = 500


class Reader(RunReader):
    """Counts the parts that it reads."""

    parts = 0

    async def part(self, run: ActionId, unread: Unread) -> Part:
        self.parts += 1
        return await super().part(run, unread)


class Following:
    """One stream; its messages are requested one at a time.

    Attributes:
        known: The last message of each action.
        nodes: What the streams share.
    """

    def __init__(self, client: ActionsClient, nodes: SharedNodes) -> None:
        self.reader = Reader(client)
        self.follower = Follower(client, self.reader, Streams(10), keepalive=0.05)
        self.nodes = nodes
        self.known: dict[str, EnrichedAction] = {}
        self.messages: Any = None

    async def next(self) -> list[EnrichedAction]:
        """The next message; each state in it is a new one."""
        message: list[EnrichedAction] = await anext(self.messages)
        for each in message:
            assert self.known.get(each.action.id.name) != each
            self.known[each.action.id.name] = each
        return message


@asynccontextmanager
async def following(
    client: ActionsClient, nodes: SharedNodes | None = None
) -> AsyncIterator[Following]:
    CONNECTION.set(Connection())
    made = Following(client, nodes or SharedNodes())
    tree = ActionTree("o", None, made.nodes)
    async with aclosing(made.follower.run(ROOT, tree)) as messages:
        made.messages = messages
        yield made


def action(name: str) -> ActionId:
    return ActionId("p", "d", "r1", name)


def child(number: int) -> ActionId:
    return action(f"c{number:03}")


async def put_run(client: ActionsClient, count: int = CHILDREN) -> list[ActionId]:
    """A run whose root has actions below it, and each tenth of these the next nine."""
    await client.enqueue(flyte.task(ROOT))
    # Another run whose keys are among those of this one.
    await client.enqueue(flyte.task(ActionId("p", "d", "r1-b", "a0")))
    parents = {child(number): "a0" for number in range(0, count, 10)}
    others = {
        child(number): child(number - number % 10).name for number in range(count) if number % 10
    }
    for family in (parents, others):
        async with trio.open_nursery() as nursery:
            for each, parent in family.items():
                nursery.start_soon(client.enqueue, flyte.task(each, parent))
    return [*parents, *others]


def counts_of(known: dict[str, EnrichedAction]) -> dict[str, Counter[int]]:
    found: dict[str, Counter[int]] = {}
    for each in known.values():
        parent = each.action.metadata.parent
        if parent:
            found.setdefault(parent, Counter())[each.action.status.phase] += 1
    return found


def counts_told(known: dict[str, EnrichedAction]) -> dict[str, Counter[int]]:
    return {
        name: Counter(dict(each.children_phase_counts))
        for name, each in known.items()
        if each.children_phase_counts
    }


async def test_all_actions_come_once_in_full_messages(client: ActionsClient) -> None:
    actions = await put_run(client)
    sizes: list[int] = []
    names: Counter[str] = Counter()
    async with following(client) as stream:
        while not sizes or sizes[-1] == MOST_AT_ONCE:
            message = await stream.next()
            sizes.append(len(message))
            names.update(each.action.id.name for each in message)
            if len(sizes) == 1:
                assert message[0].action.id.name == "a0"
                # The others are not read before these are sent.
                assert stream.reader.parts == 2
    assert names.keys() == {"a0", *(each.name for each in actions)}
    assert sizes[:-1] == [MOST_AT_ONCE] * (len(sizes) - 1)
    # Only parents come again, with the counts of the children that came since.
    parents = {each.action.metadata.parent for each in stream.known.values()}
    assert {name for name, count in names.items() if count > 1} <= parents
    assert counts_told(stream.known) == counts_of(stream.known)
    assert MOST_AT_ONCE == ACTIONS_AT_ONCE


async def test_the_last_message_of_a_full_run_is_empty(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    for number in range(1, MOST_AT_ONCE):
        await client.enqueue(flyte.task(child(number), "a0"))
    async with following(client) as stream:
        assert [len(await stream.next()) for _ in range(2)] == [MOST_AT_ONCE, 0]


async def test_others_run_while_actions_are_converted(client: ActionsClient) -> None:
    await put_run(client)
    made: list[int] = []
    async with following(client) as stream, trio.open_nursery() as nursery:

        async def count() -> None:
            while True:
                made.append(stream.nodes.made)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(count)
        while await stream.next():
            pass
        nursery.cancel_scope.cancel()
    steps = [after - before for before, after in pairwise(made)]
    assert sum(steps) > CHILDREN
    # One turn of the loop may have the count first, the next one last. The first has the root, too.
    assert max(steps) <= 2 * TURN + 1


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_lost_while_actions_change_between_the_messages(
    client: ActionsClient, seed: int
) -> None:
    """Changes of actions that were sent, that are read but not sent, and that are not read yet."""
    random = Random(seed)
    actions = await put_run(client)
    alive = dict.fromkeys(actions, Phase.QUEUED)
    deleted: set[str] = set()
    added = 0

    async def change() -> None:
        nonlocal added
        for _ in range(random.randrange(40)):
            match random.randrange(8):
                case 0:
                    added += 1
                    new = action(f"{random.choice('abcd')}-new-{added}")
                    await client.enqueue(flyte.task(new, "a0"))
                    alive[new] = Phase.QUEUED
                case 1:
                    leaves = [each for each in alive if not each.name.endswith("0")]
                    gone = random.choice(leaves)
                    key = client.keys.task_action(gone)
                    await client.store.txn(Txn((), (Delete(KeyRange.of_key(key)),)))
                    del alive[gone]
                    deleted.add(gone.name)
                case _:
                    each = random.choice([*alive, ROOT])
                    phase = alive.get(each, Phase.QUEUED)
                    after = Phase.RUNNING if phase is Phase.QUEUED else Phase.SUCCEEDED
                    if each != ROOT:
                        alive[each] = after
                    else:
                        after = Phase.RUNNING
                    await client.put_status(each, 1, ActionStatus(phase=after, attempts=1))

    # Another stream has states that this one shares.
    nodes = SharedNodes()
    async with following(client, nodes) as other:
        await other.next()
        async with following(client, nodes) as stream:
            size = MOST_AT_ONCE
            while size == MOST_AT_ONCE:
                size = len(await stream.next())
                await change()
                if random.random() < 0.5:
                    await other.next()
            truth = {
                each.action_id.name: each.phase or Phase.QUEUED
                for each in (await client.list_run_actions(ROOT.run_id)).actions
            }
            with trio.fail_after(30):
                while not _agrees(stream.known, truth, deleted):
                    await stream.next()
            # An empty message: there is nothing more to send.
            with trio.fail_after(30):
                while await stream.next():
                    pass
            assert _agrees(stream.known, truth, deleted)
            assert "r1-b" not in {each.action.id.run.name for each in stream.known.values()}
            assert counts_told(stream.known) == counts_of(stream.known)


def _agrees(known: dict[str, EnrichedAction], truth: dict[str, Phase], deleted: set[str]) -> bool:
    told = {name: Phase(each.action.status.phase) for name, each in known.items()}
    return {name: phase for name, phase in told.items() if name not in deleted} == truth and all(
        told[name].is_terminal for name in deleted & told.keys()
    )
