"""Flyte's RunService, without lists of runs: creates, reads, follows and ends runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier
from flyteidl2.core.literals_pb2 import Literal, Primitive, Scalar
from flyteidl2.core.types_pb2 import SimpleType
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions.actions.stored_action import describe
from etcd_actions.client import ActionsClient
from etcd_actions.errors import DecodeError, FailedPrecondition, InvalidArgument, NotFound
from etcd_actions.images import ImageBuilds
from etcd_actions.model import ROOT_ACTION, ActionId, canonical_name
from etcd_actions.model import flyte as conversions
from etcd_actions.runs.creation import FindTask, RunCreator, RunData
from etcd_actions.runs.filters import compile_filters
from etcd_actions.runs.reading import Found, RunReader
from etcd_actions.server.caller import CALLER
from etcd_actions.server.front import action_views
from etcd_actions.server.front.action_lists import FIELDS, ActionLists
from etcd_actions.server.front.action_tree import ActionTree, SharedNodes
from etcd_actions.server.front.attempt_messages import attempts_of
from etcd_actions.server.front.run_streams import Follower
from etcd_actions.server.required import require, require_names
from etcd_actions.server.streams import Streams

if TYPE_CHECKING:
    from google.protobuf.message import Message


class RunService:
    """Serves the SDK's calls about runs.

    The organisation in an identifier is ignored, and responses have the one of the request: the SDK
    derives it from the host name of this service.

    Args:
        client: Changes and reads actions.
        streams: The open streams.
        keepalive: Seconds of silence after which a stream sends the last state once more.
        data: Stores the data of runs; None refuses runs that need it.
        find_task: Finds deployed tasks; None refuses runs of these.
        builds: Builds images; None refuses runs that build one.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["RunService"]

    def __init__(
        self,
        client: ActionsClient,
        streams: Streams,
        keepalive: float,
        *,
        data: RunData | None = None,
        find_task: FindTask | None = None,
        builds: ImageBuilds | None = None,
    ) -> None:
        self._client = client
        self._reader = RunReader(client)
        self._creator = RunCreator(client, data, find_task, builds=builds)
        self._lists = ActionLists(self._reader)
        self._nodes = SharedNodes()
        self._follower = Follower(client, self._reader, streams, keepalive)

    async def create_run(self, request: pb.CreateRunRequest) -> pb.CreateRunResponse:
        """Create a run; the same request for the same name gets the same response."""
        created = await self._creator.create(request, _subject())
        if request.WhichOneof("id") == "run_id":
            org = request.run_id.org
        else:
            org = request.project_id.organization
        record, action = created.record, created.action
        if record is not None:
            run = ActionId(record.project, record.domain, record.name, ROOT_ACTION)
        else:
            assert action is not None
            run = action_views.action_id_of(action)
        return pb.CreateRunResponse(run=action_views.run_message(action, record, run, org))

    async def get_run_details(self, request: pb.GetRunDetailsRequest) -> pb.GetRunDetailsResponse:
        """The details of a run; of an expired one by its record."""
        found = await self._reader.run(_run(request, request.run_id))
        return pb.GetRunDetailsResponse(details=action_views.run_details(found, request.run_id.org))

    async def watch_run_details(
        self, request: pb.WatchRunDetailsRequest
    ) -> AsyncIterator[pb.WatchRunDetailsResponse]:
        """The details of a run in each state, up to its end."""
        org = request.run_id.org
        async with aclosing(self._follower.action(_run(request, request.run_id))) as states:
            async for found in states:
                yield pb.WatchRunDetailsResponse(details=action_views.run_details(found, org))

    async def get_action_details(
        self, request: pb.GetActionDetailsRequest
    ) -> pb.GetActionDetailsResponse:
        """The details of an action."""
        found = await self._reader.action(_action(request, request.action_id))
        org = request.action_id.run.org
        return pb.GetActionDetailsResponse(details=action_views.action_details(found, org))

    async def watch_action_details(
        self, request: pb.WatchActionDetailsRequest
    ) -> AsyncIterator[pb.WatchActionDetailsResponse]:
        """The details of an action in each state, up to its end."""
        org = request.action_id.run.org
        action_id = _action(request, request.action_id)
        async with aclosing(self._follower.action(action_id)) as states:
            async for found in states:
                yield pb.WatchActionDetailsResponse(details=action_views.action_details(found, org))

    async def list_actions(self, request: pb.ListActionsRequest) -> pb.ListActionsResponse:
        """The actions of a run, page by page."""
        run, org = _run(request, request.run_id), request.run_id.org
        page = await self._lists.page(run, request.request)
        return pb.ListActionsResponse(
            actions=[
                action_views.action_message(
                    action, page.record, action_views.action_id_of(action), org
                )
                for action in page.actions
            ],
            token=page.token,
        )

    async def watch_actions(
        self, request: pb.WatchActionsRequest
    ) -> AsyncIterator[pb.WatchActionsResponse]:
        """All actions of a run, then each that has changed.

        Actions that do not meet the filter are sent, too, and marked as such: so a client detects
        that an action no longer meets it.
        """
        run = _run(request, request.run_id)
        matches = compile_filters(request.filter, FIELDS, "filter")
        tree = ActionTree(request.run_id.org, matches, self._nodes)
        async with aclosing(self._follower.run(run, tree)) as changes:
            async for actions in changes:
                yield pb.WatchActionsResponse(enriched_actions=actions)

    async def abort_run(self, request: pb.AbortRunRequest) -> pb.AbortRunResponse:
        """End a run; one that has ended, or has expired, does not change."""
        await self._abort(_run(request, request.run_id), request.reason)
        return pb.AbortRunResponse()

    async def abort_action(self, request: pb.AbortActionRequest) -> pb.AbortActionResponse:
        """End an action and all below it."""
        await self._abort(_action(request, request.action_id), request.reason)
        return pb.AbortActionResponse()

    async def _abort(self, action_id: ActionId, reason: str) -> None:
        found = await self._reader.action(action_id)
        if found.action is not None:
            await self._client.abort_action(
                found.action_id, reason, _subject(), incarnation=found.action.incarnation
            )

    async def signal_event(self, request: pb.SignalEventRequest) -> pb.SignalEventResponse:
        """Deliver the value of a condition."""
        action_id = _action(request, request.action_id)
        found = await self._reader.action(action_id)
        if found.action is None or not found.action.spec.is_condition:
            raise FailedPrecondition(f"{describe(action_id)} is not a condition")
        parent = found.action.parent
        named = request.parent_action_name
        if named and canonical_name(action_id.run, named) != canonical_name(action_id.run, parent):
            raise InvalidArgument(
                "parent_action_name", f"the parent of {describe(action_id)} is {parent}"
            )
        await self._client.signal(action_id, _literal(request, found), _subject())
        return pb.SignalEventResponse()

    async def get_action_data_uris(
        self, request: pb.GetActionDataURIsRequest
    ) -> pb.GetActionDataURIsResponse:
        """The URIs of inputs and outputs; outputs only after success."""
        found = await self._reader.action(_action(request, request.action_id))
        namespace = self._client.namespace_of(found.action_id)
        inputs, outputs = action_views.data_uris(found, namespace)
        return pb.GetActionDataURIsResponse(inputs_uri=inputs, outputs_uri=outputs)

    async def get_action_log_context(
        self, request: pb.GetActionLogContextRequest
    ) -> pb.GetActionLogContextResponse:
        """The time of an attempt; there are no pods to name."""
        found = await self._reader.action(_action(request, request.action_id))
        attempts = attempts_of(found.action, found.history)
        number = request.attempt or len(attempts)
        for attempt in attempts:
            if attempt.attempt == number:
                response = pb.GetActionLogContextResponse(start_time=attempt.start_time)
                if attempt.HasField("end_time"):
                    response.end_time.CopyFrom(attempt.end_time)
                return response
        raise NotFound(f"{describe(found.action_id)} has no attempt {number}")


def _subject() -> str:
    return CALLER.get().subject


def _run(request: Message, run: RunIdentifier) -> ActionId:
    """The root of the run that a request names."""
    require(request, "run_id")
    return _checked(run, ROOT_ACTION, "run_id")


def _action(request: Message, action: ActionIdentifier) -> ActionId:
    """The action that a request names."""
    if not request.HasField("action_id") or not action.HasField("run"):
        raise InvalidArgument("action_id.run", "it is missing")
    if not action.name or "/" in action.name:
        raise InvalidArgument(
            "action_id.name", f"{action.name[:80]!r} is not a valid name of an action"
        )
    return _checked(action.run, action.name, "action_id.run")


def _checked(run: RunIdentifier, name: str, field: str) -> ActionId:
    require_names(run, "project", "domain", "name", where=field)
    return ActionId(run.project, run.domain, run.name, name)


def _literal(request: pb.SignalEventRequest, found: Found) -> Literal:
    """The value of a signal; an integer counts as a float if the condition waits for one."""
    payload, kind = request.payload, request.payload.WhichOneof("value")
    if kind is None:
        raise InvalidArgument("payload", "it is empty: give the value")
    primitive = Primitive()
    if kind == "bool_value":
        primitive.boolean = payload.bool_value
    elif kind == "string_value":
        primitive.string_value = payload.string_value
    elif kind == "float_value":
        primitive.float_value = payload.float_value
    elif _waits_for(found) == SimpleType.FLOAT:
        primitive.float_value = float(payload.int_value)
    else:
        primitive.integer = payload.int_value
    return Literal(scalar=Scalar(primitive=primitive))


def _waits_for(found: Found) -> int | None:
    try:
        declared = None if found.action is None else conversions.condition_action(found.action)
    except DecodeError:
        return None
    return None if declared is None else declared.type.simple
