"""The fork server: forks a process for each attempt, which has imported Flyte's SDK already.

It is run as a file, by the interpreter that has the SDK, so it imports nothing of
etcd_actions. Its only argument is the descriptor of a socket. A message on it is the path of
a request, with two descriptors: a lock, which the child holds for as long as it lives, and its
log. When the socket is closed it waits for its children, so that their ends are seen, and ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

# What a task needs, but not the task itself.
_MODULES = (
    "anyio",
    "certifi",
    "faulthandler",
    "httpcore",
    "httpx",
    "flyte",
    "flyte._bin.runtime",
    "flyte._initialize",
    "flyte._internal.controllers.remote",
    "flyte._internal.controllers.remote._controller",
    "flyte._internal.controllers.remote._client",
    "flyte._internal.resolvers.default",
    "flyte._internal.runtime.convert",
    "flyte._internal.runtime.entrypoints",
    "flyte._internal.runtime.io",
    "flyte._internal.runtime.taskrunner",
    "flyte._utils.asyncify",
    "flyte.git",
    "flyte.io",
    "flyte.remote._client.auth._interceptors.default_metadata",
    "flyte.remote._client.auth._interceptors.retry",
    "flyte.remote._client.controlplane",
    "flyte.report",
    "flyte.storage",
    "fsspec.implementations.local",
)


def main(descriptor: int) -> None:
    """Serve until the socket is closed and all children have ended."""
    for name in _MODULES:
        # The SDK's inside may change: what is missing is imported by the task.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    loop = _background_loop()
    if loop is not None:
        # A thread would not be there in the child, and what it holds would be held for ever.
        loop.stop()
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        print(f"fork server: there are threads, which may harm a fork: {names}", file=sys.stderr)
    gc.collect()
    gc.freeze()
    # No child of whoever started us: it may end before we do.
    if os.fork():
        os._exit(0)
    sock = socket.socket(fileno=descriptor)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    # Who started us decides when to end, by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    children: dict[int, str] = {}
    _tell(sock, {"ready": os.getpid()})
    open_ = True
    while open_ or children:
        waiting: list[Any] = [sock, wake_read] if open_ else [wake_read]
        readable, _, _ = select.select(waiting, [], [])
        if wake_read in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
        _reap(children, sock if open_ else None)
        if open_ and sock in readable:
            data, descriptors, _, _ = socket.recv_fds(sock, 65536, 2)
            if not data:
                open_ = False
                continue
            path = data.decode()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                sock.close()
                os.close(wake_read)
                os.close(wake_write)
                _child(path, descriptors, loop)
            for each in descriptors:
                os.close(each)
            children[pid] = str(Path(path).parent)


def _reap(children: dict[int, str], sock: socket.socket | None) -> None:
    """Note how children ended, in their directories and on the socket."""
    while children:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        directory = children.pop(pid, None)
        if directory is None:
            continue
        code = os.waitstatus_to_exitcode(status)
        with contextlib.suppress(OSError):
            new = Path(directory) / "exit.new"
            new.write_text(str(code))
            new.rename(Path(directory) / "exit")
        if sock is not None:
            _tell(sock, {"ended": directory, "code": code})


def _tell(sock: socket.socket, message: dict[str, object]) -> None:
    # Nobody listens any more: the files say it, too.
    with contextlib.suppress(OSError):
        sock.sendall(json.dumps(message).encode())


def _child(path: str, descriptors: list[int], loop: Any) -> None:
    """Become the process of an attempt; does not return."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _lock, log = descriptors
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(null)
        os.close(log)
        directory = Path(path).parent
        new = directory / "started.new"
        new.write_text(str(os.getpid()))
        new.rename(directory / "started")
        with Path(path).open() as file:
            request = json.load(file)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["directory"])
        sys.argv = request["arguments"]
        sys.path[0] = request["directory"]
        if loop is not None:
            _start_again(loop)
        from flyte._bin.runtime import main as a0  # noqa: PLC0415

        try:
            a0()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # The interpreter's own end would wait for threads of the SDK, and takes longer.
        os._exit(code)


def _background_loop() -> Any:
    """The loop that the SDK runs in a thread, from its import on."""
    with contextlib.suppress(ImportError, AttributeError):
        return sys.modules["flyte.syncify"].syncify._bg_loop
    return None


def _start_again(loop: Any) -> None:
    """Give the SDK its loop and its thread back."""
    import asyncio  # noqa: PLC0415

    loop.loop = asyncio.new_event_loop()
    loop.thread = threading.Thread(name="flyte_syncify", target=loop._run, daemon=True)
    loop.thread.start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
