"""Reports on actions: made until etcd has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions.actions.status import ActionStatus
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.errors import EtcdError, InvalidArgument, RequestTooLarge
from etcd_actions.model import ErrorState, Phase
from etcd_actions.model.earlier_attempts import shortened
from etcd_actions.storage.claims import Claim

_BACKOFF = Backoff(initial=0.2, cap=5.0)
# Characters. An object has to stay below what etcd takes.
_MOST_OF_A_MESSAGE: Final = 32 * 1024
_MOST_OF_A_CODE: Final = 256
_LEAST_OF_A_MESSAGE: Final = 200

_log = structlog.get_logger(__name__)


class Reports:
    """Tells etcd what becomes of actions.

    Args:
        client: How it is told.
        note: Called with each action as etcd has it.
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
        """Report until etcd has it; a report whose answer was lost may be made again.

        It is about this object: one that was made under its name since is left alone. Without a
        ``cache_status`` that of the action stays. Why the attempt before failed is left out where
        the object has no room for it.

        Raises:
            ActionError: The action is over, gone, or somebody else's.
            RequestTooLarge: The object has no room for it.
        """
        failures = 0
        if cache_status is None:
            cache_status = action.status.cache_status
        status = ActionStatus(phase, cache_status=cache_status)
        error = None if error is None else storable(error, _MOST_OF_A_MESSAGE)
        reported: StoredAction | None = None
        while reported is None:
            try:
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
                error = storable(error, _LEAST_OF_A_MESSAGE)
            except EtcdError as trouble:
                failures += 1
                if failures & (failures - 1) == 0:
                    _log.warning("not_reported", action=action.metadata.name, error=str(trouble))
                await trio.sleep(_BACKOFF.delay(failures))
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


def storable(error: ErrorState, most: int) -> ErrorState:
    """An error that can be stored: of bounded length, and text.

    Args:
        error: What a task or the system said.
        most: How many characters of its message are kept: the beginning, and the end.
    """
    return ErrorState(
        code=shortened(error.code, _MOST_OF_A_CODE),
        kind=error.kind,
        message=shortened(error.message, most),
    )
