"""Cancelled at any step, nothing stays behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Awaitable, Callable

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.etcd.api import Etcd, KeyRange
from tests.support.etcd_server import EtcdServer
from tests.support.load import make_run
from tests.support.recording import RecordingRunService, RecordingSink
from tests.support.scene import judge_marks, processing, reflecting

pytestmark = pytest.mark.faults


class CancelAt(trio.abc.Instrument):
    """Cancels a scope before the n-th step of any task."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._count = 0
        self._scope: trio.CancelScope | None = None

    def arm(self, scope: trio.CancelScope) -> None:
        """Count from now on."""
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """One more."""
        if self._scope is not None:
            self._count += 1
            if self._count == self._step:
                self._scope.cancel("the sweep")


def own_threads() -> set[threading.Thread]:
    """Threads that this package started, and those that gRPC has for its streams."""
    return {
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.name.startswith("Trio thread")
    }


async def reflect(endpoint: str, prefix: bytes) -> None:
    """Watch and change something, for ever."""
    sink = RecordingSink()
    async with open_etcd(endpoint) as etcd, reflecting(etcd, prefix, sink):
        while True:
            await etcd.put(prefix + b"flyte/r1", b"")
            sink.changes.clear()
            await etcd.put(prefix + b"flyte/r1", b"")
            await sink.bell.until(lambda: bool(sink.changes))


async def process(endpoint: str, prefix: bytes) -> None:
    """Handle, tell and mark something, for ever."""
    async with open_etcd(endpoint) as etcd:
        run_service = RecordingRunService(etcd)
        async with processing(etcd, prefix, run_service) as processor:
            for n in range(100):
                (action,) = make_run(prefix, f"r{n}", 1)
                await etcd.put(action.key, action.ended)
                await run_service.bell.until(lambda: bool(run_service.told))
            await processor.stop_watching()
            await trio.sleep_forever()


@pytest.mark.parametrize("what", [reflect, process])
def test_cancellation_at_every_step(
    shared_etcd: EtcdServer, prefix: bytes, what: Callable[[str, bytes], Awaitable[None]]
) -> None:
    """Whatever step it is cancelled at: no exception, no thread, no stuck task."""
    gc.collect()
    baseline = own_threads()
    steps = [*range(1, 40), *range(40, 400, 11)]
    for step in steps:
        instrument = CancelAt(step)

        async def main(instrument: CancelAt = instrument) -> bool:
            with trio.fail_after(60), trio.CancelScope() as scope:
                instrument.arm(scope)
                await what(shared_etcd.endpoint, prefix)
            return scope.cancelled_caught

        assert trio.run(main, instruments=[instrument]), step
        for thread in own_threads() - baseline:
            thread.join(20)
        # Those of other tests may still be about to end.
        assert own_threads() <= baseline, step


async def test_after_cancelled_starts_it_works(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """start_watching that was cancelled, at many points, can be called again."""
    (action,) = make_run(prefix, "rz1", 1)
    await etcd.put(action.key, action.ended)
    run_service = RecordingRunService(etcd)
    run_service.hang = lambda _: True
    with trio.fail_after(60):
        async with (
            open_etcd(shared_etcd.endpoint) as connection,
            processing(connection, prefix, run_service) as processor,
        ):
            for n in range(30):
                await processor.stop_watching(grace=0)
                with trio.move_on_after(0.0003 * n):
                    await processor.start_watching()
            await processor.stop_watching(grace=0)
            run_service.hang = lambda _: False
            await processor.start_watching()
            await judge_marks([processor], [run_service], etcd, prefix)
            assert (await etcd.range(KeyRange.of_prefix(prefix))).total == 1
