"""Any sequence of what callers, clusters and run services do ends in the promised state.

Hypothesis draws the steps; each sequence runs on an etcd, a real one or one in memory, under a
prefix of its own, with a client that records. Afterwards everything is healed, and once all is
quiet the promises of docs/guarantees.md are looked up one by one. ``scripts/prove`` runs many
more sequences.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
import trio
from hypothesis import strategies as st
from trio.testing import MockClock

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionUpdate,
    Phase,
    open_actions_client,
    open_etcd,
)
from etcd_actions.codecs import CODEC_NAMES, codec_of
from etcd_actions.errors import ActionError, Compacted, RunServiceUnavailable, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import ActionObject, Keyspace, canonical_name
from etcd_actions.run_service import RunService
from etcd_actions.testing import Faults, MemoryClient, MemoryStore
from tests.record.test_outbox import SETTINGS
from tests.support import flyte, oracle
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday
from tests.support.patient import compact
from tests.support.waiting import eventually_holds

SEQUENCES = int(os.environ.get("ETCD_ACTIONS_TEST_SEQUENCES", "50"))
FIRST = int(os.environ.get("ETCD_ACTIONS_TEST_SEED", "0"))
BATCH = 5
EVERYDAY = 5
IN_MEMORY = 20
NAMES = ("a0", "c1", "c2", "g1", "g2", "x1")
PATIENCE = 60

_numbers = itertools.count()
names = st.sampled_from(NAMES)
enqueues = st.tuples(
    st.just("enqueue"), names, names, st.sampled_from(("task", "task", "condition", "trace"))
)
statuses = st.tuples(
    st.just("status"), names, st.sampled_from(list(Phase)), st.sampled_from((1, 1, 1, 2))
)
# What makes something happen comes more often than what disturbs it.
steps = st.one_of(
    *[enqueues] * 6,
    *[statuses] * 4,
    st.tuples(st.just("signal"), names, st.booleans()),
    st.tuples(st.just("abort"), names),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("subscribe"), names, st.booleans()),
    st.tuples(st.just("unsubscribe")),
    st.tuples(st.just("fail"), st.integers(1, 5)),
    st.tuples(st.just("hang")),
    st.tuples(st.just("heal")),
    st.tuples(st.just("compact")),
    st.tuples(st.just("stop")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("second")),
    st.tuples(st.just("wait"), st.integers(1, 20)),
)
codecs = st.sampled_from(CODEC_NAMES)
sequences = st.tuples(codecs, st.lists(steps, min_size=5, max_size=40))
# In memory connections misbehave as well.
worse = st.one_of(
    *[steps] * 5,
    st.tuples(st.just("lose"), st.booleans(), st.integers(1, 3)),
    st.tuples(st.just("break")),
    st.tuples(st.just("late"), st.integers(0, 200)),
)
worse_sequences = st.tuples(codecs, st.lists(worse, min_size=5, max_size=40), st.integers(0, 1_000))


class Service(RunService):
    """Accepts, fails so many times, or hangs until it is healed."""

    def __init__(self) -> None:
        self.failures = 0
        self.hangs: trio.Event | None = None
        self.accepted: set[tuple[str, Phase]] = set()
        self.traces: set[str] = set()

    def heal(self) -> None:
        self.failures = 0
        if self.hangs is not None:
            self.hangs.set()
            self.hangs = None

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        return True

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        await self._answer()
        if action is not None and action.spec.kind == "trace":
            self.traces.add(update.uid)

    async def update_action_status(self, update: ActionUpdate) -> None:
        await self._answer()
        self.accepted.add((update.uid, update.phase))

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.hangs is not None:
            await self.hangs.wait()
        if self.failures:
            self.failures -= 1
            raise RunServiceUnavailable("scripted")


class World:
    """One sequence: its prefix, its client, its subscribers."""

    def __init__(self, etcd: Etcd, prefix: bytes, codec: str, nursery: trio.Nursery) -> None:
        self.etcd = etcd
        self.keys = Keyspace(prefix)
        self.codec = codec
        self.nursery = nursery
        self.service = Service()
        self.client: ActionsClient
        self.life = trio.CancelScope()
        self.compacted = False
        self.began = 1
        self.received: list[tuple[str, Any, list[ActionUpdate]]] = []

    def named(self, name: str) -> ActionId:
        return ActionId("p", "d", "r1", name)

    async def begin(self) -> None:
        """Start, on a store that others may have compacted."""
        self.began = (await self.etcd.range(KeyRange.of_key(b"/"))).revision
        await self.start()

    async def start(self) -> None:
        self.life = trio.CancelScope()
        await self.nursery.start(self._live, self.life)
        await self.client.start_watching()

    async def _live(self, life: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        with life:
            async with open_actions_client(
                self.etcd,
                prefix=self.keys.prefix,
                run_service=self.service,
                codec=self.codec,
                settings=replace(SETTINGS, election_ttl=2),
            ) as self.client:
                task_status.started()
                await trio.sleep_forever()

    async def do(self, step: tuple[Any, ...]) -> None:
        what, *arguments = step
        try:
            await getattr(self, f"_{what}")(*arguments)
        except ActionError:
            # Refused, with a reason: which one is tested elsewhere.
            return
        except Unavailable:
            # Of unknown outcome, or not done: the caller is told, and does not try again.
            if not isinstance(self.etcd, MemoryClient):
                raise

    async def _enqueue(self, name: str, parent: str, kind: str) -> None:
        make = {"task": flyte.task, "condition": flyte.condition, "trace": flyte.trace}[kind]
        above = "" if name == "a0" and kind == "task" else parent
        await self.client.enqueue(make(self.named(name), above))

    async def _status(self, name: str, phase: Phase, attempt: int) -> None:
        await self.client.put_status(self.named(name), attempt, flyte.status(phase, attempt))

    async def _signal(self, name: str, value: bool) -> None:
        await self.client.signal(self.named(name), flyte.boolean(value), "alice")

    async def _abort(self, name: str) -> None:
        await self.client.abort_action(self.named(name), "scripted", "alice")

    async def _delete(self, name: str) -> None:
        await self.etcd.delete(KeyRange.of_key(self.keys.task_action(self.named(name))))

    async def _subscribe(self, name: str, snapshot: bool) -> None:
        await self.nursery.start(self._follow, self.client, name, snapshot)

    async def _follow(
        self,
        client: ActionsClient,
        name: str,
        snapshot: bool,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        # Without a snapshot what was before the subscription is not told.
        got: list[ActionUpdate] = []
        async with client.subscribe(self.named(name), snapshot=snapshot) as updates:
            if snapshot:
                self.received.append((name, updates, got))
            task_status.started()
            async for update in updates:
                if isinstance(update, ActionUpdate):
                    got.append(update)

    async def _unsubscribe(self) -> None:
        if self.received:
            _, updates, _ = self.received.pop()
            if updates in self.client._subscribing.processors:
                await self.client.unsubscribe(updates)

    async def _fail(self, times: int) -> None:
        self.service.failures += times

    async def _hang(self) -> None:
        if self.service.hangs is None:
            self.service.hangs = trio.Event()

    async def _heal(self) -> None:
        self.service.heal()

    async def _compact(self) -> None:
        newest = await self.etcd.range(KeyRange.of_key(self.keys.prefix))
        self.compacted = True
        # Nothing has happened since the last one.
        with suppress(Compacted):
            await compact(self.etcd, newest.revision)

    async def _stop(self) -> None:
        await self.client.stop_watching(0.05)
        await self.client.start_watching()

    async def _restart(self) -> None:
        self.life.cancel()
        # Its subscribers are gone with it.
        self.received.clear()
        await self.start()

    async def _second(self) -> None:
        async with open_actions_client(
            self.etcd, prefix=self.keys.prefix, run_service=self.service, settings=SETTINGS
        ) as other:
            await other.start_watching()

    async def _wait(self, milliseconds: int) -> None:
        await trio.sleep(milliseconds / 1000)  # A drawn step: time passes.

    async def _lose(self, applied: bool, times: int) -> None:
        self.faults.lose_answer(applied=applied, times=times)

    async def _break(self) -> None:
        self.faults.break_connections()

    async def _late(self, milliseconds: int) -> None:
        self.faults.latency = milliseconds / 1000

    @property
    def faults(self) -> Faults:
        assert isinstance(self.etcd, MemoryClient)
        return self.etcd.faults

    async def stored(self) -> dict[bytes, ActionObject]:
        found = {}
        for prefix in (self.keys.prefix, self.keys.traces):
            for kv in (await self.etcd.range(KeyRange.of_prefix(prefix))).kvs:
                found[kv.key] = codec_of(kv.value).decode(kv.value)
        return found

    async def problems(self) -> list[str]:
        """What is not as promised, now."""
        found = await self.stored()
        uids = {key: action.metadata.uid for key, action in found.items()}
        wrong = []
        for action in found.values():
            name, uid = action.action_id.name, action.metadata.uid
            if action.is_terminal and not action.is_recorded:
                wrong.append(f"{name} is over and not marked")
            if action.is_recorded:
                accepted = (uid, action.phase) in self.service.accepted
                if not accepted and uid not in self.service.traces:
                    wrong.append(f"{name}: {action.phase.name} is marked and was not accepted")
            for owner in action.metadata.owner_references:
                owner_key = self.keys.task_action(self.named(owner.name.removeprefix("r1-")))
                if uids.get(owner_key) != owner.uid:
                    wrong.append(f"{name} is an orphan")
                above = found.get(owner_key)
                aborted = above is not None and above.phase is Phase.ABORTED
                marked = await self.etcd.range(
                    KeyRange.of_key(self.keys.abort(self.named(owner.name.removeprefix("r1-"))))
                )
                if aborted and marked.kvs and not action.is_terminal:
                    wrong.append(f"{name} goes on below an aborted action")
            wrong += self._untold(name, action, uid)
        return wrong

    def _untold(self, name: str, action: ActionObject, uid: str) -> list[str]:
        wrong = []
        for parent, _, updates in self.received:
            if parent not in (name, canonical_name("r1", action.parent)):
                continue
            last = [each for each in updates if each.uid == uid][-1:]
            if not last or (last[0].phase, last[0].recorded) != (action.phase, action.is_recorded):
                wrong.append(f"the subscriber of {parent} has not seen the last of {name}")
        return wrong

    async def _is_quiet(self) -> bool:
        return not await self.problems()

    async def check(self) -> None:
        """Wait until all is quiet; then everything has to be as promised."""
        self.service.heal()
        if isinstance(self.etcd, MemoryClient):
            self.faults.latency = 0
        with suppress(trio.TooSlowError):
            await eventually_holds(self._is_quiet, within=PATIENCE)
        assert await self.problems() == []
        for _, _, updates in self.received:
            seen: defaultdict[bytes, int] = defaultdict(int)
            for update in updates:
                assert update.revision > seen[update.key], "a subscriber was told something older"
                seen[update.key] = update.revision
        if not self.compacted:
            await self._check_marks()

    async def _check_marks(self) -> None:
        """Each ending was marked once: no write puts the label on what has it."""
        keys = KeyRange.of_prefix(self.keys.prefix)
        history = await oracle.read_history(self.etcd, keys, since=self.began)
        marks: defaultdict[tuple[bytes, str], int] = defaultdict(int)
        was: dict[bytes, bool] = {}
        for entry in history:
            if entry.is_delete:
                was.pop(entry.key, None)
                continue
            action = codec_of(entry.value).decode(entry.value)
            if action.is_recorded and not was.get(entry.key):
                marks[entry.key, action.metadata.uid] += 1
            was[entry.key] = action.is_recorded
        assert all(count == 1 for count in marks.values()), dict(marks)


async def run(etcd: Etcd, codec: str, sequence: list[tuple[Any, ...]]) -> None:
    prefix = f"/sequence-{next(_numbers)}/taskactions/".encode()
    async with trio.open_nursery() as nursery:
        world = World(etcd, prefix, codec, nursery)
        await world.begin()
        await world.do(("enqueue", "a0", "a0", "task"))
        for step in sequence:
            await world.do(step)
        await world.check()
        nursery.cancel_scope.cancel("the sequence is over")


async def run_at(endpoint: str, codec: str, sequence: list[tuple[Any, ...]]) -> None:
    async with open_etcd(endpoint) as etcd:
        await run(etcd, codec, sequence)


def _drawing(seed: int, count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """How many sequences are drawn; the same for a seed."""

    def settings(test: Callable[..., None]) -> Callable[..., None]:
        chosen = hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            # A failed sequence waits for its patience to end: making it smaller would take hours.
            phases=[hypothesis.Phase.generate],
        )
        return hypothesis.seed(seed)(chosen(test))

    return settings


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(batch, marks=() if batch < EVERYDAY // BATCH else pytest.mark.slow)
        for batch in range(SEQUENCES // BATCH)
    ],
)
def test_any_sequence_ends_as_promised(own_etcd: EtcdServer, batch: int) -> None:
    """See the module's text."""

    @_drawing(batch + FIRST, BATCH)
    @hypothesis.given(sequences)
    def one(drawn: tuple[str, list[tuple[Any, ...]]]) -> None:
        trio.run(run_at, own_etcd.endpoint, *drawn)

    one()


@pytest.mark.parametrize("batch", first_everyday(range(5)))
def test_any_sequence_ends_as_promised_in_memory(batch: int) -> None:
    """With answers that are lost, late, or come after their events; nothing is waited for."""

    @_drawing(batch + FIRST, IN_MEMORY)
    @hypothesis.given(worse_sequences)
    def one(drawn: tuple[str, list[tuple[Any, ...]], int]) -> None:
        codec, sequence, seed = drawn
        client = MemoryStore(seed=seed).client()
        trio.run(run, client, codec, sequence, clock=MockClock(autojump_threshold=0))

    one()
