"""The grace bounds the whole stop, whatever hangs; what it takes is counted from the signal."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId
from etcd_actions.app.stop import Stop
from etcd_actions.errors import EmbeddedEtcdError
from tests.cli.command import DEADLINE, Running, finish, running, until
from tests.data.captured import HERE
from tests.server.clients import GrpcClient
from tests.support import flyte
from tests.support.etcd_server import EtcdServer, find_etcd

pytestmark = pytest.mark.slow

HISTORY = HERE / "taskaction_history.jsonl"
GRACE = 4.0
# The end of an overdue process, on a machine with much else to do.
SLACK = 3.0


@pytest.fixture
def common(shared_etcd: EtcdServer, prefix: bytes) -> tuple[str, ...]:
    return ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())


@pytest.fixture
def deaf() -> Iterator[str]:
    """A service that takes connections and answers nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


async def stops_in_time(command: Running, grace: float = GRACE) -> None:
    began = time.monotonic()
    command.signal(signal.SIGTERM)
    assert await command.wait() == 0, command.err
    assert time.monotonic() - began < grace + SLACK
    assert not command.logs("unexpected_failure")


async def test_beside_a_run_service_that_answers_nothing(
    common: tuple[str, ...], deaf: str, tmp_path: Path
) -> None:
    arguments = ("run", *common, "--run-service", deaf, "--grace", f"{GRACE}s")
    with running(tmp_path, *arguments) as run:
        await run.logged("serving")
        replayed = await trio.to_thread.run_sync(finish, "replay", str(HISTORY), *common)
        assert replayed.code == 0
        await run.logged("handler_failed")
        await stops_in_time(run)
        assert run.logs("stopped_with_unfinished_work") or run.logs("stopped_late")


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
@pytest.mark.parametrize("executor", ["none", "local"])
async def test_of_its_own_etcd_that_is_stopped(tmp_path: Path, executor: str) -> None:
    path = f"{find_etcd().parent}{os.pathsep}{os.environ['PATH']}"
    data = tmp_path / "data"
    arguments = (
        *("run", "--data-dir", data, "--embedded-port", "0", "--grace", f"{GRACE}s"),
        *("--executor", executor, "--executor-state-dir", tmp_path / "state"),
        "--executor-fork-server=false",
    )
    with running(tmp_path, *arguments, PATH=path) as run:
        await run.logged("elected")
        await run.logged("serving")
        pid = json.loads((data / "state.json").read_text())["etcd_pid"]
        os.kill(pid, signal.SIGSTOP)
        await stops_in_time(run)
        await until(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid))


async def test_what_the_forced_end_breaks_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    stop = Stop(grace=0.0, forced_code=lambda failure: 0 if failure is None else 5)
    stop.when_forced(lambda: stop.request(EmbeddedEtcdError("the embedded etcd has ended")))
    stop.start_grace()
    assert await trio.to_thread.run_sync(ended.wait, DEADLINE)
    assert codes == [0]


async def test_beside_a_client_that_reads_nothing(common: tuple[str, ...], tmp_path: Path) -> None:
    root = flyte.identifier(ActionId("p", "d", "r1", "a0", "o"))
    request = pb.WatchForUpdatesRequest(parent_action_id=root)
    with running(tmp_path, "run", *common, "--grace", f"{GRACE}s") as run:
        listen = (await run.logged("serving"))["listen"]
        host, port = listen.rsplit(":", 1)
        stream = await trio.to_thread.run_sync(GrpcClient(listen).stream, request)
        assert stream is not None
        with socket.create_connection((host, int(port))) as half:
            half.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
            await stops_in_time(run)


async def test_of_a_watch_whose_reader_stalls(common: tuple[str, ...], tmp_path: Path) -> None:
    for _ in range(4):
        replayed = await trio.to_thread.run_sync(finish, "replay", str(HISTORY), *common)
        assert replayed.code == 0
    with running(tmp_path, "watch", *common, pipe=True) as watch:
        await trio.to_thread.run_sync(watch.pipe.readline)
        await stops_in_time(watch, 10.0)


def blocked(directory: Path, code: str, grace: float = 1.0) -> tuple[subprocess.Popen[bytes], Path]:
    """A process that is the command line's, with a command that never comes back."""
    program = directory / "program.py"
    err = directory / "err"
    program.write_text(
        "import sys, threading, time\n"
        "import trio\n"
        "import etcd_actions.cli as cli\n"
        "from etcd_actions.cli.signals import open_stop\n"
        "async def command():\n"
        f"    async with open_stop({grace}) as stop:\n"
        "        print('ready', flush=True)\n"
        f"        {code}\n"
        "def main():\n"
        "    from etcd_actions.cli.log_output import configure_logs\n"
        "    configure_logs()\n"
        "    trio.run(command)\n"
        "    return 0\n"
        "cli.main = main\n"
        "cli.process_main()\n"
    )
    with err.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=file
        )
    return process, err


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(600)",
        "await trio.to_thread.run_sync(time.sleep, 600)",
        "await stop.wait(); threading.Thread(target=time.sleep, args=(600,)).start()",
        "exec('while True: pass')",
        "import os; r, w = os.pipe(); [os.write(w, b'x' * 4096) for _ in range(100)]",
    ],
    ids=["blocked loop", "thread", "thread at exit", "busy loop", "blocked write"],
)
def test_of_a_command_that_hangs(tmp_path: Path, code: str) -> None:
    process, err = blocked(tmp_path, code)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        if "at exit" not in code and "Thread(" not in code:
            assert b'"stopped_late"' in err.read_bytes()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_second_signal_ends_a_command_that_hangs_at_once(tmp_path: Path) -> None:
    """No other thread takes it, or the main thread would stay blocked."""
    process, _ = blocked(tmp_path, "time.sleep(600)", grace=600.0)
    threads = Path(f"/proc/{process.pid}/task")
    main = threads / str(process.pid)

    def of_grace() -> list[Path]:
        """The other threads, once the main thread is blocked again."""
        others = [each for each in threads.iterdir() if each != main]
        return others if "\nState:\tS" in (main / "status").read_text() else []

    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        for each in await until(of_grace):
            (masked,) = re.findall(r"\nSigBlk:\t(\w+)", (each / "status").read_text())
            for number in (signal.SIGINT, signal.SIGTERM):
                assert int(masked, 16) >> (number - 1) & 1
        process.send_signal(signal.SIGINT)
        assert await trio.to_thread.run_sync(process.wait, DEADLINE) == 130
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def is_zombie(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
