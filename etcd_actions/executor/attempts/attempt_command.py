"""What is run for an attempt: the command, its environment, its directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template as StringTemplate
from typing import TYPE_CHECKING, Final

from etcd_actions.errors import InvalidArgument
from etcd_actions.executor.attempts.attempt_directory import local_path
from etcd_actions.executor.attempts.policy import check_runs_here, is_sdk_program
from etcd_actions.executor.attempts.proxies import spare_loopback
from etcd_actions.executor.attempts.templates import substitute
from etcd_actions.executor.executor_settings import ExecutorSettings
from etcd_actions.model import ANNOTATION_RUN_START_TIME, ActionObject, output_uri

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

WORKDIR: Final = "ETCD_ACTIONS_WORKDIR"
"""In an action's environment: the directory that it runs in, where its code is."""

_LOCAL_ORG = "local"
# Of our own environment, what a task may see. Never where etcd is, nor passwords.
_PASSED_ON = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
_TEMPLATE = "spec.taskTemplate"
# What no file system takes in one component.
_MOST_OF_A_NAME = 255


@dataclass(frozen=True)
class Command:
    """One attempt, ready to be run.

    Attributes:
        arguments: The program and its arguments.
        environment: All of its environment.
        directory: Where it runs; None for a directory of its own.
        outputs: Where it leaves outputs and errors.
    """

    arguments: list[str]
    environment: dict[str, str]
    directory: Path | None
    outputs: Path

    @property
    def is_sdk(self) -> bool:
        """Whether it is the SDK's own command, which the fork server can run."""
        return is_sdk_program(self.arguments[0])


def build_command(
    action: ActionObject,
    template: TaskTemplate,
    attempt: int,
    settings: ExecutorSettings,
    image_variables: Mapping[str, str] | None = None,
) -> Command:
    """Say how an attempt is run.

    Args:
        action: The action.
        template: Its task's.
        attempt: Which attempt, from 1 on.
        settings: See :class:`ExecutorSettings`.
        image_variables: What the task's image sets in the environment: below what the task sets.

    Raises:
        InvalidArgument: The action cannot be run on this machine; the field is named.
    """
    check_runs_here(template)
    _check_texts(action, template)
    spec = action.spec
    prefix, outputs = _local_outputs(action, attempt)
    if not spec.input_uri:
        raise InvalidArgument("spec.inputUri", "it is empty")
    before = _outputs(action, attempt - 1) + "/_flytecheckpoints" if attempt > 1 else '""'
    variables = {
        "input": spec.input_uri,
        "outputPrefix": prefix,
        "rawOutputDataPrefix": prefix,
        "checkpointOutputPrefix": f"{prefix}/_flytecheckpoints",
        "prevCheckpointPrefix": before,
        "runName": spec.run_name,
        "actionName": spec.action_name,
        "namespace": action.metadata.namespace,
        "perRetryUniqueKey": f"{action.metadata.name}-{attempt}",
    }
    if start := action.metadata.annotations.get(ANNOTATION_RUN_START_TIME):
        variables["runStartTime"] = start
    container = template.container
    arguments = substitute([*container.command, *container.args], variables)
    if not arguments[0]:
        raise InvalidArgument(f"{_TEMPLATE}.container", "the first word of the command is empty")
    environment = _environment(action, template, attempt, settings, image_variables or {})
    return Command(arguments, environment, _directory(environment), outputs)


def _check_component(field: str, text: str) -> None:
    _check_text(field, text)
    if text in ("", ".", "..") or "/" in text or len(text.encode()) > _MOST_OF_A_NAME:
        raise InvalidArgument(
            field,
            f"{text[:80]!r} is no name of a directory: give 1 to {_MOST_OF_A_NAME} bytes, without "
            "a slash",
        )


def _check_text(field: str, text: str) -> None:
    """Refuse what can be neither an argument, nor in an environment, nor in a path."""
    if "\0" in text:
        raise InvalidArgument(field, "it has a NUL, which no program can be given: leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(field, f"it is no text: {error.reason}") from None


def _check_texts(action: ActionObject, template: TaskTemplate) -> None:
    spec, metadata = action.spec, action.metadata
    _check_component("spec.actionName", spec.action_name)
    for field, text in (
        ("metadata.namespace", metadata.namespace),
        ("metadata.name", metadata.name),
        ("metadata.annotations", action.action_id.org),
        ("metadata.annotations", metadata.annotations.get(ANNOTATION_RUN_START_TIME, "")),
        ("spec.project", spec.project),
        ("spec.domain", spec.domain),
        ("spec.runName", spec.run_name),
        ("spec.inputUri", spec.input_uri),
        ("spec.runOutputBase", spec.run_output_base),
        (f"{_TEMPLATE}.id.project", template.id.project),
        (f"{_TEMPLATE}.id.domain", template.id.domain),
        (f"{_TEMPLATE}.id.name", template.id.name),
        (f"{_TEMPLATE}.id.version", template.id.version),
        *((f"{_TEMPLATE}.container.command", text) for text in template.container.command),
        *((f"{_TEMPLATE}.container.args", text) for text in template.container.args),
    ):
        _check_text(field, text)
    for each in template.container.env:
        _check_variable(f"{_TEMPLATE}.container.env", each.key, each.value)
    for key, value in spec.env_vars.items():
        _check_variable("spec.envVars", key, value)


def _check_variable(field: str, key: str, value: str) -> None:
    if not key or "=" in key:
        raise InvalidArgument(
            field, f"{key[:80]!r} is no name of a variable: give one, without an equals sign"
        )
    _check_text(field, key)
    _check_text(f"{field}[{key[:80]}]", value)


def _local_outputs(action: ActionObject, attempt: int) -> tuple[str, Path]:
    """Where an attempt leaves its outputs, as the task is told it and as a path."""
    prefix = _outputs(action, attempt)
    try:
        outputs = local_path(prefix)
    except ValueError:
        outputs = None
    if outputs is None or "\0" in str(outputs):
        base = action.spec.run_output_base
        raise InvalidArgument(
            "spec.runOutputBase",
            f"{base[:200]!r} is not on this machine: give a path, or file:///PATH",
        )
    return prefix, outputs


def _directory(environment: Mapping[str, str]) -> Path | None:
    """Where it runs; None for a directory of its own."""
    where = environment.get(WORKDIR)
    if not where:
        return None
    if not where.startswith("/"):
        raise InvalidArgument(
            f"spec.envVars[{WORKDIR}]", f"{where[:200]!r} is no absolute path: give one"
        )
    return Path(where)


def _outputs(action: ActionObject, attempt: int) -> str:
    spec, metadata = action.spec, action.metadata
    return output_uri(
        metadata.namespace, metadata.name, spec.run_output_base, spec.action_name, attempt
    )


def _environment(
    action: ActionObject,
    template: TaskTemplate,
    attempt: int,
    settings: ExecutorSettings,
    image_variables: Mapping[str, str],
) -> dict[str, str]:
    """What Flyte's executor gives a pod, and what the SDK needs on a machine alone."""
    spec, action_id = action.spec, action.action_id
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    programs = str(settings.python.parent)
    environment["PATH"] = f"{programs}{os.pathsep}{environment.get('PATH', os.defpath)}"
    for key, value in image_variables.items():
        _check_variable("image.env", key, value)
        # As in the file that an image is built by, a value may have others in it.
        environment[key] = StringTemplate(value).safe_substitute(environment)
    environment |= {each.key: each.value for each in template.container.env}
    environment |= spec.env_vars
    spare_loopback(environment)
    given = {
        "ACTION_NAME": spec.action_name,
        "RUN_NAME": spec.run_name,
        "_U_RUN_BASE": spec.run_output_base,
        "_U_ORG_NAME": action_id.org or _LOCAL_ORG,
        "FLYTE_INTERNAL_EXECUTION_PROJECT": spec.project,
        "FLYTE_INTERNAL_EXECUTION_DOMAIN": spec.domain,
        "FLYTE_INTERNAL_EXECUTION_ID": spec.run_name,
        "FLYTE_INTERNAL_TASK_PROJECT": template.id.project,
        "FLYTE_INTERNAL_TASK_DOMAIN": template.id.domain,
        "FLYTE_INTERNAL_TASK_NAME": template.id.name,
        "FLYTE_INTERNAL_TASK_VERSION": template.id.version,
        "FLYTE_ATTEMPT_NUMBER": str(attempt - 1),
        "_F_PN": spec.project,
        "_U_USE_ACTIONS": "1",
        "_U_EP_OVERRIDE": settings.service,
        "_U_INSECURE": "true",
        # Read when the SDK's storage is imported.
        "FSSPEC_FILE_AUTO_MKDIR": "true",
    }
    return environment | given
