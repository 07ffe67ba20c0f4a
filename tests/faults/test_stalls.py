"""etcd, or the way to it, goes silent while connections stay open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.etcd.api import Etcd
from etcd_actions.pipeline.processor import Processor
from etcd_actions.watch import ReflectorSettings
from tests.support.etcd_server import EtcdServer
from tests.support.load import Load, make_run
from tests.support.proxy import Direction, open_proxy
from tests.support.recording import RecordingRunService, RecordingSink, eventually
from tests.support.scene import DEAD_AFTER, judge_delivery, judge_marks, processing, reflecting

pytestmark = pytest.mark.faults

# For machines that are slow, or do something else.
_SLACK = 5.0


@contextmanager
def suspended(server: EtcdServer) -> Iterator[None]:
    """Stop the process; let it go on however the block ends."""
    server.suspend()
    try:
        yield
    finally:
        server.resume()


async def test_a_stopped_etcd_is_found(own_etcd: EtcdServer, prefix: bytes) -> None:
    """The dead stream is given up within ``dead_after``; after SIGCONT nothing is missing."""
    sink = RecordingSink()
    with trio.fail_after(60):
        async with (
            open_etcd(own_etcd.endpoint, request_timeout=1) as etcd,
            open_etcd(own_etcd.endpoint, request_timeout=1) as direct,
            reflecting(etcd, prefix, sink) as reflector,
        ):
            await direct.put(prefix + b"flyte/r1", b"1")
            await sink.bell.until(lambda: len(sink.changes) == 1)
            with suspended(own_etcd):
                with trio.fail_after(DEAD_AFTER * 7 / 6 + _SLACK):
                    await eventually(lambda: bool(reflector.statistics().reconnects))
                assert not reflector.statistics().streaming
            await eventually(lambda: reflector.statistics().streaming)
            await Load(direct).write(prefix + b"flyte/r2", make_run(prefix, "r2", 1)[0].ended)
            await judge_delivery(sink, direct, prefix)
            assert reflector.statistics().relists == {}


@pytest.mark.slow
async def test_a_stopped_etcd_is_found_with_the_usual_settings(
    own_etcd: EtcdServer, prefix: bytes
) -> None:
    """By default a silence of 15 s is found, and not much later."""
    sink, settings = RecordingSink(), ReflectorSettings()
    with trio.fail_after(120):
        async with (
            open_etcd(own_etcd.endpoint) as etcd,
            open_etcd(own_etcd.endpoint) as direct,
            reflecting(etcd, prefix, sink, settings=settings) as reflector,
        ):
            await direct.put(prefix + b"flyte/r1", b"1")
            await sink.bell.until(lambda: len(sink.changes) == 1)
            with suspended(own_etcd), trio.fail_after(settings.dead_after * 7 / 6 + _SLACK):
                await eventually(lambda: bool(reflector.statistics().reconnects))
            await direct.put(prefix + b"flyte/r1", b"2")
            await judge_delivery(sink, direct, prefix)


async def test_a_quiet_etcd_is_not_taken_for_dead(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """Nothing changes for longer than ``dead_after``: the stream stays."""
    sink = RecordingSink()
    settings = ReflectorSettings(dead_after=2.0)
    with trio.fail_after(60):
        async with (
            open_etcd(shared_etcd.endpoint) as quiet,
            reflecting(quiet, prefix, sink, settings=settings) as reflector,
        ):
            began = trio.current_time()
            await eventually(lambda: trio.current_time() > began + 2 * settings.dead_after)
            assert reflector.statistics().reconnects == {}
            await etcd.put(prefix + b"flyte/r1", b"1")
            await judge_delivery(sink, etcd, prefix)


@pytest.mark.parametrize("direction", Direction, ids=lambda each: each.value)
async def test_a_stall_one_way_is_found(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, direction: Direction
) -> None:
    """Bytes go one way only, under load: found within ``dead_after``, nothing is missing."""
    sink = RecordingSink()
    with trio.fail_after(90):
        async with (
            open_proxy(shared_etcd.port) as proxy,
            open_etcd(proxy.endpoint, request_timeout=1) as proxied,
            reflecting(proxied, prefix, sink) as reflector,
            trio.open_nursery() as nursery,
        ):
            load = Load(etcd)
            runs = [make_run(prefix, "rs1", 4), make_run(prefix, "rs2", 4)]
            nursery.start_soon(load.play, runs)
            await load.reached(10)
            proxy.stall(direction)
            if direction is Direction.TO_SERVER:
                # Etcd's events still come, so the reader hears it: until the load is over.
                await load.reached(10_000)
            with trio.fail_after(DEAD_AFTER * 7 / 6 + _SLACK):
                await eventually(lambda: bool(reflector.statistics().reconnects))
            proxy.unstall()
            await load.reached(10_000)
            await judge_delivery(sink, etcd, prefix)
            assert reflector.statistics().relists == {}


async def test_marks_survive_a_stop(own_etcd: EtcdServer, prefix: bytes) -> None:
    """etcd is stopped twice while endings are marked: each gets its mark, exactly once."""
    with trio.fail_after(120):
        async with (
            open_etcd(own_etcd.endpoint, request_timeout=0.5) as etcd,
            open_etcd(own_etcd.endpoint, request_timeout=2) as direct,
        ):
            run_service = RecordingRunService(direct)
            async with (
                processing(etcd, prefix, run_service) as processor,
                trio.open_nursery() as nursery,
            ):
                load = Load(direct)
                runs = [make_run(prefix, run, 4) for run in ("rm1", "rm2", "rm3")]
                nursery.start_soon(load.play, runs)
                for writes in (30, 70):
                    await load.reached(writes)
                    assert not load.done
                    reconnects = _reconnects(processor)
                    with suspended(own_etcd):
                        await eventually(partial(_has_more, processor, reconnects))
                await load.reached(10_000)
                await judge_marks([processor], [run_service], direct, prefix)


def _reconnects(processor: Processor) -> int:
    reflector = processor.statistics().reflector
    assert reflector is not None
    return sum(reflector.reconnects.values())


def _has_more(processor: Processor, than: int) -> bool:
    return _reconnects(processor) > than
