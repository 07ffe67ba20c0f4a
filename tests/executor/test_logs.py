"""A log is bounded while it grows, and a disk that is full stops no task."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from etcd_actions.executor.supervision.bounded_log import BoundedLog
from tests.executor.attempts import EVERYDAY_WAYS, Way, open_bench
from tests.support.everyday import first_everyday
from tests.support.odd_files import KINDS
from tests.support.waiting import eventually

STREAM = b"".join(b"%03d" % number for number in range(1000))


def size_of(directory: Path) -> int:
    """The size of a log, with its earlier part."""
    while True:
        # A file that was found may have another name by now.
        with suppress(FileNotFoundError):
            return sum(path.stat().st_size for path in directory.glob("log*"))


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_a_log_is_bounded_while_it_grows(tmp_path: Path, way: Way) -> None:
    most = 64 * 1024
    code = """
import os, sys
for number in range(2000):
    os.write(1 + number % 2, b"%06d" % number + b"x" * 993 + b"\\n")
open(os.environ["HERE"] + "/written", "w").close()
while not os.path.exists(os.environ["HERE"] + "/go"):
    pass
"""
    async with open_bench(tmp_path, way, log_bytes=most) as bench:
        place = bench.place()
        await bench.attempts.begin(place, bench.command(code))
        await eventually((tmp_path / "written").exists)
        assert size_of(place.path) <= most
        (tmp_path / "go").touch()
        with trio.fail_after(20):
            await bench.attempts.wait_ended(place)
        assert place.exit_code == 0
        assert [path.name for path in place.path.glob("log*")] == ["log"]
        log = (place.path / "log").read_bytes()
    assert len(log) <= most
    assert log.startswith(b"(")
    assert b"bytes are omitted here" in log.splitlines()[0]
    # The end is there, without a gap.
    numbers = [int(line[:6]) for line in log.splitlines()[2:]]
    assert numbers == list(range(numbers[0], 2000))
    assert len(numbers) > 25
    assert place.last_lines().endswith("x" * 900)


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_a_short_log_is_whole(tmp_path: Path, way: Way) -> None:
    async with open_bench(tmp_path, way) as bench:
        code = "import sys\nprint('out', flush=True)\nprint('err', file=sys.stderr)"
        assert await bench.run(code) == 0
        assert (bench.place().path / "log").read_text() == "out\nerr\n"
        assert bench.place().last_lines() == "out\nerr"


@pytest.mark.parametrize("kind", first_everyday(KINDS, 3))
@pytest.mark.parametrize("name", first_everyday(["log", "log.before", "log.new"]))
async def test_a_task_may_put_anything_in_place_of_its_log(
    tmp_path: Path, name: str, kind: str
) -> None:
    async with open_bench(tmp_path, "exec", log_bytes=8192) as bench:
        place = bench.place()
        code = """
import os, time
while not os.path.exists(os.environ["HERE"] + "/go"):
    time.sleep(0.005)
for _ in range(50):
    os.write(1, b"x" * 999 + b"\\n")
raise SystemExit(3)
"""
        await bench.attempts.begin(place, bench.command(code))
        (place.path / name).unlink(missing_ok=True)
        KINDS[kind][0](place.path / name)
        (tmp_path / "go").touch()
        with trio.fail_after(20):
            await bench.attempts.wait_ended(place)
        assert place.exit_code == 3
        assert Path("/etc/passwd").stat().st_size > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if made.returncode:
        pytest.skip("only root mounts a small file system")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_a_full_disk_neither_stops_a_task_nor_loses_its_exit_code(
    small_disk: Path, tmp_path: Path, way: Way
) -> None:
    code = """
import os
for _ in range(500):
    os.write(1, b"x" * 999 + b"\\n")
os.rename(os.environ["HERE"] + "/outputs.new", os.environ["HERE"] + "/outputs")
raise SystemExit(3)
"""
    state = tmp_path / "state"
    state.symlink_to(small_disk)
    (tmp_path / "outputs.new").touch()
    async with open_bench(tmp_path, way) as bench:
        assert await bench.run(code) == 3
        assert (tmp_path / "outputs").exists()
        # Also for an executor that was not there.
        assert (bench.place().path / "exit").read_text().strip() == "3"


async def test_a_disk_that_is_full_at_the_start_is_the_machines_trouble(
    small_disk: Path, tmp_path: Path
) -> None:
    from etcd_actions.executor.attempts.start_errors import NotStarted  # noqa: PLC0415

    (tmp_path / "state").symlink_to(small_disk)
    async with open_bench(tmp_path, "exec") as bench:
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb") as file:
            file.write(b"x" * (1 << 20))
        for number in range(1000):
            try:
                (small_disk / f"f{number}").mkdir()
            except OSError:
                break
        with trio.fail_after(20), pytest.raises(NotStarted) as caught:
            await bench.attempts.begin(bench.place(), bench.command("pass"))
        assert caught.value.by_machine
        assert caught.value.error.kind == "SYSTEM"
        assert "No space" in caught.value.error.message
        filler.unlink()
        for path in small_disk.glob("f*"):
            path.rmdir()
        assert await bench.run("raise SystemExit(3)") == 3


def test_a_log_takes_what_is_larger_than_itself(tmp_path: Path) -> None:
    """In a process of its own: it is descriptor 2 there."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            directory = os.open(tmp_path, os.O_RDONLY)
            log = BoundedLog(directory, 164)
            for begin, end in ((0, 10), (10, 1000), (1000, 1010), (1010, 1070)):
                log.write(STREAM[begin:end])
            log.finish()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    log_ = (tmp_path / "log").read_bytes()
    head, _, kept = log_.partition(b"\n")
    assert head == b"(%d bytes are omitted here)" % (1070 - len(kept))
    assert 50 <= len(kept) <= 100
    assert STREAM[:1070].endswith(kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]
