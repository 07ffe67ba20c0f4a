"""Updates, and the summaries that stand in for an object that is gone."""

import base64
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.codecs import json as codec
from etcd_actions.errors import DecodeError
from etcd_actions.model import (
    ANNOTATION_MOST_AT_ONCE,
    ActionId,
    ActionObject,
    Condition,
    ErrorState,
    ObjectMeta,
    Phase,
    Summary,
    TaskActionSpec,
    TaskActionStatus,
    build_action_update,
    flyte,
    pack,
    summarize,
    unpack,
)
from tests.data.captured import PUTS, Event
from tests.support.table import table

each_put = table("event", PUTS, ids=lambda event: event.id)

KEY = b"/registry/flyte.org/taskactions/flyte/run1-a1"

PHASES = {
    Phase.UNSPECIFIED: (),
    Phase.RUNNING: (Condition("Progressing", "True", "Executing"),),
    Phase.PAUSED: (Condition("Progressing", "True", "Paused"),),
    Phase.SUCCEEDED: (Condition("Succeeded", "True", "Completed"),),
    Phase.FAILED: (Condition("Failed", "True", "PermanentFailure"),),
    Phase.TIMED_OUT: (Condition("Failed", "True", "TimedOut"),),
    Phase.ABORTED: (Condition("Failed", "True", "Aborted"),),
}


def make(phase: Phase) -> ActionObject:
    return ActionObject.new(
        ObjectMeta("run1-a1", "flyte", "uid-1", creation_timestamp="2026-11-23T16:14:03Z"),
        TaskActionSpec(
            "p",
            "d",
            "run1",
            "a1",
            parent_action_name="a0",
            run_output_base="s3://b/o",
            short_name="f",
            task_type="python",
        ),
        TaskActionStatus(
            attempts=2,
            cache_status=3,
            conditions=PHASES[phase],
            error_state=ErrorState("C", "USER", "broken"),
            signal_value="AP8=",
            signalled_by="alice",
        ),
    )


def test_an_update_of_an_object() -> None:
    """Verify every field of an update."""
    action = make(Phase.RUNNING)
    update = build_action_update(action, key=KEY, revision=9, create_revision=4)
    assert msgspec.structs.asdict(update) == {
        "key": KEY,
        "namespace": "flyte",
        "name": "run1-a1",
        "action_id": ActionId("p", "d", "run1", "a1"),
        "parent": "a0",
        "phase": Phase.RUNNING,
        "attempts": 2,
        "cache_status": 3,
        "output_uri": action.output_uri,
        "uid": "uid-1",
        "create_revision": 4,
        "revision": 9,
        "recorded": False,
        "is_deleted": False,
        "partial": False,
        "error": ErrorState("C", "USER", "broken"),
        "signal_base64": "AP8=",
        "signalled_by": "alice",
        "short_name": "f",
        "task_type": "python",
        "creation_timestamp": "2026-11-23T16:14:03Z",
        "action_type": "task",
        "end_time": "",
        "abort_reason": "",
        "aborted_by": "",
        "most_at_once": 0,
    }


@table(
    ("text", "most"),
    [
        ("2", 2),
        ("4294967295", 2**32 - 1),
        ("", 0),
        ("-1", 0),
        ("\u0662", 0),
        ("9" * 11, 0),
        ("x", 0),
    ],
)
def test_how_many_may_be_busy_is_a_number_or_none(text: str, most: int) -> None:
    action = make(Phase.RUNNING)
    metadata = msgspec.structs.replace(action.metadata, annotations={ANNOTATION_MOST_AT_ONCE: text})
    update = build_action_update(
        msgspec.structs.replace(action, metadata=metadata), key=KEY, revision=9
    )
    assert update.most_at_once == most
    assert update.output_uri.endswith("/o/a1/2")
    assert update.signal_literal == b"\0\xff"


def test_no_error_and_no_signal() -> None:
    """Verify None for what an action does not have."""
    action = msgspec.structs.replace(make(Phase.SUCCEEDED), status=TaskActionStatus())
    update = build_action_update(action, key=KEY, revision=9)
    assert (update.error, update.signal_value, update.ended_at) == (None, None, None)


def test_times_are_times_and_a_signal_is_a_value() -> None:
    created = datetime(2026, 11, 23, 16, 14, 3, tzinfo=UTC)
    update = None
    for value in (True, -7, 2.5, "yes"):
        stored = base64.b64encode(flyte.literal_of(value).SerializeToString()).decode()
        action = msgspec.structs.replace(
            make(Phase.SUCCEEDED), status=TaskActionStatus(signal_value=stored)
        )
        update = build_action_update(action, key=KEY, revision=9)
        assert (update.signal_value, type(update.signal_value)) == (value, type(value))
        assert update.created_at == created
    assert update is not None
    with pytest.raises(DecodeError, match=r"status\.conditions: not an RFC 3339 time"):
        _ = msgspec.structs.replace(update, end_time="yesterday").ended_at


def test_bad_signal() -> None:
    """Verify that a signal that is not base64 is refused when it is read, not before."""
    status = TaskActionStatus(signal_value="?")
    action = msgspec.structs.replace(make(Phase.PAUSED), status=status)
    update = build_action_update(action, key=KEY, revision=9)
    with pytest.raises(DecodeError, match=r"status\.signalValue: not base64"):
        _ = update.signal_value


@table("phase", PHASES, ids=lambda phase: phase.name)
@table("packed", [False, True], ids=["object", "summary"])
def test_deletion(phase: Phase, packed: bool) -> None:
    """Verify Flyte's guards: a deletion aborts what was not over and keeps an end."""
    action = make(phase)
    source = unpack(pack(summarize(action, 8))) if packed else action
    before = build_action_update(source, key=KEY, revision=8)
    update = build_action_update(source, key=KEY, revision=9, deleted=True)
    assert (before.phase, before.is_deleted) == (phase, False)
    assert update.phase == (phase if phase.is_terminal else Phase.ABORTED)
    assert (update.is_deleted, update.revision, update.partial) == (True, 9, packed)


@each_put
def test_summary_tells_what_the_object_told(event: Event) -> None:
    """Verify that a remembered action is told like the real one, except for what is not kept."""
    action = codec.decode(event.value)
    packed = pack(summarize(action, event.mod_revision, event.create_revision))
    assert len(packed) <= 200
    summary = unpack(packed)
    assert summary == summarize(action, event.mod_revision, event.create_revision)
    assert (summary.revision, summary.is_terminal) == (event.mod_revision, action.is_terminal)
    full = build_action_update(
        action, key=event.key, revision=5000, create_revision=event.create_revision
    )
    partial = build_action_update(summary, key=event.key, revision=5000)
    kept = msgspec.structs.replace(
        full,
        partial=True,
        error=None,
        signal_base64="",
        signalled_by="",
        short_name="",
        task_type="",
        action_type="",
        creation_timestamp="",
        end_time="",
        abort_reason="",
        aborted_by="",
    )
    assert partial == kept


def test_create_revision_of_the_event_wins() -> None:
    """Verify that a summary's create_revision only fills in for an unknown one."""
    summary = unpack(pack(summarize(make(Phase.RUNNING), 8, 4)))
    assert build_action_update(summary, key=KEY, revision=9).create_revision == 4
    update = build_action_update(summary, key=KEY, revision=9, create_revision=7)
    assert update.create_revision == 7


def test_summaries_can_grow() -> None:
    """Verify that a summary with a field more, of a later version, is still read."""
    fields = msgspec.msgpack.decode(pack(summarize(make(Phase.RUNNING), 8)))
    longer = msgspec.msgpack.encode([*fields, "later"])
    assert unpack(longer) == summarize(make(Phase.RUNNING), 8)


@given(st.binary())
def test_no_bytes_crash_unpack(data: bytes) -> None:
    """Verify that bytes are unpacked or refused, with nothing else raised."""
    try:
        summary = unpack(data)
    except DecodeError:
        summary = None
    assert summary is None or isinstance(summary, Summary)


@pytest.mark.parametrize("data", [b"", b"\x90", b"\xc1", b"\x91" * 100_000, b"\xd9\x01\xff"])
def test_unpack_refuses(data: bytes) -> None:
    """Verify the error for what is no summary."""
    with pytest.raises(DecodeError, match="not a summary"):
        unpack(data)
