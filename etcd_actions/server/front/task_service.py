"""Flyte's TaskService: tasks that are deployed, and run by name later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
from connectrpc.code import Code
from flyteidl2.task import task_definition_pb2 as definition
from flyteidl2.task import task_service_pb2 as pb

from etcd_actions.errors import InvalidArgument
from etcd_actions.registry.registry import Registry, spec_of, task_id_of
from etcd_actions.registry.task_index import TaskNameKey, deployed_in_order
from etcd_actions.registry.task_record import TaskHead
from etcd_actions.runs.filters import Field, Fields, Kind, microseconds, moment
from etcd_actions.runs.list_pages import Query, parse, take_sorted
from etcd_actions.runs.run_entry import RunEntry
from etcd_actions.runs.run_fields import phase_of
from etcd_actions.runs.run_index import OfTask, RunIndex
from etcd_actions.server.caller import CALLER
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.front.attempt_messages import timestamp
from etcd_actions.server.front.run_views import identity, run_identifier
from etcd_actions.server.required import require

_CREATED: Final = "created_at"

_VERSION_FIELDS: Final[dict[str, Field[TaskHead]]] = {
    "version": Field(lambda task: task.version),
    _CREATED: Field(lambda task: microseconds(task.deployed), Kind.TIME),
    "updated_at": Field(lambda task: microseconds(task.updated), Kind.TIME),
    "deployed_by": Field(lambda task: task.deployed_by),
}
VERSION_FIELDS: Final[Fields[TaskHead]] = Fields(_VERSION_FIELDS)
"""The fields by which versions of a task can be filtered and sorted."""

TASK_FIELDS: Final[Fields[TaskHead]] = Fields(
    {
        "name": Field(lambda task: task.name),
        "project": Field(lambda task: task.project),
        "domain": Field(lambda task: task.domain),
        **_VERSION_FIELDS,
        "environment": Field(lambda task: task.environment),
        "function_name": Field(lambda task: task.short_name),
        "short_name": Field(lambda task: task.short_name),
        "task_type": Field(lambda task: task.task_type),
        "short_description": Field(lambda task: task.description),
        "env_description": Field(lambda task: task.environment_description),
    }
)
"""The fields by which tasks can be filtered and sorted."""


class TaskService:
    """The methods of Flyte's TaskService."""

    descriptor = pb.DESCRIPTOR.services_by_name["TaskService"]

    def __init__(self, registry: Registry, runs: RunIndex) -> None:
        self._registry = registry
        self._runs = runs

    async def deploy_task(self, request: pb.DeployTaskRequest) -> pb.DeployTaskResponse:
        """Store a version of a task; the same version again is refused, which the SDK ignores."""
        require(request, "task_id", "spec")
        if request.triggers:
            raise Refusal(
                Code.UNIMPLEMENTED,
                "triggers: triggers are not served here: nothing was deployed; take them out of "
                "the task, and start its runs from a scheduler of your own",
            )
        await self._registry.deploy(
            task_id_of(request.task_id),
            request.spec,
            org=request.task_id.org,
            deployed_by=CALLER.get().subject,
        )
        return pb.DeployTaskResponse()

    async def get_task_details(
        self, request: pb.GetTaskDetailsRequest
    ) -> pb.GetTaskDetailsResponse:
        """A version of a task with its spec; by default the one that was deployed last."""
        require(request, "task_id")
        task_id = task_id_of(request.task_id)
        # A missing version is allowed: it means the latest.
        msgspec.structs.replace(task_id, version=task_id.version or "latest").check()
        record = await self._registry.get(task_id)
        details = definition.TaskDetails(
            task_id=_identifier(record, request.task_id.org),
            metadata=_metadata(record),
            spec=spec_of(record),
        )
        return pb.GetTaskDetailsResponse(details=details)

    async def list_tasks(self, request: pb.ListTasksRequest) -> pb.ListTasksResponse:
        """Tasks, each in its latest version that meets the filters."""
        project, org = _scope(request)
        known = [each.SerializeToString(deterministic=True) for each in request.known_filters]
        query = parse(
            request.request,
            TASK_FIELDS,
            identity=_identity,
            default=_CREATED,
            scope=msgspec.json.encode(["tasks", project, known]),
        )
        is_meant = _known_filters(request)
        index = self._registry.index
        await index.ready()
        await self._runs.ready()
        total = filtered = 0

        def latest() -> Iterator[Sequence[TaskHead]]:
            nonlocal total, filtered
            for portion in index.portions(project):
                total += len(portion)
                meant = ([each for each in query.select(v) if is_meant(each)] for v in portion)
                found = [max(versions, key=deployed_in_order) for versions in meant if versions]
                filtered += len(found)
                yield found

        page = await take_sorted(query, latest())
        return pb.ListTasksResponse(
            tasks=[self._task(each, org) for each in page.rows],
            token=page.token,
            metadata=pb.ListTasksResponse.ListTasksMetadata(total=total, filtered_total=filtered),
        )

    async def list_versions(self, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
        """The versions of a task, by default the one that was deployed last first."""
        require(request, "task_name")
        require(request.task_name, *TaskNameKey._fields, where="task_name")
        name = TaskNameKey(*(getattr(request.task_name, part) for part in TaskNameKey._fields))
        query: Query[TaskHead] = parse(
            request.request,
            VERSION_FIELDS,
            identity=_identity,
            default=_CREATED,
            scope=msgspec.json.encode(["versions", name]),
        )
        index = self._registry.index
        await index.ready()
        await self._runs.ready()
        page = await take_sorted(query, [tuple(index.versions(name).values())])
        latest = self._runs.latest_of_versions(OfTask(*name), {each.version for each in page.rows})
        return pb.ListVersionsResponse(
            versions=[_version(each, latest.get(each.version)) for each in page.rows],
            token=page.token,
        )

    def _task(self, head: TaskHead, org: str) -> definition.Task:
        task = definition.Task(task_id=_identifier(head, org), metadata=_metadata(head))
        latest = self._runs.latest_of(OfTask(head.project, head.domain, head.name))
        if latest is not None and CALLER.get().may_use(latest.project):
            task.task_summary.latest_run.CopyFrom(_latest_run(latest))
        return task


def _version(head: TaskHead, latest: RunEntry | None) -> pb.ListVersionsResponse.VersionResponse:
    version = pb.ListVersionsResponse.VersionResponse(
        version=head.version, deployed_at=timestamp(head.deployed)
    )
    if head.deployed_by:
        version.deployed_by.CopyFrom(identity(head.deployed_by))
    if latest is not None and CALLER.get().may_use(latest.project):
        version.latest_run.CopyFrom(_latest_run(latest))
    return version


def _scope(request: pb.ListTasksRequest) -> tuple[tuple[str, str] | None, str]:
    """Project and domain, or None for all, and the organisation that the client named."""
    which = request.WhichOneof("scope_by")
    if which == "org":
        return None, request.org
    if which == "project_id":
        project = request.project_id
        require(project, "name", "domain", where="project_id")
        return (project.name, project.domain), project.organization
    raise InvalidArgument("scope_by", "it is missing: give one of org and project_id")


def _known_filters(request: pb.ListTasksRequest) -> Callable[[TaskHead], bool]:
    deployers: list[str] = []
    entrypoints: list[bool] = []
    for number, each in enumerate(request.known_filters):
        which = each.WhichOneof("filter_by")
        if which == "deployed_by":
            deployers.append(each.deployed_by)
        elif which == "is_entrypoint":
            entrypoints.append(each.is_entrypoint)
        else:
            raise InvalidArgument(
                f"known_filters[{number}]", "it is empty: give deployed_by or is_entrypoint"
            )

    def is_meant(head: TaskHead) -> bool:
        return all(head.deployed_by == each for each in deployers) and all(
            head.is_entrypoint is each for each in entrypoints
        )

    return is_meant


def _identity(head: TaskHead) -> str:
    # Unique: JSON escapes the separator in a part.
    return msgspec.json.encode([head.project, head.domain, head.name, head.version]).decode()


def _identifier(head: TaskHead, org: str) -> definition.TaskIdentifier:
    return definition.TaskIdentifier(
        org=head.org or org,
        project=head.project,
        domain=head.domain,
        name=head.name,
        version=head.version,
    )


def _metadata(head: TaskHead) -> definition.TaskMetadata:
    metadata = definition.TaskMetadata(
        short_name=head.short_name,
        deployed_at=timestamp(head.deployed),
        environment_name=head.environment,
        short_description=head.description,
    )
    if head.deployed_by:
        metadata.deployed_by.CopyFrom(identity(head.deployed_by))
    return metadata


def _latest_run(entry: RunEntry) -> definition.LatestRunSummary:
    return definition.LatestRunSummary(
        run_id=run_identifier(entry),
        run_time=timestamp(moment(entry.created)),
        phase=phase_of(entry),
        root_task_name=entry.task.name,
    )
