"""A log that is read while it is written, renamed and put together."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.untrusted_files import UnusableFile, open_regular
from etcd_actions.executor.attempts import attempt_log
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.attempt_log import AttemptLog, LocalLogs
from etcd_actions.executor.shared_logs import SharedLogs, copied_log
from etcd_actions.executor.supervision import bounded_log
from etcd_actions.model import Incarnation
from tests.support.everyday import first_everyday
from tests.support.odd_files import KINDS
from tests.support.waiting import eventually

STREAM = b"".join(b"%06d\n" % number for number in range(3000))
MOST = 64 + 2 * 700

_WRITER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from bounded_log import BoundedLog
log = BoundedLog(os.open(sys.argv[2], os.O_RDONLY), int(sys.argv[3]))
stream = b"".join(b"%06d\\n" % number for number in range(3000))
for line in sys.stdin:
    if line == "finish\\n":
        log.finish()
    else:
        begin, end = map(int, line.split())
        log.write(stream[begin:end])
    print(flush=True)
"""


class Writer:
    """A supervisor's log, written by a process of its own: it is descriptor 2 there."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.at = 0

    def write(self, count: int) -> None:
        end = min(self.at + count, len(STREAM))
        self._do(f"{self.at} {end}")
        self.at = end

    def finish(self) -> None:
        self._do("finish")

    def _do(self, what: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "\n"


@pytest.fixture
def place(tmp_path: Path) -> AttemptDirectory:
    place = AttemptDirectory(tmp_path / "state", Incarnation(b"/k/a", 7, "u"), 1)
    place.make()
    return place


@contextmanager
def writing(place: AttemptDirectory) -> Iterator[Writer]:
    room = str(Path(bounded_log.__file__).parent)
    command = [sys.executable, "-c", _WRITER, room, str(place.path), str(MOST)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        writer = Writer(process)
        writer.write(1)
        yield writer
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


async def read_all(log: AttemptLog, into: list[bytes]) -> None:
    while data := await log.read():
        if log.has_gap:
            into.append(b"")
        into[-1] += data


def check(pieces: list[bytes], written: bytes) -> None:
    """Each piece is a part of what was written, behind the one before; the last is its end."""
    at = 0
    for piece in pieces:
        head, _, rest = piece.partition(b"omitted here)\n")
        text = rest or head
        found = written.find(text, at)
        assert found >= 0, text[:20]
        at = found + len(text)
    assert at == len(written)


@pytest.mark.parametrize("seed", first_everyday(range(3)))
async def test_what_was_there_at_a_look_is_read_whatever_follows(
    place: AttemptDirectory, seed: int
) -> None:
    """Looks are close enough together: nothing is missing, and nothing comes twice."""
    choose = random.Random(seed)
    with writing(place) as writer:
        log = AttemptLog(place)
        pieces = [b""]
        while writer.at < 6000:
            writer.write(choose.choice((1, 7, 100, 650)))
            await read_all(log, pieces)
        last = choose.choice((0, 300, 650))
        writer.write(last)
        writer.finish()
        await read_all(log, pieces)
        log.close()
    assert pieces == [STREAM[: writer.at]]


@pytest.mark.parametrize("seed", first_everyday(range(3)))
async def test_what_was_missed_is_said(place: AttemptDirectory, seed: int) -> None:
    choose = random.Random(seed)
    with writing(place) as writer:
        log = AttemptLog(place)
        pieces = [b""]
        for _ in range(12):
            writer.write(choose.choice((10, 650, 1500, 3000)))
            if choose.random() < 0.5:
                await read_all(log, pieces)
        writer.finish()
        await read_all(log, pieces)
        log.close()
    check(pieces, STREAM[: writer.at])


async def test_a_reader_that_comes_late_reads_both_files(place: AttemptDirectory) -> None:
    with writing(place) as writer:
        writer.write(600)
        writer.write(600)
        assert (place.path / "log.before").exists()
        log = AttemptLog(place)
        pieces = [b""]
        await read_all(log, pieces)
        assert pieces == [STREAM[:1201]]
        writer.finish()
        await read_all(log, pieces)
        assert pieces == [STREAM[:1201]]
        log.close()


@pytest.mark.parametrize("name", ["log", "log.before"])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_no_regular_file_is_not_read(
    place: AttemptDirectory, tmp_path: Path, name: str, kind: str
) -> None:
    (place.path / "log").touch()
    (place.path / name).unlink(missing_ok=True)
    KINDS[kind][0](place.path / name)
    logs = LocalLogs(tmp_path / "state")
    assert place.incarnation is not None
    with pytest.raises((UnusableFile, OSError)):
        async with logs.open(place.incarnation, 1):
            pass


async def test_an_attempt_is_not_taken_for_over_by_who_reads(place: AttemptDirectory) -> None:
    """Its lock is left alone: an executor that finds it locked takes the attempt for alive."""
    (place.path / "log").touch()
    log = AttemptLog(place)
    lock = place.try_lock()
    assert lock is not None
    try:
        assert not await log.has_ended()
        (place.path / "exit").write_text("0")
        assert await log.has_ended()
    finally:
        log.close()
        os.close(lock)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_a_log_is_closed_where_its_reader_left_during_the_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that may hang is abandoned, and the descriptor that it opens later is closed."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "log").write_bytes(b"line\n")
    began, goes_on, opened = threading.Event(), threading.Event(), threading.Event()

    def slow(path: str, flags: int = os.O_RDONLY, *, dir_fd: int | None = None) -> int:
        began.set()
        goes_on.wait(30)
        try:
            return open_regular(path, flags, dir_fd=dir_fd)
        finally:
            opened.set()

    monkeypatch.setattr(attempt_log, "open_regular", slow)
    logs = SharedLogs(lambda _: True)
    before = descriptors()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, began, scope)
            async with logs.open(str(tmp_path)):
                pytest.fail("the client has left")
    assert scope.cancelled_caught
    goes_on.set()
    await trio.to_thread.run_sync(opened.wait, 30)
    await eventually(lambda: descriptors() <= before)


async def _cancel_when(event: threading.Event, scope: trio.CancelScope) -> None:
    await trio.to_thread.run_sync(event.wait, 30)
    scope.cancel("the client has left")


async def test_the_copy_of_a_log_is_closed_where_its_attempt_is_left(tmp_path: Path) -> None:
    """A worker that lost its claims leaves its attempts, and follows others."""
    place = AttemptDirectory.at(tmp_path / "state" / "attempts" / "o" / "1")
    place.make()
    (place.path / "log").write_bytes(b"line\n")
    copied = tmp_path / "outputs" / "log" / "log"
    before = descriptors()
    for _ in range(3):
        copied.unlink(missing_ok=True)
        with trio.CancelScope() as scope:
            async with copied_log(place, tmp_path / "outputs", 1000, Containment()):
                await eventually(copied.exists)
                scope.cancel("the claims are lost")
                await trio.sleep_forever()
    await eventually(lambda: descriptors() <= before)
