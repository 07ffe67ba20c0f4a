"""Whatever a call's body holds, its answer is an error that the caller understands."""

from __future__ import annotations

from typing import Any, Final

import pytest
from flyteidl2.actions import actions_service_pb2 as pb
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from tests.http_fuzz.served import Served, fuzz
from tests.support.hostile_bodies import (
    ENVELOPES,
    absurd_actions,
    absurd_json,
    envelope,
    nested_messages,
    post,
)
from tests.support.hostile_calls import METHODS, ask, is_good_answer
from tests.support.hostile_wire import HEALTH, SERVICE

pytestmark = [pytest.mark.faults, pytest.mark.slow]

REQUESTS: Final[dict[str, type[Message]]] = {
    "Enqueue": pb.EnqueueRequest,
    "Update": pb.UpdateRequest,
    "Abort": pb.AbortRequest,
    "Signal": pb.SignalRequest,
}
texts = st.one_of(
    st.sampled_from(("", "a0", "a1", "p", "d", "r", "\0", "a/b", "..", "x" * 200, "\u202e")),
    st.text(max_size=8),
)
_SCALARS: Final[dict[int, st.SearchStrategy[Any]]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.one_of(st.integers(0, 12), st.integers(-(2**31), 2**31 - 1)),
}
_DEPTH: Final = 9
_LIKELY: Final = frozenset(
    ("action", "action_id", "run", "task", "status", "value", "condition", "trace", "spec", "name")
)


def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def _value(draw: st.DrawFn, field: FieldDescriptor, message: Message, depth: int) -> None:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        if field.is_repeated:
            if not _is_map(field):
                _fill(draw, getattr(message, field.name).add(), depth - 1)
            return
        below = getattr(message, field.name)
        below.SetInParent()
        _fill(draw, below, depth - 1)
        return
    if kind == FieldDescriptor.CPPTYPE_STRING:
        is_bytes = field.type == FieldDescriptor.TYPE_BYTES
        value: Any = draw(st.binary(max_size=20) if is_bytes else texts)
    else:
        value = draw(_SCALARS[kind])
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def _fill(draw: st.DrawFn, message: Message, depth: int) -> None:
    if depth == 0:
        return
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        likely = field.name in _LIKELY and draw(st.integers(0, 9)) > 0
        if likely or draw(st.integers(0, 3)) == 0:
            _value(draw, field, message, depth)


@st.composite
def messages(draw: st.DrawFn, kind: type[Message]) -> Message:
    """A message of which any field may hold anything that its type allows."""
    message = kind()
    _fill(draw, message, _DEPTH)
    return message


def _expect_an_answer(served: Served, request: bytes) -> None:
    served.start()
    status, got = ask(served.targets["service"], request)
    served.check("service")
    assert is_good_answer(status, got), got[-500:]


@pytest.mark.parametrize("method", REQUESTS)
def test_any_message_is_answered_well(served: Served, method: str) -> None:
    @fuzz(150)
    @given(messages(REQUESTS[method]), st.booleans())
    def throw(message: Message, as_json: bool) -> None:
        path = f"/{SERVICE}/{method}"
        if as_json:
            try:
                text = json_format.MessageToJson(message).encode()
            except (ValueError, json_format.SerializeToJsonError):
                return
            request = post(path, text, content_type="application/json")
        else:
            request = post(path, message.SerializeToString(), content_type="application/proto")
        _expect_an_answer(served, request)

    throw()


_KINDS: Final = (
    "application/proto",
    "application/json",
    "application/connect+proto",
    "application/connect+json",
    "application/grpc-web+proto",
    "application/grpc-web+json",
)
_BODIES: Final = (
    *ENVELOPES.values(),
    *absurd_json().values(),
    *(action.SerializeToString() for action in absurd_actions().values()),
    nested_messages(3000),
)
bodies = st.one_of(
    st.sampled_from(_BODIES),
    st.binary(max_size=300),
    st.binary(max_size=300).map(envelope),
    st.tuples(st.binary(max_size=50), st.integers(0, 255), st.integers(0, 2**32 - 1)).map(
        lambda parts: envelope(*parts)
    ),
)


def test_any_body_is_answered_well(served: Served) -> None:
    @fuzz(500)
    @given(
        st.sampled_from((*METHODS, "Check", "Nothing")),
        st.sampled_from(_KINDS),
        bodies,
        st.sampled_from((None, "gzip", "identity", "br", "zstd")),
    )
    def throw(method: str, kind: str, body: bytes, encoding: str | None) -> None:
        service = HEALTH if method == "Check" else SERVICE
        headers = {"content_type": kind}
        if encoding is not None:
            name = "content_encoding" if "+" not in kind else "grpc_encoding"
            headers[name] = encoding
        _expect_an_answer(served, post(f"/{service}/{method}", body, **headers))

    throw()


def test_any_headers_of_a_call_are_answered_well(served: Served) -> None:
    names = st.sampled_from(
        (
            "content_type",
            "content_encoding",
            "accept_encoding",
            "connect_timeout_ms",
            "connect_protocol_version",
            "grpc_timeout",
            "authorization",
            "traceparent",
            "x_y_bin",
        )
    )
    letters = st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f")
    values = st.one_of(
        st.sampled_from([*_KINDS, "gzip", "1", "-1", "1S", "9" * 30]),
        st.text(letters, max_size=20).map(str.strip),
    )

    @fuzz(300)
    @given(st.dictionaries(names, values, max_size=4))
    def throw(headers: dict[str, str]) -> None:
        request = post(f"/{HEALTH}/Check", b"{}", **({"content_type": _KINDS[1]} | headers))
        _expect_an_answer(served, request)

    throw()
