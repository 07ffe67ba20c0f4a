"""The projects that a request names, and whether its client may use them.

A method whose request has no field that names a project must be listed here as one that needs none;
otherwise it cannot be served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from connectrpc.code import Code
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from etcd_actions.errors import NotFound
from etcd_actions.server.caller import CALLER
from etcd_actions.server.data_locations import DataLocations
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.message_fields import NamingFields

WITHOUT_A_PROJECT: Final = frozenset(
    {
        "flyteidl2.auth.AuthMetadataService/GetOAuth2Metadata",
        "flyteidl2.auth.AuthMetadataService/GetPublicClientConfig",
        "flyteidl2.auth.IdentityService/UserInfo",
        # The response does not depend on the request, which may name an organisation.
        "flyteidl2.cluster.ClusterService/SelectCluster",
        # It lists only the projects that its client may use.
        "flyteidl2.project.ProjectService/ListProjects",
        # They deliver only the runs of projects that their client may use.
        "flyteidl2.workflow.RunService/ListRuns",
        "flyteidl2.workflow.RunService/WatchRuns",
        # It lists only the objects of projects that its client may use.
        "etcd_actions.operations.Operations/ListObjects",
        # It delivers only the updates of projects that the client may use.
        "etcd_actions.operations.Operations/WatchUpdates",
        # It lists only the dead letters of projects that its client may use.
        "etcd_actions.operations.Operations/ListDeadLetters",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
"""The methods that need no project: they return nothing that belongs to one."""

SHARED_PROJECT: Final = "system"
"""The project of the task that builds images: every client may read and run its tasks."""

_READS_TASKS: Final = frozenset(
    f"flyteidl2.task.TaskService/{name}" for name in ("ListTasks", "ListVersions", "GetTaskDetails")
)
_RUNS_TASKS: Final = frozenset(
    {"flyteidl2.workflow.RunService/CreateRun", "flyteidl2.dataproxy.DataProxyService/UploadInputs"}
)

# In all other messages the field is called project.
_BY_TYPE: Final[Mapping[str, str]] = {
    "flyteidl2.common.ProjectIdentifier": "name",
    "flyteidl2.project.GetProjectRequest": "id",
    "flyteidl2.project.Project": "id",
}


def _naming_field(type_: Descriptor) -> tuple[str, ...]:
    field = type_.fields_by_name.get(_BY_TYPE.get(type_.full_name, "project"))
    return () if field is None or field.type != FieldDescriptor.TYPE_STRING else (field.name,)


_PROJECTS: Final = NamingFields(_naming_field)


def has_rule(method: str, request: Descriptor) -> bool:
    """Whether a method's requests name projects, or need none.

    Args:
        method: ``SERVICE/METHOD``.
        request: The type of its requests.
    """
    return method in WITHOUT_A_PROJECT or _PROJECTS.may_name(request)


def named_projects(message: Message) -> Iterator[tuple[str, str]]:
    """The projects that a request names, each with the path of its field.

    An identifier without a project names the project ``""``.
    """
    return _PROJECTS.read(message)


def _may_use_shared(method: str, path: str) -> bool:
    """Whether a method only reads or runs the task of the project that a field names.

    Args:
        method: ``SERVICE/METHOD``.
        path: The path of the field.
    """
    return method in _READS_TASKS or (method in _RUNS_TASKS and path == "task_id.project")


class ProjectAccess:
    """Refuses requests for projects that do not exist, or that their client may not use.

    Args:
        projects: The projects that exist; None if each project that a request names does.
        locations: Checks the locations of data.
    """

    def __init__(
        self, projects: tuple[str, ...] | None = None, locations: DataLocations | None = None
    ) -> None:
        self._known = projects
        self._locations = locations or DataLocations(None)

    def check(self, method: str, request: Message) -> None:
        """Check a request, and confine it to its client's projects.

        Args:
            method: ``SERVICE/METHOD``.
            request: The request.

        Raises:
            NotFound: It names a project that does not exist.
            Refusal: Its client may not use a project, or it must name one and does not.
        """
        caller = CALLER.get()
        if self._known is None and caller.projects is None:
            return
        named = list(named_projects(request))
        for path, project in named:
            if project == SHARED_PROJECT and _may_use_shared(method, path):
                continue
            if not caller.may_use(project) and (project or method not in WITHOUT_A_PROJECT):
                what = f"project {project!r}" if project else "a request that names no project"
                raise Refusal(Code.PERMISSION_DENIED, f"{path}: {caller.token} may not use {what}")
            if self._known is not None and project and project not in self._known:
                known = ", ".join(self._known)
                raise NotFound(f"{path}: there is no project {project!r}: the projects are {known}")
        if caller.projects is not None and not named and method not in WITHOUT_A_PROJECT:
            raise Refusal(
                Code.PERMISSION_DENIED,
                "this token may use some projects only, and the request names none: name one",
            )
        self._locations.confine(request)
