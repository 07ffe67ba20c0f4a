"""Rows of the captured changes, against what the API server told its own watchers."""

from typing import Any

import msgspec
import pytest

from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.formats.rows import RowMaker, stored_row
from etcd_actions.etcd import api as etcd_api
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import DEFAULT_KEY_PREFIX
from etcd_actions.watch import Change, ChangeKind
from tests.cli.expected import expected
from tests.data.captured import DELETES, EVENTS, PUTS, Event

KEY = PUTS[0].key


def as_json(row: object) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(row))
    return decoded


def as_change(event: Event, *, prev: bool = False) -> Change:
    kind = {"PUT": ChangeKind.MODIFIED, "DELETE": ChangeKind.DELETED}[event.type]
    before = (
        KeyValue(event.key, event.previous or b"", 0, 0, 1) if prev and event.previous else None
    )
    kv = etcd_api.Event(
        event.key,
        event.value or b"",
        event.create_revision,
        event.mod_revision,
        event.version,
        prev_kv=before,
    )
    return Change(ChangeKind.ADDED if event.version == 1 else kind, kv)


def put(value: bytes, *, key: bytes = KEY, revision: int = 7, listed: bool = False) -> Change:
    return Change(ChangeKind.ADDED, KeyValue(key, value, revision, revision, 1), listed=listed)


def delete(key: bytes = KEY, revision: int = 8, *, synthesised: bool = False) -> Change:
    return Change.deletion(key, revision, synthesised=synthesised)


@pytest.mark.parametrize("prev", [False, True], ids=["remembered", "prev_kv"])
def test_captured_history(prev: bool) -> None:
    maker = RowMaker(DEFAULT_KEY_PREFIX)
    for event in EVENTS:
        row = as_json(maker.row(as_change(event, prev=prev)))
        assert {name: row[name] for name in expected(event)} == expected(event), event.id
        assert row["key"] == event.key.decode()
        assert row["revision"] == event.mod_revision
        assert row.get("partial", False) == (event.type == "DELETE" and not prev)


def test_prev_kv_tells_a_deletion_of_a_key_never_seen() -> None:
    maker = RowMaker(DEFAULT_KEY_PREFIX)
    for event in DELETES:
        row = as_json(maker.row(as_change(event, prev=True)))
        assert {name: row[name] for name in expected(event)} == expected(event)


def test_deletion_of_a_key_never_seen() -> None:
    row = as_json(RowMaker(DEFAULT_KEY_PREFIX).row(delete(synthesised=True)))
    assert row == {
        "type": "DELETED",
        "key": KEY.decode(),
        "namespace": "flyte",
        "name": "rh7k2m9p4qv3-a0",
        "revision": 8,
        "run": None,
        "action": None,
        "parent": None,
        "phase": None,
        "attempts": None,
        "terminal": None,
        "recorded": None,
        "listed": True,
        "synthesised": True,
        "partial": True,
    }


def test_listed_is_told() -> None:
    row = as_json(RowMaker(DEFAULT_KEY_PREFIX).row(put(PUTS[0].value, listed=True)))
    assert (row["type"], row["listed"]) == ("ADDED", True)


def test_undecodable_value_has_a_row_and_hurts_no_other() -> None:
    maker = RowMaker(DEFAULT_KEY_PREFIX)
    maker.row(put(PUTS[0].value))
    row = as_json(maker.row(put(b"rubbish", revision=9)))
    assert row.pop("reason")
    assert row == {"type": "UNDECODABLE", "key": KEY.decode(), "revision": 9}
    assert as_json(maker.row(put(PUTS[0].value)))["type"] == "ADDED"
    maker.row(put(b"rubbish", revision=10))
    assert as_json(maker.row(delete(revision=11)))["phase"] == "ABORTED"


@pytest.mark.parametrize("tail", [b"name", b"a/b/c", b"flyte/\xff", b""])
def test_key_that_is_no_object_has_a_row(tail: bytes) -> None:
    row = as_json(
        RowMaker(DEFAULT_KEY_PREFIX).row(put(PUTS[0].value, key=DEFAULT_KEY_PREFIX + tail))
    )
    assert row["type"] == "UNDECODABLE"


def test_a_stored_value_has_the_same_row() -> None:
    for event in PUTS:
        kv = KeyValue(event.key, event.value, event.create_revision, event.mod_revision, 1)
        row = as_json(stored_row(DEFAULT_KEY_PREFIX, kv))
        changed = as_json(RowMaker(DEFAULT_KEY_PREFIX).row(as_change(event)))
        assert row == changed | {"type": "ACTION"}
        assert row["created_at"] == event.rest["object"]["metadata"]["creationTimestamp"]
        assert ("ended_at" in row) == row["terminal"]


def test_memory_of_a_key_ends_with_it() -> None:
    maker = RowMaker(DEFAULT_KEY_PREFIX)
    maker.row(put(PUTS[0].value))
    maker.row(delete())
    assert as_json(maker.row(delete()))["phase"] is None


def test_synced() -> None:
    assert as_json(SyncedRow(12)) == {"type": "SYNCED", "revision": 12}
