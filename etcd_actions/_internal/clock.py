"""The clocks of timeouts."""

from __future__ import annotations

import time

import trio

from etcd_actions._internal.call_time import boot_time


class Clock:
    """Wall clock and monotonic clock. Tests have another one.

    The monotonic clock is CLOCK_BOOTTIME where there is one: unlike trio's it continues while the
    machine is suspended, so long sleeps read it now and then.

    Attributes:
        look_every: After so many seconds a sleeper looks at the clock.
    """

    look_every: float = 60.0

    def wall(self) -> float:
        """Seconds since 1970; it may be set at any time."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some time; no process can set this clock."""
        return boot_time()

    async def sleep_until(self, when: float) -> None:
        """Sleep until the monotonic clock shows a time."""
        while (left := when - self.monotonic()) > 0:  # noqa: ASYNC110 - a clock rings no bell
            await trio.sleep(min(left, self.look_every))
        await trio.lowlevel.checkpoint()
