"""Whatever the shell, or etcd, gives a command: an exit code of the table, and lines for people."""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcd_actions.cli import command_line, exit_codes, secret_arguments
from etcd_actions.cli.commands.get import _formatted, _stored_object
from etcd_actions.cli.formats.action_tables import ActionTable, TreeTable
from etcd_actions.cli.formats.action_tree import build_forest
from etcd_actions.cli.formats.details_text import details_text
from etcd_actions.cli.formats.row_formats import JsonLines
from etcd_actions.cli.formats.rows import ActionRow, stored_row
from etcd_actions.codecs import json as json_codec
from etcd_actions.codecs import msgpack, protobuf
from etcd_actions.etcd.api import KeyValue
from tests.cli.here import taskaction
from tests.fuzz.texts import TEXTS, spoiled

pytestmark = pytest.mark.slow

MANY = settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

COMMANDS = sorted(command_line.commands.commands)
FLAGS = sorted(
    {
        name
        for command in map(command_line.commands.load, COMMANDS)
        for param in command.params
        for name in param.opts
        if name.startswith("-")
    }
    - {"--python", "--config"}
)
WORDS = st.sampled_from([*FLAGS, "RUNNING", "p/d/r/a0", "true", "show", "bash", "5"]) | TEXTS
# What a process cannot receive: no bytes decode to it.
_NO_ARGUMENT = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
ARGUMENTS = st.builds(
    lambda command, rest: [command, *rest],
    st.sampled_from(COMMANDS) | TEXTS,
    st.lists(
        WORDS | st.builds("{}={}".format, st.sampled_from(FLAGS), TEXTS),
        max_size=5,
    ),
).map(lambda texts: [_NO_ARGUMENT.sub("", text) for text in texts])


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands are read to the end, and not run."""
    before = structlog.get_config()
    monkeypatch.setattr(trio, "run", lambda *_, **__: 0)
    yield
    structlog.configure(**before)


@MANY
@given(ARGUMENTS)
def test_a_command_line(nothing_runs: None, arguments: list[str]) -> None:
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape")
    err = io.StringIO()
    argv, streams = sys.argv, (sys.stdout, sys.stderr)
    sys.argv = ["etcd-actions", *arguments]
    sys.stdout, sys.stderr = out, err
    try:
        code = command_line.invoke()
    finally:
        sys.argv, (sys.stdout, sys.stderr) = argv, streams
    # config show writes to a descriptor, which this output has none of.
    if "UnsupportedOperation" in err.getvalue():
        assert arguments[0] == "config"
        return
    assert code in (0, 2, 6), err.getvalue()
    assert "unexpected failure" not in err.getvalue()
    for line in err.getvalue().splitlines():
        assert line.isprintable()
        assert len(line) < 10_000


@MANY
@given(TEXTS)
def test_what_is_said(text: str) -> None:
    """One line, that drives no terminal."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        exit_codes.print_message(text)
    line = err.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    line.encode()


@MANY
@given(TEXTS | st.lists(TEXTS).map(json.dumps) | st.sampled_from(["[" * 90_000, "{}", "[1]"]))
def test_arguments_that_were_handed_over(text: str) -> None:
    try:
        found = secret_arguments._arguments(text)
    except SystemExit as ended:
        found = [str(ended.code)]
        assert found == ["2"]
    assert all(isinstance(each, str) for each in found)


# --- what is stored ---------------------------------------------------------------------

STORED = json.loads(
    taskaction(
        "r",
        "a0",
        phase="Failed",
        status={
            "errorState": {"code": "c", "kind": "USER", "message": "m"},
            "phaseHistory": [{"phase": "a", "occurredAt": "2026-01-01T00:00:00Z", "message": "x"}],
            "cacheStatus": 1,
        },
    )
)
STORED["metadata"] |= {
    "deletionTimestamp": "2026-01-01T00:00:00Z",
    "finalizers": ["a"],
    "ownerReferences": [{"kind": "a", "name": "b", "uid": "c", "apiVersion": "d"}],
    "annotations": {"a": "b"},
}
TIMES = st.sampled_from(
    [
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "2026-01-01T00:00:00",
        "2026-01-01",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text()
    | TEXTS
    | TIMES
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def places(tree: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, item in items:
        yield (*before, name)
        if isinstance(item, (dict, list)):
            yield from places(item, (*before, name))


PLACES = list(places(STORED))


@st.composite
def odd_objects(draw: st.DrawFn) -> bytes:
    tree = json.loads(json.dumps(STORED))
    for place in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3)):
        node = tree
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for name in place[:-1]:
                node = node[name]
            node[place[-1]] = draw(TREES)
    return json.dumps(tree, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")


FORMS = [
    codec.encode_tree(json_codec.decode_tree(json.dumps(STORED).encode()))
    for codec in (json_codec, protobuf, msgpack)
]
VALUES = odd_objects() | st.sampled_from(FORMS).flatmap(spoiled) | st.binary(max_size=80)
KEYS = st.sampled_from([b"/p/ns/r-a0", b"/p/ns/\xff", b"/p/\x1b[2J/a", b"/p/x", b"/p/a/b/c"])


@MANY
@given(VALUES, KEYS)
def test_a_stored_value(tmp_path: Path, value: bytes, key: bytes) -> None:
    """It is shown, or said to be unreadable; a table of it drives no terminal."""
    kv = KeyValue(key, value, 5, 6, 1, 0)
    row = stored_row(b"/p/", kv)
    for line in JsonLines().format([row]).splitlines():
        json.loads(line)
    tables = [ActionTable(io.StringIO()).format([row]), details_text(b"/p/", [kv], io.StringIO())]
    if isinstance(row, ActionRow):
        places_ = build_forest([row], "r")
        tables.append(TreeTable(io.StringIO(), row.project, places_).format_tree())
        json.loads(_formatted(_stored_object(b"/p/", kv, 9), 2))
    for table in tables:
        assert all(line.isprintable() for line in table.decode().split("\n"))


@MANY
@given(st.sampled_from(["COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR"]), TEXTS)
def test_a_terminal_of_any_size(name: str, text: str) -> None:
    row = stored_row(b"/p/", KeyValue(b"/p/ns/r-a0", FORMS[0], 5, 6, 1, 0))
    value = text.replace("\0", "").encode(errors="surrogatepass").decode(errors="surrogateescape")
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        assert ActionTable(io.StringIO()).format([row])
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
