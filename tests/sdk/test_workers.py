"""A program of many tasks over workers that share etcd and the files of runs, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from etcd_actions import Phase
from etcd_actions.testing import OwnEtcd
from tests.cli.command import Running
from tests.sdk.service import Site, free_port, kill
from tests.sdk.test_chaos import PREFIX, RUN, result
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
def site(killable_etcd: OwnEtcd, tmp_path: Path, sdk_python: Path) -> Iterator[Site]:
    site = Site(tmp_path, killable_etcd.endpoint, PREFIX, sdk_python)
    site.executor = ("--executor", "none")
    site.state_dir.mkdir()
    yield site
    site.end_all()


async def test_three_workers_run_a_program_while_each_part_is_killed_once(
    site: Site, killable_etcd: OwnEtcd
) -> None:
    """An attempt of a killed worker is lost; its successor is the next attempt, on another one."""
    branches, width = 8, 12
    tasks = 1 + branches + branches * width

    async def started(part: float) -> None:
        await eventually(lambda: len(site.starts()) >= part * tasks, within=120)

    with ExitStack() as stack:

        def worker(name: str) -> Running:
            return stack.enter_context(site.worker(name))

        service = stack.enter_context(site.service(port := free_port()))
        await service.logged("serving")
        workers = [worker(name) for name in "abc"]
        for each in workers:
            await each.logged("working")
        await site.submit(
            "many.py",
            "tree",
            f"branches={branches}",
            f"width={width}",
            f"directory={site.notes}",
            run=RUN,
        )
        await started(0.2)
        kill(workers[0])
        await started(0.4)
        kill(service)
        stack.enter_context(site.service(port))
        await started(0.5)
        killable_etcd.kill()
        killable_etcd.start()
        again = worker("a")
        await started(0.7)
        kill(workers[1])
        with trio.fail_after(240):
            end = await result(killable_etcd)
        assert end.phase is Phase.SUCCEEDED, end
        starts = site.starts()
        # Each attempt at most once, and none of a task that had succeeded.
        assert {start: count for start, count in starts.items() if count != 1} == {}
        assert len({start.split()[0] for start in starts}) == tasks
        lost = [start for start in starts if start.split()[1] != "0"]
        assert 0 < len(lost) <= 8 * branches
        assert await again.until(lambda: again.logs("action_ended"))
        assert workers[2].logs("action_ended")
