"""What passes the check of a worker's request touches only keys that a worker may touch.

The requests are etcd's messages, and the keys that they touch are computed from these by etcd's own
rules, so that a trick in a message is found also if the values have no form for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.errors import InvalidRequest, NotForWorkers, PermissionDenied
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
from etcd_actions.etcd.group_members import Write, nested
from etcd_actions.etcd.txn_bytes import encode
from etcd_actions.model import Keyspace
from etcd_actions.server.workers import rights, wire
from etcd_actions.server.workers.leases import LeaseKind, kind_of_lease, new_lease_id
from etcd_actions.server.workers.rights import MOST_DEPTH, WorkerRights, check_lease

KEYS = Keyspace(b"/registry/flyte.org/taskactions/", "flyte")
OWN_LEASE, OTHER_LEASE, LONG_LEASE = 7, 8, 9

WRITABLE = tuple(area + b"flyte/r1-a0" for area in (KEYS.prefix, KEYS.traces, KEYS.aborts))
OWNED = (KEYS.claims + b"flyte/r1-a0", KEYS.workers + b"h-1", KEYS.catalog + b"reserved/x")
LEASED = (*OWNED, KEYS.catalog + b"entries/x")
DELETABLE = (WRITABLE[2], *LEASED)
READ_ONLY = (
    KEYS.images + b"a",
    KEYS.runs + b"flyte/r1",
    KEYS.run_tasks + b"flyte/r1",
    KEYS.histories + b"flyte/r1-a0",
)
READABLE = (*WRITABLE, *LEASED, *READ_ONLY)
FORBIDDEN = (
    b"",
    b"\0",
    b"/",
    b"/registry/pods/x",
    KEYS.prefix[:-1],
    KEYS.prefix + b"flyte",
    KEYS.prefix + b"flyte0",
    KEYS.prefix + b"other/r1-a0",
    KEYS.own,
    KEYS.election(None) + b"/1",
    KEYS.checkpoint(None),
    KEYS.shards + b"table",
    KEYS.dead_letters + b"actions/x",
    KEYS.signing + b"key",
    KEYS.deployment,
    KEYS.tasks + b"x",
    KEYS.projects + b"x",
    KEYS.claims + b"other/r1-a0",
    KEYS.claims[:-1] + b"0",
    b"\xff",
)
EVERY = (*READABLE, *FORBIDDEN)
RIGHTS = WorkerRights(KEYS, "flyte")

keys = st.one_of(
    st.sampled_from(EVERY),
    st.builds(bytes.__add__, st.sampled_from(EVERY), st.sampled_from((b"\0", b"x", b"\xff"))),
)
ends = st.one_of(st.sampled_from((b"", b"\0")), keys)
leases = st.sampled_from((0, OWN_LEASE, OTHER_LEASE, LONG_LEASE, -1))

ranges = st.builds(pb.RangeRequest, key=keys, range_end=ends, limit=st.integers(-1, 3))
operations = st.one_of(
    st.builds(pb.RequestOp, request_range=ranges),
    st.builds(
        pb.RequestOp,
        request_put=st.builds(pb.PutRequest, key=keys, value=st.just(b"v"), lease=leases),
    ),
    st.builds(
        pb.RequestOp,
        request_delete_range=st.builds(pb.DeleteRangeRequest, key=keys, range_end=ends),
    ),
)
compares = st.one_of(
    st.builds(pb.Compare, key=keys, range_end=ends, target=st.integers(0, 5)),
    st.builds(pb.Compare, key=keys, target=st.just(1), create_revision=st.integers(0, 1)),
    st.builds(pb.Compare, key=keys, target=st.just(4), lease=leases),
)


def _transactions(operation: st.SearchStrategy[pb.RequestOp]) -> st.SearchStrategy[pb.TxnRequest]:
    few = st.lists(operation, max_size=2)
    return st.builds(
        pb.TxnRequest, compare=st.lists(compares, max_size=2), success=few, failure=few
    )


transactions = _transactions(
    st.recursive(
        operations,
        lambda inner: st.builds(pb.RequestOp, request_txn=_transactions(inner)),
        max_leaves=4,
    )
)


def touched(key: bytes, end: bytes) -> set[bytes]:
    """The keys of ``EVERY`` that etcd finds for ``key`` and ``range_end``."""
    if not end:
        return {key}
    return {each for each in EVERY if each >= key and (end == b"\0" or each < end)} | {key}


def each_operation(
    txn: pb.TxnRequest, holds: tuple[pb.Compare, ...] = ()
) -> Iterator[tuple[pb.RequestOp | pb.Compare, tuple[pb.Compare, ...]]]:
    """What may be done, with the compares that hold if it is."""
    yield from ((each, holds) for each in txn.compare)
    branches = [(txn.success, (*holds, *txn.compare)), (txn.failure, holds)]
    for operations, within in branches if txn.compare else branches[:1]:
        for operation in operations:
            if operation.HasField("request_txn"):
                yield from each_operation(operation.request_txn, within)
            else:
                yield operation, within


def may_read(key: bytes) -> bool:
    return any(
        key.startswith(each.rpartition(b"/")[0] + b"/") for each in (*WRITABLE, *READ_ONLY)
    ) or key.startswith(
        (
            KEYS.claims + b"flyte/",
            KEYS.workers,
            KEYS.catalog + b"reserved/",
            KEYS.catalog + b"entries/",
        )
    )


def owned(lease: int) -> LeaseKind | None:
    return {OWN_LEASE: LeaseKind.SHORT, LONG_LEASE: LeaseKind.LONG}.get(lease)


def _holds(compares: tuple[pb.Compare, ...], key: bytes, target: int) -> set[int]:
    """The numbers that a field of a key has to be equal to."""
    field = "create_revision" if target == pb.Compare.CREATE else "lease"
    return {
        getattr(each, field)
        for each in compares
        if each.key == key
        and each.target == target
        and each.result == pb.Compare.EQUAL
        and each.range_end in (b"", key + b"\0")
    }


OWNED_AREAS = (KEYS.claims, KEYS.workers, KEYS.catalog + b"reserved/")


def _check_touched(operation: pb.RequestOp | pb.Compare, holds: tuple[pb.Compare, ...]) -> None:
    if isinstance(operation, pb.Compare):
        assert all(map(may_read, touched(operation.key, operation.range_end)))
    elif operation.HasField("request_range"):
        read = operation.request_range
        assert all(map(may_read, touched(read.key, read.range_end)))
    elif operation.HasField("request_put"):
        put = operation.request_put
        assert may_read(put.key)
        assert not put.key.startswith((KEYS.images, KEYS.runs, KEYS.run_tasks, KEYS.histories))
        if put.key.startswith(OWNED_AREAS):
            assert put.lease == OWN_LEASE
            assert 0 in _holds(holds, put.key, pb.Compare.CREATE)
        elif put.key.startswith(KEYS.catalog):
            assert put.lease in (OWN_LEASE, LONG_LEASE)
        else:
            assert put.lease == 0
    else:
        delete = operation.request_delete_range
        assert delete.range_end in (b"", delete.key + b"\0")
        assert delete.key.startswith((KEYS.aborts, KEYS.claims, KEYS.workers, KEYS.catalog))
        assert may_read(delete.key)
        if delete.key.startswith(OWNED_AREAS):
            assert _holds(holds, delete.key, pb.Compare.LEASE) & {0, OWN_LEASE, LONG_LEASE}


@given(transactions)
def test_a_transaction_that_passes_touches_allowed_keys_only(message: pb.TxnRequest) -> None:
    try:
        txn = wire.txn_request(message.SerializeToString())
        RIGHTS.check_txn(txn, owned)
    except (PermissionDenied, InvalidRequest):
        return
    # What is sent to etcd is the same request.
    for operation, holds in each_operation(pb.TxnRequest.FromString(encode(txn))):
        _check_touched(operation, holds)
    for operation, holds in each_operation(message):
        _check_touched(operation, holds)


@given(operations)
def test_a_single_operation_that_passes_touches_allowed_keys_only(operation: pb.RequestOp) -> None:
    message = pb.TxnRequest(success=[operation])
    try:
        RIGHTS.check_txn(wire.txn_request(message.SerializeToString()), owned)
    except (PermissionDenied, InvalidRequest):
        return
    _check_touched(operation, ())


@given(ranges)
def test_a_read_that_passes_touches_allowed_keys_only(message: pb.RangeRequest) -> None:
    try:
        RIGHTS.check_read(wire.range_request(message.SerializeToString()).keys)
    except PermissionDenied:
        return
    assert all(map(may_read, touched(message.key, message.range_end)))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_are_refused(body: bytes) -> None:
    for parse in (
        wire.range_request,
        wire.txn_request,
        wire.watch_request,
        wire.grant_request,
        wire.lease_request,
    ):
        try:
            parse(body)
        except InvalidRequest:
            continue


@pytest.mark.parametrize("key", [*WRITABLE, *LEASED], ids=repr)
async def test_what_a_worker_writes_is_allowed(key: bytes) -> None:
    lease = OWN_LEASE if key in LEASED else 0
    one = KeyRange.of_key(key)
    put = Txn([Compare.incarnation(key, 0)], [Put(key, b"", lease)], [Get(one)])
    RIGHTS.check_txn(put, owned)
    # Group commit adds a put, for etcd's quota, that is never done.
    RIGHTS.check_txn(nested([Write(put), Write(put)]), owned)
    if key in DELETABLE:
        own = Compare(key, CompareTarget.LEASE, CompareResult.EQUAL, lease)
        RIGHTS.check_txn(Txn((), [Txn([own], [Delete(one)])]), owned)


@pytest.mark.parametrize(
    "operation",
    [
        Put(LEASED[0], b"", OTHER_LEASE),
        Put(LEASED[0], b""),
        Put(LEASED[2], b"", -1),
        Put(LEASED[3], b"", OTHER_LEASE),
        Put(WRITABLE[0], b"", OWN_LEASE),
        Put(WRITABLE[0], b"", OTHER_LEASE),
        *(Put(key, b"") for key in READ_ONLY),
        *(Put(key, b"") for key in FORBIDDEN),
        *(Delete(KeyRange.of_key(key)) for key in (*WRITABLE[:2], *READ_ONLY, *FORBIDDEN)),
        *(Delete(KeyRange.of_prefix(key)) for key in DELETABLE),
        Delete(KeyRange(DELETABLE[0], b"\0")),
        *(Get(KeyRange.of_key(key)) for key in FORBIDDEN),
    ],
    ids=repr,
)
def test_what_a_worker_must_not_do_is_refused(operation: Operation) -> None:
    either = [Compare.incarnation(WRITABLE[0], 1)]
    for txn in (
        Txn((), [operation]),
        Txn(either, (), [operation]),
        Txn((), [Txn(either, (), [operation])]),
    ):
        with pytest.raises(NotForWorkers, match="permission denied"):
            RIGHTS.check_txn(txn, owned)


@pytest.mark.parametrize("key", OWNED, ids=repr)
def test_a_claim_is_created_and_deleted_by_its_owner_only(key: bytes) -> None:
    def compared(target: CompareTarget, operand: int, result: int = 0) -> Compare:
        return Compare(key, target, CompareResult(result), operand)

    absent, put = Compare.incarnation(key, 0), Put(key, b"", OWN_LEASE)
    delete = Delete(KeyRange.of_key(key))
    of_lease = CompareTarget.LEASE
    for txn in (
        Txn((), [put]),
        Txn([Compare.incarnation(key, 5)], [put]),
        Txn([absent], (), [put]),
        Txn([Compare.incarnation(WRITABLE[0], 0)], [put]),
        Txn([absent._replace(result=CompareResult.NOT_EQUAL)], [put]),
        Txn([absent._replace(range_end=key + b"x")], [put]),
        Txn([absent], [Put(key, b"", LONG_LEASE)]),
        Txn((), [delete]),
        Txn([Compare.incarnation(key, 5)], [delete]),
        Txn([compared(of_lease, OTHER_LEASE)], [delete]),
        Txn([compared(of_lease, OWN_LEASE)], (), [delete]),
        Txn([compared(of_lease, OWN_LEASE, CompareResult.NOT_EQUAL)], [delete]),
        Txn([compared(CompareTarget.VERSION, 0)], [delete]),
    ):
        with pytest.raises(NotForWorkers, match=r"the key .* of a worker"):
            RIGHTS.check_txn(Txn([Compare.incarnation(WRITABLE[0], 1)], [txn]), owned)
    for lease in (0, OWN_LEASE, LONG_LEASE):
        RIGHTS.check_txn(Txn([compared(of_lease, lease)], [delete]), owned)
    with pytest.raises(InvalidRequest, match="bytes"):
        RIGHTS.check_txn(Txn([absent], [put._replace(value=bytes(40_000))]), owned)


def test_a_branch_that_is_never_taken_has_empty_puts_only() -> None:
    for operation in (
        Put(WRITABLE[0], b"x"),
        Put(LEASED[0], b"", OWN_LEASE),
        Delete(KeyRange.of_key(DELETABLE[0])),
        Get(KeyRange.of_key(WRITABLE[0])),
    ):
        with pytest.raises(InvalidRequest, match="empty puts"):
            RIGHTS.check_txn(Txn((), (), [operation]), owned)
    with pytest.raises(NotForWorkers):
        RIGHTS.check_txn(Txn((), (), [Put(READ_ONLY[0], b"")]), owned)


def test_a_transaction_reads_and_compares_little() -> None:
    """Etcd does it before any other write, and collects the answer in its memory."""
    one, markers = KeyRange.of_key(WRITABLE[0]), KeyRange.of_prefix(KEYS.aborts + b"flyte/r1-")
    actions = KeyRange.of_prefix(KEYS.prefix + b"flyte/r1-")

    def compared(keys: KeyRange) -> Compare:
        return Compare(keys.start, CompareTarget.MOD_REVISION, CompareResult.LESS, 5, keys.end)

    for allowed in (
        Txn((), [Get(one)] * rights.MOST_GETS),
        Txn((), [Get(markers)] * rights.MOST_RANGES),
        Txn([compared(markers)] * rights.MOST_RANGES, ()),
        Txn([compared(actions)], [Get(one)]),
    ):
        RIGHTS.check_txn(allowed, owned)
    for refused in (
        Txn((), [Get(one)] * (rights.MOST_GETS + 1)),
        Txn((), [Txn((), [Get(markers)])] * (rights.MOST_RANGES + 1)),
        Txn([compared(markers)] * (rights.MOST_RANGES + 1), ()),
        Txn((), [Txn([compared(actions)], ())] * 2),
    ):
        # Group commit halves a group that is refused with this error.
        with pytest.raises(InvalidRequest, match="at most"):
            RIGHTS.check_txn(refused, owned)
    with pytest.raises(NotForWorkers, match="reads no range"):
        RIGHTS.check_txn(Txn((), [Get(actions)]), owned)


def test_reads_of_ranges_in_a_transaction_share_a_limit() -> None:
    wide = pb.RangeRequest(key=b"a", range_end=b"b")
    narrow = pb.RangeRequest(key=b"a", range_end=b"b", limit=7)
    single = pb.RangeRequest(key=b"a", range_end=b"a\0")
    inner = pb.TxnRequest(failure=[pb.RequestOp(request_range=narrow)])
    message = pb.TxnRequest(
        success=[pb.RequestOp(request_range=each) for each in (wide, single)],
        failure=[pb.RequestOp(request_txn=inner)],
    )
    txn = wire.txn_request(message.SerializeToString())
    gets = [each for each in txn.success if isinstance(each, Get)]
    assert [each.limit for each in gets] == [wire.MOST_IN_RANGES // 2, 0]
    (nested_txn,) = txn.failure
    assert isinstance(nested_txn, Txn)
    assert isinstance(nested_txn.failure[0], Get)
    assert nested_txn.failure[0].limit == 7


@pytest.mark.parametrize("watch_id", [0, -1])
def test_a_watcher_without_an_id_is_refused(watch_id: int) -> None:
    """Etcd would choose one, and nobody could count them."""
    create = pb.WatchCreateRequest(key=b"a", watch_id=watch_id)
    with pytest.raises(InvalidRequest, match="id above 0"):
        wire.watch_request(pb.WatchRequest(create_request=create).SerializeToString())


@pytest.mark.parametrize("prefix", [KEYS.prefix, KEYS.traces, KEYS.claims], ids=repr)
def test_a_worker_reads_all_of_a_namespace_and_no_other(prefix: bytes) -> None:
    RIGHTS.check_read(KeyRange.of_prefix(prefix + b"flyte/"))
    for wider in (
        KeyRange.of_prefix(prefix),
        KeyRange(prefix + b"flyte/", prefix + b"flyte0\0"),
        KeyRange(prefix + b"flyte.", prefix + b"flyte0"),
        KeyRange(prefix + b"flyte/a", b"\0"),
        KeyRange(prefix + b"flyte/a", prefix + b"flyte/a"),
    ):
        with pytest.raises(PermissionDenied, match="permission denied: a worker may not read"):
            RIGHTS.check_read(wider)
    WorkerRights(KEYS, None).check_read(KeyRange.of_prefix(prefix))


def test_deeper_and_larger_transactions_are_refused() -> None:
    txn = Txn((), [Get(KeyRange.of_key(WRITABLE[0]))])
    for _ in range(MOST_DEPTH - 1):
        txn = Txn((), [txn])
    RIGHTS.check_txn(txn, owned)
    with pytest.raises(InvalidRequest, match="nests at most"):
        RIGHTS.check_txn(Txn((), [txn]), owned)
    get = pb.RequestOp(request_range=pb.RangeRequest(key=WRITABLE[0]))
    inner = pb.TxnRequest(success=[get] * (wire.MOST_PARTS // 2))
    body = pb.TxnRequest(success=[pb.RequestOp(request_txn=inner)] * 2).SerializeToString()
    with pytest.raises(InvalidRequest, match="at most"):
        wire.txn_request(body)


def test_a_body_that_nests_without_end_is_refused() -> None:
    # Protobuf refuses to build it.
    body = b""
    for _ in range(5_000):
        inner = b"\x22" + wire_length(body) + body
        body = b"\x12" + wire_length(inner) + inner
    with pytest.raises(InvalidRequest, match="is not a TxnRequest"):
        wire.txn_request(body)


def wire_length(data: bytes) -> bytes:
    number, encoded = len(data), bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def test_a_prefix_with_the_keys_of_this_package_is_refused() -> None:
    with pytest.raises(ValueError, match="own keys"):
        WorkerRights(Keyspace(b"/etcd-actions/"), None)


@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(LeaseKind))
def test_a_lease_belongs_to_one_name(one: str, other: str, kind: LeaseKind) -> None:
    lease = new_lease_id(one, kind)
    assert 0 < lease < 2**63
    assert kind_of_lease(one, lease) is kind
    check_lease(lease, lambda each: kind_of_lease(one, each))
    if one != other:
        with pytest.raises(PermissionDenied, match="another client"):
            check_lease(lease, lambda each: kind_of_lease(other, each))


@pytest.mark.parametrize("lease", [0, -1, 1, 2**32, 2**63, 2**64])
def test_other_numbers_are_nobodys_lease(lease: int) -> None:
    with pytest.raises(PermissionDenied):
        check_lease(lease, lambda each: kind_of_lease("w", each))
