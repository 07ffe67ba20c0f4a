"""The rows of ``watch`` through the service, over several streams."""

from __future__ import annotations

import msgspec

from etcd_actions.cli.commands.watch_service import _Changes
from etcd_actions.model import ActionId, ActionUpdate, Phase
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb


def update(name: str, revision: int, *, created: int = 1, deleted: bool = False) -> bytes:
    return msgspec.json.encode(
        ActionUpdate(
            key=f"/p/flyte/r-{name}".encode(),
            namespace="flyte",
            name=f"r-{name}",
            action_id=ActionId("p", "d", "r", name),
            parent="",
            phase=Phase.RUNNING,
            attempts=1,
            cache_status=0,
            output_uri="",
            uid="u",
            create_revision=created,
            revision=revision,
            recorded=False,
            is_deleted=deleted,
        )
    )


def rows(changes: _Changes, *items: bytes | int) -> list[str]:
    """What is printed of the messages: the kinds of changes with the names and revisions."""
    found = []
    for item in items:
        message = pb.WatchUpdatesResponse()
        if isinstance(item, int):
            message.synced = item
        else:
            message.json = item
        for row in changes.rows(message):
            tree = msgspec.to_builtins(row)
            marks = "".join(f" {each}" for each in ("listed", "synthesised") if tree.get(each))
            found.append(f"{tree['type']} {tree.get('action', '')} {tree['revision']}{marks}")
    return found


def test_one_stream() -> None:
    changes = _Changes()
    changes.begin_again()
    assert rows(changes, update("a0", 5), 7, update("a0", 8), update("c", 9, created=9)) == [
        "ADDED a0 5 listed",
        "SYNCED  7",
        "MODIFIED a0 8",
        "ADDED c 9",
    ]
    assert rows(changes, update("c", 10, deleted=True), update("c", 11, created=11)) == [
        "DELETED c 10",
        "ADDED c 11",
    ]
    assert changes.rows(pb.WatchUpdatesResponse()) == []


def test_a_stream_after_another_has_what_changed_in_between() -> None:
    changes = _Changes()
    changes.begin_again()
    rows(changes, update("same", 1), update("old", 2), update("gone", 3), update("new", 4), 5)
    changes.begin_again()
    assert rows(changes, update("same", 1), update("old", 6)) == ["MODIFIED old 6 listed"]
    # A stream that breaks off before all states leaves the others to the next one.
    changes.begin_again()
    assert rows(changes, update("old", 6), update("new", 8, created=8), update("same", 1), 9) == [
        "DELETED new 8 listed synthesised",
        "ADDED new 8 listed",
        "DELETED gone 9 listed synthesised",
    ]
    assert rows(changes, update("same", 10)) == ["MODIFIED same 10"]
