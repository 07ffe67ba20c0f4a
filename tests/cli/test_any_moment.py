"""A first signal at any moment of the start, and a second one at any moment of the stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.cli.command import Running, running, until
from tests.support.etcd_server import EtcdServer, find_etcd

# Each starts tens of processes.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
]

STEP = 0.02
# At once: more would only wait for the processors.
SIDE_BY_SIDE = 3
# Also on a machine with much else to do; the hang that this is about lasts for ever.
WITHIN = 20.0


@pytest.fixture
def common(shared_etcd: EtcdServer, prefix: bytes) -> tuple[str, ...]:
    return ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())


@pytest.fixture
def hung_python(tmp_path: Path) -> Path:
    """What stands for an SDK that takes its time."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(stat.S_IRWXU)
    return python


async def ended(command: Running, codes: Sequence[int] = (0,)) -> None:
    with trio.fail_after(WITHIN):
        assert await command.wait() in codes, command.err
    assert "Traceback" not in command.err
    assert "unexpected_failure" not in command.err


async def over_the_start(
    directory: Path, arguments: Sequence[str | Path], seconds: float, path: str = ""
) -> None:
    """Send SIGTERM each 20 ms after the command's first line, to a new process each time."""
    limit = trio.CapacityLimiter(SIDE_BY_SIDE)

    async def once(number: int) -> None:
        own = directory / str(number)
        own.mkdir()
        given = [str(each).replace("{own}", str(own)) for each in arguments]
        async with limit:
            with running(own, *given, PATH=path or os.environ["PATH"]) as command:
                await command.handles(signal.SIGTERM)
                await trio.sleep(number * STEP)  # The moment that is tried.
                command.signal(signal.SIGTERM)
                await ended(command)

    async with trio.open_nursery() as nursery:
        for number in range(int(seconds / STEP)):
            nursery.start_soon(once, number)


async def start_time(directory: Path, arguments: Sequence[str | Path], event: str) -> float:
    """How long a start takes, and a little more."""
    own = directory / "first"
    own.mkdir()
    with running(own, *(str(each).replace("{own}", str(own)) for each in arguments)) as command:
        await command.handles(signal.SIGTERM)
        began = time.monotonic()
        await command.logged(event)
        seconds = time.monotonic() - began
        command.signal(signal.SIGTERM)
        await ended(command)
    # Beside others it takes longer; above this the test would take too long.
    return min(seconds * 1.5 + 0.2, 1.6)


async def test_run(common: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ("run", *common)
    await over_the_start(tmp_path, arguments, await start_time(tmp_path, arguments, "serving"))


async def test_run_with_the_executor(common: tuple[str, ...], tmp_path: Path) -> None:
    arguments = (
        *("run", *common, "--executor", "local", "--executor-state-dir", "{own}/state"),
        "--executor-fork-server=false",
    )
    await over_the_start(tmp_path, arguments, await start_time(tmp_path, arguments, "serving"))


async def test_run_with_an_etcd_of_its_own(tmp_path: Path) -> None:
    path = f"{find_etcd().parent}{os.pathsep}{os.environ['PATH']}"
    arguments = ("run", "--data-dir", "{own}/data", "--embedded-port", "0")
    seconds = await start_time(tmp_path, arguments, "serving")
    await over_the_start(tmp_path, arguments, seconds, path)
    for data in tmp_path.glob("*/data"):
        state = data / "state.json"
        if state.exists():
            assert json.loads(state.read_text())["etcd_pid"] == 0
    assert not [pid for pid in pids() if str(tmp_path).encode() in command_line(pid)]


async def test_watch_record_and_doctor(common: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("watch", "record", "doctor"):
        (tmp_path / name).mkdir()
    await over_the_start(tmp_path / "watch", ("watch", *common), 0.8)
    record = ("record", "{own}/record", *common)
    await over_the_start(tmp_path / "record", record, 0.8)
    # An etcd that answers would let it end by itself, with 8 for a warning or 9.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nowhere = ("--endpoints", f"127.0.0.1:{silent.getsockname()[1]}")
        await over_the_start(tmp_path / "doctor", ("doctor", *nowhere), 0.8)


async def test_submit(common: tuple[str, ...], tmp_path: Path, hung_python: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("")
    arguments = (
        *("submit", f"{program}:task", "--python", str(hung_python), *common),
        *("--output-base", "{own}/base"),
    )
    await over_the_start(tmp_path, arguments, 1.0)
    assert not [pid for pid in pids() if str(hung_python).encode() in command_line(pid)]


async def test_a_second_signal_at_any_moment_of_the_stop(
    common: tuple[str, ...], tmp_path: Path
) -> None:
    limit = trio.CapacityLimiter(SIDE_BY_SIDE)

    async def once(number: int) -> None:
        own = tmp_path / str(number)
        own.mkdir()
        async with limit:
            with running(own, "run", *common) as command:
                await command.logged("serving")
                command.signal(signal.SIGTERM)
                await trio.sleep(number * STEP)  # The moment that is tried.
                command.signal(signal.SIGTERM)
                # It was done already, or it ends at once.
                await ended(command, (0, 128 + signal.SIGTERM))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(once, number)


async def test_it_leaves_no_etcd_behind_when_ended_twice(tmp_path: Path) -> None:
    path = f"{find_etcd().parent}{os.pathsep}{os.environ['PATH']}"
    data = tmp_path / "data"
    for number in range(8):
        with running(
            tmp_path, "run", "--data-dir", data, "--embedded-port", "0", PATH=path
        ) as command:
            await command.logged("serving")
            command.signal(signal.SIGTERM)
            await trio.sleep(number * STEP)  # The moment that is tried.
            command.signal(signal.SIGINT)
            # Of two that come at once the system chooses which is the second.
            await ended(command, (0, 128 + signal.SIGINT, 128 + signal.SIGTERM))
    await until(lambda: not [pid for pid in pids() if str(data).encode() in command_line(pid)])


def pids() -> list[int]:
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
