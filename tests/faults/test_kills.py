"""etcd is killed and comes back with its data."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from etcd_actions import open_etcd
from tests.support import oracle
from tests.support.etcd_server import EtcdServer
from tests.support.load import Load, make_run, root_of
from tests.support.recording import RecordingRunService, RecordingSink, eventually
from tests.support.scene import judge_delivery, judge_marks, processing, reflecting, subscribed

pytestmark = pytest.mark.faults

RUNS = ["rk1", "rk2", "rk3"]
KILLS = (30, 90, 150)


async def kill(server: EtcdServer) -> None:
    server.kill()
    await trio.to_thread.run_sync(server.start)


async def test_a_reflector_loses_and_doubles_nothing(
    killable_etcd: EtcdServer, prefix: bytes
) -> None:
    """Three kills under load: exactly etcd's history is given out, and no list is needed."""
    sink = RecordingSink()
    with trio.fail_after(120):
        async with (
            open_etcd(killable_etcd.endpoint, request_timeout=2) as etcd,
            open_etcd(killable_etcd.endpoint, request_timeout=2) as direct,
            reflecting(etcd, prefix, sink) as reflector,
        ):
            await Load(direct).play(
                [make_run(prefix, run, 4) for run in RUNS],
                rounds=3,
                strikes=KILLS,
                strike=partial(kill, killable_etcd),
            )
            history = await judge_delivery(sink, direct, prefix)
            assert len(history) > 200
            statistics = reflector.statistics()
    assert sum(statistics.reconnects.values()) >= len(KILLS)
    assert statistics.relists == {}


async def test_a_processor_tells_and_marks_everything(
    killable_etcd: EtcdServer, prefix: bytes
) -> None:
    """Three kills under load: each ending is accepted, then marked once; subscribers agree."""
    with trio.fail_after(120):
        async with (
            open_etcd(killable_etcd.endpoint, request_timeout=2) as etcd,
            open_etcd(killable_etcd.endpoint, request_timeout=2) as direct,
        ):
            run_service = RecordingRunService(direct)
            async with (
                processing(etcd, prefix, run_service) as processor,
                subscribed(processor, [root_of(run) for run in RUNS]) as updates,
            ):
                runs = [make_run(prefix, run, 4) for run in RUNS]
                await Load(direct, seed=1).play(
                    runs, rounds=3, strikes=KILLS, strike=partial(kill, killable_etcd)
                )
                history = await judge_marks([processor], [run_service], direct, prefix)
                keys = [action.key for run in runs for action in run]
                await eventually(lambda: not oracle.subscriber_problems(updates, history, keys))
            assert run_service.told
