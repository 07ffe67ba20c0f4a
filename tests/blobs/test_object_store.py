"""What only an object store has: where outputs are, and failures of all kinds."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
import trio.testing

from etcd_actions.blobs import BlobError, open_blob_store
from etcd_actions.blobs.object_store import ObjectStore
from etcd_actions.errors import ConfigError, InvalidArgument
from etcd_actions.model.output_location import output_uri


async def parts(data: bytes) -> AsyncIterator[bytes]:
    await trio.lowlevel.checkpoint()
    yield data


@pytest.mark.parametrize("url", ["memory://spread", "memory://spread/pre/fix"])
async def test_outputs_are_where_flyte_spreads_them(url: str) -> None:
    blobs = open_blob_store(url)
    base = blobs.native_url("runs/p/d/r")
    written = output_uri("flyte", "r-a0", base, "a0", 1) + "/outputs.pb"
    key = blobs.key_of(written)
    assert key is not None
    assert blobs.native_url(key) == written
    await blobs.put(key, parts(b"outputs"), most=100)
    import fsspec  # noqa: PLC0415

    assert fsspec.open(written).open().read() == b"outputs"
    assert (await blobs.stat(key)) is not None
    assert await blobs.delete(key)


@pytest.mark.parametrize("key", ["@", "@x7", "@x/a", "@x77/a", "@../a"])
async def test_a_key_that_is_spread_otherwise_is_refused(key: str) -> None:
    with pytest.raises(InvalidArgument):
        await open_blob_store("memory://bad").stat(key)


def test_a_url_that_nobody_knows_is_said_so() -> None:
    with pytest.raises(ConfigError, match="nothing-like-this"):
        open_blob_store("nothing-like-this://bucket")


async def test_whatever_the_stores_client_raises_is_an_error_of_the_store() -> None:
    blobs = ObjectStore("memory://failing/x")

    class Failing:
        def invalidate_cache(self) -> None: ...

        def info(self, path: str) -> None:
            raise RuntimeError(f"out of order: {path}")

    blobs._files = Failing()
    with pytest.raises(BlobError, match="RuntimeError: out of order"):
        await blobs.stat("a")


async def test_a_store_without_signatures_has_none() -> None:
    blobs = open_blob_store("memory://unsigned")
    assert await blobs.signed_url("GET", "a", expires_in=60) is None
    assert await blobs.signed_url("PUT", "a", expires_in=60, md5=b"x" * 16) is None


async def test_a_blob_that_is_stored_again_while_it_is_moved_stays() -> None:
    """The move compares the times, then deletes: an upload in between would be lost."""
    blobs = ObjectStore("memory://moving/x")
    await blobs.put("a", parts(b"data"), most=100)
    remove, began, goes_on = blobs._files.rm_file, threading.Event(), threading.Event()

    def slow(path: str) -> None:
        began.set()
        goes_on.wait(30)
        remove(path)

    blobs._files = copy.copy(blobs._files)
    blobs._files.rm_file = slow

    async def move() -> None:
        assert await blobs.move("a", "trash/a", unless_after=time.time() + 60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move)
        await trio.to_thread.run_sync(began.wait, 30)
        nursery.start_soon(partial(blobs.put, "a", parts(b"data"), most=100))
        await trio.testing.wait_all_tasks_blocked(0.05)
        goes_on.set()
    assert await blobs.stat("a") is not None
