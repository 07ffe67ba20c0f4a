"""Objects of tests that have no etcd."""

from __future__ import annotations

from etcd_actions.model import Incarnation


def an_object(name: str = "r1-a0", uid: str = "uid", create_revision: int = 7) -> Incarnation:
    return Incarnation(
        f"/registry/flyte.org/taskactions/flyte/{name}".encode(), create_revision, uid
    )
