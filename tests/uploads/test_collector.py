"""The collector of uploads: what nothing names goes, and nothing else does."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import structlog.testing
import trio

from etcd_actions.blobs import BlobError
from etcd_actions.blobs.upload_keys import trash_key
from etcd_actions.etcd.api import KeyRange
from etcd_actions.images import StoredImage
from etcd_actions.uploads import SweepResult
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually
from tests.uploads.collecting import meanwhile
from tests.uploads.test_references import literal, spec_of
from tests.uploads.world import KEEP, ROOT, World

pytestmark = pytest.mark.memory(jumps=False)


async def test_what_nothing_names_goes_step_by_step(world: World) -> None:
    key = await world.upload()
    collector = world.collector()
    world.now += KEEP - timedelta(hours=1)
    assert [await collector.sweep() for _ in range(2)] == [SweepResult(), SweepResult()]
    world.now += timedelta(hours=2)
    # One mark is not enough.
    assert await collector.sweep() == SweepResult()
    assert await world.there(key)
    assert await collector.sweep() == SweepResult(moved=1)
    assert await world.stored() == [trash_key(world.deployment, int(world.now.timestamp()), key)]
    world.now += timedelta(minutes=59)
    assert await collector.sweep() == SweepResult()
    world.now += timedelta(minutes=2)
    assert await collector.sweep() == SweepResult(uploads=1, bytes=4)
    assert await world.stored() == []
    assert await collector.sweep() == SweepResult()


async def test_an_upload_of_the_same_content_counts_as_new(world: World) -> None:
    key = await world.upload()
    old = world.now.timestamp() - 3600
    os.utime(world.blobs.native_url(key), (old, old))
    await world.upload()
    world.now += KEEP - timedelta(minutes=10)
    await world.sweeps(times=1)
    await world.sweeps(times=1)
    collector = world.collector()
    world.now -= timedelta(hours=4)
    assert [await collector.sweep() for _ in range(3)] == [SweepResult()] * 3
    assert await world.there(key)


async def test_what_is_uploaded_again_before_it_is_moved_stays(world: World) -> None:
    key = await world.upload()
    world.now += KEEP * 2
    done = await world.sweeps(world.collector(blobs=meanwhile(world, before=world.upload)))
    assert await world.stored() == [key]
    assert done == SweepResult()


async def test_what_is_uploaded_again_while_it_is_moved_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await world.upload()
    path = world.blobs.native_url(key)
    link = os.link

    def refreshed(*args: object, **named: object) -> None:
        link(*args, **named)  # type: ignore[arg-type]
        os.utime(path)

    world.now += KEEP * 2
    collector = world.collector()
    await collector.sweep()
    monkeypatch.setattr(os, "link", refreshed)
    assert await collector.sweep() == SweepResult()
    assert await world.stored() == [key]


@pytest.mark.parametrize("is_replaced", [True, False])
async def test_an_upload_notices_that_the_same_was_moved_away(
    world: World, monkeypatch: pytest.MonkeyPatch, *, is_replaced: bool
) -> None:
    key = await world.upload()
    path = Path(world.blobs.native_url(key))
    utime = os.utime
    moved: list[Path] = []

    def too_late(descriptor: int) -> None:
        utime(descriptor)
        if not moved:
            moved.append(path.rename(world.folder / "elsewhere"))
            if is_replaced:
                path.write_bytes(b"code")
                utime(path, (1, 1))

    monkeypatch.setattr(os, "utime", too_late)
    await world.upload()
    assert moved
    assert path.read_bytes() == b"code"
    assert path.stat().st_mtime > 1


async def test_what_is_uploaded_again_after_it_was_moved_is_another_file(world: World) -> None:
    key = await world.upload()
    world.now += KEEP * 2
    store = meanwhile(world, after=world.upload)
    done = await world.sweeps(world.collector(blobs=store))
    assert await world.stored() == [key]
    assert done == SweepResult(uploads=1, bytes=4, moved=1)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_a_run_names_while_it_is_swept_gets_its_place_back(
    world: World, when: str
) -> None:
    key = await world.upload()
    spec = spec_of(world.blobs.native_url(key))

    async def run() -> None:
        await world.etcd.put(world.keys.run_task(ROOT), spec.SerializeToString())

    world.now += KEEP * 2
    store = meanwhile(world, **{when: run})
    done = await world.sweeps(world.collector(blobs=store))
    assert await world.stored() == [key]
    assert done == SweepResult(moved=1, restored=1)


async def test_inputs_bring_back_what_they_name(world: World) -> None:
    key = await world.upload()
    inputs = await world.inputs(literal(world.blobs.native_url(key)))
    world.now += KEEP * 2
    collector = world.collector()
    assert (await world.sweeps(collector, 2)).moved == 2
    assert not await world.there(key)
    # Of a client that kept the URL. It is in the trash for longer than needed.
    await world.record(input_uri=inputs)
    done = await world.sweeps(collector, 3)
    assert (done.restored, done.uploads) == (2, 0)
    assert await world.there(key)
    assert Path(inputs).exists()


async def test_inputs_that_a_run_names_while_they_are_swept_bring_back_what_they_name(
    world: World,
) -> None:
    key = await world.upload()
    inputs = await world.inputs(literal(world.blobs.native_url(key)))
    world.now += KEEP * 2
    store = meanwhile(world, after=lambda: world.record(input_uri=inputs))
    collector = world.collector(blobs=store)
    await collector.sweep()
    assert await collector.sweep() == SweepResult(moved=2, restored=2)
    assert await world.there(key)


async def test_what_is_of_others_stays(world: World) -> None:
    digest = "ab" * 16
    others = [
        f"uploads/p/d/content/{digest}/code.tar.gz",
        "uploads/p/d/named/x/y",
        f"uploads/p/d/{'f' * 16}/content/{digest}/code.tar.gz",
        f"uploads/p/d/{world.deployment}/content/no-digest/x",
        f"inputs/p/d/{'f' * 16}/{digest}/inputs.pb",
        "inputs/p/d/r1/x/inputs.pb",
        f"trash/{'f' * 16}/1/uploads/p/d/{world.deployment}/content/{digest}/x",
        f"trash/{world.deployment}/1/uploads/p/d/{'f' * 16}/content/{digest}/x",
        "runs/p/d/r1/a0/1/outputs.pb",
    ]
    for each in others:
        await world.put(each, b"x")
    world.now += KEEP * 2
    assert await world.sweeps() == SweepResult()
    assert sorted(await world.stored()) == sorted(others)


async def test_no_link_leads_elsewhere(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    mine = world.folder / f"uploads/p/d/{world.deployment}"
    key = await world.upload()
    digest = "cd" * 16
    (mine / "content" / digest).mkdir()
    (mine / "content" / digest / "code.tar.gz").symlink_to(outside / "precious")
    (mine / "content" / ("ef" * 16)).symlink_to(outside)
    (mine / "named").symlink_to(outside)
    (world.folder / "inputs").symlink_to(outside)
    world.now += KEEP * 2
    assert (await world.sweeps()).uploads == 1
    assert not await world.there(key)
    # The trash itself may be one.
    again = await world.upload(b"again")
    (world.folder / "trash").symlink_to(outside)
    world.now += KEEP * 2
    with pytest.raises(BlobError):
        await world.sweeps()
    assert await world.there(again)
    assert [each.name for each in outside.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    "name", first_everyday(["a\\b", "%2e%2e%2f", "..x", "x" * 255, "ünï", "a b", "*?[", "-rf"], 3)
)
async def test_whatever_an_upload_is_called_it_goes(world: World, name: str) -> None:
    await world.upload(name=name)
    await world.named(name, name)
    world.now += KEEP * 2
    assert (await world.sweeps()).uploads == 2
    assert await world.stored() == []


async def test_a_dry_run_only_says_what_would_go(world: World) -> None:
    key = await world.upload()
    await world.images.put(StoredImage(name="n:t", spec=b"x"))
    world.now += KEEP * 2
    done = await world.sweeps(world.collector(dry_run=True))
    assert (done.moved, done.uploads, done.images) == (2, 0, 0)
    assert await world.stored() == [key]
    assert await world.images.named("n:t") is not None


async def test_only_so_many_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etcd_actions.uploads.upload_collector._MOST", 3)
    for number in range(5):
        key = await world.upload(b"%d" % number)
        await world.inputs(literal(world.blobs.native_url(key)))
    world.now += KEEP * 2
    collector = world.collector()
    assert [(await collector.sweep()).moved for _ in range(6)] == [0, 3, 3, 3, 1, 0]


async def test_the_leader_alone_sweeps_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_FIRST", "_SOON", "_EVERY", "_LEADS_EVERY"):
        monkeypatch.setattr(f"etcd_actions.uploads.upload_collector.{name}", 0.001)
    await world.upload()
    world.now += KEEP * 2
    leads, asked = False, 0

    def is_leading() -> bool:
        nonlocal asked
        asked += 1
        # A day between two looks.
        world.now += timedelta(days=1)
        return leads

    collector = world.collector()
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collector.run, is_leading)
            await eventually(lambda: asked > 5)
            assert len(await world.stored()) == 1
            leads = True
            await eventually(lambda: collector.collected.uploads == 1)
            nursery.cancel_scope.cancel()
    events = [each for each in logs if each["event"] == "uploads_collected"]
    assert [(each["moved"], each["uploads"]) for each in events] == [(1, 0), (0, 1)]


class TestImages:
    """Definitions of images."""

    async def test_what_nothing_names_goes(self, world: World) -> None:
        reference = await world.images.put(StoredImage(name="n:t", spec=b"x"))
        # Two names of one definition; another one is named by what a run runs.
        await world.images.put(StoredImage(name="m:t", spec=b"x"))
        named = await world.images.put(StoredImage(name="k:t", spec=b"y"))
        spec = spec_of("")
        spec.task_template.container.image = str(named)
        await world.etcd.put(world.keys.run_task(ROOT), spec.SerializeToString())
        world.now += KEEP - timedelta(hours=8)
        assert (await world.sweeps()).images == 0
        world.now += timedelta(days=1)
        assert (await world.sweeps()).images == 1
        assert await world.images.get(reference.digest) is None
        assert await world.images.named("k:t") is not None
        names, _ = await world.store.read(KeyRange.of_prefix(world.keys.images + b"names/"))
        assert [kv.key.rpartition(b"/")[2] for kv in names] == [b"k:t"]

    async def test_what_is_asked_for_stays(self, world: World) -> None:
        reference = await world.images.put(StoredImage(name="n:t", spec=b"x"))
        collector = world.collector()
        world.now += KEEP * 2
        await collector.sweep()
        assert await world.images.use(reference.digest)
        assert (await world.sweeps(collector)).images == 0
        assert await world.images.use(reference.digest)

    async def test_what_is_asked_for_while_it_is_swept_stays(self, world: World) -> None:
        reference = await world.images.put(StoredImage(name="n:t", spec=b"x"))
        world.now += KEEP * 2
        (seen,) = await world.images.unused(world.now - KEEP)
        assert await world.images.use(reference.digest)
        assert not await world.images.remove(seen)
        assert await world.images.get(reference.digest) is not None

    async def test_what_is_gone_is_not_used(self, world: World) -> None:
        assert not await world.images.use("0" * 64)

    async def test_of_an_earlier_version_the_age_begins_now(self, world: World) -> None:
        image = StoredImage(name="n:t", spec=b"x")
        key = world.keys.images + b"definitions/" + image.digest.encode()
        await world.etcd.put(key, msgspec.json.encode(image))
        world.now += KEEP * 2
        assert (await world.sweeps()).images == 0
        world.now += KEEP * 2
        assert (await world.sweeps()).images == 1

    async def test_a_definition_that_cannot_be_read_stays(self, world: World) -> None:
        await world.etcd.put(world.keys.images + b"definitions/x", b"?")
        world.now += KEEP * 2
        assert await world.sweeps() == SweepResult()
