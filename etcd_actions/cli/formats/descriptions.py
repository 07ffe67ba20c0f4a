"""The output of ``describe`` as values; :mod:`~.description_text` formats them for a person."""

from __future__ import annotations

from typing import Any

import msgspec

from etcd_actions.cli.formats.rows import ActionRow


class Event(msgspec.Struct, frozen=True):
    """A phase that an attempt entered."""

    time: str
    attempt: int
    phase: str
    ended: str = ""


class AttemptDescription(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An attempt; ``log`` is the command that shows its log, and the links that Flyte stored."""

    attempt: int
    phase: str
    started_at: str = ""
    ended_at: str = ""
    error: str = ""
    log: list[str] = []


class Description(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The output of ``describe``; for a run, that of its root.

    Attributes:
        error: The error, with the traceback if there is one.
        details: Flyte's ``ActionDetails`` without the parts above.
        failed: Other actions of the run that failed; only of a root.
    """

    action: ActionRow
    events: list[Event] = []
    attempts: list[AttemptDescription] = []
    error: str = ""
    inputs_uri: str = ""
    outputs_uri: str = ""
    labels: dict[str, str] = {}
    failed: list[str] = []
    details: dict[str, Any] = {}

    @property
    def path(self) -> str:
        """The name that commands take."""
        return self.action.path
