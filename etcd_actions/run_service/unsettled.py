"""The calls of unknown outcome that may still be applied."""

from __future__ import annotations


class Unsettled:
    """By key, the time until which a call of unknown outcome may still be applied.

    An entry is deleted when its time has passed.
    """

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def note(self, key: bytes, until: float, *, now: float) -> None:
        """Note a call about ``key`` with unknown outcome; forget those whose time has passed."""
        self._until.pop(key, None)
        self._until[key] = until
        # The entries are in the order of the failures, so nearly in that of the times.
        while self._until[first := next(iter(self._until))] <= now:
            del self._until[first]
            if not self._until:
                return

    def until(self, key: bytes) -> float:
        """The time, on trio's clock, until which a call about a key may be applied; or -inf."""
        return self._until.get(key, float("-inf"))
