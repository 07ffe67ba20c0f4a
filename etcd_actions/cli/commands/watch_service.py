"""``watch``, and ``--watch`` of other commands, through the service.

The service has a stream of all runs, and one of the actions of a run: each run that is not
terminal has one. Deletions, and the end of the first state, are in none of them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial

import structlog
import trio
from flyteidl2.workflow import run_definition_pb2 as runs_pb
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.commands.watch import Watching
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.following import follow
from etcd_actions.cli.formats.message_rows import action_row, error_of, phase_of
from etcd_actions.cli.formats.rows import ActionRow
from etcd_actions.cli.formats.standard_output import standard_output, stop_when_unread
from etcd_actions.cli.names import Name, find_run
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import Reader
from etcd_actions.cli.signals import open_stop
from etcd_actions.errors import EtcdActionsError, NotFound

_MOST_RUNS = 100

_log = structlog.get_logger(__name__)


async def watch_service(common: CommonOptions, watching: Watching) -> int:
    """Write the selected changes until a signal, or until the reader of the output has ended."""
    async with open_stop() as stop, open_reader(common) as reader, trio.open_nursery() as nursery:
        nursery.start_soon(stop_when_unread, sys.stdout.fileno(), stop)
        with standard_output() as write, stop.interrupts():
            async with trio.open_nursery() as streams:
                changes = _Changes(reader, streams)
                if watching.run.run:
                    name = watching.run
                    if not name.project:
                        name = await find_run(reader.names, name.run)
                    streams.start_soon(changes.follow_run, name)
                else:
                    streams.start_soon(changes.follow_runs)
                async for row in changes.rows:
                    if watching.selects(row):
                        write(watching.lines.format([row]))
        nursery.cancel_scope.cancel("the output has ended")
    return ExitCode.OK


class _Changes:
    """The changes of actions, of the streams of several runs.

    Attributes:
        rows: A row for each change.
    """

    def __init__(self, reader: Reader, nursery: trio.Nursery) -> None:
        self._reader = reader
        self._nursery = nursery
        self._send, self.rows = trio.open_memory_channel[ActionRow](math.inf)
        self._followed: set[Name] = set()
        self._printed: dict[str, ActionRow] = {}

    async def follow_runs(self) -> None:
        """Follow each run that is not terminal."""

        def accept(response: pb.WatchRunsResponse) -> bool:
            for run in response.runs:
                named, phase = run.action.id.run, phase_of(run.action.status.phase)
                name = Name(named.project, named.domain, named.name)
                if phase.is_terminal or name in self._followed:
                    continue
                if len(self._followed) >= _MOST_RUNS:
                    _log.warning("run_not_followed", run=name.path, most=_MOST_RUNS)
                    continue
                self._followed.add(name)
                self._nursery.start_soon(partial(self.follow_run, name, ends=True))
            return False

        request = pb.WatchRunsRequest(org="")
        await follow("runs", lambda: self._reader.watch_runs(request), accept)

    async def follow_run(self, name: Name, *, ends: bool = False) -> None:
        """Follow the actions of a run; with ``ends`` until all are terminal."""
        running: set[str] = set()
        send, receive = trio.open_memory_channel[runs_pb.Action](math.inf)

        def accept(actions: Sequence[runs_pb.EnrichedAction]) -> bool:
            for each in actions:
                action = each.action
                send.send_nowait(action)
                if phase_of(action.status.phase).is_terminal:
                    running.discard(action.id.name)
                else:
                    running.add(action.id.name)
            return ends and bool(actions) and not running

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._print, name, receive)
            try:
                await follow(name.path, lambda: self._reader.watch_actions(name), accept)
            except* NotFound:
                _log.warning("run_is_gone", run=name.path)
            send.close()
        self._followed.discard(name)

    async def _print(self, name: Name, actions: trio.MemoryReceiveChannel[runs_pb.Action]) -> None:
        """Make the row of each action, with its error, which the stream does not have."""
        async for action in actions:
            path = f"{name.path}/{action.id.name}"
            before = self._printed.get(path)
            row = action_row(action, kind="ADDED" if before is None else "MODIFIED")
            if row.phase in ("FAILED", "TIMED_OUT", "ABORTED"):
                try:
                    details = await self._reader.action(name._replace(action=action.id.name))
                except EtcdActionsError:
                    details = runs_pb.ActionDetails()
                row = action_row(action, error_of(details), row.type)
            self._printed[path] = row
            self._send.send_nowait(row)
