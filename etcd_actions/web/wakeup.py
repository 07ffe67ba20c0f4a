"""Wakes waiting tasks, and costs nothing if none waits."""

from __future__ import annotations

import trio


class Wakeup:
    """Tasks wait for the next call of :meth:`send`."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: trio.Event | None = None

    def send(self) -> None:
        """Wake all tasks that wait now."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait until the next :meth:`send`."""
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()
