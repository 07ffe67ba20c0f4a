"""Keeps a fork server running, and sends it attempts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions._internal.untrusted_files import UnusableFile, open_regular, read_end
from etcd_actions.executor.attempts.environment import helper_environment
from etcd_actions.executor.supervision import supervisor

START: Final = b"start"
"""The message with the descriptors of an attempt."""
UNIT: Final = "fork_server"
"""The kind of its unit, see :mod:`etcd_actions._internal.containment`."""

_PROGRAM = Path(supervisor.__file__).with_name("fork_server_main.py")
_MOST_LOG = 1 << 20
_BACKOFF = Backoff(initial=0.2, cap=30.0)
# Seconds from the start of a server to its first message.
_READY_WITHIN = 60.0
# After so many failures in a row attempts are started without it.
_TRIES = 3
# Seconds that a server has to run before its failures no longer count as "in a row".
_LASTING = 60.0
# The server's exit code if it can never fork.
_USELESS = 4

_log = structlog.get_logger(__name__)


class ForkServerEnded(Exception):
    """The server ended, or did not become ready; the message has the end of its log."""


class ForkServerUseless(ForkServerEnded):
    """A process with this interpreter's SDK cannot be forked: a retry would fail, too."""


@asynccontextmanager
async def open_fork_server(
    python: Path, state_dir: Path, containment: Containment | None = None, *, plain: bool = False
) -> AsyncIterator[ForkServer]:
    """Keep a fork server running while the context is open.

    Its attempts live on afterwards, and so does the server, until they have ended.

    Args:
        python: The interpreter that has Flyte's SDK.
        state_dir: The directory of its log.
        containment: Its boundary, in which it is parked while it does not run.
        plain: Whether it has no SDK, and executes the commands.
    """
    server = ForkServer(python, state_dir, containment or Containment(), plain=plain)
    async with owned_tasks("the fork server") as nursery:
        nursery.start_soon(server._keep)
        yield server
        nursery.cancel_scope.cancel("the fork server is not needed any more")


class ForkServer:
    """A fork server; created by :func:`open_fork_server`."""

    def __init__(
        self, python: Path, state_dir: Path, containment: Containment, *, plain: bool = False
    ) -> None:
        self._python = python
        self._plain = plain
        self._log = state_dir / ("launcher.log" if plain else "fork-server.log")
        self._identity = f"{python}{' (plain)' if plain else ''}"
        self._containment = containment
        self._socket: socket.socket | None = None
        # Set while it is certain whether the server can be used; `start` waits for it.
        self._decided = trio.Event()
        self._sending = trio.Lock()
        self._failures = 0
        self._failure = ""
        self._ready_since = float("inf")

    @property
    def is_healthy(self) -> bool:
        """Whether it runs, or is expected to: attempts wait for it then."""
        return self._socket is not None or self._failures < _TRIES

    @property
    def trouble(self) -> str:
        """Why it does not run; empty while it does."""
        return "" if self._socket is not None else self._failure

    async def start(self, descriptors: list[int]) -> bool:
        """Send it the descriptors of a supervisor. They may be closed afterwards.

        Returns:
            False if it is not healthy; then nothing was sent. Whether the attempt was started is
            in the supervisor's own report.
        """
        while True:
            await self._decided.wait()
            async with self._sending:
                sock = self._socket
                if sock is None:
                    if not self.is_healthy:
                        return False
                    continue
                try:
                    socket.send_fds(sock, [START], descriptors)
                except BlockingIOError:
                    with trio.move_on_after(1):
                        await trio.lowlevel.wait_writable(sock)
                except OSError as error:
                    _log.warning("fork_server_gone", error=str(error))
                    self._lost(sock)
                else:
                    return True

    def _lost(self, sock: socket.socket) -> None:
        if self._socket is sock:
            self._socket = None
            self._decided = trio.Event()

    async def _keep(self) -> None:
        while True:
            self._ready_since = float("inf")
            with self._containment.unit(UNIT, self._identity, parks=True) as unit:
                try:
                    await self._serve()
                except ForkServerUseless as error:
                    self._do_without(error)
                    return
            if trio.current_time() - self._ready_since > _LASTING:
                self._failures = 0
            self._failures += 1
            self._failure = str(unit.error)
            if not self.is_healthy:
                self._decided.set()
            elif self._decided.is_set():
                self._decided = trio.Event()
            await trio.sleep(_BACKOFF.delay(self._failures))

    def _do_without(self, error: ForkServerUseless) -> None:
        """Have attempts executed for as long as this process lives, and log that once."""
        self._failures = _TRIES
        self._failure = str(error)
        self._decided.set()
        _log.warning(
            "fork_server_not_used",
            python=str(self._python),
            error=self._failure,
            instead="each task has an interpreter of its own, which takes longer; the fork server "
            "is started again when the service is restarted",
        )

    async def _serve(self) -> None:
        """Run one server, until it ends."""
        options, mode = (["-I", "-S"], ["plain"]) if self._plain else ([], [])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with trio.move_on_after(_READY_WITHIN):
                with theirs, os.fdopen(self._open_log(), "ab") as log:
                    # It returns once the server runs in the background.
                    finished: subprocess.CompletedProcess[bytes] = await trio.run_process(
                        [self._python, *options, _PROGRAM, str(theirs.fileno()), *mode],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        pass_fds=(theirs.fileno(),),
                        # A Ctrl-C at the terminal is for this process.
                        start_new_session=True,
                        env=helper_environment() | {"FSSPEC_FILE_AUTO_MKDIR": "true"},
                        check=False,
                    )
                if finished.returncode == _USELESS:
                    raise ForkServerUseless(self._text("cannot be used with this SDK"))
                if finished.returncode:
                    raise ForkServerEnded(self._text(f"ended with {finished.returncode}"))
                while not await self._is_ready(ours):
                    continue
            if self._socket is not ours:
                # An import that hangs would hang again: attempts do not wait for it.
                self._failures = _TRIES
                raise ForkServerEnded(self._text(f"was not ready within {_READY_WITHIN:g} s"))
            try:
                while True:
                    await self._is_ready(ours)
            finally:
                self._lost(ours)

    async def _is_ready(self, sock: socket.socket) -> bool:
        """Whether its next message reports that it is ready."""
        await trio.lowlevel.wait_readable(sock)
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ForkServerEnded(self._text(f"was lost: {error}")) from error
        if not data:
            raise ForkServerEnded(self._text("ended"))
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or "ready" not in message:
            _log.warning("fork_server_message_unknown", message=repr(data[:100]))
            return False
        _log.debug("fork_server_ready", pid=message["ready"])
        self._socket = sock
        self._ready_since = trio.current_time()
        self._containment.forget(UNIT, self._identity)
        self._decided.set()
        return True

    def _open_log(self) -> int:
        with suppress(FileExistsError):
            os.close(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        descriptor = open_regular(self._log, os.O_WRONLY | os.O_APPEND)
        if os.fstat(descriptor).st_size > _MOST_LOG:
            os.ftruncate(descriptor, 0)
        return descriptor

    def _text(self, how: str) -> str:
        end = b""
        with suppress(OSError, UnusableFile):
            end = read_end(self._log, 4096)
        lines = "\n".join(end.decode(errors="replace").splitlines()[-20:])
        message = f"the fork server ({self._python}) {how}"
        return f"{message}; its log ends with:\n{lines}" if lines else message
