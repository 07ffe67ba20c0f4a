"""Limits the rate of requests of each client."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from connectrpc.code import Code

from etcd_actions.server.error_codes import Refusal

# The most clients that have a bucket.
_MOST_CLIENTS = 10_000


class RateLimit:
    """A token bucket for each client, which holds the requests of two seconds.

    Args:
        rate: Requests a second; 0 for no limit.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(1.0, 2 * rate)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count a request of a client.

        Raises:
            Refusal: RESOURCE_EXHAUSTED if the client exceeds the rate.
        """
        if not self._rate:
            return
        now = self._clock()
        left, at = self._buckets.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _MOST_CLIENTS:
            # The bucket of the least recent client is full again, or nearly so.
            self._buckets.popitem(last=False)
        if not allowed:
            raise Refusal(
                Code.RESOURCE_EXHAUSTED, f"more than {self._rate:g} requests a second: slow down"
            )
