"""What the tests of the collector share."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import trio

from etcd_actions import open_actions_client, open_etcd
from etcd_actions.blobs import BlobStore
from tests.uploads.world import KEEP, World

Then = Callable[[], Awaitable[object]]


class Meanwhile:
    """A store in which something happens just before, or after, something is moved."""

    def __init__(
        self, store: BlobStore, *, before: Then | None = None, after: Then | None = None
    ) -> None:
        self._store = store
        self.before, self.after = before, after
        self.moved: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def move(self, key: str, to: str, *, unless_after: float | None = None) -> bool:
        if (then := self.before) is not None:
            self.before = None
            await then()
        is_moved = await self._store.move(key, to, unless_after=unless_after)
        self.moved.append((key, to))
        if (then := self.after) is not None:
            self.after = None
            await then()
        return is_moved


def meanwhile(world: World, *, before: Then | None = None, after: Then | None = None) -> BlobStore:
    return Meanwhile(world.blobs, before=before, after=after)  # type: ignore[return-value]


class _Dying:
    """A store whose process is killed at the n-th change of a name in the file system."""

    def __init__(self, changes: int) -> None:
        self._changes = changes
        for name in ("link", "unlink", "rename", "rmdir"):
            setattr(os, name, partial(self._change, getattr(os, name)))

    def _change(self, change: Callable[..., None], *args: object, **named: object) -> None:
        self._changes -= 1
        if self._changes < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        change(*args, **named)


async def _sweep_and_die(endpoint: str, prefix: str, folder: str, changes: int) -> None:
    async with (
        open_etcd(endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix.encode()) as client,
    ):
        world = await World.open(etcd, client, Path(folder))
        world.now += KEEP * 2
        collector = world.collector()
        await collector.sweep()
        _Dying(changes)
        await collector.sweep()
        world.now += timedelta(days=1)
        await collector.sweep()


def killed(endpoint: str, prefix: str, folder: str, changes: str) -> None:
    """Run `_sweep_and_die` in a process of its own."""
    trio.run(_sweep_and_die, endpoint, prefix, folder, int(changes))
