"""The typed view of a TaskAction, and its conversions to Flyte's messages."""

import base64
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from etcd_actions.codecs import json as codec
from etcd_actions.errors import ConfigError, DecodeError
from etcd_actions.model import (
    ANNOTATION_ORG,
    LABEL_TERMINAL_STATUS_RECORDED,
    ActionId,
    ActionObject,
    Condition,
    ObjectMeta,
    Phase,
    TaskActionSpec,
    TaskActionStatus,
    flyte,
)
from tests.data.captured import PUTS
from tests.support.table import table

SPEC = TaskActionSpec("p", "d", "r", "a1")


def make(
    spec: TaskActionSpec = SPEC,
    status: TaskActionStatus | None = None,
    metadata: ObjectMeta | None = None,
) -> ActionObject:
    return ActionObject.new(
        metadata or ObjectMeta("r-a1", "flyte"), spec, status or TaskActionStatus()
    )


def captured(name: str) -> ActionObject:
    """Give the last captured state of an object."""
    return [codec.decode(put.value) for put in PUTS if put.key.endswith(name.encode())][-1]


def test_a_bare_action() -> None:
    """Verify what an action without status, labels and parent says."""
    action = make()
    assert action.phase is Phase.UNSPECIFIED
    assert not action.is_terminal
    assert not action.is_recorded
    assert not action.is_deleting
    assert action.action_id == ActionId("p", "d", "r", "a1")
    assert (action.parent, flyte.short_name(action), action.output_uri) == ("", "", "")
    assert action.status.attempts == 0


@pytest.mark.parametrize(
    ("text", "recorded"), [("true", True), ("True", False), ("1", False), ("", False)]
)
def test_recorded_is_exactly_true(text: str, recorded: bool) -> None:
    """Verify that no other value of the label counts, as in Flyte."""
    metadata = ObjectMeta("r-a1", labels={LABEL_TERMINAL_STATUS_RECORDED: text})
    over = TaskActionStatus(conditions=(Condition("Succeeded", "True", "Completed"),))
    assert make(status=over, metadata=metadata).is_recorded is recorded
    # What goes on it cannot be about.
    assert not make(metadata=metadata).is_recorded


def test_org_is_our_annotation() -> None:
    """Verify that the organization comes from the annotation, where it is noted."""
    action = make(metadata=ObjectMeta("r-a1", annotations={ANNOTATION_ORG: "acme"}))
    assert action.action_id == ActionId("p", "d", "r", "a1", "acme")


def test_terminal_follows_the_conditions() -> None:
    """Verify phase and end of an action that timed out."""
    status = TaskActionStatus(conditions=(Condition("Failed", "True", "TimedOut"),))
    assert make(status=status).phase is Phase.TIMED_OUT
    assert make(status=status).is_terminal


def test_output_uri_of_the_current_attempt() -> None:
    """Verify that the attempt of the status is in the path."""
    spec = msgspec.structs.replace(SPEC, run_output_base="s3://b/o")
    uri = make(spec, TaskActionStatus(attempts=3)).output_uri
    assert uri.startswith("s3://b/")
    assert uri.endswith("/o/a1/3")


def test_times() -> None:
    """Verify that times are aware, and empty ones None."""
    metadata = ObjectMeta("n", creation_timestamp="2026-11-23T16:14:03Z")
    assert metadata.created_at == datetime(2026, 11, 23, 16, 14, 3, tzinfo=UTC)
    assert metadata.deleted_at is None
    status = TaskActionStatus(signalled_at="2026-11-23T16:14:04.123456789+01:00")
    assert status.signal_time is not None
    assert status.signal_time.utcoffset() == timedelta(hours=1)
    assert status.signal_time.microsecond == 123456


@pytest.mark.parametrize("text", ["yesterday", "2026-11-23", "2026-11-23T16:14:03", "1"])
def test_bad_times(text: str) -> None:
    """Verify that a time without date, clock or zone is refused with the field's name."""
    with pytest.raises(DecodeError, match=r"metadata\.deletionTimestamp: not an RFC 3339"):
        _ = ObjectMeta("n", deletion_timestamp=text).deleted_at


@table("text", ["%", "YQ", "YQ=", "YQ==YQ==", "Y Q==", "é", "YR==="])
def test_bad_base64(text: str) -> None:
    """Verify that each field of bytes is refused by its name."""
    spec = msgspec.structs.replace(SPEC, task_template=text, condition_spec=text)
    status = TaskActionStatus(plugin_state=text, signal_value=text)
    with pytest.raises(DecodeError, match=r"spec\.taskTemplate: not base64"):
        _ = spec.task_template_bytes
    with pytest.raises(DecodeError, match=r"spec\.conditionSpec: not base64"):
        _ = spec.condition_spec_bytes
    with pytest.raises(DecodeError, match=r"status\.pluginState: not base64"):
        _ = status.plugin_state_bytes
    with pytest.raises(DecodeError, match=r"status\.signalValue: not base64"):
        _ = status.signal_value_bytes


def test_bytes() -> None:
    """Verify that base64 is decoded, and that an absent signal is not an empty one."""
    assert msgspec.structs.replace(SPEC, task_template="AP8=").task_template_bytes == b"\0\xff"
    assert SPEC.task_template_bytes == b""
    assert TaskActionStatus().signal_value_bytes is None


def test_captured_template() -> None:
    """Verify that a real template is read, and names the task where the spec does not."""
    action = captured("rh7k2m9p4qv3-b1")
    template = flyte.task_template(action)
    assert template is not None
    assert (template.type, template.id.name) == ("python-task", "hello.square")
    assert flyte.short_name(action) == "grandchild"
    unnamed = msgspec.structs.replace(
        action, spec=msgspec.structs.replace(action.spec, short_name="")
    )
    assert flyte.short_name(unnamed) == "square"


def test_captured_condition() -> None:
    """Verify that a real condition and the value of its signal are read."""
    action = captured("rcond0000001-c1")
    condition = flyte.condition_action(action)
    value = flyte.signal_value(action)
    assert condition is not None
    assert value is not None
    assert (condition.name, condition.prompt) == ("approve", "ok?")
    assert value.scalar.primitive.boolean is True
    assert action.spec.is_condition
    assert flyte.task_template(action) is None


def test_absent_messages() -> None:
    """Verify None for what an action does not have."""
    assert flyte.task_template(make()) is None
    assert flyte.condition_action(make()) is None
    assert flyte.signal_value(make()) is None


def test_action_identifier() -> None:
    """Verify each part of Flyte's identifier."""
    identifier = flyte.action_identifier(ActionId("p", "d", "r", "a1", "o"))
    run = identifier.run
    assert (run.org, run.project, run.domain, run.name) == ("o", "p", "d", "r")
    assert identifier.name == "a1"


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x7f"], ids=["tag", "length"])
def test_bad_messages(data: bytes) -> None:
    """Verify that bytes that are no message are refused with the field's name."""
    text = base64.b64encode(data).decode()
    action = make(
        msgspec.structs.replace(SPEC, task_template=text, condition_spec=text),
        TaskActionStatus(signal_value=text),
    )
    with pytest.raises(DecodeError, match=r"spec\.taskTemplate: not a TaskTemplate"):
        flyte.task_template(action)
    with pytest.raises(DecodeError, match=r"spec\.conditionSpec: not a ConditionAction"):
        flyte.condition_action(action)
    with pytest.raises(DecodeError, match=r"status\.signalValue: not a Literal"):
        flyte.signal_value(action)


def test_without_flyteidl2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify that a missing extra is told by the command that installs it."""
    monkeypatch.setitem(sys.modules, "flyteidl2.core.tasks_pb2", None)
    action = make(msgspec.structs.replace(SPEC, task_template="AP8="))
    with pytest.raises(ConfigError, match=r"pip install etcd-actions\[flyte\]"):
        flyte.task_template(action)


def test_imports_are_light() -> None:
    """Verify that the domain and its codecs do not load gRPC, protobuf or Flyte's messages."""
    program = (
        "import sys, etcd_actions.codecs, etcd_actions.model.flyte\n"
        "heavy = ('grpc', 'google.protobuf', 'flyteidl2')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
