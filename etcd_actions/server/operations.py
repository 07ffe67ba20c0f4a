"""Methods of our own next to Flyte's, and fields of our own in its empty responses."""

from __future__ import annotations

import msgspec
from flyteidl2.actions import actions_service_pb2 as flyte_pb

from etcd_actions._internal.tracing import span
from etcd_actions.actions.abort import AbortResult
from etcd_actions.actions.status import ActionStatus
from etcd_actions.client import ActionsClient
from etcd_actions.dead_letters import DeadLetter
from etcd_actions.errors import InvalidArgument
from etcd_actions.model import ActionId, ErrorState, Phase
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb
from etcd_actions.server.caller import CALLER
from etcd_actions.server.required import require


class StatusOperations:
    """Reports a phase with a message and an error, for which Flyte's request has no field.

    Args:
        client: Changes the actions.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["Operations"]

    def __init__(self, client: ActionsClient) -> None:
        self._client = client

    async def put_status(self, request: pb.PutStatusRequest) -> pb.PutStatusResponse:
        """Report the phase of an action, with a message and an error."""
        require(request, "action")
        named = request.action
        try:
            phase = Phase(request.phase)
        except ValueError:
            raise InvalidArgument("phase", f"{request.phase} is not a valid phase") from None
        error = None
        if request.HasField("error"):
            error = ErrorState(request.error.code, request.error.kind, request.error.message)
        attempt = request.attempt
        with span("status", {"action": named.name}):
            await self._client.put_status(
                ActionId(named.project, named.domain, named.run, named.name, named.org),
                attempt,
                ActionStatus(phase=phase, attempts=attempt),
                error=error,
                message=request.message,
            )
        return pb.PutStatusResponse()


class OperatedDeadLetters:
    """Lists, retries and deletes dead letters.

    Args:
        client: Reads and changes them.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["Operations"]

    def __init__(self, client: ActionsClient) -> None:
        self._client = client

    async def list_dead_letters(
        self, request: pb.ListDeadLettersRequest
    ) -> pb.ListDeadLettersResponse:
        """The dead letters of projects that the client may use."""
        found = [each for each in await self._client.dead_letters() if _may_use(each)]
        objects = await self._client.dead_letter_objects(found)
        return pb.ListDeadLettersResponse(
            dead_letters=[_encoded(each, objects.get(each.key, 0)) for each in found],
            has_leader=await self._client.has_leader(),
        )

    async def change_dead_letter(
        self, request: pb.ChangeDeadLetterRequest
    ) -> pb.ChangeDeadLetterResponse:
        """Request another report, or delete the dead letter; NONE returns its present state."""
        if request.change not in pb.ChangeDeadLetterRequest.Change.values():
            raise InvalidArgument("change", f"{request.change} is neither NONE, RETRY nor DELETE")
        found = next(
            (
                each
                for each in await self._client.dead_letters()
                if each.dead_letter_key == request.key
                and each.action_id.project == request.project
                and _may_use(each)
            ),
            None,
        )
        if found is None:
            return pb.ChangeDeadLetterResponse()
        if request.change == pb.ChangeDeadLetterRequest.DELETE:
            seen = msgspec.structs.replace(found, dead_letter_revision=request.revision)
            if await self._client.delete_dead_letter(seen):
                return pb.ChangeDeadLetterResponse(deleted=True)
        elif request.change == pb.ChangeDeadLetterRequest.RETRY:
            found = await self._client.retry_dead_letter(found)
        if found is None:
            return pb.ChangeDeadLetterResponse()
        return pb.ChangeDeadLetterResponse(dead_letter=_encoded(found, 0))


def _may_use(dead_letter: DeadLetter) -> bool:
    return CALLER.get().may_use(dead_letter.action_id.project)


def _encoded(dead_letter: DeadLetter, created: int) -> pb.DeadLetter:
    return pb.DeadLetter(json=msgspec.json.encode(dead_letter), object_create_revision=created)


def enqueue_response(*, created: bool) -> flyte_pb.EnqueueResponse:
    """Flyte's response, with whether the call created the action."""
    result = pb.EnqueueOutcome.CREATED if created else pb.EnqueueOutcome.EXISTED
    return flyte_pb.EnqueueResponse.FromString(pb.EnqueueOutcome(result=result).SerializeToString())


def abort_response(done: AbortResult) -> flyte_pb.AbortResponse:
    """Flyte's response, with the names of the actions that the call ended."""
    ended = 0 if done.ended is None else done.ended.value
    outcome = pb.AbortOutcome(known=True, aborted=done.aborted, ended=ended)
    return flyte_pb.AbortResponse.FromString(outcome.SerializeToString())
