"""The common part of all readers: their commands and their counts.

A reader is a process. Its main thread reads events without end; a second thread takes commands
and, but for a time after the load, sleeps. The process ends by ``os._exit``, since some readers
cannot be stopped.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import threading
import time
import traceback
import tracemalloc
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from scripts.bench.bodies import stamp_of
from scripts.bench.channel import Channel, inherited

_POLL_SECONDS = 0.005
_QUIET_SECONDS = 0.5
_SETTLING_SECONDS = 1.0
_IDLE_CPU_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Task:
    """The work of a reader.

    Attributes:
        mode: Watch a prefix; list it to the last object; watch from ``revision`` what is in
            history already; or only make what a later one of these needs.
        host: etcd's host.
        port: etcd's port.
        prefix: What keys begin with; a namespace of TaskActions and a slash.
        revision: The first revision to watch; what is older is listed.
        page: Objects a page, for readers that list by hand.
        times: A file for the times at which events were sent and seen.
        spawned: When the process was started, by ``time.monotonic_ns()``.
        run: The run whose root a subscriber subscribes to.
        trace: Whether to count the bytes that Python has allocated, which makes it slow.
    """

    mode: Literal["watch", "list", "catch-up", "prepare"]
    host: str
    port: int
    prefix: str
    revision: int
    page: int
    times: str
    spawned: int
    run: str = ""
    trace: bool = False

    @property
    def target(self) -> str:
        """etcd, as HOST:PORT."""
        return f"{self.host}:{self.port}"

    @property
    def range_end(self) -> bytes:
        """The first key behind the prefix."""
        prefix = self.prefix.encode()
        return prefix[:-1] + bytes((prefix[-1] + 1,))

    def to_json(self) -> str:
        """For the command line of a reader."""
        return json.dumps(asdict(self))


class Recorder:
    """Counts the events of one reader; all calls come from one thread."""

    def __init__(self) -> None:
        self.sent = array("q")
        self.seen = array("q")
        self.last: dict[bytes, int] = {}
        self.disordered = 0
        self.listed_count = 0
        self.listed_at = 0
        self.opened_at = 0
        self.opened_cpu = 0
        self.conflated = 0
        self.rss_opening = 0
        self.watching = threading.Event()

    def opening(self) -> None:
        """Call before connecting, when all is imported."""
        self.rss_opening = _settled_rss()
        self.opened_at = time.monotonic_ns()
        self.opened_cpu = time.process_time_ns()

    def event(self, key: bytes, mod_revision: int, value: bytes) -> None:
        """Count an event of a watch; the stamp is in its value."""
        self.event_sent_at(key, mod_revision, stamp_of(value))

    def event_sent_at(self, key: bytes, mod_revision: int, sent: int) -> None:
        """Count an event of a watch."""
        self.seen.append(time.monotonic_ns())
        self.sent.append(sent)
        if mod_revision <= self.last.get(key, 0):
            self.disordered += 1
        self.last[key] = mod_revision

    def listed(self) -> None:
        """Count an object of a list."""
        self.listed_count += 1
        self.listed_at = time.monotonic_ns()

    @property
    def count(self) -> int:
        """Events so far."""
        return len(self.seen)


def serve(read: Callable[[Task, Recorder], None]) -> None:
    """Run ``read`` in this thread, and commands in another, until the command to finish."""
    channel, argument = inherited()
    task = Task(**json.loads(argument))
    recorder = Recorder()
    if task.trace:
        tracemalloc.start()
    threading.Thread(target=_command, args=(channel, task, recorder), daemon=True).start()
    try:
        read(task, recorder)
    except BaseException as error:
        traceback.print_exc()
        channel.say("failed", error=f"{type(error).__name__}: {error}")
    # The driver decides when the process ends.
    threading.Event().wait()


def _command(channel: Channel, task: Task, recorder: Recorder) -> None:
    cpu = 0
    try:
        for command in channel.commands():
            match command:
                case ["watch"]:
                    recorder.watching.wait()
                    channel.say("watching")
                case ["held", count]:
                    while recorder.listed_count < int(count):
                        time.sleep(_POLL_SECONDS)
                    _await_idle()
                    resident = _settled_rss() - recorder.rss_opening
                    allocated = tracemalloc.get_traced_memory()[0]
                    channel.say("held", resident=resident, allocated=allocated)
                case ["baseline", count]:
                    while recorder.count < int(count):
                        time.sleep(_POLL_SECONDS)
                    cpu = time.process_time_ns()
                    channel.say("ready")
                case ["finish", count, revision, timeout]:
                    _await_all(recorder, int(count), int(revision), float(timeout))
                    spent = time.process_time_ns() - (cpu or recorder.opened_cpu)
                    channel.say("result", **_result(task, recorder, spent))
                case _:
                    channel.say("failed", error=f"unknown command {command}")
    finally:
        os._exit(0)


def _await_all(recorder: Recorder, count: int, revision: int, timeout: float) -> None:
    """Wait for ``count`` events; or, of one that merges events, for the last and then quiet.

    Without a ``revision`` for as many listed objects.
    """
    deadline = time.monotonic() + timeout
    if not revision:
        while time.monotonic() < deadline and recorder.listed_count < count:
            time.sleep(_POLL_SECONDS)
        return
    seen, since = -1, time.monotonic()
    while (now := time.monotonic()) < deadline and recorder.count < count:
        if recorder.count != seen:
            seen, since = recorder.count, now
        elif (
            now - since > _QUIET_SECONDS
            and recorder.last
            and max(recorder.last.copy().values()) >= revision
        ):
            return
        time.sleep(_POLL_SECONDS)


def _result(task: Task, recorder: Recorder, cpu: int) -> dict[str, object]:
    rss = _peak_rss()
    seen, sent = recorder.seen[:], recorder.sent[:]
    with Path(task.times).open("wb") as file:
        seen.tofile(file)
        sent[: len(seen)].tofile(file)
    return {
        "cpu_ns": cpu,
        "rss": rss,
        "seen": len(seen),
        "disordered": recorder.disordered,
        "last": {key.decode(): revision for key, revision in recorder.last.copy().items()},
        "listed": recorder.listed_count,
        "listed_at": recorder.listed_at,
        "opened_at": recorder.opened_at,
        "seen_at": seen[-1] if seen else 0,
        "conflated": recorder.conflated,
    }


def _peak_rss() -> int:
    return _of_status("VmHWM")


def _await_idle() -> None:
    """Wait until this process has no work: a new leader reads all objects once more."""
    spent = -1.0
    while time.process_time() - spent > _IDLE_CPU_SECONDS:
        spent = time.process_time()
        time.sleep(_SETTLING_SECONDS)


def _settled_rss() -> int:
    """Bytes of memory in use, when what is free went back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _of_status("VmRSS")


def _of_status(name: str) -> int:
    with Path("/proc/self/status").open(encoding="ascii") as lines:
        line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
