"""Reads for the commands that show runs, by the methods of Flyte's RunService.

One :class:`Reader` serves them with either source: it calls the service, or the same methods in
this process, on etcd. So both have equal results.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Final

from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier
from flyteidl2.common.list_pb2 import ListRequest, Sort
from flyteidl2.workflow import run_definition_pb2 as runs_pb
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions.cli.calls import RUNS, Calls
from etcd_actions.cli.names import Name, NameLookup
from etcd_actions.model import flyte as conversions

ACTIONS_AT_ONCE: Final = 200
"""The most actions in one message of all actions of a run."""

_PAGE: Final = 1_000


class Reader:
    """Reads runs and actions; made by :func:`~etcd_actions.cli.backends.open_reader`.

    The errors of its methods are those of :mod:`etcd_actions.errors`. A stream ends without an
    error after a terminal state, and when the service ends: open it again.

    Attributes:
        calls: Calls the methods that have no function here.
        names: Looks up names.
    """

    def __init__(self, calls: Calls, names: NameLookup) -> None:
        self.calls = calls
        self.names = names

    async def runs(self, request: pb.ListRunsRequest) -> pb.ListRunsResponse:
        """A page of runs."""
        return await self.calls.unary(RUNS, "ListRuns", request, pb.ListRunsResponse)

    async def each_run(self, direction: Sort.Direction) -> AsyncGenerator[runs_pb.Run]:
        """All runs in the order of their creation, page by page."""
        request = pb.ListRunsRequest(org="")
        request.request.limit = _PAGE
        request.request.sort_by_fields.append(Sort(key="created_at", direction=direction))
        while True:
            response = await self.runs(request)
            for run in response.runs:
                yield run
            if not response.token:
                return
            request.request.token = response.token

    def watch_runs(
        self, request: pb.WatchRunsRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[pb.WatchRunsResponse]]:
        """The present runs, then each that changes or is new."""
        return self.calls.stream(RUNS, "WatchRuns", request, pb.WatchRunsResponse)

    async def run(self, name: Name) -> runs_pb.RunDetails:
        """A run."""
        request = pb.GetRunDetailsRequest(run_id=run_identifier(name))
        kind = pb.GetRunDetailsResponse
        return (await self.calls.unary(RUNS, "GetRunDetails", request, kind)).details

    async def action(self, name: Name) -> runs_pb.ActionDetails:
        """An action, with its attempts."""
        request = pb.GetActionDetailsRequest(action_id=action_identifier(name))
        kind = pb.GetActionDetailsResponse
        return (await self.calls.unary(RUNS, "GetActionDetails", request, kind)).details

    @asynccontextmanager
    async def watch_action(self, name: Name) -> AsyncIterator[AsyncIterator[runs_pb.ActionDetails]]:
        """The present state of an action, then each newer one, up to the terminal one."""
        request = pb.WatchActionDetailsRequest(action_id=action_identifier(name))
        kind = pb.WatchActionDetailsResponse
        async with (
            self.calls.stream(RUNS, "WatchActionDetails", request, kind) as responses,
            aclosing(response.details async for response in responses) as states,
        ):
            yield states

    async def actions(
        self, run: Name, request: ListRequest | None = None
    ) -> AsyncIterator[list[runs_pb.Action]]:
        """The actions of a run, page by page.

        Args:
            run: The run.
            request: Filters and sort keys.
        """
        page = ListRequest(limit=_PAGE)
        if request is not None:
            page.MergeFrom(request)
        while True:
            response = await self.page_of_actions(run, page)
            yield list(response.actions)
            if not response.token:
                return
            page.token = response.token

    async def page_of_actions(self, run: Name, page: ListRequest) -> pb.ListActionsResponse:
        """A page of the actions of a run."""
        request = pb.ListActionsRequest(run_id=run_identifier(run), request=page)
        return await self.calls.unary(RUNS, "ListActions", request, pb.ListActionsResponse)

    @asynccontextmanager
    async def watch_actions(
        self, run: Name
    ) -> AsyncIterator[AsyncIterator[list[runs_pb.EnrichedAction]]]:
        """All actions of a run, then the changed ones.

        All actions come in lists of :data:`ACTIONS_AT_ONCE`, the root first, and a last one that
        has fewer, maybe none. Later an empty list is a keep-alive.
        """
        request = pb.WatchActionsRequest(run_id=run_identifier(run))
        async with self.calls.stream(
            RUNS, "WatchActions", request, pb.WatchActionsResponse
        ) as responses:
            changes = (list(response.enriched_actions) async for response in responses)
            async with aclosing(changes):
                yield changes

    async def data_uris(self, name: Name) -> pb.GetActionDataURIsResponse:
        """The URIs of an action's inputs and outputs; empty for none."""
        request = pb.GetActionDataURIsRequest(action_id=action_identifier(name))
        kind = pb.GetActionDataURIsResponse
        return await self.calls.unary(RUNS, "GetActionDataURIs", request, kind)


def action_identifier(name: Name) -> ActionIdentifier:
    """Flyte's identifier of an action; of a run's root."""
    return conversions.action_identifier(name.action_id)


def run_identifier(name: Name) -> RunIdentifier:
    """Flyte's identifier of a run."""
    return action_identifier(name).run
