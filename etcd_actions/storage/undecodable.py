"""The keys whose values cannot be read now, why, and since when."""

from __future__ import annotations

import time
from collections.abc import Callable


class Undecodable:
    """Keeps one reason for each key.

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
        """A key's value cannot be read; it may be another one than before."""
        self._found.setdefault(key, self._clock())
        self._reasons[key] = reason

    def forget(self, key: bytes) -> None:
        """The key has a good value now, or none."""
        self._reasons.pop(key, None)
        self._found.pop(key, None)

    def begin_again(self) -> None:
        """Everything is going to be read again: what is still unreadable is added anew."""
        for key in self._found.keys() - self._reasons.keys():
            del self._found[key]
        self._reasons.clear()

    def reasons(self) -> dict[bytes, str]:
        """The keys, and why each cannot be read."""
        return dict(self._reasons)

    @property
    def since(self) -> float | None:
        """When the first of those was found that cannot be read now; seconds since 1970."""
        return next((at for key, at in self._found.items() if key in self._reasons), None)
