"""Processes that share the work by shards, and are killed, stopped and replaced under load."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase, digits

import pytest
import trio

from etcd_actions import ActionId, ActionsClient, ActionUpdate, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from etcd_actions.run_service.grpc_run_service import open_run_service
from etcd_actions.shards import ShardKeys, load_table
from etcd_actions.testing import EtcdServer
from tests.support import flyte
from tests.support.leading import SETTINGS
from tests.support.recording import until_stored
from tests.support.run_service_server import RunServiceServer
from tests.support.scene import all_marked
from tests.support.waiting import eventually

pytestmark = [pytest.mark.faults, pytest.mark.slow]

_ROOT = Path(__file__).parents[2]
SHARDS = 8
TTL = 2
SECONDS = 15.0


class Members:
    """Processes that share the work, and what happens to them."""

    def __init__(self, command: list[str], rng: random.Random) -> None:
        self._command = command
        self._random = rng
        self.processes: list[trio.Process] = []

    async def start(self) -> None:
        process = await trio.lowlevel.open_process(
            self._command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert await process.stdout.receive_some() == b"watching\n"

    async def disturb(self, ways: tuple[str, ...]) -> None:
        """Do something to one process after the other, until cancelled."""
        while True:
            process = self._random.choice(self.processes)
            way = self._random.choice(ways)
            if way == "stop":
                process.send_signal(signal.SIGSTOP)
                await trio.sleep(TTL * self._random.uniform(1.0, 2.5))
                process.send_signal(signal.SIGCONT)
            else:
                process.send_signal(signal.SIGKILL if way == "kill" else signal.SIGTERM)
                status = await process.wait()
                assert way == "kill" or status == 0
                self.processes.remove(process)
                await _reap(process)
                await self.start()
            await trio.sleep(self._random.uniform(0, TTL))

    async def end(self) -> None:
        for process in self.processes:
            process.kill()
        with trio.CancelScope(shield=True):
            for process in self.processes:
                await _reap(process)


async def _reap(process: trio.Process) -> None:
    await process.wait()
    assert process.stdout is not None
    await process.stdout.aclose()


@asynccontextmanager
async def members(
    etcd: EtcdServer, prefix: bytes, server: RunServiceServer, count: int
) -> AsyncIterator[Members]:
    command = [sys.executable, "-m", "tests.support.sharing_main", etcd.endpoint, prefix.decode()]
    command += [str(server.endpoint), str(SHARDS), str(TTL)]
    made = Members(command, random.Random(count))
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(made.start)
        yield made
    finally:
        await made.end()


def root(run: str) -> ActionId:
    return ActionId("p", "d", run, "a0")


async def play(
    client: ActionsClient, rng: random.Random, runs: list[str], playing: set[str]
) -> None:
    """Begin and end runs, until cancelled; ``playing`` has those that are not ended."""
    while True:
        run = "r" + "".join(rng.choices(ascii_lowercase + digits, k=10))
        runs.append(run)
        playing.add(run)
        await client.enqueue(flyte.task(root(run)))
        await trio.sleep(rng.uniform(0, 0.2))
        await client.put_status(root(run), 1, flyte.status(Phase.RUNNING))
        await trio.sleep(rng.uniform(0, 0.2))
        await client.put_status(root(run), 1, flyte.status(Phase.FAILED))
        playing.discard(run)


async def follow(
    client: ActionsClient, run: str, last: dict[str, tuple[Phase, int]], wrong: list[str]
) -> None:
    """Note the last state that a subscriber received; none is older than the one before."""
    async with client.subscribe(root(run), snapshot=True) as subscription:
        async for update in subscription:
            if not isinstance(update, ActionUpdate):
                continue
            if update.revision <= last.get(run, (update.phase, 0))[1]:
                wrong.append(f"{run}: {update} after {last[run]}")
            last[run] = update.phase, update.revision


@pytest.mark.parametrize(
    ("count", "ways"),
    [(2, ("kill", "stop", "term")), (3, ("kill", "stop", "term")), (3, ("term",)), (8, ("kill",))],
    ids=["two", "three", "rolling restarts", "eight"],
)
async def test_each_ending_is_told_last_and_marked(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, count: int, ways: tuple[str, ...]
) -> None:
    """The oracle is the database of the run service: no ending is revived, and none is missing."""
    rng, runs, followed = random.Random(1), list[str](), list[str]()
    last: dict[str, tuple[Phase, int]] = {}
    wrong: list[str] = []
    playing: set[str] = set()
    with RunServiceServer() as server, trio.fail_after(150):
        server.name_of = lambda action_id: str(action_id.run.name)
        async with AsyncExitStack() as stack:
            made = await stack.enter_async_context(members(shared_etcd, prefix, server, count))
            tells = await stack.enter_async_context(open_run_service(server.endpoint))
            # A member in this process serves subscribers, while its shards come and go.
            client = await stack.enter_async_context(
                open_actions_client(
                    etcd,
                    prefix=prefix,
                    run_service=tells,
                    settings=replace(SETTINGS, election_ttl=TTL, shards=SHARDS, split_from=None),
                )
            )
            await client.start_watching()
            async with trio.open_nursery() as following:
                with trio.move_on_after(SECONDS):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(made.disturb, ways)
                        for _ in range(4):
                            nursery.start_soon(play, client, rng, runs, playing)
                        while True:
                            await trio.sleep(0.1)
                            if runs[-1] in followed:
                                continue
                            followed.append(runs[-1])
                            following.start_soon(follow, client, runs[-1], last, wrong)
                for run in playing:
                    await client.enqueue(flyte.task(root(run)))
                    await client.put_status(root(run), 1, flyte.status(Phase.FAILED))
                await until_stored(etcd, KeyRange.of_prefix(prefix), all_marked)
                await eventually(
                    lambda: all(last.get(run, (None, 0))[0] is Phase.FAILED for run in followed)
                )
                following.cancel_scope.cancel()
            await client.stop_watching()
    assert wrong == []
    assert server.revived == []
    assert server.unrecorded == []
    assert len(server.phases) == len(set(runs)) > 20
    assert set(server.phases.values()) == {Phase.FAILED}
    table = await load_table(etcd, ShardKeys(Keyspace(prefix), "flyte"))
    assert table.problem == ""
