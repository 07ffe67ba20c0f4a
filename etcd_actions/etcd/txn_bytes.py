"""Encodes a transaction as protobuf, without protobuf's messages.

A tree of messages takes several times as long: each level is a call with names to look up, and a
copy of all levels below. For thousands of small transactions in groups that is most of the work.
The field numbers are those of ``schemas/etcd_actions_rpc.proto``.
"""

from __future__ import annotations

from typing import Final

from etcd_actions.etcd.api import Compare, CompareTarget, Delete, Get, Operation, Put, Txn

# The varints of the numbers that fit into two bytes.
_LENGTHS: Final = [
    bytes((n,)) if n < 0x80 else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(0x4000)
]
_MASK: Final = 2**64 - 1

_OPERAND: Final = {
    CompareTarget.VERSION: b"\x20",
    CompareTarget.CREATE_REVISION: b"\x28",
    CompareTarget.MOD_REVISION: b"\x30",
    CompareTarget.VALUE: b"\x3a",
    CompareTarget.LEASE: b"\x40",
}
_RANGE_END: Final = b"\x82\x04"


def encode(txn: Txn) -> bytes:
    """A ``TxnRequest`` with all that it nests.

    Raises:
        TypeError: A key or a value is not bytes, or a number is not an integer.
    """
    parts: list[bytes] = []
    for compare in txn.compare:
        data = _compare(compare)
        parts += (b"\x0a", _varint(len(data)), data)
    for tag, operations in ((b"\x12", txn.success), (b"\x1a", txn.failure)):
        for operation in operations:
            kind, data = _operation(operation)
            length = _varint(len(data))
            parts += (tag, _varint(1 + len(length) + len(data)), kind, length, data)
    return b"".join(parts)


def _operation(operation: Operation) -> tuple[bytes, bytes]:
    match operation:
        case Put(key, value, lease):
            data = _text(b"\x0a", key) + _text(b"\x12", value)
            return b"\x12", data + b"\x18" + _varint(lease) if lease else data
        case Get(keys, limit, keys_only):
            data = _text(b"\x0a", keys.start) + _text(b"\x12", keys.end)
            if limit:
                data += b"\x18" + _varint(limit)
            return b"\x0a", data + b"\x40\x01" if keys_only else data
        case Delete(keys):
            return b"\x1a", _text(b"\x0a", keys.start) + _text(b"\x12", keys.end)
        case Txn():
            return b"\x22", encode(operation)


def _compare(compare: Compare) -> bytes:
    key, target, result, operand, range_end = compare
    data = b"\x08" + _LENGTHS[result] if result else b""
    if target:
        data += b"\x10" + _LENGTHS[target]
    data += _text(b"\x1a", key) + _OPERAND[target]
    if isinstance(operand, bytes):
        data += _varint(len(operand)) + operand
    else:
        data += _varint(operand)
    return data + _text(_RANGE_END, range_end)


def _text(tag: bytes, text: bytes) -> bytes:
    return b"".join((tag, _varint(len(text)), text)) if text else b""


def _varint(number: int) -> bytes:
    if 0 <= number < 0x4000:
        return _LENGTHS[number]
    number &= _MASK
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
