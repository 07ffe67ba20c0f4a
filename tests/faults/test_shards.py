"""Processes that share the work by shards, and are killed, stopped, cut off and replaced."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase, digits

import pytest
import trio

from etcd_actions import ActionId, ActionsClient, ActionUpdate, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue, WatchCreate
from etcd_actions.model import LABEL_TERMINAL_STATUS_RECORDED, Keyspace
from etcd_actions.run_service.grpc_run_service import open_run_service
from etcd_actions.shards import ShardKeys, load_table
from etcd_actions.testing import EtcdServer
from tests.support import flyte
from tests.support.leading import SETTINGS
from tests.support.proxy import Direction, Proxy, open_proxy
from tests.support.recording import until_stored
from tests.support.run_service_server import RunServiceServer
from tests.support.scene import all_marked
from tests.support.waiting import eventually, eventually_holds

pytestmark = [pytest.mark.faults, pytest.mark.slow]

_ROOT = Path(__file__).parents[2]
SHARDS = 8
TTL = 2
SECONDS = 15.0
CHUNK = 65536
"""Bytes that a proxy may forward after it was stalled."""


class Members:
    """Processes that share the work, and what happens to them.

    Args:
        arguments: Those of a process, after the address of etcd.
        etcd: That address.
        proxies: One for each process, if the connections to etcd are to be broken.
        rng: Chooses what happens.
    """

    def __init__(
        self, arguments: list[str], etcd: str, proxies: list[Proxy], rng: random.Random
    ) -> None:
        self._arguments = arguments
        self._etcd = etcd
        self._free = proxies.copy()
        self._random = rng
        self.processes: list[trio.Process] = []
        self.proxies: dict[trio.Process, Proxy] = {}

    async def start(self) -> None:
        proxy = self._free.pop() if self._free else None
        command = [sys.executable, "-m", "tests.support.sharing_main"]
        command += [self._etcd if proxy is None else str(proxy.endpoint), *self._arguments]
        process = await trio.lowlevel.open_process(
            command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.processes.append(process)
        if proxy is not None:
            self.proxies[process] = proxy
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
            elif way == "cut off":
                # What it sends meanwhile arrives afterwards, behind the end of its leases.
                self.proxies[process].stall()
                await trio.sleep(TTL * self._random.uniform(1.0, 2.5))
                self.proxies[process].unstall()
            else:
                process.send_signal(signal.SIGKILL if way == "kill" else signal.SIGTERM)
                status = await process.wait()
                assert way == "kill" or status == 0
                self.processes.remove(process)
                await _reap(process)
                if (proxy := self.proxies.pop(process, None)) is not None:
                    self._free.append(proxy)
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
    etcd: EtcdServer, prefix: bytes, server: RunServiceServer, count: int, *, proxied: bool = False
) -> AsyncIterator[Members]:
    arguments = [prefix.decode(), str(server.endpoint), str(SHARDS), str(TTL)]
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(open_proxy(etcd.port)) for _ in range(count * proxied)
        ]
        made = Members(arguments, etcd.endpoint, proxies, random.Random(count))
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
    [
        (2, ("kill", "stop", "term")),
        (3, ("kill", "stop", "term")),
        (3, ("term",)),
        (8, ("kill",)),
        (3, ("cut off", "kill")),
    ],
    ids=["two", "three", "rolling restarts", "eight", "partitions"],
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
            made = await stack.enter_async_context(
                members(shared_etcd, prefix, server, count, proxied="cut off" in ways)
            )
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


async def test_a_member_that_is_cut_off_is_replaced_and_joins_again(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """Its packets vanish for longer than its leases; then all that it sent meanwhile arrives."""
    rng, runs, playing = random.Random(2), list[str](), set[str]()
    marks = Counter[bytes]()
    keys = ShardKeys(Keyspace(prefix), "flyte")

    async def shards_of(process: trio.Process) -> tuple[int, int]:
        """The number of shards that a process owns, and that any process owns."""
        owners = [kv.value.split(b"/")[1] for kv in await owners_in(etcd, keys)]
        return owners.count(b"%d" % process.pid), len(owners)

    with RunServiceServer() as server, trio.fail_after(150):
        server.name_of = lambda action_id: str(action_id.run.name)
        async with (
            members(shared_etcd, prefix, server, 3, proxied=True) as made,
            open_actions_client(etcd, prefix=prefix) as client,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(count_marks, etcd, prefix, marks)
            victim = made.processes[0]
            proxy = made.proxies[victim]

            async def it_owns_its_part() -> bool:
                own, all_ = await shards_of(victim)
                return own >= SHARDS // 3 and all_ == SHARDS

            async def others_own_all() -> bool:
                return await shards_of(victim) == (0, SHARDS)

            async def it_is_a_member() -> bool:
                found = await etcd.range(KeyRange.of_prefix(keys.members), keys_only=True)
                return any(b"/%d/" % victim.pid in kv.key for kv in found.kvs)

            await eventually_holds(it_owns_its_part)
            async with trio.open_nursery() as players:
                for _ in range(4):
                    players.start_soon(play, client, rng, runs, playing)
                await eventually(lambda: len(server.phases) > 10)
                sent = proxy.forwarded[Direction.TO_SERVER]
                proxy.stall()
                await eventually_holds(others_own_all)
                assert not await it_is_a_member()
                # The others go on without it.
                told = len(server.phases)
                await eventually(lambda: len(server.phases) > told + 10)
                assert proxy.forwarded[Direction.TO_SERVER] - sent < CHUNK
                proxy.unstall()
                await eventually_holds(it_owns_its_part)
                assert await it_is_a_member()
                told = len(server.phases)
                await eventually(lambda: len(server.phases) > told + 10)
                players.cancel_scope.cancel()
            for run in playing:
                await client.enqueue(flyte.task(root(run)))
                await client.put_status(root(run), 1, flyte.status(Phase.FAILED))
            await until_stored(etcd, KeyRange.of_prefix(prefix), all_marked)
            await eventually(lambda: len(marks) == len(set(runs)))
            assert victim.poll() is None
            nursery.cancel_scope.cancel()
    assert set(marks.values()) == {1}
    assert server.revived == []
    assert server.unrecorded == []
    assert set(server.phases) == set(runs)
    assert set(server.phases.values()) == {Phase.FAILED}


async def owners_in(etcd: Etcd, keys: ShardKeys) -> list[KeyValue]:
    return list((await etcd.range(KeyRange.of_prefix(keys.owners))).kvs)


async def count_marks(
    etcd: Etcd, prefix: bytes, marks: Counter[bytes], *, task_status: trio.TaskStatus[None]
) -> None:
    """Count the writes of each object that has its mark, until cancelled."""
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, KeyRange.of_prefix(prefix), 0))
        task_status.started()
        while True:
            for response in await stream.receive():
                for event in response.events:
                    if LABEL_TERMINAL_STATUS_RECORDED.encode() in event.value:
                        marks[event.key] += 1
