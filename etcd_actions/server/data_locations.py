"""Checks the locations of data that requests name.

A client whose token is limited to some projects must not reach the data of others: neither by a run
that reads inputs or writes outputs there, nor by an action that names a file there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from connectrpc.code import Code
from flyteidl2.task.run_pb2 import CACHE_LOOKUP_SCOPE_GLOBAL, CACHE_LOOKUP_SCOPE_PROJECT_DOMAIN
from google.protobuf.message import Message

from etcd_actions._internal.quoting import quoted
from etcd_actions.blobs import BlobStore
from etcd_actions.server.caller import CALLER
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.message_fields import NamingFields

_RUN_SPEC: Final = "flyteidl2.task.RunSpec"
_BY_TYPE: Final[Mapping[str, tuple[str, ...]]] = {
    "flyteidl2.actions.Action": ("input_uri", "run_output_base"),
    "flyteidl2.common.OffloadedInputData": ("uri",),
    "flyteidl2.task.OutputReferences": ("output_uri", "report_uri"),
    "flyteidl2.task.RawDataStorage": ("raw_data_prefix",),
    _RUN_SPEC: ("run_base_dir",),
}
_LOCATIONS: Final = NamingFields(lambda type_: _BY_TYPE.get(type_.full_name, ()))
_KINDS: Final = frozenset({"uploads", "inputs", "runs"})
"""The first part of keys of the store whose second part is their project."""
# URLs of object storage. This service reads none of them; a task that does has its own credentials.
_FOREIGN: Final = re.compile(r"(s3|s3a|gs|gcs|abfs|abfss|az|adl|oss)://[^/]+(/.*)?", re.DOTALL)
# The first part of the keys of outputs in an object store, if Flyte inserted one to spread them,
# begins with it; see etcd_actions.blobs.object_store.
_INSERTED: Final = "@"


def requested_locations(message: Message) -> Iterator[tuple[str, str]]:
    """The locations that a request names, each with the path of its field."""
    return ((path, location) for path, location in _LOCATIONS.read(message) if location)


class DataLocations:
    """Confines a client whose token is limited to some projects to the data of these projects.

    Args:
        store: The blob store; None for none.
    """

    def __init__(self, store: BlobStore | None) -> None:
        self._store = store

    def confine(self, request: Message) -> None:
        """Check the locations that a request names, and limit its run's use of cached results.

        The scope of cached results ``global`` has those of all projects. It is replaced by that of
        the run's own project and domain.

        Raises:
            Refusal: The client may not use a location.
        """
        if CALLER.get().projects is None:
            return
        for path, location in requested_locations(request):
            if not self._is_foreign(location):
                self.check(location, path)
        for _, spec in _LOCATIONS.messages(request):
            cache_config = getattr(spec, "cache_config", None)
            if (
                spec.DESCRIPTOR.full_name == _RUN_SPEC
                and cache_config
                and cache_config.cache_lookup_scope == CACHE_LOOKUP_SCOPE_GLOBAL
            ):
                cache_config.cache_lookup_scope = CACHE_LOOKUP_SCOPE_PROJECT_DOMAIN

    def check(self, location: str, field: str = "") -> None:
        """Check that the caller may read a location.

        Args:
            location: A path or a URL.
            field: The field of the request that names it; empty if an action does.

        Raises:
            Refusal: It is outside the store, or belongs to another project.
        """
        caller = CALLER.get()
        if caller.projects is None:
            return
        parts = (self._key_of(location) or "").split("/")
        if parts[0].startswith(_INSERTED):
            del parts[0]
        if len(parts) > 1 and parts[0] in _KINDS and caller.may_use(parts[1]):
            return
        own = ", ".join(sorted(caller.projects)[:5])
        raise Refusal(
            Code.PERMISSION_DENIED,
            f"{field or 'the data'}: {quoted(location, 300)} is not among the data of the projects "
            f"that {caller.token} may use ({own}): omit it, or name a location of theirs in this "
            "service's blob store",
        )

    def _key_of(self, location: str) -> str | None:
        return None if self._store is None else self._store.key_of(location.rstrip("/"))

    def _is_foreign(self, location: str) -> bool:
        """Whether it is in object storage that is not this service's."""
        if self._key_of(location) is not None:
            return False
        return _FOREIGN.fullmatch(location) is not None and ".." not in location.split("/")
