"""What is run for an attempt: the command, its environment, its directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from etcd_actions.errors import InvalidArgument
from etcd_actions.executor.places import local_path
from etcd_actions.executor.settings import ExecutorSettings
from etcd_actions.executor.templates import substitute
from etcd_actions.model import ANNOTATION_RUN_START_TIME, TaskAction, output_uri

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

WORKDIR: Final = "ETCD_ACTIONS_WORKDIR"
"""In an action's environment: the directory that it runs in, where its code is."""

_LOCAL_ORG = "local"
# Of our own environment, what a task may see. Never where etcd is, nor passwords.
_PASSED_ON = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
_SDK_COMMAND = "a0"


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
        return Path(self.arguments[0]).name == _SDK_COMMAND


def build_command(
    action: TaskAction, template: TaskTemplate, attempt: int, settings: ExecutorSettings
) -> Command:
    """Say how an attempt is run.

    Raises:
        InvalidArgument: The action cannot be run on this machine; the field is named.
    """
    if not template.HasField("container") or not (
        template.container.command or template.container.args
    ):
        raise InvalidArgument(
            "spec.taskTemplate.container", "there is no command: only tasks with one run here"
        )
    spec = action.spec
    prefix = _outputs(action, attempt)
    outputs = local_path(prefix)
    if outputs is None:
        raise InvalidArgument(
            "spec.runOutputBase",
            f"{spec.run_output_base!r} is not on this machine: give a path, or file:///PATH",
        )
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
    environment = _environment(action, template, attempt, settings)
    where = environment.get(WORKDIR)
    return Command(arguments, environment, Path(where) if where else None, outputs)


def _outputs(action: TaskAction, attempt: int) -> str:
    spec, metadata = action.spec, action.metadata
    return output_uri(
        metadata.namespace, metadata.name, spec.run_output_base, spec.action_name, attempt
    )


def _environment(
    action: TaskAction, template: TaskTemplate, attempt: int, settings: ExecutorSettings
) -> dict[str, str]:
    """What Flyte's executor gives a pod, and what the SDK needs on a machine alone."""
    spec, action_id = action.spec, action.action_id
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    programs = str(settings.python.parent)
    environment["PATH"] = f"{programs}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment |= {each.key: each.value for each in template.container.env}
    environment |= spec.env_vars
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
