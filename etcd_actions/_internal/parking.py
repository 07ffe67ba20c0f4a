"""A place where one task waits until another one wakes it."""

from __future__ import annotations

import trio


class Parking:
    """The parking of one task; it costs less than a new :class:`trio.Event` for each wait.

    The task has to check its condition before it parks and after it was woken: a call of
    :meth:`wake` has no effect on a task that parks later.
    """

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def park(self) -> None:
        """Wait for the next :meth:`wake`. After a cancellation another task may park.

        Raises:
            trio.BusyResourceError: Another task waits here.
        """
        if self._task is not None:
            raise trio.BusyResourceError("another task is parked here")
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._leave)

    def wake(self) -> None:
        """Wake the task, if one waits. Call it only in trio's thread."""
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    def _leave(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
