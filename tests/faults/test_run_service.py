"""The run service hangs, refuses or fails strangely, for some actions or all."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

import pytest
import trio

from etcd_actions import ActionObject, ActionUpdate, Phase, open_etcd
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.pipeline.processor import Processor, open_processor
from etcd_actions.run_service import RunService
from etcd_actions.run_service.grpc_run_service import open_run_service
from tests.support import oracle
from tests.support.etcd_server import EtcdServer
from tests.support.load import Load, make_run, root_of, with_annotation, with_uid
from tests.support.proxy import open_proxy
from tests.support.recording import RecordingRunService, eventually, until_stored
from tests.support.scene import PROCESSOR, all_marked, judge_marks, processing, subscribed

pytestmark = pytest.mark.faults

_ROOT = Path(__file__).parents[2]
_BRIEF = replace(PROCESSOR, grace=0.1)
_WRITERS = 16
_CHANGES = 10
# Seconds between two changes of one writer: all together make 600 a second.
_PACE = _WRITERS / 600


@pytest.mark.parametrize("way", ["hang", "refuse"])
async def test_some_actions_are_not_accepted(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, way: str
) -> None:
    """Their marks wait; subscribers and other actions do not; then all come, in order."""
    actions = make_run(prefix, "rr1", 6)
    held = {action.key for action in actions[:2]}
    run_service, load = RecordingRunService(etcd), Load(etcd)
    setattr(run_service, way, lambda update: update.key in held)
    keys = KeyRange.of_prefix(prefix)
    with trio.fail_after(90):
        async with (
            open_etcd(shared_etcd.endpoint) as connection,
            processing(connection, prefix, run_service) as processor,
            subscribed(processor, [root_of("rr1")]) as updates,
        ):
            for action in actions:
                for state in action.states:
                    await load.write(action.key, state)
            await eventually(lambda: processor.statistics().marks.get("marked") == 4)
            history = await oracle.read_history(etcd, keys)
            await eventually(
                lambda: (
                    not oracle.subscriber_problems(
                        updates, history, [action.key for action in actions]
                    )
                )
            )
            assert oracle.mark_problems(history, run_service.told, whole=False) == []
            assert not held & {one.key for one in run_service.told}
            outbox = processor.statistics().outbox
            assert outbox is not None
            if way == "refuse":
                assert {each.key for each in outbox.failing} <= held
                await eventually(lambda: _failures(processor) > 2)
            held.clear()
            run_service.bell.ring()
            await judge_marks([processor], [run_service], etcd, prefix)
            assert processor.statistics().marks["marked"] == 6


async def test_more_actions_hang_than_calls_are_allowed(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """All calls hang: subscribers still hear everything, and stopping takes its grace only."""
    count = PROCESSOR.outbox_workers + 20
    actions = make_run(prefix, "rr2", count)
    run_service = RecordingRunService(etcd)
    run_service.hang = lambda _: True
    with trio.fail_after(60):
        async with (
            open_etcd(shared_etcd.endpoint) as connection,
            processing(connection, prefix, run_service) as processor,
            subscribed(processor, [root_of("rr2")]) as updates,
        ):
            for action in actions:
                await etcd.put(action.key, action.ended)
            await eventually(lambda: len({update.key for update in updates}) == count)
            await eventually(lambda: run_service.calls == PROCESSOR.outbox_workers)
            await processor.stop_watching(grace=0.1)
            # It is all in etcd still: the next start does it.
            run_service.hang = lambda _: False
            await processor.start_watching()
            await judge_marks([processor], [run_service], etcd, prefix)


@pytest.mark.parametrize(
    "strange",
    [
        trio.EndOfChannel(),
        trio.ClosedResourceError(),
        trio.WouldBlock(),
        StopAsyncIteration(),
        TimeoutError(),
        ExceptionGroup("several", [OSError(), ValueError()]),
    ],
    ids=lambda error: type(error).__name__ if isinstance(error, Exception) else None,
)
async def test_strange_failures_are_failures(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, strange: Exception
) -> None:
    """Whatever exception a run service raises, the action is told again."""
    (action,) = make_run(prefix, "rr3", 1)

    class Strange(RecordingRunService):
        failed = False

        async def update_action_status(self, update: ActionUpdate) -> None:
            if not self.failed:
                self.failed = True
                raise strange
            await super().update_action_status(update)

    run_service = Strange(etcd)
    await etcd.put(action.key, action.ended)
    with trio.fail_after(30):
        async with (
            open_etcd(shared_etcd.endpoint) as connection,
            processing(connection, prefix, run_service) as processor,
        ):
            await eventually(lambda: processor.statistics().marks == {"marked": 1})


async def test_nothing_is_kept_of_what_is_gone(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """Actions come, end, are marked and deleted: no memory of them stays."""
    run_service, load = RecordingRunService(etcd), Load(etcd)
    actions = make_run(prefix, "rr4", 10)
    with trio.fail_after(60):
        async with (
            open_etcd(shared_etcd.endpoint) as connection,
            processing(connection, prefix, run_service) as processor,
        ):
            for action in actions:
                await load.write(action.key, action.ended)
            await eventually(lambda: processor.statistics().marks == {"marked": 10})
            await load.delete_all(action.key for action in actions)
            await judge_marks([processor], [run_service], etcd, prefix)
            await eventually(lambda: not _reflected(processor))
            recording = processor._recording
            assert recording is not None
            index = vars(processor._index)
            outbox = recording.outbox
            held = [*index.items(), *vars(index["_packing"]).items()]
            for part in (outbox, outbox.reporter, outbox._deletions, outbox._deferred):
                held += vars(part).items()
            kept = {name for name, value in held if value in ({}, set())}
    names = {"_groups", "_without_facts", "_deletions", "_introduced", "_reported"}
    names |= {"_with_children", "_numbers", "_deleted_by_mark", "_changes"}
    assert names <= kept


def _failures(processor: Processor) -> int:
    outbox = processor.statistics().outbox
    assert outbox is not None
    return outbox.failures


def _reflected(processor: Processor) -> int:
    reflector = processor.statistics().reflector
    assert reflector is not None
    return reflector.keys


async def test_an_action_made_again_while_nothing_was_watched(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """Between a stop and a start it was deleted and made again: its end is told first."""
    (action,) = make_run(prefix, "rr5", 1)
    run_service, load = RecordingRunService(etcd), Load(etcd)
    await load.write(action.key, action.states[4])
    with trio.fail_after(30):
        async with (
            open_etcd(shared_etcd.endpoint) as connection,
            processing(connection, prefix, run_service) as processor,
        ):
            await run_service.bell.until(lambda: len(run_service.told) == 1)
            await processor.stop_watching()
            await load.delete_all([action.key])
            await load.write(action.key, with_uid(action.ended, "uid-new"))
            await processor.start_watching()
            await judge_marks([processor], [run_service], etcd, prefix)
    # The list is made where the watch ended, so the first state is reported once more.
    assert [one.is_deleted for one in run_service.told] == [False, False, True, False]


class _Hanging(RunService):
    """Never answers, and costs nothing: what is measured is what waits for it."""

    def __init__(self, *, told: bool) -> None:
        self.is_told = told

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        return self.is_told

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        await trio.sleep_forever()

    async def update_action_status(self, update: ActionUpdate) -> None:
        await trio.sleep_forever()


async def test_subscribers_hear_as_soon_while_it_hangs(
    shared_etcd: EtcdServer, prefix: bytes
) -> None:
    """10,000 changes: the slowest hundredth is no slower than with nobody to be told.

    Both are measured in turns. What slows subscribers does so each time; what else the machine
    does, does not.
    """
    measured = []
    with trio.fail_after(300):
        for turn in range(3):
            quiet = await _latency(
                shared_etcd.endpoint, prefix + b"%d/q/" % turn, _Hanging(told=False)
            )
            hung = await _latency(
                shared_etcd.endpoint, prefix + b"%d/h/" % turn, _Hanging(told=True)
            )
            measured.append((hung, quiet))
            if hung <= 1.5 * quiet + 0.005:
                return
    pytest.fail(f"seconds with it hung, and quiet: {measured}")


async def _latency(endpoint: str, prefix: bytes, run_service: _Hanging) -> float:
    """From put to subscriber, in seconds: what one change in a hundred takes longer than."""
    actions = make_run(prefix, "rr9", 1_000)
    sent: dict[int, float] = {}
    seen: dict[int, float] = {}
    async with (
        open_etcd(endpoint) as watching,
        open_etcd(endpoint) as writing,
        processing(watching, prefix, run_service, settings=_BRIEF) as processor,
        processor.subscribe(root_of("rr9")) as updates,
        trio.open_nursery() as nursery,
    ):

        async def read() -> None:
            async for update in updates:
                seen[update.revision] = trio.current_time()

        async def write(first: int) -> None:
            due = start + first * _PACE / _WRITERS
            for change in range(_CHANGES):
                for action in actions[first::_WRITERS]:
                    value = with_annotation(action.states[0], "change", str(change))
                    await trio.sleep_until(due)
                    due += _PACE
                    now = trio.current_time()
                    sent[(await writing.put(action.key, value)).revision] = now

        nursery.start_soon(read)
        start = trio.current_time()
        async with trio.open_nursery() as writers:
            for first in range(_WRITERS):
                writers.start_soon(write, first)
        newest = max(sent)
        await eventually(lambda: newest in seen)
        if run_service.is_told:
            outbox = processor.statistics().outbox
            assert outbox is not None
            assert outbox.keys == len(actions)
        nursery.cancel_scope.cancel("all was seen")
    assert len(sent) == len(actions) * _CHANGES
    heard = [seen[revision] - at for revision, at in sent.items() if revision in seen]
    assert len(heard) > len(sent) * 0.9
    return quantiles(heard, n=100)[98]


@asynccontextmanager
async def run_service_process() -> AsyncIterator[tuple[trio.Process, int]]:
    """Flyte's run service in a process of its own, and its port."""
    command = [sys.executable, "-m", "tests.support.run_service_server"]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT
    )
    try:
        assert process.stdout is not None
        yield process, int(await process.stdout.receive_some(100))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def test_the_run_service_may_open_no_more_files(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """It takes no connection: nothing is marked, subscribers hear all, and all comes later."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux can limit another process")
    keys = KeyRange.of_prefix(prefix)
    before, after = make_run(prefix, "rr8", 4), make_run(prefix, "rr9", 4)
    with trio.fail_after(120):
        async with (
            run_service_process() as (process, port),
            open_proxy(port) as proxy,
            open_etcd(shared_etcd.endpoint) as connection,
            open_run_service(proxy.endpoint, deadline=1) as run_service,
            open_processor(
                connection, prefix=prefix, run_service=run_service, settings=PROCESSOR
            ) as processor,
        ):
            await processor.start_watching()
            async with subscribed(processor, [root_of("rr9")]) as updates:
                for action in before:
                    await etcd.put(action.key, action.ended)
                await until_stored(etcd, keys, all_marked)
                usual = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
                # Nothing new may be opened, whatever is open stays.
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (5, usual[1]))
                proxy.cut()
                for action in after:
                    await etcd.put(action.key, action.ended)
                ended = {action.key for action in after}
                await eventually(lambda: {update.key for update in updates} == ended)
                await eventually(lambda: _failures(processor) > 2 * len(after))
                marks = processor.statistics().marks
                assert process.poll() is None
                assert marks == {"marked": len(before)}
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, usual)
                await until_stored(etcd, keys, all_marked)
            assert processor.statistics().marks == {"marked": len(before) + len(after)}
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            # The line before may have come without its end.
            counted = json.loads(b"".join([part async for part in process.stdout]))
            assert counted["revived"] == 0
            assert counted["status"] >= len(before) + len(after)
