"""The marker of an abort: a key that says that an action, and all below it, is aborted."""

from __future__ import annotations

import msgspec
import structlog

from etcd_actions._internal.containment import describe
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import DEFAULT_NAMESPACE, ActionId, object_key

_log = structlog.get_logger(__name__)


class Marker(msgspec.Struct, frozen=True, rename="camel"):
    """The value of an abort's key: enough to finish the abort."""

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
    """Of the aborted object; 0 in the markers of versions that did not keep it."""

    @property
    def action_id(self) -> ActionId:
        """The aborted action."""
        return ActionId(self.project, self.domain, self.run, self.name, self.org)

    def is_about(self, create_revision: int, uid: str) -> bool:
        """Return whether the object with the action's key is the aborted one."""
        return uid == self.uid and self.create_revision in (0, create_revision)


def logged_marker(kv: KeyValue) -> Marker | None:
    """Return a stored marker; None, and a line in the log, if it cannot be read."""
    marker, reason = read_marker(kv)
    if reason:
        key = kv.key.decode(errors="backslashreplace")
        _log.error("abort_marker_undecodable", key=key, reason=reason)
    return marker


def read_marker(kv: KeyValue) -> tuple[Marker | None, str]:
    """Return a stored marker, or the reason why the value is none."""
    try:
        marker = msgspec.json.decode(kv.value, type=Marker)
        name = marker.action_id.object_name
        # Names that make no key are no action's.
        object_key(b"", DEFAULT_NAMESPACE, name)
    except Exception as error:
        return None, describe(error)
    if kv.key.rpartition(b"/")[2] != name.encode():
        return None, f"it is about another action: {name}"[:200]
    return marker, ""
