"""``etcd-actions gc``: deletes old runs, attempts and uploads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from flyteidl2.common.list_pb2 import Sort

from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.app.executor import state_dir_of
from etcd_actions.app.front_door import blob_store
from etcd_actions.blobs import BlobError, Deployment, NoStore
from etcd_actions.blobs.searched_files import Incomplete
from etcd_actions.cli.backends import open_client, open_reader
from etcd_actions.cli.commands.deletion import DeletedRuns
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.changes import Changes, plural, size_text
from etcd_actions.cli.names import Name
from etcd_actions.cli.options import CommonOptions
from etcd_actions.client import ActionsClient
from etcd_actions.config import settings
from etcd_actions.config.values import LEAST_FOR_UPLOADS
from etcd_actions.errors import ConfigError, DecodeError, InputError
from etcd_actions.etcd.api import KeyRange
from etcd_actions.model import Phase

if TYPE_CHECKING:
    from flyteidl2.workflow.run_definition_pb2 import Action

RUNS, ATTEMPTS, UPLOADS = "runs", "attempts", "uploads"
_REASON: Final = "deleted by gc"


@dataclass(frozen=True, kw_only=True)
class GarbageCollection:
    """The flags of the command; see its help."""

    kinds: tuple[str, ...]
    older_than: float
    phases: tuple[str, ...]
    project: str | None
    domain: str | None
    limit: int | None
    force: bool
    dry_run: bool

    @property
    def before(self) -> datetime:
        """The time before which a deleted item has ended."""
        return datetime.now(UTC) - timedelta(seconds=self.older_than)

    def selects(self, action: Action, before: datetime) -> bool:
        """Whether a run is selected, by the state of its root."""
        run, phase = action.id.run, Phase(action.status.phase)
        if self.project not in (None, run.project) or self.domain not in (None, run.domain):
            return False
        if self.phases:
            if phase.name not in self.phases:
                return False
        elif not phase.is_terminal and not self.force:
            return False
        return _time_of(action) <= before


async def collect_garbage(
    common: CommonOptions, collection: GarbageCollection, output: str | None = None
) -> int:
    """Delete old runs, attempts or uploads, or print them in a dry run."""
    local = [kind for kind in collection.kinds if kind != RUNS]
    if local and common.config[settings.SERVICE] is not None:
        raise ConfigError(
            f"{' and '.join(local)}: a service has no method for these: leave out --service, on "
            "the machine that has the executor's directory or the blob store"
        )
    if UPLOADS in collection.kinds:
        _check_age_of_uploads(collection.older_than)
    changes = Changes(output)
    totals: dict[str, dict[str, int]] = {}
    if RUNS in collection.kinds:
        totals[RUNS] = await _collect_runs(common, collection, changes)
    if local:
        async with open_client(common) as client:
            if ATTEMPTS in collection.kinds:
                totals[ATTEMPTS] = await _collect_attempts(common, client, collection, changes)
            if UPLOADS in collection.kinds:
                totals[UPLOADS] = await _collect_uploads(common, client, collection, changes)
    changes.finish(totals=totals)
    has_failed = any(counts.get("failed") for counts in totals.values())
    return ExitCode.ACTION if has_failed else ExitCode.OK


async def _collect_runs(
    common: CommonOptions, collection: GarbageCollection, changes: Changes
) -> dict[str, int]:
    async with open_reader(common, files=True) as reader:
        deleted = DeletedRuns(
            reader,
            changes,
            dry_run=collection.dry_run,
            force=collection.force,
            reason=_REASON,
        )
        before = collection.before
        # All are listed first: a deletion changes the pages.
        async with aclosing(reader.each_run(Sort.ASCENDING)) as found:
            roots = [run.action async for run in found if collection.selects(run.action, before)]
        due = [(_time_of(root), root.id.run) for root in roots]
        due.sort(key=lambda each: each[0])
        runs = [Name(run.project, run.domain, run.name) for _, run in due]
        await deleted.delete(runs[: collection.limit])
        deleted.finish()
    return dict(deleted.totals)


def _time_of(action: Action) -> datetime:
    """The end of a run, or its start if it has not ended."""
    status = action.status
    time = status.end_time if status.HasField("end_time") else status.start_time
    found: datetime = time.ToDatetime(tzinfo=UTC)
    return found


async def _collect_attempts(
    common: CommonOptions, client: ActionsClient, collection: GarbageCollection, changes: Changes
) -> dict[str, int]:
    """Directories of attempts of this machine's executor."""
    from etcd_actions.executor.attempts.attempt_directory import directory_names  # noqa: PLC0415
    from etcd_actions.executor.state_dir import sweep  # noqa: PLC0415

    state_dir = state_dir_of(common.config)
    kept: set[str] = set()
    async with aclosing(client.store.each(KeyRange.of_prefix(client.keys.prefix))) as kvs:
        async for kv in kvs:
            # An executor runs no action that cannot be decoded.
            with suppress(DecodeError):
                action = StoredAction.of(kv)
                if not action.is_terminal:
                    kept |= directory_names(action.incarnation)
    swept = await trio.to_thread.run_sync(
        partial(sweep, state_dir, collection.older_than, kept, dry_run=collection.dry_run)
    )
    for path, error in swept.failures:
        print_message(f"{path} cannot be deleted: {error}")
    would = "would delete" if collection.dry_run else "deleted"
    changes.note(f"{would} {plural(swept.removed, 'attempt')} in {state_dir}")
    return {"deleted": swept.removed, "failed": len(swept.failures)}


async def _collect_uploads(
    common: CommonOptions, client: ActionsClient, collection: GarbageCollection, changes: Changes
) -> dict[str, int]:
    """Uploads, inputs and definitions of images that no object refers to."""
    from etcd_actions.server.front.local_files import LocalFiles  # noqa: PLC0415
    from etcd_actions.uploads import SweepResult, UploadCollector  # noqa: PLC0415

    blobs = await trio.to_thread.run_sync(blob_store, common.config)
    if isinstance(blobs, NoStore):
        raise ConfigError(f"{UPLOADS}: there is no blob store: name one with --blob-dir")
    deployment = Deployment(client.store, client.keys)
    if collection.dry_run and not await deployment.exists():
        changes.note("would move no file: no upload was stored yet")
        return msgspec.structs.asdict(SweepResult())
    collector = UploadCollector(
        client.store,
        client.keys,
        blobs,
        deployment,
        client.images,
        timedelta(seconds=collection.older_than),
        dry_run=collection.dry_run,
        local=LocalFiles(),
    )
    try:
        # An upload is deleted after two sweeps in a row found no reference to it.
        swept = await collector.sweep() + await collector.sweep()
    except (BlobError, Incomplete) as error:
        raise InputError(f"uploads stay: {error}") from None
    would = "would move" if collection.dry_run else "moved"
    changes.note(
        f"{would} {plural(swept.moved, 'file')} to the trash, which a gc after an hour empties; "
        f"deleted {plural(swept.uploads, 'upload')} of earlier ones ({size_text(swept.bytes)}), "
        f"and {plural(swept.images, 'definition')} of images"
    )
    return msgspec.structs.asdict(swept)


def _check_age_of_uploads(seconds: float) -> None:
    if seconds < LEAST_FOR_UPLOADS:
        raise ConfigError(
            "--older-than: the SDK reuses an upload for a day: give 48h or more for uploads"
        )


def parse_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds to collect, in order; runs if none is given."""
    return tuple(kind for kind in (RUNS, ATTEMPTS, UPLOADS) if kind in (kinds or (RUNS,)))
