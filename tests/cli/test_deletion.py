"""``delete`` and ``gc`` as processes, on etcd and through the service, next to a leader."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from etcd_actions import ActionId, Phase
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.formats.changes import size_text
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.runs.run_index import RunIndex, open_run_index
from etcd_actions.runs.run_record import RunStatus, decode_record
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.web import Bind
from tests.cli.command import Finished, finish, running
from tests.runs.test_removal import Scene, open_scene
from tests.support import flyte
from tests.support.etcd_server import EtcdServer, free_port
from tests.support.waiting import eventually_holds

# Each starts processes.
pytestmark = pytest.mark.slow


class Site:
    """A leader, its runs, and the flags of the commands."""

    def __init__(self, scene: Scene, folder: Path, *flags: str) -> None:
        self.scene = scene
        self.folder = folder
        self.flags = (*flags, "--blob-dir", str(folder / "blobs"), "--log-level", "error")
        # By which the service lists runs.
        self.index: RunIndex | None = None

    async def finish(self, *arguments: str) -> Finished:
        command = partial(finish, *arguments, *self.flags)
        return await trio.to_thread.run_sync(command)

    async def done(self, *arguments: str) -> list[str]:
        """Run a command that has to succeed; returns its messages."""
        ended = await self.finish(*arguments)
        assert (ended.code, ended.out) == (ExitCode.OK, ""), ended.err
        return [line.removeprefix("etcd-actions: ") for line in ended.err.splitlines()]

    async def age(self, run: str, days: int, **more: object) -> None:
        """Have a run ended some days ago."""
        key = self.scene.keys.run_record(ActionId("p", "d", run, "a0"))

        async def has_ended() -> bool:
            kv = await self.scene.store.get(key)
            status = None if kv is None else decode_record(kv.value).status
            return status is not None and status.ended is not None

        await eventually_holds(has_ended)
        kv = await self.scene.store.get(key)
        assert kv is not None
        status = decode_record(kv.value).status or RunStatus()
        ended = datetime.now(UTC) - timedelta(days=days)
        await self.scene.change_record(
            run, status=msgspec.structs.replace(status, ended=ended, **more)
        )
        changed = await self.scene.store.get(key)
        assert changed is not None
        assert self.index is None or await self.index.wait_for(changed.mod_revision, 60)


@pytest.fixture(params=["etcd", "service"])
async def site(
    request: pytest.FixtureRequest,
    etcd: Etcd,
    shared_etcd: EtcdServer,
    prefix: bytes,
    tmp_path: Path,
) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(open_scene(etcd, prefix, tmp_path))
        if request.param == "etcd":
            flags = ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
            yield Site(scene, tmp_path, *flags)
            return
        index = await stack.enter_async_context(open_run_index(etcd, scene.keys))
        front = FrontDoor(client=scene.client, keepalive=30, blobs=scene.blobs, index=index)
        settings = ServerSettings(bind=Bind("127.0.0.1", 0))
        server = await stack.enter_async_context(
            open_actions_server(scene.client, settings, front=front)
        )
        site = Site(scene, tmp_path, "--service", str(server.address))
        site.index = index
        yield site


async def test_delete(site: Site) -> None:
    scene = site.scene
    for name in ("one", "two", "three"):
        await scene.run(name)
    planned = await site.done("delete", "one", "--dry-run")
    assert planned[0].startswith("would delete p/d/one: 2 actions, 2 histories, 2 files (8 B), ")
    counted = json.loads((await site.finish("delete", "one", "--dry-run", "-o", "json")).out)
    assert counted["totals"].get("deleted", 0) == 0
    assert counted["totals"]["planned"] == 1
    assert await scene.is_whole("one")
    deleted = await site.done("delete", "one", "p/d/two")
    assert [line.partition(":")[0] for line in deleted] == [
        "deleted p/d/one",
        "deleted p/d/two",
        "deleted 2 runs",
    ]
    assert deleted[2].startswith("deleted 2 runs: 4 actions, 4 histories, 4 files (16 B), ")
    for name in ("one", "two"):
        await eventually_holds(partial(scene.is_gone, name))
    assert await scene.is_whole("three")

    # An unknown one delays no other.
    mixed = await site.finish("delete", "thre", "three", "-o", "json")
    assert mixed.code == ExitCode.NOT_FOUND
    assert "did you mean three" in mixed.err
    document = json.loads(mixed.out)
    (change,) = document["changes"]
    assert (change["name"], change["result"]) == ("p/d/three", "deleted")
    assert document["totals"]["actions"] == change["parts"]["actions"] == 2
    await eventually_holds(partial(scene.is_gone, "three"))


async def test_a_run_that_has_not_ended(site: Site) -> None:
    scene = site.scene
    await scene.run("r", children=2, open_child=True)
    kept = await site.finish("delete", "r")
    assert kept.code == ExitCode.ACTION
    assert "kept p/d/r: c0 is UNSPECIFIED: abort it, or give force" in kept.err
    assert await scene.there(scene.keys.runs) != []
    deleted = await site.done("delete", "r", "--force", "--reason", "enough")
    assert "aborted first: 1" in deleted[0]
    await eventually_holds(partial(scene.is_gone, "r"))


async def test_the_name_of_an_action_deletes_no_run(site: Site) -> None:
    """Of a run ``r-c0`` that is gone the name is that of an action of the run ``r``."""
    await site.scene.run("r")

    async def is_known() -> bool:
        return (await site.finish("delete", "--dry-run", "r-c0")).code != ExitCode.NOT_FOUND

    # The service reads short names in its index of runs.
    await eventually_holds(is_known)
    for name in ("r-c0", "p/d/r/c0"):
        refused = await site.finish("delete", "--force", "p/d/r", name)
        assert refused.code == ExitCode.USAGE, refused.err
        complaint = f"{name} is the action p/d/r/c0, and not a run: p/d/r is all of its run"
        assert complaint in refused.err
    unknown = await site.finish("delete", "--force", "p/d/r/none")
    assert unknown.code in (ExitCode.USAGE, ExitCode.NOT_FOUND), unknown.err
    assert await site.scene.is_whole("r")


async def test_gc_of_runs(site: Site) -> None:
    """By age, phase and number; what is young, in use or not ended stays."""
    scene = site.scene
    for name in ("old", "older", "oldest", "failed", "young"):
        await scene.run(name)
    await site.age("old", 31)
    await site.age("older", 40)
    await site.age("oldest", 50)
    await site.age("failed", 40, phase=Phase.FAILED.value)
    await scene.client.enqueue(flyte.task(ActionId("p", "d", "running", "a0")))
    listed = await site.finish("gc", "--dry-run", "-o", "name")
    assert (listed.code, listed.err) == (ExitCode.OK, "")
    assert listed.out.split() == ["p/d/oldest", "p/d/older", "p/d/failed", "p/d/old"]
    assert await scene.is_whole("oldest")
    only = await site.finish("gc", "--dry-run", "--phase", "failed", "-o", "name")
    assert only.out == "p/d/failed\n"
    assert (await site.finish("gc", "--dry-run", "--project", "q", "-o", "name")).out == ""
    first = await site.done("gc", "--limit", "1")
    assert first[0].startswith("deleted p/d/oldest: ")
    rest = await site.done("gc", "--older-than", "35d")
    assert rest[-1].startswith("deleted 2 runs: 4 actions, ")
    for name in ("oldest", "older", "failed"):
        await eventually_holds(partial(scene.is_gone, name))
    assert await scene.is_whole("old")
    assert await scene.is_whole("young")
    assert (await site.done("gc"))[-1].startswith("deleted 1 run: 2 actions, ")


async def test_gc_of_a_run_that_cannot_be_decoded(site: Site) -> None:
    """No rule keeps it, so a person has to see why it stays."""
    scene = site.scene
    await scene.run("r")
    await site.age("r", 31)
    await scene.etcd.put(scene.keys.task_action(ActionId("p", "d", "r", "c9")), b"?")
    failed = await site.finish("gc")
    assert failed.code == ExitCode.ACTION
    lines = [line for line in failed.err.splitlines() if line.startswith("etcd-actions: ")]
    assert lines[0].startswith("etcd-actions: could not delete p/d/r: ")
    assert lines[0].endswith("/r-c9 cannot be decoded")
    assert lines[-1].endswith("; could not delete 1")


async def test_files_in_another_store_are_named(site: Site) -> None:
    await site.scene.run("r")
    await site.scene.change_record("r", output_base="s3://bucket/p/d/r")
    deleted = await site.done("delete", "r")
    assert deleted[-1].startswith("the files of 1 run stay, since they are not in this blob store")
    assert "s3://bucket/p/d/r" in deleted[-1]


async def test_gc_of_attempts_and_uploads(site: Site) -> None:
    """On this machine: old attempts of actions that have ended, and unreferenced uploads."""
    scene = site.scene
    if "--service" in site.flags:
        refused = await site.finish("gc", "attempts", "uploads")
        assert refused.code == ExitCode.USAGE
        assert "a service has no method for these" in refused.complaint
        return
    state = site.folder / "executor"
    site.flags += ("--executor-state-dir", str(state))
    await scene.client.enqueue(flyte.task(ActionId("p", "d", "r", "a0")))
    open_action = await scene.client.get_task_action(ActionId("p", "d", "r", "a0"))
    ended = msgspec.structs.replace(open_action.incarnation, uid="another", create_revision=1)
    old = time.time() - 40 * 86_400
    places = [AttemptDirectory(state, each, 1).path for each in (ended, open_action.incarnation)]
    for place in places:
        place.mkdir(parents=True)
        os.utime(place, (old, old))
    planned = await site.done("gc", "attempts", "--dry-run")
    assert planned == [f"would delete 1 attempt in {state}"]
    assert [place.exists() for place in places] == [True, True]
    assert await site.done("gc", "attempts") == [f"deleted 1 attempt in {state}"]
    assert [place.exists() for place in places] == [False, True]

    refused = await site.finish("gc", "uploads", "--older-than", "1h")
    assert "give 48h or more for uploads" in refused.complaint
    # Also no name of the deployment, which the first upload creates.
    before = await scene.there(scene.keys.own)
    assert await site.done("gc", "uploads", "--dry-run") == [
        "would move no file: no upload was stored yet"
    ]
    assert await scene.there(scene.keys.own) == before
    uploads = await site.done("gc", "uploads")
    assert uploads[0].startswith("moved 0 files to the trash")


async def test_no_service_of_ours() -> None:
    away = await trio.to_thread.run_sync(
        partial(finish, "gc", "--service", f"127.0.0.1:{free_port()}")
    )
    assert away.code == ExitCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("age", "problem"), [("30", "not an age"), ("d", "not an age"), ("x", "not an age")]
)
def test_bad_ages(age: str, problem: str) -> None:
    done = finish("gc", "--older-than", age)
    assert (done.code, problem in done.complaint) == (ExitCode.USAGE, True)


@pytest.mark.faults
async def test_a_killed_deletion_is_finished_by_the_next(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """Killed between two of its transactions: the run has expired, and the next one finds it."""
    async with open_scene(etcd, prefix, tmp_path) as scene:
        await scene.run("r", children=1500)
        root = scene.keys.task_action(ActionId("p", "d", "r", "a0"))
        site = Site(
            scene, tmp_path, "--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()
        )
        with running(tmp_path, "delete", "r", *site.flags) as deletion:

            async def has_started() -> bool:
                return await scene.store.get(root) is None

            await eventually_holds(has_started, within=30)
            deletion.signal(signal.SIGKILL)
            await deletion.wait()
        left = await scene.there(scene.keys.prefix)
        assert 0 < len(left) < 1501
        assert await scene.there(scene.keys.runs) == ["flyte/r"]
        finished = await site.done("delete", "r")
        assert finished[0].startswith(f"deleted p/d/r: {len(left)} actions, 1501 histories, ")
        await eventually_holds(partial(scene.is_gone, "r"))
