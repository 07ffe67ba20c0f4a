"""The processes below a process, the owner of a lock, and signals that reach no other process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import sys
import time
from typing import NamedTuple

# struct flock of 64-bit systems, and the indexes of l_type and l_pid in it.
_FLOCK = ("hhqqi0q", 0, 4) if sys.platform.startswith("linux") else ("qqihh0q", 3, 2)
# Seconds until a process that does not end after SIGKILL is left.
_LEAVE_AFTER = 10.0


class Process(NamedTuple):
    """A process; its start distinguishes it from another one with the same number."""

    pid: int
    began: str


def descendants(pid: int) -> list[Process]:
    """The processes below a process, parents before children."""
    below = _children()
    return _with_descendants(below.get(pid, []), below)


def send(process: Process, number: int) -> None:
    """Send a signal to a process; never to another one that has its number now."""
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


def lock_owner(descriptor: int) -> int | None:
    """The pid of the process that has locked a file with fcntl, by the kernel; None if free."""
    layout, kind, pid = _FLOCK
    query = [0, 0, 0, 0, 0]
    query[kind] = fcntl.F_WRLCK
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *query))
    except OSError:
        return None
    fields: tuple[int, ...] = struct.unpack(layout, found)
    return fields[pid] if fields[kind] != fcntl.F_UNLCK and fields[pid] > 0 else None


def end_orphans(known: set[int]) -> None:
    """Kill the unknown children that a killed supervisor left, and their trees."""
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
    """All processes, by their parents."""
    below: dict[int, list[Process]] = {}
    for name in numbers():
        found = look_at(name)
        if found is not None:
            below.setdefault(found[0], []).append(Process(int(name), found[1]))
    return below


def numbers() -> list[str]:
    """The numbers of all processes; empty without /proc."""
    with contextlib.suppress(OSError):
        return [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    return []


def _with_descendants(processes: list[Process], below: dict[int, list[Process]]) -> list[Process]:
    result = list(processes)
    for process in result:
        result += below.get(process.pid, ())
    return result


def look_at(name: str) -> tuple[int, str] | None:
    """The parent of a process and its start; None if it has ended."""
    try:
        with open(f"/proc/{name}/stat", "rb", buffering=0) as file:  # noqa: PTH123
            # The name in parentheses may contain any character.
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[1]), fields[19].decode()
