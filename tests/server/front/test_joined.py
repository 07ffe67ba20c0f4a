"""Reads that are joined: each serves those who asked before it began, and nobody else."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from etcd_actions.server.front.joined import Joined


class Reader:
    """Gives the number of the read, when it may."""

    def __init__(self) -> None:
        self.begun = 0
        self.gates = [trio.Event() for _ in range(10)]
        self.failing: set[int] = set()

    async def read(self) -> int:
        number = self.begun
        self.begun += 1
        await self.gates[number].wait()
        if number in self.failing:
            raise ValueError(number)
        return number


async def test_those_who_wait_share_the_read_that_begins_next() -> None:
    joined, reader, got = Joined[int](), Reader(), dict[str, int]()

    async def ask(name: str) -> None:
        got[name] = await joined.get("k", reader.read)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "first")
        await wait_all_tasks_blocked()
        for name in ("a", "b", "c"):
            nursery.start_soon(ask, name)
        await wait_all_tasks_blocked()
        assert reader.begun == 1
        reader.gates[0].set()
        await wait_all_tasks_blocked()
        assert (reader.begun, got) == (2, {"first": 0})
        # It began before this question.
        nursery.start_soon(ask, "late")
        await wait_all_tasks_blocked()
        for gate in reader.gates:
            gate.set()
    assert got == {"first": 0, "a": 1, "b": 1, "c": 1, "late": 2}
    assert joined.reads == 3


async def test_who_reads_for_others_may_be_cancelled_or_fail() -> None:
    joined, reader, got = Joined[int](), Reader(), list[int]()
    reader.failing = {2}
    failed = []

    scope = trio.CancelScope()

    async def ask_for_a_while() -> None:
        with scope:
            await ask()

    async def ask() -> None:
        try:
            got.append(await joined.get("k", reader.read))
        except ValueError as error:
            failed.append(error.args[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_for_a_while)
        await wait_all_tasks_blocked()
        for _ in range(4):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert reader.begun == 2
        for gate in reader.gates:
            gate.set()
    assert (failed, got) == ([], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="2"):
        await joined.get("k", reader.read)
    assert await joined.get("k", reader.read) == 3
    assert not joined._going
    assert not joined._next
    with trio.move_on_after(0):
        await joined.get("k", trio.sleep_forever)
    assert not joined._going
    assert not joined._next
