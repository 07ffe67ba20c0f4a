"""etcd's messages as a server has them: it parses requests into values, and encodes results.

What is sent to etcd is built from the parsed value, and not from the worker's message. So it has
only the fields that were checked.
"""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from etcd_actions.errors import InvalidRequest
from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    DeleteResult,
    Event,
    Get,
    KeyRange,
    KeyValue,
    Lease,
    Operation,
    OperationResult,
    Put,
    PutResult,
    RangeResult,
    Status,
    Txn,
    TxnResult,
    WatchCreate,
    WatchResponse,
)
from etcd_actions.etcd.rpc import RangeRequest

_Message = TypeVar("_Message", bound=Message)

MOST_PARTS: Final = 2_000
"""The most compares and operations of a transaction: a group of 100 has some hundreds."""
MOST_IN_RANGES: Final = 20_000
"""The most keys that the reads of ranges in a transaction return together."""

_OPERANDS: Final = {
    CompareTarget.VERSION: "version",
    CompareTarget.CREATE_REVISION: "create_revision",
    CompareTarget.MOD_REVISION: "mod_revision",
    CompareTarget.VALUE: "value",
    CompareTarget.LEASE: "lease",
}


def range_request(body: bytes) -> RangeRequest:
    """Parse a read; raises InvalidRequest."""
    message = _parsed(pb.RangeRequest, body)
    return RangeRequest(
        _keys(message.key, message.range_end),
        max(0, message.revision),
        max(0, message.limit),
        message.keys_only,
        message.count_only,
    )


def txn_request(body: bytes) -> Txn:
    """Parse a transaction, and limit its reads of ranges; raises InvalidRequest."""
    message = _parsed(pb.TxnRequest, body)
    ranges = _count_ranges(message, [MOST_PARTS])
    return _txn(message, MOST_IN_RANGES // max(1, ranges))


def is_cut(result: TxnResult) -> bool:
    """Whether a read of a range in a transaction has more keys than its limit."""
    return any(
        is_cut(each) if isinstance(each, TxnResult) else isinstance(each, RangeResult) and each.more
        for each in result.responses
    )


def grant_request(body: bytes) -> int:
    """Parse the request of a lease; returns its time to live in seconds; raises InvalidRequest."""
    return _parsed(pb.LeaseGrantRequest, body).TTL


def lease_request(body: bytes) -> int:
    """Parse the request to renew or end a lease; returns its id; raises InvalidRequest."""
    # LeaseKeepAliveRequest has the same field.
    return _parsed(pb.LeaseRevokeRequest, body).ID


def watch_request(body: bytes) -> WatchCreate | int | None:
    """Parse a request on a watch stream; raises InvalidRequest.

    Returns:
        A watcher to create, the id of one to cancel, or None for a progress notification.
    """
    message = _parsed(pb.WatchRequest, body)
    match message.WhichOneof("request_union"):
        case "create_request":
            request = message.create_request
            if request.watch_id <= 0:
                # etcd would choose the id, so the watchers could not be counted.
                raise InvalidRequest("a watcher of a worker needs an id above 0")
            return WatchCreate(
                request.watch_id,
                _keys(request.key, request.range_end),
                max(0, request.start_revision),
                prev_kv=request.prev_kv,
                progress_notify=request.progress_notify,
            )
        case "cancel_request":
            return message.cancel_request.watch_id
        case "progress_request":
            return None
        case _:
            raise InvalidRequest(
                "a request on a watch stream neither creates nor cancels a watcher, and does not "
                "request progress"
            )


def range_response(result: RangeResult) -> pb.RangeResponse:
    """The answer to a read."""
    return pb.RangeResponse(
        header=_header(result.revision, result.cluster_id),
        kvs=map(_key_value, result.kvs),
        more=result.more,
        count=result.total,
    )


def txn_response(result: TxnResult) -> pb.TxnResponse:
    """The answer to a transaction."""
    return pb.TxnResponse(
        header=_header(result.revision),
        succeeded=result.succeeded,
        responses=map(_response, result.responses),
    )


def grant_response(lease: Lease) -> pb.LeaseGrantResponse:
    """The answer to the request of a lease."""
    return pb.LeaseGrantResponse(ID=lease.id, TTL=lease.ttl)


def keep_alive_response(lease: Lease) -> pb.LeaseKeepAliveResponse:
    """The answer to a renewal; a time to live of 0 means that there is no such lease."""
    return pb.LeaseKeepAliveResponse(ID=lease.id, TTL=lease.ttl)


def status_response(status: Status) -> pb.StatusResponse:
    """The state of a member, without its sizes and errors."""
    header = _header(status.revision, status.cluster_id)
    header.member_id = status.member_id
    return pb.StatusResponse(header=header, version=status.version, leader=status.leader)


def watch_response(response: WatchResponse) -> bytes:
    """One message of a watch stream."""
    message = pb.WatchResponse(
        watch_id=response.watch_id,
        created=response.created,
        canceled=response.canceled,
        compact_revision=response.compact_revision,
        cancel_reason=response.cancel_reason,
        fragment=response.fragment,
        events=map(_event, response.events),
        header=_header(response.revision, response.cluster_id),
    )
    return message.SerializeToString()


def _parsed(kind: type[_Message], body: bytes) -> _Message:
    try:
        return kind.FromString(body)
    except DecodeError:
        raise InvalidRequest(f"the request is not a {kind.DESCRIPTOR.name}") from None


def _keys(start: bytes, end: bytes) -> KeyRange:
    return KeyRange(start, end) if end else KeyRange.of_key(start)


def _count_ranges(message: pb.TxnRequest, left: list[int]) -> int:
    """The number of reads of ranges; ``left`` has the number of parts that may follow."""
    left[0] -= len(message.compare) + len(message.success) + len(message.failure)
    if left[0] < 0:
        raise InvalidRequest(f"a transaction of a worker has at most {MOST_PARTS} parts")
    ranges = 0
    for branch in (message.success, message.failure):
        for each in branch:
            match each.WhichOneof("request"):
                case "request_range":
                    read = each.request_range
                    ranges += not _keys(read.key, read.range_end).is_one_key
                case "request_txn":
                    ranges += _count_ranges(each.request_txn, left)
                case _:
                    pass
    return ranges


def _txn(message: pb.TxnRequest, limit: int) -> Txn:
    """Convert a transaction; ``limit`` is the most keys that each read of a range returns."""
    return Txn(
        [_compare(each) for each in message.compare],
        [_operation(each, limit) for each in message.success],
        [_operation(each, limit) for each in message.failure],
    )


def _compare(message: pb.Compare) -> Compare:
    try:
        target, result = CompareTarget(message.target), CompareResult(message.result)
    except ValueError as error:
        raise InvalidRequest(f"a compare has an unknown target or result: {error}") from None
    operand: int | bytes = getattr(message, _OPERANDS[target])
    return Compare(message.key, target, result, operand, message.range_end)


def _operation(message: pb.RequestOp, limit: int) -> Operation:
    match message.WhichOneof("request"):
        case "request_range":
            read = message.request_range
            if read.revision or read.count_only:
                raise InvalidRequest(
                    "a read within a transaction of a worker may set neither revision nor "
                    "count_only: leave them out"
                )
            keys = _keys(read.key, read.range_end)
            if keys.is_one_key:
                limit = 0
            elif read.limit > 0:
                limit = min(limit, read.limit)
            return Get(keys, limit, read.keys_only)
        case "request_put":
            put = message.request_put
            return Put(put.key, put.value, put.lease)
        case "request_delete_range":
            delete = message.request_delete_range
            return Delete(_keys(delete.key, delete.range_end))
        case "request_txn":
            return _txn(message.request_txn, limit)
        case _:
            raise InvalidRequest(
                "an operation of a transaction is neither a read, a put, a deletion nor a "
                "transaction"
            )


def _response(result: OperationResult) -> pb.ResponseOp:
    match result:
        case RangeResult():
            return pb.ResponseOp(response_range=range_response(result))
        case PutResult():
            return pb.ResponseOp(response_put=pb.PutResponse())
        case DeleteResult():
            return pb.ResponseOp(
                response_delete_range=pb.DeleteRangeResponse(deleted=result.deleted)
            )
        case TxnResult():
            return pb.ResponseOp(response_txn=txn_response(result))


def _header(revision: int, cluster_id: int = 0) -> pb.ResponseHeader:
    return pb.ResponseHeader(revision=revision, cluster_id=cluster_id)


def _key_value(kv: KeyValue) -> pb.KeyValue:
    return pb.KeyValue(
        key=kv.key,
        value=kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease,
    )


def _event(event: Event) -> pb.Event:
    kind = pb.Event.DELETE if event.is_delete else pb.Event.PUT
    before = None if event.prev_kv is None else _key_value(event.prev_kv)
    return pb.Event(type=kind, kv=_key_value(event), prev_kv=before)
