"""Group commit on a real etcd: many in one transaction, each succeeding or failing by itself."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions import open_etcd
from etcd_actions.errors import (
    EtcdError,
    InvalidRequest,
    LeaseNotFound,
    NoSpace,
    OutcomeUnknown,
    Unavailable,
)
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Etcd,
    Get,
    KeyRange,
    Operation,
    Put,
    RangeResult,
    Txn,
    TxnResult,
)
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.etcd.group_commit import GroupCommit, open_group_commit
from etcd_actions.etcd.group_members import reads_of
from etcd_actions.testing import EtcdFactory
from tests.support.endings import write_for_ever
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.memory

EQUAL = CompareResult.EQUAL


class Gate:
    """Passes transactions on to etcd once it is open, one after the other in their order.

    Attributes:
        sent: The transactions, in the order in which they came.
        error: What is raised instead of an answer.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._open = trio.Event()
        self._turn = trio.Lock()
        self.sent: list[Txn] = []
        self.error: EtcdError | None = None

    def open(self) -> None:
        self._open.set()

    async def txn(self, txn: Txn) -> TxnResult:
        self.sent.append(txn)
        async with self._turn:
            await self._open.wait()
            if self.error is not None:
                raise self.error
            return await self._etcd.txn(txn)

    async def range(
        self, keys: KeyRange, *, limit: int = 0, keys_only: bool = False
    ) -> RangeResult:
        async with self._turn:
            await self._open.wait()
            return await self._etcd.range(keys, limit=limit, keys_only=keys_only)


def gated(etcd: Etcd) -> tuple[Gate, Etcd]:
    gate = Gate(etcd)
    return gate, cast(Etcd, gate)


class Calls:
    """Transactions under way, with what became of each."""

    def __init__(self, nursery: trio.Nursery, group_commit: GroupCommit) -> None:
        self._nursery = nursery
        self._group_commit = group_commit
        self.scopes: list[trio.CancelScope] = []
        self.outcomes: dict[int, TxnResult | Exception] = {}

    async def start(self, *txns: Txn) -> None:
        """Ask for transactions in this order, and return once all wait."""
        for txn in txns:
            scope = trio.CancelScope()
            self._nursery.start_soon(self._call, len(self.scopes), txn, scope)
            self.scopes.append(scope)
            await trio.testing.wait_all_tasks_blocked()

    async def _call(self, number: int, txn: Txn, scope: trio.CancelScope) -> None:
        with scope:
            try:
                self.outcomes[number] = await self._group_commit.txn(txn)
            except Exception as error:
                self.outcomes[number] = error

    def succeeded(self) -> list[bool]:
        results = [self.outcomes[number] for number in range(len(self.scopes))]
        return [isinstance(result, TxnResult) and result.succeeded for result in results]


def cas(key: bytes, seen: int, value: bytes, *, lease: int = 0) -> Txn:
    compare = Compare(key, CompareTarget.MOD_REVISION, EQUAL, seen)
    return Txn([compare], [Put(key, value, lease)], [Get(KeyRange.of_key(key))])


def absent(keys: KeyRange) -> Compare:
    return Compare(keys.start, CompareTarget.CREATE_REVISION, EQUAL, 0, keys.end)


async def fill(calls: Calls, prefix: bytes) -> None:
    """Put both requests that may be in flight on their way, so that what comes next waits."""
    await calls.start(*(Txn([], [Put(prefix + b"filler%d" % n, b"")]) for n in range(2)))


async def grouped(etcd: Etcd, prefix: bytes, *txns: Txn) -> tuple[Calls, Gate]:
    """Do transactions that all wait when the next group is formed; two fillers go before."""
    gate, slow = gated(etcd)
    async with open_group_commit(slow) as group_commit, trio.open_nursery() as nursery:
        calls = Calls(nursery, group_commit)
        await fill(calls, prefix)
        await calls.start(*txns)
        gate.open()
    return calls, gate


async def values(etcd: Etcd, prefix: bytes) -> dict[bytes, bytes]:
    found = await etcd.range(KeyRange.of_prefix(prefix))
    return {kv.key.removeprefix(prefix): kv.value for kv in found.kvs}


def sizes(gate: Gate) -> list[int]:
    """The number of members of each request."""
    nested = [sum(isinstance(each, Txn) for each in txn.success) for txn in gate.sent]
    return [count or 1 for count in nested]


# --- together, each by itself -------------------------------------------------------------


async def test_each_succeeds_or_fails_by_itself(
    shared_etcd: EtcdServer, transport: TransportName, prefix: bytes
) -> None:
    """One request, and each member's answer is that of a transaction of its own."""
    async with open_etcd(shared_etcd.endpoint, transport=transport) as etcd:
        keys = [prefix + b"k%d" % n for n in range(10)]
        revisions = [(await etcd.put(key, b"old")).revision for key in keys]
        txns = [
            cas(key, revision - number % 2, b"new")
            for number, (key, revision) in enumerate(zip(keys, revisions, strict=True))
        ]
        calls, gate = await grouped(etcd, prefix, *txns)
        assert sizes(gate) == [1, 1, 10]
        assert calls.succeeded() == [True, True, *[True, False] * 5]
        for number, key in enumerate(keys):
            result = calls.outcomes[number + 2]
            assert isinstance(result, TxnResult)
            (now,) = (await etcd.range(KeyRange.of_key(key))).kvs
            assert now.value == (b"old" if number % 2 else b"new")
            if number % 2:
                (found,) = result.responses
                assert isinstance(found, RangeResult)
                assert found.kvs == [now]
            else:
                assert result.revision == now.mod_revision


async def test_all_compares_of_a_group_see_the_state_before_it(etcd: Etcd, prefix: bytes) -> None:
    """Why members may not meet: an abort of a parent and an enqueue below it both succeed."""
    parent, child = prefix + b"parent", prefix + b"child"
    seen = (await etcd.put(parent, b"running")).revision
    unchanged = Compare(parent, CompareTarget.MOD_REVISION, EQUAL, seen)
    abort = Txn([unchanged], [Put(parent, b"aborted")])
    enqueue = Txn([unchanged, absent(KeyRange.of_key(child))], [Put(child, b"queued")])
    raw = await etcd.txn(Txn([], [abort, enqueue]))
    assert [each.succeeded for each in raw.responses if isinstance(each, TxnResult)] == [True, True]

    await etcd.delete(KeyRange.of_prefix(prefix))
    seen = (await etcd.put(parent, b"running")).revision
    unchanged = unchanged._replace(operand=seen)
    abort = abort._replace(compare=[unchanged])
    enqueue = enqueue._replace(compare=[unchanged, absent(KeyRange.of_key(child))])
    calls, gate = await grouped(etcd, prefix, abort, enqueue)
    assert calls.succeeded() == [True, True, True, False]
    assert sizes(gate) == [1, 1, 1, 1]
    assert child.removeprefix(prefix) not in await values(etcd, prefix)


async def test_a_compare_of_a_range_meets_what_is_written_into_it(
    etcd: Etcd, prefix: bytes
) -> None:
    """An enqueue that asks for no abort marker in its run, and the marker."""
    markers = KeyRange.of_prefix(prefix + b"aborts/")
    mark = Txn([], [Put(markers.start + b"r-a1", b"")])
    enqueue = Txn([absent(markers)], [Put(prefix + b"child", b"")])
    calls, gate = await grouped(etcd, prefix, mark, enqueue)
    assert calls.succeeded() == [True, True, True, False]
    assert sizes(gate) == [1, 1, 1, 1]


async def test_what_meets_waits_for_the_next_group_only(etcd: Etcd, prefix: bytes) -> None:
    """Others pass it by, and it is first in the next."""
    hot = prefix + b"hot"
    seen = (await etcd.put(hot, b"0")).revision
    others = [Txn([], [Put(prefix + b"k%d" % n, b"")]) for n in range(3)]
    race = [cas(hot, seen, b"%d" % n) for n in range(3)]
    calls, gate = await grouped(etcd, prefix, *race, *others)
    assert sizes(gate) == [1, 1, 4, 1, 1]
    assert calls.succeeded() == [True, True, True, False, False, True, True, True]
    assert (await values(etcd, prefix))[b"hot"] == b"0"


async def test_transfers_between_accounts(etcd: Etcd, prefix: bytes) -> None:
    """Transactions over several keys, all at once, by two group commits: as one by one."""
    accounts = [prefix + b"%d" % n for n in range(6)]
    for account in accounts:
        await etcd.put(account, b"100")

    async def transfer(group_commit: GroupCommit, source: bytes, target: bytes) -> None:
        while True:
            kvs = [
                (await etcd.range(KeyRange.of_key(account))).kvs[0] for account in (source, target)
            ]
            result = await group_commit.txn(
                Txn(
                    [
                        Compare(kv.key, CompareTarget.MOD_REVISION, EQUAL, kv.mod_revision)
                        for kv in kvs
                    ],
                    [
                        Put(source, b"%d" % (int(kvs[0].value) - 1)),
                        Put(target, b"%d" % (int(kvs[1].value) + 2)),
                    ],
                )
            )
            if result.succeeded:
                return

    pairs = list(itertools.permutations(accounts, 2))
    with trio.fail_after(60):
        async with (
            open_group_commit(etcd) as one,
            open_group_commit(etcd) as other,
            trio.open_nursery() as nursery,
        ):
            for number, (source, target) in enumerate(pairs):
                nursery.start_soon(transfer, (one, other)[number % 2], source, target)
    assert sum(map(int, (await values(etcd, prefix)).values())) == 600 + len(pairs)


# --- what meets what ----------------------------------------------------------------------

KEYS = [b"a", b"b", b"b\0", b"c"]
keys = st.sampled_from(KEYS)
ranges = keys.map(KeyRange.of_key) | st.sampled_from(
    [KeyRange(b"a", b"b"), KeyRange(b"b", b"c"), KeyRange(b"a", b"d")]
)
compares = st.builds(
    lambda keys, one: Compare(
        keys.start, CompareTarget.VERSION, EQUAL, 0, b"" if one else keys.end
    ),
    ranges,
    st.booleans(),
)
operations: st.SearchStrategy[Operation] = st.deferred(
    lambda: (
        st.builds(Put, keys, st.just(b""))
        | st.builds(Get, ranges)
        | st.builds(Delete, ranges)
        | txns
    )
)
branches = st.lists(operations, max_size=2)
common = st.builds(
    lambda key, put, get: Txn(
        [Compare(key, CompareTarget.MOD_REVISION, EQUAL, 1)],
        [Put(key, b"") if put else Delete(KeyRange.of_key(key))],
        [Get(KeyRange.of_key(key))] if get else [],
    ),
    keys,
    st.booleans(),
    st.booleans(),
)
txns: st.SearchStrategy[Txn] = common | st.builds(
    Txn, st.lists(compares, max_size=2), branches, branches
)


def touched(txn: Txn) -> tuple[set[bytes], set[bytes]]:
    """The keys that a transaction may write, and may look at."""
    written, seen = set(), set()
    for compare in txn.compare:
        end = compare.range_end or compare.key + b"\0"
        seen |= {key for key in KEYS if compare.key <= key < end}
    for operation in (*txn.success, *txn.failure):
        match operation:
            case Put(key):
                written.add(key)
            case Delete(keys):
                written |= {key for key in KEYS if key in keys}
            case Get(keys):
                seen |= {key for key in KEYS if key in keys}
            case Txn():
                inner = touched(operation)
                written |= inner[0]
                seen |= inner[1]
    return written, seen


@given(st.lists(txns, min_size=1, max_size=6))
def test_no_members_of_a_group_meet(members: list[Txn]) -> None:
    """Of any transactions: nothing that one writes is another's, nobody is forgotten."""
    groups: list[list[Txn]] = []

    class Answering:
        async def txn(self, txn: Txn) -> TxnResult:
            if reads_of(txn) is not None:
                return TxnResult(True, [RangeResult([], False, 0, 1, 1) for _ in txn.success], 1)
            group = [each for each in txn.success if isinstance(each, Txn)]
            is_group = bool(group) and not txn.compare and any(group[0] is each for each in members)
            groups.append(group if is_group else [txn])
            await trio.lowlevel.checkpoint()
            nested: list[Any] = [TxnResult(True, [], 1) for _ in group]
            return TxnResult(True, nested, 1)

        async def range(self, keys: KeyRange, **_: object) -> RangeResult:
            await trio.lowlevel.checkpoint()
            return RangeResult([], False, 0, 1, 1)

    async def main() -> None:
        async with (
            open_group_commit(cast(Etcd, Answering())) as group_commit,
            trio.open_nursery() as nursery,
        ):
            for member in members:
                nursery.start_soon(group_commit.txn, member)

    trio.run(main)
    sent = [member for group in groups for member in group]
    writes = [member for member in members if reads_of(member) is None]
    assert sorted(map(id, sent)) == sorted(map(id, writes))
    for group in groups:
        for one, other in itertools.permutations(group, 2):
            written, _ = touched(one)
            assert all(written.isdisjoint(keys) for keys in touched(other))


# --- limits -------------------------------------------------------------------------------


async def test_limits(etcd: Etcd, prefix: bytes) -> None:
    """As many as etcd takes: in number, in operations of a member, in bytes."""
    wide = [
        Txn([], [Put(prefix + b"w%d.%d" % (n, each), b"") for each in range(28)]) for n in range(2)
    ]
    small = [Txn([], [Put(prefix + b"s%d" % n, b"")]) for n in range(120)]
    large = [Txn([], [Put(prefix + b"l%d" % n, b"x" * 400_000)]) for n in range(4)]
    calls, gate = await grouped(etcd, prefix, *wide, *small, *large)
    assert all(calls.succeeded())
    # 2.6 of the large ones go into one request.
    assert sizes(gate) == [1, 1, 100, 24, 2]


@pytest.mark.parametrize(
    "txn",
    [
        Txn([], [Put(b"/large", b"x" * 1_200_000)]),
        Txn([], [Put(b"/wide%d" % n, b"") for n in range(100)]),
    ],
    ids=["bytes", "operations"],
)
async def test_what_is_too_much_for_a_group_goes_alone(etcd: Etcd, txn: Txn) -> None:
    """At once, while others wait."""
    gate, slow = gated(etcd)
    async with open_group_commit(slow) as group_commit, trio.open_nursery() as nursery:
        calls = Calls(nursery, group_commit)
        await fill(calls, b"/too-much/")
        await calls.start(txn)
        assert gate.sent[2:] == [txn]
        gate.open()
    assert all(calls.succeeded())
    await etcd.delete(KeyRange(b"/large", b"/large0"))


async def test_statistics(etcd: Etcd, prefix: bytes) -> None:
    gate, slow = gated(etcd)
    async with open_group_commit(slow) as group_commit, trio.open_nursery() as nursery:
        calls = Calls(nursery, group_commit)
        await fill(calls, prefix)
        await calls.start(*(Txn([], [Put(prefix + b"%d" % n, b"")]) for n in range(5)))
        before = group_commit.statistics()
        assert (before.members, before.groups, before.waiting) == (0, 0, 5)
        gate.open()
    after = group_commit.statistics()
    assert (after.members, after.groups, after.largest) == (7, 3, 5)
    assert after.sizes == (2, 0, 0, 1, 0, 0, 0, 0)
    assert (after.halved, after.waiting) == (0, 0)


# --- errors -------------------------------------------------------------------------------


async def test_an_error_of_one_is_told_to_it_alone(etcd: Etcd, prefix: bytes) -> None:
    """A lease that is gone, and a request that cannot be encoded: the others are done."""
    txns = [cas(prefix + b"k%02d" % n, 0, b"new") for n in range(30)]
    gone, odd = 3, 17
    txns[gone] = cas(prefix + b"gone", 0, b"new", lease=4711)
    txns[odd] = Txn([], [Put(prefix + b"odd", cast(bytes, "text"))])
    gate, slow = gated(etcd)
    async with open_group_commit(slow) as group_commit, trio.open_nursery() as nursery:
        calls = Calls(nursery, group_commit)
        await fill(calls, prefix)
        await calls.start(*txns)
        gate.open()
    outcomes = [calls.outcomes[number + 2] for number in range(30)]
    assert isinstance(outcomes[gone], LeaseNotFound)
    assert isinstance(outcomes[odd], InvalidRequest)
    assert "expected a bytes-like object" in str(outcomes[odd])
    assert sum(isinstance(each, TxnResult) and each.succeeded for each in outcomes) == 28
    assert len(await values(etcd, prefix + b"k")) == 28
    # Each halving leaves a half to be looked at.
    assert 5 <= group_commit.statistics().halved <= 2 * 5


@pytest.mark.parametrize("error", [Unavailable("away"), OutcomeUnknown("lost"), NoSpace("full")])
async def test_what_is_true_of_all_is_told_to_all(
    etcd: Etcd, prefix: bytes, error: EtcdError
) -> None:
    """To each by an exception of its own; the next group is tried anew."""
    gate, slow = gated(etcd)
    async with open_group_commit(slow) as group_commit, trio.open_nursery() as nursery:
        calls = Calls(nursery, group_commit)
        await fill(calls, prefix)
        await calls.start(*(Txn([], [Put(prefix + b"%d" % n, b"")]) for n in range(5)))
        gate.error = error
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        gate.error = None
        result = await group_commit.txn(Txn([], [Put(prefix + b"later", b"")]))
        assert result.succeeded
    told = [calls.outcomes[number] for number in range(2, 7)]
    assert {type(each) for each in told} == {type(error)}
    assert {str(each) for each in told} == {str(error)}
    assert len({id(each) for each in told}) == 5
    assert sizes(gate) == [1, 1, 5, 1]
    assert await values(etcd, prefix) == {b"later": b""}


async def test_a_full_etcd_is_not_written_to(etcd_factory: EtcdFactory) -> None:
    """etcd does not count nested puts, so a group has one that it counts; deletes go on."""
    full = etcd_factory(flags=["--quota-backend-bytes=1000000"])
    async with open_etcd(full.endpoint) as etcd:
        for number in range(3):
            await etcd.put(b"/old%d" % number, b"")
        with pytest.raises(NoSpace):
            await write_for_ever(etcd, b"/filler", b"x" * 300_000)
        before = await etcd.range(KeyRange.of_prefix(b"/"))
        deletes = [Txn([], [Delete(KeyRange.of_key(b"/old%d" % n))]) for n in range(3)]
        puts = [Txn([], [Put(b"/new%d" % n, b"")]) for n in range(3)]
        gate, slow = gated(etcd)
        async with open_group_commit(slow) as group_commit, trio.open_nursery() as nursery:
            calls = Calls(nursery, group_commit)
            await fill(calls, b"/")
            await calls.start(*puts, *deletes)
            gate.open()
        outcomes = [calls.outcomes[number] for number in range(8)]
        assert all(isinstance(each, NoSpace) for each in outcomes[:5])
        after = await etcd.range(KeyRange.of_prefix(b"/"))
        assert {kv.key for kv in after.kvs} <= {kv.key for kv in before.kvs}
        if full.version >= (3, 5, 2) or full.version < (3, 5):
            # 3.5.1 refuses any transaction then.
            assert calls.succeeded()[5:] == [True] * 3
            assert {kv.key for kv in after.kvs} == {b"/filler"}


# --- cancellation and the end -------------------------------------------------------------


async def test_a_cancelled_one_that_waits_is_not_sent(etcd: Etcd, prefix: bytes) -> None:
    gate, slow = gated(etcd)
    async with open_group_commit(slow) as group_commit, trio.open_nursery() as nursery:
        calls = Calls(nursery, group_commit)
        await fill(calls, prefix)
        await calls.start(*(Txn([], [Put(prefix + b"%d" % n, b"")]) for n in range(3)))
        calls.scopes[3].cancel("the test says so")
        await trio.testing.wait_all_tasks_blocked()
        assert group_commit.statistics().waiting == 2
        gate.open()
    assert sizes(gate) == [1, 1, 2]
    assert 3 not in calls.outcomes
    assert set(await values(etcd, prefix)) == {b"filler0", b"filler1", b"0", b"2"}


async def test_a_cancelled_one_leaves_the_others_of_its_group(etcd: Etcd, prefix: bytes) -> None:
    """It was sent, so it is done too; nobody hears of it."""
    gate, slow = gated(etcd)
    async with open_group_commit(slow) as group_commit, trio.open_nursery() as nursery:
        calls = Calls(nursery, group_commit)
        # Both writers are to be idle before the first comes.
        await trio.testing.wait_all_tasks_blocked()
        together = [Txn([], [Put(prefix + b"%d" % n, b"")]) for n in range(3)]
        for number, txn in enumerate(together):
            scope = trio.CancelScope()
            nursery.start_soon(calls._call, number, txn, scope)
            calls.scopes.append(scope)
        await trio.testing.wait_all_tasks_blocked()
        assert sizes(gate) == [3]
        calls.scopes[1].cancel("the test says so")
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert set(calls.outcomes) == {0, 2}
    assert set(await values(etcd, prefix)) == {b"0", b"1", b"2"}


async def test_leaving_finishes_what_waits(etcd: Etcd, prefix: bytes) -> None:
    """Also that of tasks outside; then it takes nothing more."""
    gate, slow = gated(etcd)
    async with trio.open_nursery() as nursery:
        async with open_group_commit(slow) as group_commit:
            calls = Calls(nursery, group_commit)
            await fill(calls, prefix)
            await calls.start(Txn([], [Put(prefix + b"waits", b"")]))
            gate.open()
        assert b"waits" in await values(etcd, prefix)
    assert all(calls.succeeded())
    with pytest.raises(trio.ClosedResourceError):
        await group_commit.txn(Txn([], []))


async def test_an_exception_gives_up_what_waits(etcd: Etcd, prefix: bytes) -> None:
    """Tasks outside are told, and told apart: what was sent may have been done."""
    _, slow = gated(etcd)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with open_group_commit(slow) as group_commit:
                calls = Calls(nursery, group_commit)
                await fill(calls, prefix)
                await calls.start(*(Txn([], [Put(prefix + b"%d" % n, b"")]) for n in range(2)))
                scope.cancel("the test says so")
                await trio.lowlevel.checkpoint()
    kinds = [type(calls.outcomes[number]) for number in range(4)]
    assert kinds == [OutcomeUnknown, OutcomeUnknown, Unavailable, Unavailable]
    assert await values(etcd, prefix) == {}
