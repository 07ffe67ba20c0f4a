"""An action ends and is deleted while nobody can watch: its ending is told, not ABORTED."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import permutations

import pytest
import trio

from etcd_actions import Phase, open_etcd
from etcd_actions.codecs import json
from etcd_actions.etcd.api import KeyRange
from etcd_actions.pipeline.processor import Processor
from tests.support.etcd_server import OwnEtcd
from tests.support.load import Action, Load, make_action
from tests.support.proxy import Proxy, open_proxy
from tests.support.recording import RecordingRunService, eventually
from tests.support.scene import PROCESSOR, UNHURRIED, processing

pytestmark = pytest.mark.faults

SETTINGS = replace(PROCESSOR, reflector=UNHURRIED)
ELECTED = replace(SETTINGS, elect=True, election_ttl=2, save_every=0.05)


def orders(steps: str) -> list[str]:
    """Write the ending, Compact, Delete, restart Etcd, restart Ours: written before deleted."""
    found = ("".join(order) for order in permutations(steps))
    return sorted(order for order in found if order.index("W") < order.index("D"))


def is_readable(order: str) -> bool:
    """Whether the ending, or its deletion, is still in history when all steps were taken."""
    return not order.index("W") < order.index("D") < order.index("C")


# A process that starts knows nothing of what was deleted before the oldest revision.
RESTARTED = [order for order in orders("WCDO") if is_readable(order)]


@pytest.mark.parametrize("order", [*orders("WCD"), *orders("WCDE"), *RESTARTED])
async def test_an_ending_that_can_be_read_is_told(
    own_etcd: OwnEtcd, prefix: bytes, order: str
) -> None:
    """It is RUNNING when the way to etcd is cut; then the steps are taken, and the way opens.

    What history does not have any more nobody can know: then ABORTED is told.
    """
    # The newest put is what the store is recognised by, so this is the hardest case.
    action = make_action(prefix, "re1", "a1")
    running = next(each for each in action.states if json.decode(each).phase is Phase.RUNNING)
    assert json.decode(action.ended).phase is Phase.SUCCEEDED
    with trio.fail_after(60):
        async with open_proxy(own_etcd.port) as proxy:
            async with watched(own_etcd, proxy, prefix, order) as (run_service, processor):
                async with open_etcd(own_etcd.endpoint) as direct:
                    await Load(direct).write(action.key, running)
                await run_service.bell.until(lambda: len(run_service.told) == 1)
                assert run_service.told[-1].ending.phase is Phase.RUNNING
                if "O" in order:
                    seen = run_service.told[-1].revision
                    await eventually(lambda: processor.statistics().checkpoint >= seen)
                await proxy.go_down()
                await take(order.partition("O")[0], own_etcd, action)
                if "O" not in order:
                    await proxy.come_up()
                    await run_service.bell.until(lambda: is_over(run_service, action))
            if "O" in order:
                await take(order.partition("O")[2], own_etcd, action)
                await proxy.come_up()
                async with watched(own_etcd, proxy, prefix, order) as (run_service, _):
                    await run_service.bell.until(lambda: is_over(run_service, action))
    told = [one for one in run_service.told if one.key == action.key]
    wanted = Phase.SUCCEEDED if is_readable(order) else Phase.ABORTED
    assert told[-1].ending.phase is wanted
    assert Phase.ABORTED not in {one.ending.phase for one in told[:-1]}


@asynccontextmanager
async def watched(
    own_etcd: OwnEtcd, proxy: Proxy, prefix: bytes, order: str
) -> AsyncIterator[tuple[RecordingRunService, Processor]]:
    """A processor behind the proxy; where it is restarted, it is a leader with a position."""
    settings = ELECTED if "O" in order else SETTINGS
    async with (
        open_etcd(own_etcd.endpoint) as direct,
        open_etcd(proxy.endpoint) as etcd,
    ):
        run_service = RecordingRunService(direct)
        async with processing(etcd, prefix, run_service, settings=settings) as processor:
            yield run_service, processor
            await processor.stop_watching(0)


async def take(steps: str, own_etcd: OwnEtcd, action: Action) -> None:
    """Take some steps, behind the proxy's back."""
    for step in steps:
        if step == "E":
            await trio.to_thread.run_sync(own_etcd.stop)
            await trio.to_thread.run_sync(own_etcd.start)
            continue
        async with open_etcd(own_etcd.endpoint) as direct:
            if step == "W":
                await Load(direct).write(action.key, action.ended)
            elif step == "D":
                await direct.delete(KeyRange.of_key(action.key))
            else:
                assert step == "C"
                head = await direct.range(KeyRange.of_key(action.key), keys_only=True)
                await direct.compact(head.revision, physical=True)


def is_over(run_service: RecordingRunService, action: Action) -> bool:
    """Whether the run service was told how the action ended."""
    return any(one.key == action.key and one.ending.phase.is_terminal for one in run_service.told)
