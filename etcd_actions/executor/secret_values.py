"""Adds the secrets that a task requests to the environment of its process, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from etcd_actions._internal.secret_sources import SecretSource, SecretUnavailable
from etcd_actions._internal.untrusted_files import UnusableFile, in_thread
from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.start_errors import NotStarted

if TYPE_CHECKING:
    from flyteidl2.core.security_pb2 import Secret
    from flyteidl2.core.tasks_pb2 import TaskTemplate

CODE: Final = "SecretNotAvailable"

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Seconds to read the secrets of a task.
_WITHIN: Final = 30.0
# The variables that the executor sets.
_RESERVED: Final = re.compile(r"(?:_U_|_F_|FLYTE_INTERNAL_).*|PATH|ACTION_NAME|RUN_NAME")


class Secrets:
    """The secrets of the service's settings.

    Args:
        sources: Their sources.
    """

    def __init__(self, sources: Iterable[SecretSource]) -> None:
        self._sources = {each.name: each for each in sources}

    async def given_to(self, template: TaskTemplate, command: Command) -> Command:
        """The command with the secrets that its task requests in its environment.

        Raises:
            NotStarted: One is not available; the message has the remedy, and never a value.
        """
        requested = template.security_context.secrets
        if not requested:
            return command
        try:
            found = await in_thread(_WITHIN, "a secret's file", partial(self._read, requested))
        except (SecretUnavailable, UnusableFile) as error:
            raise NotStarted.because(str(error), code=CODE) from None
        return replace(command, environment=command.environment | found)

    def _read(self, requested: Iterable[Secret]) -> dict[str, str]:
        values: dict[str, str] = {}
        for each in requested:
            name = f"{each.group}/{each.key}" if each.group else each.key
            variable = _variable_of(each, name)
            source = self._sources.get(name)
            if source is None:
                raise SecretUnavailable(
                    f"the task requests the secret {name[:200]!r}, which this service does not "
                    f"have: start it with --secret {name[:200]}=env:VARIABLE or --secret "
                    f"{name[:200]}=file:PATH"
                )
            try:
                values[variable] = source.read()
            except SecretUnavailable as error:
                raise SecretUnavailable(f"the secret {name!r}: {error}") from None
        return values


def _variable_of(secret: Secret, name: str) -> str:
    """The variable of a secret.

    Raises:
        SecretUnavailable: It is requested as a file, or its name is not a variable's.
    """
    if secret.mount_requirement == type(secret).FILE and not secret.env_var:
        raise SecretUnavailable(
            f"the task requests the secret {name[:200]!r} as a file, which needs a container, and "
            f"this executor has none: give flyte.Secret({secret.key[:200]!r}, as_env_var=...)"
        )
    variable = secret.env_var or re.sub(r"[-/.]", "_", name).upper()
    if not _VARIABLE.fullmatch(variable) or _RESERVED.fullmatch(variable):
        raise SecretUnavailable(
            f"the task requests the secret {name[:200]!r} in the variable {variable[:200]!r}, "
            "which the executor cannot use for it: give another with as_env_var"
        )
    return variable
