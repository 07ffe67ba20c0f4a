"""What the SDK uploads is found where its runs and deployed tasks name it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from etcd_actions import open_actions_client, open_etcd
from tests.sdk.door import Door
from tests.sdk.test_front_door import door
from tests.uploads.world import KEEP, World

__all__ = ["door"]

pytestmark = pytest.mark.slow

Stored = Mapping[str, bytes]


def contents(folder: Path) -> Stored:
    """All uploads and inputs."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in ("uploads", "inputs")
        for path in (folder / kind).rglob("*")
        if path.is_file()
    }


async def collect(door: Door, folder: Path, *, forget: bool) -> None:
    """Sweep long after everything was uploaded, maybe without its runs and tasks."""
    async with (
        open_etcd(door.site.common[1]) as etcd,
        open_actions_client(etcd, prefix=door.site.common[3].encode()) as client,
    ):
        world = await World.open(etcd, client, folder)
        if forget:
            await world.forget()
        world.now += KEEP * 2
        await world.sweeps(times=4)


def test_what_the_sdk_uploaded_stays_while_it_is_named(door: Door) -> None:
    folder = door.site.directory / "blobs"
    for program in ("hello.py", "files.py", "deployed.py", "shapes.py"):
        door.run(program, project="kept")
    before = contents(folder)
    assert any("/content/" in each for each in before)
    trio.run(lambda: collect(door, folder, forget=False))
    gone = before.keys() - contents(folder).keys()
    assert not gone
    # It is what the runs and the tasks say that keeps it.
    trio.run(lambda: collect(door, folder, forget=True))
    assert contents(folder) == {}
