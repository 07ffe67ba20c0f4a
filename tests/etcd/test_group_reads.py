"""Group commit: what only reads, and what a group costs to form."""

from __future__ import annotations

import contextlib
import itertools
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_actions import open_etcd
from etcd_actions.errors import EtcdError, OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    DeleteResult,
    Etcd,
    Get,
    KeyRange,
    KeyValue,
    Operation,
    OperationResult,
    Put,
    RangeResult,
    Txn,
    TxnResult,
)
from etcd_actions.etcd.group_commit import GroupCommit, open_group_commit
from etcd_actions.etcd.group_members import Touched, Write
from tests.etcd.test_group_commit import Calls, Gate, cas, gated, grouped
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import examples, first_everyday

pytestmark = pytest.mark.memory

EQUAL = CompareResult.EQUAL


def get(key: bytes) -> Get:
    return Get(KeyRange.of_key(key))


def found(outcome: object) -> list[list[bytes]]:
    """The values that each read of a transaction found."""
    assert isinstance(outcome, TxnResult)
    return [
        [kv.value for kv in each.kvs] for each in outcome.responses if type(each) is RangeResult
    ]


async def read_together(etcd: Etcd, *txns: Txn) -> tuple[Calls, Gate]:
    """Do reads that all wait when the next group is formed; two go before."""
    gate, slow = gated(etcd)
    async with open_group_commit(slow) as group_commit, trio.open_nursery() as nursery:
        calls = Calls(nursery, group_commit)
        await calls.start(*(Txn([], [get(b"/no"), get(b"/no%d" % n)]) for n in range(2)))
        await calls.start(*txns)
        gate.open()
    return calls, gate


# --- reads --------------------------------------------------------------------------------


async def test_reads_go_side_by_side_and_equal_ones_once(etcd: Etcd, prefix: bytes) -> None:
    """Not nested, and each gets its own answers, in its own order."""
    one, other = prefix + b"one", prefix + b"other"
    await etcd.put(one, b"1")
    await etcd.put(other, b"2")
    run = Get(KeyRange.of_prefix(prefix))
    calls, gate = await read_together(
        etcd,
        Txn([], [get(one), run]),
        Txn([], [run, get(other)]),
        Txn([], [Get(run.keys, keys_only=True), get(prefix + b"none")]),
    )
    assert gate.sent[2:] == [
        Txn((), [get(one), run, get(other), Get(run.keys, keys_only=True), get(prefix + b"none")])
    ]
    assert found(calls.outcomes[2]) == [[b"1"], [b"1", b"2"]]
    assert found(calls.outcomes[3]) == [[b"1", b"2"], [b"2"]]
    assert found(calls.outcomes[4]) == [[b"", b""], []]


async def test_reads_are_no_proposals(own_etcd: EtcdServer) -> None:
    """Hundreds of them, with and without a compare, write nothing to etcd's log."""
    metric = "etcd_server_proposals_applied_total "

    def proposals() -> float:
        with urllib.request.urlopen(f"http://{own_etcd.endpoint}/metrics") as page:
            lines = page.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(metric)).split()[1])

    async with open_etcd(own_etcd.endpoint) as etcd:
        await etcd.put(b"/k", b"")
        before = await trio.to_thread.run_sync(proposals)
        exists = Compare(b"/k", CompareTarget.VERSION, EQUAL, 1)
        async with open_group_commit(etcd) as group_commit, trio.open_nursery() as nursery:
            for n in range(300):
                nursery.start_soon(
                    group_commit.txn, Txn([], [get(b"/k%d" % n), Get(KeyRange.of_prefix(b"/k"))])
                )
            for n in range(10):
                nursery.start_soon(
                    group_commit.txn, Txn([exists], [get(b"/k%d" % n)], [get(b"/k")])
                )
        assert group_commit.statistics().members == 300
        assert await trio.to_thread.run_sync(proposals) == before
        await etcd.put(b"/k", b"")
        assert await trio.to_thread.run_sync(proposals) == before + 1


async def test_a_read_that_is_alone_is_a_plain_one(etcd: Etcd, prefix: bytes) -> None:
    """A full etcd 3.5.1 refuses any transaction; and it may be asked of another member."""
    key = prefix + b"k"
    await etcd.put(key, b"v")
    gate, slow = gated(etcd)
    gate.open()
    async with open_group_commit(slow) as group_commit:
        result = await group_commit.txn(Txn([], [get(key)]))
    assert found(result) == [[b"v"]]
    assert gate.sent == []


async def test_as_many_reads_as_etcd_takes(etcd: Etcd, prefix: bytes) -> None:
    """Its budget of operations counts each one: 100 that differ, or members, are the most."""
    txns = [Txn([], [get(prefix + b"%d.%d" % (n, each)) for each in range(40)]) for n in range(4)]
    many = Txn([], [get(prefix + b"%d" % n) for n in range(110)])
    calls, gate = await read_together(etcd, *txns, many, *[txns[0]] * 150)
    assert all(calls.succeeded())
    assert [len(sent.success) for sent in gate.sent] == [2, 2, 110, 80, 80, 40, 40]


async def test_large_values_are_read_by_few(etcd: Etcd, prefix: bytes) -> None:
    """An answer is not to hold up all others: those before tell how large the next will be."""
    for n in range(20):
        await etcd.put(prefix + b"%d" % n, b"x" * 1_000_000)
    large = [Txn([], [get(prefix + b"%d" % n), get(prefix)]) for n in range(20)]
    small = [Txn([], [get(prefix + b"s%d" % n), get(prefix)]) for n in range(200)]
    gate, slow = gated(etcd)
    gate.open()
    async with open_group_commit(slow) as group_commit:
        for txns in (large, large, small, small):
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                for txn in txns:
                    nursery.start_soon(group_commit.txn, txn)
    reads = [len(sent.success) for sent in gate.sent]
    assert reads[0] == 21
    assert max(reads[1:5]) <= 9
    assert max(reads[-2:]) > 90


async def test_reads_that_time_out_are_fewer_the_next_time(etcd: Etcd, prefix: bytes) -> None:
    gate, slow = gated(etcd)
    gate.open()

    async def read_all(group_commit: GroupCommit) -> None:
        async def one(n: int) -> None:
            with contextlib.suppress(Unavailable):
                await group_commit.txn(Txn([], [get(prefix + b"%d" % n)]))

        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            for n in range(80):
                nursery.start_soon(one, n)

    async with open_group_commit(slow) as group_commit:
        gate.error = OutcomeUnknown("it took too long")
        await read_all(group_commit)
        gate.error = None
        await read_all(group_commit)
    assert [len(sent.success) for sent in gate.sent] == [80, 40, 40]


async def test_a_lost_answer_to_reads_leaves_nothing_open(etcd: Etcd, prefix: bytes) -> None:
    """Nothing was to be written: etcd was just not reached."""
    gate, slow = gated(etcd)
    gate.error = OutcomeUnknown("lost")
    gate.open()
    async with open_group_commit(slow) as group_commit:
        with pytest.raises(Unavailable, match="lost") as raised:
            await group_commit.txn(Txn([], [get(prefix + b"a"), get(prefix + b"b")]))
    assert type(raised.value) is Unavailable


async def test_an_error_of_one_read_is_told_to_it_alone(etcd: Etcd, prefix: bytes) -> None:
    """One that cannot be encoded: the others are done."""
    await etcd.put(prefix + b"k", b"v")
    good = [Txn([], [get(prefix + b"k"), get(prefix + b"%d" % n)]) for n in range(7)]
    odd: Any = Txn([], [Get(KeyRange("text", "texu")), get(b"k")])  # type: ignore[arg-type]
    calls, _ = await read_together(etcd, *good[:3], odd, *good[3:])
    assert isinstance(calls.outcomes[5], EtcdError)
    others = [calls.outcomes[number] for number in (2, 3, 4, 6, 7, 8, 9)]
    assert [found(each) for each in others] == [[[b"v"], []]] * 7


async def test_a_write_does_not_wait_for_reads(etcd: Etcd, prefix: bytes) -> None:
    """Though it writes what they read."""
    key = prefix + b"k"
    _, gate = await grouped(
        etcd, prefix, cas(key, 0, b"1"), Txn([], [get(key), get(prefix)]), cas(prefix, 0, b"")
    )
    nested = [txn for txn in gate.sent if any(type(each) is Txn for each in txn.success)]
    assert [len(txn.success) for txn in nested] == [2]


# --- the same as one after the other ------------------------------------------------------

KEYS = [b"a", b"b", b"b\0", b"c"]
keys = st.sampled_from(KEYS)
values = st.sampled_from([b"1", b"2"])
ranges = keys.map(KeyRange.of_key) | st.sampled_from(
    [KeyRange(b"a", b"b"), KeyRange(b"b", b"c"), KeyRange(b"a", b"d")]
)
compares = st.builds(
    lambda keys, one, version: Compare(
        keys.start, CompareTarget.VERSION, EQUAL, version, b"" if one else keys.end
    ),
    ranges,
    st.booleans(),
    st.integers(0, 2),
)
reads = ranges.map(Get)
operations: st.SearchStrategy[Operation] = st.deferred(
    lambda: (
        st.builds(Put, keys, values, st.just(0))
        | reads
        | st.builds(Delete, ranges)
        | st.builds(Txn, st.lists(compares, max_size=1), branches, branches)
    )
)
branches: st.SearchStrategy[list[Operation]] = st.lists(operations, max_size=2)
txns = (
    st.builds(Txn, st.lists(compares, max_size=2), branches, branches)
    | st.lists(reads, min_size=1, max_size=3).map(lambda gets: Txn([], gets))
    | st.builds(
        lambda key, version, value: Txn(
            [Compare(key, CompareTarget.VERSION, EQUAL, version)], [Put(key, value)], [get(key)]
        ),
        keys,
        st.integers(0, 2),
        values,
    )
)


def under(prefix: bytes, txn: Txn) -> Txn:
    """The same transaction with all its keys below a prefix."""

    def operation(each: Operation) -> Operation:
        match each:
            case Put(key, value, lease):
                return Put(prefix + key, value, lease)
            case Get(keys):
                return each._replace(keys=KeyRange(prefix + keys.start, prefix + keys.end))
            case Delete(keys):
                return Delete(KeyRange(prefix + keys.start, prefix + keys.end))
            case Txn():
                return under(prefix, each)

    return Txn(
        [
            each._replace(
                key=prefix + each.key, range_end=each.range_end and prefix + each.range_end
            )
            for each in txn.compare
        ],
        [operation(each) for each in txn.success],
        [operation(each) for each in txn.failure],
    )


def told(outcome: TxnResult | Exception, prefix: bytes) -> object:
    """What an outcome says, without revisions, which a group shares."""
    if isinstance(outcome, Exception):
        return type(outcome)

    def response(each: OperationResult) -> object:
        match each:
            case RangeResult():
                return [_kv(kv, prefix) for kv in each.kvs], each.more, each.total
            case DeleteResult():
                return each.deleted
            case TxnResult():
                return told(each, prefix)
            case _:
                return type(each)

    return outcome.succeeded, [response(each) for each in outcome.responses]


def _kv(kv: KeyValue, prefix: bytes) -> tuple[bytes, bytes, int]:
    return kv.key.removeprefix(prefix), kv.value, kv.version


_numbers = itertools.count()


@settings(max_examples=examples(40))
@given(seed=st.lists(keys, max_size=4), members=st.lists(txns, min_size=1, max_size=7))
def test_groups_give_what_their_members_would_one_after_the_other(
    shared_etcd: EtcdServer, seed: list[bytes], members: list[Txn]
) -> None:
    """Of any transactions: each answer, and what is there at the end."""

    async def main() -> None:
        number = next(_numbers)
        together, single = (b"/groups/%d/%s/" % (number, side) for side in (b"t", b"s"))
        async with open_etcd(shared_etcd.endpoint) as etcd:
            for key in seed:
                await etcd.put(together + key, b"0")
                await etcd.put(single + key, b"0")
            calls, _ = await grouped(
                etcd, b"/groups/%d/" % number, *(under(together, txn) for txn in members)
            )
            # Those of one group meet nowhere, so any order of them will do.
            for at in [at - 2 for at in calls.outcomes if at >= 2]:
                outcome: TxnResult | Exception
                try:
                    outcome = await etcd.txn(under(single, members[at]))
                except EtcdError as error:
                    outcome = error
                assert told(calls.outcomes[at + 2], together) == told(outcome, single), members[at]
            left = [await etcd.range(KeyRange.of_prefix(side)) for side in (together, single)]
            one, other = (
                [_kv(kv, side) for kv in each.kvs]
                for each, side in zip(left, (together, single), strict=True)
            )
            assert one == other

    trio.run(main)


# --- what a group costs to form -----------------------------------------------------------


class Counted(bytes):
    """A key that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: bytes) -> bool:
        Counted.compared += 1
        return bytes.__lt__(self, other)

    def __gt__(self, other: bytes) -> bool:
        Counted.compared += 1
        return bytes.__gt__(self, other)

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return bytes.__eq__(self, other)

    __hash__ = bytes.__hash__


def child(number: int) -> Txn:
    """What creates an action: of a run of its own, all below one parent."""
    key = Counted(b"/k/%06d" % (number * 7919 % 1_000_003))
    aborts = KeyRange(Counted(b"/a/%06d/" % number), Counted(b"/a/%06d0" % number))
    parent = Counted(b"/parent")
    return Txn(
        [
            Compare(key, CompareTarget.MOD_REVISION, EQUAL, 0),
            Compare(aborts.start, CompareTarget.MOD_REVISION, CompareResult.LESS, 1, aborts.end),
            Compare(parent, CompareTarget.CREATE_REVISION, EQUAL, 5),
        ],
        [Put(key, b"")],
        [Get(aborts)],
    )


def purge(number: int) -> Txn:
    """What deletes a range and looks at one."""
    doomed = KeyRange(Counted(b"/d/%06d/" % number), Counted(b"/d/%06d0" % number))
    return Txn([], [Delete(doomed), Put(Counted(b"/p/%06d" % number), b"")])


def swap(number: int) -> Txn:
    key = Counted(b"/s/%06d" % number)
    return Txn([Compare(key, CompareTarget.MOD_REVISION, EQUAL, 1)], [Put(key, b"")])


def comparisons(make: Callable[[int], Txn], members: int) -> int:
    touched = Touched()
    writes = [make(number) for number in range(members)]
    Counted.compared = 0

    async def main() -> None:
        assert all(touched.add(Write(txn)) for txn in writes)

    trio.run(main)
    return Counted.compared


@pytest.mark.parametrize("make", first_everyday([child, purge, swap]))
def test_the_check_of_a_group_is_near_linear(make: Callable[[int], Txn]) -> None:
    """Eight times the members need little more than eight times the comparisons."""
    few, many = comparisons(make, 250), comparisons(make, 2000)
    assert few > 0
    assert many / few < 8 * 1.5
