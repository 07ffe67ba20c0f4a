"""The fork server: imports Flyte's SDK once, and forks a supervisor for each attempt.

It is run as a file, by the interpreter with the SDK. Its first argument is the descriptor of a
socket; with a second one, ``plain``, it imports no SDK, and its commands are executed. Each message
``start`` with four descriptors starts a supervisor; any other message is ignored. It reports on the
socket when it is ready. When the socket is closed it waits for the supervisors, and ends.
"""

from __future__ import annotations

import array
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
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

START = b"start"
_DESCRIPTORS = 4

# The imports of tasks, without the tasks themselves.
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
    "importlib.readers",
    "pyqwest._glue",
)

# The SDK's HTTP client imports it, and it reads variables at its import.
_TELEMETRY = "opentelemetry"
_TELEMETRY_MODULES = (
    "opentelemetry.metrics",
    "opentelemetry.propagate",
    "opentelemetry.trace",
)
_TELEMETRY_VARIABLES = "OTEL_"

# TLS contexts that are made before the forks. A task makes two itself. Each adds 20 ms to the start
# of this process.
_READY_CONTEXTS = 4

# Exit codes: a retry may succeed, or cannot.
_CODE_NOT_READY = 3
_CODE_USELESS = 4

# Seconds for a thread that only helps an import to end.
_THREADS_END_WITHIN = 2.0


class Unusable(Exception):
    """This SDK cannot be forked; ``code`` is the exit code of this process."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main(descriptor: int, *, plain: bool = False) -> None:
    """Serve until the socket is closed and all supervisors have ended."""
    supervisor = _sibling("supervisor")
    try:
        run = None if plain else _prepare(_sibling("ready_tls"))
    except Unusable as error:
        print(f"fork server: {error}", file=sys.stderr)
        sys.exit(error.code)
    gc.collect()
    gc.freeze()
    # The server is not a child of the executor, which may end before it.
    if os.fork():
        os._exit(0)
    # No descriptor of ours may be inherited by a supervisor.
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    _Server(sock, supervisor, run).serve()


def _prepare(ready_tls: Any) -> Callable[[dict[str, Any]], int]:
    """Import the SDK; returns the function that runs its command in a child."""
    try:
        importlib.import_module("flyte._bin.runtime").main  # noqa: B018 - it is there
    except BaseException as error:
        traceback.print_exc()
        raise Unusable("the SDK cannot be imported", _CODE_NOT_READY) from error
    _import_all(_MODULES)
    telemetry = _import_telemetry()
    contexts = _contexts(ready_tls)
    loop = _background_loop()
    if loop is not None:
        # The child would have no such thread, and its locks would never be released.
        try:
            loop.stop()
            loop._run  # noqa: B018 - it is there
        except Exception as error:
            text = f"the SDK's thread cannot be stopped: {error!r}"
            raise Unusable(text, _CODE_NOT_READY) from error
    if threads := _lasting_threads():
        names = ", ".join(thread.name for thread in threads)
        text = f"there are threads, which would be missing after a fork: {names}"
        raise Unusable(text, _CODE_USELESS)

    def share(environment: dict[str, str]) -> None:
        if any(each.startswith(_TELEMETRY_VARIABLES) for each in environment):
            # The modules read these variables at their import: the task imports them again.
            for name in telemetry:
                sys.modules.pop(name, None)
        if contexts is not None:
            contexts.stand_in()
        _continue_trace(environment.get("TRACEPARENT", ""))

    return lambda request: _run(request, loop, share)


def _lasting_threads() -> list[threading.Thread]:
    """The other threads, without those that are about to end."""
    until = time.monotonic() + _THREADS_END_WITHIN
    threads = [each for each in threading.enumerate() if each is not threading.current_thread()]
    for each in threads:
        each.join(max(0.0, until - time.monotonic()))
    return [each for each in threads if each.is_alive()]


def _import_all(names: tuple[str, ...]) -> None:
    for name in names:
        # Another version of the SDK may lack a module: the task imports its own.
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"fork server: {name} is not imported: {error!r}", file=sys.stderr)


def _import_telemetry() -> list[str]:
    """Import the telemetry of the SDK's HTTP client; returns the new modules."""
    if any(each.startswith(_TELEMETRY_VARIABLES) for each in os.environ):
        return []
    before = set(sys.modules)
    _import_all(_TELEMETRY_MODULES)
    return [each for each in sys.modules if each not in before and each.startswith(_TELEMETRY)]


def _continue_trace(traceparent: str) -> None:
    """Make the attempt's span the current one, which the SDK's HTTP client sends with its calls."""
    if not traceparent:
        return
    try:
        context = importlib.import_module("opentelemetry.context")
        propagate = importlib.import_module("opentelemetry.propagate")
        found = propagate.extract({"traceparent": traceparent})
        runtime: Any = getattr(context, "_RUNTIME_CONTEXT", None)
        if hasattr(runtime, "_current_context"):
            # The SDK calls in threads of its own, and a new thread has the default.
            runtime._current_context = ContextVar("current_context", default=found)
        else:
            context.attach(found)
    except BaseException as error:
        print(f"fork server: the trace is not continued: {error!r}", file=sys.stderr)


def _contexts(ready_tls: Any) -> Any:
    """TLS contexts with the authorities of the SDK's HTTP clients; None if they cannot be made."""
    try:
        return ready_tls.ReadyContexts(importlib.import_module("certifi").where(), _READY_CONTEXTS)
    except Exception as error:
        print(f"fork server: no TLS contexts are made: {error!r}", file=sys.stderr)
        return None


class _Server:
    def __init__(
        self, sock: socket.socket, supervisor: Any, run: Callable[[dict[str, Any]], int] | None
    ) -> None:
        self._socket = sock
        self._supervisor = supervisor
        self._run = run
        self._children: set[int] = set()
        self._wake = os.pipe()
        for each in self._wake:
            os.set_blocking(each, False)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        # The executor ends this process by closing the socket.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # The processes of a killed supervisor become children of this one.
        self._supervisor.become_subreaper()
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps({"ready": os.getpid()}).encode())
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake[0], select.POLLIN)
        open_ = True
        while open_ or self._children:
            ready = [each for each, _ in poll.poll()]
            if self._wake[0] in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake[0], 4096)
                self._reap()
            if self._socket.fileno() in ready and not self._receive():
                poll.unregister(self._socket)
                open_ = False

    def _receive(self) -> bool:
        """Read a message; False if there will be no more."""
        descriptors = array.array("i")
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                1024, socket.CMSG_SPACE(16 * descriptors.itemsize)
            )
        except OSError as error:
            print(f"fork server: a message is not received: {error}", file=sys.stderr)
            return False
        for level, kind, found in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(found[: len(found) - len(found) % descriptors.itemsize])
        if not data and not descriptors:
            return False
        try:
            if data == START and len(descriptors) == _DESCRIPTORS:
                self._start(list(descriptors))
            else:
                print(
                    f"fork server: ignored: {data[:60]!r}, {len(descriptors)} descriptors"
                    f"{', truncated' if flags & socket.MSG_CTRUNC else ''}",
                    file=sys.stderr,
                )
        finally:
            for each in descriptors:
                with contextlib.suppress(OSError):
                    os.close(each)
        return True

    def _start(self, descriptors: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._supervisor.report_failure(descriptors[2], error, "process")
            return
        if pid == 0:
            signal.set_wakeup_fd(-1)
            self._socket.close()
            for each in self._wake:
                os.close(each)
            self._supervisor.supervise(*descriptors, self._run)
        self._children.add(pid)

    def _reap(self) -> None:
        killed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self._children:
                self._children.discard(pid)
                killed = killed or os.WIFSIGNALED(status)
        if killed:
            self._supervisor.end_orphans(self._children)


def _run(request: dict[str, Any], loop: Any, share: Callable[[dict[str, str]], None]) -> int:
    """Run the SDK's command; does not return."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = request["arguments"]
        sys.path.insert(0, request["directory"])
        share(request["environment"])
        if loop is not None:
            _restart(loop)
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
        # The interpreter's own end takes longer, and waits for threads of the SDK.
        os._exit(code & 0xFF)


def _background_loop() -> Any:
    """The event loop that the SDK's import started in a thread; None if there is none."""
    return getattr(getattr(sys.modules.get("flyte.syncify"), "syncify", None), "_bg_loop", None)


def _restart(loop: Any) -> None:
    """Start the SDK's loop in a new thread."""
    import asyncio  # noqa: PLC0415

    loop.loop = asyncio.new_event_loop()
    loop.thread = threading.Thread(name="flyte_syncify", target=loop._run, daemon=True)
    loop.thread.start()


def _sibling(name: str) -> Any:
    """Import a module of this directory; remove it from ``sys.path`` and ``sys.modules`` again."""
    directory = str(Path(__file__).parent)
    sys.path[:] = [directory, *(each for each in sys.path if each != directory)]
    before = set(sys.modules)
    module = importlib.import_module(name)
    for each in set(sys.modules) - before:
        found = getattr(sys.modules[each], "__file__", None) or ""
        if str(Path(found).parent) == directory:
            del sys.modules[each]
    del sys.path[0]
    return module


if __name__ == "__main__":
    main(int(sys.argv[1]), plain=sys.argv[2:] == ["plain"])
