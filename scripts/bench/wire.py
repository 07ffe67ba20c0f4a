"""Puts as etcd's protobuf bytes, prepared but for their stamps."""

from __future__ import annotations

from typing import NamedTuple

from scripts.bench.bodies import Body

_KEY = b"\x0a"  # PutRequest.key
_VALUE = b"\x12"  # PutRequest.value
_REQUEST_PUT = b"\x12"  # RequestOp.request_put
_SUCCESS = b"\x12"  # TxnRequest.success


class Message(NamedTuple):
    """A request with space for a stamp between its halves."""

    head: bytes
    tail: bytes


def put_request(body: Body) -> Message:
    """A PutRequest."""
    head = _delimited(_KEY, body.key) + _VALUE + _varint(len(body)) + body.before
    return Message(head, body.after)


def txn_operation(put: Message, stamp_length: int) -> Message:
    """A put as one operation of a TxnRequest; operations joined are the request."""
    size = len(put.head) + stamp_length + len(put.tail)
    operation = _REQUEST_PUT + _varint(size)
    return Message(_SUCCESS + _varint(len(operation) + size) + operation + put.head, put.tail)


def _delimited(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)
