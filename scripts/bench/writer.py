"""Writes with the library, in a separate process; its command line names the work."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass

import trio

from etcd_actions import (
    ActionId,
    ActionsClient,
    Phase,
    WatchingSettings,
    open_actions_client,
    open_etcd,
)
from etcd_actions.codecs import json as stored
from etcd_actions.etcd.api import Compare, CompareResult, CompareTarget, Etcd, KeyValue, Put, Txn
from etcd_actions.model import FINALIZER_RECORD, LABEL_TERMINAL_STATUS_RECORDED
from etcd_actions.pipeline.processor import open_processor
from etcd_actions.run_service import NullRunService
from scripts.bench.channel import Channel, serve
from scripts.bench.results import Figures
from tests.data.captured import PUTS
from tests.support import flyte

PREFIX = b"/bench/taskactions/"
_NAMESPACE = "flyte"
_PUTS_TOGETHER = 100
_FILLING = 256


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work.

    Attributes:
        name: One of :data:`WORKS`.
        target: etcd, as HOST:PORT.
        count: How many things are done.
        together: How many of them at once.
        run: The run that is written to.
        prefix: What keys begin with.
    """

    name: str
    target: str
    count: int
    together: int = 1
    run: str = "r1"
    prefix: str = PREFIX.decode()

    def to_json(self) -> str:
        """For the command line of the process."""
        return json.dumps(asdict(self))


async def enqueue(etcd: Etcd, work: Work) -> Figures:
    """Children of one parent."""
    async with _client(etcd, work) as client:
        await client.enqueue(flyte.task(_root(work)))
        return await _measured(_enqueuing(client, work), work)


async def enqueue_roots(etcd: Etcd, work: Work) -> Figures:
    """Roots of runs of their own."""
    async with _client(etcd, work) as client:

        async def one(number: int) -> None:
            await client.enqueue(flyte.task(ActionId("p", "d", f"{work.run}x{number}", "a0")))

        return await _measured(one, work)


async def status(etcd: Etcd, work: Work) -> Figures:
    """Each of another child, which becomes RUNNING."""
    async with _client(etcd, work) as client:
        await fill(etcd, work)
        running = flyte.status(Phase.RUNNING)

        async def one(number: int) -> None:
            await client.put_status(flyte.identifier(_child(work, number)), 1, running)

        return await _measured(one, work)


async def fill(etcd: Etcd, work: Work) -> Figures:
    """A root and so many children."""
    async with _client(etcd, work) as client, trio.open_nursery() as nursery:
        await client.enqueue(flyte.task(_root(work)))
        left = iter(range(work.count))
        for _ in range(min(_FILLING, max(work.count, 1))):
            nursery.start_soon(_each, left, _enqueuing(client, work))
    return {}


async def abort(etcd: Etcd, work: Work) -> Figures:
    """A root with so many children, all of which end with it."""
    await fill(etcd, work)
    async with _client(etcd, work) as client:
        cpu, clock = time.process_time(), time.perf_counter()
        await client.abort_action(_root(work))
        seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
        actions = (await client.list_run_actions(_root(work).run_id)).actions
    ended = sum(action.phase is Phase.ABORTED for action in actions)
    if ended != work.count + 1:
        raise RuntimeError(f"{ended} of {work.count + 1} are aborted")
    return {"seconds": seconds, "cpu_us": cpu / work.count * 1e6}


async def marks(etcd: Etcd, work: Work) -> Figures:
    """Terminal actions are listed and marked; the run service accepts at once."""
    await put_ended(etcd, work.prefix.encode(), work.count)
    settings = WatchingSettings(elect=False, collect_orphans=False)
    async with open_processor(
        etcd,
        prefix=work.prefix.encode(),
        namespace=_NAMESPACE,
        run_service=NullRunService(),
        settings=settings,
    ) as processor:
        cpu, clock = time.process_time(), time.perf_counter()
        await processor.start_watching()
        while sum(processor.statistics().marks.values()) < work.count:  # noqa: ASYNC110
            await trio.sleep(0.01)
        return _figures(work, time.perf_counter() - clock, time.process_time() - cpu)


async def marks_alone(etcd: Etcd, work: Work) -> Figures:
    """The same write, of objects read before: each in a transaction of its own."""
    ended = await put_ended(etcd, work.prefix.encode(), work.count)

    async def one(number: int) -> None:
        kv = ended[number]
        value = stored.release(kv.value, LABEL_TERMINAL_STATUS_RECORDED, "true", None).value
        unchanged = Compare(
            kv.key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, kv.mod_revision
        )
        done = await etcd.txn(Txn([unchanged], [Put(kv.key, value)]))
        if not done.succeeded:
            raise RuntimeError("a mark met a change")

    return await _measured(one, work)


WORKS: dict[str, Callable[[Etcd, Work], Awaitable[Figures]]] = {
    "enqueue": enqueue,
    "enqueue-roots": enqueue_roots,
    "status": status,
    "fill": fill,
    "abort": abort,
    "marks": marks,
    "marks-alone": marks_alone,
}


def ended_action() -> bytes:
    """An object of about 3 KB that is terminal, as it is before its mark."""
    values = [put.value for put in PUTS if 2_500 <= len(put.value) <= 4_000]
    value = next(
        value
        for value in values
        if (action := stored.decode(value)).is_terminal and not action.is_recorded
    )
    tree = stored.decode_tree(value)
    tree["metadata"]["finalizers"] = [FINALIZER_RECORD]
    return stored.encode_tree(tree)


async def put_ended(etcd: Etcd, prefix: bytes, count: int, parent: str = "") -> list[KeyValue]:
    """Write so many terminal actions: roots, or the only children of theirs."""
    tree = stored.decode_tree(ended_action())
    written = []
    for first in range(0, count, _PUTS_TOGETHER):
        puts = []
        for number in range(first, min(first + _PUTS_TOGETHER, count)):
            run, name = f"r{number:07d}", "c1" if parent else "a0"
            tree["metadata"] |= {"name": f"{run}-{name}", "uid": f"uid-{number}"}
            tree["spec"] |= {"runName": run, "actionName": name, "parentActionName": parent}
            key = prefix + f"{_NAMESPACE}/{run}-{name}".encode()
            puts.append(Put(key, stored.encode_tree(tree)))
        done = await etcd.txn(Txn((), puts))
        written += [KeyValue(put.key, put.value, done.revision, done.revision, 1) for put in puts]
    return written


def _client(etcd: Etcd, work: Work) -> AbstractAsyncContextManager[ActionsClient]:
    return open_actions_client(etcd, prefix=work.prefix.encode())


def _root(work: Work) -> ActionId:
    return ActionId("p", "d", work.run, "a0")


def _child(work: Work, number: int) -> ActionId:
    return ActionId("p", "d", work.run, f"c{number}")


def _enqueuing(client: ActionsClient, work: Work) -> Callable[[int], Awaitable[None]]:
    async def one(number: int) -> None:
        await client.enqueue(flyte.task(_child(work, number), "a0"))

    return one


async def _measured(one: Callable[[int], Awaitable[None]], work: Work) -> Figures:
    left = iter(range(work.count))
    cpu, clock = time.process_time(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(work.together):
            nursery.start_soon(_each, left, one)
    return _figures(work, time.perf_counter() - clock, time.process_time() - cpu)


async def _each(left: Iterator[int], one: Callable[[int], Awaitable[None]]) -> None:
    for number in left:
        await one(number)


def _figures(work: Work, seconds: float, cpu: float) -> Figures:
    return {
        "rate": work.count / seconds,
        "cpu_us": cpu / work.count * 1e6,
        "cpu_ms": cpu / work.count * 1e3,
        "seconds": seconds,
    }


async def _connected(work: Work) -> Figures:
    async with open_etcd([work.target]) as etcd:
        return await WORKS[work.name](etcd, work)


def _serve(channel: Channel, argument: str) -> None:
    channel.say("result", **trio.run(_connected, Work(**json.loads(argument))))


if __name__ == "__main__":
    serve(_serve)
