"""Converts between the values of :mod:`etcd_actions.etcd.api` and etcd's protobuf messages.

gRPC sends the messages as bytes, the gateway as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, cast

from google.protobuf.message import Message

from etcd_actions.etcd import rpc, txn_bytes
from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.etcd.api import (
    Alarm,
    AlarmType,
    Delete,
    DeleteResult,
    Event,
    KeyValue,
    Lease,
    Member,
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

_Message = TypeVar("_Message", bound=Message)


class Decode(Generic[_Message, Result]):
    """Decodes the answer to a method: the type of its message, and the conversion to a result."""

    def __init__(self, message: type[_Message], result: Callable[[_Message], Result]) -> None:
        self.message = message
        self.result = result

    def __call__(self, answer: bytes) -> Result:
        """The result in an answer."""
        return self.result(self.message.FromString(answer))


def of_method(
    method: Rpc[Request, Result],
) -> tuple[Callable[[Request], Message], Decode[Message, Result]]:
    """The function that makes the request of a method, and the decoder of its answer."""
    # The type is a text, because it would be built at each call.
    return cast(
        "tuple[Callable[[Request], Message], Decode[Message, Result]]", _METHODS[method.name]
    )


def key_value(kv: pb.KeyValue) -> KeyValue:
    """A stored key."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def events(messages: Iterable[pb.Event], *, prev_kv: bool) -> list[Event]:
    """The events of one watch response. This is the hot path: one flat loop."""
    result = []
    for message in messages:
        kv = message.kv
        # `HasField` for each event takes as long as decoding the event.
        prev = key_value(message.prev_kv) if prev_kv and message.HasField("prev_kv") else None
        result.append(
            Event(kv.key, b"", 0, kv.mod_revision, 0, 0, prev)
            if message.type
            else Event(
                kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease, prev
            )
        )
    return result


def watch_response(message: pb.WatchResponse, *, prev_kv: bool) -> WatchResponse:
    """One message of a watch stream, with the previous values if they were requested."""
    header = message.header
    return WatchResponse(
        message.watch_id,
        header.revision,
        header.cluster_id,
        events(message.events, prev_kv=prev_kv),
        message.created,
        message.canceled,
        message.fragment,
        message.compact_revision,
        message.cancel_reason,
    )


def watch_responses(messages: Iterable[bytes], *, prev_kv: bool) -> list[WatchResponse]:
    """Messages of a watch stream."""
    parse = pb.WatchResponse.FromString
    return [watch_response(parse(message), prev_kv=prev_kv) for message in messages]


def watch_create(request: WatchCreate) -> pb.WatchRequest:
    """The request for one watcher; responses may be fragmented."""
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(
            key=request.keys.start,
            range_end=request.keys.end,
            start_revision=request.start_revision,
            progress_notify=request.progress_notify,
            prev_kv=request.prev_kv,
            watch_id=request.watch_id,
            fragment=True,
        )
    )


def range_result(response: pb.RangeResponse) -> RangeResult:
    """The answer to a range read."""
    header = response.header
    return RangeResult(
        [key_value(kv) for kv in response.kvs],
        response.more,
        response.count,
        header.revision,
        header.cluster_id,
    )


def range_request(request: rpc.RangeRequest) -> pb.RangeRequest:
    """A range read."""
    return pb.RangeRequest(
        key=request.keys.start,
        range_end=request.keys.end,
        revision=request.revision,
        limit=request.limit,
        keys_only=request.keys_only,
        count_only=request.count_only,
    )


class _TxnRequest:
    """Takes the place of the message ``TxnRequest``: its bytes are built without protobuf."""

    def __init__(self, txn: Txn) -> None:
        self._encoded = txn_bytes.encode(txn)

    def SerializeToString(self) -> bytes:
        """The message's bytes."""
        return self._encoded

    def ListFields(self) -> list[tuple[Any, Any]]:
        """The message's fields."""
        return list(pb.TxnRequest.FromString(self._encoded).ListFields())


def txn_result(response: pb.TxnResponse) -> TxnResult:
    """The answer to a transaction. Nested answers get its revision: their headers have none."""
    return _txn_result(response, response.header.revision)


def _txn_result(response: pb.TxnResponse, revision: int) -> TxnResult:
    return TxnResult(
        response.succeeded,
        [_operation_result(operation, revision) for operation in response.responses],
        revision,
    )


def _operation_result(response: pb.ResponseOp, revision: int) -> OperationResult:
    kind = response.WhichOneof("response")
    if kind == "response_range":
        return range_result(response.response_range)._replace(revision=revision)
    if kind == "response_put":
        return PutResult(revision)
    if kind == "response_delete_range":
        return DeleteResult(response.response_delete_range.deleted, revision)
    return _txn_result(response.response_txn, revision)


def _put_request(put: Put) -> pb.PutRequest:
    return pb.PutRequest(key=put.key, value=put.value, lease=put.lease)


def _delete_request(delete: Delete) -> pb.DeleteRangeRequest:
    return pb.DeleteRangeRequest(key=delete.keys.start, range_end=delete.keys.end)


def _status(response: pb.StatusResponse) -> Status:
    return Status(
        response.version,
        response.dbSize,
        response.leader,
        response.header.revision,
        response.header.cluster_id,
        response.header.member_id,
        response.dbSizeInUse,
        response.dbSizeQuota,
        response.isLearner,
        tuple(response.errors),
    )


def _alarms(response: pb.AlarmResponse) -> tuple[Alarm, ...]:
    if any(alarm.alarm == pb.NONE for alarm in response.alarms):
        raise ValueError("an alarm of an unknown type")
    return tuple(Alarm(alarm.memberID, AlarmType(alarm.alarm)) for alarm in response.alarms)


def _members(response: pb.MemberListResponse) -> tuple[Member, ...]:
    return tuple(
        Member(member.ID, member.name, tuple(member.clientURLs), member.isLearner)
        for member in response.members
    )


def _permissions(response: pb.AuthRoleGetResponse) -> tuple[Permission, ...]:
    return tuple(
        Permission(PermissionType(each.permType), each.key, each.range_end)
        for each in response.perm
    )


def _nothing(_: Message) -> None:
    """The answer has no content."""


_METHODS: dict[str, tuple[Callable[[Any], Message | _TxnRequest], Decode[Any, Any]]] = {
    rpc.RANGE.name: (range_request, Decode(pb.RangeResponse, range_result)),
    rpc.PUT.name: (
        _put_request,
        Decode(pb.PutResponse, lambda response: PutResult(response.header.revision)),
    ),
    rpc.DELETE.name: (
        _delete_request,
        Decode(
            pb.DeleteRangeResponse,
            lambda response: DeleteResult(response.deleted, response.header.revision),
        ),
    ),
    rpc.TXN.name: (_TxnRequest, Decode(pb.TxnResponse, txn_result)),
    rpc.COMPACT.name: (
        lambda request: pb.CompactionRequest(revision=request.revision, physical=request.physical),
        Decode(pb.CompactionResponse, _nothing),
    ),
    rpc.LEASE_GRANT.name: (
        lambda request: pb.LeaseGrantRequest(TTL=request.ttl, ID=request.id),
        Decode(pb.LeaseGrantResponse, lambda response: Lease(response.ID, response.TTL)),
    ),
    rpc.LEASE_KEEP_ALIVE.name: (
        lambda lease: pb.LeaseKeepAliveRequest(ID=lease),
        Decode(pb.LeaseKeepAliveResponse, lambda response: Lease(response.ID, response.TTL)),
    ),
    rpc.LEASE_REVOKE.name: (
        lambda lease: pb.LeaseRevokeRequest(ID=lease),
        Decode(pb.LeaseRevokeResponse, _nothing),
    ),
    rpc.STATUS.name: (lambda _: pb.StatusRequest(), Decode(pb.StatusResponse, _status)),
    rpc.ALARMS.name: (lambda _: pb.AlarmRequest(), Decode(pb.AlarmResponse, _alarms)),
    rpc.MEMBERS.name: (
        lambda _: pb.MemberListRequest(),
        Decode(pb.MemberListResponse, _members),
    ),
    rpc.AUTHENTICATE.name: (
        lambda request: pb.AuthenticateRequest(name=request.name, password=request.password),
        Decode(pb.AuthenticateResponse, lambda response: response.token),
    ),
    rpc.AUTH_STATUS.name: (
        lambda _: pb.AuthStatusRequest(),
        Decode(pb.AuthStatusResponse, lambda response: response.enabled),
    ),
    rpc.USER_ROLES.name: (
        lambda name: pb.AuthUserGetRequest(name=name),
        Decode(pb.AuthUserGetResponse, lambda response: tuple(response.roles)),
    ),
    rpc.ROLE_PERMISSIONS.name: (
        lambda role: pb.AuthRoleGetRequest(role=role),
        Decode(pb.AuthRoleGetResponse, _permissions),
    ),
}
