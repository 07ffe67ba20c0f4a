"""enqueue: the start time of the run, and captured objects written again to the byte."""

from __future__ import annotations

from datetime import datetime

import pytest
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.task.run_pb2 import RunSpec
from flyteidl2.workflow.run_definition_pb2 import ConditionAction

from etcd_actions import (
    ActionId,
    ActionsClient,
)
from etcd_actions.actions.enqueue import Enqueuer
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.codecs import CODEC_NAMES, codec_named, json
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import (
    FINALIZER_RECORD,
    Keyspace,
)
from etcd_actions.model import flyte as flyte_messages
from etcd_actions.storage.store import Store
from tests.actions.enqueuing import (
    CHILD,
    ROOT,
    START,
    as_flyte_writes,
    kv_of,
    named,
    placeholder,
    run_spec,
)
from tests.actions.stored import Tree
from tests.data.captured import PUTS, Event
from tests.support import flyte
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory


def argument(stored: StoredAction) -> str:
    """What the placeholder became."""
    template = flyte_messages.task_template(stored)
    assert template is not None
    text: str = template.container.args[-1]
    return text


async def test_defect_e_children_get_the_runs_start_time(client: ActionsClient) -> None:
    """At any depth, though the SDK sends none with a child, which would count from 1970."""
    root = (await client.enqueue(placeholder(ROOT), run_spec())).action
    assert argument(root) == START
    parent = "a0"
    for name in ("c1", "c2", "c3"):
        child = (await client.enqueue(placeholder(named(name), parent))).action
        assert argument(child) == START
        parent = name


async def test_a_run_that_does_not_say_when_it_began(client: ActionsClient) -> None:
    """It began when its root was created, for all of it."""
    root = (await client.enqueue(placeholder(ROOT))).action
    assert argument(root) == root.metadata.creation_timestamp
    child = (await client.enqueue(placeholder(CHILD, "a0"))).action
    assert argument(child) == argument(root)


async def test_children_of_a_root_of_flytes(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Flyte's service notes the start time nowhere: its root's creation stands for it."""
    root = (await client.enqueue(placeholder(ROOT))).action
    await as_flyte_writes(etcd, keys.task_action(ROOT))
    child = (await client.enqueue(placeholder(CHILD, "a0"))).action
    grandchild = (await client.enqueue(placeholder(named("g1"), "c1"))).action
    assert argument(child) == argument(grandchild) == root.metadata.creation_timestamp


async def test_a_childs_own_start_time_counts(client: ActionsClient) -> None:
    """As in Flyte, it is the one thing of its run specification that does."""
    await client.enqueue(placeholder(ROOT), run_spec())
    later = RunSpec()
    later.run_start_time.FromJsonString("2026-11-24T00:00:00.999Z")
    child = (await client.enqueue(placeholder(CHILD, "a0"), later)).action
    assert argument(child) == "2026-11-24T00:00:00Z"


CREATED = [put for put in PUTS if put.mod_revision == put.create_revision]


@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
@pytest.mark.parametrize("event", CREATED, ids=[each.id for each in CREATED])
async def test_captured_objects_made_again(
    etcd: Etcd, keys: Keyspace, event: Event, codec: str
) -> None:
    """Names, types, formats and order are those that an API server wrote for Flyte.

    Ours are annotations and a finalizer; the API server's are ``managedFields``, and the
    capture has empty groups, which Flyte's types leave out. In the capture no child took over
    its parent's environment, as Flyte's service has it do.
    """
    wanted = json.decode_tree(event.value)
    metadata, spec = wanted["metadata"], wanted["spec"]
    del metadata["managedFields"]
    if spec.get("group") == "":
        del spec["group"]
    form = codec_named(codec)
    parent = spec.get("parentActionName", "")
    if parent:
        before = next(
            each
            for each in CREATED
            if each.key.endswith(f"-{parent}".encode()) and spec["runName"].encode() in each.key
        )
        tree = json.decode_tree(before.value)
        owner = keys.task_action(_id_of(tree))
        await etcd.put(owner, form.encode_tree(tree))
        if "conditionSpec" not in spec:
            for field in ("envVars", "interruptible"):
                if field in tree["spec"]:
                    spec[field] = tree["spec"][field]
    enqueuer = Enqueuer(
        Store(etcd),
        keys,
        form,
        clock=lambda: datetime.fromisoformat(metadata["creationTimestamp"]),
        new_uid=lambda: metadata["uid"],
    )
    stored = (await enqueuer.enqueue(*_request_for(wanted))).action
    kv = await kv_of(etcd, stored.key)
    assert event.key.endswith(kv.key.removeprefix(keys.prefix))
    metadata["finalizers"] = [FINALIZER_RECORD]
    metadata["annotations"] = stored.metadata.annotations
    assert all(each.startswith("etcd-actions.io/") for each in stored.metadata.annotations)
    assert form.decode_tree(kv.value) == wanted
    assert kv.value == form.encode_tree(wanted)


def _id_of(tree: Tree) -> ActionId:
    spec = tree["spec"]
    return ActionId(spec["project"], spec["domain"], spec["runName"], spec["actionName"])


def _request_for(tree: Tree) -> tuple[Action, RunSpec]:
    """What Flyte's service was asked for."""
    action_id, spec = _id_of(tree), tree["spec"]
    view = json.decode(json.encode_tree(tree))
    run = RunSpec()
    action = Action(
        action_id=flyte.identifier(action_id),
        input_uri=spec.get("inputUri", ""),
        run_output_base=spec.get("runOutputBase", ""),
        group=spec.get("group", ""),
    )
    if "parentActionName" in spec:
        action.parent_action_name = spec["parentActionName"]
    if "conditionSpec" in spec:
        action.condition.CopyFrom(ConditionAction.FromString(view.spec.condition_spec_bytes))
        return action, run
    for key, value in spec.get("envVars", {}).items():
        run.envs.values.add(key=key, value=value)
    if "interruptible" in spec:
        run.interruptible.value = spec["interruptible"]
    if "cacheKey" in spec:
        action.task.cache_key.value = spec["cacheKey"]
    action.task.spec.short_name = spec["shortName"]
    action.task.spec.task_template.ParseFromString(view.spec.task_template_bytes)
    return action, run
