"""What is run for an attempt: any spec gives a command, or the name of the field that is wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest
from flyteidl2.core.identifier_pb2 import Identifier
from flyteidl2.core.literals_pb2 import KeyValuePair
from flyteidl2.core.tasks_pb2 import Container, DataLoadingConfig, K8sPod, Sql, TaskTemplate
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.errors import InvalidArgument
from etcd_actions.executor import ExecutorSettings
from etcd_actions.executor.attempts.attempt_command import HOST_MARK, Command, build_command
from etcd_actions.model import ActionObject, ObjectMeta, TaskActionSpec
from tests.support.table import table

SETTINGS = ExecutorSettings(
    python=Path(sys.executable), service="127.0.0.1:1", state_dir=Path("/nowhere")
)
SDK = ("a0", "--inputs", "{{.input}}", "--outputs-path", "{{.outputPrefix}}")


def action(**spec: object) -> ActionObject:
    good = TaskActionSpec("p", "d", "r1", "a0", input_uri="/in", run_output_base="/base")
    return ActionObject.new(
        ObjectMeta("r1-a0", namespace="flyte", uid="u"), msgspec.structs.replace(good, **spec)
    )


def template(
    *arguments: str,
    kind: str = "python",
    env: dict[str, str] | None = None,
    config: dict[str, str] | None = None,
    copilot: bool = False,
) -> TaskTemplate:
    pairs = [KeyValuePair(key=key, value=value) for key, value in (env or {}).items()]
    marks = [KeyValuePair(key=key, value=value) for key, value in (config or {}).items()]
    container = Container(image="i:1", args=arguments or ("run",), env=pairs, config=marks)
    if copilot:
        container.data_config.CopyFrom(DataLoadingConfig(enabled=True))
    return TaskTemplate(id=Identifier(name="f"), type=kind, container=container)


def build(action: ActionObject, template: TaskTemplate) -> Command:
    return build_command(action, template, 1, SETTINGS)


@table(
    ("spec", "given", "field"),
    [
        ({}, template("a\0b"), "spec.taskTemplate.container.args"),
        ({}, template(""), "spec.taskTemplate.container"),
        ({}, template("run", env={"a=b": "c"}), "spec.taskTemplate.container.env"),
        ({}, template("run", env={"": "c"}), "spec.taskTemplate.container.env"),
        ({}, template("run", env={"a\0": "c"}), "spec.taskTemplate.container.env"),
        ({}, template("run", env={"a": "\0"}), "spec.taskTemplate.container.env[a]"),
        ({"env_vars": {"=": ""}}, template(), "spec.envVars"),
        ({"env_vars": {"a": "\0"}}, template(), "spec.envVars[a]"),
        ({"env_vars": {"a": "\ud800"}}, template(), "spec.envVars[a]"),
        (
            {"env_vars": {"ETCD_ACTIONS_WORKDIR": "here"}},
            template(),
            "spec.envVars[ETCD_ACTIONS_WORKDIR]",
        ),
        ({"input_uri": "\0"}, template(), "spec.inputUri"),
        ({"input_uri": ""}, template(), "spec.inputUri"),
        ({"input_uri": "\udfff"}, template(), "spec.inputUri"),
        ({"run_name": "\0"}, template(), "spec.runName"),
        ({"project": "a\0"}, template(), "spec.project"),
        ({"action_name": ".."}, template(), "spec.actionName"),
        ({"action_name": "../../x"}, template(), "spec.actionName"),
        ({"action_name": "a" * 256}, template(), "spec.actionName"),
        ({"run_output_base": ""}, template(), "spec.runOutputBase"),
        ({"run_output_base": "s3://b/x"}, template(), "spec.runOutputBase"),
        ({"run_output_base": "s3://[abc]/x"}, template(), "spec.runOutputBase"),
        ({"run_output_base": "file:///a%00b"}, template(), "spec.runOutputBase"),
        ({"run_output_base": "/a\0b"}, template(), "spec.runOutputBase"),
    ],
)
def test_what_no_process_can_be_given_is_named(
    spec: dict[str, object], given: TaskTemplate, field: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        build(action(**spec), given)
    assert raised.value.field == field


def test_empty_arguments_and_many_variables_are_fine() -> None:
    env = {f"V{number}": "" for number in range(10_000)}
    command = build(action(), template("run", "", "", env=env))
    assert command.arguments == ["run", "", ""]
    assert command.environment["V9999"] == ""


def test_who_a_task_is_cannot_be_changed_by_its_environment() -> None:
    pretended = {"ACTION_NAME": "x", "_U_EP_OVERRIDE": "x", "FLYTE_INTERNAL_TASK_NAME": "x"}
    command = build(action(env_vars=pretended), template(env=pretended))
    assert command.environment["ACTION_NAME"] == "a0"
    assert command.environment["_U_EP_OVERRIDE"] == "127.0.0.1:1"
    assert command.environment["FLYTE_INTERNAL_TASK_NAME"] == "f"


MARK = {HOST_MARK: "true"}


@table(
    ("given", "runs"),
    [
        (template("run"), True),
        (template(*SDK), True),
        # A task of a plugin of the SDK, and an image: both as any Python task.
        (template(*SDK, kind="core-sleep"), True),
        (template(*SDK, kind="sandboxed-python"), True),
        (template(*SDK, kind="actor"), True),
        (template("/usr/bin/a0", *SDK[1:], kind="spark"), True),
        (template("rm", "-rf", "/data", kind="raw-container"), False),
        (template(*SDK, kind="raw-container"), False),
        (template("rm", "-rf", "/data", kind="raw-container", copilot=True), False),
        (template("run", copilot=True), False),
        (template(*SDK, copilot=True), False),
        (template("a0", kind="shell"), False),
        (template("clustered", *SDK[1:], kind="clustered-task"), False),
        (template("run", kind=""), False),
        (template("run", kind="Python"), False),
        (template("run", kind="container"), False),
        (template("run", kind="raw-container", config=MARK), True),
        (template("run", kind="raw-container", config={HOST_MARK: "false"}), False),
        (template("run", kind="raw-container", env=MARK), False),
    ],
)
def test_what_is_not_meant_for_this_machine_does_not_run(given: TaskTemplate, runs: bool) -> None:
    if runs:
        assert build(action(), given).arguments
        return
    with pytest.raises(InvalidArgument) as raised:
        build(action(), given)
    assert raised.value.field == "spec.taskTemplate.type"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (TaskTemplate(type="python"), "no target"),
        (TaskTemplate(type="python", container=Container(image="i")), "no command"),
        (TaskTemplate(type="python", k8s_pod=K8sPod()), "k8s_pod"),
        (TaskTemplate(type="python", sql=Sql(statement="select 1")), "sql"),
    ],
)
def test_a_template_without_a_command_is_refused(given: TaskTemplate, word: str) -> None:
    with pytest.raises(InvalidArgument, match=word) as raised:
        build(action(), given)
    assert raised.value.field == "spec.taskTemplate.container"


ANY = st.text(st.characters(), max_size=30) | st.sampled_from(
    ["", "\0", "=", "..", "/", "a/../b", "\ud800", "{{.input}}", "{{.actionName}}", "a0", "%00"]
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["", "\0", "=", "..", "/", "{{.input}}", "{{.inputs.x}}", "a0", "--outputs-path"]
)
BASES = ANY | st.builds(
    lambda head, rest: head + rest,
    st.sampled_from(["/", "file://", "file:///", "s3://", "s3://[", "//", "file:///%", ":"]),
    ANY,
)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "project": ANY,
        "domain": ANY,
        "run_name": ANY,
        "action_name": ANY,
        "input_uri": ANY,
        "run_output_base": BASES,
        "env_vars": st.dictionaries(ANY, ANY, max_size=3),
    },
)
TEMPLATES: st.SearchStrategy[TaskTemplate] = st.builds(
    lambda arguments, kind, env, config, copilot: template(
        *arguments, kind=kind, env=env, config=config, copilot=copilot
    ),
    st.lists(TEXT, min_size=1, max_size=4),
    st.just("python") | TEXT,
    st.dictionaries(TEXT, TEXT, max_size=3),
    st.dictionaries(TEXT, TEXT, max_size=1),
    st.booleans(),
)


@given(SPECS, TEMPLATES, st.integers(1, 2**32 - 1))
def test_any_spec_gives_a_command_or_the_field_that_is_wrong(
    spec: dict[str, object], given: TaskTemplate, attempt: int
) -> None:
    found: Command | InvalidArgument
    try:
        found = build_command(action(**spec), given, attempt, SETTINGS)
    except InvalidArgument as error:
        found = error
    if isinstance(found, InvalidArgument):
        assert found.field.startswith(("spec.", "metadata."))
        return
    command = found
    # What the operating system takes.
    for text in (*command.arguments, *command.environment.values(), str(command.outputs)):
        assert b"\0" not in os.fsencode(text)
    assert all(name and "=" not in name for name in command.environment)
    assert isinstance(command.outputs, Path)
    assert command.outputs.is_absolute()
    assert command.directory is None or command.directory.is_absolute()


def test_a_container_task_of_the_sdk_is_refused() -> None:
    """As the SDK sends one: the command in the arguments, data loaded by a process beside it."""
    sent = template("/bin/sh", "-c", "echo x > /var/outputs/x", kind="raw-container", copilot=True)
    with pytest.raises(InvalidArgument, match="containers do not run here"):
        build(action(), sent)
