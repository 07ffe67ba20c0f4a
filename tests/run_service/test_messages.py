"""What is told to the run service, field by field."""

from __future__ import annotations

import base64

import msgspec
import pytest
from flyteidl2.core.identifier_pb2 import Identifier
from flyteidl2.core.literals_pb2 import Literal, Primitive, Scalar
from flyteidl2.core.tasks_pb2 import TaskTemplate
from flyteidl2.workflow.internal_run_service_pb2 import RecordActionRequest
from flyteidl2.workflow.run_definition_pb2 import ConditionAction, TraceAction
from google.protobuf import text_format
from google.protobuf.message import Message
from structlog.testing import capture_logs

from etcd_actions.model import (
    ANNOTATION_ABORT_REASON,
    ANNOTATION_ABORTED_BY,
    ANNOTATION_ORG,
    ANNOTATION_SUBJECT,
    ActionObject,
    ActionUpdate,
    Condition,
    ObjectMeta,
    Phase,
    TaskActionSpec,
    TaskActionStatus,
    build_action_update,
)
from etcd_actions.run_service import requests


def text(message: Message) -> str:
    return base64.b64encode(message.SerializeToString()).decode()


TEMPLATE = TaskTemplate(
    id=Identifier(project="tp", domain="td", name="pkg.mod.f", version="v7"), type="python"
)
METADATA = ObjectMeta(
    "r1-c1",
    "flyte",
    "3f0c",
    creation_timestamp="2026-11-23T16:00:00Z",
    annotations={ANNOTATION_ORG: "acme", ANNOTATION_SUBJECT: "ann"},
)
SPEC = TaskActionSpec(
    "p",
    "d",
    "r1",
    "c1",
    parent_action_name="a0",
    input_uri="s3://in",
    cache_key="k1",
    task_type="python",
    short_name="f",
    group="g",
    task_template=text(TEMPLATE),
)


def ended(type: str, reason: str) -> TaskActionStatus:
    at = "2026-11-23T16:00:05Z"
    return TaskActionStatus(
        attempts=3,
        cache_status=2,
        conditions=(
            Condition("Progressing", "False", reason, "", at),
            Condition(type, "True", reason, "", at),
        ),
    )


def told(action: ActionObject) -> ActionUpdate:
    return build_action_update(action, key=b"/p/flyte/r1-c1", revision=9, create_revision=8)


def action(spec: TaskActionSpec = SPEC, status: TaskActionStatus | None = None) -> ActionObject:
    return ActionObject.new(METADATA, spec, status or TaskActionStatus())


def test_the_record_of_a_task() -> None:
    one = action()
    request = requests.record_action(told(one), one)
    run = request.action_id.run
    assert (run.org, run.project, run.domain, run.name) == ("acme", "p", "d", "r1")
    assert request.action_id.name == "c1"
    assert (request.parent, request.group, request.subject) == ("a0", "g", "ann")
    assert request.input_uri == "s3://in"
    task = request.task
    assert (task.id.org, task.id.project, task.id.domain) == ("acme", "tp", "td")
    assert (task.id.name, task.id.version) == ("pkg.mod.f", "v7")
    assert task.spec.task_template == TEMPLATE
    assert task.spec.short_name == "f"
    assert task.cache_key.value == "k1"


def test_the_record_of_a_root() -> None:
    spec = msgspec.structs.replace(SPEC, action_name="a0", parent_action_name="", group="")
    one = action(spec)
    request = requests.record_action(told(one), one)
    assert (request.parent, request.group) == ("", "")
    assert request.WhichOneof("spec") == "task"


def test_the_record_of_a_condition() -> None:
    condition = ConditionAction(name="approve", prompt="go?")
    spec = msgspec.structs.replace(
        SPEC, action_type="condition", condition_spec=text(condition), task_template=""
    )
    one = action(spec)
    assert requests.record_action(told(one), one).condition == condition


def test_the_record_of_a_trace() -> None:
    """With its own phase, times and outputs."""
    trace = TraceAction(name="step", phase=6)
    trace.start_time.FromJsonString("2026-11-23T16:00:00Z")
    trace.end_time.FromJsonString("2026-11-23T16:00:01Z")
    trace.outputs.output_uri = "s3://out"
    spec = msgspec.structs.replace(
        SPEC, action_type="trace", trace_spec=text(trace), task_template="", task_type="trace"
    )
    one = action(spec)
    assert requests.record_action(told(one), one).trace == trace


@pytest.mark.parametrize(
    ("field", "kind", "told_as"),
    [
        ("task_template", "", 'task { spec { short_name: "f" } cache_key { value: "k1" } }'),
        ("condition_spec", "condition", 'condition { name: "c1" }'),
        ("trace_spec", "trace", 'trace { name: "f" phase: ACTION_PHASE_FAILED }'),
    ],
)
@pytest.mark.parametrize("stored", ["no base64!", base64.b64encode(b"\xff\xff").decode()])
def test_what_cannot_be_read_is_left_out(field: str, kind: str, told_as: str, stored: str) -> None:
    """Without any record the status would land nowhere."""
    spec = msgspec.structs.replace(
        SPEC, **{"task_template": "", "action_type": kind, field: stored}
    )
    one = action(spec, ended("Failed", "PermanentFailure"))
    with capture_logs() as logs:
        request = requests.record_action(told(one), one)
    assert (request.parent, request.group, request.input_uri) == ("a0", "g", "s3://in")
    wanted = text_format.Parse(told_as, RecordActionRequest())
    assert request.WhichOneof("spec") == wanted.WhichOneof("spec")
    for spec_of in ("task", "condition", "trace"):
        assert getattr(request, spec_of) == getattr(wanted, spec_of)
    (log,) = logs
    assert (log["event"], log["key"], log["revision"]) == (
        "reported_without_field",
        "/p/flyte/r1-c1",
        9,
    )


def test_a_task_without_a_template_is_recorded_too() -> None:
    """Flyte's service sends no spec then, which its run service refuses."""
    one = action(msgspec.structs.replace(SPEC, task_template="", task_type=""))
    request = requests.record_action(told(one), one)
    assert request.WhichOneof("spec") == "task"
    assert request.task.spec.short_name == "f"
    assert not request.task.HasField("id")


def test_a_record_without_the_object() -> None:
    """Of what was deleted unseen nothing is made up."""
    request = requests.record_action(told(action()), None)
    assert request.action_id.name == "c1"
    assert request.parent == "a0"
    assert request.WhichOneof("spec") is None


def test_the_status_of_what_goes_on() -> None:
    """Only what is known is set."""
    running = TaskActionStatus(conditions=(Condition("Progressing", "True", "Executing"),))
    request = requests.update_action_status(told(action(status=running)))
    assert request.status.phase == Phase.RUNNING
    assert request.status.attempts == 1
    assert request.status.start_time.ToJsonString() == "2026-11-23T16:00:00Z"
    for message, field in ((request.status, "end_time"), (request, "output")):
        assert not message.HasField(field)
    assert not request.HasField("principal")
    assert not request.HasField("abort_reason")


@pytest.mark.parametrize(
    ("type", "reason", "phase"),
    [
        ("Succeeded", "Completed", Phase.SUCCEEDED),
        ("Failed", "PermanentFailure", Phase.FAILED),
        ("Failed", "TimedOut", Phase.TIMED_OUT),
        ("Failed", "Aborted", Phase.ABORTED),
    ],
)
def test_the_status_of_an_ending(type: str, reason: str, phase: Phase) -> None:
    """Attempts and cache status as stored; the end is when the condition was set."""
    status = requests.update_action_status(told(action(status=ended(type, reason)))).status
    assert (status.phase, status.attempts, status.cache_status) == (phase, 3, 2)
    assert status.start_time.ToJsonString() == "2026-11-23T16:00:00Z"
    assert status.end_time.ToJsonString() == "2026-11-23T16:00:05Z"


def test_reason_and_actor_of_an_abort() -> None:
    update = msgspec.structs.replace(
        told(action(status=ended("Failed", "Aborted"))), abort_reason="wrong input", aborted_by="bo"
    )
    request = requests.update_action_status(update)
    assert request.abort_reason == "wrong input"
    assert request.principal.user.id.subject == "bo"
    annotations = {ANNOTATION_ABORT_REASON: "wrong input", ANNOTATION_ABORTED_BY: "bo"}
    stored = ActionObject.new(
        msgspec.structs.replace(METADATA, annotations=annotations),
        SPEC,
        ended("Failed", "Aborted"),
    )
    assert requests.update_action_status(told(stored)).abort_reason == "wrong input"


def test_an_actor_of_an_abort_that_did_not_come_to_be() -> None:
    """It was over before: the abort had no part in it."""
    update = msgspec.structs.replace(
        told(action(status=ended("Succeeded", "Completed"))), abort_reason="late", aborted_by="bo"
    )
    request = requests.update_action_status(update)
    assert not request.HasField("abort_reason")
    assert not request.HasField("principal")


def test_a_signalled_condition() -> None:
    value = Literal(scalar=Scalar(primitive=Primitive(boolean=True)))
    status = msgspec.structs.replace(
        ended("Succeeded", "Signaled"), signal_value=text(value), signalled_by="cy"
    )
    request = requests.update_action_status(told(action(status=status)))
    assert request.output == value
    assert request.principal.user.id.subject == "cy"
    waiting = msgspec.structs.replace(
        status, conditions=(Condition("Progressing", "True", "Paused"),)
    )
    assert not requests.update_action_status(told(action(status=waiting))).HasField("output")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"creation_timestamp": "yesterday"}, "start_time"),
        ({"end_time": "2026-11-23"}, "end_time"),
        ({"signal_base64": "no base64!"}, "output"),
        ({"signal_base64": base64.b64encode(b"\xff\xff").decode()}, "output"),
    ],
)
def test_a_bad_field_does_not_withhold_an_ending(changes: dict[str, str], field: str) -> None:
    update = told(action(status=ended("Succeeded", "Completed")))
    with capture_logs() as logs:
        request = requests.update_action_status(msgspec.structs.replace(update, **changes))
    assert request.status.phase == Phase.SUCCEEDED
    where = request if field == "output" else request.status
    assert not where.HasField(field)
    assert [log["event"] for log in logs] == ["reported_without_field"]


def test_times_below_a_second_and_before_the_epoch() -> None:
    update = msgspec.structs.replace(
        told(action()),
        creation_timestamp="1969-12-31T23:59:58.5Z",
        end_time="2026-11-23T18:00:05.123456+02:00",
    )
    status = requests.update_action_status(update).status
    assert status.start_time.ToJsonString() == "1969-12-31T23:59:58.500Z"
    assert status.end_time.ToJsonString() == "2026-11-23T16:00:05.123456Z"
