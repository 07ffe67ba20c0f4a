"""Both forms of a history, sound, cut off and corrupt."""

import base64
import json
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.change_history.history import (
    Destination,
    HistoryEvent,
    HistoryReader,
    LineReader,
    RecordReader,
    reader_of,
)
from etcd_actions.change_history.record_format import Header, RecordWriter
from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.errors import InputError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import DEFAULT_KEY_PREFIX
from etcd_actions.watch import Change, ChangeKind
from tests.data.captured import EVENTS, HERE
from tests.support.table import table

HISTORY = (HERE / "taskaction_history.jsonl").read_bytes()
LINES = HISTORY.splitlines(keepends=True)
HEADER = Header(DEFAULT_KEY_PREFIX, None, 1, True, 7, "2026-01-01T00:00:00Z", "test")


def as_record(events: list[HistoryEvent], *, header: Header = HEADER) -> bytes:
    writer = RecordWriter()
    parts = [writer.header(header)]
    for revision, event in enumerate(events, 2):
        deleted = event.value is None
        change = Change(
            ChangeKind.DELETED if deleted else ChangeKind.MODIFIED,
            KeyValue(event.key, event.value or b"", 0, revision, 0 if deleted else revision),
        )
        parts.append(writer.entry(change))
    return b"".join((*parts, writer.entry(SyncedRow(99)), writer.end()))


WANTED = [HistoryEvent(event.key, event.value if event.type == "PUT" else None) for event in EVENTS]
RECORD = as_record(WANTED)
SMALL = [
    HistoryEvent(DEFAULT_KEY_PREFIX + b"flyte/a", b'{"x":1}'),
    HistoryEvent(DEFAULT_KEY_PREFIX + b"flyte/b", b""),
    HistoryEvent(DEFAULT_KEY_PREFIX + b"flyte/a", None),
    HistoryEvent(DEFAULT_KEY_PREFIX + b"odd\xff", b"\x00" * 40),
]
SMALL_RECORD = as_record(SMALL)
HEADER_END = len(RecordWriter().header(HEADER))
ENDING = as_record([])[HEADER_END:]


def read(
    data: bytes, *, prefix: bytes = DEFAULT_KEY_PREFIX, namespace: str | None = None, step: int = 0
) -> tuple[list[HistoryEvent], HistoryReader]:
    """All events of an input that comes in pieces of a size."""
    reader = reader_of("file", data, Destination(prefix, namespace))
    step = step or max(1, len(data))
    events = []
    for at in range(0, len(data), step):
        events += [event for _, event in reader.feed(data[at : at + step])]
    return events + [event for _, event in reader.finish()], reader


def complaint(data: bytes, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        read(data, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("data", [HISTORY, RECORD], ids=["lines", "record"])
@pytest.mark.parametrize("step", [0, 65536, 1000])
def test_reads_the_captured_history(data: bytes, step: int) -> None:
    events, reader = read(data, step=step)
    assert events == WANTED
    assert reader.warning == ""


def test_pieces_of_any_size() -> None:
    for step in range(1, 60):
        assert read(SMALL_RECORD, step=step)[0] == SMALL
        assert read(b"".join(LINES[:2])[:-1], step=step * 100)[0] == WANTED[:2]


def test_positions_are_those_of_the_input() -> None:
    for data in (HISTORY, RECORD):
        steps = list(reader_of("file", data, Destination(b"/p/")).feed(data))
        positions = [step.offset for step in steps]
        assert positions == sorted(set(positions))
        assert len(data) // 2 < positions[-1] <= len(data)


@pytest.mark.parametrize("data", [HISTORY, RECORD], ids=["lines", "record"])
def test_keys_go_below_another_prefix(data: bytes) -> None:
    events, _ = read(data, prefix=b"/elsewhere/")
    assert [event.value for event in events] == [event.value for event in WANTED]
    assert [event.key for event in events] == [
        b"/elsewhere/" + event.key.removeprefix(DEFAULT_KEY_PREFIX) for event in WANTED
    ]


@pytest.mark.parametrize("data", [HISTORY, RECORD], ids=["lines", "record"])
def test_objects_go_to_another_namespace(data: bytes) -> None:
    events, _ = read(data, namespace="other")
    for event, wanted in zip(events, WANTED, strict=True):
        assert event.key == wanted.key.replace(b"/flyte/", b"/other/")
        assert event.value == (
            wanted.value and wanted.value.replace(b'"namespace":"flyte"', b'"namespace":"other"')
        )


@pytest.mark.parametrize("value", [b"no object", b'{"metadata":1}', b"\x00\xff"])
def test_what_is_no_object_goes_to_another_namespace_as_it_is(value: bytes) -> None:
    line = {"type": "PUT", "key": "/a/b/c", "value": base64.b64encode(value).decode()}
    assert read(json.dumps(line).encode(), prefix=b"/p/", namespace="n")[0] == [
        HistoryEvent(b"/p/n/c", value)
    ]


@table(
    ("data", "kind"),
    [
        (b"", LineReader),
        (b"{}", LineReader),
        (b"\n", LineReader),
        (b"\xef\xbb\xbf{}", LineReader),
        (b"\x81", RecordReader),
        (b"\xde\x00\x10", RecordReader),
        (b"\xdf", RecordReader),
    ],
)
def test_the_first_byte_tells_the_form(data: bytes, kind: type) -> None:
    assert type(reader_of("file", data, Destination(b"/p/"))) is kind


# --- lines ----------------------------------------------------------------------------


def test_empty_lines_count_but_say_nothing() -> None:
    assert read(b"\n\n" + LINES[0])[0] == WANTED[:1]
    assert complaint(b"\n\n{").startswith("file:3: ")


@table(
    ("line", "told"),
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
def test_malformed_line_is_named(line: bytes, told: str) -> None:
    message = complaint(LINES[0] + line)
    assert message.startswith("file:2: ")
    assert told in message


# --- records --------------------------------------------------------------------------


def test_other_tools_read_a_record() -> None:
    header, *entries = msgpack.unpackb(b"\xdc" + (7).to_bytes(2, "big") + SMALL_RECORD)
    assert header == {
        "format": "etcd-actions-record",
        "version": 1,
        "prefix": DEFAULT_KEY_PREFIX,
        "namespace": None,
        "start_revision": 1,
        "history": True,
        "cluster_id": 7,
        "created_at": "2026-01-01T00:00:00Z",
        "writer": "test",
    }
    assert entries[2] == {
        "type": "DELETE",
        "key": SMALL[2].key,
        "value": None,
        "mod_revision": 4,
        "create_revision": 0,
        "version": 0,
        "lease": 0,
        "listed": False,
        "synthesised": False,
        "crc32": entries[2]["crc32"],
    }
    assert [entry["type"] for entry in entries] == ["PUT", "PUT", "DELETE", "PUT", "SYNCED", "END"]
    assert [(entry["key"], entry["value"]) for entry in entries[:4]] == [
        (event.key, event.value) for event in SMALL
    ]


def test_a_record_may_be_cut_off_anywhere() -> None:
    for end in range(HEADER_END, len(SMALL_RECORD)):
        events, reader = read(SMALL_RECORD[:end])
        assert events == SMALL[: len(events)]
        assert "truncated" in reader.warning
    assert read(SMALL_RECORD)[1].warning == ""
    for end in range(1, HEADER_END):
        assert "there is no header" in complaint(SMALL_RECORD[:end])


@given(st.integers(HEADER_END, len(SMALL_RECORD) - 1), st.integers(1, 255))
def test_a_wrong_byte_is_never_written(at: int, flip: int) -> None:
    corrupt = bytearray(SMALL_RECORD)
    corrupt[at] ^= flip
    reader = reader_of("file", SMALL_RECORD, Destination(DEFAULT_KEY_PREFIX))
    events: list[HistoryEvent] = []
    told = ""
    try:
        events += (event for _, event in reader.feed(bytes(corrupt)))
        list(reader.finish())
        told = reader.warning
    except InputError as error:
        told = str(error)
    # Whatever the byte was: what is written is what was recorded, or something is said.
    assert events == SMALL[: len(events)]
    assert told or events == SMALL


def entry(**changes: Any) -> bytes:
    """The first event of a record, changed; None leaves a field out."""
    unpacked = msgpack.unpackb(b"\x92" + as_record(SMALL[:1])[: -len(ENDING)])[1]
    packed: bytes = msgpack.packb({k: v for k, v in (unpacked | changes).items() if v is not ...})
    return packed


@table(
    ("made", "told"),
    [
        (lambda: b"\xc1", "not msgpack"),
        (lambda: b"\x05", "not a map, but int"),
        (lambda: b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (lambda: b"\x81\x90\x01", "not msgpack"),
        (lambda: b"\x81" * 2000, "nested too deeply"),
        (lambda: b"\x81\xa1\xff\x01", "not msgpack"),
        (lambda: msgpack.packb({"no": "type"}), "its type is None"),
        (lambda: entry(type="MOVE"), "its type is 'MOVE'"),
        (lambda: entry(type=[1]), "its type is [1]"),
        (lambda: entry(key="text"), "key: "),
        (lambda: entry(key=b"/elsewhere/a/b"), "key: "),
        (lambda: entry(key=...), "key: "),
        (lambda: entry(value=None), "value: "),
        (lambda: entry(value="text"), "value: "),
        (lambda: entry(value=b"other"), "crc32"),
        (lambda: entry(crc32=0), "crc32"),
        (lambda: msgpack.packb({"type": "END", "events": 2}), "END counts 2"),
        (lambda: msgpack.packb({"type": "END", "events": 1}) + entry(), "after the END"),
        # A length that is too large swallows what follows.
        (lambda: entry().replace(b"\xc4\x07{", b"\xc5\xff\xff{") + entry(), "does not end"),
    ],
)
def test_what_is_no_entry_is_named(made: Callable[[], bytes], told: str) -> None:
    before = as_record(SMALL[:1])[: -len(ENDING)]
    corrupt = made()
    message = complaint(before + corrupt)
    at = len(before) + (len(corrupt) - len(entry()) if "after" in told else 0)
    assert message.startswith(f"file: offset {at}: ")
    assert told in message
    assert message.endswith("this entry and those after it are not written")


def test_fields_that_nobody_knows_are_passed_over() -> None:
    data = as_record([])[: -len(ENDING)] + entry(later={"a": [1, 2]}, crc32=...)
    assert read(data)[0] == SMALL[:1]


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"format": "other"}, "its format is 'other'"),
        ({}, "its format is None"),
        ({"format": "etcd-actions-record", "version": 2}, "version 2"),
        ({"format": "etcd-actions-record", "version": 1, "prefix": 5}, "no prefix"),
    ],
)
def test_another_header(header: dict[str, Any], told: str) -> None:
    message = complaint(msgpack.packb(header) + SMALL_RECORD)
    assert message.startswith("file: offset 0: ")
    assert told in message


def test_a_key_without_a_namespace_cannot_get_another() -> None:
    message = complaint(SMALL_RECORD, namespace="other")
    assert "has no namespace to replace" in message


def test_an_entry_without_an_end_takes_no_memory() -> None:
    before = as_record([])[: -len(ENDING)]
    reader = reader_of("file", before, Destination(b"/p/"))
    assert list(reader.feed(before + b"\x81\xa4type\xc6\xff\xff\xff\xff")) == []

    def feed_much() -> None:
        for _ in range(100):
            list(reader.feed(bytes(1 << 20)))

    with pytest.raises(InputError, match=f"offset {len(before)}: larger than"):
        feed_much()
