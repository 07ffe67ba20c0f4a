"""Collects old uploads, inputs and definitions of images to which nothing refers.

It is a mark and sweep. The mark finds all references in the deployment's values and files. A unit
that is old and was unmarked in two sweeps in a row is moved into a trash of the store. Then a
second mark follows: a unit that came into use in between, or was uploaded again, is restored. A
later sweep deletes the rest, if its mark does not find it either.

If etcd is unavailable, a record cannot be decoded, or a file cannot be read, nothing is moved or
deleted. A process that ends in between leaves a unit in its place or in the trash, where the next
leader finds it. Several processes may collect at the same time: each move is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec
import structlog
import trio

from etcd_actions.actions.rewrite import utc_now
from etcd_actions.blobs import BlobError, BlobInfo, BlobStore, Deployment
from etcd_actions.blobs.references import ReferenceFinder, References
from etcd_actions.blobs.searched_files import Incomplete, LocalFiles, SearchedFiles
from etcd_actions.blobs.upload_keys import parse_trash, trash_key, trash_of, unit_of
from etcd_actions.errors import DecodeError, EtcdError, InvalidArgument
from etcd_actions.images import Images, UnusedImage
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store
from etcd_actions.uploads.marker import Marker

IN_TRASH: Final = timedelta(hours=1)
"""The time for which moved files can be restored."""
_MOST: Final = 1000
"""The most files that one sweep moves."""
_EVERY: Final = 6 * 3600.0
_SOON: Final = 900.0
_FIRST: Final = 300.0
_LEADS_EVERY: Final = 1.0

_log = structlog.get_logger(__name__)


class SweepResult(msgspec.Struct, frozen=True):
    """The result of a sweep.

    Attributes:
        uploads: Number of files of uploads and inputs that were deleted.
        bytes: Their bytes.
        images: Number of definitions that were deleted.
        moved: Number of files that were moved to the trash, or would have been in a dry run.
        restored: Number of files that were moved back.
    """

    uploads: int = 0
    bytes: int = 0
    images: int = 0
    moved: int = 0
    restored: int = 0

    def __add__(self, other: SweepResult) -> SweepResult:
        return SweepResult(
            self.uploads + other.uploads,
            self.bytes + other.bytes,
            self.images + other.images,
            self.moved + other.moved,
            self.restored + other.restored,
        )


class _Unit(NamedTuple):
    """Files that are kept or collected together, and the time of the newest."""

    newest: float
    files: tuple[BlobInfo, ...]


class _Inventory(NamedTuple):
    """The files and definitions before a mark.

    Attributes:
        old: The units that are old enough to be collected.
        young: The keys of inputs that are not.
        trash: The moved files: the time of the move, the former key, and the file.
        images: The definitions that are old enough to be collected.
    """

    old: dict[str, _Unit]
    young: list[str]
    trash: list[tuple[int, str, BlobInfo]]
    images: list[UnusedImage]


class UploadCollector:
    """Collects uploads; the module docstring has the steps.

    Args:
        store: Reads the values with references.
        keys: The keys of the deployment.
        blobs: The store of uploads.
        deployment: The name in the keys of this deployment's uploads.
        images: The definitions of images.
        keep: The least age of a collected unit.
        dry_run: Whether to move and delete nothing, and only count.
        local: Reads files of runs outside the store; None if they are on another machine.
        clock: The time, aware.

    Attributes:
        collected: The sum of all sweeps so far.
    """

    def __init__(
        self,
        store: Store,
        keys: Keyspace,
        blobs: BlobStore,
        deployment: Deployment,
        images: Images,
        keep: timedelta,
        *,
        dry_run: bool = False,
        local: LocalFiles | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.collected = SweepResult()
        self._store = store
        self._keys = keys
        self._blobs = blobs
        self._deployment = deployment
        self._images = images
        self._keep = keep
        self._dry_run = dry_run
        self._local = local
        self._clock = clock
        self._marker: Marker | None = None
        self._unmarked: dict[str, float] = {}

    async def run(self, leads: Callable[[], bool]) -> None:
        """Sweep at intervals while ``leads`` returns True; does not return."""
        wait = _FIRST
        while True:
            await trio.sleep(wait)
            while not leads():  # noqa: ASYNC110 - only recording processes are notified of an election
                await trio.sleep(_LEADS_EVERY)
            try:
                swept = await self.sweep()
            except (EtcdError, BlobError, DecodeError, Incomplete) as error:
                _log.warning("uploads_not_collected", reason=str(error))
                wait = _EVERY
                continue
            if swept != SweepResult():
                _log.info(
                    "uploads_collected",
                    uploads=swept.uploads,
                    bytes=swept.bytes,
                    images=swept.images,
                    moved=swept.moved,
                    restored=swept.restored,
                    unused=len(self._unmarked),
                    dry_run=self._dry_run,
                )
            # Units that were unmarked once are checked again soon, and so is the trash.
            is_waiting = bool(self._unmarked or swept.moved) and not self._dry_run
            wait = _SOON if is_waiting else _EVERY

    async def sweep(self) -> SweepResult:
        """Mark and sweep once. Cancelled, a part of it may be done, which is safe.

        Raises:
            EtcdError: etcd failed; nothing was moved or deleted afterwards.
            BlobError: The store failed; nothing was moved or deleted afterwards.
            DecodeError: The stored name of the deployment is invalid.
            Incomplete: The references are not all known.
        """
        swept = SweepResult()
        deployment = await self._deployment.name()
        marker = self._marker = self._marker or self._make_marker(deployment)
        found = await self._take_inventory(deployment)
        if not (found.old or found.trash or found.images):
            self._unmarked = {}
            return swept
        units = [*found.old, *self._trashed(found, deployment)]

        def is_enough(references: References) -> bool:
            return all(map(references.keeps, units))

        marked = await marker.mark(found.young, is_enough)
        unmarked = {unit: each.newest for unit, each in found.old.items() if not marked.keeps(unit)}
        images = [each for each in found.images if each.digest not in marked.images]
        try:
            swept += await self._empty_trash(found, marked, deployment)
            swept += await self._remove_images(images)
            due = [u for u, newest in unmarked.items() if self._unmarked.get(u) == newest]
            # Files that restored inputs name were not marked.
            moved = [] if swept.restored else await self._move(found, due, deployment)
            swept += SweepResult(moved=len(moved))
            if moved and not self._dry_run:
                swept += await self._restore_needed(moved, found.old, marker, deployment)
        finally:
            self._unmarked = unmarked | {each.digest: each.mod_revision for each in images}
            self.collected += swept
        return swept

    def _make_marker(self, deployment: str) -> Marker:
        finder = ReferenceFinder(deployment)
        files = SearchedFiles(self._blobs, finder.find, self._local)
        return Marker(self._store, self._keys, self._blobs, files, finder)

    async def _take_inventory(self, deployment: str) -> _Inventory:
        """List files and definitions, before the mark."""
        before = self._clock() - self._keep
        found = await self._units(deployment, "uploads", "inputs")
        old: dict[str, _Unit] = {}
        young: list[str] = []
        for unit, files in found.items():
            newest = max(each.modified for each in files)
            # A store that reports no times has no old units.
            if 0 < newest < before.timestamp():
                old[unit] = _Unit(newest, tuple(files))
            elif unit.startswith("inputs/"):
                young += [each.key for each in files]
        trash = []
        async with aclosing(self._blobs.below(trash_of(deployment))) as infos:
            async for info in infos:
                if (parsed := parse_trash(info.key)) is not None:
                    trash.append((*parsed, info))
        return _Inventory(old, young, trash, await self._images.unused(before))

    async def _units(self, deployment: str, *kinds: str) -> dict[str, list[BlobInfo]]:
        found: dict[str, list[BlobInfo]] = {}
        for kind in kinds:
            async with aclosing(self._blobs.below(kind)) as infos:
                async for info in infos:
                    unit = unit_of(info.key, deployment)
                    if unit is not None:
                        found.setdefault(unit, []).append(info)
        return found

    def _trashed(self, found: _Inventory, deployment: str) -> Iterable[str]:
        for _, key, _ in found.trash:
            if (unit := unit_of(key, deployment)) is not None:
                yield unit

    async def _empty_trash(
        self, found: _Inventory, marked: References, deployment: str
    ) -> SweepResult:
        """Restore files in the trash that are needed; if there are none, delete the old ones."""
        restored, unneeded = 0, []
        before = (self._clock() - IN_TRASH).timestamp()
        for moved, key, info in found.trash:
            unit = unit_of(key, deployment)
            if unit is None or self._dry_run:
                continue
            if marked.keeps(unit):
                restored += await self._restore(info.key, key)
            elif moved < before:
                unneeded.append(info)
        if restored:
            # Files that restored inputs name were not marked.
            return SweepResult(restored=restored)
        swept = SweepResult()
        for info in unneeded:
            if await self._blobs.delete(info.key):
                swept += SweepResult(uploads=1, bytes=info.size)
        return swept

    async def _restore(self, trashed: str, key: str) -> bool:
        if await self._blobs.move(trashed, key):
            return True
        if await self._blobs.stat(key) is not None:
            # It was uploaded again.
            await self._blobs.delete(trashed)
        return False

    async def _remove_images(self, images: Iterable[UnusedImage]) -> SweepResult:
        swept = SweepResult()
        for each in images:
            if self._dry_run or self._unmarked.get(each.digest) != each.mod_revision:
                continue
            swept += SweepResult(images=int(await self._images.remove(each)))
        return swept

    async def _move(
        self, found: _Inventory, units: Iterable[str], deployment: str
    ) -> list[tuple[str, str]]:
        """Move units to the trash; return the former and the new key of each moved file."""
        moved: list[tuple[str, str]] = []
        now = int(self._clock().timestamp())
        for unit in units:
            for info in found.old[unit].files:
                if len(moved) >= _MOST:
                    return moved
                try:
                    to = trash_key(deployment, now, info.key)
                    is_moved = self._dry_run or await self._blobs.move(
                        info.key, to, unless_after=info.modified
                    )
                except InvalidArgument:
                    # Another program stored it: no upload has such a key.
                    continue
                if is_moved:
                    moved.append((info.key, to))
        return moved

    async def _restore_needed(
        self,
        moved: list[tuple[str, str]],
        old: Collection[str],
        marker: Marker,
        deployment: str,
    ) -> SweepResult:
        """Restore the files that came into use during the mark; all, if the second mark fails."""
        swept, left = SweepResult(), moved
        while left:
            units = {unit_of(key, deployment) or "" for key, _ in left}
            try:
                inputs = await self._units(deployment, "inputs")
                young = [inputs[unit] for unit in inputs if unit not in old]
                marked = await marker.mark(
                    [each.key for files in young for each in files],
                    lambda found, units=units: all(map(found.keeps, units)),  # type: ignore[misc]
                )
            except (EtcdError, BlobError, Incomplete):
                for key, to in left:
                    await self._restore(to, key)
                raise
            needed = [each for each in left if marked.keeps(unit_of(each[0], deployment) or "")]
            for key, to in needed:
                swept += SweepResult(restored=int(await self._restore(to, key)))
            # Files that restored inputs name were not marked: mark again.
            left = [each for each in left if each not in needed] if needed else []
        return swept
