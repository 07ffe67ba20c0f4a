"""After an ending was accepted, nothing but a newer attempt or incarnation is told."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import trio

from etcd_actions import ActionsClient, Phase, open_actions_client, open_etcd
from etcd_actions._internal.backoff import Backoff
from etcd_actions.codecs import json
from etcd_actions.errors import (
    ActionError,
    Compacted,
    FailedPrecondition,
    RunServiceUnavailable,
)
from etcd_actions.etcd.api import Etcd, KeyRange, WatchResponse, WatchStream
from etcd_actions.follow.workqueue import WorkQueueSettings
from etcd_actions.model import ActionObject, ActionUpdate, Keyspace
from etcd_actions.run_service import RunService
from etcd_actions.run_service.unsettled import Unsettled
from etcd_actions.testing import EtcdServer
from tests.pipeline.test_reshaping import reshaper, run_of
from tests.record.test_outbox import LONG, ROOT, SETTINGS, Scripted, is_idle, named, tell, watching
from tests.support import flyte
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.memory

NEVER = 1_000.0
SCHEDULES = int(os.environ.get("ETCD_ACTIONS_TEST_SCHEDULES", "4"))
FIRST = int(os.environ.get("ETCD_ACTIONS_TEST_SEED", "0"))
_GOES_BACK = (Phase.FAILED, Phase.TIMED_OUT)
_numbers = itertools.count()


async def handled(client: ActionsClient, revision: int) -> None:
    """Wait until what was written at a revision was seen, and nothing is left to do."""

    def seen() -> bool:
        reflector = client.statistics().reflector
        return reflector is not None and reflector.revision >= revision and is_idle(client)

    await eventually(seen)


# --- one way at a time ----------------------------------------------------------------


async def test_a_restart_from_the_position_tells_nothing_older_than_the_mark(
    etcd: Etcd, prefix: bytes
) -> None:
    """The list at the position shows RUNNING, of what a leader has marked that was killed."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        written = await client.put_status(ROOT, 1, flyte.status(Phase.RUNNING))
        await eventually(lambda: client.statistics().checkpoint >= written.revision)
    with trio.CancelScope() as killed:
        async with open_actions_client(
            etcd, prefix=prefix, run_service=service, settings=replace(SETTINGS, save_every=NEVER)
        ) as client:
            await client.start_watching()
            await eventually(lambda: client.statistics().elected)
            await tell(client, "a0", [Phase.FAILED])
            await eventually(lambda: client.statistics().marks == {"marked": 1})
            killed.cancel()
    told = len(service.told)
    async with watching(etcd, prefix, service) as client:
        await eventually(lambda: is_idle(client))
    assert service.told[told:] == []


async def test_an_older_status_that_is_written_back_is_not_told(etcd: Etcd, prefix: bytes) -> None:
    """By somebody who compares nothing; a newer attempt is told, and so is another ending."""
    service = Scripted()
    key = Keyspace(prefix).task_action(ROOT)
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.RUNNING])
        await eventually(lambda: service.of("a0")[-1:] == [Phase.RUNNING])
        [running] = (await etcd.range(KeyRange.of_key(key))).kvs
        await tell(client, "a0", [Phase.FAILED])
        await eventually(lambda: client.statistics().marks == {"marked": 1})
        told = len(service.told)
        await handled(client, (await etcd.put(key, running.value)).revision)
        assert service.told[told:] == []
        await tell(client, "a0", [Phase.SUCCEEDED])
        await eventually(lambda: client.statistics().marks == {"marked": 2})
        told = len(service.told)
        await handled(client, (await etcd.put(key, running.value)).revision)
        assert service.told[told:] == []
        await tell(client, "a0", [Phase.RUNNING], attempt=2)
        await eventually(lambda: service.of("a0")[-1] is Phase.RUNNING)
    assert service.updates[-1].attempts == 2
    ends = [phase for phase in service.of("a0") if phase.is_terminal]
    assert ends == [Phase.FAILED, Phase.SUCCEEDED]


async def test_without_a_predecessor_or_behind_one_that_stopped_nothing_is_held(
    etcd: Etcd, prefix: bytes
) -> None:
    """The first leader marks at once; so does one whose predecessor closed its term."""
    for number in range(3):
        service = Scripted()
        async with watching(etcd, prefix, service) as client:
            await client.enqueue(flyte.task(named(f"c{number}"), "" if number == 0 else "c0"))
            await tell(client, f"c{number}", [Phase.FAILED])
            with trio.fail_after(SETTINGS.election_ttl):
                await eventually(lambda: client.statistics().marks == {"marked": 1})
            assert service.of(f"c{number}") == [Phase.FAILED]


@pytest.mark.slow
async def test_what_is_held_lengthens_no_stop_and_is_told_by_the_next(
    etcd: Etcd, prefix: bytes
) -> None:
    """It is unmarked in etcd: the successor finds it, and waits in its turn."""
    service = Scripted()
    with trio.CancelScope() as killed:
        async with watching(etcd, prefix, service, LONG) as client:
            await client.enqueue(flyte.task(ROOT))
            await eventually(lambda: bool(service.of("a0", "record")))
            killed.cancel()
    async with watching(etcd, prefix, service, LONG) as client:
        await tell(client, "a0", [Phase.FAILED])
        await eventually(lambda: client.statistics().deferred == 1)
        assert client.statistics().marks == {}
        # A newer state waits for nothing.
        began = trio.current_time()
        await client.stop_watching()
        assert trio.current_time() - began < LONG.election_ttl / 2
    async with watching(etcd, prefix, service, LONG) as client:
        await eventually(lambda: client.statistics().deferred == 1)
        await eventually(lambda: client.statistics().marks == {"marked": 1})
        assert client.statistics().deferred == 0
    assert service.of("a0")[-3:] == [Phase.FAILED] * 3


@pytest.mark.slow
async def test_a_deletion_behind_a_killed_leader_is_told_again_before_it_is_done_with(
    etcd: Etcd, prefix: bytes
) -> None:
    """A position behind it would have the next start not look for it any more."""
    service = Scripted()
    key = Keyspace(prefix).task_action(ROOT)
    with trio.CancelScope() as killed:
        async with watching(etcd, prefix, service, LONG) as client:
            await client.enqueue(flyte.task(ROOT))
            await eventually(lambda: bool(service.of("a0", "record")))
            killed.cancel()
    async with watching(etcd, prefix, service) as client:
        deleted = await etcd.delete(KeyRange.of_key(key))
        await eventually(lambda: client.statistics().deferred == 1)
        assert service.of("a0").count(Phase.ABORTED) == 1
        await eventually(lambda: client.statistics().checkpoint >= deleted.revision)
    assert service.of("a0").count(Phase.ABORTED) == 2


# --- any schedule ---------------------------------------------------------------------


class Call(NamedTuple):
    """One status, when its call began, or when it landed."""

    uid: str
    phase: Phase
    attempts: int


class Database:
    """What all run services of a schedule write to, with the guard of Flyte's.

    Attributes:
        events: What began, was accepted and landed, in order.
        rows: The phase of each action.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, Call]] = []
        self.rows: dict[str, Phase] = {}

    def land(self, name: str, call: Call) -> None:
        old = self.rows.get(name, Phase.UNSPECIFIED)
        paused = old is Phase.PAUSED and call.phase.is_terminal
        self.events.append(("landed", call))
        if old <= call.phase or old in _GOES_BACK or paused:
            self.rows[name] = call.phase

    def problems(self) -> list[str]:
        """What was begun that an accepted ending forbids."""
        ended: dict[str, int] = {}
        wrong = []
        for number, (what, call) in enumerate(self.events):
            if what == "accepted" and call.phase.is_terminal:
                ended[call.uid] = max(call.attempts, ended.get(call.uid, 0))
                continue
            late = call.attempts <= ended.get(call.uid, -1)
            if what == "began" and late and not call.phase.is_terminal:
                wrong.append(f"{number}: {call} after an ending of {ended[call.uid]}")
        return wrong


class Unsteady(RunService):
    """A run service as one process sees it: it refuses, loses answers, and applies late."""

    DEADLINE = 0.3

    def __init__(self, database: Database, rng: random.Random, server: trio.Nursery) -> None:
        self._database = database
        self._random = rng
        self._server = server
        self._unsettled = Unsettled()
        self.trouble = 0.4

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        return True

    def unsettled_until(self, key: bytes) -> float:
        return self._unsettled.until(key)

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        await trio.lowlevel.checkpoint()
        if self._random.random() < self.trouble / 2:
            raise RunServiceUnavailable("scripted")

    async def update_action_status(self, update: ActionUpdate) -> None:
        name, call = update.action_id.name, Call(update.uid, update.phase, update.attempts)
        now = trio.current_time()
        until = min(now + self.DEADLINE, trio.current_effective_deadline())
        self._database.events.append(("began", call))
        settled = update.phase.is_terminal
        try:
            if self._random.random() >= self.trouble:
                await trio.sleep(self._random.random() * 0.01)  # How long a call takes.
                self._database.land(name, call)
            else:
                await self._stumble(name, call, until)
            settled = True
            self._database.events.append(("accepted", call))
        finally:
            if not settled:
                self._unsettled.note(update.key, until + 0.2, now=now)

    async def _stumble(self, name: str, call: Call, until: float) -> None:
        lands = self._random.choice((None, 0.0, until - trio.current_time()))
        if lands is not None:
            # At the server, whoever made the call lives or not.
            self._server.start_soon(self._land_at, name, call, trio.current_time() + lands)
        await trio.sleep(self._random.choice((0.0, 0.01)))  # How long the call takes.
        raise RunServiceUnavailable("scripted")

    async def _land_at(self, name: str, call: Call, when: float) -> None:
        await trio.sleep_until(when + self._random.random() * 0.1)
        self._database.land(name, call)


class LaggingStream:
    """A watch stream whose answers come late, in order: of a member that lags behind."""

    def __init__(self, stream: WatchStream, rng: random.Random) -> None:
        self._stream = stream
        self._random = rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def receive(self) -> Sequence[WatchResponse]:
        if self._random.random() < 0.3:
            await trio.sleep(self._random.random() * 0.4)
        return await self._stream.receive()


class Lagging:
    """A connection with such streams; all else is as it is."""

    def __init__(self, etcd: Etcd, rng: random.Random) -> None:
        self._etcd = etcd
        self._random = rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._etcd, name)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[LaggingStream]:
        async with self._etcd.watch() as stream:
            yield LaggingStream(stream, self._random)


class Schedule:
    """Two processes that may lead, a writer, and what happens to them."""

    NAMES = ("a0", "0c", "zc")

    def __init__(self, etcd: Etcd, seed: int, nursery: trio.Nursery, shards: int = 0) -> None:
        self.etcd = etcd
        self.shards = shards
        self.random = random.Random(seed)
        self.keys = Keyspace(f"/truth-{next(_numbers)}/taskactions/".encode())
        self.nursery = nursery
        self.database = Database()
        self.services: list[Unsteady] = []
        self.lives: dict[int, tuple[ActionsClient, trio.CancelScope, trio.Event]] = {}
        self.writer: ActionsClient

    async def live(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        service = Unsteady(self.database, self.random, self.nursery)
        self.services.append(service)
        over = trio.Event()
        settings = replace(
            SETTINGS,
            # Neither leases nor streams are lost for want of a processor.
            election_ttl=4,
            reflector=replace(SETTINGS.reflector, dead_after=10),
            save_every=self.random.choice((0.02, 0.2, NEVER)),
            shards=self.shards,
            split_from=None,
            queue=WorkQueueSettings(backoff=Backoff(0.01, 0.1)),
        )
        with trio.CancelScope() as life:
            async with open_actions_client(
                Lagging(self.etcd, self.random),
                prefix=self.keys.prefix,
                run_service=service,
                settings=settings,
            ) as client:
                self.lives[number] = client, life, over
                await client.start_watching()
                task_status.started()
                await trio.sleep_forever()
        over.set()

    async def step(self) -> None:
        number = self.random.randrange(2)
        steps = {
            "status": 9,
            "enqueue": 3,
            "wait": 4,
            "kill": 2,
            "stop": 1,
            "crash": 3,
            "compact": 1,
        }
        if self.shards:
            steps |= {"reshape": 3, "stop": 3, "crash": 1}
        what = self.random.choices(list(steps), list(steps.values()))[0]
        name = self.random.choice(self.NAMES)
        if what == "status":
            phase = self.random.choice((Phase.QUEUED, Phase.RUNNING, Phase.FAILED, Phase.SUCCEEDED))
            attempt = self.random.choice((1, 1, 2))
            await self.writer.put_status(named(name), attempt, flyte.status(phase, attempt))
        elif what == "enqueue":
            await self.writer.enqueue(flyte.task(named(name), "" if name == "a0" else "a0"))
        elif what == "reshape":
            await self.reshape(self.lives[number][0])
        elif what == "wait":
            await trio.sleep(self.random.random() * 0.3)
        elif what == "compact":
            newest = (await self.etcd.range(KeyRange.of_key(self.keys.prefix))).revision
            # Another schedule may have been first.
            with suppress(Compacted):
                await self.etcd.compact(newest)
        else:
            # A crash ends both, so that the next leader has only what is stored.
            numbers = range(2) if what == "crash" else [number]
            for each in numbers:
                client, life, over = self.lives.pop(each)
                if what == "stop":
                    await client.stop_watching(0.05)
                life.cancel()
                await over.wait()
            for each in numbers:
                await self.nursery.start(self.live, each)

    async def reshape(self, client: ActionsClient) -> None:
        """Split a shard of a client, or merge two neighbours."""
        owned = [each for each in run_of(client).watches.values() if each.leads]
        owned.sort(key=lambda each: each.shard.range)
        if not owned:
            return
        one = self.random.choice(owned)
        boundary = b"flyte/r%d" % self.random.randrange(10**6)
        other = next(
            (each for each in owned if each.shard.range.start == one.shard.range.end), None
        )
        with suppress(FailedPrecondition):
            if other is not None and self.random.random() < 0.5:
                await reshaper(client)._replace([one, other], [])
            elif boundary in one.shard.range and boundary > one.shard.range.start:
                await reshaper(client)._replace([one], [boundary])

    async def run(self) -> None:
        self.writer = await self.stack_writer()
        for number in range(2):
            await self.nursery.start(self.live, number)
        await self.writer.enqueue(flyte.task(ROOT))
        for _ in range(25):
            try:
                await self.step()
            except ActionError:
                # What may be asked is tested elsewhere.
                continue
        for service in self.services:
            service.trouble = 0.0
        # One is enough to end it.
        _, life, over = self.lives.pop(1)
        life.cancel()
        await over.wait()
        try:
            await eventually_holds(self.is_quiet, within=120)
        except trio.TooSlowError:
            unmarked = [each.metadata.name for each in await self.stored() if each.is_terminal]
            pytest.fail(
                f"not quiet: {unmarked}, {[c.statistics() for c, _, _ in self.lives.values()]}"
            )

    async def stack_writer(self) -> ActionsClient:
        opened = trio.Event()

        async def keep() -> None:
            settings = replace(SETTINGS, record=False)
            async with open_actions_client(
                self.etcd, prefix=self.keys.prefix, settings=settings
            ) as self.writer:
                opened.set()
                await trio.sleep_forever()

        self.nursery.start_soon(keep)
        await opened.wait()
        return self.writer

    async def stored(self) -> list[ActionObject]:
        found = (await self.etcd.range(KeyRange.of_prefix(self.keys.prefix))).kvs
        return [json.decode(kv.value) for kv in found]

    async def is_quiet(self) -> bool:
        """Whether all that is over is marked, and nothing is under way."""
        over = [action for action in await self.stored() if action.is_terminal]
        idle = all(
            is_idle(each) or not each.statistics().elected for each, _, _ in self.lives.values()
        )
        return idle and all(action.is_recorded for action in over)

    async def problems(self) -> list[str]:
        wrong = self.database.problems()
        for action in await self.stored():
            row = self.database.rows.get(action.action_id.name)
            if action.is_terminal and row is not None and not row.is_terminal:
                wrong.append(f"{action.action_id.name} is {action.phase.name}, told is {row.name}")
        return wrong


@asynccontextmanager
async def schedules(endpoint: str, seeds: range, shards: int = 0) -> AsyncIterator[list[Schedule]]:
    """Side by side, as most of each is waiting."""
    async with AsyncExitStack() as stack:
        made = []
        nursery = await stack.enter_async_context(trio.open_nursery())
        for seed in seeds:
            etcd = await stack.enter_async_context(open_etcd(endpoint))
            made.append(Schedule(etcd, seed, nursery, shards))
        async with trio.open_nursery() as running:
            for each in made:
                running.start_soon(each.run)
        yield made
        nursery.cancel_scope.cancel("the schedules are over")


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("shards", [0, 3])
async def test_no_schedule_tells_anything_older_after_an_ending(
    own_etcd: EtcdServer, shards: int
) -> None:
    """Two leaders, killed and stopped at any moment; calls that are refused, lost, applied late.

    With shards also hand-overs, splits and merges.
    """
    async with schedules(own_etcd.endpoint, range(FIRST, FIRST + SCHEDULES), shards) as made:
        for number, each in enumerate(made):
            assert await each.problems() == [], f"seed {FIRST + number}"
