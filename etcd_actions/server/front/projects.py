"""ProjectService: projects and their domains, which settings name or runs show."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from connectrpc.code import Code
from flyteidl2.common import list_pb2
from flyteidl2.project import project_service_pb2 as pb

from etcd_actions.errors import InvalidArgument, NotFound
from etcd_actions.server.caller import CALLER
from etcd_actions.server.codes import Refusal
from etcd_actions.server.methods import Methods

PROJECT: Final = "flyteidl2.project.ProjectService"

DOMAINS: Final = ("development", "staging", "production")
"""The domains of every project, unless settings name others."""

_PAGE = 100
_MOST_PAGE = 1000
_CONDITION: Final = re.compile(r"(eq|ne|contains|value_in)\(\s*(\w+)\s*,\s*([^()]*)\)")
_SORT_KEYS = frozenset({"", "id", "identifier", "name", "created_at", "updated_at"})


@dataclass(frozen=True, kw_only=True)
class ProjectSettings:
    """Which projects and domains there are.

    Attributes:
        projects: Their names; None: every project exists that somebody asks for.
        domains: The names of every project's domains.
    """

    projects: tuple[str, ...] | None = None
    domains: tuple[str, ...] = DOMAINS


class ProjectService:
    """Answers what projects there are.

    Args:
        settings: Which ones settings name.
        with_runs: Gives the names of those that have runs, where something knows them.
    """

    def __init__(
        self, settings: ProjectSettings, with_runs: Callable[[], Iterable[str]] = tuple
    ) -> None:
        self._settings = settings
        self._with_runs = with_runs

    def add_to(self, methods: Methods) -> None:
        """Add its methods to those that are served."""
        methods.unary(
            PROJECT, "GetProject", pb.GetProjectRequest, pb.GetProjectResponse, self.get_project
        )
        methods.unary(
            PROJECT,
            "ListProjects",
            pb.ListProjectsRequest,
            pb.ListProjectsResponse,
            self.list_projects,
        )
        methods.unary(
            PROJECT,
            "CreateProject",
            pb.CreateProjectRequest,
            pb.CreateProjectResponse,
            self.create_project,
        )
        methods.unary(
            PROJECT,
            "UpdateProject",
            pb.UpdateProjectRequest,
            pb.UpdateProjectResponse,
            self.update_project,
        )

    async def get_project(self, request: pb.GetProjectRequest) -> pb.GetProjectResponse:
        """One project with its domains.

        Raises:
            InvalidArgument: None is named.
            NotFound: Settings name the projects, and not this one.
        """
        if not request.id:
            raise InvalidArgument("id", "it is empty: name a project")
        known = self._settings.projects
        if known is not None and request.id not in known:
            raise NotFound(f"project {request.id!r} is none of those here: {', '.join(known)}")
        return pb.GetProjectResponse(project=self._project(request.id, request.org))

    async def list_projects(self, request: pb.ListProjectsRequest) -> pb.ListProjectsResponse:
        """The projects that settings name, else those with runs; only what the token may use.

        Raises:
            InvalidArgument: A filter or a sort key is none that projects have.
        """
        caller = CALLER.get()
        named = self._settings.projects
        names: set[str] = set(self._with_runs() if named is None else named)
        if named is None and caller.projects is not None:
            names |= caller.projects
        conditions = _conditions(request.filters)
        fitting = sorted(
            name
            for name in names
            if caller.may_use(name) and all(condition(name) for condition in conditions)
        )
        if request.sort_by.key not in _SORT_KEYS:
            raise InvalidArgument("sort_by.key", "projects are sorted by id, name or created_at")
        backwards = request.sort_by.direction == list_pb2.Sort.DESCENDING
        # Nobody asked for an order where no key is given.
        backwards = backwards and bool(request.sort_by.key)
        page, token = _page(fitting, backwards, request.limit, request.token)
        projects = [self._project(name, request.org) for name in page]
        return pb.ListProjectsResponse(projects=pb.Projects(projects=projects, token=token))

    async def create_project(self, request: pb.CreateProjectRequest) -> pb.CreateProjectResponse:
        """Refuse: nothing is stored of a project.

        Raises:
            Refusal: Always.
        """
        raise Refusal(Code.UNIMPLEMENTED, self._no_change(request.project.id))

    async def update_project(self, request: pb.UpdateProjectRequest) -> pb.UpdateProjectResponse:
        """Refuse: nothing is stored of a project.

        Raises:
            Refusal: Always.
        """
        raise Refusal(Code.UNIMPLEMENTED, self._no_change(request.project.id))

    def _no_change(self, project: str) -> str:
        if self._settings.projects is None:
            return f"projects are not created or changed: {project!r} can be used as it is"
        return "projects are not created or changed by clients: --projects of the service has them"

    def _project(self, name: str, org: str) -> pb.Project:
        domains = [pb.Domain(id=each, name=each) for each in self._settings.domains]
        return pb.Project(
            id=name, name=name, domains=domains, state=pb.PROJECT_STATE_ACTIVE, org=org
        )


def _page(
    names: Sequence[str], backwards: bool, limit: int, token: str
) -> tuple[Sequence[str], str]:
    """A page, and the token of the next one, which is the last name of this one."""
    size = min(limit or _PAGE, _MOST_PAGE)
    rest = [
        name
        for name in (reversed(names) if backwards else names)
        if not token or (name < token if backwards else name > token)
    ]
    return rest[:size], rest[size - 1] if len(rest) > size else ""


def _conditions(filters: str) -> list[Callable[[str], bool]]:
    """What ``eq(id, a)+ne(state, 1)`` demands of a project's name."""
    if not filters:
        return []
    return [_condition(text.strip()) for text in filters.split("+")]


def _condition(text: str) -> Callable[[str], bool]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise InvalidArgument(
            "filters", f"{text!r}: write eq(id, NAME), ne, contains or value_in, joined by +"
        )
    operator, field, operand = match.groups()
    operand = operand.strip()
    if field in ("id", "identifier", "name"):
        return lambda name: _holds(operator, name, operand)
    if field == "state":
        state = str(int(pb.PROJECT_STATE_ACTIVE))
        return lambda _: _holds(operator, state, operand)
    raise InvalidArgument("filters", f"{field!r} is no field of projects: use id, name or state")


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
