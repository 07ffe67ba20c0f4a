"""Cached results of real tasks: used by other runs, replaced, serialized, and of roots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from flyteidl2.core.tasks_pb2 import TaskTemplate
from flyteidl2.task.common_pb2 import Outputs
from flyteidl2.task.run_pb2 import CacheConfig, RunSpec
from google.protobuf.json_format import MessageToDict

from etcd_actions import ActionId, ActionsClient, open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.executor.tasks import until
from tests.sdk.service import Site, free_port
from tests.support import flyte
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow

POPULATED, HIT = 3, 2


@pytest.fixture
def site(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, sdk_python: Path
) -> Iterator[Site]:
    site = Site(tmp_path, shared_etcd.endpoint, prefix, sdk_python)
    yield site
    site.end_all()


def root(run: str) -> ActionId:
    return ActionId("flytesnacks", "development", run, "a0")


async def result_of(client: ActionsClient, run: str) -> object:
    """What a run's root gave."""
    with trio.fail_after(120):
        action = await until(client, root(run))
    assert action.phase.name == "SUCCEEDED", action.status.error_state
    outputs = Outputs.FromString((Path(action.outputs_of(1)) / "outputs.pb").read_bytes())
    ((_, value),) = MessageToDict(outputs.literals[0].value.scalar.primitive).items()
    return value


async def again(client: ActionsClient, run: str, run_spec: RunSpec | None = None) -> None:
    """The root of r1 once more, as another run."""
    first = await client.get_task_action(root("r1"))
    action = flyte.task(root(run))
    action.input_uri = first.spec.input_uri
    action.run_output_base = first.spec.run_output_base.replace("/r1", f"/{run}")
    action.task.spec.task_template.CopyFrom(TaskTemplate.FromString(first.spec.task_template_bytes))
    spec = RunSpec() if run_spec is None else run_spec
    for key, value in first.spec.env_vars.items():
        spec.envs.values.add(key=key, value=value)
    await client.enqueue(action, spec)


async def statuses(client: ActionsClient, run: str) -> list[int]:
    actions = (await client.list_run_actions(root(run).run_id)).actions
    return sorted(each.status.cache_status for each in actions if each.spec.parent_action_name)


async def test_results_are_used_by_other_runs(site: Site, etcd: Etcd, prefix: bytes) -> None:
    where = f"directory={site.notes}"
    async with open_actions_client(etcd, prefix=prefix) as client:
        with site.service(free_port()) as service:
            await service.logged("serving")
            await site.submit("cached.py", "main", "greeting=hello", where, run="r1")
            assert await result_of(client, "r1") == "8, hello 5, True, seven"
            once = {"double-4": 1, "ignoring-5": 1, "slow-6": 1, "write-seven": 1}
            assert site.starts() == once
            # Of the two that are serialized the second one used what the first one left.
            assert await statuses(client, "r1") == [HIT, *[POPULATED] * 4]
            # The input that does not count may be another; the old result has the old one.
            await site.submit("cached.py", "main", "greeting=bye", where, run="r2")
            assert await result_of(client, "r2") == "8, hello 5, True, seven"
            assert await statuses(client, "r2") == [HIT] * 5
            assert site.starts() == once
            overwrite = RunSpec(cache_config=CacheConfig(overwrite_cache=True))
            await again(client, "r3", overwrite)
            assert await result_of(client, "r3") == "8, hello 5, False, seven"
            assert await statuses(client, "r3") == [POPULATED] * 5
            twice = dict.fromkeys(once, 2) | {"slow-6": 3}
            assert site.starts() == twice
            await again(client, "r4")
            assert await result_of(client, "r4") == "8, hello 5, True, seven"
            assert await statuses(client, "r4") == [HIT] * 5
            assert site.starts() == twice
            for run, starts in (("r5", 1), ("r6", 1)):
                await site.submit("cached.py", "root", "number=1", where, run=run)
                assert await result_of(client, run) == "2"
                assert site.starts()["root-1"] == starts
