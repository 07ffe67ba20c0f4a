"""``python -m MODULE`` in a process forked from an interpreter that has imported the package.

It is a real process and a child of the tests' process, with its own signals, streams, environment
and directory, and it runs the same entry point. Only the imports are done before: most of the
processor time of a short command. :class:`WarmPopen` starts it, and starts a fresh interpreter for
anything else: another program, an environment that an interpreter reads at its start, a system
without Linux's subreapers. ``tests/support/test_warm.py`` compares the two.

``python -m tests.support.warm DESCRIPTOR`` is the server that forks. It ends when the tests'
process closes its socket.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

ROOT: Final = Path(__file__).parents[2]
MODULE: Final = (sys.executable, "-m")
COMMAND: Final = (*MODULE, "etcd_actions")
INTERPRETER: Final = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
"""The variables that the server's interpreter has, in addition to those of the tests."""

_MOST_BYTES = 1 << 20
_WITHIN = 60.0
# An ignored signal stays ignored in a new program, and any other gets its default.
_INHERITED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_SET_SUBREAPER, _GET_SUBREAPER = 36, 37
# Read by the interpreter at its start, or by a library at its import.
_EARLY = ("PYTHON", "LC_", "LANG", "LD_", "OTEL_", "PROMETHEUS_", "PROTOCOL_BUFFERS_", "SSL_")
# Of no command: pytest's plugin, and a program. And what imports etcd3, which changes the filters
# of warnings.
_NOT_IMPORTED = ("etcd_actions.testing", "etcd_actions.__main__", "etcd_actions.etcd.gateway")
# Other values of restore_signals, gid, gids, uid, umask, start_new_session and process_group need a
# fresh interpreter.
_USUAL = (True, None, None, None, -1, False, -1)


class WarmPopen(subprocess.Popen[Any]):
    """A ``Popen`` whose process is forked by the server, if it can be.

    Pipes, waiting and signals are those of ``Popen``: only the start differs.
    """

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        executable, preexec_fn, _, pass_fds, cwd, env, _, _, shell = rest[:9]
        streams, others = rest[9:15], rest[15:]
        env = dict(os.environ if env is None else env)
        is_plain = others == _USUAL and not (executable or preexec_fn or pass_fds or shell)
        server = _server_for(env) if is_plain and tuple(args[:2]) == MODULE else None
        if server is None:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        # -1 is for a stream of ours.
        given = (streams[0], streams[3], streams[5])
        descriptors = [own if each == -1 else each for own, each in enumerate(given)]
        self.pid = server.start(list(args), env, str(cwd or Path.cwd()), descriptors)
        self._child_created = True
        self._close_pipe_fds(*streams)  # type: ignore[attr-defined]


class _Server:
    """The server, in the tests' process."""

    def __init__(self) -> None:
        env = os.environ | INTERPRETER
        self.early = _early(env)
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_WITHIN)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=env,
                pass_fds=(theirs.fileno(),),
            )

    def start(self, args: list[str], env: dict[str, str], cwd: str, streams: list[int]) -> int:
        """Start a command with the descriptors of its streams, and return its process id."""
        ignored = [each for each in _INHERITED if signal.getsignal(each) == signal.SIG_IGN]
        request = json.dumps([args, env, cwd, ignored]).encode()
        with self._lock, _adopting():
            socket.send_fds(self._socket, [request], streams)
            answer = self._socket.recv(64)
        if not answer:
            raise RuntimeError("the server of tests/support/warm.py has ended")
        return int(answer)

    def close(self) -> None:
        """End the server, and reap it."""
        self._socket.close()
        self._process.wait()


_servers: dict[int, _Server] = {}
"""The server of this process, by its id, since a forked process has none."""


def close_server() -> None:
    """End the server of this process if it has one."""
    if (server := _servers.pop(os.getpid(), None)) is not None:
        server.close()


def _server_for(env: Mapping[str, str]) -> _Server | None:
    """The server, if it can fork a command with this environment."""
    if sys.platform != "linux":
        return None
    if os.getpid() not in _servers:
        _servers[os.getpid()] = _Server()
    server = _servers[os.getpid()]
    return server if _early(env) == server.early else None


def _early(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_EARLY)}


@contextmanager
def _adopting() -> Iterator[None]:
    """Become the parent of descendants whose parent ends, while the context is open."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    before = ctypes.c_int()
    prctl(_GET_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    if prctl(_SET_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    try:
        yield
    finally:
        prctl(_SET_SUBREAPER, before.value, 0, 0, 0)


def main(descriptor: int) -> None:
    """Fork commands until the socket is closed."""
    import etcd_actions  # noqa: PLC0415 (only the server imports all)

    # A Ctrl-C is for the tests and the commands.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in pkgutil.walk_packages(etcd_actions.__path__, "etcd_actions."):
        if not module.name.startswith(_NOT_IMPORTED):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=descriptor) as sock:
        while True:
            request, streams, _, _ = socket.recv_fds(sock, _MOST_BYTES, 3)
            if not request:
                return
            sock.send(str(_fork(request, streams)).encode())
            for each in streams:
                os.close(each)


def _fork(request: bytes, streams: list[int]) -> int:
    """Fork a command, which becomes a child of the tests' process; returns its id."""
    reading, writing = os.pipe()
    held, holding = os.pipe()
    between = os.fork()
    if between == 0:
        command = os.fork()
        if command == 0:
            # It begins once it has its new parent: all others have closed their end.
            os.close(holding)
            os.read(held, 1)
            _become(request, streams)
        os.write(writing, str(command).encode())
        os._exit(0)
    command = int(os.read(reading, 64))
    os.waitpid(between, 0)
    for each in (reading, writing, holding, held):
        os.close(each)
    return command


def _become(request: bytes, streams: list[int]) -> NoReturn:
    """Become the requested process. It ends without Python's own exit, as the command does."""
    code = 1
    try:
        args, env, cwd, ignored = json.loads(request)
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        sys.stdin = sys.__stdin__ = _opened(0, sys.stdin)  # type: ignore[misc]
        sys.stdout = sys.__stdout__ = _opened(1, sys.stdout)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _opened(2, sys.stderr)  # type: ignore[misc]
        sys.path[0] = cwd
        sys.argv = list(args[2:])
        sys.orig_argv = list(args)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for each in _INHERITED:
            if each in ignored:
                signal.signal(each, signal.SIG_IGN)
            elif each != signal.SIGINT:
                signal.signal(each, signal.SIG_DFL)
        runpy.run_module(args[2], run_name="__main__", alter_sys=True)
        sys.stdout.flush()
        code = 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def _opened(descriptor: int, like: Any) -> Any:
    """A standard stream as the interpreter makes it at its start."""
    unbuffered = like.write_through
    binary = open(descriptor, f"{like.mode}b", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    stream: Any = io.TextIOWrapper(
        binary,
        like.encoding,
        like.errors,
        newline="\n",
        line_buffering=like.line_buffering or (os.isatty(descriptor) and not unbuffered),
        write_through=unbuffered,
    )
    stream.mode = like.mode
    return stream


if __name__ == "__main__":
    main(int(sys.argv[1]))
