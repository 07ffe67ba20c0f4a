"""The collector of uploads where etcd, the store or a process fails: what is named stays."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import trio

from etcd_actions.blobs import BlobError, BlobInfo
from etcd_actions.blobs.upload_keys import trash_key
from etcd_actions.errors import EtcdError, Unavailable
from etcd_actions.etcd.api import KeyRange
from etcd_actions.uploads import Incomplete
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday
from tests.uploads.collecting import Meanwhile, meanwhile
from tests.uploads.test_references import literal, spec_of
from tests.uploads.world import KEEP, ROOT, World

pytestmark = pytest.mark.memory(jumps=False)


class _Away:
    """An etcd that goes away at the n-th reading of a range of keys."""

    def __init__(self, world: World, calls: int) -> None:
        self.calls = calls
        self._each = world.store.each

    async def __call__(self, keys: KeyRange) -> AsyncGenerator[object]:
        self.calls -= 1
        async with aclosing(self._each(keys)) as kvs:
            async for kv in kvs:
                if not self.calls:
                    raise Unavailable("etcd is away")
                yield kv


@pytest.mark.parametrize("calls", [1, 3])
async def test_where_etcd_is_away_nothing_goes(
    world: World, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    key = await world.upload()
    await world.record()
    world.now += KEEP * 2
    collector = world.collector()
    await collector.sweep()
    away = _Away(world, calls)
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "each", away)
        with pytest.raises(EtcdError, match="etcd is away"):
            await collector.sweep()
    assert away.calls == 0
    assert await world.stored() == [key]


async def _undecodable(world: World) -> None:
    await world.etcd.put(world.keys.run_record(ROOT), b"{}")


async def _of_a_later_version(world: World) -> None:
    await world.record()
    kv = await world.store.get(world.keys.run_record(ROOT))
    assert kv is not None
    value = msgspec.json.decode(kv.value) | {"form": 2}
    await world.etcd.put(kv.key, msgspec.json.encode(value))


async def _no_object(world: World) -> None:
    await world.etcd.put(world.keys.task_action(ROOT), b"k8s:enc:aescbc:v1:x")


async def _elsewhere(world: World) -> None:
    await world.record(input_uri="s3://elsewhere/inputs.pb")


@pytest.mark.parametrize(
    "spoil", first_everyday([_undecodable, _of_a_later_version, _no_object, _elsewhere], 2)
)
async def test_where_something_cannot_be_read_nothing_goes(
    world: World, spoil: Callable[[World], Awaitable[None]]
) -> None:
    key = await world.upload()
    world.now += KEEP * 2
    collector = world.collector()
    await collector.sweep()
    await spoil(world)
    with pytest.raises(Incomplete):
        await collector.sweep()
    assert await world.stored() == [key]
    # What is in the trash stays there, too.
    await world.forget()
    await collector.sweep()
    await spoil(world)
    world.now += timedelta(days=1)
    with pytest.raises(Incomplete):
        await collector.sweep()
    assert len(await world.stored()) == 1


async def test_where_the_store_does_not_answer_nothing_goes(world: World) -> None:
    class Failing(Meanwhile):
        def read(self, key: str) -> AbstractAsyncContextManager[object]:
            raise BlobError(f"not {key} now")

    key = await world.upload()
    inputs = await world.inputs(literal(world.blobs.native_url(key)))
    await world.record(input_uri=inputs)
    world.now += KEEP * 2
    failing = Failing(world.blobs)
    with pytest.raises(BlobError, match=r"not inputs/.* now"):
        await world.sweeps(world.collector(blobs=failing))  # type: ignore[arg-type]
    assert failing.moved == []
    assert await world.there(key)


async def test_who_is_cut_off_in_the_middle_is_followed_by_another(world: World) -> None:
    keys = [await world.upload(b"%d" % number) for number in range(4)]
    named = spec_of(world.blobs.native_url(keys[0]))
    world.now += KEEP * 2
    with trio.CancelScope() as scope:

        async def cut() -> None:
            await world.etcd.put(world.keys.run_task(ROOT), named.SerializeToString())
            scope.cancel()
            await trio.lowlevel.checkpoint()

        await world.sweeps(world.collector(blobs=meanwhile(world, after=cut)))
    assert scope.cancelled_caught
    assert len(await world.stored()) == 4
    world.now += timedelta(days=1)
    await world.sweeps(times=4)
    assert await world.stored() == [keys[0]]


@pytest.mark.parametrize("is_named", [True, False])
async def test_a_move_that_was_cut_off_left_two_names(world: World, *, is_named: bool) -> None:
    key = await world.upload()
    trash = world.folder / trash_key(world.deployment, int(world.now.timestamp()), key)
    trash.parent.mkdir(parents=True)
    trash.hardlink_to(world.folder / key)
    if is_named:
        spec = spec_of(world.blobs.native_url(key))
        await world.etcd.put(world.keys.run_task(ROOT), spec.SerializeToString())
    world.now += KEEP * 2
    await world.sweeps(times=4)
    assert await world.stored() == ([key] if is_named else [])


@pytest.mark.parametrize("seed", first_everyday(range(12)))
async def test_exactly_what_can_be_reached_stays(world: World, seed: int) -> None:
    """Random uploads, inputs that name some, runs and tasks that come and go."""
    chance = random.Random(seed)
    uploads: list[str] = []
    for number in range(12):
        kind = chance.choice((world.upload, world.named))
        if kind == world.upload:
            uploads.append(await world.upload(b"%d" % number, chance.choice("ab")))
        else:
            uploads.append(await world.named(f"x{number:02}", chance.choice("ab")))
    inputs: list[tuple[str, list[str]]] = []
    for _ in range(6):
        names = chance.sample(uploads, chance.randrange(4))
        data = b"".join(literal(world.blobs.native_url(each)) for each in names)
        inputs.append((await world.inputs(data), names))
    world.now += KEEP * 2
    collector = world.collector()
    runs: dict[str, set[str]] = {}
    tasks: dict[str, set[str]] = {}
    for step in range(12):
        name = f"r{chance.randrange(4)}"
        choice = chance.randrange(4)
        alive = [each for each in uploads if await world.there(each)]
        readable = [each for each in inputs if Path(each[0]).exists()]
        if choice == 0 and readable:
            url, names = chance.choice(readable)
            if all([await world.there(each) for each in names]):
                await world.record(name, input_uri=url)
                runs[name] = {url, *map(world.blobs.native_url, names)}
        elif choice == 1 and alive:
            url = world.blobs.native_url(chance.choice(alive))
            key = world.keys.tasks + name.encode()
            await world.etcd.put(key, msgspec.json.encode({"spec": literal(url)}))
            tasks[name] = {url}
        elif choice == 2:
            await world.delete(world.keys.runs)
            runs.clear()
        await collector.sweep()
        if step % 2:
            world.now += timedelta(hours=2)
        needed = set().union(*runs.values(), *tasks.values())
        for url in needed:
            assert Path(url).exists()
    await world.sweeps(collector, 4)
    needed = set().union(*runs.values(), *tasks.values())
    assert {world.blobs.native_url(each) for each in await world.stored()} == needed


async def test_a_store_that_tells_no_time_keeps_everything(world: World) -> None:
    class Timeless:
        def __getattr__(self, name: str) -> object:
            return getattr(world.blobs, name)

        async def below(self, prefix: str) -> AsyncGenerator[BlobInfo]:
            async for each in world.blobs.below(prefix):
                yield each._replace(modified=0.0)

    key = await world.upload()
    world.now += KEEP * 2
    await world.sweeps(world.collector(blobs=Timeless()))  # type: ignore[arg-type]
    assert await world.there(key)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("changes", range(0, 16, 3))
async def test_wherever_a_process_is_killed_the_next_one_finds_everything(
    world: World, shared_etcd: EtcdServer, changes: int
) -> None:
    """In the middle of a move, between moves, and while the trash is emptied."""
    keys = [await world.upload(b"%d" % number) for number in range(3)]
    kept = await world.upload(b"kept")
    spec = spec_of(world.blobs.native_url(kept))
    await world.etcd.put(world.keys.run_task(ROOT), spec.SerializeToString())
    program = "import sys; from tests.uploads.collecting import killed; killed(*sys.argv[1:])"
    prefix = world.keys.prefix.decode()
    arguments = [shared_etcd.endpoint, prefix, str(world.folder), str(changes)]
    died = await trio.run_process(
        [sys.executable, "-c", program, *arguments], check=False, cwd=Path(__file__).parents[2]
    )
    assert died.returncode == -signal.SIGKILL
    assert await world.there(kept)
    # Whatever is left is needed after all, as far as it was not deleted by then.
    stored = await world.stored()
    left = {each for each in keys if any(found.endswith(each) for found in stored)}
    assert len(left) >= 2
    for number, key in enumerate(left):
        named = spec_of(world.blobs.native_url(key)).SerializeToString()
        await world.etcd.put(world.keys.run_tasks + b"flyte/x%d" % number, named)
    world.now += KEEP * 2
    await world.sweeps(times=4)
    assert set(await world.stored()) == left | {kept}
    await world.forget()
    await world.sweeps(times=5)
    assert await world.stored() == []
