"""Lists of runs: a page of them, and a stream of them with each change.

Both read the index in memory, and neither an action nor etcd.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from connectrpc.code import Code
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions.errors import InvalidArgument
from etcd_actions.model import RunId
from etcd_actions.runs.list_pages import Query, parse, take_in_order, take_sorted
from etcd_actions.runs.run_entry import RunEntry
from etcd_actions.runs.run_fields import CREATED, PHASES, RUN_FIELDS, phase_of
from etcd_actions.runs.run_index import OfProject, OfTask, Place, RunIndex, RunScope
from etcd_actions.server.caller import CALLER
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.front.run_messages import RunMessages
from etcd_actions.server.required import require

if TYPE_CHECKING:
    from flyteidl2.common.identifier_pb2 import ProjectIdentifier
    from flyteidl2.task.task_definition_pb2 import TaskIdentifier, TaskName

    from etcd_actions.actions.stored_action import StoredAction
    from etcd_actions.client import ActionsClient
    from etcd_actions.model import Keyspace
    from etcd_actions.server.streams import Streams

FindPaused = Callable[[Iterable[RunEntry]], Awaitable[Collection[bytes]]]
"""Returns the record keys of paused runs, in which a condition waits for a signal.

It gets the runs to examine, and may also return others.
"""

_SNAPSHOT: Final = 200
"""Runs of one message of a snapshot."""

_READ_AT_A_TIME: Final = 8
"""Runs whose objects are read at a time."""

_PAUSED: Final = PHASES["PAUSED"]


class RunLists:
    """ListRuns and WatchRuns.

    Args:
        index: All runs.
        streams: The open streams.
        keepalive: Seconds of silence after which a stream is sent a message without runs.
        paused: See :data:`FindPaused`; with None only a run whose root is in PAUSED is paused.
        messages: Encodes the messages; all ports share it.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["RunService"]

    def __init__(
        self,
        index: RunIndex,
        streams: Streams,
        keepalive: float,
        paused: FindPaused | None = None,
        messages: RunMessages | None = None,
    ) -> None:
        self._index = index
        self._streams = streams
        self._keepalive = keepalive
        self._paused = paused or _none_paused
        self._messages = messages or RunMessages()

    async def list_runs(self, request: pb.ListRunsRequest) -> pb.ListRunsResponse:
        """A page of the runs of a scope, the newest first by default."""
        runs, version = _scope(request)
        paused = request.paused_actions_only
        query = parse(
            request.request,
            RUN_FIELDS,
            identity=_identity,
            default=CREATED,
            scope=msgspec.json.encode([runs, version, paused]),
        )
        await self._index.ready()
        if request.WhichOneof("scope_by") == "trigger_name":
            # Triggers are not served here, so none has created a run.
            return pb.ListRunsResponse()
        descending = query.descending_by(CREATED)
        waiting = await self._paused(self._open_runs(runs, version)) if paused else ()
        portions = self._index.portions(
            runs,
            descending=descending is not False,
            after=None if descending is None else _index_place(query),
            first=query.limit + 1,
        )
        selected = self._selected(portions, version, waiting if paused else None)
        take = take_sorted if descending is None else take_in_order
        page = await take(query, selected)
        return self._messages.listed(page.rows, page.token)

    async def watch_runs(self, request: pb.WatchRunsRequest) -> AsyncIterator[pb.WatchRunsResponse]:
        """The runs of a target, the newest first, then each run that changes or is new.

        A run that changes often is sent in its latest state; a deleted one is not sent.
        """
        runs, version = _target(request)
        with self._streams.open() as stream:
            await self._index.ready()
            with self._index.watch(runs) as watch:
                portions = self._index.portions(runs, descending=True, first=_SNAPSHOT)
                for portion in portions:
                    for start in range(0, len(portion), _SNAPSHOT):
                        if stream.has_ended:
                            return
                        entries = portion[start : start + _SNAPSHOT]
                        if chosen := [each for each in entries if _is_shown(each, version)]:
                            yield self._messages.watched(chosen)
                        await trio.lowlevel.checkpoint()
                sent_at = trio.current_time()
                while not stream.has_ended:
                    # Changes of other projects are not sent, so the silence continues.
                    silence = sent_at + self._keepalive - trio.current_time()
                    changed = await stream.receive(watch, max(0.0, silence))
                    if stream.has_ended:
                        return
                    chosen = [each for each in changed or () if _is_shown(each, version)]
                    if changed is not None and not chosen and silence > 0:
                        continue
                    self._streams.sent += len(chosen)
                    yield self._messages.watched(chosen)
                    sent_at = trio.current_time()

    def _open_runs(self, runs: RunScope, version: str | None) -> list[RunEntry]:
        """The runs of a scope that have not ended, and that the client may read."""
        portions = self._index.portions(runs, descending=True)
        entries = (entry for portion in portions for entry in portion)
        return [each for each in entries if each.ended is None and _is_shown(each, version)]

    def _selected(
        self,
        portions: Iterable[Sequence[RunEntry]],
        version: str | None,
        waiting: Collection[bytes] | None,
    ) -> Iterable[Sequence[RunEntry]]:
        """The runs that the client may read, and that the request selects.

        Args:
            portions: The runs.
            version: The only version of their task; None for all.
            waiting: The keys of runs in which a condition waits, if only paused runs are selected;
                None for all runs.
        """
        if version is None and waiting is None and CALLER.get().projects is None:
            return portions

        def is_meant(entry: RunEntry) -> bool:
            if not _is_shown(entry, version):
                return False
            return waiting is None or phase_of(entry) == _PAUSED or entry.key in waiting

        return ([entry for entry in portion if is_meant(entry)] for portion in portions)


def paused_runs(client: ActionsClient, keys: Keyspace) -> FindPaused:
    """Find paused runs by the watch of a client, and for runs that it lacks by their objects."""

    async def paused(runs: Iterable[RunEntry]) -> Collection[bytes]:
        found = set[bytes]()
        for action_id in client.waiting_conditions():
            # A stored project may make no valid namespace: such a run has no record.
            with suppress(InvalidArgument):
                found.add(keys.run_record(action_id))
        unwatched = iter([each for each in runs if not client.watches(_run_of(each))])

        async def read() -> None:
            for entry in unwatched:
                # As above: any client may have stored the record.
                with suppress(InvalidArgument):
                    listing = await client.list_run_actions(_run_of(entry))
                    if any(map(_waits, listing.actions)):
                        found.add(entry.key)

        async with trio.open_nursery() as nursery:
            for _ in range(_READ_AT_A_TIME):
                nursery.start_soon(read)
        return found

    return paused


async def _none_paused(_runs: Iterable[RunEntry]) -> Collection[bytes]:
    return ()


def _run_of(entry: RunEntry) -> RunId:
    return RunId(entry.project, entry.domain, entry.name)


def _waits(action: StoredAction) -> bool:
    return action.spec.is_condition and not action.is_terminal


def _identity(entry: RunEntry) -> str:
    # Each byte becomes a character, so that the order is the same.
    return entry.key.decode("latin-1")


def _index_place(query: Query[RunEntry]) -> Place | None:
    if query.cursor is None:
        return None
    created, key = query.cursor
    try:
        return int(created or 0), str(key).encode("latin-1")
    except UnicodeEncodeError:
        raise InvalidArgument("request.token", "it is not of this list") from None


def _is_shown(entry: RunEntry, version: str | None) -> bool:
    """Whether a run has a version of its task, None for any, and the client may read it."""
    # The task of a run may belong to another project.
    return (version is None or entry.task.version == version) and CALLER.get().may_use(
        entry.project
    )


def _scope(request: pb.ListRunsRequest) -> tuple[RunScope, str | None]:
    """The scope of a list, as the index has it, and the only version of a task; None for all."""
    which = request.WhichOneof("scope_by")
    if which == "org":
        return None, None
    if which == "project_id":
        return _of_project(request.project_id, which), None
    if which == "task_name":
        return _of_task(request.task_name, which), None
    if which == "task_id":
        return _of_task(request.task_id, which), _version(request.task_id, which)
    if which == "trigger_name":
        return None, None
    raise InvalidArgument(
        "scope_by", "it is missing: give one of org, project_id, task_name and task_id"
    )


def _target(request: pb.WatchRunsRequest) -> tuple[RunScope, str | None]:
    """The same as :func:`_scope`, for a stream."""
    which = request.WhichOneof("target")
    if which == "org":
        return None, None
    if which == "project_id":
        return _of_project(request.project_id, which), None
    if which == "task_id":
        return _of_task(request.task_id, which), request.task_id.version or None
    if which == "cluster_id":
        raise Refusal(
            Code.UNIMPLEMENTED, "cluster_id: there are no clusters here: give a project_id"
        )
    raise InvalidArgument("target", "it is missing: give one of org, project_id and task_id")


def _of_project(project: ProjectIdentifier, where: str) -> OfProject:
    require(project, "name", "domain", where=where)
    return OfProject(project.name, project.domain)


def _of_task(task: TaskName | TaskIdentifier, where: str) -> OfTask:
    require(task, "project", "domain", "name", where=where)
    return OfTask(task.project, task.domain, task.name)


def _version(task: TaskIdentifier, where: str) -> str:
    require(task, "version", where=where)
    return str(task.version)
