"""Completes the command of an attempt by the environment of its image, and by secrets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.secret_values import Secrets

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate


class Images(Protocol):
    """The images of tasks."""

    async def applied(
        self, image: str, command: Callable[[Mapping[str, str]], Command], held: ExitStack
    ) -> Command | None:
        """The command of a task in the environment of its container's image.

        Args:
            image: The image.
            command: Makes the command from the variables of the image.
            held: Keeps the environment from being removed until the stack is closed.

        Returns:
            None if the image has no stored definition.
        """

    def hold_noted(self, place: AttemptDirectory, held: ExitStack) -> None:
        """Hold the environment of an attempt that was started before, until the stack is closed."""

    def note(self, image: str, place: AttemptDirectory) -> None:
        """Store which environment an attempt uses, see :meth:`hold_noted`."""


class Provisions:
    """The environments and the secrets of this executor.

    Args:
        images: The images of tasks; None to run each task in the executor's own environment.
        secrets: The secrets of tasks.
    """

    def __init__(self, images: Images | None, secrets: Secrets) -> None:
        self._images = images
        self._secrets = secrets

    async def command_for(
        self,
        template: TaskTemplate,
        place: AttemptDirectory,
        command: Callable[[Mapping[str, str]], Command],
        held: ExitStack,
    ) -> Command:
        """The command of an attempt, with the environment of its image and its secrets.

        Args:
            template: The template of its task.
            place: The attempt.
            command: Makes the command from the variables of an image.
            held: Keeps the environment from being removed until the stack is closed.

        Raises:
            NotBuiltYet: The environment of its image is being built.
            NotStarted: It can never start; the error has the reason.
            InvalidArgument: A variable of its image is invalid.
            EtcdError: The image's definition cannot be read now.
            OSError: The machine lacks space, memory or descriptors.
        """
        if place.was_started or place.is_alive:
            if self._images is not None:
                self._images.hold_noted(place, held)
            return command({})
        found: Command | None = None
        if self._images is not None:
            found = await self._images.applied(template.container.image, command, held)
        return await self._secrets.given_to(template, command({}) if found is None else found)

    def note(self, template: TaskTemplate, place: AttemptDirectory) -> None:
        """Store which environment an attempt uses, for the next executor.

        Raises:
            OSError: It cannot be written.
        """
        if self._images is not None:
            self._images.note(template.container.image, place)
