"""Writes phases of actions to etcd, each with retries until etcd has accepted it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions._internal.tracing import span
from etcd_actions.actions.status import ActionStatus
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.errors import EtcdError, InvalidArgument, RequestTooLarge
from etcd_actions.model import ErrorState, Phase
from etcd_actions.model.earlier_attempts import shortened
from etcd_actions.storage.claims import Claim

_BACKOFF: Final = Backoff(initial=0.2, cap=5.0)
# Characters: an object has to stay below etcd's limit of a request.
_MOST_OF_A_MESSAGE: Final = 32 * 1024
_MOST_OF_A_CODE: Final = 256
_LEAST_OF_A_MESSAGE: Final = 200

_log = structlog.get_logger(__name__)


class Reports:
    """Reports phases.

    Args:
        client: Writes them.
        note: Called with each action as it was written.

    Attributes:
        ended: Number of actions that were ended, by phase.
    """

    def __init__(self, client: ActionsClient, note: Callable[[StoredAction], None]) -> None:
        self._client = client
        self._note = note
        self.ended: Counter[str] = Counter()

    async def report(
        self,
        action: StoredAction,
        attempt: int,
        phase: Phase,
        claim: Claim | None,
        error: ErrorState | None = None,
        *,
        cache_status: int | None = None,
        error_before: ErrorState | None = None,
    ) -> StoredAction:
        """Report a phase of this incarnation of an action; returns the action as it was written.

        While etcd is unavailable the report is retried. Cancelled, it may have been written.

        Args:
            action: The action, as it was read or written last.
            attempt: The attempt, from 1 on.
            phase: The phase.
            claim: The claim that has to be valid; None for a condition.
            error: The error of a failure.
            cache_status: A number of ``CatalogCacheStatus``; None keeps the action's.
            error_before: The error of the last attempt, omitted if the object has no space for it.

        Raises:
            ActionError: The action is terminal, deleted, or another executor's.
            RequestTooLarge: The object has no space for the report.
        """
        if cache_status is None:
            cache_status = action.status.cache_status
        status = ActionStatus(phase, cache_status=cache_status)
        error = None if error is None else _storable(error, _MOST_OF_A_MESSAGE)
        reported: StoredAction | None = None
        about = {"action": action.metadata.name, "phase": phase.name}
        unreported = seldom(_log, "not_reported", action=action.metadata.name)
        while reported is None:
            try:
                async for tried in retrying(
                    _BACKOFF, on=EtcdError, unless=RequestTooLarge, report=unreported
                ):
                    with tried, span("status", about):
                        reported = await self._client.put_status(
                            action.action_id,
                            attempt,
                            status,
                            error=error,
                            error_before=error_before,
                            claim=claim,
                            seen=action,
                        )
            except InvalidArgument:
                if error_before is None:
                    raise
                error_before = None
            except RequestTooLarge:
                if error is None or len(error.message) <= _LEAST_OF_A_MESSAGE:
                    raise
                error = _storable(error, _LEAST_OF_A_MESSAGE)
        self._note(reported)
        if phase.is_terminal:
            self.ended[phase.name] += 1
            _log.info(
                "action_ended",
                action=action.metadata.name,
                attempt=attempt,
                phase=phase.name,
                error=error.code if error else None,
            )
        return reported


def _storable(error: ErrorState, most: int) -> ErrorState:
    """An error with a message of at most so many characters, its beginning and its end."""
    return ErrorState(
        code=shortened(error.code, _MOST_OF_A_CODE),
        kind=error.kind,
        message=shortened(error.message, most),
    )
