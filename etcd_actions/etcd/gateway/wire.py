"""Between the values of :mod:`etcd_actions.etcd.api` and the JSON of etcd's gateway.

The JSON is protobuf's: 64-bit numbers are strings, bytes are base64, enums are names, and
what is zero is left out. An answer without etcd's header is none of etcd's: a proxy's
``{"status": "ok"}`` must not be read as an empty range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec

from etcd_actions.etcd import rpc
from etcd_actions.etcd.api import (
    Alarm,
    AlarmType,
    Compare,
    CompareTarget,
    Delete,
    DeleteResult,
    Event,
    Get,
    KeyValue,
    Lease,
    Member,
    Operation,
    OperationResult,
    Permission,
    PermissionType,
    Put,
    PutResult,
    RangeResult,
    Status,
    Txn,
    TxnResult,
    WatchCreate,
    WatchResponse,
)
from etcd_actions.etcd.rpc import Request, Result, Rpc

PROGRESS_REQUEST = b'{"progress_request":{}}'

_OPERAND = {
    CompareTarget.VERSION: "version",
    CompareTarget.CREATE_REVISION: "create_revision",
    CompareTarget.MOD_REVISION: "mod_revision",
    CompareTarget.VALUE: "value",
    CompareTarget.LEASE: "lease",
}

_Json = dict[str, Any]


class Refusal(msgspec.Struct, frozen=True):
    """What etcd says instead of an answer: gRPC's status code, and a text."""

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


class _DeleteAnswer(_Deleted, frozen=True, kw_only=True, gc=False):
    header: _Header


class _TxnAnswer(_Txn, frozen=True, kw_only=True, gc=False):
    header: _Header


class _LeaseAnswer(_Answer, frozen=True, kw_only=True, gc=False):
    ID: int = 0
    TTL: int = 0


class _StatusAnswer(_Answer, frozen=True, kw_only=True, gc=False):
    version: str = ""
    dbSize: int = 0
    leader: int = 0
    dbSizeInUse: int = 0
    dbSizeQuota: int = 0
    isLearner: bool = False
    errors: tuple[str, ...] = ()


class _Alarm(_Message, frozen=True, gc=False):
    memberID: int = 0
    alarm: str | int = 0


class _Alarms(_Message, frozen=True, gc=False):
    alarms: tuple[_Alarm, ...] = ()


class _Member(_Message, frozen=True, gc=False):
    ID: int = 0
    name: str = ""
    clientURLs: tuple[str, ...] = ()
    isLearner: bool = False


class _Members(_Answer, frozen=True, kw_only=True, gc=False):
    members: tuple[_Member, ...] = ()


class _Token(_Answer, frozen=True, kw_only=True, gc=False):
    token: str = ""


class _AuthStatus(_Answer, frozen=True, kw_only=True, gc=False):
    enabled: bool = False


class _User(_Answer, frozen=True, kw_only=True, gc=False):
    roles: tuple[str, ...] = ()


class _Permission(_Message, frozen=True, gc=False):
    permType: str | int = 0
    key: bytes = b""
    range_end: bytes = b""


class _Role(_Answer, frozen=True, kw_only=True, gc=False):
    perm: tuple[_Permission, ...] = ()


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
    """One message of a watch stream: :class:`_Line` in one go."""

    result: _Watched | None = None
    error: _Error | None = None


def encode(method: Rpc[Request, Result], request: Request) -> bytes:
    """The body of a request."""
    return msgspec.json.encode(_METHODS[method.name].fields(request))


def decode(method: Rpc[Request, Result], body: bytes) -> Result | Refusal:
    """What an answer with a good HTTP status says.

    Raises:
        msgspec.DecodeError: It is no answer of etcd's.
    """
    if method.streams:
        # The first message of a stream is the answer.
        line = _LINE.decode(body.partition(b"\n")[0])
        if line.error is not None:
            return _refusal(line.error)
        body = bytes(line.result)
    return cast(Result, _METHODS[method.name].decode(body))


def decode_refusal(body: bytes) -> Refusal | None:
    """What an answer with a bad HTTP status says; None where it is not etcd's."""
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
    fields = {
        "key": request.keys.start,
        "range_end": request.keys.end,
        "start_revision": request.start_revision,
        "progress_notify": request.progress_notify,
        "prev_kv": request.prev_kv,
        "watch_id": request.watch_id,
        "fragment": True,
    }
    return msgspec.json.encode({"create_request": fields})


def watch_response(line: bytes) -> WatchResponse | Refusal:
    """One line of a watch stream. This is the hot path.

    Raises:
        msgspec.DecodeError: It is no line of etcd's.
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


def _range_fields(request: rpc.RangeRequest) -> _Json:
    return {
        "key": request.keys.start,
        "range_end": request.keys.end,
        "revision": request.revision,
        "limit": request.limit,
        "keys_only": request.keys_only,
        "count_only": request.count_only,
    }


def _put_fields(put: Put) -> _Json:
    return {"key": put.key, "value": put.value, "lease": put.lease}


def _delete_fields(delete: Delete) -> _Json:
    return {"key": delete.keys.start, "range_end": delete.keys.end}


def _txn_fields(txn: Txn) -> _Json:
    return {
        "compare": [_compare_fields(compare) for compare in txn.compare],
        "success": [_operation_fields(operation) for operation in txn.success],
        "failure": [_operation_fields(operation) for operation in txn.failure],
    }


def _compare_fields(compare: Compare) -> _Json:
    return {
        "key": compare.key,
        "range_end": compare.range_end,
        "target": int(compare.target),
        "result": int(compare.result),
        _OPERAND[compare.target]: compare.operand,
    }


def _operation_fields(operation: Operation) -> _Json:
    match operation:
        case Get(keys, limit, keys_only):
            fields = {
                "key": keys.start,
                "range_end": keys.end,
                "limit": limit,
                "keys_only": keys_only,
            }
            return {"request_range": fields}
        case Put():
            return {"request_put": _put_fields(operation)}
        case Delete():
            return {"request_delete_range": _delete_fields(operation)}
        case Txn():
            return {"request_txn": _txn_fields(operation)}


def _range_result(answer: _Range, header: _Header, revision: int) -> RangeResult:
    kvs = [_key_value(kv) for kv in answer.kvs]
    return RangeResult(kvs, answer.more, answer.count, revision, header.cluster_id)


def _txn_result(answer: _Txn, revision: int) -> TxnResult:
    responses = [_operation_result(operation, revision) for operation in answer.responses]
    return TxnResult(answer.succeeded, responses, revision)


def _operation_result(answer: _Operation, revision: int) -> OperationResult:
    """Nested headers carry no revision, so it is handed down; nor a cluster id."""
    if answer.response_range is not None:
        return _range_result(answer.response_range, _NO_HEADER, revision)
    if answer.response_put is not None:
        return PutResult(revision)
    if answer.response_delete_range is not None:
        return DeleteResult(answer.response_delete_range.deleted, revision)
    if answer.response_txn is not None:
        return _txn_result(answer.response_txn, revision)
    raise msgspec.ValidationError("an operation of a transaction without an answer")


def _status(answer: _StatusAnswer) -> Status:
    header = answer.header
    return Status(
        answer.version,
        answer.dbSize,
        answer.leader,
        header.revision,
        header.cluster_id,
        header.member_id,
        answer.dbSizeInUse,
        answer.dbSizeQuota,
        answer.isLearner,
        answer.errors,
    )


def _alarms(answer: _Alarms) -> tuple[Alarm, ...]:
    return tuple(Alarm(each.memberID, _enum(AlarmType, each.alarm)) for each in answer.alarms)


def _members(answer: _Members) -> tuple[Member, ...]:
    return tuple(
        Member(each.ID, each.name, each.clientURLs, each.isLearner) for each in answer.members
    )


def _permissions(answer: _Role) -> tuple[Permission, ...]:
    return tuple(
        Permission(_enum(PermissionType, each.permType), each.key, each.range_end)
        for each in answer.perm
    )


_Enum = TypeVar("_Enum", AlarmType, PermissionType)


def _enum(kind: type[_Enum], value: str | int) -> _Enum:
    try:
        return kind[value] if isinstance(value, str) else kind(value)
    except (KeyError, ValueError):
        raise msgspec.ValidationError(f"unknown {kind.__name__} {value!r}") from None


def _decoder(kind: type[_Shape]) -> msgspec.json.Decoder[_Shape]:
    # Not strict: numbers are strings.
    return msgspec.json.Decoder(kind, strict=False)


_Shape = TypeVar("_Shape")


class _Method:
    """How a request is written, and how its answer is read."""

    def __init__(
        self,
        fields: Callable[[Any], _Json],
        answer: type[_Shape],
        result: Callable[[_Shape], object],
    ) -> None:
        self.fields = fields
        decoder = _decoder(answer)
        self.decode: Callable[[bytes], object] = lambda body: result(decoder.decode(body))


_NO_HEADER = _Header()
_LINE = _decoder(_Line)
_WATCH_LINE = _decoder(_WatchLine)
_ERROR = _decoder(_ErrorBody)
_METHODS = {
    rpc.RANGE.name: _Method(
        _range_fields,
        _RangeAnswer,
        lambda answer: _range_result(answer, answer.header, answer.header.revision),
    ),
    rpc.PUT.name: _Method(_put_fields, _Answer, lambda answer: PutResult(answer.header.revision)),
    rpc.DELETE.name: _Method(
        _delete_fields,
        _DeleteAnswer,
        lambda answer: DeleteResult(answer.deleted, answer.header.revision),
    ),
    rpc.TXN.name: _Method(
        _txn_fields, _TxnAnswer, lambda answer: _txn_result(answer, answer.header.revision)
    ),
    rpc.COMPACT.name: _Method(
        lambda request: {"revision": request.revision, "physical": request.physical},
        _Answer,
        lambda _: None,
    ),
    rpc.LEASE_GRANT.name: _Method(
        lambda ttl: {"TTL": ttl}, _LeaseAnswer, lambda answer: Lease(answer.ID, answer.TTL)
    ),
    rpc.LEASE_KEEP_ALIVE.name: _Method(
        lambda lease: {"ID": lease}, _LeaseAnswer, lambda answer: Lease(answer.ID, answer.TTL)
    ),
    rpc.LEASE_REVOKE.name: _Method(lambda lease: {"ID": lease}, _Answer, lambda _: None),
    rpc.STATUS.name: _Method(lambda _: {}, _StatusAnswer, _status),
    rpc.ALARMS.name: _Method(lambda _: {}, _Alarms, _alarms),
    rpc.MEMBERS.name: _Method(lambda _: {}, _Members, _members),
    rpc.AUTHENTICATE.name: _Method(
        lambda request: {"name": request.name, "password": request.password},
        _Token,
        lambda answer: answer.token,
    ),
    rpc.AUTH_STATUS.name: _Method(lambda _: {}, _AuthStatus, lambda answer: answer.enabled),
    rpc.USER_ROLES.name: _Method(lambda name: {"name": name}, _User, lambda answer: answer.roles),
    rpc.ROLE_PERMISSIONS.name: _Method(lambda role: {"role": role}, _Role, _permissions),
}
