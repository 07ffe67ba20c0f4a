"""The processes below a process, as /proc tells, and signals that reach no other.

It belongs to the supervisor, so it imports nothing of etcd_actions.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import NamedTuple

# A process that may not be killed is left after so long.
_LEAVE_AFTER = 10.0


class Process(NamedTuple):
    """A process as it was seen; ``began`` tells it from another with the same number."""

    pid: int
    began: str


def descendants(pid: int) -> list[Process]:
    """What is below a process and lives, parents before children."""
    below = _children()
    return _with_descendants(below.get(pid, []), below)


def send(process: Process, number: int) -> None:
    """Send a signal to a process, and not to another one that has its number by now."""
    try:
        try:
            descriptor = os.pidfd_open(process.pid)
        except (AttributeError, NotImplementedError):
            os.kill(process.pid, number)
            return
        try:
            found = look_at(str(process.pid))
            if found is not None and found[1] == process.began:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
    except OSError:
        # It has ended, or may not be signalled.
        return


def end_orphans(known: set[int]) -> None:
    """Kill the children of this process that it does not know, and what is below them.

    They come from a supervisor that was killed. Returns when none is left.
    """
    until = time.monotonic() + _LEAVE_AFTER
    while time.monotonic() < until:
        below = _children()
        lost = [each for each in below.get(os.getpid(), ()) if each.pid not in known]
        if not lost:
            return
        for process in _with_descendants(lost, below):
            send(process, signal.SIGKILL)
        time.sleep(0.005)
        for process in lost:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def _children() -> dict[int, list[Process]]:
    """All that live, by their parents."""
    below: dict[int, list[Process]] = {}
    for name in numbers():
        found = look_at(name)
        if found is not None:
            below.setdefault(found[0], []).append(Process(int(name), found[1]))
    return below


def numbers() -> list[str]:
    """The numbers of all processes; none where there is no /proc."""
    with contextlib.suppress(OSError):
        return [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    return []


def _with_descendants(processes: list[Process], below: dict[int, list[Process]]) -> list[Process]:
    result = list(processes)
    for process in result:
        result += below.get(process.pid, ())
    return result


def look_at(name: str) -> tuple[int, str] | None:
    """The parent of a process and when it began; None where it has ended."""
    try:
        with open(f"/proc/{name}/stat", "rb", buffering=0) as file:  # noqa: PTH123
            # The name in parentheses may hold anything.
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[1]), fields[19].decode()
