"""Which projects a request names, found in its fields, and whether its client may use them.

One place decides that for every method: a method whose request has no field that names a project
must be listed here as one that needs none, else it cannot be served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final, NamedTuple

from connectrpc.code import Code
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from etcd_actions.errors import NotFound
from etcd_actions.server.caller import CALLER
from etcd_actions.server.data_locations import Places
from etcd_actions.server.error_codes import Refusal

WITHOUT_A_PROJECT: Final = frozenset(
    {
        "flyteidl2.auth.AuthMetadataService/GetOAuth2Metadata",
        "flyteidl2.auth.AuthMetadataService/GetPublicClientConfig",
        "flyteidl2.auth.IdentityService/UserInfo",
        # It says nothing of what it is asked for, which may be an organisation.
        "flyteidl2.cluster.ClusterService/SelectCluster",
        # It gives only the projects that its client may use.
        "flyteidl2.project.ProjectService/ListProjects",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
"""The methods that need no project: they tell nothing that belongs to one."""

SHARED_PROJECT: Final = "system"
"""The project of the task that builds images: everybody may read and run its tasks."""

_READS_TASKS: Final = frozenset(
    f"flyteidl2.task.TaskService/{name}" for name in ("ListTasks", "ListVersions", "GetTaskDetails")
)
_RUNS_TASKS: Final = frozenset(
    {"flyteidl2.workflow.RunService/CreateRun", "flyteidl2.dataproxy.DataProxyService/UploadInputs"}
)

# Elsewhere the field is called project.
_NAMING_FIELDS: Final[Mapping[str, str]] = {
    "flyteidl2.common.ProjectIdentifier": "name",
    "flyteidl2.project.GetProjectRequest": "id",
    "flyteidl2.project.Project": "id",
}
# What a task is made of, and values: names in them are labels, by which nothing is found.
_OPAQUE: Final = ("flyteidl2.core.", "flyteidl2.task.TaskSpec", "google.protobuf.")


class _Fields(NamedTuple):
    """What of a message may name projects.

    Attributes:
        own: The field that names one; None for none.
        inner: Fields whose messages may.
    """

    own: FieldDescriptor | None
    inner: tuple[FieldDescriptor, ...]


@cache
def _fields(descriptor: Descriptor) -> _Fields:
    own = descriptor.fields_by_name.get(_NAMING_FIELDS.get(descriptor.full_name, "project"))
    if own is not None and own.type != FieldDescriptor.TYPE_STRING:
        own = None
    inner = tuple(
        field
        for field in descriptor.fields
        if field.message_type is not None and _may_name(field.message_type, frozenset())
    )
    return _Fields(own, inner)


def _may_name(descriptor: Descriptor, above: frozenset[str]) -> bool:
    """Whether a message, or one in it, has a field that names a project."""
    name = descriptor.full_name
    if name in above or name.startswith(_OPAQUE) or descriptor.GetOptions().map_entry:
        return False
    own = descriptor.fields_by_name.get(_NAMING_FIELDS.get(name, "project"))
    if own is not None and own.type == FieldDescriptor.TYPE_STRING:
        return True
    return any(
        _may_name(field.message_type, above | {name})
        for field in descriptor.fields
        if field.message_type is not None
    )


def has_rule(method: str, request: Descriptor) -> bool:
    """Whether it is known of a method how its requests name projects.

    Args:
        method: ``SERVICE/METHOD``.
        request: What its requests look like.
    """
    return method in WITHOUT_A_PROJECT or _may_name(request, frozenset())


def named_projects(message: Message) -> Iterator[tuple[str, str]]:
    """The projects that a request names, each with the path of its field.

    An identifier that leaves its project out names the project ``""``.
    """
    own, inner = _fields(message.DESCRIPTOR)
    if own is not None:
        yield own.name, getattr(message, own.name)
    for field in inner:
        if field.is_repeated:
            for number, each in enumerate(getattr(message, field.name)):
                for path, project in named_projects(each):
                    yield f"{field.name}[{number}].{path}", project
        elif message.HasField(field.name):
            for path, project in named_projects(getattr(message, field.name)):
                yield f"{field.name}.{path}", project


def _is_shared(method: str, path: str) -> bool:
    """Whether a request only reads or runs a task where its field names the shared project."""
    return method in _READS_TASKS or (method in _RUNS_TASKS and path == "task_id.project")


class Access:
    """Refuses requests for projects that do not exist, or that their client may not use.

    Args:
        projects: The projects that there are; None: all that somebody names.
        places: Says which data a client may name.
    """

    def __init__(
        self, projects: tuple[str, ...] | None = None, places: Places | None = None
    ) -> None:
        self._known = projects
        self._places = places or Places(None)

    def check(self, method: str, request: Message) -> None:
        """Let a request through; that of a client with some projects is confined to these.

        Args:
            method: ``SERVICE/METHOD``.
            request: The request.

        Raises:
            NotFound: It names a project that settings do not.
            Refusal: Its client may not use one, or it names none and has to.
        """
        caller = CALLER.get()
        if self._known is None and caller.projects is None:
            return
        named = list(named_projects(request))
        for path, project in named:
            if project == SHARED_PROJECT and _is_shared(method, path):
                continue
            if not caller.may_use(project) and (project or method not in WITHOUT_A_PROJECT):
                who = f"the token of {caller.subject}" if caller.subject else "this token"
                what = f"project {project!r}" if project else "a request that names no project"
                raise Refusal(Code.PERMISSION_DENIED, f"{path}: {who} may not use {what}")
            if self._known is not None and project and project not in self._known:
                known = ", ".join(self._known)
                raise NotFound(f"{path}: project {project!r} is none of those here: {known}")
        if caller.projects is not None and not named and method not in WITHOUT_A_PROJECT:
            raise Refusal(
                Code.PERMISSION_DENIED,
                "this token may use some projects only, and the request names none",
            )
        self._places.confine(request)
