"""The time that a call to another server may take: until trio's deadline, and within a lease.

A write to etcd is fenced by its transaction. A call to another server cannot be: a process that
makes it under a lease has to end it before the lease can expire. :func:`call_until` sets
the deadline; the code that sends the call reads :func:`time_left` directly before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import trio

_until: ContextVar[Callable[[], float] | None] = ContextVar("call_until", default=None)


def boot_time() -> float:
    """Seconds since the machine started, with suspensions if the system counts them."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def suspended() -> float:
    """Seconds for which the machine was suspended since it started, if the system counts them.

    trio's clock, like every ``time.monotonic``, stops during a suspension; leases do not.
    """
    return boot_time() - time.monotonic()


@contextmanager
def call_until(until: Callable[[], float]) -> Iterator[trio.CancelScope]:
    """Cancel the body at a time, which also limits :func:`time_left`.

    Args:
        until: Returns the deadline on trio's clock. Each :func:`time_left` calls it, because a
            suspension of the machine moves the deadline to an earlier time.
    """
    token = _until.set(until)
    try:
        with trio.CancelScope(deadline=until()) as scope:
            yield scope
    finally:
        _until.reset(token)


def lease_left() -> float:
    """Seconds until the deadline of :func:`call_until`; infinite without one."""
    until = _until.get()
    return math.inf if until is None else until() - trio.current_time()


def time_left() -> float:
    """Seconds for which a call that is made now may last; there is no time left at 0 and below.

    It is the least of the deadlines of all cancel scopes around, and of :func:`call_until`, and
    infinite without any. It is correct only for a call that is sent before anything is awaited.
    """
    return min(trio.current_effective_deadline() - trio.current_time(), lease_left())
