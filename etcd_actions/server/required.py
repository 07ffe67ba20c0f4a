"""Checks that fields of a request are set, and names valid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from etcd_actions.errors import InvalidArgument
from etcd_actions.model import ROOT_ACTION, ActionId

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from etcd_actions.server._pb.etcd_actions_operations_pb2 import RunName


def require(message: Message, *fields: str, where: str = "") -> None:
    """Raise InvalidArgument for the first field that is not set, or empty."""
    for field in fields:
        is_message = message.DESCRIPTOR.fields_by_name[field].message_type is not None
        if not (message.HasField(field) if is_message else getattr(message, field)):
            raise InvalidArgument(f"{where}.{field}" if where else field, "it is missing")


def require_names(message: Message, *fields: str, where: str) -> None:
    """Raise InvalidArgument for the first field that is not a name, or has a slash."""
    for field in fields:
        text = getattr(message, field)
        if not text or "/" in text:
            raise InvalidArgument(
                f"{where}.{field}", f"{text[:80]!r} is not a valid name: give one"
            )


def require_runs(runs: Sequence[RunName], most: int) -> list[ActionId]:
    """The roots of the runs that a request names; raises InvalidArgument for invalid ones."""
    if not 0 < len(runs) <= most:
        raise InvalidArgument("runs", f"there are {len(runs)}: give from 1 to {most}")
    for index, run in enumerate(runs):
        require_names(run, "project", "domain", "run", where=f"runs[{index}]")
    return [ActionId(run.project, run.domain, run.run, ROOT_ACTION) for run in runs]
