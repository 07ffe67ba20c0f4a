"""What is removed of whole runs, and what stays, on a real etcd with a clock of the test."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
import structlog.testing
import trio

from etcd_actions import ActionId, ActionsClient, Phase, RunId, open_actions_client, open_etcd
from etcd_actions.actions.status import ActionStatus
from etcd_actions.app.collectors import run_collector
from etcd_actions.blobs import BlobError, BlobInfo, BlobStore, open_blob_store
from etcd_actions.catalog import Entry
from etcd_actions.catalog.cached_result import encode as encode_entry
from etcd_actions.config import Config
from etcd_actions.errors import NotFound, PermissionDenied, Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange, Status, Txn, TxnResult
from etcd_actions.model import Keyspace
from etcd_actions.runs.own_run_service import open_own_run_service
from etcd_actions.runs.reading import RunReader
from etcd_actions.runs.removal import Removed
from etcd_actions.runs.run_collector import RunCollector
from etcd_actions.runs.run_record import decode_record, encode
from etcd_actions.runs.space import Space
from etcd_actions.storage.store import Store
from tests.cli.test_named_files import of
from tests.support import flyte
from tests.support.etcd_server import EtcdServer, OwnEtcd
from tests.support.scene import PROCESSOR
from tests.support.waiting import eventually_holds

pytestmark = pytest.mark.memory(jumps=False)

KEEP = timedelta(days=30)


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


class Scene:
    """A process that leads, and the collector of a process like it."""

    def __init__(self, etcd: Etcd, client: ActionsClient, blobs: BlobStore) -> None:
        self.etcd, self.client, self.blobs = etcd, client, blobs
        self.keys, self.store, self.clock = client.keys, Store(etcd), Clock()
        self.commit: Callable[[Txn], object] | None = None

    def collector(self, *, space: Space | None = None) -> RunCollector:
        store = Store(self.etcd, self.commit)  # type: ignore[arg-type]
        return RunCollector(store, self.keys, KEEP, blobs=self.blobs, space=space, clock=self.clock)

    async def run(self, name: str, children: int = 1, *, open_child: bool = False) -> None:
        """A run that is over, with its data."""
        root = ActionId("p", "d", name, "a0")
        action = flyte.task(root)
        base = f"runs/p/d/{name}"
        action.run_output_base = self.blobs.native_url(base)
        action.input_uri = self.blobs.native_url(f"inputs/p/d/{name}/x/inputs.pb")
        for key in (f"inputs/p/d/{name}/x/inputs.pb", f"{base}/a0/1/outputs.pb"):
            await self.blobs.put(key, _parts(), most=10)
        # Young inputs stay.
        hour_ago = time.time() - 3600
        os.utime(action.input_uri, (hour_ago, hour_ago))
        await self.client.enqueue(action)
        ids = [ActionId("p", "d", name, f"c{number}") for number in range(children)]
        async with trio.open_nursery() as nursery:
            for each in ids:
                nursery.start_soon(self._child, each, open_child and each is ids[0])
        await self.client.put_status(root, 1, ActionStatus(Phase.SUCCEEDED))
        await eventually_holds(lambda: self._recorded(name, children, open_child))

    async def _child(self, child: ActionId, is_open: bool) -> None:
        await self.client.enqueue(flyte.task(child, "a0"))
        if not is_open:
            await self.client.put_status(child, 1, ActionStatus(Phase.SUCCEEDED))

    async def _recorded(self, name: str, children: int, open_child: bool) -> bool:
        listing = await self.client.list_run_actions(RunId("p", "d", name))
        recorded = sum(each.is_recorded for each in listing.actions)
        return recorded == children + 1 - open_child

    async def there(self, prefix: bytes) -> list[str]:
        kvs, _ = await self.store.read(KeyRange.of_prefix(prefix))
        return [kv.key[len(prefix) :].decode() for kv in kvs]

    async def data(self) -> list[str]:
        found = [info.key async for info in self.blobs.below("runs")]
        return found + [info.key async for info in self.blobs.below("inputs")]

    async def change_record(self, name: str, **changes: object) -> None:
        key = self.keys.run_record(ActionId("p", "d", name, "a0"))
        kv = await self.store.get(key)
        assert kv is not None
        record = msgspec.structs.replace(decode_record(kv.value), **changes)
        await self.etcd.put(key, encode(record))

    async def is_whole(self, name: str, children: int = 1) -> bool:
        """Whether all of a run is there."""
        mine = [
            each
            for each in await self.there(self.keys.prefix)
            if re.search(rf"/{name}-[ac][0-9]+$", each)
        ]
        told = [
            each
            for each in await self.there(self.keys.histories)
            if re.search(rf"/{name}-[ac][0-9]+$", each)
        ]
        data = [each for each in await self.data() if f"/{name}/" in each]
        return (len(mine), len(told), len(data)) == (children + 1, children + 1, 2)

    async def is_gone(self, name: str) -> bool:
        """Whether nothing of a run is there."""
        return not await self.left(name)

    async def left(self, name: str) -> list[str]:
        """What is there of a run."""
        side = await self.there(self.keys.own)
        keys = await self.there(self.keys.prefix) + side
        own = [each for each in keys if re.search(rf"/{name}(-[act][0-9]+)?$", each)]
        return own + [each for each in await self.data() if f"/{name}/" in each]


async def _parts() -> AsyncIterator[bytes]:
    yield b"data"


@asynccontextmanager
async def open_scene(etcd: Etcd, prefix: bytes, folder: Path) -> AsyncIterator[Scene]:
    keys = Keyspace(prefix)
    async with (
        open_own_run_service(etcd, keys) as own,
        open_actions_client(etcd, prefix=prefix, run_service=own, settings=PROCESSOR) as client,
    ):
        await client.start_watching()
        yield Scene(etcd, client, open_blob_store(folder / "blobs"))


@pytest.fixture
async def scene(etcd: Etcd, prefix: bytes, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(etcd, prefix, tmp_path) as scene:
        yield scene


@pytest.fixture
async def own_scene(own_etcd: OwnEtcd, prefix: bytes, tmp_path: Path) -> AsyncIterator[Scene]:
    """One whose etcd may be compacted."""
    async with (
        open_etcd(own_etcd.endpoint) as etcd,
        open_scene(etcd, prefix, tmp_path) as scene,
    ):
        yield scene


async def test_all_of_an_old_run_goes_and_a_younger_one_stays(scene: Scene) -> None:
    for name in ("r", "r-x"):
        await scene.run(name)
    await scene.client.enqueue(flyte.trace(ActionId("p", "d", "r", "t1"), "a0"))
    key = scene.keys.trace(ActionId("p", "d", "r", "t1"))
    assert await scene.store.get(key) is not None
    letter = scene.keys.dead_letters + b"flyte/r-a0/x"
    await scene.etcd.put(letter, b"{}")
    assert await scene.collector().sweep() == Removed()
    scene.clock.now += timedelta(days=31)
    await scene.change_record("r-x", status=None, created=scene.clock.now)
    collector = scene.collector()
    await eventually_holds(lambda: _has_recorded(scene, key))
    removed = await collector.sweep()
    assert (removed.records, removed.histories, removed.objects, removed.blobs) == (1, 2, 3, 2)
    assert collector.collected == removed
    assert await scene.store.get(letter) is not None
    await scene.etcd.delete(KeyRange.of_key(letter))
    assert await scene.left("r") == []
    assert await scene.is_whole("r-x")


async def _has_recorded(scene: Scene, key: bytes) -> bool:
    kv = await scene.store.get(key)
    return kv is not None and b"terminal-status-recorded" in kv.value


async def test_a_run_with_an_action_that_goes_on_stays_whole(scene: Scene) -> None:
    await scene.run("r", children=2, open_child=True)
    scene.clock.now += timedelta(days=31)
    assert await scene.collector().sweep() == Removed()
    assert len(await scene.there(scene.keys.prefix)) == 3
    assert len(await scene.data()) == 2


async def test_what_is_enqueued_meanwhile_keeps_its_run(scene: Scene) -> None:
    """Between the look at the run and the transaction that begins to remove it."""
    await scene.run("r")
    scene.clock.now += timedelta(days=31)
    late = ActionId("p", "d", "r", "late")

    async def commit(txn: Txn) -> TxnResult:
        if await scene.store.get(scene.keys.task_action(late)) is None:
            await scene.client.enqueue(flyte.task(late, "a0"))
        return await scene.etcd.txn(txn)

    scene.commit = commit
    assert await scene.collector().sweep() == Removed()
    assert len(await scene.there(scene.keys.prefix)) == 3


@pytest.mark.slow
async def test_a_run_cut_off_in_its_removal_has_expired_and_is_finished(scene: Scene) -> None:
    """After each of its writes in turn; the next collector goes on where it was."""
    reader = RunReader(scene.client)
    for writes in range(1, 4):
        name = f"r{writes}"
        await scene.run(name, children=120 if writes == 1 else 1)
        left = writes

        async def commit(txn: Txn) -> TxnResult:
            nonlocal left
            left -= 1
            if left < 0:
                raise Unavailable("killed")
            return await scene.etcd.txn(txn)

        scene.commit = commit
        scene.clock.now = datetime.now(UTC) + timedelta(days=31)
        if writes < 3:
            with pytest.raises(Unavailable):
                await scene.collector().sweep()
            found = await reader.run(ActionId("p", "d", name, "a0"))
            assert (found.action, found.record is not None) == (None, True)
        scene.commit = None
        await scene.collector().sweep()
        await eventually_holds(partial(scene.is_gone, name))
        with pytest.raises(NotFound):
            await reader.run(ActionId("p", "d", name, "a0"))


class Unreadable:
    """A store that does not answer who reads."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def read(self, key: str) -> object:
        raise BlobError(f"not {key} now")


@pytest.mark.parametrize("is_readable", [True, False])
async def test_outputs_that_a_run_got_stay(scene: Scene, *, is_readable: bool) -> None:
    await scene.run("first")
    await scene.run("plain")
    scene.clock.now += KEEP * 2
    await scene.run("second")
    key = "inputs/p/d/second/y/inputs.pb"
    url = scene.blobs.native_url("runs/p/d/first/a0/1/part.txt")

    async def named() -> AsyncIterator[bytes]:
        yield b"\x0a\x30" + url.encode() + b"2\x04"

    await scene.blobs.put(key, named(), most=1000)
    await scene.change_record(
        "second",
        created=scene.clock.now,
        status=None,
        input_uri=scene.blobs.native_url(key),
    )
    if not is_readable:
        scene.blobs = Unreadable(scene.blobs)  # type: ignore[assignment]
    collector = scene.collector()
    await collector.sweep()
    assert "runs/p/d/first/a0/1/outputs.pb" in await scene.data()
    assert await scene.is_gone("plain") is is_readable
    assert "flyte/first" in await scene.there(scene.keys.runs)
    if is_readable:
        # Once nobody names them they go.
        await scene.change_record("second", input_uri="")
        await collector.sweep()
        assert await scene.is_gone("first")


async def test_what_others_need_of_a_run_stays(scene: Scene) -> None:
    """A cached result, a run that recovers from it, and a run with the same inputs."""
    for name in ("cached", "recovered", "same", "plain"):
        await scene.run(name)
    scene.clock.now += timedelta(days=31)
    entry = Entry(
        cache_key="k",
        project="p",
        domain="d",
        run="cached",
        action="a0",
        attempt=1,
        created=scene.clock.now,
        kept_until=scene.clock.now,
    )
    await scene.etcd.put(scene.keys.catalog + b"entries/global/k", encode_entry(entry))
    inputs = scene.blobs.native_url("inputs/p/d/same/x/inputs.pb")
    await scene.run("young")
    await scene.change_record(
        "young", created=scene.clock.now, status=None, recovered_from="recovered", input_uri=inputs
    )
    removed = await scene.collector().sweep()
    assert (removed.records, removed.objects) == (2, 8)
    assert await scene.is_gone("plain")
    expected = [
        "inputs/p/d/cached/x/inputs.pb",
        "inputs/p/d/recovered/x/inputs.pb",
        "inputs/p/d/same/x/inputs.pb",
        "inputs/p/d/young/x/inputs.pb",
        "runs/p/d/cached/a0/1/outputs.pb",
        "runs/p/d/recovered/a0/1/outputs.pb",
        "runs/p/d/young/a0/1/outputs.pb",
    ]
    assert sorted(await scene.data()) == expected
    assert sorted(await scene.there(scene.keys.runs)) == [
        "flyte/cached",
        "flyte/recovered",
        "flyte/young",
    ]


async def test_inputs_that_are_stored_again_during_their_removal_stay(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new run is about to name them: the age is checked by the deletion itself."""
    await scene.run("first")
    scene.clock.now += timedelta(days=31)
    stat = scene.blobs.stat

    async def then_stored_again(key: str) -> BlobInfo | None:
        found = await stat(key)
        if key.startswith("inputs/"):
            os.utime(scene.blobs.native_url(key), (scene.clock.now.timestamp(),) * 2)
        return found

    monkeypatch.setattr(scene.blobs, "stat", then_stored_again)
    await scene.collector().sweep()
    assert await scene.there(scene.keys.runs) == []
    assert await scene.data() == ["inputs/p/d/first/x/inputs.pb"]


async def test_only_what_is_below_the_runs_own_place_is_deleted(scene: Scene) -> None:
    await scene.run("victim")
    await scene.run("r")
    scene.clock.now += timedelta(days=31)
    await scene.change_record("victim", status=None, created=scene.clock.now)
    for base in ("runs/p/d/victim", "runs/p/d", "runs", "inputs"):
        await scene.change_record(
            "r",
            output_base=scene.blobs.native_url(base),
            input_uri=scene.blobs.native_url("runs/p/d/victim/a0/1/outputs.pb"),
        )
        await scene.collector().sweep()
        assert await scene.is_whole("victim")
        await scene.run("r")


async def test_while_blobs_cannot_be_deleted_the_record_says_where_they_are(
    scene: Scene,
) -> None:
    await scene.run("r")
    scene.clock.now += timedelta(days=31)
    delete = scene.blobs.delete

    async def fails(key: str, *, unless_after: float | None = None) -> bool:
        raise BlobError("the disk is away")

    scene.blobs.delete = fails  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as logs:
        removed = await scene.collector().sweep()
    assert (removed.records, removed.histories, removed.objects) == (0, 0, 2)
    assert [each["error"] for each in logs if each["event"] == "blobs_not_collected"] == [
        "the disk is away"
    ]
    scene.blobs.delete = delete  # type: ignore[method-assign]
    assert (await scene.collector().sweep()).blobs == 2
    assert await scene.is_gone("r")


class Full:
    """An etcd that is as full as it is told to be."""

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self.in_use = 0
        self.quota = 1 << 30
        self.error: Exception | None = None

    async def status(self) -> Status:
        if self.error is not None:
            raise self.error
        status = await self._etcd.status()
        return status._replace(db_size_in_use=self.in_use, db_size_quota=self.quota)

    def __getattr__(self, name: str) -> object:
        return getattr(self._etcd, name)


async def compacted(scene: Scene) -> None:
    key = scene.keys.own + b"x"
    put = await scene.etcd.put(key, b"")
    await scene.etcd.compact(put.revision)


@pytest.mark.parametrize(("in_use", "gone"), [(1, ["r1"]), (10_000, ["r1", "r2"])])
async def test_so_much_goes_as_is_too_much(own_scene: Scene, in_use: int, gone: list[str]) -> None:
    scene, now = own_scene, own_scene.clock.now
    for number, name in enumerate(("r1", "r2", "r3")):
        await scene.run(name)
        key = scene.keys.run_record(ActionId("p", "d", name, "a0"))
        kv = await scene.store.get(key)
        assert kv is not None
        status = decode_record(kv.value).status
        assert status is not None
        ended = now - timedelta(days=5 - number) if name != "r3" else now
        status = msgspec.structs.replace(status, ended=ended)
        await scene.change_record(name, status=status)
    scene.clock.now += timedelta(minutes=1)
    full = Full(scene.etcd)
    collector = scene.collector(
        space=Space(full, scene.keys.runs, 0.5)  # type: ignore[arg-type]
    )
    full.in_use = (1 << 29) + in_use
    # Before a compaction nobody knows what is in use.
    assert await collector.sweep() == Removed()
    await compacted(scene)
    removed = await collector.sweep()
    assert removed.records == len(gone)
    assert removed.bytes > 0
    for name in gone:
        assert await scene.left(name) == []
    # What was deleted is freed by the next compaction only.
    assert await collector.sweep() == Removed()
    full.in_use = 1 << 30
    await compacted(scene)
    await collector.sweep()
    # One that ended just now stays, however full it is.
    assert await scene.there(scene.keys.runs) == ["flyte/r3"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"executor": "none", "run_service": "http://127.0.0.1:9"}, (0, 0)),
        ({"executor": "local", "run_service": "http://127.0.0.1:9"}, (2, 2)),
        ({"executor": "none"}, (2, 2)),
    ],
)
async def test_objects_and_data_are_left_to_flytes_executor_where_it_runs(
    scene: Scene, flags: dict[str, str], expected: tuple[int, int]
) -> None:
    await scene.run("r")
    config = Config(of(retain_runs="1ms", **flags), None)
    collector = run_collector(scene.client, scene.etcd, config, blobs=scene.blobs, quota=None)
    removed = await collector.sweep()
    assert (removed.records, removed.histories) == (1, 2)
    assert (removed.objects, removed.blobs) == expected


def said(logs: Sequence[Mapping[str, object]]) -> list[str]:
    return [event for each in logs if (event := str(each["event"])).startswith("share")]


async def test_where_status_may_not_be_asked_that_is_said_once(scene: Scene) -> None:
    full = Full(scene.etcd)
    space = Space(full, scene.keys.runs, 0.5)  # type: ignore[arg-type]
    collector = scene.collector(space=space)
    full.error = PermissionDenied("permission denied")
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            assert await collector.sweep() == Removed()
    assert said(logs) == ["share_not_enforced"]
    full.error, full.quota = None, 0
    with structlog.testing.capture_logs() as logs:
        assert await scene.collector(space=Space(full, b"x", 0.5)).sweep() == Removed()  # type: ignore[arg-type]
    assert said(logs) == ["share_not_enforced"]
    assert "--etcd-quota" in str(logs)


@pytest.mark.slow
async def test_a_large_run_is_collected_while_a_younger_one_goes_on(scene: Scene) -> None:
    await scene.run("old", children=200)
    scene.clock.now += timedelta(days=31)
    root = ActionId("p", "d", "young", "a0")
    await scene.client.enqueue(flyte.task(root))
    done = trio.Event()

    async def grow() -> None:
        for number in range(100):
            child = ActionId("p", "d", "young", f"c{number}")
            await scene.client.enqueue(flyte.task(child, "a0"))
            await scene.client.put_status(child, 1, ActionStatus(Phase.SUCCEEDED))
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(grow)
        removed = await scene.collector().sweep()
        await done.wait()
    assert removed.records == 1
    await eventually_holds(lambda: scene.is_gone("old"))
    listing = await scene.client.list_run_actions(root.run_id)
    assert len(listing.actions) == 101


async def _collect_and_die(endpoint: str, prefix: str, folder: str, writes: int) -> None:
    """A process that is killed when it has written so often."""
    async with open_etcd(endpoint) as etcd:

        async def commit(txn: Txn) -> TxnResult:
            nonlocal writes
            writes -= 1
            if writes < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return await etcd.txn(txn)

        later = datetime.now(UTC) + timedelta(days=31)
        blobs = open_blob_store(Path(folder))
        store, keys = Store(etcd, commit), Keyspace(prefix.encode())
        collector = RunCollector(store, keys, KEEP, blobs=blobs, clock=lambda: later)
        await collector.sweep()


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("writes", [1, 2, 3])
async def test_a_process_killed_in_a_removal_leaves_an_expired_run(
    scene: Scene, shared_etcd: EtcdServer, tmp_path: Path, writes: int
) -> None:
    """Behind a part of its objects, all of them, and a part of its histories; the next one ends."""
    await scene.run("r", children=120)
    program = "import sys; from tests.runs.test_removal import killed; killed(*sys.argv[1:])"
    prefix = scene.keys.prefix.decode()
    arguments = [shared_etcd.endpoint, prefix, str(tmp_path / "blobs"), str(writes)]
    died = await trio.run_process(
        [sys.executable, "-c", program, *arguments], check=False, cwd=Path(__file__).parents[2]
    )
    assert died.returncode == -signal.SIGKILL
    root = ActionId("p", "d", "r", "a0")
    found = await RunReader(scene.client).run(root)
    assert found.action is None
    assert found.record is not None
    assert found.record.status is not None
    assert found.record.status.phase == Phase.SUCCEEDED
    scene.clock.now += timedelta(days=31)
    assert (await scene.collector().sweep()).records == 1
    await eventually_holds(partial(scene.is_gone, "r"))


def killed(endpoint: str, prefix: str, folder: str, writes: str) -> None:
    """Run `_collect_and_die` in a process of its own."""
    trio.run(_collect_and_die, endpoint, prefix, folder, int(writes))
