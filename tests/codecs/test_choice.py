"""Which codec a value has, and which a setting names."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_actions.codecs import CODEC_NAMES, codec_named, codec_of, magic
from etcd_actions.errors import ConfigError
from tests.codecs.strategies import CODECS, JSON, MSGPACK, PROTOBUF, objects


@settings(max_examples=30)
@given(objects)
def test_a_value_tells_its_codec(tree: dict[str, object]) -> None:
    for codec in CODECS:
        assert codec_of(codec.encode_tree(tree)) is codec


@given(st.text().map(str.encode) | st.binary())
def test_what_is_not_ours_is_left_to_json(value: bytes) -> None:
    ours = value[:3] in {magic.PROTOBUF[:3], magic.MSGPACK[:3]}
    assert ours == (codec_of(value) is not JSON)


@pytest.mark.parametrize("first", [magic.PROTOBUF, magic.MSGPACK])
def test_magics_are_like_nothing_else(first: bytes) -> None:
    """No text, and not the head of what Kubernetes may store."""
    assert len(first) == 4
    for length in range(1, 5):
        with pytest.raises(UnicodeDecodeError):
            first[:length].decode()
    others = [b"k8s\0", b"k8s:enc:", b"\xd9\xd9\xf7", b"{", b" ", b"\xff\xfe", b"\xfe\xff"]
    assert not any(first.startswith(other) for other in others)


@pytest.mark.parametrize("head", [b"\xffPB", b"\xffMP"])
def test_other_versions_are_left_to_their_form(head: bytes) -> None:
    codec = codec_of(head + b"\x01")
    assert codec is not JSON
    assert all(codec_of(head + bytes([version])) is codec for version in range(256))
    assert codec_of(head) is codec


def test_names() -> None:
    assert tuple(codec_named(name).name for name in CODEC_NAMES) == CODEC_NAMES
    assert CODEC_NAMES == ("json", "protobuf", "msgpack")
    assert [codec_named(name) for name in CODEC_NAMES] == [JSON, PROTOBUF, MSGPACK]


@pytest.mark.parametrize("name", ["", "JSON", "proto", "json "])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is not a valid codec: .* json, protobuf"):
        codec_named(name)


def test_protobuf_is_loaded_on_first_use() -> None:
    """Who has JSON and msgpack only does not pay for it."""
    program = (
        "import sys\n"
        "from etcd_actions.codecs import codec_named, codec_of\n"
        "codec_of(b'{}'), codec_of(b'\\xffMP\\x01'), codec_named('msgpack')\n"
        "print('google.protobuf' in sys.modules)\n"
        "codec_of(b'\\xffPB\\x01')\n"
        "print('google.protobuf' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\nTrue\n"
