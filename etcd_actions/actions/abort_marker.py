"""The marker of an abort: its key exists while an action, and all below it, is being aborted."""

from __future__ import annotations

import msgspec
import structlog

from etcd_actions._internal.containment import describe
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import DEFAULT_NAMESPACE, ActionId, object_key

_log = structlog.get_logger(__name__)


class Marker(msgspec.Struct, frozen=True, rename="camel"):
    """The value of a marker: all that is needed to finish the abort."""

    uid: str
    project: str
    domain: str
    run: str
    name: str
    org: str
    reason: str
    aborted_by: str
    at: str
    create_revision: int = 0
    """The ``create_revision`` of the aborted object; 0 in a marker of an older version."""

    @property
    def action_id(self) -> ActionId:
        """The aborted action."""
        return ActionId(self.project, self.domain, self.run, self.name, self.org)

    def is_about(self, create_revision: int, uid: str) -> bool:
        """Return whether the object with the action's key is the aborted one."""
        return uid == self.uid and self.create_revision in (0, create_revision)


def logged_marker(kv: KeyValue) -> Marker | None:
    """Return a stored marker; None, which is logged, if it cannot be decoded."""
    marker, reason = read_marker(kv)
    if reason:
        key = kv.key.decode(errors="backslashreplace")
        _log.error("abort_marker_undecodable", key=key, reason=reason)
    return marker


def read_marker(kv: KeyValue) -> tuple[Marker | None, str]:
    """Return a stored marker and an empty text; or None and the reason."""
    try:
        marker = msgspec.json.decode(kv.value, type=Marker)
        name = marker.action_id.object_name
        # An action cannot have names that are not allowed in a key.
        object_key(b"", DEFAULT_NAMESPACE, name)
    except Exception as error:
        return None, describe(error)
    if kv.key.rpartition(b"/")[2] != name.encode():
        return None, f"it is about another action: {name}"[:200]
    return marker, ""
