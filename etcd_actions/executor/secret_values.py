"""Gives a task the secrets that it asks for, as variables of its process and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from etcd_actions._internal.secret_sources import SecretSource, SecretUnavailable
from etcd_actions._internal.untrusted_files import UnusableFile, in_thread
from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.not_started import NotStarted
from etcd_actions.model import ErrorState

if TYPE_CHECKING:
    from flyteidl2.core.security_pb2 import Secret
    from flyteidl2.core.tasks_pb2 import TaskTemplate

CODE: Final = "SecretNotAvailable"

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WITHIN: Final = 30.0
# What the executor itself says to a task.
_RESERVED: Final = re.compile(r"(?:_U_|_F_|FLYTE_INTERNAL_).*|PATH|ACTION_NAME|RUN_NAME")


class Secrets:
    """The secrets that the service was told to give.

    Args:
        sources: Where they are.
    """

    def __init__(self, sources: Iterable[SecretSource]) -> None:
        self._sources = {each.name: each for each in sources}

    async def given_to(self, template: TaskTemplate, command: Command) -> Command:
        """The command with the secrets that its task asks for in its environment.

        Raises:
            NotStarted: One is not to be had; the message says how to give it, never a value.
        """
        asked = template.security_context.secrets
        if not asked:
            return command
        try:
            found = await in_thread(_WITHIN, "a secret's file", partial(self._read, asked))
        except (SecretUnavailable, UnusableFile) as error:
            state = ErrorState(code=CODE, kind="USER", message=str(error))
            raise NotStarted(state, by_machine=False) from None
        return replace(command, environment=command.environment | found)

    def _read(self, asked: Iterable[Secret]) -> dict[str, str]:
        values: dict[str, str] = {}
        for each in asked:
            name = f"{each.group}/{each.key}" if each.group else each.key
            variable = _variable_of(each, name)
            source = self._sources.get(name)
            if source is None:
                raise SecretUnavailable(
                    f"the task asks for the secret {name[:200]!r}, which this service has not: "
                    f"start it with --secret {name[:200]}=env:VARIABLE or --secret "
                    f"{name[:200]}=file:PATH"
                )
            try:
                values[variable] = source.read()
            except SecretUnavailable as error:
                raise SecretUnavailable(f"the secret {name!r}: {error}") from None
        return values


def _variable_of(secret: Secret, name: str) -> str:
    """Which variable a secret is given in.

    Raises:
        SecretUnavailable: It is to be a file, or has no name that a variable can have.
    """
    if secret.mount_requirement == type(secret).FILE and not secret.env_var:
        raise SecretUnavailable(
            f"the task asks for the secret {name[:200]!r} as a file, and there are no containers "
            f"here to have it: give flyte.Secret({secret.key[:200]!r}, as_env_var=...)"
        )
    variable = secret.env_var or re.sub(r"[-/.]", "_", name).upper()
    if not _VARIABLE.fullmatch(variable) or _RESERVED.fullmatch(variable):
        raise SecretUnavailable(
            f"the task asks for the secret {name[:200]!r} in the variable {variable[:200]!r}, "
            "which the executor cannot use for it: give another with as_env_var"
        )
    return variable
