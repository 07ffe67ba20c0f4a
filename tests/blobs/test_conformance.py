"""What every store of blobs promises."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest
import trio

from etcd_actions.blobs import BlobExists, BlobMismatch, BlobStore, BlobTooLarge
from etcd_actions.errors import InvalidArgument
from tests.support.waiting import eventually_holds

KEY = "uploads/p/d/content/x/a b%20ü.tar.gz"
MOST = 1 << 30


async def parts(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        await trio.lowlevel.checkpoint()
        yield each


async def content(blobs: BlobStore, key: str, *bounds: int) -> bytes | None:
    async with blobs.read(key, *bounds) as blob:
        if blob is None:
            return None
        return b"".join([part async for part in blob.parts])


async def keys(blobs: BlobStore, prefix: str) -> list[str]:
    return [info.key async for info in blobs.below(prefix)]


async def test_what_is_put_is_read(blobs: BlobStore) -> None:
    data = bytes(range(256)) * 20_000
    assert await blobs.stat(KEY) is None
    assert await content(blobs, KEY) is None
    put = await blobs.put(KEY, parts(data[:1000], b"", data[1000:]), most=MOST)
    assert (put.key, put.size) == (KEY, len(data))
    found = await blobs.stat(KEY)
    assert found is not None
    assert found.size == len(data)
    assert await content(blobs, KEY) == data
    assert await content(blobs, KEY, 10, 20) == data[10:30]
    assert await content(blobs, KEY, len(data) - 5) == data[-5:]
    assert await content(blobs, KEY, len(data) + 5, 7) == b""


async def test_an_empty_blob_is_one(blobs: BlobStore) -> None:
    await blobs.put(KEY, parts(), most=0, length=0, md5=hashlib.md5(b"").digest())
    assert await content(blobs, KEY) == b""


async def test_what_was_announced_has_to_arrive(blobs: BlobStore) -> None:
    with pytest.raises(BlobMismatch):
        await blobs.put(KEY, parts(b"abc"), most=MOST, length=4)
    with pytest.raises(BlobMismatch):
        await blobs.put(KEY, parts(b"abc"), most=MOST, md5=hashlib.md5(b"abd").digest())
    with pytest.raises(BlobTooLarge):
        await blobs.put(KEY, parts(b"abc", b"d"), most=3)
    assert await blobs.stat(KEY) is None
    await blobs.put(KEY, parts(b"abc"), most=3, length=3, md5=hashlib.md5(b"abc").digest())
    assert await content(blobs, KEY) == b"abc"


async def test_a_blob_never_changes(blobs: BlobStore) -> None:
    await blobs.put(KEY, parts(b"one"), most=MOST)
    await blobs.put(KEY, parts(b"one"), most=MOST)
    for other in (b"two", b"longer"):
        with pytest.raises(BlobExists):
            await blobs.put(KEY, parts(other), most=MOST)
    assert await content(blobs, KEY) == b"one"


async def test_a_broken_or_cancelled_upload_leaves_nothing(blobs: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a" * (3 << 20)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await blobs.put(KEY, broken(), most=MOST)

    async def hanging() -> AsyncIterator[bytes]:
        yield b"a" * (3 << 20)
        scope.cancel()
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        await blobs.put(KEY, hanging(), most=MOST)
    assert scope.cancelled_caught
    assert await blobs.stat(KEY) is None
    assert await keys(blobs, "uploads") == []


async def test_of_two_uploads_at_once_one_wins(blobs: BlobStore) -> None:
    size = 1 << 18
    # Of several keys, since two writes of one key do not meet each time.
    names = [f"{KEY}{number}" for number in range(8)]
    outcomes: dict[str, list[str]] = {name: [] for name in names}
    all_of_them = trio.Event()
    begun = 0

    async def put(name: str, letter: bytes) -> None:
        async def slow() -> AsyncIterator[bytes]:
            nonlocal begun
            yield letter * size
            begun += 1
            if begun == 2 * len(names):
                all_of_them.set()
            await all_of_them.wait()
            yield letter

        try:
            await blobs.put(name, slow(), most=MOST)
            outcomes[name].append("stored")
        except BlobExists:
            outcomes[name].append("refused")

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(put, name, b"a")
            nursery.start_soon(put, name, b"b")
    for name in names:
        assert sorted(outcomes[name]) == ["refused", "stored"], name
        found = await content(blobs, name)
        assert found in [letter * (size + 1) for letter in (b"a", b"b")], name


async def test_blobs_are_listed_below_whole_parts_and_deleted(blobs: BlobStore) -> None:
    for key in ("runs/p/d/r1/a", "runs/p/d/r1/b/c", "runs/p/d/r10/a", "runs/p/d/r2"):
        await blobs.put(key, parts(b"x"), most=1)
    assert await keys(blobs, "runs/p/d/r1") == ["runs/p/d/r1/a", "runs/p/d/r1/b/c"]
    assert len(await keys(blobs, "runs")) == 4
    assert await keys(blobs, "nothing/here") == []
    assert await blobs.delete("runs/p/d/r1/b/c")
    assert not await blobs.delete("runs/p/d/r1/b/c")
    assert await keys(blobs, "runs/p/d/r1") == ["runs/p/d/r1/a"]


async def test_a_native_url_leads_back(blobs: BlobStore) -> None:
    url = blobs.native_url(KEY)
    assert blobs.key_of(url) == KEY
    base = blobs.native_url("x").removesuffix("/x")
    for other in (
        base,
        base + "/",
        base + "/../x",
        base + "x/y",
        "s3://other/x",
        "/etc/passwd",
        "",
    ):
        assert blobs.key_of(other) is None


HOSTILE = [
    "",
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/./b",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    ".partial/x",
    "x" * 256,
    "/".join(["x" * 200] * 6),
    "/".join("x" * 60),
    "\ud800",
]


@pytest.mark.parametrize("key", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_hostile_key_is_refused_by_everything(blobs: BlobStore, key: str) -> None:
    with pytest.raises(InvalidArgument):
        await blobs.put(key, parts(b"x"), most=1)
    with pytest.raises(InvalidArgument):
        await content(blobs, key)
    with pytest.raises(InvalidArgument):
        await blobs.stat(key)
    with pytest.raises(InvalidArgument):
        await blobs.delete(key)
    with pytest.raises(InvalidArgument):
        await keys(blobs, key)
    with pytest.raises(InvalidArgument):
        blobs.native_url(key)


async def test_a_blob_gets_another_key(blobs: BlobStore) -> None:
    await blobs.put(KEY, parts(b"one"), most=MOST)
    assert not await blobs.move("uploads/nothing", "trash/x")
    assert await blobs.move(KEY, "trash/17/x")
    assert await blobs.stat(KEY) is None
    assert await content(blobs, "trash/17/x") == b"one"
    # Never over another one.
    await blobs.put(KEY, parts(b"two"), most=MOST)
    assert not await blobs.move("trash/17/x", KEY)
    assert await content(blobs, KEY) == b"two"
    assert await content(blobs, "trash/17/x") == b"one"
    assert await blobs.delete(KEY)
    assert await blobs.move("trash/17/x", KEY)
    assert await keys(blobs, "trash") == []
    assert await content(blobs, KEY) == b"one"


async def test_a_blob_that_was_stored_again_stays(blobs: BlobStore) -> None:
    await blobs.put(KEY, parts(b"one"), most=MOST)
    info = await blobs.stat(KEY)
    assert info is not None
    assert info.modified > 0
    assert not await blobs.move(KEY, "trash/x", unless_after=info.modified - 1)
    assert await keys(blobs, "trash") == []
    assert await content(blobs, KEY) == b"one"
    assert await blobs.move(KEY, "trash/x", unless_after=info.modified)


async def test_the_same_content_again_counts_as_stored_now(blobs: BlobStore) -> None:
    await blobs.put(KEY, parts(b"one"), most=MOST)
    before = await blobs.stat(KEY)
    assert before is not None

    async def is_newer() -> bool:
        await blobs.put(KEY, parts(b"one"), most=MOST)
        after = await blobs.stat(KEY)
        return after is not None and after.modified > before.modified

    # The clock of a file system has steps.
    await eventually_holds(is_newer)
    assert await content(blobs, KEY) == b"one"


async def test_one_that_was_stored_later_is_not_deleted(blobs: BlobStore) -> None:
    await blobs.put(KEY, parts(b"abc"), most=MOST)
    found = await blobs.stat(KEY)
    assert found is not None
    assert not await blobs.delete(KEY, unless_after=found.modified - 1)
    assert await content(blobs, KEY) == b"abc"
    assert await blobs.delete(KEY, unless_after=found.modified)
    assert await blobs.stat(KEY) is None
    assert not await blobs.delete(KEY, unless_after=found.modified)
    assert await keys(blobs, "uploads") == []
