"""Which tasks run on this machine: what the SDK runs in Python, and what is marked for it.

A task in an image of its own has a command that means that image's file system. Here it would run
on the machine's, so such a task is refused unless somebody marked it on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from etcd_actions.errors import InvalidArgument

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate

HOST_MARK: Final = "etcd-actions.io/run-on-host"
"""In a container's ``config``, with the value ``true``: the command is meant for this machine."""

SDK_COMMAND: Final = "a0"
_PYTHON: Final = "python"
_RAW: Final = "raw-container"
_OUTPUTS: Final = ("--outputs-path", "-o")


def check_runs_here(template: TaskTemplate) -> None:
    """Refuse what is not meant for this machine.

    Raises:
        InvalidArgument: It is not; the field is named.
    """
    field = "spec.taskTemplate.container"
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
    # A raw container gets its inputs from a process beside it, which the SDK's own does not need.
    if kind == _RAW or container.data_config.enabled:
        raise InvalidArgument(
            "spec.taskTemplate.type",
            f"{kind!r} with image {container.image!r} is a container task: containers do not run "
            f"here. Make it a Python task, or set {HOST_MARK} = true in the container's config if "
            "its command is meant for this machine",
        )
    if kind != _PYTHON and not _is_sdk(command):
        raise InvalidArgument(
            "spec.taskTemplate.type",
            f"{kind!r} is no Python task of the SDK: give the type {_PYTHON!r}, or set {HOST_MARK} "
            "= true in the container's config if its command is meant for this machine",
        )


def is_sdk_program(program: str) -> bool:
    """Whether it is the SDK's own command."""
    return PurePath(program).name == SDK_COMMAND


def _is_sdk(command: Sequence[str]) -> bool:
    return is_sdk_program(command[0]) and any(option in command for option in _OUTPUTS)
