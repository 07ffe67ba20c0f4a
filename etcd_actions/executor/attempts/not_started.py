"""Why an attempt could not be started."""

from __future__ import annotations

from pathlib import Path

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


class OutputsInUse(Exception):
    """An attempt was not started, since another that lives has its directory of outputs.

    Attributes:
        holder: The directory of the other one.
    """

    def __init__(self, holder: Path) -> None:
        super().__init__(f"attempt {holder} has the same directory of outputs")
        self.holder = holder
