"""All orders in which the calls of some processes can reach etcd, one after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from etcd_actions.errors import EtcdError, FailedPrecondition
from etcd_actions.etcd.api import Etcd


class Gate:
    """Where one process waits before each of its calls."""

    def __init__(self, parked: Callable[[], None]) -> None:
        self._parked = parked
        self._turn: trio.Event | None = None
        self.ended = False

    @property
    def is_parked(self) -> bool:
        return self._turn is not None

    async def wait(self) -> None:
        self._turn = trio.Event()
        self._parked()
        await self._turn.wait()

    def open(self) -> None:
        assert self._turn is not None
        turn, self._turn = self._turn, None
        turn.set()


class GatedEtcd:
    """A connection whose calls wait at a gate."""

    def __init__(self, etcd: Etcd, gate: Gate) -> None:
        self._etcd = etcd
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._etcd, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._gate.wait()
            return await method(*args, **kwargs)

        return call


Process = Callable[[Gate], Awaitable[None]]


async def run_in_order(
    processes: Sequence[Process],
    order: Sequence[int],
    after_each: Callable[[], Awaitable[None]],
) -> list[int]:
    """Run processes; `order` chooses among those that wait, then always the first one.

    Returns the number of choices that there were at each call.
    """
    choices: list[int] = []
    changed = trio.Event()

    def parked() -> None:
        changed.set()

    gates = [Gate(parked) for _ in processes]

    async def run(process: Process, gate: Gate) -> None:
        try:
            await process(gate)
        except (EtcdError, FailedPrecondition):
            pass
        finally:
            gate.ended = True
            changed.set()

    async with trio.open_nursery() as nursery:
        for process, gate in zip(processes, gates, strict=True):
            nursery.start_soon(run, process, gate)
        while True:
            while not all(gate.is_parked or gate.ended for gate in gates):
                await changed.wait()
                changed = trio.Event()
            await after_each()
            waiting = [gate for gate in gates if not gate.ended]
            if not waiting:
                return choices
            at = len(choices)
            choices.append(len(waiting))
            waiting[order[at] if at < len(order) else 0].open()


def next_order(order: Sequence[int], choices: Sequence[int]) -> list[int] | None:
    """The order after one, of all orders; None after the last."""
    taken = [*order, *[0] * (len(choices) - len(order))][: len(choices)]
    while taken:
        last = taken.pop()
        if last + 1 < choices[len(taken)]:
            return [*taken, last + 1]
    return None
