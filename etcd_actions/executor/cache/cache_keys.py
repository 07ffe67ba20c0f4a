"""The cache keys of calls: task, version, interface and inputs.

The SDK computes the key of a child in the task of its parent. It leaves the key of a root to the
service: this module computes that key from the same parts, in another form. The hash of an input
stands for the input if it has one; ignored inputs are omitted.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from flyteidl2.core.interface_pb2 import TypedInterface
from flyteidl2.task.common_pb2 import Inputs
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions._internal.untrusted_files import UnusableFile, in_thread, local_path, read_regular
from etcd_actions.catalog import scope_of
from etcd_actions.errors import InvalidArgument
from etcd_actions.model import ANNOTATION_OVERWRITE_CACHE, ActionObject, Keyspace
from etcd_actions.model.durations import limit_of

if TYPE_CHECKING:
    from flyteidl2.core.literals_pb2 import Literal
    from flyteidl2.core.tasks_pb2 import TaskTemplate

# Bytes of the inputs of a root; larger ones are not read.
_MOST_OF_INPUTS: Final = 64 * 1024 * 1024
# Seconds for the file system of the inputs.
_READ_WITHIN: Final = 10.0


class Call(NamedTuple):
    """A call whose result is cached.

    Attributes:
        cache_key: Identifies the call.
        entry: The key of its result in etcd.
        reservation: The key in etcd of the one action that computes the result.
        overwrites: Whether its run replaces results instead of using them.
        serialized: Whether one action at a time computes the result, and others wait for it.
        max_age: Seconds after which a result is not used any more; None for no limit.
    """

    cache_key: str
    entry: bytes
    reservation: bytes
    overwrites: bool
    serialized: bool
    max_age: float | None


async def call_of(keys: Keyspace, action: ActionObject, template: TaskTemplate) -> Call | None:
    """The call of an action; None if its task is not cached.

    Raises:
        InvalidArgument: The template's age is invalid, or its inputs are on another machine.
        UnusableFile: The inputs are not in a regular file, or their file system does not answer.
        OSError: The inputs cannot be read.
    """
    metadata = template.metadata
    if not metadata.discoverable:
        return None
    cache_key = action.spec.cache_key or await _key_of_root(action, template)
    scope = scope_of(keys, action)
    return Call(
        cache_key,
        scope.entry(cache_key),
        scope.reservation(cache_key),
        action.metadata.annotations.get(ANNOTATION_OVERWRITE_CACHE) == "true",
        metadata.cache_serializable,
        limit_of(metadata.cache_max_age, "spec.taskTemplate.metadata.cacheMaxAge"),
    )


async def _key_of_root(action: ActionObject, template: TaskTemplate) -> str:
    path = local_path(action.spec.input_uri)
    if path is None:
        raise InvalidArgument(
            "spec.inputUri", f"{action.spec.input_uri[:200]!r} is not on this machine"
        )
    read = partial(read_regular, path, limit=_MOST_OF_INPUTS)
    try:
        inputs = Inputs.FromString(await in_thread(_READ_WITHIN, path, read))
    except BadMessage as error:
        raise UnusableFile(f"{path} is not a message Inputs: {error}") from None
    return cache_key(template, inputs)


def cache_key(template: TaskTemplate, inputs: Inputs) -> str:
    """The cache key of a call of a task with some inputs."""
    ignored = set(template.metadata.cache_ignore_input_vars)
    by_name = {each.name: each.value for each in inputs.literals if each.name not in ignored}
    parts = [
        template.id.name.encode(),
        template.metadata.discovery_version.encode(),
        _interface(template.interface),
    ]
    for name, value in sorted(by_name.items()):
        parts += [name.encode(), _bytes_of(value)]
    return base64.b64encode(hashlib.sha256(_framed(parts)).digest()).decode()


def _framed(parts: Iterable[bytes]) -> bytes:
    """The parts with their lengths, so that other parts result in other bytes."""
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)


def _interface(interface: TypedInterface) -> bytes:
    """The bytes of an interface, with its variables in order."""
    ordered = TypedInterface()
    ordered.CopyFrom(interface)
    for variables in (ordered.inputs.variables, ordered.outputs.variables):
        variables.sort(key=lambda entry: entry.key)
    data: bytes = ordered.SerializeToString(deterministic=True)
    return data


def _bytes_of(literal: Literal) -> bytes:
    """The bytes that identify a literal: its own hash, if it has one, at any depth."""
    if literal.hash:
        own: bytes = literal.hash.encode()
        return b"h" + own
    kind = literal.WhichOneof("value")
    if kind == "collection":
        return b"c" + _framed(map(_bytes_of, literal.collection.literals))
    if kind == "map":
        entries = sorted(literal.map.literals.items())
        return b"m" + _framed(
            part for key, each in entries for part in (key.encode(), _bytes_of(each))
        )
    value: bytes = literal.SerializeToString(deterministic=True)
    return b"v" + value
