"""Deletes runs that an operator names, as retention deletes runs that ended long ago.

A run that has not ended is aborted first, if that is requested. Nothing is deleted before the
leader has reported each terminal state and written its mark. The deletion waits for that for a
limited time.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from datetime import datetime
from enum import Enum
from typing import Final, NamedTuple

import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.blobs import BlobStore
from etcd_actions.client import ActionsClient
from etcd_actions.errors import NotFound
from etcd_actions.etcd.api import Compare, KeyValue, Put, Txn
from etcd_actions.model import ROOT_ACTION, ActionId
from etcd_actions.runs.references import RunReferences, usable_record
from etcd_actions.runs.removal import PAUSE, Needed, Removal, Removed, RunRemover
from etcd_actions.runs.run_record import RunRecord, encode

REASON: Final = "deleted"
_BACKOFF: Final = Backoff(initial=0.05, cap=1.0)
_MOST_FRESH: Final = 5.0


class Result(Enum):
    """The result for a run; in a dry run, the result without ``--dry-run``.

    FAILED: the run stays although no rule keeps it, since a part cannot be decoded or deleted.
    """

    DELETED = "deleted"
    KEPT = "kept"
    FAILED = "failed"
    MISSING = "missing"


class Deletion(NamedTuple):
    """The result for one run.

    Attributes:
        run: The run, by its root.
        result: Whether it was deleted.
        kept: The reason if it was not deleted.
        removed: The removed parts, also of a run that stays.
        blob_bytes: Bytes of the removed blobs.
        aborted: Number of actions that were aborted for it.
        files_elsewhere: The location of its outputs if they are outside the store, where they stay.
    """

    run: ActionId
    result: Result
    kept: str = ""
    removed: Removed = Removed()
    blob_bytes: int = 0
    aborted: int = 0
    files_elsewhere: str = ""


class _Found(NamedTuple):
    seen: KeyValue
    record: RunRecord
    running: list[StoredAction]


class RunDeleter:
    """Deletes the runs that an operator names.

    Args:
        client: Reads and aborts actions.
        blobs: The store of the runs' data; None keeps the data.
        wait: Seconds for the leader to record the ends of aborted actions.
        fresh: Seconds for which the references of other runs are not read again; more if the read
            takes longer.
        clock: The time, aware.
    """

    def __init__(
        self,
        client: ActionsClient,
        blobs: BlobStore | None,
        *,
        wait: float = 10.0,
        fresh: float = 1.0,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._client = client
        self._blobs = blobs
        self._wait = wait
        self._clock = clock
        self._remover = RunRemover(client.store, client.keys, objects=True, blobs=blobs)
        self._references = RunReferences(client.store, client.keys, blobs)
        self._fresh = fresh
        self._needed = Needed()
        self._needed_until = -math.inf

    async def delete(
        self,
        runs: Iterable[ActionId],
        *,
        dry_run: bool = False,
        force: bool = False,
        reason: str = REASON,
        by: str = "",
    ) -> AsyncGenerator[Deletion]:
        """Delete runs one by one; after a cancellation the same call finishes it.

        Args:
            runs: The runs, by any of their actions.
            dry_run: Change nothing, and return what would be deleted.
            force: Abort a run that has not ended, and then delete it.
            reason: Why, for the abort.
            by: The subject that requested it.

        Raises:
            EtcdError: etcd failed; some parts may be deleted.
        """
        for run in runs:
            found = await self._find(run)
            if found is None:
                yield Deletion(run, Result.MISSING)
                continue
            yield await self._delete(run, found, dry_run, force, reason, by)
            await trio.sleep(PAUSE)

    async def _delete(
        self,
        run: ActionId,
        found: _Found,
        dry_run: bool,
        force: bool,
        reason: str,
        by: str,
    ) -> Deletion:
        aborted = 0
        if found.running and not force:
            action = found.running[0]
            kept = f"{action.action_id.name} is {action.phase.name}: abort it, or give force"
            return Deletion(run, Result.KEPT, kept)
        if found.running and dry_run:
            size = sum(len(each.key) + len(each.kv.value) for each in found.running)
            removed = Removed(objects=len(found.running), bytes=size)
            return self._deletion(run, found, Removal(removed), len(found.running))
        if found.running:
            aborted = await self._abort(found, reason, by)
        removal = await self._remove(found, dry_run=dry_run)
        if force and removal.kept and not dry_run:
            removal = await self._delete_later(run, removal)
        if removal.kept and force and not await self._client.has_leader():
            removal = removal._replace(kept=f"{removal.kept}, and there is no leader now")
        return self._deletion(run, found, removal, aborted)

    async def _remove(self, found: _Found, *, dry_run: bool = False) -> Removal:
        needed = await self._read_needed()
        seen, record, now = found.seen, found.record, self._clock().timestamp()
        if not seen.mod_revision:
            planned = await self._remover.remove(seen, record, needed, now, dry_run=True)
            if dry_run or planned.kept:
                return planned._replace(removed=planned.removed if dry_run else Removed())
            # A record lets the next call finish an interrupted deletion.
            value = encode(record)
            created = await self._client.store.txn(
                Txn([Compare.unchanged(seen.key, 0)], [Put(seen.key, value)])
            )
            if not created.succeeded:
                return Removal(kept="its record was written just now")
            revision = created.revision
            seen = KeyValue(seen.key, value, revision, revision, 1)
        return await self._remover.remove(seen, record, needed, now, dry_run=dry_run)

    async def _read_needed(self) -> Needed:
        """The references, which a new run may have changed since an earlier read."""
        if trio.current_time() >= self._needed_until:
            began = trio.current_time()
            self._needed = await self._references.read()
            # Reading them costs as much for one run as for many: it takes half of the time at most.
            now = trio.current_time()
            self._needed_until = max(began + self._fresh, now + min(now - began, _MOST_FRESH))
        return self._needed

    async def _delete_later(self, run: ActionId, removal: Removal) -> Removal:
        """Retry while the run stays, as long as its ends may take to be recorded."""
        with trio.move_on_after(self._wait):
            tries = 0
            while removal.kept and (found := await self._find(run)) is not None:
                last = await self._remove(found)
                removal = Removal(
                    removal.removed + last.removed,
                    last.kept,
                    removal.blob_bytes + last.blob_bytes,
                    last.has_failed,
                )
                tries += 1
                await trio.sleep(_BACKOFF.delay(tries) if last.kept else 0)
        return removal

    def _deletion(self, run: ActionId, found: _Found, removal: Removal, aborted: int) -> Deletion:
        base, elsewhere = found.record.output_base, ""
        if base and (self._blobs is None or self._blobs.key_of(base.rstrip("/")) is None):
            elsewhere = base
        result = Result.KEPT if removal.kept else Result.DELETED
        if removal.has_failed:
            result = Result.FAILED
        return Deletion(
            run, result, removal.kept, removal.removed, removal.blob_bytes, aborted, elsewhere
        )

    async def _abort(self, found: _Found, reason: str, by: str) -> int:
        """Abort all of a run that has not ended; returns the number of ended actions."""
        ended: set[str] = set()
        # The root is the first one, and all others are below it as a rule.
        for each in found.running:
            if each.action_id.name not in ended:
                with suppress(NotFound):
                    done = await self._client.abort_action(each.action_id, reason, by)
                    ended.update(done.aborted)
        return len(ended)

    async def _find(self, run: ActionId) -> _Found | None:
        """The record of a run, or one made of its root; None if there is no trace of the run."""
        run = ActionId(run.project, run.domain, run.run, ROOT_ACTION)
        key = self._client.keys.run_record(run)
        seen = await self._client.store.get(key)
        record = None if seen is None else usable_record(seen)
        if record is not None and (record.project, record.domain) != (run.project, run.domain):
            record, seen = None, None
        actions = (await self._client.list_run_actions(run.run_id)).actions
        if record is None and not actions:
            return None
        running = sorted(
            (each for each in actions if not each.is_terminal),
            key=lambda each: each.action_id.name != ROOT_ACTION,
        )
        if record is None or seen is None:
            top = next((e for e in actions if e.action_id.name == ROOT_ACTION), None)
            record = RunRecord(
                project=run.project,
                domain=run.domain,
                name=run.run,
                created=self._clock(),
                input_uri="" if top is None else top.spec.input_uri,
                output_base=actions[0].spec.run_output_base,
            )
            seen = seen or KeyValue(key, b"", 0, 0, 0)
        return _Found(seen, record, running)
