"""What the tests of enqueue share: names, and changes that others make."""

from __future__ import annotations

from collections.abc import Callable

from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.task.run_pb2 import RunSpec

from etcd_actions import (
    ActionId,
)
from etcd_actions.codecs import codec_of
from etcd_actions.etcd.api import Delete, Etcd, KeyValue, Put, Txn
from etcd_actions.storage.store import Store
from tests.actions.stored import Tree
from tests.support import flyte

ROOT = ActionId("p", "d", "r1", "a0")


CHILD = ActionId("p", "d", "r1", "c1")


PLACEHOLDER = "{{.runStartTime}}"


START = "2026-11-23T16:00:00Z"


Edit = Callable[[Tree], None]


def named(name: str, run: str = "r1", project: str = "p") -> ActionId:
    return ActionId(project, "d", run, name)


def run_spec(**labels: str) -> RunSpec:
    """With something in each field that is used."""
    spec = RunSpec()
    spec.labels.values.update({"team": "blue", **labels})
    spec.annotations.values["note"] = "from the run"
    spec.envs.values.add(key="LOG_LEVEL", value="20")
    spec.envs.values.add(key="TWICE", value="first")
    spec.envs.values.add(key="TWICE", value="last")
    spec.interruptible.value = False
    spec.run_start_time.FromJsonString(START)
    return spec


async def kv_of(etcd: Etcd, key: bytes) -> KeyValue:
    kv = await Store(etcd).get(key)
    assert kv is not None
    return kv


async def edit(etcd: Etcd, key: bytes, change: Edit) -> None:
    """Change an object, as somebody else would."""
    kv = await kv_of(etcd, key)
    tree = codec_of(kv.value).decode_tree(kv.value)
    change(tree)
    await etcd.put(key, codec_of(kv.value).encode_tree(tree))


async def as_flyte_writes(etcd: Etcd, key: bytes) -> None:
    """Take away what is ours."""

    def change(tree: Tree) -> None:
        del tree["metadata"]["annotations"]
        del tree["metadata"]["finalizers"]

    await edit(etcd, key, change)


def is_write(txn: Txn) -> bool:
    return any(isinstance(each, Put | Delete) for each in txn.success)


def placeholder(action_id: ActionId, parent: str = "") -> Action:
    action = flyte.task(action_id, parent)
    action.task.spec.task_template.container.args.append(PLACEHOLDER)
    return action
