"""Where the data of runs is, as requests name it, and whether a client may name it.

A token that is for some projects must not reach the data of others: neither by a run that is to
read its inputs there or write its outputs there, nor by an action of its own that says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

from connectrpc.code import Code
from flyteidl2.task.run_pb2 import CACHE_LOOKUP_SCOPE_GLOBAL, CACHE_LOOKUP_SCOPE_PROJECT_DOMAIN
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from etcd_actions._internal.quoting import quoted
from etcd_actions.blobs import BlobStore
from etcd_actions.server.caller import CALLER
from etcd_actions.server.error_codes import Refusal

_NAMING_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "flyteidl2.actions.Action": ("input_uri", "run_output_base"),
    "flyteidl2.common.OffloadedInputData": ("uri",),
    "flyteidl2.task.OutputReferences": ("output_uri", "report_uri"),
    "flyteidl2.task.RawDataStorage": ("raw_data_prefix",),
    "flyteidl2.task.RunSpec": ("run_base_dir",),
}
_RUN_SPEC: Final = "flyteidl2.task.RunSpec"
_OPAQUE: Final = ("flyteidl2.core.", "flyteidl2.task.TaskSpec", "google.protobuf.")
_KINDS: Final = frozenset({"uploads", "inputs", "runs"})
"""What the store's keys begin with that have their project next."""
# Nobody here reads these; a task that does has credentials of its own for it.
_ELSEWHERE: Final = re.compile(r"(s3|s3a|gs|gcs|abfs|abfss|az|adl|oss)://[^/]+(/.*)?", re.DOTALL)
_SHARD: Final = "@"


@cache
def _inner(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    return tuple(
        field
        for field in descriptor.fields
        if field.message_type is not None and _may_name(field.message_type, frozenset())
    )


def _may_name(descriptor: Descriptor, above: frozenset[str]) -> bool:
    name = descriptor.full_name
    if name in above or name.startswith(_OPAQUE) or descriptor.GetOptions().map_entry:
        return False
    return name in _NAMING_FIELDS or any(
        _may_name(field.message_type, above | {name})
        for field in descriptor.fields
        if field.message_type is not None
    )


def _below(message: Message) -> Iterator[tuple[str, Message]]:
    for field in _inner(message.DESCRIPTOR):
        if field.is_repeated:
            for number, each in enumerate(getattr(message, field.name)):
                yield f"{field.name}[{number}].", each
        elif message.HasField(field.name):
            yield f"{field.name}.", getattr(message, field.name)


def named_places(message: Message) -> Iterator[tuple[str, str]]:
    """The places that a request names, each with the path of its field."""
    for name in _NAMING_FIELDS.get(message.DESCRIPTOR.full_name, ()):
        if place := getattr(message, name):
            yield name, place
    for head, inner in _below(message):
        for path, place in named_places(inner):
            yield head + path, place


def _run_specs(message: Message) -> Iterator[Message]:
    if message.DESCRIPTOR.full_name == _RUN_SPEC:
        yield message
    for _, inner in _below(message):
        yield from _run_specs(inner)


class Places:
    """Keeps clients whose tokens are for some projects to the data of these.

    Args:
        store: Where blobs are; None where there is no store.
    """

    def __init__(self, store: BlobStore | None) -> None:
        self._store = store

    def confine(self, request: Message) -> None:
        """Check the places that a request names, and let its run share no results with others.

        Cached results of all projects are one set: a run of such a client is given those of its
        own project and domain instead.

        Raises:
            Refusal: It names a place that its client may not use.
        """
        if CALLER.get().projects is None:
            return
        for path, place in named_places(request):
            if not self._is_elsewhere(place):
                self.check(place, path)
        for spec in _run_specs(request):
            cache_config = getattr(spec, "cache_config", None)
            if cache_config and cache_config.cache_lookup_scope == CACHE_LOOKUP_SCOPE_GLOBAL:
                cache_config.cache_lookup_scope = CACHE_LOOKUP_SCOPE_PROJECT_DOMAIN

    def check(self, place: str, field: str = "") -> None:
        """Let the client at hand read what is somewhere.

        Args:
            place: A path or a URL.
            field: Which field of the request names it; empty where an action does.

        Raises:
            Refusal: It is not in the store, or is another project's.
        """
        caller = CALLER.get()
        if caller.projects is None:
            return
        key = None if self._store is None else self._store.key_of(place.rstrip("/"))
        parts = [] if key is None else key.split("/")
        if parts and parts[0].startswith(_SHARD):
            del parts[0]
        if len(parts) > 1 and parts[0] in _KINDS and caller.may_use(parts[1]):
            return
        who = f"the token of {caller.subject}" if caller.subject else "this token"
        own = ", ".join(sorted(caller.projects)[:5])
        raise Refusal(
            Code.PERMISSION_DENIED,
            f"{field or 'the data'}: {quoted(place, 300)} is not among the data of the projects "
            f"that {who} may use ({own}): leave it out, or name a place of theirs in this "
            "service's blob store",
        )

    def _is_elsewhere(self, place: str) -> bool:
        """Whether it is in object storage that is not this service's."""
        if self._store is not None and self._store.key_of(place.rstrip("/")) is not None:
            return False
        return _ELSEWHERE.fullmatch(place) is not None and ".." not in place.split("/")
