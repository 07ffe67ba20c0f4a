"""The keys whose values cannot be decoded now, why, and since when."""

from __future__ import annotations

import time
from collections.abc import Callable


class Undecodable:
    """One reason for each key.

    Args:
        clock: Seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._reasons: dict[bytes, str] = {}
        # In the order in which they were found; more than the keys of the reasons.
        self._found: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, key: object) -> bool:
        return key in self._reasons

    def add(self, key: bytes, reason: str) -> None:
        """The value of a key cannot be decoded; it may differ from the one before."""
        self._found.setdefault(key, self._clock())
        self._reasons[key] = reason

    def forget(self, key: bytes) -> None:
        """The key has a value that can be decoded, or none."""
        self._reasons.pop(key, None)
        self._found.pop(key, None)

    def begin_again(self) -> None:
        """All keys are read again: what still cannot be decoded is added once more."""
        for key in self._found.keys() - self._reasons.keys():
            del self._found[key]
        self._reasons.clear()

    def reasons(self) -> dict[bytes, str]:
        """The keys, and why each cannot be decoded."""
        return dict(self._reasons)

    @property
    def since(self) -> float | None:
        """When the first of the present ones was found, in seconds since 1970; None for none."""
        return next((at for key, at in self._found.items() if key in self._reasons), None)
