"""Executors of processes that share the work: each runs the actions of its own shards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action

from etcd_actions import ActionId, ActionsClient, Phase
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor import Executor
from etcd_actions.executor.own_actions import OwnActions, _Followed
from etcd_actions.pipeline.watch_run import WatchRun
from etcd_actions.shards import EVERYTHING, ShardRange
from tests.executor.fakes import Bench
from tests.executor.tasks import until
from tests.pipeline.sharding import RUNS, SHARDED, root, sharing, until_owned
from tests.pipeline.test_reshaping import reshaper, run_of
from tests.support import flyte
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory(jumps=False)

EXECUTING = replace(SHARDED, executes=True)


@asynccontextmanager
async def process(
    etcd: Etcd, prefix: bytes, directory: Path, *, slots: int = 8
) -> AsyncIterator[tuple[Bench, Executor]]:
    """A process that shares the work, and runs actions."""
    directory.mkdir()
    async with sharing(etcd, prefix, settings=EXECUTING) as client:
        bench = Bench(client, directory)
        async with bench.executor(slots=slots) as executor:
            yield bench, executor


def own_runs(client: ActionsClient) -> set[str]:
    """The runs that a process is to run."""
    keys = {run: f"flyte/{run}-a0".encode() for run in RUNS}
    return {run for run in RUNS if any(keys[run] in each for each in client.work.ranges())}


async def until_shared(*clients: ActionsClient) -> None:
    """Two processes have two shards each to run."""
    await eventually(lambda: [len(client.work.ranges()) for client in clients] == [2, 2])


def roots(runs: set[str]) -> set[str]:
    return {f"{run}-a0" for run in runs}


def child(run: str, name: str = "c1") -> ActionId:
    return ActionId("p", "d", run, name)


def board(executor: Executor) -> set[str]:
    return {name.removeprefix("flyte/") for name in executor._shared.board.names()}


async def test_each_runs_and_follows_its_own_shards(
    etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    async with (
        process(etcd, prefix, tmp_path / "1") as (one, first),
        process(etcd, prefix, tmp_path / "2") as (other, second),
    ):
        await until_owned(4, one.client, other.client)
        for run in RUNS:
            await one.enqueue(root(run))
        await eventually(lambda: len(one.attempts.begun) + len(other.attempts.begun) == len(RUNS))
        mine, theirs = own_runs(one.client), own_runs(other.client)
        assert mine | theirs == set(RUNS)
        assert mine
        assert theirs
        assert not mine & theirs
        assert set(one.attempts.begun) == board(first) == roots(mine)
        assert set(other.attempts.begun) == board(second) == roots(theirs)
        # No watch of everything was opened.
        assert not len(one.client._subscribing.watches)
        assert not len(other.client._subscribing.watches)
        for bench in (one, other):
            for name in bench.attempts.begun:
                bench.attempts.finish(name)
        for run in RUNS:
            await until(one.client, root(run), Phase.SUCCEEDED)
        await eventually(lambda: not board(first) | board(second))
        assert first.statistics().lost_claims + second.statistics().lost_claims == 0


async def test_what_runs_stays_where_it_runs(etcd: Etcd, prefix: bytes, tmp_path: Path) -> None:
    """A new child runs where the shard is now; the executor of its parent learns of its end."""
    async with process(etcd, prefix, tmp_path / "1") as (one, first):
        await until_owned(4, one.client)
        for run in RUNS:
            await one.enqueue(root(run))
        await eventually(lambda: len(one.attempts.begun) == len(RUNS))
        async with process(etcd, prefix, tmp_path / "2") as (other, second):
            await until_shared(one.client, other.client)
            moved, stayed = own_runs(other.client), own_runs(one.client)
            assert moved
            for run in RUNS:
                await one.enqueue(child(run), "a0")
            await eventually(lambda: len(other.attempts.begun) == len(moved))
            assert set(other.attempts.begun) == {f"{run}-c1" for run in moved}
            await eventually(lambda: len(one.attempts.begun) == len(RUNS) + len(stayed))
            # A parent that waits for a child holds no slot.
            await eventually(lambda: first.statistics().waiting == len(RUNS))
            for run in moved:
                other.attempts.finish(f"{run}-c1")
            await eventually(lambda: first.statistics().waiting == len(stayed))
            for run in moved:
                one.attempts.finish(f"{run}-a0")
                await until(one.client, root(run), Phase.SUCCEEDED)
            # Nothing of the moved shards is left there, and neither is their watch.
            await eventually(
                lambda: board(first) == roots(stayed) | {f"{run}-c1" for run in stayed}
            )
            await until_owned(4, one.client, other.client)
            assert board(second) == set()
            assert other.attempts.ended == one.attempts.ended == []


async def test_the_children_of_an_action_that_fails_are_aborted_where_they_run(
    etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    async with process(etcd, prefix, tmp_path / "1") as (one, first):
        await until_owned(4, one.client)
        for run in RUNS:
            await one.enqueue(root(run))
        await eventually(lambda: len(one.attempts.begun) == len(RUNS))
        async with process(etcd, prefix, tmp_path / "2") as (other, _):
            await until_shared(one.client, other.client)
            moved = min(own_runs(other.client))
            await one.enqueue(child(moved), "a0")
            await until(one.client, child(moved), Phase.RUNNING)
            assert other.attempts.begun == [f"{moved}-c1"]
            one.attempts.fail(f"{moved}-a0", recoverable=False)
            await until(one.client, root(moved), Phase.FAILED)
            await until(one.client, child(moved), Phase.ABORTED)
            await eventually(lambda: other.attempts.ended == [f"{moved}-c1"])
            await eventually(lambda: f"{moved}-c1" not in board(first))


async def test_what_waits_goes_with_its_shard(etcd: Etcd, prefix: bytes, tmp_path: Path) -> None:
    """An action without a slot runs elsewhere; one that is to be repeated is, too."""

    def retried(action: Action) -> None:
        action.task.spec.task_template.metadata.retries.retries = 1

    async with process(etcd, prefix, tmp_path / "1", slots=1) as (one, _):
        await until_owned(4, one.client)
        for run in RUNS:
            await one.enqueue(root(run), change=retried)
        await eventually(lambda: len(one.attempts.begun) == 1)
        (running,) = one.attempts.begun
        async with process(etcd, prefix, tmp_path / "2") as (other, _):
            await until_shared(one.client, other.client)
            moved = roots(own_runs(other.client))
            await eventually(lambda: set(other.attempts.begun) == moved - {running})
            assert one.attempts.begun == [running]
            one.attempts.fail(running)
            await eventually(
                lambda: [*one.attempts.begun, *other.attempts.begun].count(running) == 2
            )


async def test_a_shard_that_comes_back_is_run_again(
    etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    """The actions that ran all the time go on; those that came in between are begun."""
    async with process(etcd, prefix, tmp_path / "1") as (one, _):
        await until_owned(4, one.client)
        for run in RUNS:
            await one.enqueue(root(run))
        await eventually(lambda: len(one.attempts.begun) == len(RUNS))
        async with sharing(etcd, prefix, settings=EXECUTING) as other:
            await until_shared(one.client, other)
            moved, stayed = own_runs(other), own_runs(one.client)
            # The other process has no executor: it only says that it runs them.
            for run in (*moved, *stayed):
                await one.enqueue(child(run), "a0")
            await eventually(lambda: len(one.attempts.begun) == len(RUNS) + len(stayed))
            assert set(one.attempts.begun[len(RUNS) :]) == {f"{run}-c1" for run in stayed}
        await eventually(lambda: len(one.attempts.begun) == 2 * len(RUNS))
        assert len(set(one.attempts.begun)) == 2 * len(RUNS)
        assert one.client.containment.failures == {}


async def test_a_process_that_runs_no_actions_leaves_none_behind(
    etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    """Next to one, which may be of an older version, an executor runs the actions of all shards."""
    async with process(etcd, prefix, tmp_path / "1") as (one, first):
        await until_owned(4, one.client)
        assert len(one.client.work.ranges()) == 4
        async with sharing(etcd, prefix) as other:
            await eventually(lambda: one.client.work.ranges() == {EVERYTHING})
            await until_owned(4, one.client, other)
            for run in RUNS:
                await one.enqueue(root(run))
            await eventually(lambda: len(one.attempts.begun) == len(RUNS))
            assert other.work.ranges() == {EVERYTHING}
            assert len(one.client._subscribing.watches) == 1
        await eventually(lambda: len(one.client.work.ranges()) == 4)
        await eventually(lambda: not len(one.client._subscribing.watches))
        assert board(first) == roots(set(RUNS))
        for run in RUNS:
            one.attempts.finish(f"{run}-a0")
            await until(one.client, root(run), Phase.SUCCEEDED)
        await eventually(lambda: not board(first))


def test_a_shard_that_is_not_followed_yet_is_not_synced() -> None:
    """Its updates ended when it was left; it came back before they are received again."""
    here, back = ShardRange(b"", b"flyte/m"), ShardRange(b"flyte/m", b"~")
    work = SimpleNamespace(ranges=lambda: frozenset({here, back}))
    shared = cast(Any, SimpleNamespace(client=SimpleNamespace(work=work)))
    own = OwnActions(shared, cast(Any, None), unfinished=tuple, admit=print, forget=print)
    followed = own._followed[here] = _Followed()
    own._synced(followed)
    assert not own.is_synced
    own._followed[back] = _Followed(is_synced=True)
    own._synced(followed)
    assert own.is_synced


@pytest.mark.parametrize("change", ["split", "merge"])
async def test_what_waits_in_a_shard_that_is_replaced_is_run(
    etcd: Etcd, prefix: bytes, tmp_path: Path, change: str
) -> None:
    """The old range is followed on for the action that runs, so its states are known already."""
    waiting = ("rx", "rz", "s1")
    async with process(etcd, prefix, tmp_path / "1", slots=1) as (one, first):
        await until_owned(4, one.client)
        await one.enqueue(root("rs"))
        await eventually(lambda: one.attempts.begun == ["rs-a0"])
        for run in waiting:
            await one.enqueue(root(run))
            await until(one.client, root(run), Phase.QUEUED)
        await eventually(lambda: first.statistics().queued == len(waiting))
        watches = sorted(run_of(one.client).watches.values(), key=lambda each: each.shard.range)
        if change == "split":
            await reshaper(one.client)._replace(watches[3:], [b"flyte/ry"])
        else:
            await reshaper(one.client)._replace(watches[2:], [])
        shards = 5 if change == "split" else 3
        await eventually(lambda: len(one.client.work.ranges()) == shards)
        for run in ("rs", *waiting):
            await eventually(lambda run=run: f"{run}-a0" in one.attempts.begun)  # type: ignore[misc]
            one.attempts.finish(f"{run}-a0")
            await until(one.client, root(run), Phase.SUCCEEDED)
        assert len(one.attempts.begun) == 1 + len(waiting)
        await eventually(lambda: not board(first))


async def test_what_comes_while_the_parts_of_a_shard_are_listed_is_run(
    etcd: Etcd, prefix: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The range of the shard is nobody's then, and its updates are still received."""
    listed, start_revision = trio.Event(), WatchRun._start_revision

    async def held_back(run: WatchRun) -> int:
        if run._parts.scope.part in ("shard 0004", "shard 0005"):
            await listed.wait()
        return await start_revision(run)

    monkeypatch.setattr(WatchRun, "_start_revision", held_back)
    async with process(etcd, prefix, tmp_path / "1") as (one, first):
        await until_owned(4, one.client)
        await one.enqueue(root("rs"))
        await eventually(lambda: one.attempts.begun == ["rs-a0"])
        watches = sorted(run_of(one.client).watches.values(), key=lambda each: each.shard.range)
        await reshaper(one.client)._replace(watches[3:], [b"flyte/ry"])
        await eventually(lambda: len(one.client.work.ranges()) == 3)
        await one.enqueue(child("rs", "c1"), "a0")
        await one.client.enqueue(flyte.condition(child("rs", "c2"), "a0"))
        await eventually(lambda: {"rs-c1", "rs-c2"} <= board(first))
        listed.set()
        await until(one.client, child("rs", "c2"), Phase.PAUSED)
        await eventually(lambda: one.attempts.begun == ["rs-a0", "rs-c1"])
