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

        A value of such a key that cannot be decoded is among them, with the reason.
        """
        return await self._dead_letters.list_dead_letters()

    @request
    async def retry_dead_letter(
        self, dead_letter: DeadLetter, *, wait: bool = False
    ) -> DeadLetter | None:
        """Have the leader report an action again: its record, then its status.

        The request is written to the dead letter. The same request again changes nothing. After a
        cancellation it may have been written.

        Args:
            dead_letter: The dead letter, in any of its revisions.
            wait: Whether to wait, without limit, until the request is answered.

        Returns:
            None if there is no such dead letter any more: the report was accepted, or another
            process deleted it. Else its present state; with ``wait`` that has the new rejection,
            or in ``note`` why nothing could be reported.

        Raises:
            FailedPrecondition: The dead letter cannot be decoded.
        """
        expect("dead_letter", dead_letter, DeadLetter)
        pending = await self._dead_letters.retry(dead_letter)
        if pending is None or not wait:
            return pending
        return await self._dead_letters.wait_answer(pending)

    @request
    async def wait_dead_letter(self, pending: DeadLetter) -> DeadLetter | None:
        """Wait, without limit, until a request for another report is answered.

        Args:
            pending: The result of :meth:`retry_dead_letter`.

        Returns:
            As :meth:`retry_dead_letter` with ``wait``.
        """
        expect("pending", pending, DeadLetter)
        return await self._dead_letters.wait_answer(pending)

    @request
    async def delete_dead_letter(self, dead_letter: DeadLetter) -> bool:
        """Delete a dead letter; the run service does not receive its report.

        The next leader reports a terminal state again that is not marked. The run service may
        reject it again.

        Returns:
            Whether it was deleted. A dead letter that changed since it was read is not.
        """
        expect("dead_letter", dead_letter, DeadLetter)
        return await self._dead_letters.delete(dead_letter)

    @request
    async def dead_letter_objects(self, dead_letters: Collection[DeadLetter]) -> dict[bytes, int]:
        """Return the keys of dead letters' objects that exist, with their ``create_revision``."""
        await trio.lowlevel.checkpoint()
        return await self._dead_letters.objects(dead_letters)

    @request
    async def has_leader(self) -> bool:
        """Return whether there is a leader, or an owner of a shard, which retries dead letters.

        A process that works without an election is not counted.
        """
        return await self._dead_letters.is_served()
