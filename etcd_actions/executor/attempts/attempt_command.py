"""The command of an attempt: whether it may run here, its arguments, environment and directory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from string import Template as StringTemplate
from typing import TYPE_CHECKING, Final

from etcd_actions._internal.untrusted_files import local_path
from etcd_actions.errors import InvalidArgument
from etcd_actions.executor.attempts.environment import spare_loopback
from etcd_actions.executor.attempts.output_files import Outputs, is_url
from etcd_actions.executor.executor_settings import ExecutorSettings
from etcd_actions.executor.offers import NO_NEEDS, Needs
from etcd_actions.model import ANNOTATION_RUN_START_TIME, ActionObject, output_uri

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

WORKDIR: Final = "ETCD_ACTIONS_WORKDIR"
"""The variable in an action's environment with the directory of its code, where it runs."""
HOST_MARK: Final = "etcd-actions.io/run-on-host"
"""A key of a container's ``config``; ``true`` means that the command is to run on this machine."""
SDK_COMMAND: Final = "a0"

_LOCAL_ORG: Final = "local"
_PYTHON: Final = "python"
_RAW: Final = "raw-container"
_OUTPUTS: Final = ("--outputs-path", "-o")
# The part of our environment that a task gets: never etcd's address, nor passwords.
_PASSED_ON: Final = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
_TEMPLATE: Final = "spec.taskTemplate"
# Bytes: no usual file system takes more in one component of a path.
_MOST_OF_A_NAME: Final = 255
_VARIABLE: Final = re.compile(r"\{\{\s*[.$]([A-Za-z][A-Za-z0-9_.]*)\s*\}\}")


@dataclass(frozen=True)
class Command:
    """The command of one attempt.

    Attributes:
        arguments: The program and its arguments.
        environment: Its complete environment.
        directory: Where it runs; None for a directory of its own.
        outputs: The place of its outputs and its error.
        needs: The resources that it requests.
        packages: The lines of a file of requirements, for a launcher that installs packages.
    """

    arguments: list[str]
    environment: dict[str, str]
    directory: Path | None
    outputs: Outputs
    needs: Needs = NO_NEEDS
    packages: tuple[str, ...] = ()

    @property
    def is_sdk(self) -> bool:
        """Whether it is the SDK's own command, which the fork server can run."""
        return _is_sdk_program(self.arguments[0])


def build_command(
    action: ActionObject,
    template: TaskTemplate,
    attempt: int,
    settings: ExecutorSettings,
    image_variables: Mapping[str, str] | None = None,
) -> Command:
    """The command of an attempt.

    Args:
        action: The action.
        template: The template of its task.
        attempt: The number of the attempt, from 1 on.
        settings: The executor's.
        image_variables: The variables of the task's image; those of the task override them.

    Raises:
        InvalidArgument: The action cannot run on this machine; the field is named.
    """
    check_runs_here(template)
    _check_texts(action, template)
    spec = action.spec
    prefix, outputs = _place_of_outputs(action, attempt, settings)
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
    needs = NO_NEEDS if settings.runs_here else Needs.of(action, template)
    return Command(arguments, environment, _directory(environment), outputs, needs)


def check_runs_here(template: TaskTemplate) -> None:
    """Refuse a task that is not meant for this machine.

    Tasks of the SDK may run here, and tasks with `HOST_MARK`. The command of any other task refers
    to the file system of its image.

    Raises:
        InvalidArgument: The task is refused; the field is named.
    """
    field = f"{_TEMPLATE}.container"
    if not template.HasField("container"):
        target = template.WhichOneof("target") or "no target"
        raise InvalidArgument(
            field, f"there is {target}, and no command: only tasks with a container run here"
        )
    container = template.container
    command = [*container.command, *container.args]
    if not command:
        raise InvalidArgument(field, "there is no command: only tasks with one run here")
    if any(each.key == HOST_MARK and each.value == "true" for each in container.config):
        return
    kind = template.type
    # Flyte's sidecar loads the inputs of a raw container. The SDK's command loads its own.
    if kind == _RAW or container.data_config.enabled:
        raise InvalidArgument(
            f"{_TEMPLATE}.type",
            f"{kind!r} with image {container.image!r} is a container task: containers do not run "
            f"here. Make it a Python task, or set {HOST_MARK} = true in the container's config if "
            "its command is meant for this machine",
        )
    is_sdk = _is_sdk_program(command[0]) and any(option in command for option in _OUTPUTS)
    if kind != _PYTHON and not is_sdk:
        raise InvalidArgument(
            f"{_TEMPLATE}.type",
            f"{kind!r} is not a Python task of the SDK: give the type {_PYTHON!r}, or set "
            f"{HOST_MARK} = true in the container's config if this machine is to run it",
        )


def substitute(arguments: Iterable[str], variables: Mapping[str, str]) -> list[str]:
    """Replace Flyte's variables in a command, such as ``{{.input}}`` or ``{{ $input }}``.

    Their case does not matter. Unknown ones stay: the SDK reads some of them itself.
    """
    values = {name.lower(): value for name, value in variables.items()}
    return [
        _VARIABLE.sub(lambda found: values.get(found[1].lower(), found[0]), argument)
        for argument in arguments
    ]


def _is_sdk_program(program: str) -> bool:
    return PurePath(program).name == SDK_COMMAND


def _check_text(field: str, text: str) -> None:
    """Refuse a text that can be neither an argument, nor a variable, nor a path."""
    if "\0" in text:
        raise InvalidArgument(field, "it has a NUL, which no program can be given: remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(field, f"it is not text: {error.reason}") from None


def _check_texts(action: ActionObject, template: TaskTemplate) -> None:
    spec, metadata, identifier = action.spec, action.metadata, template.id
    name = spec.action_name
    _check_text("spec.actionName", name)
    if name in ("", ".", "..") or "/" in name or len(name.encode()) > _MOST_OF_A_NAME:
        raise InvalidArgument(
            "spec.actionName",
            f"{name[:80]!r} is not a valid name of a directory: give 1 to {_MOST_OF_A_NAME} bytes, "
            "without a slash",
        )
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
        (f"{_TEMPLATE}.id.project", identifier.project),
        (f"{_TEMPLATE}.id.domain", identifier.domain),
        (f"{_TEMPLATE}.id.name", identifier.name),
        (f"{_TEMPLATE}.id.version", identifier.version),
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
            field, f"{key[:80]!r} is not a valid name of a variable: omit the equals sign"
        )
    _check_text(field, key)
    _check_text(f"{field}[{key[:80]}]", value)


def _place_of_outputs(
    action: ActionObject, attempt: int, settings: ExecutorSettings
) -> tuple[str, Outputs]:
    """The URI of an attempt's outputs, and their path; the URI twice if they are elsewhere."""
    prefix = _outputs(action, attempt)
    try:
        outputs = local_path(prefix)
    except ValueError:
        outputs = None
    if outputs is None and settings.outputs_may_be_elsewhere and is_url(prefix):
        return prefix, prefix
    if outputs is None or "\0" in str(outputs):
        base = action.spec.run_output_base
        raise InvalidArgument(
            "spec.runOutputBase",
            f"{base[:200]!r} is not on this machine: give a path, or file:///PATH",
        )
    return prefix, outputs


def _directory(environment: Mapping[str, str]) -> Path | None:
    where = environment.get(WORKDIR)
    if not where:
        return None
    if not where.startswith("/"):
        raise InvalidArgument(
            f"spec.envVars[{WORKDIR}]", f"{where[:200]!r} is not an absolute path: give one"
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
    """The variables that Flyte's executor sets in a pod, and those that the SDK needs here."""
    spec, identifier = action.spec, template.id
    environment: dict[str, str] = {}
    if settings.runs_here:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        programs = str(settings.python.parent)
        environment["PATH"] = f"{programs}{os.pathsep}{environment.get('PATH', os.defpath)}"
    for key, value in image_variables.items():
        _check_variable("image.env", key, value)
        # A value may refer to other variables, as in a Dockerfile.
        environment[key] = StringTemplate(value).safe_substitute(environment)
    environment |= {each.key: each.value for each in template.container.env}
    environment |= spec.env_vars
    spare_loopback(environment)
    return environment | {
        "ACTION_NAME": spec.action_name,
        "RUN_NAME": spec.run_name,
        "_U_RUN_BASE": spec.run_output_base,
        "_U_ORG_NAME": action.action_id.org or _LOCAL_ORG,
        "FLYTE_INTERNAL_EXECUTION_PROJECT": spec.project,
        "FLYTE_INTERNAL_EXECUTION_DOMAIN": spec.domain,
        "FLYTE_INTERNAL_EXECUTION_ID": spec.run_name,
        "FLYTE_INTERNAL_TASK_PROJECT": identifier.project,
        "FLYTE_INTERNAL_TASK_DOMAIN": identifier.domain,
        "FLYTE_INTERNAL_TASK_NAME": identifier.name,
        "FLYTE_INTERNAL_TASK_VERSION": identifier.version,
        # Flyte counts attempts from 0 here.
        "FLYTE_ATTEMPT_NUMBER": str(attempt - 1),
        "_F_PN": spec.project,
        "_U_USE_ACTIONS": "1",
        "_U_EP_OVERRIDE": settings.service,
        "_U_INSECURE": "true",
        # The SDK's storage reads it at its import.
        "FSSPEC_FILE_AUTO_MKDIR": "true",
    }
