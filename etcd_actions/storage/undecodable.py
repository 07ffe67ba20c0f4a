"""The keys whose values cannot be decoded now, why, and since when."""

from __future__ import annotations

import time
from collections.abc import Callable


class Undecodable:
    """The keys whose values cannot be decoded, with one reason for each.

    Args:
        clock: Returns the seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._reasons: dict[bytes, str] = {}
        # When each was found, in order. After begin_again it has keys without a reason, too.
        self._found: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, key: object) -> bool:
        return key in self._reasons

    def add(self, key: bytes, reason: str) -> None:
        """Note that the value of a key cannot be decoded."""
        self._found.setdefault(key, self._clock())
        self._reasons[key] = reason

    def forget(self, key: bytes) -> None:
        """Forget a key: its value can be decoded, or it is deleted."""
        self._reasons.pop(key, None)
        self._found.pop(key, None)

    def begin_again(self) -> None:
        """Forget all reasons: all keys are read again, and added again if necessary.

        A key that is added again keeps the time at which it was found.
        """
        for key in self._found.keys() - self._reasons.keys():
            del self._found[key]
        self._reasons.clear()

    def reasons(self) -> dict[bytes, str]:
        """The keys, and why each cannot be decoded."""
        return dict(self._reasons)

    @property
    def since(self) -> float | None:
        """When the oldest present key was found, in seconds since 1970; None without one."""
        return next((at for key, at in self._found.items() if key in self._reasons), None)
