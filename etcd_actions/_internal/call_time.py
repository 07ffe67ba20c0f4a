"""How long a call to the world outside may take: until trio's deadline, and while a lease lives.

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
    """Cancel what is inside at a time, which :func:`time_left` knows, too.

    Args:
        until: Returns the deadline in trio's time. Each :func:`time_left` calls it: after a
            suspension of the machine the deadline is earlier.
    """
    token = _until.set(until)
    try:
        with trio.CancelScope(deadline=until()) as scope:
            yield scope
    finally:
        _until.reset(token)


def lease_left() -> float:
    """Seconds until what :func:`call_until` says; infinite without it."""
    until = _until.get()
    return math.inf if until is None else until() - trio.current_time()


def time_left() -> float:
    """Seconds for which a call that is made now may last; none are left at 0 and below.

    By the deadlines of all cancel scopes around, and by :func:`call_until`. Infinite without
    any. The answer is good for a send with nothing awaited before it.
    """
    return min(trio.current_effective_deadline() - trio.current_time(), lease_left())
