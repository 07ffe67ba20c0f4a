"""Files whose paths come from a task or over the wire: only regular ones are opened."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil
import pytest
import trio

from etcd_actions._internal.untrusted_files import (
    UnusableFile,
    clear_away,
    in_thread,
    is_regular,
    local_path,
    open_regular,
    read_regular,
)
from tests.support.odd_files import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_regular_is_named_and_not_opened(tmp_path: Path, kind: str) -> None:
    make, what = KINDS[kind]
    path = tmp_path / "file"
    make(path)
    for use in (
        lambda: read_regular(path, limit=100),
        lambda: open_regular(path, os.O_RDWR),
        lambda: is_regular(path),
    ):
        with pytest.raises(UnusableFile, match=f"{path} is {what}"):
            use()


def test_a_fifo_does_not_block_its_writers_end_either(tmp_path: Path) -> None:
    """Opening it for writing, with a reader there, would find one."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(UnusableFile, match="a FIFO"):
            open_regular(path, os.O_WRONLY)
    finally:
        os.close(reader)


def test_a_regular_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, limit=5) == b"12345"
    assert is_regular(path)
    with pytest.raises(UnusableFile, match="larger than 4 bytes"):
        read_regular(path, limit=4)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnusableFile, match="larger than 1000 bytes"):
        read_regular(path, limit=1000)


def test_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "none" / "below", tmp_path / "file" / "below"):
        assert not is_regular(path)
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            read_regular(path, limit=1)


def test_descriptors_are_not_inherited_and_none_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    (tmp_path / "directory").mkdir()
    before = psutil.Process().num_fds()
    descriptor = open_regular(path)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    for _ in range(10):
        read_regular(path, limit=10)
        with pytest.raises(UnusableFile):
            read_regular(tmp_path / "directory", limit=10)
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize("kind", [*KINDS, "file", "nothing", "full directory"])
def test_a_name_is_free_afterwards(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "file":
        path.touch()
    elif kind == "full directory":
        (path / "below").mkdir(parents=True)
    elif kind != "nothing":
        KINDS[kind][0](path)
    clear_away(path)
    assert not os.path.lexists(path)
    assert Path("/etc/passwd").exists()


async def test_a_thread_that_hangs_is_left_when_cancelled_and_after_a_while() -> None:
    release = threading.Event()
    try:
        with trio.move_on_after(0.05) as scope:
            await in_thread(60, "it", release.wait)
        assert scope.cancelled_caught
        with pytest.raises(UnusableFile, match="it did not answer within"):
            await in_thread(0.05, "it", release.wait)
    finally:
        release.set()
    assert await in_thread(60, "it", lambda: 5) == 5


@pytest.mark.parametrize("uri", ["file://[", "file://[::1]x/a", "http://[", "\0", "file://x"])
def test_what_is_no_uri_is_not_on_this_machine(uri: str) -> None:
    assert local_path(uri) is None
