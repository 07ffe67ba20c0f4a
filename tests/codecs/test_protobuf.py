"""The protobuf codec: its schema, where fields go, and fields of later versions."""

import io
from typing import Any

import msgspec
import pytest
from google.protobuf import proto

from etcd_actions.codecs import magic, message_forms
from etcd_actions.codecs._pb import etcd_actions_taskaction_pb2 as pb
from etcd_actions.errors import DecodeError
from etcd_actions.model import LABEL_TERMINAL_STATUS_RECORDED
from tests.codecs.labels import add_label
from tests.codecs.strategies import JSON, PROTOBUF
from tests.data.captured import PUTS, Event
from tests.support.table import table

each_put = table("event", PUTS, ids=lambda event: event.id)

LABEL = (LABEL_TERMINAL_STATUS_RECORDED, "true")


def unpacked(value: bytes) -> pb.TaskAction:
    """Read a value as any protobuf library does."""
    assert value.startswith(magic.PROTOBUF)
    stream = io.BytesIO(value[len(magic.PROTOBUF) :])
    message = proto.parse_length_prefixed(pb.TaskAction, stream)
    assert message is not None
    assert not stream.read()
    return message


def packed(message: pb.TaskAction) -> bytes:
    """Write a value as any protobuf library does that orders the entries of maps."""
    data = message.SerializeToString(deterministic=True)
    length = len(data)
    head = bytearray()
    while length >= 0x80:
        head.append(length % 0x80 + 0x80)
        length //= 0x80
    return magic.PROTOBUF + bytes(head) + bytes([length]) + data


def of(tree: dict[str, Any]) -> pb.TaskAction:
    return unpacked(PROTOBUF.encode_tree(tree))


# --- the schema ---------------------------------------------------------------------------


@table("name", message_forms.VIEWS)
def test_schema_has_the_fields_of_the_view(name: str) -> None:
    """A field that the view gets has to get one in the schema, under the same names."""
    descriptor = pb.DESCRIPTOR.message_types_by_name[name]
    fields = {field.name: field.json_name for field in descriptor.fields}
    assert fields.pop("other_fields") == "otherFields"
    fields.pop("managed_fields", None)
    view = msgspec.structs.fields(message_forms.VIEWS[name])
    assert fields == {field.name: field.encode_name for field in view}


def test_every_message_has_other_fields() -> None:
    for name, descriptor in pb.DESCRIPTOR.message_types_by_name.items():
        assert descriptor.fields_by_name["other_fields"].number == 15, name


@each_put
def test_captured_values_are_all_typed(event: Event) -> None:
    """All that an API server writes has a field: nothing is left to `other_fields`."""
    value = PROTOBUF.encode_tree(JSON.decode_tree(event.value))
    assert b"other_fields" not in str(unpacked(value)).encode()
    assert packed(unpacked(value)) == value


# --- where things go ------------------------------------------------------------------------


@table(
    ("spec", "field", "stored"),
    [
        ({"project": ""}, "project", ""),
        ({"interruptible": False}, "interruptible", False),
        ({"envVars": {"a": ""}}, "env_vars", {"a": ""}),
        ({"taskTemplate": "AAE="}, "task_template", b"\0\1"),
        ({"taskTemplate": ""}, "task_template", b""),
        ({"taskTemplate": "AAF="}, "other_fields", b'{"taskTemplate":"AAF="}'),
        ({"taskTemplate": "AAE"}, "other_fields", b'{"taskTemplate":"AAE"}'),
        ({"taskTemplate": None}, "other_fields", b'{"taskTemplate":null}'),
        ({"envVars": {}}, "other_fields", b'{"envVars":{}}'),
        ({"envVars": {"a": 1}}, "other_fields", b'{"envVars":{"a":1}}'),
        ({"interruptible": 0}, "other_fields", b'{"interruptible":0}'),
        ({"project": None}, "other_fields", b'{"project":null}'),
        ({"later": {"b": 1, "a": "<é>"}}, "other_fields", '{"later":{"a":"<é>","b":1}}'.encode()),
    ],
)
def test_what_has_no_exact_place_is_other(spec: dict[str, Any], field: str, stored: object) -> None:
    message = of({"spec": spec})
    found = {field.name: value for field, value in message.spec.ListFields()}
    assert found == {field: stored}
    assert PROTOBUF.decode_tree(packed(message)) == {"spec": spec}


@table(
    "tree",
    [
        {},
        {"metadata": {}},
        {"status": {}},
        {"status": {"conditions": []}},
        {"status": {"conditions": [{}]}},
        {"status": {"conditions": [{}, 1]}},
        {"status": {"attempts": 2**32 - 1, "cacheStatus": -(2**31)}},
        {"status": {"attempts": -1, "cacheStatus": 2**31}},
        {"status": {"attempts": True}},
        {"metadata": {"generation": -(2**63)}},
        {"metadata": {"generation": 2**63}},
        {"metadata": {"finalizers": ["a", "a"], "ownerReferences": [{"uid": "u"}]}},
        {"metadata": {"finalizers": ["a", None]}},
        {"metadata": {"managedFields": [{"fieldsV1": {}}, {"fieldsV1": None}, {"fieldsV1": ""}]}},
        {"metadata": {"otherFields": "x", "other_fields": "y"}},
        {"otherFields": {}},
    ],
    ids=repr,
)
def test_empty_null_and_absent_are_told_apart(tree: dict[str, Any]) -> None:
    value = PROTOBUF.encode_tree(tree)
    assert PROTOBUF.decode_tree(value) == tree
    assert JSON.encode_tree(PROTOBUF.decode_tree(value)) == JSON.encode_tree(tree)


# --- what others may have written -------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.TaskAction(other_fields=b"{"), "TaskAction.other_fields: .*truncated"),
        (pb.TaskAction(other_fields=b"[]"), "TaskAction.other_fields: Expected `object`"),
        (pb.TaskAction(other_fields=b'{"x":"\xff"}'), "TaskAction.other_fields: "),
        (
            pb.TaskAction(spec=pb.TaskActionSpec(other_fields=b'{"later":' + b"[" * 100_000)),
            "nested too deeply",
        ),
        (
            pb.TaskAction(kind="TaskAction", other_fields=b'{"kind":"Pod"}'),
            "TaskAction has kind twice, once in other_fields",
        ),
        (
            pb.TaskAction(
                metadata=pb.ObjectMeta(managed_fields=[pb.ManagedFieldsEntry(fields_v1=b"")])
            ),
            "ManagedFieldsEntry.fields_v1: ",
        ),
    ],
)
def test_messages_that_say_no_object(message: pb.TaskAction, reason: str) -> None:
    with pytest.raises(DecodeError, match=f"^protobuf: {reason}"):
        PROTOBUF.decode_tree(packed(message))


@pytest.mark.parametrize("data", [b"\x0a\x01\xff", b"\x0b", b"\x00", b"\x0a\x05x"], ids=repr)
def test_no_message(data: bytes) -> None:
    """Text that is not UTF-8, a group without an end, no field, a field that is cut off."""
    with pytest.raises(DecodeError, match=r"^protobuf: Error parsing message"):
        PROTOBUF.decode(magic.PROTOBUF + bytes([len(data)]) + data)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"", "truncated$"),
        (b"\x80", "truncated$"),
        (b"\x02\x0a", "truncated: 1 of 2 bytes are missing"),
        (b"\x00\x0a\x00", "2 bytes after the message's end"),
        (b"\xff" * 5 + b"\x01", "malformed length"),
    ],
)
def test_the_length(tail: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=f"^protobuf: {reason}"):
        PROTOBUF.decode(magic.PROTOBUF + tail)


# --- fields of later versions -----------------------------------------------------------------

LATER = {
    "TaskAction.99": b"\x9a\x06\x01x",
    "TaskAction.metadata.98": b"\x1a\x03\x92\x06\x00",
    "TaskAction.spec.97": b"\x22\x03\x8a\x06\x00",
    "TaskAction.metadata.managed_fields.40": b"\x1a\x05\x62\x03\xc2\x02\x00",
}


def with_later_field(value: bytes, field: bytes) -> bytes:
    """Merge a field into a message, as protobuf does with bytes that follow."""
    message = unpacked(value)
    message.MergeFromString(field)
    return packed(message)


@table("field", LATER)
@table("event", PUTS[::20], ids=lambda event: event.id)
def test_fields_of_later_versions(event: Event, field: str) -> None:
    """Reading passes over them, the mark keeps them, a change of the tree is refused."""
    value = PROTOBUF.encode_tree(JSON.decode_tree(event.value))
    later = with_later_field(value, LATER[field])
    assert later != value
    assert PROTOBUF.decode(later) == JSON.decode(event.value)
    assert PROTOBUF.summarize(later) == JSON.summarize(event.value)
    marked = add_label(PROTOBUF, later, *LABEL)
    assert marked == with_later_field(add_label(PROTOBUF, value, *LABEL), LATER[field])
    assert add_label(PROTOBUF, marked, *LABEL) is marked
    with pytest.raises(DecodeError, match=rf"a later version .* fields \({field}\).*: update"):
        PROTOBUF.decode_tree(later)


def test_a_label_that_needs_the_tree_keeps_no_later_field_from_being_lost() -> None:
    """Labels that are null are not typed: the change is refused, not made with a loss."""
    value = PROTOBUF.encode_tree({"metadata": {"labels": None}})
    assert PROTOBUF.decode_tree(add_label(PROTOBUF, value, "l", "v")) == {
        "metadata": {"labels": {"l": "v"}}
    }
    with pytest.raises(DecodeError, match="a later version"):
        add_label(PROTOBUF, with_later_field(value, LATER["TaskAction.99"]), "l", "v")


def test_a_label_beside_other_fields_of_the_metadata() -> None:
    """What `other_fields` holds beside the labels stays; labels in it are found, escaped too."""
    value = PROTOBUF.encode_tree({"metadata": {"later": 1, "name": "n"}})
    assert PROTOBUF.decode_tree(add_label(PROTOBUF, value, "l", "v")) == {
        "metadata": {"labels": {"l": "v"}, "later": 1, "name": "n"}
    }
    odd = pb.TaskAction(metadata=pb.ObjectMeta(other_fields=rb'{"l\u0061bels":{"l":"v"}}'))
    assert add_label(PROTOBUF, packed(odd), "l", "v") == packed(odd)
    assert PROTOBUF.decode_tree(add_label(PROTOBUF, packed(odd), "m", "w")) == {
        "metadata": {"labels": {"l": "v", "m": "w"}}
    }
