"""The msgpack codec's bytes, read and written by another library."""

import base64
import contextlib
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.codecs import magic
from etcd_actions.codecs.object_tree import Number, base64_bytes, base64_text
from etcd_actions.errors import DecodeError
from etcd_actions.model import ActionObject, ObjectMeta, TaskActionSpec, TaskActionStatus
from tests.codecs.labels import add_label
from tests.codecs.strategies import JSON, MSGPACK
from tests.data.captured import PUTS
from tests.support.table import table


def unpacked(value: bytes) -> Any:
    assert value.startswith(magic.MSGPACK)
    return msgpack.unpackb(value[len(magic.MSGPACK) :])


def packed(tree: Any) -> bytes:
    return magic.MSGPACK + bytes(msgpack.packb(tree))


@table("event", PUTS[::7], ids=lambda event: event.id)
def test_another_library_reads_it(event: Any) -> None:
    """Plain msgpack with sorted keys, and the template in its own bytes."""
    tree = JSON.decode_tree(event.value)
    read = unpacked(MSGPACK.encode_tree(tree))
    assert list(read) == sorted(read)
    assert list(read["metadata"]) == sorted(read["metadata"])
    action = JSON.decode(event.value)
    assert read["spec"].get("taskTemplate", b"") == action.spec.task_template_bytes
    state = read.get("status", {}).get("pluginState", b"")
    assert state == action.status.plugin_state_bytes
    assert read["metadata"] == tree["metadata"]


@table("event", PUTS[::7], ids=lambda event: event.id)
def test_another_library_writes_it(event: Any) -> None:
    """Another order of keys, text for binary: the same object."""
    tree = JSON.decode_tree(event.value)
    value = packed(dict(reversed(tree.items())))
    assert MSGPACK.decode_tree(value) == tree
    assert MSGPACK.decode(value) == JSON.decode(event.value)
    assert MSGPACK.summarize(value) == JSON.summarize(event.value)


@table(
    ("number", "stored"),
    [
        (7, 7),
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
        (2**64, msgpack.ExtType(1, b"18446744073709551616")),
        (-(2**63) - 1, msgpack.ExtType(1, b"-9223372036854775809")),
        (0.5, 0.5),
        (Number("0.5"), 0.5),
        (Number("1e+21"), 1e21),
        (Number("1e21"), msgpack.ExtType(1, b"1e21")),
        (Number("1.0"), msgpack.ExtType(1, b"1.0")),
        (Number("1e400"), msgpack.ExtType(1, b"1e400")),
    ],
)
def test_numbers(number: float, stored: object) -> None:
    value = MSGPACK.encode_tree({"x": [number]})
    assert unpacked(value) == {"x": [stored]}
    assert JSON.encode_tree(MSGPACK.decode_tree(value)) == JSON.encode_tree({"x": [number]})


@table(
    ("item", "reason"),
    [
        (msgpack.ExtType(2, b"1"), "an extension of type 2"),
        (msgpack.ExtType(1, b""), "truncated"),
        (msgpack.ExtType(1, b"x"), "malformed"),
        (msgpack.ExtType(1, b" 1"), "an extension of type 1 that is not a JSON number"),
        (msgpack.ExtType(1, b"true"), "an extension of type 1 that is not a JSON number"),
        (msgpack.ExtType(1, b'"1"'), "an extension of type 1 that is not a JSON number"),
        (msgpack.ExtType(1, b"9" * 5000), "out of range"),
        (msgpack.Timestamp(1), "datetime is not a JSON value"),
        (float("nan"), "nan is not a JSON number"),
        (b"binary", "bytes is not a JSON value"),
        ({1: 2}, "a key of an object is not text"),
        ({b"k": 2}, "a key of an object is not text"),
    ],
)
def test_what_has_no_json_is_refused(item: object, reason: str) -> None:
    with pytest.raises(DecodeError, match=f"^msgpack: .*{reason}"):
        MSGPACK.decode_tree(packed({"x": [item]}))


@pytest.mark.parametrize("tree", [[], None, 7, "x", {1: 2}], ids=repr)
def test_no_object_is_refused(tree: object) -> None:
    with pytest.raises(DecodeError, match="Expected `"):
        MSGPACK.decode_tree(packed(tree))
    with pytest.raises(DecodeError, match="Expected `"):
        add_label(MSGPACK, packed(tree), "l", "v")


def test_text_that_is_not_utf8() -> None:
    with pytest.raises(DecodeError, match="not UTF-8"):
        MSGPACK.decode_tree(magic.MSGPACK + b"\x81\xa1x\xa1\xff")


def test_only_the_labels_are_written_anew() -> None:
    """The bytes of other fields stay, in forms that this codec would not write too."""
    odd = b"\xdb" + struct.pack(">I", 1) + b"x"  # A text of one byte with four of length.
    head, tail = magic.MSGPACK + b"\x83\xa3odd" + odd + b"\xa8metadata", b"\xa4time\xd6\xff\0\0\0\1"
    value = head + b"\x82\xa6labels\x81\xa1a" + odd + b"\xa4name\xa1n" + tail
    assert add_label(MSGPACK, value, "a", "x") is value
    labels = b"\x82\xa6labels\x82\xa1a" + odd + b"\xa1l\xa1v\xa4name\xa1n"
    assert add_label(MSGPACK, value, "l", "v") == (
        magic.MSGPACK + b"\x83\xa8metadata" + labels + b"\xa3odd" + odd + tail
    )


def test_integers_of_a_new_object_may_be_large() -> None:
    action = ActionObject.new(
        ObjectMeta("n", generation=2**70),
        TaskActionSpec("p", "d", "r", "a", task_template="AA=="),
        TaskActionStatus(),
    )
    value = MSGPACK.encode(action)
    assert unpacked(value)["metadata"]["generation"] == msgpack.ExtType(1, str(2**70).encode())
    assert MSGPACK.decode(value) == action


@given(st.binary() | st.text().map(str.encode))
def test_base64_is_gos(data: bytes) -> None:
    """The standard alphabet with padding; what is written in another way stays text."""
    text = base64.b64encode(data).decode()
    assert (base64_text(data), base64_bytes(text)) == (text, data)
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode()
        found = base64_bytes(text)
        assert found is None or base64.b64encode(found).decode() == text
