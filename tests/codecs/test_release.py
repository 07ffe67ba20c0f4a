"""The label set and a finalizer taken away in one change: nothing else is different."""

from __future__ import annotations

import copy
import json as standard_json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_actions.codecs import Codec, Released
from etcd_actions.codecs import json as json_codec
from etcd_actions.codecs._pb import etcd_actions_taskaction_pb2 as pb
from etcd_actions.errors import DecodeError
from etcd_actions.model import FINALIZER_RECORD, LABEL_TERMINAL_STATUS_RECORDED
from tests.codecs.labels import add_label
from tests.codecs.strategies import (
    BINARY,
    CODECS,
    JSON,
    MSGPACK,
    PROTOBUF,
    stored,
    task_actions,
    texts,
)
from tests.codecs.test_json import task_actions as canonical
from tests.data.captured import DELETES, PUTS, Event
from tests.support.everyday import examples
from tests.support.table import table

MARK = (LABEL_TERMINAL_STATUS_RECORDED, "true", FINALIZER_RECORD)
OTHER = "flyte.org/plugin-finalizer"
SPEC = '"spec":{"actionName":"a1","domain":"d","project":"p","runName":"r"}'
HEAD = '{"apiVersion":"flyte.org/v1","kind":"TaskAction","metadata":'

each_codec = table("codec", CODECS, ids=lambda codec: codec.name)
each_put = table("event", PUTS, ids=lambda event: event.id)
finalizers = st.sampled_from([None, [], *([FINALIZER_RECORD], [OTHER])]) | st.lists(
    st.sampled_from([FINALIZER_RECORD, OTHER, "<é>"]), max_size=4
)
asked = st.sampled_from([None, "", "2026-11-24T03:00:00Z"])


def with_field(tree: dict[str, Any], name: str, item: object, absent: bool) -> None:
    metadata = tree["metadata"]
    metadata.pop(name, None)
    if not absent:
        metadata[name] = item


def the_long_way(
    tree: dict[str, Any], annotations: dict[str, str] | None = None
) -> tuple[dict[str, Any], bool, bool]:
    tree = copy.deepcopy(tree)
    metadata = tree["metadata"]
    if annotations:
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **annotations}
    metadata["labels"] = {**(metadata.get("labels") or {}), MARK[0]: MARK[1]}
    if FINALIZER_RECORD in (metadata.get("finalizers") or []):
        kept = [each for each in metadata["finalizers"] if each != FINALIZER_RECORD]
        metadata["finalizers"] = kept
        if not kept:
            del metadata["finalizers"]
    held, deleting = bool(metadata.get("finalizers")), bool(metadata.get("deletionTimestamp"))
    return tree, held, deleting


def form(codec: Codec, value: bytes) -> bytes:
    return codec.encode_tree(JSON.decode_tree(value))


@given(
    task_actions | canonical(),
    finalizers,
    asked,
    st.booleans(),
    st.booleans(),
    st.dictionaries(st.sampled_from(["a", "etcd-actions.io/recorded", "<é>"]), texts, max_size=2),
)
def test_it_is_the_change_of_the_tree(
    tree: dict[str, Any],
    held: object,
    time: object,
    no_list: bool,
    no_time: bool,
    annotations: dict[str, str],
) -> None:
    """In every form; twice is as once."""
    with_field(tree, "finalizers", held, no_list)
    with_field(tree, "deletionTimestamp", time, no_time)
    tree = JSON.decode_tree(stored(tree))
    expected, *holding = the_long_way(tree, annotations)
    for codec in CODECS:
        value = codec.encode_tree(tree)
        released = codec.release(value, *MARK, annotations=annotations)
        assert released == (codec.encode_tree(expected), *holding)
        if expected == tree:
            assert released.value is value
        again = codec.release(released.value, *MARK, annotations=annotations)
        assert again == released
        assert again.value is released.value


@settings(max_examples=examples(60))
@given(canonical(), finalizers, st.sampled_from([None, 1]), st.booleans())
def test_other_forms_of_json(
    tree: dict[str, Any], held: object, indent: int | None, ascii_only: bool
) -> None:
    """Spaces, another order and other escapes lead nothing astray."""
    tree["metadata"]["finalizers"] = held
    value = standard_json.dumps(tree, indent=indent, ensure_ascii=ascii_only).encode()
    expected, *holding = the_long_way(JSON.decode_tree(value))
    released = JSON.release(value, *MARK)
    assert JSON.decode_tree(released.value) == expected
    assert [*released[1:]] == holding


@table(
    ("metadata", "released", "delete"),
    [
        (
            '{"finalizers":["f"],"labels":{"l":"v"},"name":"n"}',
            '{"labels":{"l":"v"},"name":"n"}',
            0,
        ),
        ('{"finalizers":["f"],"name":"n"}', '{"labels":{"l":"v"},"name":"n"}', 0),
        ('{"finalizers":["f"]}', '{"labels":{"l":"v"}}', 0),
        ('{"finalizers":["a","f","b","f"]}', '{"finalizers":["a","b"],"labels":{"l":"v"}}', 0),
        ('{"finalizers":["a"]}', '{"finalizers":["a"],"labels":{"l":"v"}}', 0),
        ('{"finalizers":[],"name":"n"}', '{"finalizers":[],"labels":{"l":"v"},"name":"n"}', 0),
        ('{"finalizers":null,"name":"n"}', '{"finalizers":null,"labels":{"l":"v"},"name":"n"}', 0),
        (
            '{"annotations":{"finalizers":["f"]},"finalizers":["f"],"labels":{"a":"1"},"name":"n"}',
            '{"annotations":{"finalizers":["f"]},"labels":{"a":"1","l":"v"},"name":"n"}',
            0,
        ),
        # A key twice: the last one counts, and is the one that is written.
        ('{"finalizers":["f"],"finalizers":["a"]}', '{"finalizers":["a"],"labels":{"l":"v"}}', 0),
        ('{"finalizers":["a"],"finalizers":["f"]}', '{"labels":{"l":"v"}}', 0),
        (
            '{"finalizers":["f"],"finalizers":["f"],"name":"n"}',
            '{"labels":{"l":"v"},"name":"n"}',
            0,
        ),
        (r'{"finalizers":["\u0066"],"name":"n"}', '{"labels":{"l":"v"},"name":"n"}', 0),
        # Whether it is to be deleted.
        (
            '{"deletionTimestamp":"t","finalizers":["f"],"name":"n"}',
            '{"deletionTimestamp":"t","labels":{"l":"v"},"name":"n"}',
            1,
        ),
        (
            '{"deletionTimestamp":"t","finalizers":["f","a"],"name":"n"}',
            '{"deletionTimestamp":"t","finalizers":["a"],"labels":{"l":"v"},"name":"n"}',
            0,
        ),
        (
            '{"deletionTimestamp":"t","name":"n"}',
            '{"deletionTimestamp":"t","labels":{"l":"v"},"name":"n"}',
            1,
        ),
        (
            '{"deletionTimestamp":"","finalizers":["f"],"name":"n"}',
            '{"deletionTimestamp":"","labels":{"l":"v"},"name":"n"}',
            0,
        ),
    ],
)
def test_in_its_place(metadata: str, released: str, delete: int) -> None:
    value = f"{HEAD}{metadata},{SPEC}}}\n".encode()
    expected = f"{HEAD}{released},{SPEC}}}\n".encode()
    result = JSON.release(value, "l", "v", "f")
    assert (result.value, result.delete) == (expected, bool(delete))


@pytest.mark.parametrize(
    ("metadata", "marked"),
    [
        ('{"name":"n"}', '{"annotations":{"a":"1"},"labels":{"l":"v"},"name":"n"}'),
        (
            '{"creationTimestamp":"t","finalizers":["f"],"labels":{"k":"x"},"name":"n"}',
            '{"annotations":{"a":"1"},"creationTimestamp":"t","labels":{"k":"x","l":"v"},'
            '"name":"n"}',
        ),
        (
            '{"annotations":{"a":"0","b":"2"},"creationTimestamp":"t","name":"n"}',
            '{"annotations":{"a":"1","b":"2"},"creationTimestamp":"t","labels":{"l":"v"},'
            '"name":"n"}',
        ),
        (
            '{"annotations":null,"name":"n"}',
            '{"annotations":{"a":"1"},"labels":{"l":"v"},"name":"n"}',
        ),
        ("{}", '{"annotations":{"a":"1"},"labels":{"l":"v"}}'),
    ],
)
def test_an_annotation_in_its_place(metadata: str, marked: str) -> None:
    value = f"{HEAD}{metadata},{SPEC}}}\n".encode()
    expected = f"{HEAD}{marked},{SPEC}}}\n".encode()
    for codec in CODECS:
        result = codec.release(form(codec, value), "l", "v", "f", annotations={"a": "1"})
        assert JSON.encode_tree(codec.decode_tree(result.value)) == expected


# --- captured values ----------------------------------------------------------------------


def held(event: Event) -> bytes:
    """A captured value as it would be with our finalizer."""
    tree = JSON.decode_tree(event.value)
    tree["metadata"].setdefault("finalizers", []).append(FINALIZER_RECORD)
    return JSON.encode_tree(tree)


@each_put
def test_captured_values(event: Event) -> None:
    """Released they are the captured ones with the label, whatever else holds them."""
    value = held(event)
    others = JSON.decode_tree(event.value)["metadata"].get("finalizers")
    deleting = JSON.decode(event.value).is_deleting
    assert json_codec._spliced(value, {MARK[0]: MARK[1]}, {}, MARK[2]) is not None
    for codec in CODECS:
        expected = add_label(codec, form(codec, event.value), *MARK[:2])
        released = codec.release(form(codec, value), *MARK)
        assert released == (expected, bool(others), deleting)


def test_captured_values_that_the_last_finalizer_left() -> None:
    """An API server deletes where we would: what it had last was held by one finalizer."""
    previous = [event.previous for event in DELETES if JSON.decode(event.previous).is_deleting]
    assert previous
    for value in previous:
        metadata = JSON.decode(value).metadata
        (last,) = metadata.finalizers
        assert JSON.release(value, *MARK).delete is False
        assert JSON.release(value, *MARK[:2], last).delete is True


# --- forms of their own -------------------------------------------------------------------


def test_protobuf_keeps_fields_of_later_versions() -> None:
    message = pb.TaskAction()
    message.metadata.finalizers.extend([FINALIZER_RECORD, OTHER])
    message.MergeFromString(b"\x9a\x06\x01x\x1a\x03\x92\x06\x00")
    before = PROTOBUF._pack(message)  # type: ignore[attr-defined]
    message.metadata.labels[MARK[0]] = MARK[1]
    message.metadata.finalizers.remove(FINALIZER_RECORD)
    released = PROTOBUF.release(before, *MARK)
    assert released == Released(PROTOBUF._pack(message), True, False)  # type: ignore[attr-defined]


def test_protobuf_refuses_what_would_be_lost() -> None:
    """A list that is no list of texts needs the tree, which has no place for later fields."""
    value = PROTOBUF.encode_tree({"metadata": {"finalizers": [FINALIZER_RECORD, None]}})
    assert PROTOBUF.decode_tree(PROTOBUF.release(value, *MARK).value) == {
        "metadata": {"finalizers": [None], "labels": {MARK[0]: MARK[1]}}
    }
    message = pb.TaskAction.FromString(value[5:])
    message.MergeFromString(b"\x9a\x06\x01x")
    with pytest.raises(DecodeError, match="a later version"):
        PROTOBUF.release(PROTOBUF._pack(message), *MARK)  # type: ignore[attr-defined]


def test_msgpack_copies_the_other_fields() -> None:
    """Also in forms that this codec would not write."""
    odd = b"\xdb\0\0\0\1x"
    value = b"\xffMP\1\x82\xa8metadata\x82\xaafinalizers\x92\xa1f" + odd + b"\xa4name\xa1n"
    value += b"\xa3odd" + odd
    assert MSGPACK.release(value, "l", "v", "f").value == (
        b"\xffMP\1\x82\xa8metadata\x83\xaafinalizers\x91" + odd + b"\xa6labels\x81\xa1l\xa1v"
        b"\xa4name\xa1n\xa3odd" + odd
    )


# --- refusals -----------------------------------------------------------------------------


@each_codec
@table(
    ("tree", "reason"),
    [
        ({}, "metadata: not an object"),
        ({"metadata": {"labels": []}}, "metadata.labels: not an object"),
        ({"metadata": {"annotations": 1}}, "metadata.annotations: not an object"),
        ({"metadata": {"finalizers": {}}}, "metadata.finalizers: not a list"),
        ({"metadata": {"finalizers": "f"}}, "metadata.finalizers: not a list"),
    ],
)
def test_what_has_no_place(codec: Codec, tree: dict[str, Any], reason: str) -> None:
    value = codec.encode_tree(tree)
    with pytest.raises(DecodeError, match=reason) as caught:
        codec.release(value, *MARK, annotations={"a": "1"}, key=b"k", revision=3)
    assert (caught.value.key, caught.value.revision) == (b"k", 3)


@pytest.mark.parametrize("codec", BINARY, ids=lambda codec: codec.name)
def test_a_label_alone_leaves_the_finalizers(codec: Codec) -> None:
    """Even where they are odd."""
    value = codec.encode_tree({"metadata": {"finalizers": {"f": 1}}})
    assert codec.decode_tree(add_label(codec, value, "l", "v"))["metadata"] == {
        "finalizers": {"f": 1},
        "labels": {"l": "v"},
    }
