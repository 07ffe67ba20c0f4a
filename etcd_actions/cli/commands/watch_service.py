"""``watch``, and ``--watch`` of other commands, through the service.

One stream has the updates of all actions. It omits states of an action that changes faster than
the service sends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import msgspec

from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.backends import open_service
from etcd_actions.cli.calls import OPERATIONS
from etcd_actions.cli.commands.watch import NoneYet, WatchOptions
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.following import follow
from etcd_actions.cli.formats.rows import Row, update_row
from etcd_actions.cli.formats.standard_output import standard_output, until_stopped
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.signals import open_stop
from etcd_actions.model import ActionUpdate
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb


async def watch_service(common: CommonOptions, watching: WatchOptions) -> int:
    """Write the selected changes until a signal, or until the reader of the output has ended."""
    run = watching.run
    request = pb.WatchUpdatesRequest(project=run.project, domain=run.domain)
    if run.project and run.domain:
        request.run = run.run
    async with open_stop() as stop, open_service(common) as service, until_stopped(stop):
        with standard_output() as write:
            changes, none_yet = _Changes(), NoneYet(watching.if_none)

            def on_item(response: pb.WatchUpdatesResponse) -> bool:
                made = changes.rows(response)
                rows = [row for row in made if watching.selects(row)]
                none_yet.note(made, rows)
                if rows:
                    write(watching.lines.format(rows))
                return False

            def opened() -> AbstractAsyncContextManager[AsyncIterator[pb.WatchUpdatesResponse]]:
                changes.begin_again()
                return service.stream(OPERATIONS, "WatchUpdates", request, pb.WatchUpdatesResponse)

            await follow("actions", opened, on_item)
    return ExitCode.OK


class _Changes:
    """Makes rows of the updates of several streams, one after the other."""

    def __init__(self) -> None:
        self._states: dict[bytes, ActionUpdate] = {}
        # Those that the present stream has yet to deliver.
        self._earlier: dict[bytes, ActionUpdate] = {}
        self._is_listing = True
        self._has_synced = False

    def begin_again(self) -> None:
        """Note that a stream begins: it delivers the present states again."""
        self._earlier, self._states = self._states | self._earlier, {}
        self._is_listing = True

    def rows(self, response: pb.WatchUpdatesResponse) -> list[Row]:
        """The rows of a message; those of an earlier stream are omitted."""
        if response.synced:
            return self._synced(response.synced)
        if not response.json:
            return []
        update = msgspec.json.decode(response.json, type=ActionUpdate)
        key, listed = update.key, self._is_listing
        earlier = self._earlier.pop(key, None)
        before = self._states.get(key, earlier)
        if update.is_deleted:
            self._states.pop(key, None)
            return [update_row("DELETED", update)]
        self._states[key] = update
        if before is None or before.create_revision != update.create_revision:
            added = update_row("ADDED", update, listed=listed)
            return [added] if before is None else [_gone(before, update.create_revision), added]
        if update.revision <= before.revision:
            return []
        return [update_row("MODIFIED", update, listed=listed)]

    def _synced(self, revision: int) -> list[Row]:
        """The present states were delivered: the others were deleted since the last stream."""
        rows: list[Row] = [_gone(each, revision) for each in self._earlier.values()]
        self._earlier, self._is_listing = {}, False
        if not self._has_synced:
            self._has_synced = True
            rows.append(SyncedRow(revision))
        return rows


def _gone(last: ActionUpdate, revision: int) -> Row:
    """The row of a deletion that no stream delivered; its real revision may be lower."""
    deleted = msgspec.structs.replace(last, revision=revision, is_deleted=True)
    return update_row("DELETED", deleted, listed=True, synthesised=True)
