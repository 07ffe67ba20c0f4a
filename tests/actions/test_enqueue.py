"""enqueue: the objects of tasks, conditions and traces, as Flyte's service writes them."""

from __future__ import annotations

import pytest
from flyteidl2.core.tasks_pb2 import Container, TaskTemplate
from flyteidl2.core.types_pb2 import LiteralType, SimpleType
from flyteidl2.task.run_pb2 import RunSpec

from etcd_actions import (
    ActionId,
    ActionsClient,
    open_actions_client,
    open_etcd,
)
from etcd_actions.actions.object_builder import with_start_time
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.codecs import CODEC_NAMES, codec_of, json
from etcd_actions.errors import (
    Aborted,
    AlreadyExists,
    InvalidArgument,
)
from etcd_actions.etcd import TransportName
from etcd_actions.model import (
    ANNOTATION_ORG,
    ANNOTATION_RUN_START_TIME,
    ANNOTATION_SUBJECT,
    API_VERSION,
    FINALIZER_RECORD,
    KIND,
    LABEL_TERMINAL_STATUS_RECORDED,
    Keyspace,
    OwnerReference,
)
from etcd_actions.model import flyte as flyte_messages
from tests.actions.enqueuing import (
    CHILD,
    PLACEHOLDER,
    ROOT,
    START,
    kv_of,
    named,
    run_spec,
)
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory


@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
async def test_each_kind(
    shared_etcd: EtcdServer, keys: Keyspace, transport: TransportName, codec: str
) -> None:
    """A root, a child, a condition and a trace: where they are, and what they hold."""
    child, condition, trace = named("c1"), named("w1"), named("t1")
    async with (
        open_etcd(shared_etcd.endpoint, transport=transport) as etcd,
        open_actions_client(etcd, prefix=keys.prefix, codec=codec) as client,
    ):
        spec = run_spec()
        root = await client.enqueue(flyte.task(ROOT), spec)
        assert root.created
        assert (await client.enqueue(flyte.task(child, "a0"))).created
        assert (await client.enqueue(flyte.condition(condition, "a0"))).created
        assert (await client.enqueue(flyte.trace(trace, "a0"))).created
        assert not (await client.enqueue(flyte.task(ROOT), spec)).created
        assert not (await client.enqueue(flyte.task(child, "a0"))).created
        assert not (await client.enqueue(flyte.condition(condition, "a0"))).created
        for action_id, key in (
            (ROOT, keys.task_action(ROOT)),
            (child, keys.task_action(child)),
            (condition, keys.task_action(condition)),
            (trace, keys.trace(trace)),
        ):
            kv = await kv_of(etcd, key)
            assert kv.version == 1
            assert codec_of(kv.value).name == codec
            stored = StoredAction.of(kv)
            assert stored.action_id == action_id
            assert stored.metadata.name == action_id.object_name
            assert stored.metadata.namespace == "flyte"
            assert stored.metadata.finalizers == (FINALIZER_RECORD,)
            owner = OwnerReference(
                API_VERSION,
                KIND,
                "r1-a0",
                root.action.metadata.uid,
                block_owner_deletion=True,
            )
            assert stored.metadata.owner_references == (() if action_id == ROOT else (owner,))
        listing = await client.list_run_actions(ROOT.run_id, traces=True)
        assert {each.action_id for each in listing.actions} == {ROOT, child, condition, trace}
        assert root.action == await client.get_task_action(ROOT)


async def test_what_flytes_object_has_no_field_for(client: ActionsClient) -> None:
    """Organisation and subject are in annotations; children find them there, too."""
    root = ActionId("p", "d", "r1", "a0", "acme")
    action = flyte.task(root)
    action.subject = "alice"
    stored = (await client.enqueue(action)).action
    assert stored.action_id == root
    assert stored.metadata.annotations[ANNOTATION_ORG] == "acme"
    assert stored.metadata.annotations[ANNOTATION_SUBJECT] == "alice"
    child = (await client.enqueue(flyte.task(ActionId("p", "d", "r1", "c1", "acme"), "a0"))).action
    assert child.action_id.org == "acme"
    # Who asked for the parent did not ask for the child.
    assert ANNOTATION_SUBJECT not in child.metadata.annotations
    with pytest.raises(Aborted, match="the parent is gone"):
        await client.enqueue(flyte.task(ActionId("p", "d", "r1", "c2", "other"), "a0"))


@pytest.mark.parametrize(("name", "object_name"), [("r1", "r1-a0"), ("a0", "r1-a0")])
async def test_the_name_of_a_root(client: ActionsClient, name: str, object_name: str) -> None:
    """Upstream's TestBuildTaskActionName, root: it may be called like its run."""
    stored = (await client.enqueue(flyte.task(named(name)))).action
    assert stored.metadata.name == object_name
    assert stored.spec.action_name == name


async def test_the_name_of_a_child(client: ActionsClient) -> None:
    """Upstream's TestBuildTaskActionName, child: below a root by either name."""
    await client.enqueue(flyte.task(ROOT))
    for name, parent in (("c1", "a0"), ("c2", "r1")):
        stored = (await client.enqueue(flyte.task(named(name), parent))).action
        assert stored.metadata.name == f"r1-{name}"
        assert stored.metadata.owner_references[0].name == "r1-a0"


async def test_the_cache_key(client: ActionsClient) -> None:
    """Upstream's TestExtractTaskCacheKey: a task's, and none of the others."""
    action = flyte.task(ROOT)
    action.task.cache_key.value = "0a1b2c"
    assert (await client.enqueue(action)).action.spec.cache_key == "0a1b2c"
    condition = (await client.enqueue(flyte.condition(CHILD, "a0"))).action
    assert condition.spec.cache_key == ""


def _template(*arguments: str) -> TaskTemplate:
    return TaskTemplate(type="python", container=Container(args=arguments))


def test_the_start_time_is_replaced() -> None:
    """Upstream's TestEmbedTaskTemplate_SubstitutesRunStartTime; the caller's stays as it was."""
    template = _template("a0", "--start", PLACEHOLDER, f"{PLACEHOLDER}/{PLACEHOLDER}")
    before = template.SerializeToString()
    replaced = with_start_time(template, START)
    assert list(replaced.container.args) == ["a0", "--start", START, f"{START}/{START}"]
    assert template.SerializeToString() == before


def test_no_start_time_replaces_nothing() -> None:
    """Upstream's TestEmbedTaskTemplate_SubstitutesRunStartTime, no-op without."""
    template = _template(PLACEHOLDER)
    assert with_start_time(template, "") == template


def test_no_placeholder_changes_nothing() -> None:
    """Upstream's TestEmbedTaskTemplate_SubstitutesRunStartTime, no-op without placeholder."""
    for template in (_template("a0", "{{.input}}"), TaskTemplate(type="sql")):
        assert with_start_time(template, START) == template


async def test_a_run_specification_is_projected(client: ActionsClient) -> None:
    """Upstream's TestApplyRunSpecToTaskAction_ProjectsRuntimeSettings; our labels win."""
    spec = run_spec(**{"flyte.org/project": "other"})
    stored = (await client.enqueue(flyte.task(ROOT), spec)).action
    assert stored.spec.env_vars == {"LOG_LEVEL": "20", "TWICE": "last"}
    assert stored.spec.interruptible is False
    assert stored.metadata.labels == {
        "team": "blue",
        "flyte.org/project": "p",
        "flyte.org/domain": "d",
        "flyte.org/run": "r1",
        "flyte.org/action": "a0",
        "flyte.org/action-type": "task",
        "flyte.org/is-root": "true",
    }
    assert stored.metadata.annotations["note"] == "from the run"
    assert stored.metadata.annotations[ANNOTATION_RUN_START_TIME] == START


async def test_a_root_without_a_run_specification(client: ActionsClient) -> None:
    """No environment, no word on interruptions."""
    stored = (await client.enqueue(flyte.task(ROOT))).action
    assert stored.spec.env_vars == {}
    assert stored.spec.interruptible is None


async def test_a_child_takes_over_its_parents_context(client: ActionsClient) -> None:
    """Upstream's TestInheritRunContextFromParentTaskAction; its own run spec does not count."""
    await client.enqueue(flyte.task(ROOT), run_spec())
    ignored = RunSpec()
    ignored.labels.values["team"] = "red"
    ignored.labels.values["flyte.org/terminal-status-recorded"] = "true"
    ignored.envs.values.add(key="LOG_LEVEL", value="50")
    child = (await client.enqueue(flyte.task(CHILD, "a0"), ignored)).action
    grandchild = (await client.enqueue(flyte.task(named("g1"), "c1"))).action
    for stored in (child, grandchild):
        assert stored.spec.env_vars == {"LOG_LEVEL": "20", "TWICE": "last"}
        assert stored.spec.interruptible is False
        assert stored.metadata.labels["team"] == "blue"
        assert stored.metadata.annotations["note"] == "from the run"
        assert LABEL_TERMINAL_STATUS_RECORDED not in stored.metadata.labels


async def test_a_childs_own_labels_win(client: ActionsClient) -> None:
    """Upstream's TestInheritRunContextFromParentTaskAction_DoesNotOverrideExistingLabels."""
    await client.enqueue(flyte.task(ROOT), run_spec())
    child = (await client.enqueue(flyte.task(CHILD, "a0"))).action
    assert child.metadata.labels == {
        "team": "blue",
        "flyte.org/project": "p",
        "flyte.org/domain": "d",
        "flyte.org/run": "r1",
        "flyte.org/action": "c1",
        "flyte.org/action-type": "task",
        "flyte.org/is-root": "false",
    }


async def test_a_condition_is_created(client: ActionsClient) -> None:
    """Upstream's TestEnqueueCondition_CreatesCR; nothing is taken over from the parent."""
    root = (await client.enqueue(flyte.task(ROOT), run_spec())).action
    request = flyte.condition(CHILD, "a0")
    stored = (await client.enqueue(request)).action
    assert stored.spec.action_type == "condition"
    assert stored.metadata.labels["flyte.org/action-type"] == "condition"
    assert [each.uid for each in stored.metadata.owner_references] == [root.metadata.uid]
    assert stored.metadata.owner_references[0].name == "r1-a0"
    assert flyte_messages.condition_action(stored) == request.condition
    assert (stored.spec.task_template, stored.spec.task_type) == ("", "")
    assert (stored.spec.env_vars, stored.spec.interruptible) == ({}, None)
    assert "team" not in stored.metadata.labels
    assert "note" not in stored.metadata.annotations


@pytest.mark.parametrize(
    "declared",
    [
        LiteralType(),
        LiteralType(simple=SimpleType.STRUCT),
        LiteralType(simple=SimpleType.NONE),
        LiteralType(simple=SimpleType.DATETIME),
        LiteralType(collection_type=LiteralType(simple=SimpleType.BOOLEAN)),
    ],
    ids=["unset", "struct", "none", "datetime", "collection"],
)
async def test_a_condition_of_a_type_that_cannot_be_signalled(
    client: ActionsClient, declared: LiteralType
) -> None:
    """Upstream's TestEnqueueCondition_InvalidDeclaredType; before anything is read."""
    request = flyte.condition(CHILD, "no-such-parent")
    request.condition.type.CopyFrom(declared)
    with pytest.raises(InvalidArgument, match="BOOLEAN") as raised:
        await client.enqueue(request)
    assert raised.value.field == "condition.type"


@pytest.mark.parametrize("simple", ["INTEGER", "FLOAT", "STRING", "BOOLEAN"])
async def test_conditions_of_each_type(client: ActionsClient, simple: str) -> None:
    await client.enqueue(flyte.task(ROOT))
    request = flyte.condition(CHILD, "a0")
    request.condition.type.simple = SimpleType.Value(simple)
    stored = (await client.enqueue(request)).action
    assert flyte_messages.condition_action(stored) == request.condition


async def test_a_condition_twice(client: ActionsClient) -> None:
    """Upstream's TestEnqueueCondition_AlreadyExistsIsIdempotent; upstream compares nothing."""
    await client.enqueue(flyte.task(ROOT))
    first = await client.enqueue(flyte.condition(CHILD, "a0"))
    assert await client.enqueue(flyte.condition(CHILD, "a0")) == (first.action, False)
    other = flyte.condition(CHILD, "a0")
    other.condition.prompt = "another question"
    with pytest.raises(AlreadyExists, match="condition c1"):
        await client.enqueue(other)


async def test_the_exact_fields_of_a_task(client: ActionsClient) -> None:
    """Upstream's TestEnqueueReconcile: the specification, field by field."""
    await client.enqueue(flyte.task(ROOT), run_spec())
    request = flyte.task(CHILD, "a0")
    request.group = "map"
    request.task.cache_key.value = "key"
    stored = (await client.enqueue(request)).action
    assert flyte_messages.task_template(stored) == request.task.spec.task_template
    tree = json.decode_tree(json.encode(stored))["spec"]
    assert tree.pop("taskTemplate")
    assert tree == {
        "project": "p",
        "domain": "d",
        "runName": "r1",
        "actionName": "c1",
        "parentActionName": "a0",
        "inputUri": "s3://in/c1",
        "runOutputBase": "s3://out/base",
        "cacheKey": "key",
        "taskType": "python",
        "shortName": "f",
        "group": "map",
        "envVars": {"LOG_LEVEL": "20", "TWICE": "last"},
        "interruptible": False,
    }


async def test_a_task_without_a_template(client: ActionsClient) -> None:
    """It is created, as by Flyte; its executor says what is wrong."""
    request = flyte.task(ROOT)
    request.task.spec.ClearField("task_template")
    spec = (await client.enqueue(request)).action.spec
    assert (spec.task_template, spec.task_type, spec.short_name) == ("", "", "")
    assert not (await client.enqueue(request)).created
