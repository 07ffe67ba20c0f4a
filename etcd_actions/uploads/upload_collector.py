"""Collects uploads, inputs and definitions of images that nothing has needed for a time.

It marks what everything that is recorded refers to, and sweeps what is old and was unmarked twice.
What is swept is moved into a trash of the store first. Then all is marked once more: what came
into use in between, or was uploaded again, is restored. The rest is deleted by a later
sweep, whose mark has to be without it, too.

Where etcd is away, a record cannot be read, or a file is out of reach, nothing is moved or deleted.
A process that ends in the middle leaves things in their place or in the trash, where the next
leader finds them. Several processes may collect at a time: each move is done once.
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
from etcd_actions.blobs.files import Incomplete, LocalFiles, SearchedFiles
from etcd_actions.blobs.uploads import (
    ReferenceFinder,
    References,
    parse_trash,
    trash_key,
    trash_of,
    unit_of,
)
from etcd_actions.errors import DecodeError, EtcdError, InvalidArgument
from etcd_actions.images import Images, UnusedImage
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store
from etcd_actions.uploads.references import Marker

LEAST_AGE: Final = timedelta(hours=48)
"""The SDK remembers for a day where a bundle is, and uses it without a new upload."""
IN_TRASH: Final = timedelta(hours=1)
"""How long swept files can be restored."""
_MOST: Final = 1000
"""Files that one sweep moves."""
_EVERY: Final = 6 * 3600.0
_SOON: Final = 900.0
_FIRST: Final = 300.0
_LEADS_EVERY: Final = 1.0

_log = structlog.get_logger(__name__)


class SweepResult(msgspec.Struct, frozen=True):
    """The result of a sweep.

    Attributes:
        uploads: Number of uploads that were deleted, those of inputs included.
        bytes: Their bytes.
        images: Number of definitions that were deleted.
        moved: Number of files that were moved to the trash, or would have been.
        restored: Number of files that got their place back.
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
    """What is kept or collected together."""

    newest: float
    files: tuple[BlobInfo, ...]


class _Look(NamedTuple):
    """What there is.

    Attributes:
        old: The units that are old enough to go.
        young: The keys of inputs that are not.
        trash: The swept files: when, the key before, and where each is.
        images: The definitions that are old enough to go.
    """

    old: dict[str, _Unit]
    young: list[str]
    trash: list[tuple[int, str, BlobInfo]]
    images: list[UnusedImage]


class UploadCollector:
    """See the module's text.

    Args:
        store: Where everything is recorded.
        keys: Under which keys.
        blobs: Where uploads are.
        deployment: Which ones are ours.
        images: The definitions of images.
        keep: How old what goes is at least.
        dry_run: Whether to move and delete nothing, and say what would be.
        local: Reads files of runs outside the store; None if they are on another machine.
        clock: The time.

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
        """Sweep again and again while ``leads`` says so; does not return."""
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
        """Mark and sweep once. Cancelled, it did a part of it.

        Raises:
            EtcdError: etcd did not answer; nothing was moved or deleted since.
            BlobError: The same of the store.
            DecodeError: The deployment has no usable name.
            Incomplete: It is not known which files are needed.
        """
        swept = SweepResult()
        deployment = await self._deployment.name()
        marker = self._marker = self._marker or self._make_marker(deployment)
        look = await self._look(deployment)
        if not (look.old or look.trash or look.images):
            self._unmarked = {}
            return swept
        units = [*look.old, *self._trashed(look, deployment)]

        def is_enough(found: References) -> bool:
            return all(map(found.keeps, units))

        marked = await marker.mark(look.young, is_enough)
        unmarked = {unit: each.newest for unit, each in look.old.items() if not marked.keeps(unit)}
        images = [each for each in look.images if each.digest not in marked.images]
        try:
            swept += await self._empty(look, marked, deployment)
            swept += await self._remove_images(images)
            due = [u for u, newest in unmarked.items() if self._unmarked.get(u) == newest]
            # What restored inputs name was not marked.
            moved = [] if swept.restored else await self._move(look, due, deployment)
            swept += SweepResult(moved=len(moved))
            if moved and not self._dry_run:
                swept += await self._look_again(moved, look.old, marker, deployment)
        finally:
            self._unmarked = unmarked | {each.digest: each.mod_revision for each in images}
            self.collected += swept
        return swept

    def _make_marker(self, deployment: str) -> Marker:
        finder = ReferenceFinder(deployment)
        files = SearchedFiles(self._blobs, finder.find, self._local)
        return Marker(self._store, self._keys, self._blobs, files, finder)

    async def _look(self, deployment: str) -> _Look:
        """List what there is, before anything is marked."""
        before = self._clock() - self._keep
        found = await self._units(deployment, "uploads", "inputs")
        old: dict[str, _Unit] = {}
        young: list[str] = []
        for unit, files in found.items():
            newest = max(each.modified for each in files)
            # A store without times has no ages.
            if 0 < newest < before.timestamp():
                old[unit] = _Unit(newest, tuple(files))
            elif unit.startswith("inputs/"):
                young += [each.key for each in files]
        trash = []
        async with aclosing(self._blobs.below(trash_of(deployment))) as infos:
            async for info in infos:
                if (parsed := parse_trash(info.key)) is not None:
                    trash.append((*parsed, info))
        return _Look(old, young, trash, await self._images.unused(before))

    async def _units(self, deployment: str, *kinds: str) -> dict[str, list[BlobInfo]]:
        found: dict[str, list[BlobInfo]] = {}
        for kind in kinds:
            async with aclosing(self._blobs.below(kind)) as infos:
                async for info in infos:
                    unit = unit_of(info.key, deployment)
                    if unit is not None:
                        found.setdefault(unit, []).append(info)
        return found

    def _trashed(self, look: _Look, deployment: str) -> Iterable[str]:
        for _, key, _ in look.trash:
            if (unit := unit_of(key, deployment)) is not None:
                yield unit

    async def _empty(self, look: _Look, marked: References, deployment: str) -> SweepResult:
        """Restore what is in the trash and needed; else delete what is there for a time."""
        restored, unneeded = 0, []
        before = (self._clock() - IN_TRASH).timestamp()
        for moved, key, info in look.trash:
            unit = unit_of(key, deployment)
            if unit is None or self._dry_run:
                continue
            if marked.keeps(unit):
                restored += await self._restore(info.key, key)
            elif moved < before:
                unneeded.append(info)
        if restored:
            # What restored inputs name was not marked.
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
        self, look: _Look, units: Iterable[str], deployment: str
    ) -> list[tuple[str, str]]:
        """Move what is due to the trash; from where and to where."""
        moved: list[tuple[str, str]] = []
        now = int(self._clock().timestamp())
        for unit in units:
            for info in look.old[unit].files:
                if len(moved) >= _MOST:
                    return moved
                try:
                    to = trash_key(deployment, now, info.key)
                    is_moved = self._dry_run or await self._blobs.move(
                        info.key, to, unless_after=info.modified
                    )
                except InvalidArgument:
                    # Another program put it there: no upload has such a key.
                    continue
                if is_moved:
                    moved.append((info.key, to))
        return moved

    async def _look_again(
        self,
        moved: list[tuple[str, str]],
        old: Collection[str],
        marker: Marker,
        deployment: str,
    ) -> SweepResult:
        """Restore what came into use while it was marked and moved; all, where that is unknown."""
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
            # What restored inputs name was not marked.
            left = [each for each in left if each not in needed] if needed else []
        return swept
