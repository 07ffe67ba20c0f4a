"""The layers of an image that the local executor does not support, and their remedies."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from etcd_actions.images.definition import NO_PROJECT, Definition, Project

# The SDK's own image and the plain ones of Python: the executor has their contents.
_BASES: Final = re.compile(
    r"(?:ghcr\.io/flyteorg/flyte|(?:docker\.io/)?(?:library/)?python)(?:[:@]\S*)?"
)
# The SDK adds these to each image.
_USUAL_PACKAGES: Final = frozenset({"build-essential", "ca-certificates", "git"})
_MAKES_USER: Final = re.compile(r"if ! id -u flyte\b.*useradd.*chown -R flyte:flyte /root")
_USUAL_DIRECTORIES: Final = frozenset({"", "/home/flyte", "/root"})
_USUAL_VARIABLES: Final = frozenset({"PATH", "PYTHONPATH", "UV_LINK_MODE", "VIRTUAL_ENV"})


class Problem(NamedTuple):
    """One unsupported part.

    Attributes:
        what: A clause, such as "it installs packages of the system: vim".
        remedy: An alternative.
    """

    what: str
    remedy: str


def arguments_of_sync(project: Project) -> list[str]:
    """The arguments of the SDK for ``uv sync`` that this package does not handle."""
    return [each for each in shlex.split(project.options.extra_args) if each != NO_PROJECT]


def own_variables(definition: Definition) -> dict[str, str]:
    """The variables of an image, without those about its own file system."""
    return {k: v for k, v in definition.variables.items() if k not in _USUAL_VARIABLES}


def unsupported_parts(
    definition: Definition, python_version: str, *, has_uv: bool = True
) -> list[Problem]:
    """The parts of an image that the executor does not support.

    Args:
        definition: The image.
        python_version: The version of the executor's interpreter, such as ``3.12``; empty if it is
            unknown.
        has_uv: Whether the executor has the program ``uv``.
    """
    return list(_problems(definition, python_version, has_uv=has_uv))


def _problems(definition: Definition, python_version: str, *, has_uv: bool) -> Iterator[Problem]:
    if definition.base_image and not _BASES.fullmatch(definition.base_image):
        yield Problem(
            f"it is based on {definition.base_image[:200]!r}",
            "use Image.from_debian_base() and add packages with with_pip_packages()",
        )
    if python_version and definition.python_version not in ("", python_version):
        yield Problem(
            f"it has Python {definition.python_version[:20]}, and the executor Python "
            f"{python_version}",
            f"run your program with Python {python_version}, or start the service with "
            "--python of an environment that has that Python and the SDK",
        )
    if packages := [each for each in definition.apt_packages if each not in _USUAL_PACKAGES]:
        yield Problem(
            f"it installs packages of the system: {_listed(packages)}",
            "install them on the executor's machine, and omit with_apt_packages()",
        )
    if commands := [each for each in definition.commands if not _MAKES_USER.match(each)]:
        yield Problem(
            f"it runs commands: {_listed(commands)}",
            "run them on the executor's machine, and omit with_commands()",
        )
    if definition.copies:
        targets = _listed([target for _, target in definition.copies])
        yield Problem(
            f"it copies files to {targets}",
            "let flyte.run send the code, and pass data as flyte.io.File or Dir",
        )
    if definition.workdir not in _USUAL_DIRECTORIES:
        yield Problem(
            f"it runs in {definition.workdir[:200]!r}",
            "omit with_workdir(): an attempt has a directory of its own",
        )
    if definition.poetry:
        yield Problem(
            "it installs a project of Poetry",
            "use with_uv_project(), or export its requirements for with_requirements()",
        )
    if definition.secrets:
        yield Problem(
            f"its packages need secrets: {_listed(definition.secrets)}",
            "give the index and its password to the service's process, by PIP_INDEX_URL or "
            "UV_INDEX_URL, and omit secret_mounts",
        )
    if not has_uv and any(isinstance(step, Project) and step.lock for step in definition.steps):
        yield Problem(
            "it has a uv.lock, and there is no program uv",
            "install uv on the executor's machine",
        )
    for step in definition.steps:
        if isinstance(step, Project) and not step.lock and arguments_of_sync(step):
            yield Problem(
                f"its project has arguments for uv sync: {step.options.extra_args[:200]!r}",
                "add a uv.lock to the project, or omit extra_args",
            )


def refusal(name: str, problems: Sequence[Problem]) -> str:
    """One text for the problems of an image."""
    lines = [f"{each.what}: {each.remedy}" for each in problems]
    text = "\n- ".join([f"image {name} is not supported by the local executor:", *lines])
    return (
        f"{text}\nOr start the service with --images ignore, if the executor's machine has it all."
    )


def _listed(texts: Sequence[str]) -> str:
    shown = ", ".join(repr(each[:100]) for each in texts[:5])
    return f"{shown} and {len(texts) - 5} more" if len(texts) > 5 else shown
