"""Why an attempt could not be started."""

from __future__ import annotations

from etcd_actions.model import ErrorState


class NotStarted(Exception):
    """An attempt could not be started; nothing of it runs.

    Attributes:
        error: What the action ends with, where trying again does not help.
        by_machine: Whether the machine lacks something (space, memory, descriptors, processes):
            the action is not to blame, and starts later.
    """

    def __init__(self, error: ErrorState, *, by_machine: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.by_machine = by_machine
