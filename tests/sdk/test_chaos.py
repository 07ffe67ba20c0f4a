"""A program of many tasks comes to its result, each started once, whatever is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from etcd_actions import ActionId, Phase, open_actions_client, open_etcd
from etcd_actions.model import ActionUpdate
from etcd_actions.testing import OwnEtcd
from tests.sdk.service import Site, free_port, kill
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.faults]

RUN = "rmany"
ROOT = ActionId("flytesnacks", "development", RUN, "a0", "local")
PREFIX = b"/registry/flyte.org/taskactions/"


@pytest.fixture
def site(killable_etcd: OwnEtcd, tmp_path: Path, sdk_python: Path) -> Iterator[Site]:
    site = Site(tmp_path, killable_etcd.endpoint, PREFIX, sdk_python)
    yield site
    site.end_all()


async def result(etcd: OwnEtcd) -> ActionUpdate:
    """The root's end."""
    async with (
        open_etcd(etcd.endpoint) as connection,
        open_actions_client(connection) as client,
        client.subscribe(ROOT, snapshot=True) as updates,
    ):
        async for update in updates:
            if (
                isinstance(update, ActionUpdate)
                and update.name == ROOT.object_name
                and update.phase.is_terminal
            ):
                return update
    raise AssertionError("the subscription ended")


async def test_services_and_etcd_come_and_go(site: Site, killable_etcd: OwnEtcd) -> None:
    branches, width = 15, 19
    tasks = 1 + branches + branches * width
    one, two = free_port(), free_port()

    async def started(part: float) -> None:
        await eventually(lambda: len(site.starts()) >= part * tasks, within=120)

    with ExitStack() as stack:
        first = stack.enter_context(site.service(one))
        await first.logged("serving")
        await site.submit(
            "many.py",
            "tree",
            f"branches={branches}",
            f"width={width}",
            f"directory={site.notes}",
            run=RUN,
        )
        await started(0.15)
        kill(first)
        again = stack.enter_context(site.service(one))
        await started(0.3)
        killable_etcd.kill()
        killable_etcd.start()
        await started(0.45)
        second = stack.enter_context(site.service(two))
        await second.logged("serving")
        await started(0.6)
        kill(again)
        await started(0.65)
        third = stack.enter_context(site.service(one))
        await third.logged("serving")
        await started(0.75)
        kill(second)
        # What it started looks for it where it was.
        stack.enter_context(site.service(two))
        with trio.fail_after(240):
            end = await result(killable_etcd)
        assert end.phase is Phase.SUCCEEDED, end
        starts = site.starts()
        assert {start: count for start, count in starts.items() if count != 1} == {}
        assert len(starts) == tasks
        assert {start.split()[1] for start in starts} == {"0"}
