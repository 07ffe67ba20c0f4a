"""The client's methods for dead letters."""

from __future__ import annotations

from collections.abc import Collection

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions.client.arguments import expect
from etcd_actions.client.requests import Requests, request
from etcd_actions.dead_letters import DeadLetter, DeadLetterOperations


class DeadLetterRequests(Requests):
    """Lists, retries and deletes reports that the run service rejected for good."""

    def __init__(self, containment: Containment, operations: DeadLetterOperations) -> None:
        super().__init__(containment)
        self._dead_letters = operations

    @request
    async def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters of all namespaces at one revision, the oldest first.

        A value in their place that cannot be read is among them, with the reason.
        """
        return await self._dead_letters.list_dead_letters()

    @request
    async def retry_dead_letter(
        self, dead_letter: DeadLetter, *, wait: bool = False
    ) -> DeadLetter | None:
        """Have the leader report an action again: its record, then its status.

        The request is written to the dead letter, and stays one request however often it is
        made. Cancelled, it may have been made.

        Args:
            dead_letter: Which one; any revision of it.
            wait: Return when the request is answered, however long that takes.

        Returns:
            None if there is no such dead letter any more: the report was accepted, or another
            process deleted it. Else its present state; with ``wait`` that has the new rejection,
            or in ``note`` why nothing could be reported.

        Raises:
            FailedPrecondition: It cannot be read.
        """
        expect("dead_letter", dead_letter, DeadLetter)
        pending = await self._dead_letters.retry(dead_letter)
        if pending is None or not wait:
            return pending
        return await self._dead_letters.wait_answer(pending)

    @request
    async def wait_dead_letter(self, pending: DeadLetter) -> DeadLetter | None:
        """Return once a request for another report is answered, however long that takes.

        Args:
            pending: What :meth:`retry_dead_letter` returned.

        Returns:
            As :meth:`retry_dead_letter` with ``wait``.
        """
        expect("pending", pending, DeadLetter)
        return await self._dead_letters.wait_answer(pending)

    @request
    async def delete_dead_letter(self, dead_letter: DeadLetter) -> bool:
        """Delete a dead letter, and return whether it was deleted: one that changed stays.

        The run service is not sent the report. A terminal state that is not marked is reported
        again by the next leader, and may be rejected again.
        """
        expect("dead_letter", dead_letter, DeadLetter)
        return await self._dead_letters.delete(dead_letter)

    @request
    async def dead_letter_objects(self, dead_letters: Collection[DeadLetter]) -> dict[bytes, int]:
        """Return which objects of dead letters exist, with the ``create_revision`` of each."""
        await trio.lowlevel.checkpoint()
        return await self._dead_letters.objects(dead_letters)

    @request
    async def has_leader(self) -> bool:
        """Return whether a leader is elected below the prefix, which retries dead letters.

        A process that works without an election is not counted.
        """
        return await self._dead_letters.is_served()
