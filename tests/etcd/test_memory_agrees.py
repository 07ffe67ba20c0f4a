"""A real etcd and the one in memory are asked the same, and answer the same.

Revisions count from the beginning of each sequence, and leases from the first one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import hypothesis
import pytest
import trio
from hypothesis import strategies as st

from etcd_actions import open_etcd
from etcd_actions.errors import EtcdError
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Etcd,
    Event,
    Get,
    KeyRange,
    KeyValue,
    Lease,
    Operation,
    Put,
    RangeResult,
    Txn,
    WatchCreate,
    WatchStream,
)
from etcd_actions.testing import MemoryStore, OwnEtcd

NAMES = [b"a", b"ab", b"b", b"c", b"\xff"]
_REVISIONS = (CompareTarget.CREATE_REVISION, CompareTarget.MOD_REVISION)


class Ago(NamedTuple):
    """A revision: so many before the newest one, never before the sequence began."""

    back: int


class Nth(NamedTuple):
    """A lease: 1 is the youngest that is left, 0 is none, and below there is no such lease."""

    number: int


class Guess(NamedTuple):
    """A compare whose operand is drawn; that of revisions is an :class:`Ago`."""

    name: bytes
    target: CompareTarget
    result: CompareResult
    operand: int
    to_end: bool


class Drawn(NamedTuple):
    """A transaction of drawn parts."""

    compare: list[Guess]
    success: list[Any]
    failure: list[Any]


class DrawnPut(NamedTuple):
    name: bytes
    value: bytes
    lease: Nth


class DrawnRange(NamedTuple):
    start: bytes
    end: bytes | None


class Step(NamedTuple):
    """One step: what is asked, and with what."""

    method: str
    arguments: dict[str, Any]


names = st.sampled_from([*NAMES, b"a", b"a"])
# All keys, one, or some; a range may be empty.
ranges = st.one_of(
    st.just(DrawnRange(b"a", b"\xff\xff")),
    st.builds(DrawnRange, names, st.none()),
    st.builds(DrawnRange, names, names),
)
leases = st.sampled_from([0, 0, 1, 1, 2, 3, -1]).map(Nth)
puts = st.builds(DrawnPut, names, st.sampled_from([b"", b"v", b"w"]), leases)
guesses = st.builds(
    Guess,
    names,
    st.sampled_from(list(CompareTarget)),
    st.sampled_from(list(CompareResult)),
    st.integers(0, 3),
    st.booleans(),
)
plain = st.one_of(puts, ranges.map(lambda keys: ("delete", keys)), ranges)


def _txns(operations: st.SearchStrategy[Any]) -> st.SearchStrategy[Drawn]:
    branch = st.lists(operations, max_size=3)
    return st.builds(Drawn, st.lists(guesses, max_size=2), branch, branch)


txns = _txns(st.one_of(plain, _txns(st.one_of(plain, _txns(plain)))))


def _step(method: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.builds(Step, st.just(method), st.fixed_dictionaries(arguments))


agos = st.integers(-1, 6).map(Ago)
steps = st.one_of(
    _step("put", put=puts),
    _step("put", put=puts),
    _step("delete", keys=ranges),
    _step(
        "range",
        keys=ranges,
        revision=st.one_of(st.just(0), agos, agos),
        limit=st.sampled_from([0, 0, 1, 2]),
        keys_only=st.sampled_from([False, False, True]),
        count_only=st.sampled_from([False, False, False, True]),
    ),
    _step("txn", txn=txns),
    _step("txn", txn=txns),
    _step("compact", revision=agos),
    _step("grant", ttl=st.sampled_from([3_600, 3_600, 3_600, 10**10])),
    _step("keep_alive", lease=leases),
    _step("revoke", lease=st.sampled_from([1, 1, 2, -1]).map(Nth)),
    _step(
        "watch",
        keys=ranges,
        since=st.one_of(st.just(0), st.just(0), agos),
        prev_kv=st.booleans(),
        again=st.booleans(),
    ),
    _step("unwatch", index=st.integers(0, 1)),
)


ALL = DrawnRange(b"a", b"\xff\xff")
READ = {"keys": ALL, "limit": 0, "keys_only": False, "count_only": False}
LEFT_LEASE = [
    Step("grant", {"ttl": 3_600}),
    Step("put", {"put": DrawnPut(b"a", b"v", Nth(1))}),
    Step("put", {"put": DrawnPut(b"b", b"v", Nth(1))}),
    Step("put", {"put": DrawnPut(b"a", b"w", Nth(0))}),
    Step("revoke", {"lease": Nth(1)}),
    Step("range", {**READ, "revision": 0}),
]
COMPACTED = [
    *[Step("put", {"put": DrawnPut(name, b"v", Nth(0))}) for name in (b"a", b"b", b"b", b"c")],
    Step("delete", {"keys": DrawnRange(b"a", None)}),
    Step("compact", {"revision": Ago(2)}),
    *[Step("range", {**READ, "revision": Ago(back)}) for back in (3, 2, 1, 0)],
]


class Side:
    """One of both, at the same step of the same sequence."""

    def __init__(self, etcd: Etcd, stream: WatchStream, prefix: bytes, start: int) -> None:
        self.etcd = etcd
        self.stream = stream
        self.prefix = prefix
        self.start = start
        self.newest = start
        self.leases: list[int] = []
        self.living: list[int] = []
        self.heard: dict[int, list[object]] = defaultdict(list)
        self.watchers = 0
        # A key of each watcher that was opened in the past, and perhaps is not at the head yet.
        self.behind: set[bytes] = set()

    async def ask(self, step: Step) -> object:
        """Do a step; return what came of it, in words that both sides have."""
        await trio.lowlevel.checkpoint()
        method: Callable[..., Awaitable[object]] = getattr(self, f"do_{step.method}")
        try:
            answer = await method(**step.arguments)
        except EtcdError as error:
            # What and where is left out.
            return type(error).__name__, str(error).partition(": ")[2]
        return self.plain(answer)

    def plain(self, value: object) -> object:
        """A value with revisions and leases as both sides count them."""
        match value:
            case Lease():
                return "lease", self.leases.index(value.id), value.ttl
            case KeyValue():
                previous = value.prev_kv if isinstance(value, Event) else None
                return (
                    value.key.removeprefix(self.prefix),
                    value.value,
                    self.relative(value.create_revision),
                    self.relative(value.mod_revision),
                    value.version,
                    self.leases.index(value.lease) + 1 if value.lease else 0,
                    self.plain(previous),
                )
            case RangeResult():
                seen = [self.plain(kv) for kv in value.kvs]
                revision = self.relative(value.revision)
                return seen, value.more, value.total, revision, bool(value.cluster_id)
            case tuple() if hasattr(value, "revision"):
                self.newest = max(self.newest, value.revision)
                plain = [self.plain(each) for each in value[:-1]]
                return type(value).__name__, plain, self.relative(value.revision)
            case list():
                return [self.plain(each) for each in value]
            case _:
                return value

    def relative(self, revision: int) -> int:
        # 0 is no revision. What the store had before the sequence is none of both sides.
        return revision and revision - self.start + 1

    def revision(self, ago: Ago | int) -> int:
        return ago if isinstance(ago, int) else max(self.start, self.newest - ago.back)

    def keys(self, drawn: DrawnRange) -> KeyRange:
        start = self.prefix + drawn.start
        if drawn.end is None:
            return KeyRange.of_key(start)
        return KeyRange(start, self.prefix + drawn.end)

    def lease(self, nth: Nth) -> int:
        if nth.number <= 0:
            return -nth.number * 12345
        return self.living[-1 - (nth.number - 1) % len(self.living)] if self.living else 0

    def put(self, drawn: DrawnPut) -> Put:
        return Put(self.prefix + drawn.name, drawn.value, self.lease(drawn.lease))

    def txn(self, drawn: Drawn) -> Txn:
        return Txn(
            [self.compare(each) for each in drawn.compare],
            [self.operation(each) for each in drawn.success],
            [self.operation(each) for each in drawn.failure],
        )

    def operation(self, drawn: Any) -> Operation:
        match drawn:
            case DrawnPut():
                return self.put(drawn)
            case Drawn():
                return self.txn(drawn)
            case DrawnRange():
                return Get(self.keys(drawn), limit=2)
            case _:
                return Delete(self.keys(drawn[1]))

    def compare(self, guess: Guess) -> Compare:
        operand: int | bytes = guess.operand
        if guess.target in _REVISIONS:
            operand = self.revision(Ago(guess.operand)) if guess.operand < 3 else 0
        elif guess.target is CompareTarget.VALUE:
            operand = [b"", b"v", b"w", b"x"][guess.operand]
        elif guess.target is CompareTarget.LEASE:
            operand = self.lease(Nth(guess.operand))
        end = self.prefix + b"\xff" if guess.to_end else b""
        return Compare(self.prefix + guess.name, guess.target, guess.result, operand, end)

    async def do_put(self, put: DrawnPut) -> object:
        key, value, lease = self.put(put)
        return await self.etcd.put(key, value, lease=lease)

    async def do_delete(self, keys: DrawnRange) -> object:
        return await self.etcd.delete(self.keys(keys))

    async def do_range(self, keys: DrawnRange, revision: Ago | int, **options: Any) -> object:
        return await self.etcd.range(self.keys(keys), revision=self.revision(revision), **options)

    async def do_txn(self, txn: Drawn) -> object:
        return await self.etcd.txn(self.txn(txn))

    async def do_compact(self, revision: Ago) -> object:
        await self.etcd.compact(self.revision(revision))
        return "compacted"

    async def do_grant(self, ttl: int) -> object:
        lease = await self.etcd.lease_grant(ttl)
        self.leases.append(lease.id)
        self.living.append(lease.id)
        return lease

    async def do_keep_alive(self, lease: Nth) -> object:
        return await self.etcd.lease_keep_alive(self.lease(lease) or 54321)

    async def do_revoke(self, lease: Nth) -> object:
        lease_id = self.lease(lease) or 54321
        await self.etcd.lease_revoke(lease_id)
        self.living.remove(lease_id)
        self.newest = (await self.etcd.range(KeyRange.of_key(self.prefix))).revision
        return None

    async def do_watch(
        self, keys: DrawnRange, since: Ago | int, prev_kv: bool, again: bool
    ) -> object:
        if not (again and self.watchers):
            self.watchers += 1
        since = self.revision(since)
        if since:
            self.behind.add(self.keys(keys).start)
        self.stream.create(WatchCreate(self.watchers, self.keys(keys), since, prev_kv))
        return None

    async def do_unwatch(self, index: int) -> object:
        if self.watchers:
            self.stream.cancel(1 + index % self.watchers)
        return None

    async def touch(self) -> None:
        """Put a key of each watcher that is perhaps not at the head."""
        for key in sorted(self.behind):
            self.newest = (await self.etcd.put(key, b"now")).revision
        self.behind.clear()

    async def hear(self, enough: Callable[[], bool]) -> None:
        """Take in what the stream has, until it is enough."""
        while not enough():
            for response in await self.stream.receive():
                heard = self.heard[response.watch_id]
                if response.created or response.canceled:
                    flags = response.created, response.canceled, response.cancel_reason
                    heard.append((*flags, self.relative(response.compact_revision)))
                elif response.watch_id == -1:
                    heard.append("progress")
                heard += map(self.plain, response.events)


async def compare(real: Side, memory: Side, sequence: list[Step]) -> None:
    """Ask both the same; fail where they differ."""

    async def agree_on_events() -> None:
        memory.stream.request_progress()
        await memory.hear(lambda: memory.heard[-1][-1:] == ["progress"])
        memory.heard[-1].pop()
        counts = {watch_id: len(heard) for watch_id, heard in memory.heard.items()}
        with trio.move_on_after(5):
            await real.hear(lambda: all(len(real.heard[i]) >= n for i, n in counts.items()))
        assert dict(real.heard) == dict(memory.heard)

    for step in sequence:
        if step.method in {"compact", "unwatch"}:
            # etcd brings watchers to the head now and then. One that is there has an event of now.
            for side in (real, memory):
                await side.touch()
            await agree_on_events()
        expected, given = await real.ask(step), await memory.ask(step)
        assert given == expected, (step, sequence)
        assert memory.newest - memory.start == real.newest - real.start
        if step.method in {"watch", "unwatch"}:
            await agree_on_events()
    await agree_on_events()


async def run(endpoint: str, prefix: bytes, sequence: list[Step]) -> None:
    """One sequence on a part of the real etcd's keys that is new, and in a new memory."""
    # The clocks differ in nothing that a sequence asks for.
    client = MemoryStore().client()
    async with open_etcd(endpoint) as etcd, etcd.watch() as real, client.watch() as memory:
        starts = [(await each.put(prefix, b"")).revision for each in (etcd, client)]
        await compare(
            Side(etcd, real, prefix, starts[0]), Side(client, memory, prefix, starts[1]), sequence
        )


def agree(own_etcd: OwnEtcd, *, examples: int, longest: int, derandomize: bool) -> None:
    count = 0

    @hypothesis.settings(
        max_examples=examples,
        derandomize=derandomize,
        database=None,
        deadline=None,
        # To shrink what fails takes minutes: a failure prints its steps as they are.
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    @hypothesis.example(LEFT_LEASE)
    @hypothesis.example(COMPACTED)
    @hypothesis.given(st.lists(steps, min_size=longest // 2, max_size=longest))
    def sequences(sequence: list[Step]) -> None:
        nonlocal count
        count += 1
        trio.run(run, own_etcd.endpoint, b"/%d/" % count, sequence)

    sequences()


def test_they_answer_alike(own_etcd: OwnEtcd) -> None:
    """Sequences that are the same every time."""
    agree(own_etcd, examples=10, longest=30, derandomize=True)


@pytest.mark.slow
def test_they_answer_alike_for_longer(own_etcd: OwnEtcd) -> None:
    """Others each time."""
    agree(own_etcd, examples=300, longest=50, derandomize=False)
