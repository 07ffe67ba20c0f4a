"""ProjectService: the projects and domains of the settings, of clients and of runs."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Final

from flyteidl2.common import list_pb2
from flyteidl2.project import project_service_pb2 as pb

from etcd_actions.errors import InvalidArgument, NotFound
from etcd_actions.registry.projects import Projects, StoredProject
from etcd_actions.server.caller import CALLER

DOMAINS: Final = ("development", "staging", "production")
"""The domains of every project, by default."""

# Projects of a page: by default, and at most.
_PAGE = 100
_MOST_PAGE = 1000
_CONDITION: Final = re.compile(r"(eq|ne|contains|value_in)\(\s*(\w+)\s*,\s*([^()]*)\)")
_NEVER: Final = datetime.min.replace(tzinfo=UTC)

_Row = tuple[str, StoredProject | None]
"""The id of a project, and its stored form."""


def _name(row: _Row) -> str:
    return row[0] if row[1] is None else row[1].name or row[0]


def _state(stored: StoredProject | None) -> pb.ProjectState:
    if stored is not None and stored.is_archived:
        return pb.PROJECT_STATE_ARCHIVED
    return pb.PROJECT_STATE_ACTIVE


def _time(time: datetime | None) -> str:
    """A time as text that sorts in the same order; a missing one sorts first."""
    return (time or _NEVER).astimezone(UTC).isoformat(timespec="microseconds")


_TEXTS: Final[Mapping[str, Callable[[_Row], str]]] = {
    "id": lambda row: row[0],
    "identifier": lambda row: row[0],
    "name": _name,
    "state": lambda row: str(int(_state(row[1]))),
}
_SORT_KEYS: Final[Mapping[str, Callable[[_Row], str]]] = {
    "": lambda row: "",
    "id": lambda row: "",
    "identifier": lambda row: "",
    "name": _name,
    "created_at": lambda row: _time(None if row[1] is None else row[1].created),
    "updated_at": lambda row: _time(None if row[1] is None else row[1].updated),
}
"""The sort keys of projects, before their ids."""


@dataclass(frozen=True, kw_only=True)
class ProjectSettings:
    """The projects and domains.

    Attributes:
        projects: The names of the projects; None: each project exists that a request names.
        domains: The names of every project's domains.
    """

    projects: tuple[str, ...] | None = None
    domains: tuple[str, ...] = DOMAINS


class ProjectService:
    """Lists, creates and changes projects.

    Args:
        settings: The projects and domains of the settings.
        stored: The projects that clients created or changed.
        with_runs: Returns the names of projects that have runs.
        ready: Returns once these are known; None: they always are.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["ProjectService"]

    def __init__(
        self,
        settings: ProjectSettings,
        stored: Projects,
        with_runs: Callable[[], Iterable[str]] = tuple,
        *,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._stored = stored
        self._with_runs = with_runs
        self._ready = ready

    async def get_project(self, request: pb.GetProjectRequest) -> pb.GetProjectResponse:
        """One project with its domains.

        Raises:
            InvalidArgument: The request names none.
            NotFound: The settings do not have it.
            DecodeError: Its stored form cannot be decoded.
        """
        if not request.id:
            raise InvalidArgument("id", "it is empty: name a project")
        self._check_known(request.id)
        stored = await self._stored.get(request.id)
        return pb.GetProjectResponse(project=self._project((request.id, stored), request.org))

    async def list_projects(self, request: pb.ListProjectsRequest) -> pb.ListProjectsResponse:
        """The projects of the settings, or those with runs or that clients created.

        Only the projects that the token may use.

        Raises:
            InvalidArgument: A filter or a sort key is unknown.
        """
        conditions = _conditions(request.filters)
        sort_key = _SORT_KEYS.get(request.sort_by.key)
        if sort_key is None:
            raise InvalidArgument(
                "sort_by.key", "projects are sorted by id, name, created_at or updated_at"
            )
        caller = CALLER.get()
        stored = await self._stored.all()
        named = self._settings.projects
        if named is None and self._ready is not None:
            await self._ready()
        names = {*self._with_runs(), *stored} if named is None else set(named)
        if named is None and caller.projects is not None:
            names |= caller.projects
        rows = ((name, stored.get(name)) for name in names if caller.may_use(name))
        fitting = [
            (sort_key(row), row) for row in rows if all(condition(row) for condition in conditions)
        ]
        # The direction counts only with a key.
        backwards = bool(request.sort_by.key) and (
            request.sort_by.direction == list_pb2.Sort.DESCENDING
        )
        page, token = _page(fitting, backwards, request.limit, request.token)
        projects = [self._project(row, request.org) for row in page]
        return pb.ListProjectsResponse(projects=pb.Projects(projects=projects, token=token))

    async def create_project(self, request: pb.CreateProjectRequest) -> pb.CreateProjectResponse:
        """Store a project, so that lists show it before it has runs.

        Raises:
            InvalidArgument: Its id is invalid, it is too large, or its state is not active.
            NotFound: The settings do not have it.
            AlreadyExists: It was created or changed before.
            FailedPrecondition: There are too many.
        """
        project = request.project
        self._check_known(project.id)
        if _archived(project.state):
            raise InvalidArgument("project.state", "create it, then flyte update project archives")
        await self._stored.create(
            project.id,
            name=project.name,
            description=project.description,
            labels=dict(project.labels.values),
            by=CALLER.get().subject,
        )
        return pb.CreateProjectResponse()

    async def update_project(self, request: pb.UpdateProjectRequest) -> pb.UpdateProjectResponse:
        """Replace the description of a project, which need not have been created.

        Raises:
            InvalidArgument: Its id or state is invalid, or it is too large.
            NotFound: The settings do not have it.
            DecodeError: Its stored form cannot be decoded.
            FailedPrecondition: It is not stored, and there are too many.
        """
        project = request.project
        self._check_known(project.id)
        await self._stored.update(
            project.id,
            name=project.name,
            description=project.description,
            labels=dict(project.labels.values),
            is_archived=_archived(project.state),
            by=CALLER.get().subject,
        )
        return pb.UpdateProjectResponse()

    def _check_known(self, project: str) -> None:
        known = self._settings.projects
        if known is not None and project not in known:
            raise NotFound(f"there is no project {project!r}: the projects are {', '.join(known)}")

    def _project(self, row: _Row, org: str) -> pb.Project:
        project, stored = row
        answer = pb.Project(
            id=project,
            name=_name(row),
            domains=[pb.Domain(id=each, name=each) for each in self._settings.domains],
            state=_state(stored),
            org=org,
        )
        if stored is not None:
            answer.description = stored.description
            answer.labels.values.update(stored.labels)
        return answer


def _archived(state: pb.ProjectState) -> bool:
    """Whether a state is archived; raises InvalidArgument if it is invalid."""
    if state not in (pb.PROJECT_STATE_ACTIVE, pb.PROJECT_STATE_ARCHIVED):
        raise InvalidArgument("project.state", "a project is active or archived")
    return bool(state == pb.PROJECT_STATE_ARCHIVED)


def _page(
    rows: Iterable[tuple[str, _Row]], backwards: bool, limit: int, token: str
) -> tuple[Sequence[_Row], str]:
    """A page, and the token of the next one: the sort key of the last row."""
    size = min(limit or _PAGE, _MOST_PAGE)
    keyed = sorted((((value, row[0]), row) for value, row in rows), key=itemgetter(0))
    if backwards:
        keyed.reverse()
    if token:
        id_, _, value = token.partition("/")
        after = (value, id_)
        keyed = [each for each in keyed if (each[0] < after if backwards else each[0] > after)]
    page = keyed[:size]
    following = f"{page[-1][1][0]}/{page[-1][0][0]}" if len(keyed) > size else ""
    return [row for _, row in page], following


def _conditions(filters: str) -> list[Callable[[_Row], bool]]:
    """The conditions of a filter such as ``eq(id, a)+ne(state, 1)``."""
    if not filters:
        return []
    return [_condition(text.strip()) for text in filters.split("+")]


def _condition(text: str) -> Callable[[_Row], bool]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise InvalidArgument(
            "filters", f"{text!r}: write eq(id, NAME), ne, contains or value_in, joined by +"
        )
    operator, field, operand = match.groups()
    operand = operand.strip()
    if (read := _TEXTS.get(field)) is None:
        known = "use id, name or state"
        raise InvalidArgument("filters", f"{field!r} is not a field of projects: {known}")
    return lambda row: _holds(operator, read(row), operand)


def _holds(operator: str, value: str, operand: str) -> bool:
    match operator:
        case "eq":
            return value == operand
        case "ne":
            return value != operand
        case "contains":
            return operand in value
        case _:
            return value in [each.strip() for each in operand.split(";")]
