"""Looks at the objects of actions that wait: says so, and learns for how long they may."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from etcd_actions._internal.clock import Clock
from etcd_actions.actions.status import ActionStatus
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.errors import (
    ActionError,
    DecodeError,
    EtcdError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from etcd_actions.executor.attempts.attempt_limits import Limits
from etcd_actions.executor.scheduling.board import Board
from etcd_actions.executor.scheduling.failures import DELAYED, PARKED, PATIENCE, Failures
from etcd_actions.executor.scheduling.schedule import Due, Schedule
from etcd_actions.executor.waiting_conditions import Conditions
from etcd_actions.model import ActionUpdate, Phase

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Host:
    """What a visitor needs of the executor.

    Attributes:
        note: Called with an action as it was read.
        limits: The limits of an action that has a name.
        needs_slot: Whether such an action cannot end without one.
        is_attended: Whether somebody attends to an action already.
        ring: Called when an alarm was set.
    """

    note: Callable[[StoredAction], None]
    limits: Callable[[StoredAction, str], Limits]
    needs_slot: Callable[[StoredAction, str], Awaitable[bool]]
    is_attended: Callable[[str], bool]
    ring: Callable[[], None]


class Visits:
    """The visits that are to be made.

    Args:
        client: How objects are read.
        board: What is known of the actions.
        schedule: Where alarms are set.
        failures: How often visits failed.
        conditions: What serves conditions.
        clock: What times are on.
        host: See :class:`Host`.
    """

    def __init__(
        self,
        client: ActionsClient,
        board: Board,
        schedule: Schedule,
        failures: Failures,
        conditions: Conditions,
        clock: Clock,
        host: Host,
    ) -> None:
        self._client = client
        self._board = board
        self._schedule = schedule
        self._failures = failures
        self._conditions = conditions
        self._clock = clock
        self._host = host
        self._send, self._names = trio.open_memory_channel[str](math.inf)

    def add(self, name: str) -> None:
        """An action is to be visited."""
        self._send.send_nowait(name)

    async def work(self) -> None:
        """Make visits, one after the other, each inside a boundary; several may do so."""
        async for name in self._names:
            known = self._board.get(name)
            if known is None or self._host.is_attended(name):
                continue
            with self._client.containment.unit("action", name, parks=True) as unit:
                if known.is_condition:
                    await self._serve_condition(name, known.update)
                else:
                    await self._queue(name, known.update)
            if self._board.get(name) is None:
                # It has ended meanwhile: nobody else will say that it is not parked.
                self._client.containment.forget("action", name)
            elif unit.failed:
                self._alarm(name, self._failures.again(name, PARKED))

    async def _queue(self, name: str, update: ActionUpdate) -> None:
        """Say of an action that it waits for a slot, and learn for how long it may."""
        try:
            action = await self._client.get_task_action(update.action_id)
            if action.phase is Phase.UNSPECIFIED:
                action = await self._client.put_status(
                    update.action_id,
                    max(action.status.attempts, 1),
                    ActionStatus(Phase.QUEUED),
                    seen=action,
                )
            self._host.note(action)
            ends = self._host.limits(action, name).waiting_ends()
            if not await self._host.needs_slot(action, name):
                ends = self._clock.monotonic()
        except (InvalidArgument, DecodeError) as error:
            # It needs no slot to be told so.
            _log.debug("not_queued", action=name, reason=str(error))
            ends = self._clock.monotonic()
        except ActionError as error:
            # It is over: its start says so.
            _log.debug("not_queued", action=name, reason=str(error))
            return
        except EtcdError as error:
            _log.debug("not_queued", action=name, reason=str(error))
            self._alarm(name, self._failures.again(name, DELAYED))
            return
        if not self._host.is_attended(name) and self._board.get(name) is not None:
            self._failures.drop(name)
            self._schedule.at(Due.EXPIRED, name, ends)
            self._host.ring()

    async def _serve_condition(self, name: str, update: ActionUpdate) -> None:
        try:
            await self._conditions.serve(update.action_id)
        except (NotFound, FailedPrecondition) as error:
            # It was signalled, aborted or deleted meanwhile: news of it is to come.
            _log.debug("condition_left", action=name, reason=str(error))
            if self._failures.count(name) >= PATIENCE:
                raise
            self._alarm(name, self._failures.again(name, DELAYED))
        except EtcdError as error:
            _log.debug("condition_delayed", action=name, error=str(error))
            self._alarm(name, self._failures.again(name, DELAYED))
        else:
            self._failures.drop(name)
            self._alarm(name, None)

    def _alarm(self, name: str, when: float | None) -> None:
        if self._board.get(name) is not None:
            self._schedule.at(Due.VISIT, name, when)
            self._host.ring()
