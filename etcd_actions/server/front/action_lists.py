"""Lists of a run's actions: filtered, sorted, page by page."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from typing import Final, NamedTuple

import msgspec
import trio
from flyteidl2.common.list_pb2 import ListRequest
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.workflow.run_definition_pb2 import ActionType

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.model import (
    ACTION_TYPE_CONDITION,
    ACTION_TYPE_TASK,
    ACTION_TYPE_TRACE,
    ActionId,
    Phase,
    RunId,
    canonical_name,
)
from etcd_actions.runs.attempts import time_or_none
from etcd_actions.runs.filters import Field, Fields, Kind, microseconds
from etcd_actions.runs.list_pages import Query, parse, take_sorted
from etcd_actions.runs.reading import RunReader
from etcd_actions.runs.run_record import RunRecord
from etcd_actions.server.front.action_views import action_id_of

_DEFAULT: Final = "created_at"
_PORTION: Final = 1_000
"""Rows that are made between two cancellation points."""
_MOST_CACHED: Final = 50_000
"""Rows of all lists that are cached between two of their pages."""
_CACHED_FOR: Final = 30.0
"""Seconds."""
_TYPES: Final = {ACTION_TYPE_TASK: 1, ACTION_TYPE_TRACE: 2, ACTION_TYPE_CONDITION: 3}


class Row(msgspec.Struct, frozen=True, gc=False):
    """The fields of an action for filters and sorting. Times are microseconds since 1970."""

    key: bytes
    name: str
    parent: str
    phase: int
    action_type: int
    task_type: str
    short_name: str
    group: str
    attempts: int
    created: int | None
    updated: int | None
    ended: int | None


def row_of(action: StoredAction) -> Row:
    """The row of an action."""
    spec, history = action.spec, action.status.phase_history
    created = _microseconds(time_or_none(action.metadata.creation_timestamp))
    state = action.state()
    ended = _microseconds(time_or_none(action.end_time)) if state.phase.is_terminal else None
    updated = _microseconds(time_or_none(history[-1].occurred_at)) if history else None
    return Row(
        key=action.key,
        name=action_id_of(action).name,
        parent=canonical_name(spec.run_name, spec.parent_action_name),
        phase=(state.phase or Phase.QUEUED).value,
        action_type=_TYPES.get(spec.kind, 0),
        task_type=spec.task_type,
        short_name=spec.short_name,
        group=spec.group,
        attempts=max(state.attempts, 1),
        created=created,
        updated=updated or ended or created,
        ended=ended,
    )


def _microseconds(time: datetime | None) -> int | None:
    return None if time is None else microseconds(time)


FIELDS: Final[Fields[Row]] = Fields(
    {
        "name": Field(lambda row: row.name),
        "parent_name": Field(lambda row: row.parent),
        "phase": Field(
            lambda row: row.phase,
            Kind.CHOICE,
            {name.removeprefix("ACTION_PHASE_"): number for name, number in ActionPhase.items()},
            "ACTION_PHASE_",
        ),
        "action_type": Field(
            lambda row: row.action_type,
            Kind.CHOICE,
            {name.removeprefix("ACTION_TYPE_"): number for name, number in ActionType.items()},
            "ACTION_TYPE_",
        ),
        "task_type": Field(lambda row: row.task_type),
        "short_name": Field(lambda row: row.short_name),
        "group": Field(lambda row: row.group),
        "attempts": Field(lambda row: row.attempts, Kind.NUMBER),
        "created_at": Field(lambda row: row.created, Kind.TIME),
        "updated_at": Field(lambda row: row.updated, Kind.TIME),
        "ended_at": Field(lambda row: row.ended, Kind.TIME),
    }
)
"""The fields by which clients may filter and sort actions."""


class ActionPage(NamedTuple):
    """Some actions, the record of their run, and the token of the next page."""

    actions: list[StoredAction]
    record: RunRecord | None
    token: str


class _CachedList(NamedTuple):
    rows: list[Row]
    at: float


class ActionLists:
    """Pages of actions.

    The first page of a list reads the run. The rows are cached for some time, so that further
    pages read only their own actions, in their present state.
    """

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader
        self._cached: OrderedDict[RunId, _CachedList] = OrderedDict()

    async def page(self, run: ActionId, request: ListRequest) -> ActionPage:
        """Return one page.

        Raises:
            InvalidArgument: A part of the request is unusable.
            NotFound: There is no such run.
            EtcdError: etcd could not be read.
        """
        query = parse(
            request,
            FIELDS,
            identity=lambda row: row.key.decode(errors="backslashreplace"),
            default=_DEFAULT,
            scope=f"{run.project}/{run.domain}/{run.run}".encode(),
        )
        cached = self._cached.get(run.run_id)
        if request.token and cached is not None and trio.current_time() - cached.at < _CACHED_FOR:
            return await self._next_page(run, query, cached.rows)
        listing = await self._reader.actions(run)
        by_key = {action.key: action for action in listing.actions}
        rows = []
        for action in listing.actions:
            rows.append(row_of(action))
            if len(rows) % _PORTION == 0:
                await trio.lowlevel.checkpoint()
        found = await take_sorted(query, _portions(rows))
        if found.token:
            self._cache(run, rows)
        return ActionPage([by_key[row.key] for row in found.rows], listing.record, found.token)

    async def _next_page(self, run: ActionId, query: Query[Row], rows: list[Row]) -> ActionPage:
        found = await take_sorted(query, _portions(rows))
        present = await self._reader.present([row.key for row in found.rows], run)
        matching = query.select([row_of(action) for action in present])
        by_key = {action.key: action for action in present}
        if not found.token:
            self._cached.pop(run.run_id, None)
        record = await self._reader.record(run)
        return ActionPage([by_key[row.key] for row in matching], record, found.token)

    def _cache(self, run: ActionId, rows: list[Row]) -> None:
        self._cached[run.run_id] = _CachedList(rows, trio.current_time())
        self._cached.move_to_end(run.run_id)
        while self._cached and sum(len(each.rows) for each in self._cached.values()) > _MOST_CACHED:
            self._cached.popitem(last=False)


def _portions(rows: list[Row]) -> list[list[Row]]:
    return [rows[at : at + _PORTION] for at in range(0, len(rows), _PORTION)]
