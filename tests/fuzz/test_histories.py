"""A file that is replayed or enqueued is read, or refused by its name and place."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from etcd_actions.change_history.history import Destination, HistoryStep, reader_of
from etcd_actions.change_history.record_format import Header, RecordWriter
from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.cli.commands.mutations import literal_of, read_request
from etcd_actions.errors import ConfigError, InputError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.watch import Change, ChangeKind
from tests.cli.here import taskaction
from tests.fuzz.texts import BOMBS, TEXTS, pieces, spoiled, tried

pytestmark = pytest.mark.slow

MANY = settings(
    max_examples=1_000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
OBJECT = taskaction("r", "a0")


def put(key: bytes, value: bytes | None, revision: int) -> Change:
    kind = ChangeKind.ADDED if value else ChangeKind.DELETED
    return Change(kind, KeyValue(key, value or b"", revision, revision, 1))


def record() -> bytes:
    writer = RecordWriter()
    header = Header(b"/p/", None, 1, False, 1, "2026-01-01T00:00:00Z", "test")
    items: list[Change | SyncedRow] = [
        put(b"/p/a/r-a0", OBJECT, 2),
        SyncedRow(2),
        put(b"/p/a/r-a0", None, 3),
    ]
    return writer.header(header) + b"".join(writer.entry(item) for item in items) + writer.end()


RECORD = record()
LINES = b"\n".join(
    [
        json.dumps(
            {"type": "PUT", "key": "/x/a/r-a0", "value": base64.b64encode(OBJECT).decode()}
        ).encode(),
        b"",
        json.dumps({"type": "DELETE", "key": "/x/a/r-a0", "later": [1.5, None]}).encode(),
    ]
)


def read(parts: list[bytes], namespace: str | None) -> tuple[list[HistoryStep], str]:
    """The steps that came, and the complaint behind them."""
    steps: list[HistoryStep] = []

    def run() -> str:
        whole = b"".join(parts)
        reader = reader_of("file", whole[:10], Destination(b"/q/", namespace))
        for part in parts:
            steps.extend(reader.feed(part))
        steps.extend(reader.finish())
        return reader.warning

    warning, complaint = tried(InputError, run)
    if complaint:
        assert complaint.startswith("file:")
        assert len(complaint) < 600
    return steps, complaint or warning or ""


@MANY
@given(
    spoiled(RECORD) | spoiled(LINES) | st.binary(max_size=200) | st.sampled_from(BOMBS),
    st.sampled_from([None, "b"]),
    st.data(),
)
@example(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"), None, None)
def test_a_history(content: bytes, namespace: str | None, data: st.DataObject | None) -> None:
    """How it comes in pieces changes nothing, and what is written are changes that were there."""
    steps, told = read([content], namespace)
    if data is not None:
        again, told_again = read(data.draw(pieces(content)), namespace)
        assert (again, told_again) == (steps, told)
    for step in steps:
        assert 0 < step.offset <= len(content)
        assert step.event.key.startswith(b"/q/")


@pytest.mark.parametrize("whole", [RECORD, LINES], ids=["record", "lines"])
def test_a_history_that_is_cut_off_anywhere(whole: bytes) -> None:
    """What is written is a beginning of the whole, and a record says that its end is missing."""
    all_steps, told = read([whole], None)
    assert not told
    for length in range(1, len(whole)):
        steps, told = read([whole[:length]], None)
        events = [step.event for step in steps]
        assert events == [step.event for step in all_steps[: len(steps)]]
        assert told or whole is LINES


REQUEST = {
    "action": {
        "actionId": {"run": {"project": "p", "domain": "d", "name": "r"}, "name": "a0"},
        "inputUri": "s3://b/i",
        "runOutputBase": "s3://b",
        "task": {"spec": {"taskTemplate": {"type": "python", "custom": {"a": [1]}}}},
    },
    "runSpec": {"runStartTime": "2026-01-01T00:00:00Z"},
}
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.sampled_from(["1e400s", "9999-99-99T00:00:00Z", "0001-01-01T00:00:00Z", "//", "-1s"])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    tree = json.loads(json.dumps(REQUEST))
    node = tree
    while True:
        field = draw(st.sampled_from(sorted(node)))
        if not isinstance(node[field], dict) or draw(st.booleans()):
            break
        node = node[field]
    node[draw(st.just(field) | st.sampled_from(["custom", "@type", "value"]) | st.text())] = draw(
        TREES
    )
    return json.dumps(tree).encode()


@MANY
@given(requests() | spoiled(json.dumps(REQUEST).encode()) | st.binary(max_size=100))
@example(b"")
@example(b"{" + b'"action":{"a":' * 3000)
@example(b'{"action":' + b"[" * 5000)
@example(b'{"action":{"inputUri":' + b"9" * 5000 + b"}}")
@example(b"\xef\xbb\xbf" + json.dumps(REQUEST).encode())
@example(json.dumps(REQUEST).encode("utf-16"))
def test_a_request(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "request"
    path.write_bytes(content)
    request, complaint = tried(InputError, lambda: read_request(str(path)))
    if request is None:
        assert complaint.startswith(f"{path}: ")
        assert len(complaint) < 800 + len(str(path))
    else:
        assert type(request).FromString(request.SerializeToString()) == request


@MANY
@given(TEXTS, st.sampled_from(["auto", "bool", "int", "float", "str"]))
def test_a_signal(text: str, kind: str) -> None:
    value, complaint = tried(ConfigError, lambda: literal_of(text, kind))
    assert len(complaint) < 500
    if value is not None and kind in ("auto", "str"):
        primitive = value.scalar.primitive
        if primitive.HasField("string_value"):
            assert primitive.string_value == text
