"""Which actions a call of unknown outcome may still reach."""

from __future__ import annotations


class Unsettled:
    """By key, the time until which a state that was given up on may still be applied.

    A few bytes for each such call, which go when its time is over.
    """

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def note(self, key: bytes, until: float, *, now: float) -> None:
        """A call about ``key`` ended, and it is not known how; forget those that are over."""
        self._until.pop(key, None)
        self._until[key] = until
        # The order is that of the failures: the first are over first, or nearly so.
        while self._until[first := next(iter(self._until))] <= now:
            del self._until[first]
            if not self._until:
                return

    def until(self, key: bytes) -> float:
        """When it is over for a key, in trio's time; the beginning of time if it is."""
        return self._until.get(key, float("-inf"))
