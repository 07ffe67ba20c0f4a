"""What only a folder can get wrong: links, leftovers, file systems."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_actions.blobs import BlobError, BlobExists
from etcd_actions.blobs.folder import PARTIAL, FolderStore
from etcd_actions.errors import ConfigError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


async def parts(data: bytes) -> AsyncIterator[bytes]:
    await trio.lowlevel.checkpoint()
    yield data


async def put(blobs: FolderStore, key: str, data: bytes = b"x") -> None:
    await blobs.put(key, parts(data), most=100)


async def is_there(blobs: FolderStore, key: str) -> bool:
    async with blobs.read(key) as blob:
        return blob is not None


async def test_no_link_is_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    blobs = FolderStore(root)
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    for key in ("link/secret", "link/new"):
        with pytest.raises(BlobError):
            await put(blobs, key)
    with pytest.raises(BlobError):
        await put(blobs, "file")
    for key in ("link/secret", "file"):
        assert await blobs.stat(key) is None
    assert not await is_there(blobs, "link/secret")
    with pytest.raises(BlobError):
        await is_there(blobs, "file")
    assert not await blobs.delete("link/secret")
    assert [info async for info in blobs.below("link")] == []
    assert [path.name for path in outside.iterdir()] == ["secret"]


async def test_a_fifo_or_a_directory_is_no_blob(root: Path) -> None:
    blobs = FolderStore(root)
    (root / "directory").mkdir()
    os.mkfifo(root / "fifo")
    for key in ("directory", "fifo"):
        with pytest.raises(BlobError):
            await put(blobs, key)
        assert await blobs.stat(key) is None


async def test_nothing_partial_is_left(root: Path) -> None:
    blobs = FolderStore(root)
    await put(blobs, "a/b/c")
    with pytest.raises(BlobExists):
        await put(blobs, "a/b/c", b"other")
    assert list((root / PARTIAL).iterdir()) == []
    assert await blobs.delete("a/b/c")
    assert [path.name for path in root.iterdir()] == [PARTIAL]


def test_what_a_killed_process_left_is_swept_when_it_is_old(root: Path) -> None:
    FolderStore(root)
    old, new = root / PARTIAL / "old", root / PARTIAL / "new"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 90_000,) * 2)
    FolderStore(root)
    assert [path.name for path in (root / PARTIAL).iterdir()] == ["new"]


async def test_a_file_system_without_links(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    blobs = FolderStore(root)
    await put(blobs, "a")
    await put(blobs, "a")
    with pytest.raises(BlobExists):
        await put(blobs, "a", b"other")
    assert (root / "a").read_bytes() == b"x"
    assert list((root / PARTIAL).iterdir()) == []


async def test_a_full_disk_is_an_error_of_the_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    blobs = FolderStore(root)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(BlobError, match="No space left"):
        await put(blobs, "a")
    assert await blobs.stat("a") is None
    assert list((root / PARTIAL).iterdir()) == []


def test_an_unusable_folder_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"):
        FolderStore(tmp_path / "file" / "below")
    (tmp_path / PARTIAL).symlink_to(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be used"):
        FolderStore(tmp_path)


async def test_a_move_without_links_excludes_other_renames(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks whether the name is free, then renames: an upload in between would be replaced."""

    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def checked(*arguments: Any, **options: Any) -> None:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        renames.append(arguments)
        rename(*arguments, **options)

    blobs = FolderStore(root)
    await put(blobs, "a")
    lock, rename = os.open(root / PARTIAL, os.O_RDONLY), os.rename
    renames: list[object] = []
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "rename", checked)
    try:
        assert await blobs.move("a", "b")
    finally:
        os.close(lock)
    assert len(renames) == 1
    assert (root / "b").read_bytes() == b"x"
