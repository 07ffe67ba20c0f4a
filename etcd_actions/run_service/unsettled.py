"""Which actions a call of unknown outcome may still reach."""

from __future__ import annotations


class Unsettled:
    """By key, the time until which a state that was given up on may still be applied.

    A few bytes for each such call, which are deleted when its time has passed.
    """

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def note(self, key: bytes, until: float, *, now: float) -> None:
        """A call about ``key`` ended with unknown outcome; forget those whose time has passed."""
        self._until.pop(key, None)
        self._until[key] = until
        # In the order of the failures, so nearly in that of the times.
        while self._until[first := next(iter(self._until))] <= now:
            del self._until[first]
            if not self._until:
                return

    def until(self, key: bytes) -> float:
        """Until when a call about a key may land, on trio's clock; in the past for none."""
        return self._until.get(key, float("-inf"))
