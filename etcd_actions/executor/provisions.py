"""What an attempt gets beside its command: the environment of its image, and its secrets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.images.image_environments import ImageEnvironments
from etcd_actions.executor.secret_values import Secrets

if TYPE_CHECKING:
    from flyteidl2.core.tasks_pb2 import TaskTemplate


class Provisions:
    """What this executor can give.

    Args:
        images: The environments of images; None to run each task in the executor's own.
        secrets: The secrets that it may give.
    """

    def __init__(self, images: ImageEnvironments | None, secrets: Secrets) -> None:
        self._images = images
        self._secrets = secrets

    async def command_for(
        self,
        template: TaskTemplate,
        place: AttemptDirectory,
        command: Callable[[Mapping[str, str]], Command],
        held: ExitStack,
    ) -> Command:
        """The command of an attempt, with all that it needs to begin.

        Args:
            template: Its task's.
            place: Where the attempt is.
            command: Makes the command, with what an image sets in the environment.
            held: Keeps the environment from being removed, until it is left.

        Raises:
            NotBuiltYet: The environment of its image is being made.
            NotStarted: It can never begin; the error says why.
            InvalidArgument: What its image sets in the environment cannot be used.
            EtcdError: The image's definition cannot be read now.
            OSError: The machine lacks something.
        """
        if place.was_started or place.is_alive:
            if self._images is not None:
                self._images.hold_noted(place, held)
            return command({})
        image = None
        if self._images is not None:
            image = await self._images.get(template.container.image)
        if self._images is None or image is None:
            found = command({})
        else:
            found = image.applied_to(command(image.variables))
            self._images.hold(image, held)
        return await self._secrets.given_to(template, found)

    def note(self, template: TaskTemplate, place: AttemptDirectory) -> None:
        """Write down what an attempt that has begun uses, for the executor after this one.

        Raises:
            OSError: It cannot be written.
        """
        if self._images is not None:
            self._images.note(template.container.image, place)
