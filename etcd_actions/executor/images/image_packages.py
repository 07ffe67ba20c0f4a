"""The packages of images, for a launcher whose engine installs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.images.image_environments import ReadImage, read_definition, refused
from etcd_actions.images import Definition, parse_reference
from etcd_actions.images.definition import Packages
from etcd_actions.images.unsupported import own_variables, refusal, unsupported_parts


class ImagePackages:
    """The images of an engine that installs their packages itself.

    Args:
        read: See :data:`~.image_environments.ReadImage`.
        lacking: Whether an image with an unsupported part is refused (``check``), or used without
            that part (``ignore``).
    """

    def __init__(self, read: ReadImage, lacking: Literal["check", "ignore"]) -> None:
        self._read = read
        self._lacking = lacking

    async def applied(
        self, image: str, command: Callable[[Mapping[str, str]], Command], held: ExitStack
    ) -> Command | None:
        """See :meth:`~etcd_actions.executor.provisions.Images.applied`.

        Raises:
            NotStarted: It is not supported; the action fails with the error.
            EtcdError: The definition cannot be read now.
        """
        reference = parse_reference(image)
        if reference is None:
            return None
        _, definition = await read_definition(self._read, reference)
        if self._lacking == "check":
            if problems := unsupported_parts(definition, ""):
                raise refused(reference, refusal(reference.name, problems))
            for step in definition.steps:
                if not isinstance(step, Packages) or step.options.extra_args:
                    raise refused(
                        reference,
                        "this executor supports with_pip_packages() alone, without extra_args",
                    )
        packages = tuple(_lines(definition))
        return replace(command(own_variables(definition)), packages=packages)

    def hold_noted(self, place: AttemptDirectory, held: ExitStack) -> None:
        """Nothing: the engine keeps its environments."""

    def note(self, image: str, place: AttemptDirectory) -> None:
        """Nothing, as :meth:`hold_noted`."""


def _lines(definition: Definition) -> Iterator[str]:
    """The lines of a file of requirements."""
    for step in definition.steps:
        if not isinstance(step, Packages):
            continue
        options = step.options
        if options.index_url:
            yield f"--index-url {options.index_url}"
        yield from (f"--extra-index-url {each}" for each in options.extra_index_urls)
        if options.pre:
            yield "--pre"
        yield from step.requirements
