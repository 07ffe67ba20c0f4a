"""Shared reads: each serves the requests that came before it started, and no others."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from etcd_actions.server.front.shared_reads import SharedReads

pytestmark = pytest.mark.memory(jumps=False)


class Reader:
    """Returns the number of the read, when its gate opens."""

    def __init__(self) -> None:
        self.started = 0
        self.gates = [trio.Event() for _ in range(10)]
        self.failing: set[int] = set()

    async def read(self) -> int:
        number = self.started
        self.started += 1
        await self.gates[number].wait()
        if number in self.failing:
            raise ValueError(number)
        return number


async def test_waiting_requests_share_the_next_read() -> None:
    shared, reader, got = SharedReads[int](), Reader(), dict[str, int]()

    async def request(name: str) -> None:
        got[name] = await shared.get("k", reader.read)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, "first")
        await wait_all_tasks_blocked()
        for name in ("a", "b", "c"):
            nursery.start_soon(request, name)
        await wait_all_tasks_blocked()
        assert reader.started == 1
        reader.gates[0].set()
        await wait_all_tasks_blocked()
        assert (reader.started, got) == (2, {"first": 0})
        # Read 1 started before this request.
        nursery.start_soon(request, "late")
        await wait_all_tasks_blocked()
        for gate in reader.gates:
            gate.set()
    assert got == {"first": 0, "a": 1, "b": 1, "c": 1, "late": 2}
    assert shared.reads == 3


async def test_a_read_for_others_may_be_cancelled_or_fail() -> None:
    shared, reader, got = SharedReads[int](), Reader(), list[int]()
    reader.failing = {2}
    failed = []

    scope = trio.CancelScope()

    async def request_for_a_while() -> None:
        with scope:
            await request()

    async def request() -> None:
        try:
            got.append(await shared.get("k", reader.read))
        except ValueError as error:
            failed.append(error.args[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request_for_a_while)
        await wait_all_tasks_blocked()
        for _ in range(4):
            nursery.start_soon(request)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert reader.started == 2
        for gate in reader.gates:
            gate.set()
    assert (failed, got) == ([], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="2"):
        await shared.get("k", reader.read)
    assert await shared.get("k", reader.read) == 3
    assert not shared._shared
    with trio.move_on_after(0):
        await shared.get("k", trio.sleep_forever)
    assert not shared._shared
