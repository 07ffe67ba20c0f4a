"""Converts between the values of :mod:`etcd_actions.etcd.api` and the JSON of etcd's gateway.

The JSON is protobuf's: 64-bit numbers are strings, bytes are base64, enums are names, and
zeros are omitted. The answers that can be large (ranges, transactions, watches) are decoded without
protobuf's messages, which is several times as fast. An answer without etcd's header is refused: a
proxy's ``{"status": "ok"}`` must not be decoded as an empty range.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import msgspec
from google.protobuf import json_format
from google.protobuf.message import Message

from etcd_actions.etcd import messages, rpc
from etcd_actions.etcd.api import (
    DeleteResult,
    Event,
    KeyValue,
    OperationResult,
    PutResult,
    RangeResult,
    TxnResult,
    WatchCreate,
    WatchResponse,
)
from etcd_actions.etcd.rpc import Request, Result, Rpc

PROGRESS_REQUEST = b'{"progress_request":{}}'


class Refusal(msgspec.Struct, frozen=True):
    """An error that etcd sent in place of an answer: gRPC's status code, and a text."""

    code: int
    text: str


class _Message(msgspec.Struct, frozen=True, gc=False):
    """A part of etcd's JSON; unknown fields are ignored."""


class _Header(_Message, frozen=True, gc=False):
    cluster_id: int = 0
    member_id: int = 0
    revision: int = 0


class _KeyValue(_Message, frozen=True, gc=False):
    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class _Event(_Message, frozen=True, gc=False):
    kv: _KeyValue
    type: str | int = 0
    prev_kv: _KeyValue | None = None


class _Range(_Message, frozen=True, gc=False):
    kvs: tuple[_KeyValue, ...] = ()
    more: bool = False
    count: int = 0


class _Deleted(_Message, frozen=True, gc=False):
    deleted: int = 0


class _Txn(_Message, frozen=True, gc=False):
    succeeded: bool = False
    responses: tuple[_Operation, ...] = ()


class _Operation(_Message, frozen=True, gc=False):
    response_range: _Range | None = None
    response_put: _Message | None = None
    response_delete_range: _Deleted | None = None
    response_txn: _Txn | None = None


class _Answer(_Message, frozen=True, kw_only=True, gc=False):
    header: _Header


class _RangeAnswer(_Range, frozen=True, kw_only=True, gc=False):
    header: _Header


class _TxnAnswer(_Txn, frozen=True, kw_only=True, gc=False):
    header: _Header


class _Watched(_Answer, frozen=True, kw_only=True, gc=False):
    watch_id: int = 0
    events: tuple[_Event, ...] = ()
    created: bool = False
    canceled: bool = False
    fragment: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""


class _Error(_Message, frozen=True, gc=False):
    """An error in a stream: ``grpc_code`` up to etcd 3.5, ``code`` from 3.6 on."""

    message: str = ""
    code: int = 0
    grpc_code: int = 0


class _ErrorBody(_Message, frozen=True, gc=False):
    """An error instead of an answer, with its text twice, or within ``error``."""

    error: str | _Error = ""
    message: str = ""
    code: int | None = None


class _Line(_Message, frozen=True, gc=False):
    """One message of a stream."""

    result: msgspec.Raw = msgspec.Raw()
    error: _Error | None = None


class _WatchLine(_Message, frozen=True, gc=False):
    """One message of a watch stream: :class:`_Line` with its result decoded."""

    result: _Watched | None = None
    error: _Error | None = None


def encode(method: Rpc[Request, Result], request: Request) -> bytes:
    """The body of a request."""
    to_message, _ = messages.of_method(method)
    return msgspec.json.encode(_fields(to_message(request)))


def decode(method: Rpc[Request, Result], body: bytes) -> Result | Refusal:
    """The result in an answer with a good HTTP status.

    Raises:
        msgspec.DecodeError: It is not an answer of etcd.
    """
    if method.streams:
        # The first message of a stream is the answer.
        line = _LINE.decode(body.partition(b"\n")[0])
        if line.error is not None:
            return _refusal(line.error)
        body = bytes(line.result)
    if method.name == rpc.RANGE.name:
        answer = _RANGE.decode(body)
        return cast(Result, _range_result(answer, answer.header, answer.header.revision))
    if method.name == rpc.TXN.name:
        txn = _TXN.decode(body)
        return cast(Result, _txn_result(txn, txn.header.revision))
    _, from_message = messages.of_method(method)
    message = from_message.message()
    try:
        json_format.Parse(body, message, ignore_unknown_fields=True)
        # Some versions send alarms without a header.
        if method.name != rpc.ALARMS.name and not message.HasField("header"):
            raise msgspec.ValidationError("no header of etcd")
        return from_message.result(message)
    except (json_format.ParseError, ValueError) as error:
        raise msgspec.ValidationError(str(error)) from None


def decode_refusal(body: bytes) -> Refusal | None:
    """The error in an answer with a bad HTTP status; None if it is not etcd's."""
    try:
        error = _ERROR.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if isinstance(error.error, _Error):
        return _refusal(error.error)
    text = error.message or error.error
    return Refusal(error.code, text) if error.code is not None and text else None


def watch_create(request: WatchCreate) -> bytes:
    """The request for one watcher; responses may be fragmented."""
    return msgspec.json.encode(_fields(messages.watch_create(request)))


def watch_response(line: bytes) -> WatchResponse | Refusal:
    """One line of a watch stream. This is the hot path.

    Raises:
        msgspec.DecodeError: It is not a line of etcd's.
    """
    message = _WATCH_LINE.decode(line)
    watched = message.result
    if watched is None:
        if message.error is None:
            raise msgspec.ValidationError("neither a result nor an error")
        return _refusal(message.error)
    header = watched.header
    return WatchResponse(
        watched.watch_id,
        header.revision,
        header.cluster_id,
        [_event(event) for event in watched.events],
        watched.created,
        watched.canceled,
        watched.fragment,
        watched.compact_revision,
        watched.cancel_reason,
    )


def _event(event: _Event) -> Event:
    kv = event.kv
    prev = None if event.prev_kv is None else _key_value(event.prev_kv)
    if event.type:
        return Event(kv.key, b"", 0, kv.mod_revision, 0, 0, prev)
    return Event(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease, prev)


def _key_value(kv: _KeyValue) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _refusal(error: _Error) -> Refusal:
    return Refusal(error.grpc_code or error.code, error.message)


def _fields(message: Message) -> dict[str, Any]:
    """The JSON of a request: its fields that are set, by name."""
    return {
        field.name: value
        if field.message_type is None
        else [_fields(each) for each in value]
        if field.is_repeated
        else _fields(value)
        for field, value in message.ListFields()
    }


def _range_result(answer: _Range, header: _Header, revision: int) -> RangeResult:
    kvs = [_key_value(kv) for kv in answer.kvs]
    return RangeResult(kvs, answer.more, answer.count, revision, header.cluster_id)


def _txn_result(answer: _Txn, revision: int) -> TxnResult:
    responses = [_operation_result(operation, revision) for operation in answer.responses]
    return TxnResult(answer.succeeded, responses, revision)


def _operation_result(answer: _Operation, revision: int) -> OperationResult:
    """The answer to an operation. Nested headers have no revision and no cluster id."""
    if answer.response_range is not None:
        return _range_result(answer.response_range, _NO_HEADER, revision)
    if answer.response_put is not None:
        return PutResult(revision)
    if answer.response_delete_range is not None:
        return DeleteResult(answer.response_delete_range.deleted, revision)
    if answer.response_txn is not None:
        return _txn_result(answer.response_txn, revision)
    raise msgspec.ValidationError("an operation of a transaction without an answer")


def _decoder(kind: type[_Shape]) -> msgspec.json.Decoder[_Shape]:
    # Not strict: numbers are strings.
    return msgspec.json.Decoder(kind, strict=False)


_Shape = TypeVar("_Shape")


_NO_HEADER = _Header()
_LINE = _decoder(_Line)
_WATCH_LINE = _decoder(_WatchLine)
_ERROR = _decoder(_ErrorBody)
_RANGE = _decoder(_RangeAnswer)
_TXN = _decoder(_TxnAnswer)
