"""Bytes that are no TaskAction: each decoder refuses them, and nothing else is raised."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etcd_actions.codecs import Codec, codec_of, magic
from etcd_actions.errors import DecodeError
from tests.codecs.labels import add_label
from tests.codecs.strategies import BINARY, CODECS, JSON, MSGPACK, PROTOBUF
from tests.data.captured import PUTS
from tests.support.everyday import first_everyday
from tests.support.table import table

SMALL = min((event.value for event in PUTS), key=len)
LAST = max((event.value for event in PUTS if len(event.value) < 4000), key=len)

each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
all_codecs = table("codec", CODECS, ids=lambda codec: codec.name)
each_binary = pytest.mark.parametrize("codec", BINARY, ids=lambda codec: codec.name)
all_binarys = table("codec", BINARY, ids=lambda codec: codec.name)


def decoders(codec: Codec) -> list[Callable[[bytes], object]]:
    where: dict[str, Any] = {"key": b"k", "revision": 7}
    return [
        lambda value: codec.decode(value, **where),
        lambda value: codec.summarize(value, **where),
        lambda value: codec.decode_tree(value, **where),
        lambda value: add_label(codec, value, "l", "v", **where),
        lambda value: codec.release(value, "l", "v", "f", **where),
    ]


def refused(decoder: Callable[[bytes], object], value: bytes) -> bool:
    """Whether it is refused with all that the error should have; nothing else may be raised."""
    try:
        decoder(value)
    except DecodeError as error:
        refusal = error
    else:
        return False
    assert (refusal.key, refusal.revision) == (b"k", 7)
    assert refusal.reason
    return True


def form(codec: Codec, value: bytes) -> bytes:
    return codec.encode_tree(JSON.decode_tree(value))


# --- any bytes --------------------------------------------------------------------------


@given(st.binary(max_size=40), st.sampled_from([b"", magic.PROTOBUF, magic.MSGPACK]))
@example(b"", b"")
@example(b"\x91" * 100_000, magic.MSGPACK)
@example(b"\x81\xa1a" * 100_000, magic.MSGPACK)
@example(b"\x81\xa1a\xdd\xff\xff\xff\xff", magic.MSGPACK)
@example(b"\x81\xa1a" + b"\xdd\x00\xff\xff\xff" * 900, magic.MSGPACK)
@example(b"\xff\xff\xff\xff\x7f", magic.PROTOBUF)
@example(b"\xff" * 20, magic.PROTOBUF)
def test_no_bytes_crash(data: bytes, head: bytes) -> None:
    for codec in CODECS:
        for decoder in decoders(codec):
            refused(decoder, head + data)


@given(
    st.sampled_from(BINARY),
    st.integers(min_value=0),
    st.binary(max_size=4),
    st.integers(0, 4),
)
def test_damaged_values_do_not_crash(codec: Codec, at: int, damage: bytes, cut: int) -> None:
    """What can still be decoded can be marked: a handler that fails would try it for ever."""
    value = form(codec, SMALL)
    at = len(magic.MSGPACK) + at % (len(value) - len(magic.MSGPACK))
    value = value[:at] + damage + value[at + cut :]
    decode, *_, add_label, release = outcomes = [refused(each, value) for each in decoders(codec)]
    assert decode or not (add_label or release), outcomes


@given(st.binary(max_size=60).flatmap(lambda data: st.just(bytes([len(data)]) + data)))
def test_no_message_crashes(data: bytes) -> None:
    """Bytes behind a right length are taken for fields: those get to the message's parser."""
    for decoder in decoders(PROTOBUF):
        refused(decoder, magic.PROTOBUF + data)


@pytest.mark.parametrize("codec", first_everyday(CODECS), ids=lambda codec: codec.name)
def test_truncated_anywhere(codec: Codec) -> None:
    """A value that was cut off is never read as a shorter one."""
    value = form(codec, LAST)
    end = len(value) - (codec is JSON)  # JSON ends in a newline, which may be missing.
    for length in range(end):
        for decoder in decoders(codec):
            assert refused(decoder, value[:length])


@all_codecs
@table("behind", [b"\x00", b"{}", b"\x80", b"\x0a\x00"])
def test_bytes_behind_the_end(codec: Codec, behind: bytes) -> None:
    value = form(codec, SMALL) + behind
    for decoder in decoders(codec):
        assert refused(decoder, value)


@each_codec
def test_too_large(codec: Codec) -> None:
    """Above the limit nothing is decoded, and nothing is written that could not be read."""
    largest = form(codec, b'{"x":"%s"}\n' % (b"x" * (magic.MAX_SIZE - 100)))
    assert len(codec.decode_tree(largest)["x"]) == magic.MAX_SIZE - 100
    value = largest + bytes(101)
    for decoder in decoders(codec):
        with pytest.raises(DecodeError, match="a TaskAction may have 8388608 at most"):
            decoder(value)
    with pytest.raises(ValueError, match="8388608 at most"):
        codec.encode_tree({"x": "x" * magic.MAX_SIZE})


def test_a_promise_of_much_takes_no_memory() -> None:
    """Nested arrays that each claim to hold all that follows are refused without room for them."""
    size = 200_000
    claim = b"\xdd" + (size - 6000).to_bytes(4, "big")
    value = magic.MSGPACK + b"\x81\xa1x" + claim * 900 + b"\x01" * (size - 4500)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            MSGPACK.decode_tree(value)
        assert tracemalloc.get_traced_memory()[1] < 100 * size
    finally:
        tracemalloc.stop()


# --- reasons ----------------------------------------------------------------------------


@table(
    ("value", "reason"),
    [
        (b"k8s:enc:aescbc:v1:key1:\x8b", "encrypted at rest by a Kubernetes API server: take"),
        (b"k8s\0\n\x0f", "Kubernetes' protobuf, which custom resources are not stored in"),
        (b"\xd9\xd9\xf7\xa4", "CBOR, .* switch its feature gate CBORServingAndStorage off"),
        (b"\x1f\x8b\x08\0", "compressed by gzip"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"\xffPB\x02\x00", "protobuf of version 2, and this etcd-actions reads version 1: update"),
        (b"\xffMP\xff\x80", "msgpack of version 255, and this etcd-actions reads version 1"),
        (b"\xffPB", "protobuf is malformed: truncated after 3 bytes"),
        (b"\xffMP", "msgpack is malformed: truncated after 3 bytes"),
        (b"", "the value is empty"),
    ],
)
def test_first_bytes_tell_what_it_is(value: bytes, reason: str) -> None:
    for decoder in decoders(codec_of(value)):
        with pytest.raises(DecodeError, match=reason):
            decoder(value)


@table(
    ("codec", "value", "reason"),
    [
        (PROTOBUF, b'{"kind":', "the value is not protobuf but JSON"),
        (MSGPACK, b'\n {"kind":', "the value is not msgpack but JSON"),
        (PROTOBUF, magic.MSGPACK, "not protobuf but msgpack, another stored form of etcd-actions"),
        (JSON, magic.PROTOBUF, "not JSON but protobuf, another stored form of etcd-actions"),
        (MSGPACK, b"k8s:enc:", "the value is not msgpack but encrypted at rest"),
        (MSGPACK, b"\x80", "the value is not msgpack: it begins with 80$"),
        (PROTOBUF, b"garbage", "the value is not protobuf: it begins with 67 61 72 62$"),
    ],
)
def test_the_wrong_codec_says_so(codec: Codec, value: bytes, reason: str) -> None:
    for decoder in decoders(codec):
        with pytest.raises(DecodeError, match=reason):
            decoder(value)


@all_codecs
@table(
    ("change", "reason"),
    [
        ({"kind": "Pod"}, r"a Pod of flyte\.org/v1, and no TaskAction"),
        ({"apiVersion": "apps/v1"}, r"a TaskAction of apps/v1, and no TaskAction of flyte"),
        ({"metadata": None}, "missing required field `metadata`"),
        ({"metadata": []}, r"Expected `object`, got `array` - at `\$\.metadata`"),
        ({"spec": {}}, r"missing required field `project` - at `\$\.spec`"),
        ({"status": {"attempts": -1}}, r"at `\$\.status\.attempts`"),
        ({"status": {"attempts": 2**32}}, r"at `\$\.status\.attempts`"),
        ({"status": {"conditions": [{"type": "x"}]}}, r"`status` - at `\$\.status\.conditions\["),
    ],
)
def test_fields_of_a_wrong_type(codec: Codec, change: dict[str, Any], reason: str) -> None:
    """The error has the field's path, in each form the same."""
    value = codec.encode_tree({**JSON.decode_tree(SMALL), **change})
    for decode in (codec.decode, codec.summarize):
        with pytest.raises(DecodeError, match=reason):
            decode(value)


@each_binary
def test_nulls_count_as_absent(codec: Codec) -> None:
    tree = JSON.decode_tree(SMALL)
    tree["metadata"].update(deletionTimestamp=None, ownerReferences=None)
    tree["spec"]["taskTemplate"] = tree["status"] = None
    action = codec.decode(codec.encode_tree(tree))
    assert action == JSON.decode(JSON.encode_tree(tree))
    assert action.spec.task_template == ""


# --- what cannot be encoded ---------------------------------------------------------------


@all_binarys
@table(
    ("item", "error"),
    [
        (b"bytes", TypeError),
        ({1, 2}, TypeError),
        ((1, 2), TypeError),
        ({1: "key"}, TypeError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("\ud800", ValueError),
    ],
    ids=["bytes", "set", "tuple", "key", "nan", "inf", "surrogate"],
)
def test_what_is_no_json_is_refused(codec: Codec, item: object, error: type[Exception]) -> None:
    """Whatever could not be JSON again is not written, in typed fields nor elsewhere."""
    for tree in ({"x": [item]}, {"spec": {"project": item}}, {"metadata": {"labels": {"l": item}}}):
        with pytest.raises(error):
            codec.encode_tree(tree)
    with pytest.raises(TypeError, match="list is not a JSON object"):
        codec.encode_tree([])  # type: ignore[arg-type]


@each_codec
def test_deep_trees_are_refused(codec: Codec) -> None:
    tree: dict[str, Any] = {}
    for _ in range(100_000):
        tree = {"x": tree}
    with pytest.raises(ValueError, match="too deeply"):
        codec.encode_tree(tree)
    while tree:  # A destructor that recursed would end the interpreter.
        tree = tree["x"]
