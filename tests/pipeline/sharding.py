"""What the tests of shards share: clients that share the work, and one run service for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import ActionObject, ActionUpdate
from etcd_actions.pipeline.watching_settings import WatchingSettings, WatchingStatistics
from etcd_actions.run_service import RunService
from tests.record.test_outbox import SETTINGS
from tests.support import flyte
from tests.support.waiting import eventually

SHARDED = replace(SETTINGS, shards=4, split_from=None)
# One in each of four shards, and two more.
RUNS = ("r1", "ra", "rj", "rt", "rz", "s1")


class Told(RunService):
    """One run service behind all clients: the states that it accepted, by run."""

    def __init__(self) -> None:
        self.states: defaultdict[str, list[Phase]] = defaultdict(list)
        self.records: defaultdict[str, int] = defaultdict(int)
        self.hang: trio.Event | None = None

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        return True

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        if self.hang is not None:
            await self.hang.wait()
        self.records[update.action_id.run] += 1

    async def update_action_status(self, update: ActionUpdate) -> None:
        await trio.lowlevel.checkpoint()
        self.states[update.action_id.run].append(update.phase)


def root(run: str) -> ActionId:
    return ActionId("p", "d", run, "a0")


@asynccontextmanager
async def sharing(
    etcd: Etcd,
    prefix: bytes,
    service: RunService | None = None,
    *,
    settings: WatchingSettings = SHARDED,
    starts: bool = True,
) -> AsyncIterator[ActionsClient]:
    """A client that shares the work with others."""
    async with open_actions_client(
        etcd, prefix=prefix, run_service=service, settings=settings
    ) as client:
        if starts:
            await client.start_watching()
        yield client


def owned(client: ActionsClient) -> set[int]:
    """The ids of the shards that a client owns."""
    return {each.id for each in client.statistics().shards if each.owned}


def served(client: ActionsClient) -> set[int]:
    """The ids of the shards that a client watches."""
    return {each.id for each in client.statistics().shards if each.keys is not None}


async def until_owned(count: int, *clients: ActionsClient) -> None:
    """All shards have an owner, each client has its part, and none watches another one's."""
    most = -(-count // len(clients))

    def balanced() -> bool:
        sets = [owned(client) for client in clients]
        return (
            sum(map(len, sets)) == count == len(set().union(*sets))
            and max(map(len, sets)) <= most
            and all(served(client) == own for client, own in zip(clients, sets, strict=True))
        )

    # Each look sums up the statistics of all shards.
    await eventually(balanced, every=0.02)


async def end(client: ActionsClient, run: str, phase: Phase = Phase.SUCCEEDED) -> None:
    await client.put_status(root(run), 1, flyte.status(phase))


async def until_statistics(
    client: ActionsClient, condition: Callable[[WatchingStatistics], bool]
) -> None:
    await eventually(lambda: condition(client.statistics()))


async def until_recorded(client: ActionsClient, *runs: str) -> None:
    with trio.fail_after(60):
        for run in runs:
            while not (await client.get_task_action(root(run))).is_recorded:  # noqa: ASYNC110
                await trio.sleep(0.01)
