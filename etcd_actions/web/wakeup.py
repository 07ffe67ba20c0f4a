"""Wakes the tasks that wait, and costs nothing where none does."""

from __future__ import annotations

import trio


class Signal:
    """Something changes now and then, and tasks wait for the next time."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: trio.Event | None = None

    def send(self) -> None:
        """Wake all that wait now."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait until the next :meth:`send`."""
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()
