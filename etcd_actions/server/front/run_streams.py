"""Follows an action, or all actions of a run, for a stream: the present state, then each change.

Changes come from the subscriptions of the process, which conflate: a slow stream misses states in
between, never the last one. For each change the action is read again, so a message is never older
than the change that caused it; streams of the same action share one read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import islice
from typing import Final

import msgspec
import trio
from flyteidl2.workflow.run_definition_pb2 import EnrichedAction

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.codecs import codec_of
from etcd_actions.errors import NotFound
from etcd_actions.follow.subscriptions import SnapshotEnd, Subscription
from etcd_actions.model import ROOT_ACTION, TERMINAL, ActionId, ActionUpdate, Phase, canonical_name
from etcd_actions.model.conditions import write_phase
from etcd_actions.runs.reading import Found, Part, Root, RunReader, Unread
from etcd_actions.runs.run_record import RunRecord
from etcd_actions.server.front.action_tree import ActionTree
from etcd_actions.server.front.shared_reads import SharedReads
from etcd_actions.server.streams import Stream, Streams

Item = ActionUpdate | SnapshotEnd

MOST_AT_ONCE: Final = 200
"""The most actions in one message of all actions of a run."""

TURN: Final = 64
"""Actions that are converted before other tasks run."""


class Follower:
    """Follows actions and runs for streams.

    Args:
        client: Has the subscriptions, which share its watch.
        reader: Reads the changed actions.
        streams: The open streams.
        keepalive: Seconds of silence after which the last state is sent once more.
    """

    def __init__(
        self, client: ActionsClient, reader: RunReader, streams: Streams, keepalive: float
    ) -> None:
        self._client = client
        self._reader = reader
        self._streams = streams
        self._keepalive = keepalive
        self._found: SharedReads[Found] = SharedReads()
        self._roots: SharedReads[Root] = SharedReads()
        self._parts: SharedReads[Part] = SharedReads()

    async def action(self, action_id: ActionId) -> AsyncGenerator[Found]:
        """The states of an action, up to its terminal state.

        It ends without an error after the terminal state, when the client left, and when the
        service ends.

        Raises:
            NotFound: There is no such action.
            Unavailable: Changes may be missing: follow again.
        """
        action_id = ActionId(action_id.project, action_id.domain, action_id.run, action_id.name)
        # Subscribed before the action is read, so that no change is missed in between.
        async with self._streams.follow(self._client.subscribe(action_id)) as (stream, updates):
            found: Found | None = await self._read(action_id)
            while found is not None and not stream.has_ended:
                self._streams.sent += 1
                yield found
                if found.action is None or found.action.phase.is_terminal:
                    # An action that has expired does not change.
                    return
                found = await self._next(stream, updates, action_id, found)

    async def _next(
        self, stream: Stream, updates: Subscription[Item], action_id: ActionId, sent: Found
    ) -> Found | None:
        """The next state, or the last one after a silence; None at the end of the stream."""
        replaced = updates.replaced
        while True:
            try:
                item = await stream.receive(updates, self._keepalive)
            except trio.EndOfChannel:
                return None
            if item is None:
                return None if stream.has_ended else sent
            if not isinstance(item, ActionUpdate) or not _is_of(item, action_id):
                continue
            if item.revision <= sent.revision and updates.replaced == replaced:
                continue
            try:
                found = await self._read(action_id)
            except NotFound:
                if item.is_deleted:
                    return _ended(sent, item)
                # It was deleted since: the update of that follows.
                continue
            if found.action is None and sent.action is not None and not _has_end(found.record):
                return _ended(sent, item)
            return found

    async def run(self, run: ActionId, tree: ActionTree) -> AsyncGenerator[list[EnrichedAction]]:
        """All actions of a run, the root first, then the changed ones.

        Lists of all actions have :data:`MOST_AT_ONCE` of them, and the last one has fewer, maybe
        none. Each is returned as soon as it is read; a parent is returned again with the counts of
        its children in later ones. After a silence it returns no actions. It ends without an error
        when the client left, and when the service ends.

        Args:
            run: The run.
            tree: The actions that were sent; empty.

        Raises:
            NotFound: There is no such run.
            Unavailable: Changes may be missing: follow again.
        """
        run = ActionId(run.project, run.domain, run.run, ROOT_ACTION)
        subscription = self._client.subscribe_run(run.run_id, snapshot=False)
        async with self._streams.follow(subscription) as (stream, updates):
            # All changes since this read are updates, also those during the reads of the parts.
            root = await self._roots.get(run, lambda: self._reader.root(run))
            replaced, revision = updates.replaced, root.revision
            async with aclosing(self._all(stream, run, root, tree)) as parts:
                async for part in parts:
                    self._streams.sent += 1
                    yield part
            while not stream.has_ended:
                try:
                    items = await self._several(stream, updates)
                except trio.EndOfChannel:
                    return
                if updates.replaced != replaced:
                    replaced, revision = updates.replaced, 0
                if not items and not stream.has_ended:
                    yield []
                newer = [each for each in items if each.revision > revision]
                if newer and (changed := await self._changed(run, tree, newer)):
                    self._streams.sent += 1
                    yield tree.messages(changed)

    async def _all(
        self, stream: Stream, run: ActionId, root: Root, tree: ActionTree
    ) -> AsyncGenerator[list[EnrichedAction]]:
        """All actions of a run, read and converted part by part; see :meth:`run`."""
        waiting: dict[bytes, None] = {}
        if root.action is not None:
            waiting |= dict.fromkeys(tree.put([root.action], root.record))
        unread: Unread | None = self._reader.unread(run)
        while unread is not None:
            part = await self._part(run, unread)
            unread = part.unread
            for at in range(0, len(part.actions), TURN):
                changed = tree.put(part.actions[at : at + TURN], root.record)
                waiting |= dict.fromkeys(sorted(changed))
                # Others are answered in between.
                await trio.lowlevel.checkpoint()
                while len(waiting) >= MOST_AT_ONCE:
                    full = list(islice(waiting, MOST_AT_ONCE))
                    for key in full:
                        del waiting[key]
                    yield tree.messages(full)
                if stream.has_ended:
                    return
        if tree.is_empty and root.record is None:
            raise NotFound(f"there is no run {run.project}/{run.domain}/{run.run}")
        yield tree.messages(waiting)

    async def _part(self, run: ActionId, unread: Unread) -> Part:
        """The next part of a run's actions, shared with the streams that need the same one."""
        return await self._parts.get((run, unread), lambda: self._reader.part(run, unread))

    async def _several(self, stream: Stream, updates: Subscription[Item]) -> list[ActionUpdate]:
        """The available updates; none after a silence, and at the end of the stream."""
        item = await stream.receive(updates, self._keepalive)
        if item is None:
            return []
        items = [item]
        while len(items) < MOST_AT_ONCE:
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
            if (shared := tree.put_known(each.key, each.revision)) is None:
                unread.append(each)
            else:
                changed |= shared
        if not unread:
            return changed
        present = await self._reader.present((each.key for each in unread), run)
        has_root = any(not action.parent for action in present)
        changed |= tree.put(present, await self._reader.record(run) if has_root else None)
        return changed | tree.missing(unread, {action.key for action in present})

    async def _read(self, action_id: ActionId) -> Found:
        return await self._found.get(action_id, lambda: self._reader.action(action_id))


def _is_of(update: ActionUpdate, action_id: ActionId) -> bool:
    run = action_id.run
    return canonical_name(run, update.action_id.name) == canonical_name(run, action_id.name)


def _has_end(record: RunRecord | None) -> bool:
    return record is not None and record.status is not None and record.status.phase in TERMINAL


def _ended(sent: Found, update: ActionUpdate) -> Found:
    """The terminal state of an action whose object was deleted before it was sent.

    An action that was deleted while it ran is aborted.
    """
    assert sent.action is not None
    kv = sent.action.kv
    phase = update.phase if update.phase.is_terminal else Phase.ABORTED
    codec = codec_of(kv.value)
    tree = codec.decode_tree(kv.value)
    write_phase(tree, phase, now=datetime.now(UTC), attempts=update.attempts, error=update.error)
    value = codec.encode_tree(tree)
    kv = msgspec.structs.replace(kv, value=value, mod_revision=update.revision)
    action = StoredAction.of(kv)
    return sent._replace(action=action, revision=update.revision)
