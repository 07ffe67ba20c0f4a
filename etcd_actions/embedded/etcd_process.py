"""The process of an embedded etcd: start, wait, stop, and one that outlived its owner.

On Linux etcd ends when its owner ends, also when the owner is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from etcd_actions._internal.logger import get_logger
from etcd_actions.embedded.binary import Binary, environment
from etcd_actions.embedded.data_directory import State
from etcd_actions.errors import EmbeddedEtcdError

_STOP_TIMEOUT = 5.0
_POLL = 0.02
_LOG_TAIL = 2000

# The kernel sends the signal when the thread that forked ends. The owner may have ended before
# prctl was called, hence the check of its pid.
_END_WITH_PARENT = """\
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM):
    print("prctl:", os.strerror(ctypes.get_errno()), file=sys.stderr)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the owner has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""

_log = get_logger(__name__)


def spawn(directory: Path, binary: Binary, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start etcd from this thread: on Linux etcd ends when the thread ends."""
    command = [str(binary.path), _data_flag(directory), *flags]
    if sys.platform == "linux":
        # preexec_fn needs no second exec, but can deadlock with other threads.
        shim = [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid())]
        command = [*shim, *command]
    log_file = directory / "etcd.log"
    if log_file.exists():
        log_file.replace(directory / "etcd.log.1")
    with log_file.open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env=environment(),
            # A Ctrl-C in the terminal is for the owner, which still needs etcd to drain.
            start_new_session=True,
        )


async def wait(process: subprocess.Popen[bytes]) -> int:
    """Wait until the process has ended, and reap it."""
    code = process.poll()
    if code is not None:
        await trio.lowlevel.checkpoint()
        return code
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError) as error:
        _log.debug("no pidfd, polling instead", error=str(error))
        while (code := process.poll()) is None:  # noqa: ASYNC110
            await trio.sleep(_POLL)
        return code
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    return process.wait()


async def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, then SIGKILL, and reap the process. Call it shielded."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with trio.move_on_after(_STOP_TIMEOUT):
            await wait(process)
            return
        _log.warning("etcd did not end in time", signal=number.name, pid=process.pid)


async def end_stale(directory: Path, state: State) -> None:
    """End the etcd that a dead owner left on this directory.

    Raises:
        EmbeddedEtcdError: It cannot be ended.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _is_stale(directory, state):
            return
        _log.warning(
            "stopping the etcd that a dead owner left behind",
            signal=number.name,
            pid=state.etcd_pid,
            owner=state.owner_pid,
        )
        os.kill(state.etcd_pid, number)
        with trio.move_on_after(_STOP_TIMEOUT):
            while _is_stale(directory, state):  # noqa: ASYNC110
                await trio.sleep(_POLL)
            return
    raise EmbeddedEtcdError(
        f"etcd, process {state.etcd_pid}, still runs on {directory} and cannot be ended"
    )


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if that is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The second field is the program's name in parentheses, which can contain anything.
    return int(stat.rpartition(")")[2].split()[19])


def exit_description(code: int, log_file: Path) -> str:
    """How etcd ended, with the tail of its log."""
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    return f"etcd ended {how}; its log {log_file} ends with:\n{log_tail(log_file)}"


def log_tail(log_file: Path) -> str:
    """The last lines of a log."""
    with log_file.open("rb") as log:
        log.seek(max(0, log_file.stat().st_size - _LOG_TAIL))
        return log.read().decode(errors="replace").strip()


def _is_stale(directory: Path, state: State) -> bool:
    """Whether the process of the state file still runs: not another one with its pid."""
    if not state.etcd_pid or start_time(state.etcd_pid) != state.etcd_start_time:
        return False
    try:
        command = Path(f"/proc/{state.etcd_pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # The command line of a process that waits to be reaped is empty.
    return _data_flag(directory).encode() in command.split(b"\0")


def _data_flag(directory: Path) -> str:
    return f"--data-dir={directory / 'etcd'}"
