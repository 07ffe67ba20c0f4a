"""What the process is beside its command: process 1, hung up, without a standard stream."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.cli.command import DEADLINE, environment, running, until
from tests.support.etcd_server import EtcdServer, free_port
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually_holds

COMMAND = (sys.executable, "-m", "etcd_actions")


@pytest.fixture(autouse=True)
def hang_ups_count() -> Iterator[None]:
    """Also where the suite itself runs under nohup: children inherit what is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def common(shared_etcd: EtcdServer, prefix: bytes) -> tuple[str, ...]:
    return ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())


def can_unshare() -> bool:
    try:
        tried = subprocess.run(
            ["unshare", "--pid", "--fork", "true"],
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
    except FileNotFoundError:
        return False
    return tried.returncode == 0


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in found.read_text().split()] if found.exists() else []


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.slow
async def test_process_1_reaps_what_it_adopts(common: tuple[str, ...], tmp_path: Path) -> None:
    if not await trio.to_thread.run_sync(can_unshare):
        pytest.skip("needs the right to make a PID namespace")
    err = tmp_path / "err"
    with err.open("wb") as file:
        process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", *COMMAND, "run", *common],
            stderr=file,
            env=environment(),
        )
    try:
        await until(lambda: '"serving"' in err.read_text())
        (init,) = children_of(process.pid)
        (worker,) = children_of(init)
        orphans = "for i in 1 2 3 4 5; do (sleep 0.2 &); done"
        done = subprocess.run(
            ["nsenter", "--pid", "-t", str(worker), "sh", "-c", orphans], check=False
        )
        assert done.returncode == 0
        await until(lambda: children_of(init) == [worker])
        os.kill(init, signal.SIGTERM)
        code = await trio.to_thread.run_sync(process.wait, DEADLINE)
        assert code == 0, err.read_text()
        assert '"stopped"' in err.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_process_1_ends_as_its_child_does() -> None:
    if not can_unshare():
        pytest.skip("needs the right to make a PID namespace")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", *COMMAND, "list", "--nonsense"],
        capture_output=True,
        check=False,
        timeout=DEADLINE,
        env=environment(),
    )
    assert done.returncode == 2
    assert b"--nonsense" in done.stderr


@pytest.mark.slow
async def test_a_daemon_goes_on_when_hung_up(common: tuple[str, ...], tmp_path: Path) -> None:
    with running(tmp_path, "run", *common) as run:
        await run.logged("serving")
        for number in range(2):
            run.signal(signal.SIGHUP)
            await run.until(lambda number=number: len(run.logs("reloading")) > number)  # type: ignore[misc]
        listen = run.logs("monitoring")[0]["listen"]
        url = f"http://{listen}/healthz"
        answered = await trio.to_thread.run_sync(lambda: urllib.request.urlopen(url, timeout=20))
        assert answered.status == 200
        answered.close()
        run.signal(signal.SIGTERM)
        assert await run.wait() == 0


@pytest.mark.slow
async def test_a_watch_ends_in_order_when_hung_up(common: tuple[str, ...], tmp_path: Path) -> None:
    with running(tmp_path, "watch", *common) as watch:
        await watch.row("SYNCED")
        watch.signal(signal.SIGHUP)
        assert await watch.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "watch"])
async def test_it_ends_in_order_when_its_terminal_goes(
    common: tuple[str, ...], tmp_path: Path, name: str
) -> None:
    err = tmp_path / "err"
    pid, terminal = pty.fork()
    if pid == 0:
        descriptor = os.open(err, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 2)
        os.dup2(descriptor, 1)
        os.execve(sys.executable, [*COMMAND, name, *common], environment())
    try:
        told = "serving" if name == "run" else "SYNCED"
        await until(lambda: err.exists() and told in err.read_text())
        os.close(terminal)
        _, status = await trio.to_thread.run_sync(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, err.read_text()
    finally:
        if state_of(pid) not in ("", "Z"):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
async def test_nohup_is_heeded(common: tuple[str, ...], tmp_path: Path) -> None:
    err = tmp_path / "err"
    with err.open("wb") as file:
        process = subprocess.Popen(
            ["nohup", *COMMAND, "watch", *common],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment(),
        )
    try:
        await until(lambda: "SYNCED" in err.read_text())
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(process.wait, DEADLINE) == 0
    finally:
        process.kill()
        process.wait()


async def metrics_once_ready(listen: str) -> str:
    metrics = ""

    async def is_ready() -> bool:
        nonlocal metrics
        with suppress(OSError):
            metrics = await trio.to_thread.run_sync(read_metrics, listen)
        return "etcd_actions_ready 1.0" in metrics

    await eventually_holds(is_ready, within=DEADLINE)
    return metrics


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-", "2>/dev/full", "2>&1 | :"])
async def test_it_serves_without_a_log(
    common: tuple[str, ...], tmp_path: Path, closed: str
) -> None:
    if "full" in closed and not Path("/dev/full").exists():
        pytest.skip("needs Linux's /dev/full")
    port = free_port()
    listen = f"127.0.0.1:{port}"
    code = tmp_path / "code"
    script = f'( "$@" ; echo $? >{code} ) {closed}'
    with subprocess.Popen(
        ["bash", "-c", script, "_", *COMMAND, "run", *common],
        stdout=subprocess.DEVNULL,
        env=environment(ETCD_ACTIONS_MONITORING_LISTEN=listen),
        start_new_session=True,
    ) as shell:
        try:
            await metrics_once_ready(listen)

            async def has_dropped() -> bool:
                metrics = await trio.to_thread.run_sync(read_metrics, listen)
                dropped = "etcd_actions_log_lines_dropped_total "
                (line,) = [each for each in metrics.splitlines() if each.startswith(dropped)]
                return float(line.split()[1]) >= 3

            await eventually_holds(has_dropped, within=DEADLINE)
            for pid in descendants(shell.pid):
                os.kill(pid, signal.SIGTERM)
            await until(lambda: code.exists() and code.read_text().strip() == "0")
        finally:
            for pid in descendants(shell.pid):
                os.kill(pid, signal.SIGKILL)
            shell.kill()


@pytest.mark.slow
async def test_a_reader_of_the_log_that_stalls_stalls_nobody(
    common: tuple[str, ...], tmp_path: Path
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    process = subprocess.Popen(
        [*COMMAND, "run", *common],
        stderr=writer,
        env=environment(ETCD_ACTIONS_MONITORING_LISTEN=listen),
    )
    try:
        await metrics_once_ready(listen)
        process.send_signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(process.wait, DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("--help",), marks=pytest.mark.slow),
        pytest.param(("completion", "bash"), marks=pytest.mark.slow),
        ("config", "show"),
    ],
    ids=lambda each: each[0],
)
@pytest.mark.parametrize("where", first_everyday([">/dev/full", ">&-"]))
def test_standard_output_that_cannot_be_written(arguments: tuple[str, ...], where: str) -> None:
    if "full" in where and not Path("/dev/full").exists():
        pytest.skip("needs Linux's /dev/full")
    done = subprocess.run(
        ["bash", "-c", f'"$@" {where}', "_", *COMMAND, *arguments],
        stderr=subprocess.PIPE,
        check=False,
        timeout=DEADLINE,
        env=environment(),
    )
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 6
    assert len(lines) == 1
    assert lines[0].startswith("etcd-actions: standard output cannot be written: ")


def read_metrics(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        return str(answer.read(), "utf-8")


def descendants(pid: int) -> list[int]:
    """The commands below a shell, not the shells."""
    found: list[int] = []
    for child in children_of(pid):
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        found += [child] if b"etcd_actions" in command and b"bash" not in command else []
        found += descendants(child)
    return found
