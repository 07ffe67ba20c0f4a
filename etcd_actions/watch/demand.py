"""Decides when a prefix is worth its watch, if its readers are few.

The first reader opens the watch, which lists the prefix. The watch is closed when, since the last
use, as many changes arrived as there are keys: another list costs no more than these did. So the
bytes are at most about twice those of the better choice, however often the prefix is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

LEAST_IDLE: Final = 300.0
"""Seconds after the last use in which a watch is not closed."""


class Demand:
    """See the module's text.

    Args:
        in_use: Whether a reader needs the watch to stay open.

    Attributes:
        needed: Set while the watch is to be open.
    """

    def __init__(self, in_use: Callable[[], bool]) -> None:
        self._in_use = in_use
        self.needed = trio.Event()
        self._used = -math.inf
        self._received = 0

    def use(self) -> None:
        """Note a use: the watch is to be open."""
        self._used = trio.current_time()
        self._received = 0
        self.needed.set()

    def has_ended(self, received: int, keys: Callable[[], int]) -> bool:
        """Whether the watch is not worth its cost any more; then it is not needed.

        Args:
            received: The number of changes that have just arrived.
            keys: Returns the number of keys.
        """
        self._received += received
        if trio.current_time() - self._used < LEAST_IDLE or self._in_use():
            return False
        if self._received < keys():
            return False
        self.needed = trio.Event()
        return True
