"""How the processes end: drained, at once, with their etcd, or when nobody reads on."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from etcd_actions.etcd.api import Etcd
from tests.cli.command import DEADLINE, finish, running, until
from tests.data.captured import EVENTS, HERE, PUTS
from tests.support.etcd_server import EtcdServer, find_etcd
from tests.support.everyday import first_everyday

HISTORY = HERE / "taskaction_history.jsonl"
# So often that its replay outlives what happens beside it.
MANY_TIMES = 20
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")


@pytest.fixture
def common(shared_etcd: EtcdServer, prefix: bytes) -> tuple[str, ...]:
    return ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())


async def put_unmarkable(etcd: Etcd, prefix: bytes) -> None:
    """Put an ending so large that the mark does not fit, so that draining never ends."""
    done = next(event for event in PUTS if b'"Succeeded"' in event.value)
    stored = json.loads(done.value)
    stored["metadata"]["annotations"] = {"filler": ""}
    room = 1536 * 1024 - 130 - len(prefix) - len(json.dumps(stored, separators=(",", ":")))
    stored["metadata"]["annotations"]["filler"] = "x" * room
    value = json.dumps(stored, separators=(",", ":")).encode()
    await etcd.put(prefix + b"flyte/big-a0", value)


@pytest.mark.parametrize("number", first_everyday([signal.SIGTERM, signal.SIGINT]))
async def test_first_signal_drains_while_events_flow(
    common: tuple[str, ...], tmp_path: Path, number: signal.Signals
) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text(HISTORY.read_text() * MANY_TIMES)
    with (
        running(tmp_path, "run", *common) as run,
        running(tmp_path, "watch", *common) as watch,
    ):
        await run.logged("synced")
        await watch.row("SYNCED")
        with running(tmp_path, "replay", history, "--rate", "20", *common) as replay:
            await watch.until(lambda: any(row.get("terminal") for row in watch.rows()))
            run.signal(number)
            watch.signal(number)
            assert await run.wait() == 0
            assert await watch.wait() == 0
            stopped = run.logs("stopped")[0]
            seen = stopped["handled"] + stopped["conflated"]
            assert 0 < seen < MANY_TIMES * len(EVENTS) + stopped["marked"]
            assert run.logs("stopping")[0]["signal"] == number.name
            assert not run.logs("stopped_with_unfinished_work")
            assert replay.process.poll() is None
            replay.signal(number)
            assert await replay.wait() == 0


@pytest.mark.parametrize(
    ("second", "code"), first_everyday([(signal.SIGINT, 130), (signal.SIGTERM, 143)])
)
async def test_second_signal_ends_run_at_once(
    common: tuple[str, ...],
    etcd: Etcd,
    prefix: bytes,
    tmp_path: Path,
    second: signal.Signals,
    code: int,
) -> None:
    await put_unmarkable(etcd, prefix)
    with running(tmp_path, "run", "--grace", "600", *common) as run:
        await run.logged("handler_failed")
        run.signal(signal.SIGTERM)
        await run.logged("stopping")
        run.signal(second)
        assert await run.wait() == code


async def test_grace_ends(
    common: tuple[str, ...], etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    await put_unmarkable(etcd, prefix)
    with running(tmp_path, "run", "--grace", "0.1", *common) as run:
        await run.logged("handler_failed")
        run.signal(signal.SIGTERM)
        assert await run.wait() == 0
        assert run.logs("stopped_with_unfinished_work")


async def test_signal_while_etcd_is_waited_for(tmp_path: Path) -> None:
    nowhere = ("--endpoints", "127.0.0.1:1")
    with running(tmp_path, "run", *nowhere) as run, running(tmp_path, "watch", *nowhere) as watch:
        for each in (run, watch):
            await each.logged("watch_lost")
            each.signal(signal.SIGTERM)
            assert await each.wait() == 0


@needs_linux
@pytest.mark.parametrize(
    ("arguments", "code"),
    first_everyday(
        [(("run",), 0), (("list",), 143), (("watch",), 0), (("abort", "p/d/r/a0"), 143)], 2
    ),
    ids=lambda each: each[0] if isinstance(each, tuple) else None,
)
async def test_a_signal_at_the_first_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    # An endpoint that accepts and never answers, so that no command ends by itself.
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        running(
            tmp_path, *arguments, "--endpoints", f"127.0.0.1:{silent.getsockname()[1]}"
        ) as command,
    ):
        await command.handles(signal.SIGTERM)
        command.signal(signal.SIGTERM)
        assert await command.wait() == code
        assert "Traceback" not in command.err


async def test_replay_waiting_for_its_input_is_stopped(
    common: tuple[str, ...], tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # Open both ways, so that neither opening it waits nor the end of the input comes.
    descriptor = os.open(fifo, os.O_RDWR)
    try:
        with (
            running(tmp_path, "watch", *common) as watch,
            running(tmp_path, "replay", fifo, *common) as replay,
        ):
            os.write(descriptor, HISTORY.read_bytes().splitlines(keepends=True)[0])
            await watch.row("ADDED")
            replay.signal(signal.SIGINT)
            assert await replay.wait() == 0
    finally:
        os.close(descriptor)


async def test_watch_ends_when_nobody_reads_on(
    common: tuple[str, ...], etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    await etcd.put(prefix + b"flyte/x-a0", PUTS[0].value)
    with running(tmp_path, "watch", "--log-level", "error", *common, pipe=True) as watch:
        line = await trio.to_thread.run_sync(watch.pipe.readline)
        assert json.loads(line)["type"] == "ADDED"
        # Nothing more is written, as with ``| head -1``.
        watch.pipe.close()
        assert await watch.wait() == 0
        assert watch.err == ""


@needs_linux
@pytest.mark.slow
async def test_embedded_etcd(tmp_path: Path) -> None:
    path = f"{find_etcd().parent}{os.pathsep}{os.environ['PATH']}"
    data_dir = tmp_path / "data"
    flags = ("--data-dir", data_dir)

    def etcd_pid() -> int:
        pid = json.loads((data_dir / "state.json").read_text())["etcd_pid"]
        assert isinstance(pid, int)
        return pid

    def is_gone(pid: int) -> bool:
        try:
            return b"etcd" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return True

    with running(tmp_path, "run", *flags, "--embedded-port", "0", PATH=path) as run:
        told = await run.logged("embedded_etcd")
        assert told["look_with"] == f"etcd-actions watch --data-dir {data_dir}"
        await run.logged("synced")

        # Of an etcd for trying out it warns first.
        second = await trio.to_thread.run_sync(finish, "run", "--log-level", "error", *flags)
        assert second.code == 5
        assert str(run.pid) in second.complaint

        replayed = await trio.to_thread.run_sync(finish, "replay", str(HISTORY), *flags)
        assert replayed.code == 0
        with running(tmp_path, "watch", *flags) as watch:
            await watch.row("SYNCED")

        pid = etcd_pid()
        run.signal(signal.SIGKILL)
        assert await run.wait() == -signal.SIGKILL
        await until(lambda: is_gone(pid))

    with running(tmp_path, "run", *flags, "--embedded-port", "0", PATH=path) as run:
        await run.logged("synced")
        listed = await trio.to_thread.run_sync(finish, "list", "--output", "jsonl", *flags)
        assert len(listed.out.splitlines()) == 10
        os.kill(etcd_pid(), signal.SIGKILL)
        assert await run.wait() == 5
        complaint = run.err[run.err.index("\netcd-actions: ") + 1 :]
        assert complaint.startswith("etcd-actions: the embedded etcd has ended: ")
        assert "SIGKILL" in complaint.splitlines()[0]
        assert "Traceback" not in run.err


@pytest.mark.slow
def test_head(common: tuple[str, ...], shared_etcd: EtcdServer) -> None:
    finish("replay", str(HISTORY), *common)
    script = 'set -o pipefail; "$@" | head -1'
    # Of an etcd for trying out it warns.
    watch = (sys.executable, "-m", "etcd_actions", "watch", "--log-level", "error", *common)
    done = subprocess.run(
        ["bash", "-c", script, "_", *watch],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["type"] == "ADDED"
