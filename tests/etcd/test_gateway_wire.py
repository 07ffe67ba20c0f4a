"""The gateway's JSON says what gRPC's messages say."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.etcd import messages, rpc
from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Get,
    KeyRange,
    Put,
    Txn,
    WatchCreate,
)
from etcd_actions.etcd.gateway import wire as gateway_wire
from etcd_actions.etcd.gateway.wire import Refusal
from etcd_actions.etcd.rpc import Rpc
from tests.support.table import table

ID = 2**64 - 5
KEYS = KeyRange(b"a", b"b\xff")
HEADER = pb.ResponseHeader(cluster_id=ID, member_id=7, revision=9, raft_term=2)
KV = pb.KeyValue(
    key=b"\x00k", value=bytes(range(256)), create_revision=2, mod_revision=5, version=3, lease=2**62
)

TXN = Txn(
    [
        Compare(b"k", CompareTarget.VALUE, CompareResult.EQUAL, b"\xff"),
        Compare(b"k", CompareTarget.VERSION, CompareResult.NOT_EQUAL, 0),
        Compare(b"k", CompareTarget.CREATE_REVISION, CompareResult.LESS, 2**60, b"l"),
        Compare(b"k", CompareTarget.MOD_REVISION, CompareResult.GREATER, 1),
        Compare(b"k", CompareTarget.LEASE, CompareResult.EQUAL, 2**62),
    ],
    [Put(b"k", b"", 4), Txn([], [Get(KEYS, 3, keys_only=True)])],
    [Delete(KEYS)],
)

REQUESTS: list[tuple[Rpc[Any, Any], Any]] = [
    (rpc.RANGE, rpc.RangeRequest(KEYS)),
    (rpc.RANGE, rpc.RangeRequest(KEYS, 5, 6, keys_only=True, count_only=True)),
    (rpc.PUT, Put(b"\x00", b"\xff", 2**62)),
    (rpc.DELETE, Delete(KEYS)),
    (rpc.TXN, TXN),
    (rpc.COMPACT, rpc.CompactRequest(2**60, physical=True)),
    (rpc.LEASE_GRANT, rpc.GrantRequest(60)),
    (rpc.LEASE_GRANT, rpc.GrantRequest(60, 2**62)),
    (rpc.LEASE_KEEP_ALIVE, 2**62),
    (rpc.LEASE_REVOKE, 2**62),
    (rpc.STATUS, None),
    (rpc.ALARMS, None),
    (rpc.MEMBERS, None),
    (rpc.AUTHENTICATE, rpc.AuthenticateRequest("me", 'ä"\\')),
    (rpc.AUTH_STATUS, None),
    (rpc.USER_ROLES, "me"),
    (rpc.ROLE_PERMISSIONS, "role"),
]

ANSWERS: list[tuple[Rpc[Any, Any], Message]] = [
    (
        rpc.RANGE,
        pb.RangeResponse(header=HEADER, kvs=[KV, pb.KeyValue(key=b"k")], more=True, count=9),
    ),
    (rpc.RANGE, pb.RangeResponse(header=HEADER)),
    (rpc.PUT, pb.PutResponse(header=HEADER)),
    (rpc.DELETE, pb.DeleteRangeResponse(header=HEADER, deleted=3)),
    (rpc.TXN, pb.TxnResponse(header=HEADER)),
    (
        rpc.TXN,
        pb.TxnResponse(
            header=HEADER,
            succeeded=True,
            responses=[
                pb.ResponseOp(response_put=pb.PutResponse()),
                pb.ResponseOp(response_range=pb.RangeResponse(kvs=[KV], count=1)),
                pb.ResponseOp(
                    response_txn=pb.TxnResponse(
                        header=pb.ResponseHeader(),
                        succeeded=True,
                        responses=[
                            pb.ResponseOp(response_delete_range=pb.DeleteRangeResponse(deleted=2)),
                            pb.ResponseOp(response_txn=pb.TxnResponse()),
                        ],
                    )
                ),
            ],
        ),
    ),
    (rpc.COMPACT, pb.CompactionResponse(header=HEADER)),
    (rpc.LEASE_GRANT, pb.LeaseGrantResponse(header=HEADER, ID=2**62, TTL=60)),
    (rpc.LEASE_KEEP_ALIVE, pb.LeaseKeepAliveResponse(header=HEADER, ID=2**62)),
    (rpc.LEASE_REVOKE, pb.LeaseRevokeResponse(header=HEADER)),
    (
        rpc.STATUS,
        pb.StatusResponse(
            header=HEADER,
            version="3.6.1",
            dbSize=1,
            leader=ID,
            dbSizeInUse=2,
            dbSizeQuota=3,
            isLearner=True,
            errors=["NOSPACE"],
        ),
    ),
    (rpc.ALARMS, pb.AlarmResponse()),
    (
        rpc.ALARMS,
        pb.AlarmResponse(
            alarms=[
                pb.AlarmMember(memberID=ID, alarm="NOSPACE"),
                pb.AlarmMember(memberID=7, alarm="CORRUPT"),
            ]
        ),
    ),
    (
        rpc.MEMBERS,
        pb.MemberListResponse(
            header=HEADER,
            members=[
                pb.Member(ID=ID, name="one", clientURLs=["http://a:1", "http://b:1"]),
                pb.Member(isLearner=True),
            ],
        ),
    ),
    (rpc.AUTHENTICATE, pb.AuthenticateResponse(header=HEADER, token="t.1")),
    (rpc.AUTH_STATUS, pb.AuthStatusResponse(header=HEADER, enabled=True)),
    (rpc.USER_ROLES, pb.AuthUserGetResponse(header=HEADER, roles=["a", "b"])),
    (
        rpc.ROLE_PERMISSIONS,
        pb.AuthRoleGetResponse(
            header=HEADER,
            perm=[
                pb.Permission(permType="READWRITE", key=b"a", range_end=b"b"),
                pb.Permission(key=b"c", range_end=b"\x00"),
            ],
        ),
    ),
]


def as_json(message: Message, *, spaces: bool = False) -> bytes:
    fields = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return json.dumps(fields, separators=(", ", ": ") if spaces else (",", ":")).encode()


@table(("method", "request_"), REQUESTS, ids=lambda each: getattr(each, "name", ""))
def test_requests(method: Rpc[Any, Any], request_: Any) -> None:
    """The JSON is that of the message that goes over gRPC."""
    to_message, _ = messages.of_method(method)
    expected = to_message(request_)
    if method is rpc.TXN:
        expected = pb.TxnRequest.FromString(expected.SerializeToString())
    body = gateway_wire.encode(method, request_)
    assert json_format.Parse(body, type(expected)()) == expected


def test_every_method_is_known() -> None:
    """None is forgotten in the tests above either."""
    methods = {each.name for each in vars(rpc).values() if isinstance(each, Rpc)}
    assert {method.name for method, _ in REQUESTS} == methods
    assert {method.name for method, _ in ANSWERS} == methods


@table("spaces", [False, True])
@table(("method", "message"), ANSWERS, ids=lambda each: getattr(each, "name", ""))
def test_answers(method: Rpc[Any, Any], message: Message, spaces: bool) -> None:
    """The result is that of gRPC, types included."""
    body = as_json(message, spaces=spaces)
    if method.streams:
        body = b'{"result":%s}\n' % body
    _, from_message = messages.of_method(method)
    result = gateway_wire.decode(method, body)
    assert result == from_message(message.SerializeToString())
    assert repr(result) == repr(from_message(message.SerializeToString()))


def test_watch_requests() -> None:
    """So are those of watchers, where a few stand in one body."""
    create = WatchCreate(7, KEYS, 5, prev_kv=True, progress_notify=True)
    parsed = json_format.Parse(gateway_wire.watch_create(create), pb.WatchRequest())
    assert parsed == messages.watch_create(create)
    progress = json_format.Parse(gateway_wire.PROGRESS_REQUEST, pb.WatchRequest())
    assert progress.HasField("progress_request")


@table("spaces", [False, True])
@table(
    "message",
    [
        pb.WatchResponse(header=HEADER, watch_id=1, created=True),
        pb.WatchResponse(header=HEADER, watch_id=-1),
        pb.WatchResponse(
            header=pb.ResponseHeader(cluster_id=ID), watch_id=1, canceled=True, compact_revision=8
        ),
        pb.WatchResponse(
            header=HEADER,
            watch_id=-1,
            created=True,
            canceled=True,
            cancel_reason="permission denied",
        ),
        pb.WatchResponse(
            header=HEADER,
            watch_id=1,
            fragment=True,
            events=[
                pb.Event(kv=KV, prev_kv=pb.KeyValue(key=b"k", mod_revision=2)),
                pb.Event(
                    type=pb.Event.DELETE, kv=pb.KeyValue(key=b"k", mod_revision=5), prev_kv=KV
                ),
                pb.Event(kv=pb.KeyValue(key=b"k", version=1, create_revision=6, mod_revision=6)),
            ],
        ),
    ],
)
def test_watch_responses(message: pb.WatchResponse, spaces: bool) -> None:
    """Puts, deletes, previous values, and each kind of control message."""
    line = b'{"result":%s}' % as_json(message, spaces=spaces)
    assert gateway_wire.watch_response(line) == messages.watch_response(message, prev_kv=True)


@given(st.binary(), st.binary(), st.lists(st.integers(0, 2**63 - 1), min_size=4, max_size=4))
def test_any_key_and_value(key: bytes, value: bytes, numbers: list[int]) -> None:
    """Bytes and 64-bit numbers come through whole."""
    create, mod, version, lease = numbers
    kv = pb.KeyValue(
        key=key, value=value, create_revision=create, mod_revision=mod, version=version, lease=lease
    )
    message = pb.WatchResponse(header=HEADER, events=[pb.Event(kv=kv)])
    line = b'{"result":%s}' % as_json(message)
    assert gateway_wire.watch_response(line) == messages.watch_response(message, prev_kv=False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":"etcdserver: oh","message":"etcdserver: oh","code":3}',
        b'{ "error": "etcdserver: oh", "code": 3, "message": "etcdserver: oh" }',
        b'{"code":3, "message":"etcdserver: oh", "details":[]}',
        b'{"error":{"grpc_code":3,"http_code":400,"message":"etcdserver: oh"}}',
    ],
)
def test_refusals(body: bytes) -> None:
    """As etcd 3.4, 3.5 and 3.6 write them."""
    assert gateway_wire.decode_refusal(body) == Refusal(3, "etcdserver: oh")


@pytest.mark.parametrize(
    "error",
    [
        b'{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader","http_status":"x"}',
        b'{"code":14, "message":"etcdserver: no leader", "details":[]}',
    ],
)
def test_refusals_within_a_stream(error: bytes) -> None:
    """With a good HTTP status."""
    expected = Refusal(14, "etcdserver: no leader")
    line = b'{"error":%s}' % error
    assert gateway_wire.watch_response(line) == expected
    assert gateway_wire.decode(rpc.LEASE_KEEP_ALIVE, line + b"\n") == expected


@table(
    "body",
    [b"", b"<html>", b"null", b"[]", b'"oh"', b'{"status":"down"}', b'{"error":"oh"}', b"\xff"],
)
def test_what_is_no_refusal(body: bytes) -> None:
    """A proxy's complaint is not taken for etcd's."""
    assert gateway_wire.decode_refusal(body) is None


@table(
    "body",
    [
        b"",
        b"<html>",
        b"{}",
        b'{"status":"ok"}',
        b'{"header":{"revision":"9"},"kvs":[{"key":"YQ"',
        b'{"header":{"revision":"x"}}',
        b'{"header":{"revision":"9"},"kvs":[{"key":"?"}]}',
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    """Nothing of it is taken for an empty range, by which every key would be gone."""
    with pytest.raises(msgspec.DecodeError):
        gateway_wire.decode(rpc.RANGE, body)
    with pytest.raises(msgspec.DecodeError):
        gateway_wire.watch_response(body)


def test_an_unknown_alarm() -> None:
    """It is an error, and a clear one."""
    with pytest.raises(msgspec.DecodeError, match="an alarm of an unknown type"):
        gateway_wire.decode(rpc.ALARMS, b'{"alarms":[{"memberID":"1","alarm":"FLOOD"}]}')
