"""This side of the fork server: keeps one running, and hands it attempts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from etcd_actions.backoff import Backoff
from etcd_actions.executor.places import AttemptPlace

_PROGRAM = Path(__file__).with_name("fork_server_main.py")
_BACKOFF = Backoff(initial=0.2, cap=10.0)

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_fork_server(python: Path, state_dir: Path) -> AsyncIterator[ForkServer]:
    """Keep a fork server running for as long as the context lasts.

    What it has started lives on afterwards, and so does it, until that has ended.

    Args:
        python: The interpreter that has Flyte's SDK.
        state_dir: Where its log is.
    """
    server = ForkServer(python, state_dir)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server._keep)
        yield server
        nursery.cancel_scope.cancel("the fork server is not needed any more")


class ForkServer:
    """Made by :func:`open_fork_server`."""

    def __init__(self, python: Path, state_dir: Path) -> None:
        self._python = python
        self._state_dir = state_dir
        self._socket: socket.socket | None = None
        self._ready = trio.Event()
        self._sending = trio.Lock()
        self._ends: dict[str, trio.Event] = {}

    async def start(self, place: AttemptPlace, request: Path, lock: int, log: int) -> bool:
        """Have an attempt started; False where the server went away: nothing was started then.

        Either way the descriptors may be closed afterwards. Cancelled, it may have been
        started: its lock tells.
        """
        await self._ready.wait()
        self._ends[str(place.path)] = trio.Event()
        async with self._sending:
            sock = self._socket
            while sock is not None and sock is self._socket:
                try:
                    socket.send_fds(sock, [str(request).encode()], [lock, log])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(sock)
                except OSError as error:
                    _log.warning("fork_server_gone", error=str(error))
                    break
                else:
                    return True
        del self._ends[str(place.path)]
        return False

    def ended(self, place: AttemptPlace) -> trio.Event:
        """Set when the end of an attempt was seen; of one that was started before, never."""
        event = self._ends.get(str(place.path))
        return trio.Event() if event is None else event

    def forget(self, place: AttemptPlace) -> None:
        """Nobody waits for an attempt any more."""
        self._ends.pop(str(place.path), None)

    async def _keep(self) -> None:
        failures = 0
        while True:
            began = trio.current_time()
            await self._serve()
            failures = 1 if trio.current_time() - began > 60 else failures + 1
            delay = _BACKOFF.delay(failures)
            _log.warning(
                "fork_server_ended",
                retry_in=round(delay, 3),
                log=str(self._state_dir / "fork-server.log"),
            )
            await trio.sleep(delay)

    async def _serve(self) -> None:
        """Run one server, until it ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs, (self._state_dir / "fork-server.log").open("ab") as log:
                environment = {
                    name: value
                    for name, value in os.environ.items()
                    if not name.startswith(("ETCD", "PYTHON"))
                }
                # It returns when the server has gone into the background.
                await trio.run_process(
                    [str(self._python), str(_PROGRAM), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs.fileno(),),
                    # A Ctrl-C at the terminal is for us.
                    start_new_session=True,
                    env=environment | {"FSSPEC_FILE_AUTO_MKDIR": "true"},
                    check=False,
                )
            try:
                await self._listen(ours)
            finally:
                self._socket = None
                if self._ready.is_set():
                    self._ready = trio.Event()
                for event in self._ends.values():
                    # Somebody has to look at the locks.
                    event.set()

    async def _listen(self, sock: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            message = json.loads(data)
            if "ready" in message:
                _log.debug("fork_server_ready", pid=message["ready"])
                self._socket = sock
                self._ready.set()
            elif (event := self._ends.get(message["ended"])) is not None:
                event.set()
