"""enqueue: tasks, conditions and traces, created exactly once, below a parent that goes on."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime

import pytest
import trio
import trio.lowlevel
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.core.tasks_pb2 import Container, TaskTemplate
from flyteidl2.core.types_pb2 import LiteralType, SimpleType
from flyteidl2.task.run_pb2 import RunSpec
from flyteidl2.workflow.run_definition_pb2 import ConditionAction, TraceAction

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionUpdate,
    Phase,
    SnapshotEnd,
    open_actions_client,
    open_etcd,
)
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.enqueue import Enqueuer
from etcd_actions.actions.object_builder import with_start_time
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.codecs import CODEC_NAMES, codec_named, codec_of, json
from etcd_actions.errors import (
    Aborted,
    AlreadyExists,
    InvalidArgument,
    NameTaken,
    OutcomeUnknown,
    Unavailable,
)
from etcd_actions.etcd import TransportName
from etcd_actions.etcd.api import Delete, Etcd, KeyRange, KeyValue, Put, Txn, TxnResult
from etcd_actions.model import (
    ANNOTATION_DIGEST,
    ANNOTATION_ORG,
    ANNOTATION_RUN_START_TIME,
    ANNOTATION_SUBJECT,
    API_VERSION,
    FINALIZER_RECORD,
    KIND,
    LABEL_TERMINAL_STATUS_RECORDED,
    ErrorState,
    Keyspace,
    OwnerReference,
)
from etcd_actions.model import flyte as flyte_messages
from etcd_actions.model.conditions import write_phase
from etcd_actions.storage.store import Store
from tests.actions.stored import T0, Tree
from tests.data.captured import PUTS, Event
from tests.support import flyte
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")
PLACEHOLDER = "{{.runStartTime}}"
START = "2026-11-23T16:00:00Z"

Edit = Callable[[Tree], None]


def named(name: str, run: str = "r1", project: str = "p") -> ActionId:
    return ActionId(project, "d", run, name)


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


@pytest.fixture
def keys(prefix: bytes) -> Keyspace:
    return Keyspace(prefix)


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


class Meanwhile:
    """Somebody else acts between the read and the first write."""

    def __init__(self, etcd: Etcd, act: Callable[[], Awaitable[object]]) -> None:
        self._etcd = etcd
        self._act = act
        self.writes = 0

    async def __call__(self, txn: Txn) -> TxnResult:
        """Let him act, then do it."""
        if _writes(txn):
            self.writes += 1
            if self.writes == 1:
                await self._act()
        return await self._etcd.txn(txn)


class LostAnswer:
    """The answer of the first write is lost, which was done, or not."""

    def __init__(self, etcd: Etcd, *, applied: bool) -> None:
        self._store = Store(etcd)
        self._etcd = etcd
        self._applied = applied
        self.lost = False

    async def __call__(self, txn: Txn) -> TxnResult:
        """Do it, or not, and do not tell."""
        if not _writes(txn) or self.lost:
            return await self._etcd.txn(txn)
        self.lost = True
        if self._applied:
            await self._etcd.txn(txn)
        raise OutcomeUnknown("the answer was lost")


class AwayAfterwards(Store):
    """A store whose first write goes unanswered, and which cannot be read after it."""

    async def txn(self, txn: Txn) -> TxnResult:
        """Read; a write is lost."""
        if _writes(txn):
            raise OutcomeUnknown("the answer was lost")
        return await super().txn(txn)

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """It is away."""
        raise Unavailable(f"away: {key!r} at {revision}")


def _writes(txn: Txn) -> bool:
    return any(isinstance(each, Put | Delete) for each in txn.success)


# --- the main path, over each transport, in each stored form ----------------------------


@pytest.mark.parametrize("codec", CODEC_NAMES)
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


# --- upstream's tests, by meaning -------------------------------------------------------


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


# --- the start time of the run (defect e) -----------------------------------------------


def placeholder(action_id: ActionId, parent: str = "") -> Action:
    action = flyte.task(action_id, parent)
    action.task.spec.task_template.container.args.append(PLACEHOLDER)
    return action


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


# --- real bytes -------------------------------------------------------------------------

CREATED = [put for put in PUTS if put.mod_revision == put.create_revision]


@pytest.mark.parametrize("codec", CODEC_NAMES)
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


# --- idempotence (defect 6) -------------------------------------------------------------


async def test_defect_6_the_same_twice_is_one_write(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Also by an equal message that was built anew, and however far the action is by then."""
    first = await client.enqueue(flyte.task(ROOT), run_spec())
    assert first.created
    assert await client.enqueue(flyte.task(ROOT), run_spec()) == (first.action, False)
    assert (await kv_of(etcd, keys.task_action(ROOT))).version == 1
    await client.put_status(ROOT, 1, flyte.status(Phase.RUNNING))
    again = await client.enqueue(flyte.task(ROOT), run_spec())
    assert (again.created, again.action.phase) == (False, Phase.RUNNING)
    assert (await kv_of(etcd, keys.task_action(ROOT))).version == 2


async def test_many_at_once(client: ActionsClient, etcd: Etcd, keys: Keyspace) -> None:
    """One of them creates it."""
    await client.enqueue(flyte.task(ROOT))
    created = []

    async def enqueue() -> None:
        created.append((await client.enqueue(flyte.task(CHILD, "a0"))).created)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(enqueue)
    assert sorted(created) == [False] * 19 + [True]
    assert (await kv_of(etcd, keys.task_action(CHILD))).version == 1


async def test_maps_in_another_order_are_the_same(client: ActionsClient) -> None:
    """A map has no order: not in the message, and not in the digest."""
    one, other = RunSpec(), RunSpec()
    names = [f"label-{number}" for number in range(30)]
    one.labels.values.update(dict.fromkeys(names, "v"))
    other.labels.values.update(dict.fromkeys(reversed(names), "v"))
    assert (await client.enqueue(flyte.task(ROOT), one)).created
    assert not (await client.enqueue(flyte.task(ROOT), other)).created


async def test_the_same_by_the_roots_other_name(client: ActionsClient) -> None:
    """``a0`` and the run's own name are one action, as itself and as a parent."""
    assert (await client.enqueue(flyte.task(ROOT))).created
    other = flyte.task(ROOT)
    other.action_id.name = "r1"
    assert not (await client.enqueue(other)).created
    assert (await client.enqueue(flyte.task(CHILD, "a0"))).created
    assert not (await client.enqueue(flyte.task(CHILD, "r1"))).created


async def test_what_is_not_used_does_not_count(client: ActionsClient) -> None:
    """An empty run specification is none; of a child only the start time counts."""
    assert (await client.enqueue(flyte.task(ROOT))).created
    assert not (await client.enqueue(flyte.task(ROOT), RunSpec())).created
    assert (await client.enqueue(flyte.task(CHILD, "a0"))).created
    ignored = RunSpec()
    ignored.labels.values["team"] = "red"
    assert not (await client.enqueue(flyte.task(CHILD, "a0"), ignored)).created
    with pytest.raises(AlreadyExists):
        await client.enqueue(flyte.task(CHILD, "a0"), run_spec())


async def test_other_content_under_the_same_name(client: ActionsClient) -> None:
    """It is told what is there, and nothing is changed."""
    first = (await client.enqueue(flyte.task(ROOT), run_spec())).action
    with pytest.raises(AlreadyExists, match=r"r1-a0 exists .*task a0 of run p/d/r1, in phase"):
        await client.enqueue(flyte.task(ROOT, name="g"), run_spec())
    with pytest.raises(AlreadyExists):
        await client.enqueue(flyte.task(ROOT), run_spec(more="labels"))
    assert await client.get_task_action(ROOT) == first


async def test_another_parent_or_kind(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.task(named("c2"), "a0"))
    await client.enqueue(flyte.task(CHILD, "a0"))
    for other in (
        flyte.task(CHILD, "c2"),
        flyte.task(CHILD),
        flyte.condition(CHILD, "a0"),
    ):
        with pytest.raises(AlreadyExists, match="task c1 of run p/d/r1, below a0"):
            await client.enqueue(other)


async def test_an_object_that_flyte_wrote(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It has no digest: identity and content are compared, whatever the order of the bytes."""
    requests = (placeholder(ROOT), placeholder(CHILD, "a0"), flyte.condition(named("w1"), "a0"))
    for request in requests:
        if request.HasField("task"):
            request.task.spec.task_template.config.update({"a": "1", "b": "2"})
        await client.enqueue(request, run_spec())
        key = keys.task_action(_action_id(request))
        await as_flyte_writes(etcd, key)
        assert not (await client.enqueue(request, run_spec())).created
        assert (await kv_of(etcd, key)).version == 2
        other = Action()
        other.CopyFrom(request)
        if other.HasField("task"):
            other.task.spec.task_template.container.args.append("more")
        else:
            other.condition.prompt = "more"
        with pytest.raises(AlreadyExists):
            await client.enqueue(other, run_spec())
    elsewhere = requests[0]
    elsewhere.action_id.run.project = "q"
    with pytest.raises(NameTaken, match="run p/d/r1"):
        await client.enqueue(elsewhere, run_spec())


async def test_a_child_that_flyte_wrote_with_the_placeholder(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Flyte leaves it in there where a child has no start time of its own."""
    await client.enqueue(flyte.task(ROOT), run_spec())
    stored = (await client.enqueue(flyte.task(CHILD, "a0"))).action
    request = placeholder(CHILD, "a0")

    def change(tree: Tree) -> None:
        del tree["metadata"]["annotations"]
        template = request.task.spec.task_template.SerializeToString()
        tree["spec"]["taskTemplate"] = _base64(template)

    await edit(etcd, stored.key, change)
    assert not (await client.enqueue(request)).created


async def test_one_of_ours_whose_digest_was_taken_away(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """The start time that it was created with is still noted."""
    await client.enqueue(placeholder(ROOT))

    def change(tree: Tree) -> None:
        del tree["metadata"]["annotations"][ANNOTATION_DIGEST]

    await edit(etcd, keys.task_action(ROOT), change)
    assert not (await client.enqueue(placeholder(ROOT))).created


async def test_something_unreadable_in_its_place(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It is not overwritten; a template that cannot be read is no template."""
    await etcd.put(keys.task_action(ROOT), b"{}")
    with pytest.raises(NameTaken, match="cannot be read"):
        await client.enqueue(flyte.task(ROOT))
    with pytest.raises(Aborted, match="the parent cannot be read"):
        await client.enqueue(flyte.task(CHILD, "a0"))
    await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
    await client.enqueue(flyte.task(ROOT))

    def change(tree: Tree) -> None:
        del tree["metadata"]["annotations"]
        tree["spec"]["taskTemplate"] = _base64(b"\xff\xff")

    await edit(etcd, keys.task_action(ROOT), change)
    with pytest.raises(AlreadyExists):
        await client.enqueue(flyte.task(ROOT))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _action_id(action: Action) -> ActionId:
    run = action.action_id.run
    return ActionId(run.project, run.domain, run.name, action.action_id.name, run.org)


# --- answers that are lost --------------------------------------------------------------


def _each_kind() -> list[Action]:
    return [
        flyte.task(ROOT),
        flyte.task(CHILD, "a0"),
        flyte.condition(CHILD, "a0"),
        flyte.trace(CHILD, "a0"),
    ]


@pytest.mark.parametrize("request_", _each_kind(), ids=["root", "child", "condition", "trace"])
async def test_a_lost_answer_of_a_write_that_was_done(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, request_: Action
) -> None:
    """It is found, as what this call created."""
    if request_.parent_action_name:
        await client.enqueue(flyte.task(ROOT))
    lossy = LostAnswer(etcd, applied=True)
    enqueued = await Enqueuer(Store(etcd, lossy), keys, json).enqueue(request_)
    assert lossy.lost
    assert enqueued.created
    assert (await kv_of(etcd, enqueued.action.key)).version == 1


@pytest.mark.parametrize("request_", _each_kind(), ids=["root", "child", "condition", "trace"])
async def test_a_lost_answer_of_a_write_that_was_not_done(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, request_: Action
) -> None:
    """It may still come: that is told, and asking again creates it once."""
    if request_.parent_action_name:
        await client.enqueue(flyte.task(ROOT))
    enqueuer = Enqueuer(Store(etcd, LostAnswer(etcd, applied=False)), keys, json)
    with pytest.raises(OutcomeUnknown):
        await enqueuer.enqueue(request_)
    enqueued = await enqueuer.enqueue(request_)
    assert enqueued.created
    assert (await kv_of(etcd, enqueued.action.key)).version == 1


async def test_a_write_that_comes_late(etcd: Etcd, keys: Keyspace) -> None:
    """Between a lost answer and the next try the write is done after all: it is the same."""
    late: list[Txn] = []

    async def lose(txn: Txn) -> TxnResult:
        if _writes(txn) and not late:
            late.append(txn)
            raise OutcomeUnknown("the answer was lost")
        return await etcd.txn(txn)

    enqueuer = Enqueuer(Store(etcd, lose), keys, json)
    with pytest.raises(OutcomeUnknown):
        await enqueuer.enqueue(flyte.task(ROOT))
    await etcd.txn(late[0])
    assert not (await enqueuer.enqueue(flyte.task(ROOT))).created
    assert not (await etcd.txn(late[0])).succeeded


async def test_a_lost_answer_and_no_way_to_look(etcd: Etcd, keys: Keyspace) -> None:
    """The failed read must not make it an error that says that nothing was written."""
    with pytest.raises(OutcomeUnknown):
        await Enqueuer(AwayAfterwards(etcd), keys, json).enqueue(flyte.task(ROOT))


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.SUCCEEDED], ids=["other", "same-bytes"])
async def test_a_trace_recorded_again_and_the_answer_lost(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, phase: Phase
) -> None:
    """It has the identity that it had before: content and revision tell that it was written.

    The same bytes at the old revision were not: nobody was told of them again.
    """
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.trace(CHILD, "a0"))
    again = flyte.trace(CHILD, "a0", phase=phase)
    with pytest.raises(OutcomeUnknown):
        await Enqueuer(Store(etcd, LostAnswer(etcd, applied=False)), keys, json).enqueue(again)
    assert (await kv_of(etcd, keys.trace(CHILD))).version == 1
    await Enqueuer(Store(etcd, LostAnswer(etcd, applied=True)), keys, json).enqueue(again)
    kv = await kv_of(etcd, keys.trace(CHILD))
    assert (kv.version, StoredAction.of(kv).phase) == (2, phase)


# --- the parent (defects g and i) -------------------------------------------------------


async def test_no_such_parent(client: ActionsClient) -> None:
    for request in (
        flyte.task(CHILD, "a0"),
        flyte.condition(CHILD, "a0"),
        flyte.trace(CHILD, "a0"),
    ):
        with pytest.raises(Aborted, match="there is no action a0 of run p/d/r1"):
            await client.enqueue(request)


async def test_a_parent_of_another_project(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    with pytest.raises(Aborted, match="r1-a0 is action a0 of run p/d/r1"):
        await client.enqueue(flyte.task(named("c1", project="q"), "a0"))


async def test_defect_i_a_parent_that_is_being_deleted(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    await client.enqueue(flyte.task(ROOT))

    def change(tree: Tree) -> None:
        tree["metadata"]["deletionTimestamp"] = START

    await edit(etcd, keys.task_action(ROOT), change)
    for request in (flyte.task(CHILD, "a0"), flyte.trace(CHILD, "a0")):
        with pytest.raises(Aborted, match="is being deleted"):
            await client.enqueue(request)


async def test_a_parent_that_was_aborted(client: ActionsClient) -> None:
    """With no mark of it: it was reported."""
    await client.enqueue(flyte.task(ROOT))
    await client.put_status(ROOT, 1, flyte.status(Phase.ABORTED))
    with pytest.raises(Aborted, match="is aborted"):
        await client.enqueue(flyte.task(CHILD, "a0"))


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED, Phase.TIMED_OUT])
async def test_defect_a_a_late_child_of_a_recorded_parent(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, phase: Phase
) -> None:
    """It takes over no system label: a mark would hide it for ever, and it would be deleted."""
    await client.enqueue(flyte.task(ROOT), run_spec())
    await client.put_status(ROOT, 1, flyte.status(phase))

    def change(tree: Tree) -> None:
        tree["metadata"]["labels"][LABEL_TERMINAL_STATUS_RECORDED] = "true"
        tree["metadata"]["labels"]["flyte.org/later"] = "label"

    await edit(etcd, keys.task_action(ROOT), change)
    parent = await client.get_task_action(ROOT)
    assert parent.is_recorded
    assert parent.metadata.labels["flyte.org/termination-status"] == "terminated"
    for request, key in (
        (flyte.task(CHILD, "a0"), keys.task_action(CHILD)),
        (flyte.condition(named("w1"), "a0"), keys.task_action(named("w1"))),
        (flyte.trace(named("t1"), "a0", phase=Phase.RUNNING), keys.trace(named("t1"))),
    ):
        await client.enqueue(request)
        labels = StoredAction.of(await kv_of(etcd, key)).metadata.labels
        system = {label for label in labels if label.startswith("flyte.org/")}
        assert system == {
            "flyte.org/project",
            "flyte.org/domain",
            "flyte.org/run",
            "flyte.org/action",
            "flyte.org/action-type",
            "flyte.org/is-root",
        }


async def test_defect_g_a_parent_that_is_made_again_meanwhile(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """The child belongs to the one that is there."""
    await client.enqueue(flyte.task(ROOT), run_spec())

    async def again() -> None:
        await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))
        await client.enqueue(flyte.task(ROOT, name="g"), run_spec(team="red"))

    meanwhile = Meanwhile(etcd, again)
    stored = (
        await Enqueuer(Store(etcd, meanwhile), keys, json).enqueue(flyte.task(CHILD, "a0"))
    ).action
    root = await client.get_task_action(ROOT)
    assert [each.uid for each in stored.metadata.owner_references] == [root.metadata.uid]
    assert stored.metadata.labels["team"] == "red"
    assert meanwhile.writes == 2


async def test_a_parent_that_goes_meanwhile(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    await client.enqueue(flyte.task(ROOT))

    async def delete() -> None:
        await etcd.delete(KeyRange.of_key(keys.task_action(ROOT)))

    enqueuer = Enqueuer(Store(etcd, Meanwhile(etcd, delete)), keys, json)
    with pytest.raises(Aborted, match="the parent is gone"):
        await enqueuer.enqueue(flyte.task(CHILD, "a0"))
    assert await Store(etcd).get(keys.task_action(CHILD)) is None


async def test_the_name_is_taken_meanwhile(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """By the same, which is found, or by another one."""
    await client.enqueue(flyte.task(ROOT))

    async def take() -> None:
        await client.enqueue(flyte.task(CHILD, "a0"))

    taken = Store(etcd, Meanwhile(etcd, take))
    assert not (await Enqueuer(taken, keys, json).enqueue(flyte.task(CHILD, "a0"))).created
    await etcd.delete(KeyRange.of_key(keys.task_action(CHILD)))
    taken = Store(etcd, Meanwhile(etcd, take))
    with pytest.raises(AlreadyExists):
        await Enqueuer(taken, keys, json).enqueue(flyte.task(CHILD, "a0", name="g"))


async def test_a_busy_parent_starves_nobody(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Its state changes before each write of a child; none needs a third try for that."""
    await client.enqueue(flyte.task(ROOT))
    changes = writes = 0

    async def keep_changing() -> None:
        nonlocal changes
        while True:
            attempt = changes + 1
            await client.put_status(ROOT, attempt, flyte.status(Phase.RUNNING, attempt))
            changes = attempt

    async def after_a_change(txn: Txn) -> TxnResult:
        nonlocal writes
        if _writes(txn):
            writes += 1
            before = changes
            while changes == before:
                await trio.lowlevel.checkpoint()
        return await etcd.txn(txn)

    enqueuer = Enqueuer(Store(etcd, after_a_change), keys, json)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_changing)
        with trio.fail_after(60):
            for number in range(50):
                request = flyte.task(named(f"c{number}"), "a0")
                assert (await enqueuer.enqueue(request)).created
        nursery.cancel_scope.cancel()
    assert writes <= 2 * 50
    assert changes >= 50


# --- aborts -----------------------------------------------------------------------------


async def _three_levels(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.task(named("c1"), "a0"))
    await client.enqueue(flyte.task(named("g1"), "c1"))
    await client.enqueue(flyte.task(named("c2"), "a0"))


def _going_on_again(tree: Tree) -> None:
    """Somebody overwrote what the abort had written."""
    del tree["status"]


@pytest.mark.parametrize(
    ("aborted", "above"), [("g1", "the parent"), ("c1", "an action above"), ("a0", "an action")]
)
async def test_the_mark_of_an_abort_at_any_depth(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, aborted: str, above: str
) -> None:
    """It counts though no object says so, which are overwritten by others as a whole."""
    await _three_levels(client)
    await client.abort_action(named(aborted))
    for name in ("a0", "c1", "g1"):
        if (await client.get_task_action(named(name))).phase is Phase.ABORTED:
            await edit(etcd, keys.task_action(named(name)), _going_on_again)
    for request in (
        flyte.task(named("x1"), "g1"),
        flyte.condition(named("x1"), "g1"),
        flyte.trace(named("x1"), "g1"),
    ):
        with pytest.raises(Aborted, match=f"{above}.* is aborted: {aborted}"):
            await client.enqueue(request)
    assert await Store(etcd).get(keys.task_action(named("x1"))) is None


async def test_the_mark_of_another_subtree(client: ActionsClient) -> None:
    """What is beside it, and what is above, goes on."""
    await _three_levels(client)
    await client.abort_action(named("c1"))
    assert (await client.enqueue(flyte.task(named("x1"), "c2"))).created
    assert (await client.enqueue(flyte.task(named("x2"), "a0"))).created


async def test_the_mark_of_another_run(client: ActionsClient) -> None:
    """Also of one whose keys lie within this one's, and of a name that this one could have."""
    await _three_levels(client)
    other = named("a0", run="r1-x")
    await client.enqueue(flyte.task(other))
    await client.abort_action(other)
    assert (await client.enqueue(flyte.task(named("x1"), "g1"))).created
    # The mark's key is also that of action ``x-a0`` of this run, were there one.
    with pytest.raises(Aborted, match="r1-x-a0 is action a0 of run p/d/r1-x"):
        await client.enqueue(flyte.task(named("x2"), "x-a0"))


async def test_the_mark_of_another_run_that_has_an_ancestors_name_now(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It says nothing of what had the name before."""
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.task(named("x-a0"), "a0"))
    await client.enqueue(flyte.task(named("g1"), "x-a0"))
    await etcd.delete(KeyRange.of_key(keys.task_action(named("x-a0"))))
    other = named("a0", run="r1-x")
    await client.enqueue(flyte.task(other))
    await client.abort_action(other)
    assert (await client.enqueue(flyte.task(named("x1"), "g1"))).created


async def test_an_abort_between_the_read_and_the_write(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Of the parent, of what is above it; and of another subtree, which only costs a try."""
    await _three_levels(client)
    for number, aborted in enumerate(("c2", "c1")):
        other = aborted == "c2"

        async def abort(aborted: str = aborted) -> None:
            await Aborter(Store(etcd), keys).abort_action(named(aborted))

        meanwhile = Meanwhile(etcd, abort)
        enqueuer = Enqueuer(Store(etcd, meanwhile), keys, json)
        child = named(f"x{number}")
        if other:
            assert (await enqueuer.enqueue(flyte.task(child, "g1"))).created
            assert meanwhile.writes == 2
        else:
            with pytest.raises(Aborted, match="aborted"):
                await enqueuer.enqueue(flyte.task(child, "g1"))
            assert meanwhile.writes == 1
            assert await Store(etcd).get(keys.task_action(child)) is None


async def test_a_mark_that_cannot_be_read(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It counts."""
    await _three_levels(client)
    await etcd.put(keys.abort(named("c1")), b"{")
    with pytest.raises(Aborted, match="above it is aborted: c1"):
        await client.enqueue(flyte.task(named("x1"), "g1"))
    await etcd.put(keys.abort(named("x1")), b"{")
    with pytest.raises(Aborted, match=r"delete .*r1-x1"):
        await client.enqueue(flyte.task(named("x1"), "a0"))


@pytest.mark.parametrize("name", ["a0", "c1"])
async def test_an_action_made_again_after_its_abort(
    client: ActionsClient, etcd: Etcd, keys: Keyspace, name: str
) -> None:
    """The mark of the abort ends with it: left, nothing could ever be enqueued below it.

    What was below the one before is aborted first.
    """
    await _three_levels(client)
    again = named(name)
    await client.abort_action(again)
    await edit(etcd, keys.task_action(named("g1")), _going_on_again)
    await etcd.delete(KeyRange.of_key(keys.task_action(again)))
    parent = "" if name == "a0" else "a0"
    assert (await client.enqueue(flyte.task(again, parent))).created
    assert await Store(etcd).get(keys.abort(again)) is None
    if name == "c1":
        assert (await client.get_task_action(named("g1"))).phase is Phase.ABORTED
    assert (await client.enqueue(flyte.task(named("x1"), name))).created


async def test_the_mark_of_an_incarnation_before(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """Flyte's service makes an action again and knows of no marks: it is another action."""
    await _three_levels(client)
    await client.abort_action(named("c2"))

    def change(tree: Tree) -> None:
        _going_on_again(tree)
        tree["metadata"]["uid"] = "5f4a7a52-5b35-4a0a-9d4f-0f7b7e6a7c11"

    await edit(etcd, keys.task_action(named("c2")), change)
    assert (await client.enqueue(flyte.task(named("x1"), "c2"))).created


# --- traces (defect d) ------------------------------------------------------------------


async def test_defect_d_a_failed_trace_is_failed(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """It keeps its own phase, times and error, and whether running it again may help."""
    await client.enqueue(flyte.task(ROOT))
    error = ErrorState(code="ValueError", kind="USER", message="no", recoverable=True)
    request = flyte.trace(CHILD, "a0", phase=Phase.FAILED)
    request.trace.name = "fetch"
    request.group = "g"
    stored = (await client.enqueue(request, trace_error=error)).action
    assert stored.key == keys.trace(CHILD)
    assert not stored.key.startswith(keys.prefix)
    assert stored.phase is Phase.FAILED
    assert stored.status.error_state == error
    assert stored.status.attempts == 1
    assert stored.metadata.creation_timestamp == "2026-11-23T16:00:00Z"
    assert stored.end_time == "2026-11-23T16:00:01Z"
    assert stored.output_uri == "s3://out/c1/outputs.pb"
    assert (stored.spec.short_name, stored.spec.task_type, stored.spec.group) == (
        "fetch",
        "trace",
        "g",
    )
    assert stored.spec.input_uri == "s3://in/c1"
    assert TraceAction.FromString(stored.spec.trace_spec_bytes) == request.trace
    # Where an API server reads there is nothing.
    assert await Store(etcd).get(keys.task_action(CHILD)) is None


@pytest.mark.parametrize(
    "phase", [phase for phase in Phase if phase is not Phase.WAITING_FOR_RESOURCES]
)
async def test_traces_in_each_phase(client: ActionsClient, phase: Phase) -> None:
    await client.enqueue(flyte.task(ROOT))
    request = flyte.trace(CHILD, "a0", phase=phase)
    request.trace.ClearField("start_time")
    request.trace.ClearField("end_time")
    stored = (await client.enqueue(request)).action
    assert stored.phase is phase
    assert (stored.end_time != "") == phase.is_terminal


async def test_a_trace_with_a_long_name(client: ActionsClient) -> None:
    """It is cut, to be shown; whole it is in the trace's own message."""
    await client.enqueue(flyte.task(ROOT))
    request = flyte.trace(CHILD, "a0")
    request.trace.name = "x" * 100
    stored = (await client.enqueue(request)).action
    assert stored.spec.short_name == "x" * 63
    assert TraceAction.FromString(stored.spec.trace_spec_bytes).name == "x" * 100


async def test_a_trace_recorded_again(client: ActionsClient, etcd: Etcd, keys: Keyspace) -> None:
    """It overwrites, as the same incarnation, and what was recorded of it is recorded anew."""
    await client.enqueue(flyte.task(ROOT))
    first = (await client.enqueue(flyte.trace(CHILD, "a0", phase=Phase.RUNNING))).action

    def change(tree: Tree) -> None:
        write_phase(tree, Phase.SUCCEEDED, now=T0)
        tree["metadata"]["labels"][LABEL_TERMINAL_STATUS_RECORDED] = "true"
        del tree["metadata"]["finalizers"]

    await edit(etcd, keys.trace(CHILD), change)
    again = await client.enqueue(flyte.trace(CHILD, "a0", phase=Phase.FAILED))
    assert again.created
    assert again.action.revision > first.revision
    assert again.action.create_revision == first.create_revision
    assert again.action.metadata.uid == first.metadata.uid
    assert again.action.phase is Phase.FAILED
    assert not again.action.is_recorded
    assert again.action.metadata.finalizers == (FINALIZER_RECORD,)
    # The same bytes are written, too: somebody waits for the notice.
    once_more = (await client.enqueue(flyte.trace(CHILD, "a0", phase=Phase.FAILED))).action
    assert once_more.revision > again.action.revision
    assert once_more.metadata == again.action.metadata


async def test_a_trace_of_another_run_is_not_overwritten(client: ActionsClient) -> None:
    for run, name in (("r1", "x-t1"), ("r1-x", "t1")):
        await client.enqueue(flyte.task(named("a0", run=run)))
        if run == "r1":
            await client.enqueue(flyte.trace(named(name, run=run), "a0"))
    with pytest.raises(NameTaken, match="trace x-t1 of run p/d/r1, below a0"):
        await client.enqueue(flyte.trace(named("t1", run="r1-x"), "a0"))


@pytest.mark.parametrize("watches", [True, False], ids=["watching", "not-watching"])
async def test_subscribers_are_told_of_traces(etcd: Etcd, prefix: bytes, watches: bool) -> None:
    """Each time one is recorded, on any process; who subscribes later finds it, too."""
    error = ErrorState(code="ValueError", kind="USER", message="no", recoverable=False)
    async with (
        open_actions_client(etcd, prefix=prefix) as writer,
        open_actions_client(etcd, prefix=prefix) as reader,
    ):
        if watches:
            await reader.start_watching()
        await writer.enqueue(flyte.task(ROOT))
        revisions = []
        async with reader.subscribe(ROOT) as updates:
            for phase in (Phase.SUCCEEDED, Phase.FAILED):
                written = (
                    await writer.enqueue(
                        flyte.trace(CHILD, "a0", phase=phase),
                        trace_error=error if phase is Phase.FAILED else None,
                    )
                ).action
                update = None
                with trio.fail_after(20):
                    while update is None or update.revision < written.revision:
                        update = await updates.receive()
                # The mark may have come in between: it has a newer revision.
                assert update.action_id == CHILD
                revisions.append(update.revision)
                assert (update.action_type, update.phase, update.uid) == (
                    "trace",
                    phase,
                    written.metadata.uid,
                )
                assert update.output_uri == "s3://out/c1/outputs.pb"
                assert update.error == (error if phase is Phase.FAILED else None)
        assert revisions == sorted(set(revisions))
    async with (
        open_actions_client(etcd, prefix=prefix) as later,
        later.subscribe(ROOT, snapshot=True) as states,
    ):
        found: list[ActionUpdate] = []
        with trio.fail_after(20):
            async for state in states:
                if isinstance(state, SnapshotEnd):
                    break
                found.append(state)
    assert {(each.action_id.name, each.phase) for each in found} == {
        ("a0", Phase.UNSPECIFIED),
        ("c1", Phase.FAILED),
    }
