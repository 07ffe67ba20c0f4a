"""Between the values of :mod:`etcd_actions.etcd.api` and etcd's gRPC messages."""

from __future__ import annotations

from collections.abc import Iterable

from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    DeleteResult,
    Event,
    Get,
    KeyValue,
    Operation,
    OperationResult,
    Put,
    PutResult,
    RangeResult,
    Txn,
    TxnResult,
    WatchCreate,
    WatchResponse,
)

_OPERAND = {
    CompareTarget.VERSION: "version",
    CompareTarget.CREATE_REVISION: "create_revision",
    CompareTarget.MOD_REVISION: "mod_revision",
    CompareTarget.VALUE: "value",
    CompareTarget.LEASE: "lease",
}
_TARGET = {target: pb.Compare.CompareTarget.Name(target) for target in CompareTarget}
_RESULT = {result: pb.Compare.CompareResult.Name(result) for result in CompareResult}


def key_value(kv: pb.KeyValue) -> KeyValue:
    """A stored key."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def events(messages: Iterable[pb.Event], *, prev_kv: bool) -> list[Event]:
    """The events of one watch response. This is the hot path: one flat loop."""
    result = []
    for message in messages:
        kv = message.kv
        # Asking each event whether it has a previous value costs as much as reading it.
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
    """One message of a watch stream, on which previous values were asked for or not."""
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


def txn_request(txn: Txn) -> pb.TxnRequest:
    """A transaction with all that it nests."""
    return pb.TxnRequest(
        compare=[_compare(compare) for compare in txn.compare],
        success=[_operation(operation) for operation in txn.success],
        failure=[_operation(operation) for operation in txn.failure],
    )


def txn_result(response: pb.TxnResponse) -> TxnResult:
    """The answer to a transaction; nested headers carry no revision, so it is handed down."""
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


def _compare(compare: Compare) -> pb.Compare:
    message = pb.Compare(
        key=compare.key,
        range_end=compare.range_end,
        target=_TARGET[compare.target],
        result=_RESULT[compare.result],
    )
    setattr(message, _OPERAND[compare.target], compare.operand)
    return message


def _operation(operation: Operation) -> pb.RequestOp:
    match operation:
        case Get(keys, limit, keys_only):
            return pb.RequestOp(
                request_range=pb.RangeRequest(
                    key=keys.start, range_end=keys.end, limit=limit, keys_only=keys_only
                )
            )
        case Put(key, value, lease):
            return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))
        case Delete(keys):
            return pb.RequestOp(
                request_delete_range=pb.DeleteRangeRequest(key=keys.start, range_end=keys.end)
            )
        case Txn():
            return pb.RequestOp(request_txn=txn_request(operation))
