"""Ends the attempts of a worker that died, or cannot renew its claims in time.

A program of its own: the worker may be killed or stopped, and attempts outlive it. The worker sends
a line with the time before which its claims cannot expire, in seconds of CLOCK_BOOTTIME. When
that time has passed, or the worker's end of the pipe is closed, all attempts of the state directory
are noted as lost, and killed. After the close the guard ends itself.

It inherits the lock of the state directory: no other worker uses the directory before that.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import time
from collections.abc import Iterator

if __package__:
    from etcd_actions.executor.supervision.process_tree import Process, lock_owner, look_at, send
else:
    # It is run as a file.
    from process_tree import Process, lock_owner, look_at, send  # type: ignore[import-not-found,no-redef]

_SUPERVISOR = "supervisor"
_LOST = "lost"
_CODE = "WorkerLost"
# Seconds between two rounds, each of which ends the attempts that run.
_ROUND_EVERY = 0.5
# Seconds until a supervisor that does not end its attempt is killed itself.
_PATIENCE = 2.0
# The most rounds after the worker has ended.
_MOST_ROUNDS = 20
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def main() -> None:
    """Guard the attempts of the state directory that the first argument names."""
    state_dir = sys.argv[1]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    until, data = math.inf, b""
    os.set_blocking(0, False)
    while True:
        left = until - _now()
        if left <= 0:
            end_all(state_dir)
            left = _ROUND_EVERY
        select.select([0], [], [], None if math.isinf(left) else left)
        try:
            part = os.read(0, 65536)
        except BlockingIOError:
            continue
        if not part:
            break
        *lines, data = (data + part).split(b"\n")
        if lines:
            until = float(lines[-1])
    for _ in range(_MOST_ROUNDS):
        if not end_all(state_dir):
            break
        time.sleep(_ROUND_EVERY)


def end_all(state_dir: str) -> int:
    """Note all attempts that run as lost, and kill them; return how many there were."""
    began = time.monotonic()
    found = list(_running(state_dir))
    for path, process in found:
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OPEN
            note = os.open(os.path.join(path, _LOST), flags, 0o600)  # noqa: PTH118
            os.write(note, _CODE.encode())
            os.close(note)
        send(process, signal.SIGQUIT)
        send(process, signal.SIGCONT)
    left = found
    while left and time.monotonic() - began < _PATIENCE:
        time.sleep(0.02)
        # Without attempts that the worker started in the meantime: it has renewed its claims.
        running = set(_running(state_dir))
        left = [each for each in found if each in running]
    for _, process in left:
        send(process, signal.SIGKILL)
    return len(found)


def _running(state_dir: str) -> Iterator[tuple[str, Process]]:
    """The directories of attempts that run, and their supervisors."""
    top = os.path.join(state_dir, "attempts")  # noqa: PTH118
    for action in _directories(top):
        for attempt in _directories(action):
            pid = _holder(attempt)
            seen = None if pid is None else look_at(str(pid))
            # If the number was reused between the two reads, it is no supervisor's.
            if pid is not None and seen is not None and pid == _holder(attempt):
                yield attempt, Process(pid, seen[1])


def _directories(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return [each.path for each in os.scandir(path) if each.is_dir(follow_symlinks=False)]
    return []


def _holder(attempt: str) -> int | None:
    """The process that has the lock of an attempt's supervisor."""
    try:
        file = os.open(os.path.join(attempt, _SUPERVISOR), os.O_RDWR | _OPEN)  # noqa: PTH118
    except OSError:
        return None
    try:
        return lock_owner(file)
    finally:
        os.close(file)


def _now() -> float:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
