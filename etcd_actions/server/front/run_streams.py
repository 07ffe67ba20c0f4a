"""Follows an action, or all of a run, for a stream: what is there, then each change.

Changes come from the subscriptions of the process, which conflate: a stream that is read slowly
misses states between, never the last one. Each time the action is read again, so what is told is
never older than the change that it was told for; streams that want the same share one read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
import trio
from flyteidl2.workflow.run_definition_pb2 import EnrichedAction

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.codecs import json
from etcd_actions.errors import NotFound
from etcd_actions.follow.subscriptions import SnapshotEnd, Subscription
from etcd_actions.model import ROOT_ACTION, ActionId, ActionUpdate, Phase, canonical_name
from etcd_actions.model.conditions import write_phase
from etcd_actions.runs.reading import Actions, Found, RunReader
from etcd_actions.runs.run_record import RunRecord
from etcd_actions.server.front.action_tree import ActionTree
from etcd_actions.server.front.joined import Joined
from etcd_actions.server.streams import Stream, Streams

Item = ActionUpdate | SnapshotEnd

_MOST_AT_ONCE: Final = 200
"""Actions in one message."""


class Follower:
    """Follows for streams.

    Args:
        client: Whose subscriptions; it should watch.
        reader: Reads what changed.
        streams: The open streams.
        keepalive: After so many seconds without a change what is known is told once more.
    """

    def __init__(
        self, client: ActionsClient, reader: RunReader, streams: Streams, keepalive: float
    ) -> None:
        self._client = client
        self._reader = reader
        self._streams = streams
        self._keepalive = keepalive
        self._found: Joined[Found] = Joined()
        self._listings: Joined[Actions] = Joined()

    async def action(self, wanted: ActionId) -> AsyncGenerator[Found]:
        """An action, each time it has changed, up to its end.

        It ends without an error behind the end of the action, when the client is gone, and when
        the service ends.

        Raises:
            NotFound: There is no such action.
            Unavailable: Changes may be missing: follow again.
        """
        wanted = ActionId(wanted.project, wanted.domain, wanted.run, wanted.name)
        with self._streams.open() as stream:
            # Before it is read, so that no change falls between.
            async with self._client.subscribe(wanted) as updates:
                try:
                    found: Found | None = await self._read(wanted)
                    while found is not None and not stream.is_over:
                        self._streams.sent += 1
                        yield found
                        if _is_over(found):
                            return
                        found = await self._next(stream, updates, wanted, found)
                finally:
                    self._streams.conflated += updates.statistics().conflated

    async def _next(
        self, stream: Stream, updates: Subscription[Item], wanted: ActionId, told: Found
    ) -> Found | None:
        """The action when it has changed, or once more; None when the stream is over."""
        replaced = updates.replaced
        while True:
            try:
                item = await stream.receive(updates, self._keepalive)
            except trio.EndOfChannel:
                return None
            if item is None:
                return None if stream.is_over else told
            if not isinstance(item, ActionUpdate) or not _is(item, wanted):
                continue
            if item.revision <= told.revision and updates.replaced == replaced:
                continue
            try:
                found = await self._read(wanted)
            except NotFound:
                if item.is_deleted:
                    return _ended(told, item)
                # It is gone since: the change that says so is on its way.
                continue
            if found.action is None and told.action is not None and not _has_end(found.record):
                return _ended(told, item)
            return found

    async def run(self, run: ActionId, tree: ActionTree) -> AsyncGenerator[list[EnrichedAction]]:
        """All actions of a run, then each that has changed, several at once when it is many.

        After a silence nothing is told once more. It ends without an error when the client is
        gone, and when the service ends.

        Args:
            run: Which run.
            tree: What is told; it is empty.

        Raises:
            NotFound: There is no such run.
            Unavailable: Changes may be missing: follow again.
        """
        run = ActionId(run.project, run.domain, run.run, ROOT_ACTION)
        with self._streams.open() as stream:
            async with self._client.subscribe_run(run, snapshot=False) as updates:
                try:
                    listing = await self._listings.get(run, lambda: self._reader.actions(run))
                    tree.put(listing.actions, listing.record)
                    replaced, revision = updates.replaced, listing.revision
                    del listing
                    everything = tree.keys()
                    for at in range(0, max(1, len(everything)), _MOST_AT_ONCE):
                        self._streams.sent += 1
                        yield tree.messages(everything[at : at + _MOST_AT_ONCE])
                    del everything
                    while not stream.is_over:
                        try:
                            items = await self._several(stream, updates)
                        except trio.EndOfChannel:
                            return
                        if updates.replaced != replaced:
                            replaced, revision = updates.replaced, 0
                        if not items and not stream.is_over:
                            yield []
                        newer = [each for each in items if each.revision > revision]
                        if newer and (changed := await self._changed(run, tree, newer)):
                            self._streams.sent += 1
                            yield tree.messages(changed)
                finally:
                    self._streams.conflated += updates.statistics().conflated

    async def _several(self, stream: Stream, updates: Subscription[Item]) -> list[ActionUpdate]:
        """What has changed; nothing after a silence, and when the stream is over."""
        item = await stream.receive(updates, self._keepalive)
        if item is None:
            return []
        items = [item]
        while len(items) < _MOST_AT_ONCE:
            try:
                items.append(updates.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        return [each for each in items if isinstance(each, ActionUpdate)]

    async def _changed(
        self, run: ActionId, tree: ActionTree, updates: Sequence[ActionUpdate]
    ) -> set[bytes]:
        changed: set[bytes] = set()
        unread = []
        for each in updates:
            if (known := tree.put_known(each.key, each.revision)) is None:
                unread.append(each)
            else:
                changed |= known
        if not unread:
            return changed
        present = await self._reader.present((each.key for each in unread), run)
        has_root = any(not action.parent for action in present)
        changed |= tree.put(present, await self._reader.record(run) if has_root else None)
        return changed | tree.missing(unread, {action.key for action in present})

    async def _read(self, wanted: ActionId) -> Found:
        return await self._found.get(wanted, lambda: self._reader.action(wanted))


def _is(update: ActionUpdate, wanted: ActionId) -> bool:
    run = wanted.run
    return canonical_name(run, update.action_id.name) == canonical_name(run, wanted.name)


def _is_over(found: Found) -> bool:
    # Of what has expired no more will be told.
    return found.action is None or found.action.phase.is_terminal


def _has_end(record: RunRecord | None) -> bool:
    return record is not None and record.status is not None and record.status.phase in _ENDS


_ENDS: Final = frozenset(phase.value for phase in Phase if phase.is_terminal)


def _ended(told: Found, update: ActionUpdate) -> Found:
    """An action whose object is gone before its end was told."""
    assert told.action is not None
    action = _with_end(told.action, update)
    return told._replace(action=action, revision=update.revision)


def _with_end(action: StoredAction, update: ActionUpdate) -> StoredAction:
    """An action as it ended; one that was deleted while it went on is aborted."""
    phase = update.phase if update.phase.is_terminal else Phase.ABORTED
    tree = json.decode_tree(json.encode(action))
    write_phase(tree, phase, now=datetime.now(UTC), attempts=update.attempts, error=update.error)
    ended = json.decode(json.encode_tree(tree))
    return msgspec.structs.replace(
        action, metadata=ended.metadata, status=ended.status, revision=update.revision
    )
