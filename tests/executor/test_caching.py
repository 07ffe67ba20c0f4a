"""Cached results: used, made, replaced, waited for; and what is wrong with them does no harm."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.core.interface_pb2 import VariableEntry
from flyteidl2.core.literals_pb2 import Blob, Literal, LiteralCollection, Primitive, Scalar
from flyteidl2.core.tasks_pb2 import TaskTemplate
from flyteidl2.task.common_pb2 import Inputs, NamedLiteral, Outputs
from flyteidl2.task.run_pb2 import CacheConfig, CacheLookupScope, RunSpec

from etcd_actions import ActionId, ActionsClient, Phase
from etcd_actions.catalog import Catalog, scope_of
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.executor.cache import caching
from etcd_actions.executor.cache.cache_keys import cache_key
from etcd_actions.executor.cache.cached_outputs import CACHE, MOST_IN_ETCD, sweep_cache
from etcd_actions.model import ActionObject, Keyspace, ObjectMeta, TaskActionSpec
from etcd_actions.storage.claims import Claim
from tests.executor.fakes import Bench
from tests.executor.tasks import until
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory(jumps=False)

SMALL = Outputs(literals=[NamedLiteral(name="o0")]).SerializeToString()
LARGE = Outputs(
    literals=[
        NamedLiteral(
            name="o0",
            value=Literal(
                scalar=Scalar(primitive=Primitive(string_value="x" * (MOST_IN_ETCD + 1)))
            ),
        )
    ]
).SerializeToString()
OVERWRITE = RunSpec(cache_config=CacheConfig(overwrite_cache=True))
GLOBAL = RunSpec(
    cache_config=CacheConfig(cache_lookup_scope=CacheLookupScope.CACHE_LOOKUP_SCOPE_GLOBAL)
)


def root(run: str, project: str = "p") -> ActionId:
    return ActionId(project, "d", run, "a0", "o")


def cached(
    key: str = "k", *, serialized: bool = False, max_age: int = 0, retries: int = 0
) -> Callable[[Action], None]:
    def change(action: Action) -> None:
        if key:
            action.task.cache_key.value = key
        template = action.task.spec.task_template
        template.metadata.discoverable = True
        template.metadata.cache_serializable = serialized
        template.metadata.cache_max_age.seconds = max_age
        template.metadata.retries.retries = retries
        template.interface.outputs.variables.append(VariableEntry(key="o0"))

    return change


async def populate(bench: Bench, run: str = "r1", data: bytes = SMALL, **how: object) -> None:
    """Let a run leave a result."""
    await bench.enqueue(root(run), change=cached(**how))  # type: ignore[arg-type]
    await finish(bench, run, data)


async def finish(bench: Bench, run: str, data: bytes = SMALL) -> None:
    """The root of a run begins, and ends well."""
    name = f"{run}-a0"
    await eventually(lambda: name in bench.attempts.begun)
    bench.attempts.finish(name, outputs=data)
    action = await until(bench.client, root(run))
    assert (action.phase, action.status.cache_status) == (Phase.SUCCEEDED, caching.POPULATED)


async def ended(client: ActionsClient, action_id: ActionId) -> tuple[Phase, int]:
    action = await until(client, action_id)
    return action.phase, action.status.cache_status


def outputs_of(bench: Bench, action_id: ActionId, attempt: int = 1) -> bytes:
    path = bench.base / action_id.run / action_id.name / str(attempt) / "outputs.pb"
    return path.read_bytes()


SPEC = TaskActionSpec("p", "d", "r1", "a0")
HIT = (Phase.SUCCEEDED, caching.HIT)


@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_a_result_is_used_again_also_when_its_run_is_gone(bench: Bench, data: bytes) -> None:
    async with bench.executor() as executor:
        await populate(bench, data=data)
        shutil.rmtree(bench.base / "r1")
        await bench.enqueue(root("r2"), change=cached())
        assert await ended(bench.client, root("r2")) == HIT
        assert outputs_of(bench, root("r2")) == data
        update = (await bench.client.get_task_action(root("r2"))).outputs_of(1)
        assert Path(update) == bench.base / "r2" / "a0" / "1"
        # Another call is not that call.
        await bench.enqueue(root("r3"), change=cached("other"))
        await eventually(lambda: "r3-a0" in bench.attempts.begun)
        assert bench.attempts.begun == ["r1-a0", "r3-a0"]
        running = await until(bench.client, root("r3"), Phase.RUNNING)
        assert running.status.cache_status == caching.MISS
        statistics = executor.statistics()
        assert statistics.cache == {"CACHE_MISS": 2, "CACHE_POPULATED": 1, "CACHE_HIT": 1}
        assert not statistics.retries


@pytest.mark.slow
async def test_a_large_result_is_found_by_another_machine_where_the_run_left_it(
    bench: Bench, tmp_path: Path
) -> None:
    async with bench.executor():
        await populate(bench, data=LARGE)
    async with bench.executor(state_dir=tmp_path / "other") as executor:
        await bench.enqueue(root("r2"), change=cached())
        assert await ended(bench.client, root("r2")) == HIT
        assert outputs_of(bench, root("r2")) == LARGE
        (bench.base / "r1" / "a0" / "1" / "outputs.pb").write_bytes(LARGE + SMALL)
        await bench.enqueue(root("r3"), change=cached())
        await finish(bench, "r3", LARGE)
        assert executor.statistics().cache["STALE"] == 1


async def test_a_hit_needs_no_slot(bench: Bench) -> None:
    async with bench.executor(slots=1):
        await populate(bench)
        await bench.enqueue(root("busy"))
        await eventually(lambda: "busy-a0" in bench.attempts.begun)
        await bench.enqueue(root("r2"), change=cached("other"))
        for number in range(3, 6):
            await bench.enqueue(root(f"r{number}"), change=cached())
            assert await ended(bench.client, root(f"r{number}")) == HIT
        assert bench.attempts.begun == ["r1-a0", "busy-a0"]


async def test_what_no_result_is_cached_for_does_not_begin_without_a_slot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it looked as if it would need none."""

    async def is_known(self: object, action: object, template: object, name: str) -> bool:
        return name.endswith("r2-a0")

    monkeypatch.setattr(caching.Caching, "is_known", is_known)
    looks: list[str] = []
    look = caching.Caching.look

    async def noted(self: caching.Caching, task: caching.CacheRequest) -> caching.Lookup:
        looks.append(task.name)
        return await look(self, task)

    monkeypatch.setattr(caching.Caching, "look", noted)
    async with bench.executor(slots=1):
        await bench.enqueue(root("busy"))
        await eventually(lambda: "busy-a0" in bench.attempts.begun)
        await bench.enqueue(root("r2"), change=cached())
        await eventually(lambda: looks.count("flyte/r2-a0") >= 2)
        assert bench.attempts.begun == ["busy-a0"]
        bench.attempts.finish("busy-a0")
        await finish(bench, "r2")


async def entry_of(etcd: Etcd, prefix: bytes) -> tuple[bytes, bytes]:
    below = Keyspace(prefix).catalog + b"entries/"
    (kv,) = (await etcd.range(KeyRange.of_prefix(below))).kvs
    return kv.key, kv.value


@pytest.mark.slow
async def test_results_that_are_damaged_are_made_again(
    bench: Bench, etcd: Etcd, prefix: bytes
) -> None:
    async with bench.executor():
        await populate(bench)
        key, value = await entry_of(etcd, prefix)
        changes = (
            b"rubbish",
            value.replace(b'"digest":"sha256:', b'"digest":"sha256:../'),
            value.replace(b'"outputs":"', b'"outputs":"AAAA'),
            value.replace(b'"outputs"', b'"nothing"'),
        )
        shutil.rmtree(bench.base / "r1")
        for number, changed in enumerate(changes, start=2):
            assert changed != value
            await etcd.put(key, changed)
            await bench.enqueue(root(f"r{number}"), change=cached())
            await finish(bench, f"r{number}")
            shutil.rmtree(bench.base / f"r{number}")
        await bench.enqueue(root("last"), change=cached())
        assert await ended(bench.client, root("last")) == HIT


@pytest.mark.slow
async def test_a_result_whose_file_is_gone_is_made_again(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.touch()
    blob = Literal(scalar=Scalar(blob=Blob(uri=str(file))))
    nested = Literal(collection=LiteralCollection(literals=[blob]))
    data = Outputs(literals=[NamedLiteral(name="o0", value=nested)]).SerializeToString()
    async with bench.executor():
        await populate(bench, data=data)
        await bench.enqueue(root("r2"), change=cached())
        assert await ended(bench.client, root("r2")) == HIT
        file.unlink()
        await bench.enqueue(root("r3"), change=cached())
        await finish(bench, "r3")


@pytest.mark.slow
async def test_a_run_may_replace_results_or_share_them_with_all_projects(bench: Bench) -> None:
    async with bench.executor():
        await populate(bench)
        await bench.enqueue(root("r2"), change=cached(), run_spec=OVERWRITE)
        # What is below it inherits that.
        child = ActionId("p", "d", "r2", "c1", "o")
        await bench.enqueue(child, "a0", change=cached())
        await eventually(lambda: {"r2-a0", "r2-c1"} <= set(bench.attempts.begun))
        running = await until(bench.client, child, Phase.RUNNING)
        assert running.status.cache_status == caching.SKIPPED
        bench.attempts.finish("r2-c1", outputs=LARGE)
        assert await ended(bench.client, child) == (Phase.SUCCEEDED, caching.POPULATED)
        await bench.enqueue(root("r3"), change=cached())
        assert await ended(bench.client, root("r3")) == HIT
        assert outputs_of(bench, root("r3")) == LARGE
        # Another project has none of that, unless both runs say so.
        await bench.enqueue(root("r4", "q"), change=cached(), run_spec=GLOBAL)
        await eventually(lambda: "r4-a0" in bench.attempts.begun)
        bench.attempts.finish("r4-a0", outputs=SMALL)
        await until(bench.client, root("r4", "q"))
        await bench.enqueue(root("r5"), change=cached(), run_spec=GLOBAL)
        assert await ended(bench.client, root("r5")) == HIT
        assert outputs_of(bench, root("r5")) == SMALL


@pytest.mark.slow
async def test_a_result_is_used_until_it_is_too_old(bench: Bench) -> None:
    async with bench.executor():
        await populate(bench)
        bench.clock.passed += 50
        await bench.enqueue(root("r2"), change=cached(max_age=100))
        assert await ended(bench.client, root("r2")) == HIT
        bench.clock.passed += 60
        await bench.enqueue(root("r3"), change=cached(max_age=100))
        await finish(bench, "r3")


async def test_who_waits_for_anothers_result_holds_no_slot(bench: Bench) -> None:
    async with bench.executor(slots=2) as executor:
        for number in range(1, 5):
            await bench.enqueue(root(f"r{number}"), change=cached(serialized=True))
        # Any of them may be the first.
        await eventually(lambda: len(bench.attempts.begun) == 1)
        (first,) = bench.attempts.begun
        await eventually(lambda: executor.statistics().running == 1)
        await bench.enqueue(root("free"))
        await eventually(lambda: bench.attempts.begun == [first, "free-a0"])
        # The one who makes it fails: the next one does, and the others use what it leaves.
        bench.attempts.fail(first, recoverable=False)
        await eventually(lambda: len(bench.attempts.begun) == 3)
        second = bench.attempts.begun[2]
        bench.attempts.finish(second, outputs=SMALL)
        runs = {f"r{number}" for number in range(1, 5)} - {first.removesuffix("-a0")}
        states = [await ended(bench.client, root(run)) for run in runs]
        assert len(bench.attempts.begun) == 3
    assert sorted(states) == sorted(
        [HIT, HIT, (Phase.SUCCEEDED, caching.POPULATED)], key=lambda each: each[1]
    )


@pytest.mark.slow
async def test_a_reservation_of_a_process_that_died_is_free_again(bench: Bench) -> None:
    key = scope_of(bench.client.keys, ActionObject.new(ObjectMeta("x"), SPEC)).reservation("k")
    async with bench.executor() as executor:
        async with bench.client.open_claims() as others:
            assert await others.reserve(key, "another") is not None
            await bench.enqueue(root("r1"), change=cached(serialized=True))
            await until(bench.client, root("r1"), Phase.QUEUED)
            await eventually(lambda: executor.statistics().running == 0)
            assert not bench.attempts.begun
        # Its lease is gone.
        await finish(bench, "r1")


async def test_a_catalogue_that_fails_fails_no_task(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise Unavailable("etcd is away")

    monkeypatch.setattr(Catalog, "look", fails)
    monkeypatch.setattr(Catalog, "put", fails)
    async with bench.executor() as executor:
        await bench.enqueue(root("r1"), change=cached())
        running = await until(bench.client, root("r1"), Phase.RUNNING)
        assert running.status.cache_status == caching.LOOKUP_FAILURE
        bench.attempts.finish("r1-a0", outputs=SMALL)
        assert await ended(bench.client, root("r1")) == (Phase.SUCCEEDED, caching.PUT_FAILURE)
        assert executor.statistics().cache == {"CACHE_LOOKUP_FAILURE": 1, "CACHE_PUT_FAILURE": 1}
    assert bench.client.containment.failures[caching.UNIT] == 2
    assert not bench.parked()


@pytest.mark.slow
async def test_a_reservation_goes_on_with_an_attempt_that_outlives_its_executor(
    bench: Bench,
) -> None:
    async with bench.executor():
        await bench.enqueue(root("r1"), change=cached(serialized=True))
        await until(bench.client, root("r1"), Phase.RUNNING)
    async with bench.executor() as executor:
        await eventually(lambda: executor.statistics().adopted == 1)
        await bench.enqueue(root("r2"), change=cached(serialized=True))
        await until(bench.client, root("r2"), Phase.QUEUED)
        await eventually(lambda: executor.statistics().running == 1)
        assert bench.attempts.begun == ["r1-a0"]
        await finish(bench, "r1")
        assert await ended(bench.client, root("r2")) == HIT


@pytest.mark.slow
async def test_without_a_time_to_keep_them_nothing_is_cached(
    bench: Bench, etcd: Etcd, prefix: bytes
) -> None:
    async with bench.executor(cache_keep=0):
        for run in ("r1", "r2"):
            await bench.enqueue(root(run), change=cached())
            await eventually(lambda run=run: f"{run}-a0" in bench.attempts.begun)  # type: ignore[misc]
            bench.attempts.finish(f"{run}-a0", outputs=SMALL)
            assert await ended(bench.client, root(run)) == (Phase.SUCCEEDED, caching.DISABLED)
    assert not (await etcd.range(KeyRange.of_prefix(Keyspace(prefix).catalog))).kvs


@pytest.mark.slow
async def test_a_root_has_a_key_by_its_inputs(bench: Bench, tmp_path: Path) -> None:
    def with_inputs(value: int) -> Callable[[Action], None]:
        path = tmp_path / f"inputs{value}.pb"
        path.write_bytes(inputs_of(x=value).SerializeToString())

        def change(action: Action) -> None:
            cached("")(action)
            action.input_uri = str(path)

        return change

    async with bench.executor():
        await bench.enqueue(root("r1"), change=with_inputs(1))
        await finish(bench, "r1")
        await bench.enqueue(root("r2"), change=with_inputs(1))
        assert await ended(bench.client, root("r2")) == HIT
        await bench.enqueue(root("r3"), change=with_inputs(2))
        await finish(bench, "r3")


def integer(value: int, own_hash: str = "") -> Literal:
    return Literal(scalar=Scalar(primitive=Primitive(integer=value)), hash=own_hash)


def inputs_of(**values: int | Literal) -> Inputs:
    return Inputs(
        literals=[
            NamedLiteral(name=name, value=integer(value) if isinstance(value, int) else value)
            for name, value in values.items()
        ]
    )


def test_a_key_tells_calls_apart() -> None:
    def key(inputs: Inputs, name: str = "f", version: str = "1", ignored: str = "") -> str:
        template = TaskTemplate()
        template.id.name = name
        template.metadata.discovery_version = version
        if ignored:
            template.metadata.cache_ignore_input_vars.append(ignored)
        return cache_key(template, inputs)

    def collection(*literals: Literal) -> Literal:
        return Literal(collection=LiteralCollection(literals=literals))

    one, two = integer(1), integer(2)
    calls = [
        key(inputs_of(x=1)),
        key(inputs_of(x=2)),
        key(inputs_of(y=1)),
        key(inputs_of(x=1, y=2)),
        key(inputs_of(x=2, y=1)),
        key(inputs_of(x=1), name="g"),
        key(inputs_of(x=1), version="2"),
        key(inputs_of()),
        key(inputs_of(x=collection(one, two))),
        key(inputs_of(x=collection(collection(one), collection(two)))),
        key(inputs_of(x=collection(collection(one, two)))),
        key(inputs_of(x=integer(1, "h"))),
    ]
    assert len(set(calls)) == len(calls)
    assert key(inputs_of(y=2, x=1)) == key(inputs_of(x=1, y=2))
    assert key(inputs_of(x=1, y=5), ignored="y") == key(inputs_of(x=1))
    assert key(inputs_of(x=integer(1, "h"))) == key(inputs_of(x=integer(2, "h")))
    assert key(inputs_of(x=collection(integer(1, "h")))) == key(
        inputs_of(x=collection(integer(2, "h")))
    )


def test_files_that_nobody_used_for_long_are_removed(tmp_path: Path) -> None:
    (tmp_path / CACHE).mkdir()
    for name, age in (("old", 200), ("young", 100)):
        (tmp_path / CACHE / name).touch()
        os.utime(tmp_path / CACHE / name, (0, time.time() - age))
    sweep_cache(tmp_path, 100)
    assert [path.name for path in (tmp_path / CACHE).iterdir()] == ["young"]
    sweep_cache(tmp_path / "nowhere", 100)


async def test_a_reservation_that_is_made_again_while_it_is_released_stays(
    bench: Bench, etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that failed is repeated when the same action makes its reservation again."""
    key, subject = Keyspace(prefix, "flyte").claims + b"reserved", "subject"
    task = SimpleNamespace(
        name="flyte/r1-a0",
        action=SimpleNamespace(incarnation=SimpleNamespace(path_component=subject)),
    )
    async with bench.executor() as executor:
        found = executor._caching
        claims = found._claims
        assert await claims.reserve(key, subject) is not None
        found._unreleased.append((key, subject))
        release, began, goes_on = claims.release, trio.Event(), trio.Event()

        async def slow(claim: Claim) -> None:
            began.set()
            await goes_on.wait()
            await release(claim)

        monkeypatch.setattr(claims, "release", slow)
        reserved: list[bool] = []

        async def reserve() -> None:
            reserved.append(await found._reserve(task, SimpleNamespace(reservation=key)))  # type: ignore[arg-type]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.tidy)
            await began.wait()
            nursery.start_soon(reserve)
            await trio.testing.wait_all_tasks_blocked()
            goes_on.set()
        assert reserved == [True]
        assert [kv.key for kv in (await etcd.range(KeyRange.of_key(key))).kvs] == [key]
