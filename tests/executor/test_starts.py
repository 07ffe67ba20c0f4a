"""Whose fault it is that an attempt is not started, the same for each way of starting."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions._internal.containment import Containment
from etcd_actions.executor.attempts.outcome import clear
from etcd_actions.executor.attempts.output_files import Outputs
from etcd_actions.executor.attempts.start_errors import NotStarted, not_started
from etcd_actions.executor.launchers import attempts as attempts_module
from etcd_actions.executor.launchers import fork_server as fork_server_module
from etcd_actions.executor.launchers.fork_server import UNIT, ForkServer
from etcd_actions.executor.launchers.local import _DIRECTORY, _PROGRAM
from tests.executor.attempts import (
    EVERYDAY_WAYS,
    WORKING_SDK,
    Bench,
    Way,
    lives,
    make_sdk,
    open_bench,
)
from tests.support.everyday import first_everyday
from tests.support.odd_files import KINDS
from tests.support.table import table
from tests.support.waiting import eventually


async def refused(bench: Bench, command: object, *, uid: str = "uid") -> NotStarted:
    place = bench.place(uid)
    with trio.fail_after(30), pytest.raises(NotStarted) as caught:
        await bench.attempts.begin(place, command)  # type: ignore[arg-type]
    assert caught.value.error.code == "NotStarted"
    assert not place.was_started
    await eventually(lambda: not place.is_alive)
    return caught.value


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_what_no_process_can_be_given_is_the_actions_fault(tmp_path: Path, way: Way) -> None:
    async with open_bench(tmp_path, way) as bench:
        first = bench.command("pass").arguments[0]
        for command, words in (
            (bench.raw(""), "the program's name is empty"),
            (bench.raw(first, "a\0b"), "argument 1 has a NUL"),
            (bench.raw(first, "\ud800"), "argument 1 cannot be encoded"),
            (bench.raw(first, "x" * (1 << 20)), "argument 1 has 1048576 bytes"),
            (bench.raw(first, *["x" * 100_000] * 1000), "bytes together"),
            (bench.raw(first, environment={"a=b": "c"}), "'a=b'"),
            (bench.raw(first, environment={"": "c"}), "''"),
            (bench.raw(first, environment={"a\0": "c"}), "NUL"),
            (bench.raw(first, environment={"a": "c\0"}), "NUL"),
            (bench.raw(first, environment={"a": "\ud9ab"}), "encoded"),
            (bench.raw(first, directory=Path("/a\0b")), "ETCD_ACTIONS_WORKDIR"),
            (bench.command("pass", directory=tmp_path / "none"), f"{tmp_path / 'none'}: No such"),
            (bench.command("pass", directory=tmp_path / "a"), "No such"),
        ):
            error = await refused(bench, command)
            assert not error.by_machine
            assert error.error.kind == "USER"
            assert words in error.error.message
        assert await bench.run("raise SystemExit(3)") == 3


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
@pytest.mark.parametrize("kind", first_everyday(each for each in KINDS if each != "directory"))
async def test_a_working_directory_may_be_anything(tmp_path: Path, way: Way, kind: str) -> None:
    KINDS[kind][0](tmp_path / "place")
    async with open_bench(tmp_path, way) as bench:
        error = await refused(bench, bench.command("pass", directory=tmp_path / "place"))
        assert not error.by_machine
        assert str(tmp_path / "place") in error.error.message


async def test_a_program_that_is_none_is_the_actions_fault(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program\n")
    script = tmp_path / "script"
    script.write_text("echo without an interpreter\n")
    script.chmod(0o755)
    orphan = tmp_path / "orphan"
    orphan.write_text("#!/nowhere/interpreter\n")
    orphan.chmod(0o755)
    os.mkfifo(tmp_path / "fifo", 0o755)
    async with open_bench(tmp_path, "exec") as bench:
        for program, words in (
            ("/nowhere/program", "No such file"),
            ("no-such-program", "No such file"),
            (str(tmp_path), "Permission denied"),
            (str(text), "Permission denied"),
            (str(tmp_path / "fifo"), "Permission denied"),
            (str(script), "Exec format error"),
            (str(orphan), "No such file"),
            (str(text / "below"), "Not a directory"),
            ("/" + "x" * 300, "File name too long"),
        ):
            error = await refused(bench, bench.raw(program))
            assert not error.by_machine
            assert error.error.kind == "USER"
            assert error.error.message.startswith(f"{program}: ")
            assert words in error.error.message


@pytest.mark.slow
@pytest.mark.parametrize("way", EVERYDAY_WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["log", "lock", "exit", "supervisor", "work", "started.new"])
async def test_an_attempts_directory_may_hold_anything(
    tmp_path: Path, way: Way, name: str, kind: str
) -> None:
    """A task of the same user can have put it there: the attempt runs, or is refused at once."""
    async with open_bench(tmp_path, way) as bench:
        place = bench.place()
        place.make()
        KINDS[kind][0](place.path / name)
        try:
            with trio.fail_after(30):
                await bench.attempts.begin(place, bench.command("raise SystemExit(3)"))
                await bench.attempts.wait_ended(place)
        except NotStarted as error:
            assert name in error.error.message or error.by_machine  # noqa: PT017
        else:
            assert place.exit_code == 3
        assert await bench.run("raise SystemExit(4)", "other") == 4


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_outputs_that_cannot_be_cleared_are_the_actions_fault(
    tmp_path: Path, way: Way
) -> None:
    async with open_bench(tmp_path, way) as bench:
        (tmp_path / "out").rmdir()
        (tmp_path / "out").touch()
        error = await refused(bench, bench.command("pass"))
        assert not error.by_machine
        assert "out: Not a directory" in error.error.message


@pytest.mark.parametrize(
    "number",
    first_everyday(
        [
            errno.ENOSPC,
            errno.EMFILE,
            errno.ENFILE,
            errno.EAGAIN,
            errno.ENOMEM,
            errno.EDQUOT,
            errno.EROFS,
            errno.EIO,
        ]
    ),
)
@pytest.mark.parametrize("where", ["memfd_create", "pipe"])
async def test_what_the_machine_lacks_is_not_the_actions_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: str
) -> None:
    async with open_bench(tmp_path, "exec") as bench:

        def fail(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, where, fail)
            error = await refused(bench, bench.command("pass"))
        assert error.by_machine
        assert error.error.kind == "SYSTEM"
        assert os.strerror(number) in error.error.message
        assert await bench.run("raise SystemExit(3)") == 3


@table(
    ("number", "where", "by_machine"),
    [
        (errno.EAGAIN, "program", True),
        (errno.ENOMEM, "program", True),
        (errno.ENFILE, "directory", True),
        (errno.ENOSPC, "supervisor", True),
        (errno.EROFS, "state", True),
        (errno.EROFS, "outputs", False),
        (errno.E2BIG, "program", False),
        (errno.ENOENT, "program", False),
        (errno.EACCES, "program", False),
        (errno.ENOTDIR, "directory", False),
        (errno.ENOEXEC, "program", False),
        (errno.ETXTBSY, "program", False),
        (None, "process", True),
        (None, "program", False),
        (errno.ELOOP, "supervisor", False),
    ],
)
def test_errors_are_told_apart(number: int | None, where: str, by_machine: bool) -> None:
    assert not_started("it", number, "why", where).by_machine is by_machine


async def test_descriptors_that_run_out_are_the_machines_trouble(tmp_path: Path) -> None:
    import resource  # noqa: PLC0415

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with open_bench(tmp_path, "exec") as bench:
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        try:
            while True:
                try:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
                except OSError:
                    break
            place, command = bench.place(), bench.command("pass")
            for free in (0, 2, 4, 6):
                while free > 0 and taken and len(taken) > 200 - free:
                    os.close(taken.pop())
                with trio.fail_after(30), pytest.raises(NotStarted) as caught:
                    await bench.attempts.begin(place, command)
                assert caught.value.by_machine
                break
        finally:
            for each in taken:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await bench.run("raise SystemExit(3)") == 3


# A fork is refused as often as there are files $HERE/refuse*; the first one is the server's own.
REFUSING_SDK = """
import errno, glob, os, sys

real, count = os.fork, 0

def fork():
    global count
    count += 1
    if count > 1:
        for path in glob.glob(os.path.dirname(__file__) + "/../../../../refuse*"):
            os.unlink(path)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real()

os.fork = fork

def main():
    exec(sys.argv[1], {"__name__": "__main__"})
"""


async def test_a_fork_that_is_refused_is_the_machines_trouble(tmp_path: Path) -> None:
    """Whether the server's or the supervisor's; the server goes on."""
    python = make_sdk(tmp_path / "sdk", REFUSING_SDK)
    async with open_bench(tmp_path, "fork", python=python) as bench:
        assert await bench.run("raise SystemExit(3)", "before") == 3
        (tmp_path / "refuse1").touch()
        error = await refused(bench, bench.command("pass"))
        assert error.by_machine
        assert "Resource temporarily unavailable" in error.error.message
        assert bench.fork_server is not None
        assert bench.fork_server.is_healthy
        assert await bench.run("raise SystemExit(4)") == 4
        assert bench.containment.failures == {}


BROKEN = {
    "raises": "raise RuntimeError('broken inside')",
    "exits": "raise SystemExit('broken inside')",
    "has no command": "broken_inside = True",
    "is not a Python": "broken inside",
    "dies": "import os, sys\nprint('broken inside', file=sys.stderr, flush=True)\nos._exit(9)",
    "is not there": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", BROKEN)
async def test_an_sdk_that_cannot_be_imported_is_executed_after_some_tries(
    tmp_path: Path, how: str
) -> None:
    """What the fork server's log says is in the error, and readiness tells."""
    python = make_sdk(tmp_path / "sdk", BROKEN[how])
    async with open_bench(tmp_path, "fork", python=python) as bench:
        assert bench.fork_server is not None
        error = await refused(bench, bench.command("pass"))
        assert not bench.fork_server.is_healthy
        assert "a0: No such file" in error.error.message
        word = "flyte" if how in ("is not there", "has no command") else "broken inside"
        assert word in error.error.message
        (parked,) = bench.containment.parked
        assert (parked.kind, parked.identity) == (UNIT, str(python))
        # With a program a0 it is what runs; with an SDK that is mended, the server.
        program = tmp_path / "sdk" / "bin" / "a0"
        program.write_text("#!/bin/sh\nexit 7\n")
        program.chmod(0o755)
        assert await bench.run("pass") == 7
        runtime = tmp_path / "sdk" / "packages" / "flyte" / "_bin"
        runtime.mkdir(parents=True, exist_ok=True)
        (runtime / "runtime.py").write_text(WORKING_SDK)
        await eventually(lambda: not bench.containment.parked)
        assert await bench.run("raise SystemExit(5)", "mended") == 5


def with_a_thread(seconds: float) -> str:
    """An SDK whose import leaves a thread behind for so long."""
    return (
        "import threading, time\n"
        f"threading.Thread(target=time.sleep, args=({seconds},), daemon=True, name='poller')"
        f".start()\n{WORKING_SDK}"
    )


@pytest.mark.slow
async def test_an_sdk_that_has_threads_is_executed_and_not_tried_again(tmp_path: Path) -> None:
    """As releases with gRPC have: one warning says so, and nothing waits to be mended."""
    sdk = with_a_thread(1000)
    python = make_sdk(tmp_path / "sdk", sdk, command="#!/bin/sh\nexit 7\n")
    with capture_logs() as lines:
        async with open_bench(tmp_path, "fork", python=python) as bench:
            assert await bench.run("pass") == 7
            (said,) = (each for each in lines if each["event"] == "fork_server_not_used")
            assert said["log_level"] == "warning"
            assert "poller" in said["error"]
            assert "restarted" in said["instead"]
            assert (bench.containment.parked, bench.containment.failures) == ((), {})
            server = bench.fork_server
            assert server is not None
            assert not server.is_healthy
            assert "poller" in server.trouble
            assert await bench.run("pass", "next") == 7
    assert "unit_failed" not in {each["event"] for each in lines}


@pytest.mark.slow
async def test_a_thread_that_ends_is_waited_for(tmp_path: Path) -> None:
    python = make_sdk(tmp_path / "sdk", with_a_thread(0.3), command="#!/bin/sh\nexit 7\n")
    async with open_bench(tmp_path, "fork", python=python) as bench:
        assert await bench.run("raise SystemExit(5)") == 5


@pytest.mark.slow
async def test_an_import_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server_module, "_READY_WITHIN", 0.5)
    python = make_sdk(
        tmp_path / "sdk", "import time\ntime.sleep(1000)", command="#!/bin/sh\nexit 7\n"
    )
    async with open_bench(tmp_path, "fork", python=python) as bench:
        assert await bench.run("pass") == 7
        assert bench.containment.parked


async def test_exit_codes_survive_the_fork_server(tmp_path: Path) -> None:
    """It is killed while children run: their ends are seen, and the next ones are started."""
    async with open_bench(tmp_path, "fork") as bench:
        code = """
import os, sys, time
while not os.path.exists(os.environ["HERE"] + "/go"):
    time.sleep(0.01)
sys.exit(int(os.environ["CODE"]))
"""
        places = [bench.place(f"uid{number}") for number in range(3)]
        for number, place in enumerate(places):
            command = bench.command(code, environment={"CODE": str(40 + number)})
            outputs = tmp_path / "out" / str(number)
            await bench.attempts.begin(place, replace(command, outputs=outputs))
        (server,) = fork_servers(tmp_path)
        os.kill(server, signal.SIGKILL)
        await eventually(lambda: not lives(server))
        (tmp_path / "go").touch()
        with trio.fail_after(20):
            for place in places:
                await bench.attempts.wait_ended(place)
        assert [place.exit_code for place in places] == [40, 41, 42]
        assert [(place.path / "exit").read_text().strip() for place in places] == ["40", "41", "42"]
        assert await bench.run("raise SystemExit(6)") == 6


def fork_servers(directory: Path) -> list[int]:
    """The fork servers that write into a directory."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes()
            log = (process / "fd" / "2").readlink()
        except (OSError, ValueError):
            continue
        if b"fork_server_main" in command and log == directory / "state" / "fork-server.log":
            found.append(int(process.name))
    return found


async def test_nonsense_on_its_socket_ends_neither_side(tmp_path: Path) -> None:
    import socket  # noqa: PLC0415

    async with open_bench(tmp_path, "fork") as bench:
        assert await bench.run("raise SystemExit(3)", "before") == 3
        server = bench.fork_server
        assert server is not None
        sock = server._socket
        assert sock is not None
        (before,) = fork_servers(tmp_path)
        null = os.open(os.devnull, os.O_RDONLY)
        sock.send(b"\xff" * 60_000)
        sock.send(b"start")
        for count in (1, 3, 5, 40):
            socket.send_fds(sock, [b"start"], [null] * count)
        # No directory, no lock, no pipe, no request.
        socket.send_fds(sock, [b"start"], [null] * 4)
        os.close(null)
        assert await bench.run("raise SystemExit(4)") == 4
        # The fork that got four descriptors of nothing ends by itself.
        await eventually(lambda: fork_servers(tmp_path) == [before])
        assert bench.containment.failures == {}


@pytest.mark.parametrize(
    "data", [b"\xff", b"{}", b"[]", b"1", b"[" * 50_000, b'{"ended": 5}', b"null"]
)
async def test_nonsense_from_the_fork_server_is_passed_over(tmp_path: Path, data: bytes) -> None:
    import socket  # noqa: PLC0415

    server = ForkServer(Path(sys.executable), tmp_path, Containment())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(data)
        assert not await server._is_ready(ours)
        theirs.send(b'{"ready": 1}')
        assert await server._is_ready(ours)


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
@pytest.mark.parametrize(
    "request_", first_everyday([b"{", b"", b"[]", b"\xff", b'{"log_bytes": "x"}'])
)
async def test_a_request_that_is_none_is_told(tmp_path: Path, way: Way, request_: bytes) -> None:
    """The supervisor says so, and nothing else is harmed."""
    async with open_bench(tmp_path, way) as bench:
        place = bench.place()
        place.make()
        said, speaks = os.pipe()
        lock = place.try_lock()
        assert lock is not None
        with place.open_directory() as directory, (tmp_path / "request").open("wb+") as file:
            file.write(request_)
            file.flush()
            descriptors = [directory, lock, speaks, file.fileno()]
            if bench.fork_server is not None:
                assert await bench.fork_server.start(descriptors)
            else:
                subprocess.run(
                    [
                        *(sys.executable, "-I", "-S", "-c", _PROGRAM, _DIRECTORY),
                        *map(str, descriptors),
                    ],
                    pass_fds=descriptors,
                    check=True,
                )
            os.close(speaks)
        os.close(lock)
        with os.fdopen(said, "rb") as report:
            line = await trio.to_thread.run_sync(report.readline)
        assert b'"failed"' in line
        assert b'"supervisor"' in line
        # Of another action: the supervisor that said so may hold this one's lock a moment longer.
        assert await bench.run("raise SystemExit(3)", uid="other") == 3


async def test_an_attempt_stays_locked_until_its_outputs_are_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its start is cancelled while their file system hangs; a later start waits for its answer."""
    began, goes_on = threading.Event(), threading.Event()

    def slow(outputs: Outputs) -> None:
        began.set()
        goes_on.wait(30)
        clear(outputs)

    monkeypatch.setattr(attempts_module, "clear", slow)
    async with open_bench(tmp_path, "exec") as bench:
        place, command = bench.place(), bench.command("pass")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel() -> None:
                    await trio.to_thread.run_sync(began.wait, 30)
                    scope.cancel("the claims are lost")

                nursery.start_soon(cancel)
                await bench.attempts.begin(place, command)
        assert scope.cancelled_caught
        assert place.try_lock() is None
        assert not place.was_started
        goes_on.set()
        with trio.fail_after(30):
            await bench.attempts.begin(place, command)
            await bench.attempts.wait_ended(place)
        assert place.exit_code == 0
        assert not place.is_alive
