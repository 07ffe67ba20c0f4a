"""Order and count of the writes, with answers that get lost and another writer at work."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from etcd_actions.app.stop import Stop
from etcd_actions.change_history.history import HistoryEvent
from etcd_actions.cli.commands.replay import _PATIENCE, Replayer
from etcd_actions.errors import OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, RangeResult, Txn, TxnResult
from tests.cli.history import changes_since
from tests.support.everyday import first_everyday


@dataclass
class Faulty:
    """An etcd whose transactions go wrong as planned, one plan a call; None is no fault."""

    etcd: Etcd
    plans: list[Callable[[Txn], Awaitable[None]] | None]
    calls: int = field(default=0)

    async def range(self, keys: KeyRange, **options: Any) -> RangeResult:
        return await self.etcd.range(keys, **options)

    async def txn(self, txn: Txn) -> TxnResult:
        self.calls += 1
        plan = self.plans.pop(0) if self.plans else None
        if plan is not None:
            await plan(txn)
        return await self.etcd.txn(txn)


class World:
    """An etcd, a key and the faults that can befall a write to it."""

    def __init__(self, etcd: Etcd, key: bytes) -> None:
        self.etcd = etcd
        self.key = key

    async def refused(self, _txn: Txn) -> None:
        raise Unavailable("not sent")

    async def lost_before(self, _txn: Txn) -> None:
        raise OutcomeUnknown("not applied")

    async def lost_after(self, txn: Txn) -> None:
        await self.etcd.txn(txn)
        raise OutcomeUnknown("applied")

    async def lost_after_and_marked(self, txn: Txn) -> None:
        await self.etcd.txn(txn)
        await self.etcd.put(self.key, b"mark")
        raise OutcomeUnknown("applied")

    async def marked_and_lost_before(self, _txn: Txn) -> None:
        await self.etcd.put(self.key, b"mark")
        raise OutcomeUnknown("not applied")

    async def marked(self, _txn: Txn) -> None:
        await self.etcd.put(self.key, b"mark")


@pytest.fixture
def world(etcd: Etcd, prefix: bytes) -> World:
    return World(etcd, prefix + b"flyte/x")


async def replayed(
    world: World, plans: Sequence[str], values: Sequence[bytes | None]
) -> tuple[Replayer, list[bytes | None]]:
    """Write the values with the faults, and read back all that happened to the key."""
    start = (await world.etcd.range(KeyRange.of_key(world.key))).revision
    faulty = Faulty(world.etcd, [getattr(world, plan) if plan else None for plan in plans])
    replayer = Replayer(faulty, Stop())  # type: ignore[arg-type]
    await replayer.start(world.key)
    for value in values:
        await replayer.write(HistoryEvent(world.key, value))
    changes = await changes_since(world.etcd, KeyRange.of_key(world.key), start)
    return replayer, [None if change.is_delete else change.value for change in changes]


VALUES = (b"1", b"2", b"2", None, b"3")


@pytest.mark.parametrize(
    ("plans", "marks_after"),
    first_everyday(
        [
            ([], []),
            (["refused", "refused"], []),
            (["lost_before"], []),
            (["lost_after"], []),
            (["lost_after", "refused", "lost_before"], []),
            (["", "lost_after"], []),
            (["", "", "lost_after"], []),
            (["", "", "lost_before"], []),
            (["", "", "", "lost_after"], []),
            (["", "", "", "lost_before"], []),
            (["", "", "", "", "lost_after"], []),
            (["marked"], [0]),
            (["lost_after_and_marked"], [1]),
            (["", "lost_after_and_marked"], [2]),
            (["", "", "lost_after_and_marked"], [3]),
            (["", "", "marked_and_lost_before"], [2]),
            (["", "", "marked_and_lost_before", "lost_after"], [2]),
            (["", "", "", "marked"], [3]),
            (["", "", "", "marked_and_lost_before"], [3]),
        ],
        7,
    ),
)
async def test_each_change_once_and_in_order(
    world: World, plans: list[str], marks_after: list[int]
) -> None:
    replayer, happened = await replayed(world, plans, VALUES)
    wanted: list[bytes | None] = list(VALUES)
    for index in marks_after:
        wanted.insert(index, b"mark")
    assert happened == wanted
    assert (replayer.puts, replayer.deletes) == (4, 1)


async def test_key_that_was_there_before(world: World) -> None:
    await world.etcd.put(world.key, b"1")
    _, happened = await replayed(world, ["lost_before", "lost_after"], (b"1", b"1"))
    assert happened == [b"1", b"1"]


async def test_deleting_nothing_is_no_change(world: World) -> None:
    replayer, happened = await replayed(world, [], (None,))
    assert happened == []
    assert replayer.deletes == 1


async def test_patience_ends(world: World) -> None:
    async def away(_txn: Txn) -> None:
        raise Unavailable("away")

    replayer = Replayer(Faulty(world.etcd, [away] * 9), Stop(), patience=0)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        await replayer.write(HistoryEvent(world.key, b"1"))


async def test_end_is_not_put_off_by_an_outage(world: World) -> None:
    stop = Stop()

    async def away(_txn: Txn) -> None:
        stop.request()
        raise Unavailable("away")

    faulty = Faulty(world.etcd, [away])
    with trio.fail_after(_PATIENCE / 2), pytest.raises(Unavailable):
        await Replayer(faulty, stop).write(HistoryEvent(world.key, b"1"))  # type: ignore[arg-type]
    assert faulty.calls == 1
