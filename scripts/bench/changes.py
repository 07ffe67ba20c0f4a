"""Enqueues and status reports a second, through the client."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Iterable

import trio

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.support import flyte

_ROOT = ActionId("p", "d", "r1", "a0")


async def enqueues(together: int, etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """Children of one parent."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(_ROOT))
        return await _measured(functools.partial(_enqueue, client), together, count)


async def reports(together: int, etcd: Etcd, prefix: bytes, count: int) -> tuple[float, float]:
    """Each of another child, which becomes RUNNING."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(_ROOT))
        await _measured(functools.partial(_enqueue, client), 256, count)
        running = flyte.status(Phase.RUNNING)

        async def report(number: int) -> None:
            await client.put_status(flyte.identifier(_child(number)), 1, running)

        return await _measured(report, together, count)


ENQUEUES = {f"{n} in flight": functools.partial(enqueues, n) for n in (1, 16, 64, 256)}
REPORTS = {f"{n} in flight": functools.partial(reports, n) for n in (1, 16, 64, 256)}


def _child(number: int) -> ActionId:
    return ActionId("p", "d", "r1", f"c{number}")


async def _enqueue(client: ActionsClient, number: int) -> None:
    await client.enqueue(flyte.task(_child(number), "a0"))


async def _measured(
    change: Callable[[int], Awaitable[None]], together: int, count: int
) -> tuple[float, float]:
    left: Iterable[int] = iter(range(count))

    async def worker() -> None:
        for number in left:
            await change(number)

    cpu, clock = time.process_time(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(together):
            nursery.start_soon(worker)
    seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return count / seconds, cpu / count * 1e6
