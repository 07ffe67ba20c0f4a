"""The build of an image by the SDK's builder ``remote``: a run of one known task.

The SDK queries an image by its name. If it does not exist, the SDK uploads the definition and runs
the task ``build-image``. Here the creation of that run checks and stores the definition. The run's
action has the definition as its image, so the executor builds the environment before it starts. Its
output is the reference of the definition, which the SDK sets as the image of the user's tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from etcd_actions.errors import InvalidArgument
from etcd_actions.images.definition import MOST_BYTES, parse_image
from etcd_actions.images.image_definitions import Images, StoredImage
from etcd_actions.images.reference import ImageReference
from etcd_actions.images.unsupported import refusal, unsupported_parts

if TYPE_CHECKING:
    from flyteidl2.task.common_pb2 import Inputs
    from flyteidl2.task.task_definition_pb2 import TaskSpec

TASK_NAME: Final = "build-image"
TASK_PROJECT: Final = "system"
TASK_DOMAIN: Final = "production"
TASK_VERSION: Final = "1"
BUILD_TYPE: Final = "etcd-actions-image"
"""The type of the task that the SDK finds; the task that runs has another."""
MOST_CONTEXT: Final = 256 * 1024 * 1024
_MOST_INPUTS: Final = 64 * 1024

_OUTPUT: Final = "fully_qualified_image"
_INPUTS: Final = ("spec", "context", "target_image")
# The program of that task. The environment's interpreter runs it, which may lack this package.
_WRITES_OUTPUTS: Final = """\
import pathlib, sys, urllib.parse
place, data = sys.argv[1:]
if place.startswith("file:"):
    place = urllib.parse.unquote(urllib.parse.urlsplit(place).path)
path = pathlib.Path(place)
path.mkdir(parents=True, exist_ok=True)
(path / "outputs.pb").write_bytes(bytes.fromhex(data))
print("the environment of the image is complete")
"""

ReadBlob = Callable[[str, int], Awaitable[bytes]]
"""Reads an upload by its URI, up to a number of bytes. Raises InvalidArgument."""
BlobExists = Callable[[str], Awaitable[bool]]
"""Returns whether there still is a file at a URI."""


class Executing(NamedTuple):
    """The executor that images are for.

    Attributes:
        python_version: The version of its interpreter, such as ``3.12``; empty if it is unknown.
        has_uv: Whether it has the program ``uv``.
        lacking: Whether to refuse an image with unsupported layers.
    """

    python_version: str
    has_uv: bool
    lacking: Literal["check", "ignore"] = "check"


def build_task_spec() -> TaskSpec:
    """The task that the SDK's builder runs; to be deployed as :data:`TASK_NAME`."""
    from flyteidl2.core.types_pb2 import SimpleType  # noqa: PLC0415
    from flyteidl2.task.task_definition_pb2 import TaskSpec  # noqa: PLC0415

    spec = TaskSpec(short_name=TASK_NAME)
    template = spec.task_template
    template.type = BUILD_TYPE
    template.id.project, template.id.domain = TASK_PROJECT, TASK_DOMAIN
    template.id.name, template.id.version = TASK_NAME, TASK_VERSION
    for name in _INPUTS:
        variable = template.interface.inputs.variables.add(key=name)
        variable.value.type.simple = SimpleType.STRING
    output = template.interface.outputs.variables.add(key=_OUTPUT)
    output.value.type.simple = SimpleType.STRING
    template.container.image = "none"
    template.container.args[:] = [TASK_NAME]
    return spec


def is_build(spec: TaskSpec) -> bool:
    """Whether a task is the build of an image."""
    kind: str = spec.task_template.type
    return kind == BUILD_TYPE


class ImageBuilds:
    """Serves the SDK's builder. All methods raise :class:`EtcdError` if etcd fails.

    Args:
        images: The definitions.
        read: See :data:`ReadBlob`.
        exists: See :data:`BlobExists`.
        executing: The executor that images are for.
    """

    def __init__(
        self, images: Images, read: ReadBlob, exists: BlobExists, executing: Executing
    ) -> None:
        self._images = images
        self._read = read
        self._exists = exists
        self._executing = executing

    async def find(self, name: str) -> str | None:
        """The reference of the image ``NAME:TAG``; None if it has to be built.

        If its files were deleted it has to be built again, so that the SDK uploads them again.

        Raises:
            InvalidArgument: The name is invalid.
            DecodeError: The stored value cannot be decoded.
        """
        stored = await self._images.named(name)
        if stored is None:
            return None
        if stored.context_uri and not await self._exists(stored.context_uri):
            return None
        return str(stored.reference) if await self._images.use(stored.digest) else None

    async def task_spec_at(self, uri: str) -> TaskSpec:
        """As :meth:`task_spec`, for inputs that were uploaded to a URI; raises the same errors."""
        from flyteidl2.task.common_pb2 import Inputs  # noqa: PLC0415
        from google.protobuf.message import DecodeError as NoMessage  # noqa: PLC0415

        data = await self._read(uri, _MOST_INPUTS)
        try:
            inputs = Inputs.FromString(data)
        except NoMessage:
            raise InvalidArgument("offloaded_input_data.uri", "these are not inputs") from None
        return await self.task_spec(inputs)

    async def task_spec(self, inputs: Inputs) -> TaskSpec:
        """Check and store the definition of a build; returns the task to run for it.

        Raises:
            InvalidArgument: The executor does not support it.
        """
        given = _texts(inputs)
        name = given["target_image"].rpartition("/")[2]
        data = await self._read(given["spec"], MOST_BYTES)
        definition = parse_image(data)
        executing = self._executing
        problems = unsupported_parts(definition, executing.python_version, has_uv=executing.has_uv)
        if problems and executing.lacking == "check":
            raise InvalidArgument("target_image", refusal(name, problems))
        uri = digest = ""
        if definition.needs_context:
            uri = given["context"]
            if not uri:
                raise InvalidArgument("context", "it is empty, and layers of the image have files")
            digest = hashlib.sha256(await self._read(uri, MOST_CONTEXT)).hexdigest()
        reference = await self._images.put(
            StoredImage(name=name, spec=data, context_uri=uri, context_digest=digest)
        )
        return _run_of(reference)


def _run_of(reference: ImageReference) -> TaskSpec:
    from flyteidl2.core.literals_pb2 import Literal as LiteralValue  # noqa: PLC0415
    from flyteidl2.task.common_pb2 import NamedLiteral, Outputs  # noqa: PLC0415

    value = LiteralValue()
    value.scalar.primitive.string_value = str(reference)
    outputs = Outputs(literals=[NamedLiteral(name=_OUTPUT, value=value)])
    spec = build_task_spec()
    template = spec.task_template
    template.type = "python"
    template.container.image = str(reference)
    template.container.args[:] = [
        *("python", "-I", "-c", _WRITES_OUTPUTS),
        *("{{.outputPrefix}}", outputs.SerializeToString().hex()),
    ]
    return spec


def _texts(inputs: Inputs) -> dict[str, str]:
    """The inputs of a build; the context may be missing."""
    found = {"context": ""}
    for each in inputs.literals:
        found[each.name] = each.value.scalar.primitive.string_value
    for name in _INPUTS:
        if not found.get(name) and name != "context":
            raise InvalidArgument(f"inputs.{name}", "it is missing")
    return found
