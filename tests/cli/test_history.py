import base64
import json

import pytest

from etcd_actions.cli.history import HistoryReader
from etcd_actions.errors import InputError
from etcd_actions.model import DEFAULT_KEY_PREFIX
from tests.data.captured import EVENTS, HERE

LINES = (HERE / "taskaction_history.jsonl").read_bytes().splitlines(keepends=True)


def test_reads_the_captured_history() -> None:
    reader = HistoryReader("file", DEFAULT_KEY_PREFIX)
    events = [reader.read(line) for line in LINES]
    assert [(event.key, event.value) for event in events if event] == [
        (event.key, event.value if event.type == "PUT" else None) for event in EVENTS
    ]


def test_keys_go_below_another_prefix() -> None:
    event = HistoryReader("file", b"/elsewhere/").read(LINES[0])
    assert event is not None
    assert event.key == b"/elsewhere/" + EVENTS[0].key.removeprefix(DEFAULT_KEY_PREFIX)
    assert event.value == EVENTS[0].value


def test_objects_go_to_another_namespace() -> None:
    event = HistoryReader("file", DEFAULT_KEY_PREFIX, "other").read(LINES[0])
    assert event is not None
    assert event.value is not None
    assert event.key == EVENTS[0].key.replace(b"/flyte/", b"/other/")
    assert event.value == EVENTS[0].value.replace(b'"namespace":"flyte"', b'"namespace":"other"')


@pytest.mark.parametrize("value", [b"no object", b'{"metadata":1}', b"\x00\xff"])
def test_what_is_no_object_goes_to_another_namespace_as_it_is(value: bytes) -> None:
    line = {"type": "PUT", "key": "/a/b/c", "value": base64.b64encode(value).decode()}
    event = HistoryReader("file", b"/p/", "n").read(json.dumps(line).encode())
    assert event is not None
    assert (event.key, event.value) == (b"/p/n/c", value)


def test_empty_lines_count_but_say_nothing() -> None:
    reader = HistoryReader("file", DEFAULT_KEY_PREFIX)
    assert reader.read(b"\n") is None
    assert reader.lines == 1


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b"\xff", "malformed"),
        (b'{"type":"\xff"}', "utf-8"),
        (b'{"key":"/a/b/c"}', "`type`"),
        (b'{"type":"GET","key":"/a/b/c"}', "`$.type`"),
        (b'{"type":"PUT","key":7}', "`$.key`"),
        (b'{"type":"DELETE","key":"c"}', "`$.key`"),
        (b'{"type":"DELETE","key":"/a/b/"}', "`$.key`"),
        (b'{"type":"PUT","key":"/a/b/c","value":"*"}', "`$.value`"),
        (b'{"type":"PUT","key":"/a/b/c"}', "`$.value`"),
    ],
)
def test_malformed_line_is_named(line: bytes, complaint: str) -> None:
    reader = HistoryReader("some.jsonl", b"/p/")
    reader.read(LINES[0])
    with pytest.raises(InputError) as raised:
        reader.read(line)
    message = str(raised.value)
    assert message.startswith("some.jsonl:2: ")
    assert complaint in message
    assert "\n" not in message
