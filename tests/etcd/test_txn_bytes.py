"""Transactions over gRPC: the bytes built by hand are those of the messages."""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.etcd import rpc, txn_bytes
from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Get,
    KeyRange,
    Operation,
    Put,
    Txn,
)
from etcd_actions.etcd.gateway import wire

texts = st.binary(max_size=8) | st.sampled_from([b"x" * 127, b"x" * 128, b"x" * 20_000])
numbers = st.integers(0, 2**63 - 1) | st.sampled_from([-1, -(2**63), 127, 128, 2**14 - 1, 2**14])
ranges = st.builds(KeyRange, texts, texts)
compares = st.builds(
    lambda key, value, end: Compare(key, CompareTarget.VALUE, CompareResult.EQUAL, value, end),
    texts,
    texts,
    texts,
) | st.builds(
    Compare,
    texts,
    st.sampled_from([target for target in CompareTarget if target is not CompareTarget.VALUE]),
    st.sampled_from(CompareResult),
    numbers,
    texts,
)
operations: st.SearchStrategy[Operation] = st.deferred(
    lambda: (
        st.builds(Get, ranges, st.integers(0, 2**63 - 1), st.booleans())
        | st.builds(Put, texts, texts, numbers)
        | st.builds(Delete, ranges)
        | txns
    )
)
branches = st.lists(operations, max_size=3)
txns: st.SearchStrategy[Txn] = st.builds(Txn, st.lists(compares, max_size=3), branches, branches)


@given(txns)
def test_any_transaction(txn: Txn) -> None:
    """What the gateway says in JSON is the same message, and serializes to the same bytes."""
    expected = json_format.Parse(wire.encode(rpc.TXN, txn), pb.TxnRequest())
    encoded = txn_bytes.encode(txn)
    assert pb.TxnRequest.FromString(encoded) == expected
    assert encoded == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "put",
    [Put("key", b""), Put(b"key", "value"), Put(b"key", b"", "lease")],  # type: ignore[arg-type]
)
def test_what_has_another_type(put: Put) -> None:
    with pytest.raises(TypeError):
        txn_bytes.encode(Txn([], [put]))
