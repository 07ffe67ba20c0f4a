"""What of an image cannot be had where there are no containers, and what to do about it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Final, NamedTuple

from etcd_actions.images.definition import NO_PROJECT, Definition, Project

# The SDK's own image and the plain ones of Python: what is in them, the executor has.
_BASES: Final = re.compile(
    r"(?:ghcr\.io/flyteorg/flyte|(?:docker\.io/)?(?:library/)?python)(?:[:@]\S*)?"
)
# What the SDK puts below each image that it builds from nothing.
_USUAL_PACKAGES: Final = frozenset({"build-essential", "ca-certificates", "git"})
_MAKES_USER: Final = re.compile(r"if ! id -u flyte\b.*useradd.*chown -R flyte:flyte /root")
_USUAL_DIRECTORIES: Final = frozenset({"", "/home/flyte", "/root"})
_USUAL_VARIABLES: Final = frozenset({"PATH", "PYTHONPATH", "UV_LINK_MODE", "VIRTUAL_ENV"})


class Problem(NamedTuple):
    """One thing that cannot be had.

    Attributes:
        what: A clause, such as "it installs packages of the system: vim".
        remedy: What to do instead.
    """

    what: str
    remedy: str


def arguments_of_sync(project: Project) -> list[str]:
    """What the SDK would give ``uv sync`` beside what this package knows."""
    return [each for each in shlex.split(project.options.extra_args) if each != NO_PROJECT]


def own_variables(definition: Definition) -> dict[str, str]:
    """What an image sets in the environment, without what means its own file system."""
    return {k: v for k, v in definition.variables.items() if k not in _USUAL_VARIABLES}


def what_is_lacking(
    definition: Definition, python_version: str, *, has_uv: bool = True
) -> list[Problem]:
    """Say what of an image the executor cannot have.

    Args:
        definition: The image.
        python_version: Of the executor's interpreter, such as ``3.12``.
        has_uv: Whether the program ``uv`` is at hand there.
    """
    problems = []
    if definition.base_image and not _BASES.fullmatch(definition.base_image):
        problems.append(
            Problem(
                f"it is based on {definition.base_image[:200]!r}",
                "use Image.from_debian_base() and add packages with with_pip_packages()",
            )
        )
    if definition.python_version not in ("", python_version):
        problems.append(
            Problem(
                f"it has Python {definition.python_version[:20]}, and the executor Python "
                f"{python_version}",
                f"run your program with Python {python_version}, or start the service with "
                "--python of an environment that has that Python and the SDK",
            )
        )
    if packages := [each for each in definition.apt_packages if each not in _USUAL_PACKAGES]:
        problems.append(
            Problem(
                f"it installs packages of the system: {_listed(packages)}",
                "install them on the executor's machine, and leave with_apt_packages() out",
            )
        )
    if commands := [each for each in definition.commands if not _MAKES_USER.match(each)]:
        problems.append(
            Problem(
                f"it runs commands: {_listed(commands)}",
                "run them on the executor's machine, and leave with_commands() out",
            )
        )
    if definition.copies:
        targets = _listed([target for _, target in definition.copies])
        problems.append(
            Problem(
                f"it copies files to {targets}",
                "let flyte.run send the code, and pass data as flyte.io.File or Dir",
            )
        )
    if definition.workdir not in _USUAL_DIRECTORIES:
        problems.append(
            Problem(
                f"it runs in {definition.workdir[:200]!r}",
                "leave with_workdir() out: an attempt has a directory of its own",
            )
        )
    if definition.poetry:
        problems.append(
            Problem(
                "it installs a project of Poetry",
                "use with_uv_project(), or export its requirements for with_requirements()",
            )
        )
    if definition.secrets:
        problems.append(
            Problem(
                f"its packages need secrets: {_listed(definition.secrets)}",
                "give the index and its password to the service's process, by PIP_INDEX_URL or "
                "UV_INDEX_URL, and leave secret_mounts out",
            )
        )
    if not has_uv and any(isinstance(step, Project) and step.lock for step in definition.steps):
        problems.append(
            Problem(
                "it has a uv.lock, and there is no program uv",
                "install uv on the executor's machine",
            )
        )
    for step in definition.steps:
        if isinstance(step, Project) and not step.lock and arguments_of_sync(step):
            problems.append(
                Problem(
                    f"its project has arguments for uv sync: {step.options.extra_args[:200]!r}",
                    "add a uv.lock to the project, or leave extra_args out",
                )
            )
    return problems


def refusal(name: str, problems: Sequence[Problem]) -> str:
    """One text for all problems of an image; there is at least one."""
    lines = [f"{each.what}: {each.remedy}" for each in problems]
    text = "\n- ".join([f"image {name} cannot be had by the local executor:", *lines])
    return (
        f"{text}\nOr start the service with --images ignore, if the executor's machine has it all."
    )


def _listed(texts: Sequence[str]) -> str:
    shown = ", ".join(repr(each[:100]) for each in texts[:5])
    return f"{shown} and {len(texts) - 5} more" if len(texts) > 5 else shown
