"""Dead letters by the service, with the same methods as those of the client on etcd."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec
import trio

from etcd_actions.cli.service_client import ServiceClient
from etcd_actions.dead_letters import DeadLetter
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb

# Seconds between two checks of a dead letter that is retried.
_CHECK_EVERY: Final = 0.5
# What is not possible by a service without these methods.
_CONSEQUENCE: Final = "dead letters are not shown or changed"


class ServiceDeadLetters:
    """Lists, retries and deletes dead letters.

    Args:
        service: The service; for Flyte's service the methods raise ConfigError.
    """

    def __init__(self, service: ServiceClient) -> None:
        self._service = service
        self._objects: dict[bytes, int] = {}
        self._has_leader = False

    async def dead_letters(self) -> list[DeadLetter]:
        """All dead letters, the oldest first."""
        response = await self._service.call_own_method(
            "ListDeadLetters", pb.ListDeadLettersRequest(), pb.ListDeadLettersResponse, _CONSEQUENCE
        )
        self._has_leader = response.has_leader
        found = []
        for each in response.dead_letters:
            dead_letter = _decoded(each)
            found.append(dead_letter)
            if each.object_create_revision:
                self._objects[dead_letter.key] = each.object_create_revision
        return found

    async def dead_letter_objects(self, dead_letters: Collection[DeadLetter]) -> dict[bytes, int]:
        """Keys of their objects that exist, with their ``create_revision``; of the last list."""
        await trio.lowlevel.checkpoint()
        return dict(self._objects)

    async def retry_dead_letter(self, dead_letter: DeadLetter) -> DeadLetter | None:
        """Request another report; None if there is no such dead letter any more."""
        response = await self._change(dead_letter, pb.ChangeDeadLetterRequest.RETRY)
        return _decoded(response.dead_letter) if response.HasField("dead_letter") else None

    async def wait_dead_letter(self, pending: DeadLetter) -> DeadLetter | None:
        """Wait until a request is answered; None if the report was accepted."""
        while True:
            response = await self._change(pending, pb.ChangeDeadLetterRequest.NONE)
            if not response.HasField("dead_letter"):
                return None
            now = _decoded(response.dead_letter)
            request = pending.request
            if request is None or now.request is None or now.request.id != request.id:
                return now
            await trio.sleep(_CHECK_EVERY)

    async def delete_dead_letter(self, dead_letter: DeadLetter) -> bool:
        """Delete a dead letter unless it changed."""
        return (await self._change(dead_letter, pb.ChangeDeadLetterRequest.DELETE)).deleted

    async def has_leader(self) -> bool:
        """Whether there is a leader; as of the last list."""
        await trio.lowlevel.checkpoint()
        return self._has_leader

    async def _change(
        self, dead_letter: DeadLetter, change: pb.ChangeDeadLetterRequest.Change
    ) -> pb.ChangeDeadLetterResponse:
        request = pb.ChangeDeadLetterRequest(
            project=dead_letter.action_id.project,
            key=dead_letter.dead_letter_key,
            revision=dead_letter.dead_letter_revision,
            change=change,
        )
        return await self._service.call_own_method(
            "ChangeDeadLetter", request, pb.ChangeDeadLetterResponse, _CONSEQUENCE
        )


def _decoded(message: pb.DeadLetter) -> DeadLetter:
    return msgspec.json.decode(message.json, type=DeadLetter)
