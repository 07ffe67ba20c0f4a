"""The contents of an image, parsed from the SDK's message to a builder of images."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, TypeAlias

from etcd_actions.errors import InvalidArgument

if TYPE_CHECKING:
    from flyteidl2.imagebuilder.definition_pb2 import ImageSpec, Layer, PipOptions

MOST_BYTES: Final = 256 * 1024
"""The limit of a definition, which etcd and each executor keep."""

NO_PROJECT: Final = "--no-install-project"


@dataclass(frozen=True)
class IndexOptions:
    """The image's settings for the installer.

    Attributes:
        index_url: The index of packages; empty for the default.
        extra_index_urls: Further indexes.
        pre: Whether to accept pre-releases.
        extra_args: Arguments for the installer, quoted for a shell.
    """

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    pre: bool = False
    extra_args: str = ""


@dataclass(frozen=True)
class Packages:
    """Packages by their requirements, such as ``pandas>=2``."""

    requirements: tuple[str, ...]
    options: IndexOptions


@dataclass(frozen=True)
class Requirements:
    """A file of requirements; the path is in the image's context."""

    file: str
    options: IndexOptions


@dataclass(frozen=True)
class Wheels:
    """A package from a directory of built distributions; the path is in the image's context."""

    directory: str
    package: str
    options: IndexOptions


@dataclass(frozen=True)
class Project:
    """The dependencies of a project, and maybe the project itself.

    Attributes:
        directory: The directory of its ``pyproject.toml``, in the image's context.
        lock: Its ``uv.lock``, in the context; empty for none.
        installs_itself: Whether the project is installed, too.
    """

    directory: str
    lock: str
    installs_itself: bool
    options: IndexOptions


Step: TypeAlias = Packages | Requirements | Wheels | Project
"""An installation; steps are in the order of the layers."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """An image, its layers sorted by their kind.

    Attributes:
        python_version: Such as ``3.12``; empty for any.
        variables: Its environment variables.
        copies: The source and target of each copied path.
        workdir: The working directory; empty for the default.
        poetry: Projects of Poetry, by their directories.
        secrets: The secrets that its build needs.
    """

    base_image: str = ""
    python_version: str = ""
    steps: tuple[Step, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    apt_packages: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    workdir: str = ""
    poetry: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    @property
    def needs_context(self) -> bool:
        """Whether a step reads files of the context."""
        return any(not isinstance(step, Packages) for step in self.steps)


def parse_image(data: bytes) -> Definition:
    """Parse Flyte's ``imagebuilder.ImageSpec``.

    Raises:
        InvalidArgument: It is invalid, or names files outside its context.
    """
    # A heavy import, and an extra.
    from flyteidl2.imagebuilder.definition_pb2 import ImageSpec  # noqa: PLC0415
    from google.protobuf.message import DecodeError as BadMessage  # noqa: PLC0415

    if len(data) > MOST_BYTES:
        raise InvalidArgument(
            "spec",
            f"the image's definition has {len(data)} bytes: at most {MOST_BYTES} are accepted",
        )
    try:
        spec = ImageSpec.FromString(data)
    except BadMessage as error:
        raise InvalidArgument("spec", f"it is not an image's definition: {error}") from error
    return _definition(spec)


def _definition(spec: ImageSpec) -> Definition:
    steps: list[Step] = []
    variables: dict[str, str] = {}
    apt: list[str] = []
    commands: list[str] = []
    copies: list[tuple[str, str]] = []
    poetry: list[str] = []
    secrets: dict[str, None] = {}
    workdir = ""
    for number, layer in enumerate(spec.layers):
        kind = layer.WhichOneof("layer")
        secrets.update(dict.fromkeys(_secrets(layer, kind)))
        if kind in _STEPS:
            steps.append(_step(layer, kind, f"spec.layers[{number}].{kind}"))
        elif kind == "env":
            variables |= layer.env.env_variables
        elif kind == "apt_packages":
            apt += layer.apt_packages.packages
        elif kind == "commands":
            commands += layer.commands.cmd
        elif kind == "copy_config":
            copies.append((layer.copy_config.src, layer.copy_config.dst))
        elif kind == "workdir":
            workdir = layer.workdir.workdir
        elif kind == "poetry_project":
            poetry.append(layer.poetry_project.pyproject)
        else:
            raise InvalidArgument(f"spec.layers[{number}]", "it is of an unknown kind: omit it")
    return Definition(
        base_image=spec.base_image,
        python_version=spec.python_version,
        steps=tuple(steps),
        variables=variables,
        apt_packages=tuple(apt),
        commands=tuple(commands),
        copies=tuple(copies),
        workdir=workdir,
        poetry=tuple(poetry),
        secrets=tuple(secrets),
    )


_STEPS: Final = ("pip_packages", "requirements", "python_wheels", "uv_project")


def _step(layer: Layer, kind: str, field: str) -> Step:
    if kind == "pip_packages":
        pip = layer.pip_packages
        for each in pip.packages:
            if not each.strip() or each.lstrip().startswith("-") or "\0" in each:
                raise InvalidArgument(
                    field, f"{each[:80]!r} is not a valid requirement: give a name"
                )
        return Packages(tuple(pip.packages), _options(pip.options, field))
    if kind == "requirements":
        file = layer.requirements
        return Requirements(_inside(file.file, field), _options(file.options, field))
    if kind == "python_wheels":
        wheels = layer.python_wheels
        directory = _inside(wheels.dir, field)
        return Wheels(directory, wheels.package_name, _options(wheels.options, field))
    project = layer.uv_project
    options = _options(project.options, field)
    return Project(
        _inside(project.pyproject, field),
        _inside(project.uvlock, field) if project.uvlock else "",
        NO_PROJECT not in options.extra_args.split(),
        options,
    )


def _options(options: PipOptions, field: str) -> IndexOptions:
    try:
        shlex.split(options.extra_args)
    except ValueError as error:
        raise InvalidArgument(
            f"{field}.options.extraArgs", f"{options.extra_args[:200]!r}: {error}: close the quote"
        ) from None
    return IndexOptions(
        options.index_url, tuple(options.extra_index_urls), options.pre, options.extra_args
    )


def _inside(path: str, field: str) -> str:
    """Check that a path is inside the context's directory."""
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise InvalidArgument(field, f"{path[:200]!r} is not a path in the image's context")
    return str(parts)


def _secrets(layer: Layer, kind: str | None) -> list[str]:
    mounts = getattr(getattr(layer, kind or "", None), "secret_mounts", ())
    return [f"{each.group}/{each.key}" if each.group else each.key for each in mounts]
