"""The clocks of timeouts."""

from __future__ import annotations

import time

import trio

from etcd_actions._internal.call_time import boot_time


class Clock:
    """A wall clock and a monotonic clock. Tests have a subclass.

    The monotonic clock is CLOCK_BOOTTIME if the system has it: unlike trio's it continues while the
    machine is suspended, so a long sleep reads it repeatedly.

    Attributes:
        look_every: Seconds between two reads of the clock in a sleep.
    """

    look_every: float = 60.0

    def wall(self) -> float:
        """Seconds since 1970; the clock may be set at any time."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since an unspecified time; no process can set this clock."""
        return boot_time()

    async def sleep_until(self, when: float) -> None:
        """Sleep until the monotonic clock shows a time."""
        while (left := when - self.monotonic()) > 0:  # noqa: ASYNC110 - a clock rings no bell
            await trio.sleep(min(left, self.look_every))
        await trio.lowlevel.checkpoint()
