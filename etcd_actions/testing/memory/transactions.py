"""Transactions: etcd's checks (``v3rpc/key.go``) and its execution (``apply.go``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    DeleteResult,
    Get,
    KeyRange,
    KeyValue,
    Operation,
    OperationResult,
    Put,
    PutResult,
    Txn,
    TxnResult,
)
from etcd_actions.testing.memory.keyspace import Keyspace, Refused, contains

MOST_OPERATIONS = 128

_FIELDS: dict[CompareTarget, Callable[[KeyValue], int | bytes]] = {
    CompareTarget.VERSION: lambda kv: kv.version,
    CompareTarget.CREATE_REVISION: lambda kv: kv.create_revision,
    CompareTarget.MOD_REVISION: lambda kv: kv.mod_revision,
    CompareTarget.VALUE: lambda kv: kv.value,
    CompareTarget.LEASE: lambda kv: kv.lease,
}


def check(txn: Txn) -> None:
    """Check a transaction as etcd does before it evaluates a compare.

    Raises:
        Refused: A key is missing or twice in one branch, or there are too many operations.
    """
    _check_counts(txn, MOST_OPERATIONS)
    for branch in (txn.success, txn.failure):
        _check_keys(branch)


def _check_counts(txn: Txn, most: int) -> None:
    count = max(map(len, (txn.compare, txn.success, txn.failure)))
    if count > most:
        raise Refused("etcdserver: too many operations in txn request")
    operations = [*txn.success, *txn.failure]
    for operation in operations:
        if isinstance(operation, Txn):
            # Operations of nested levels are added up, those of transactions on one level are not.
            _check_counts(operation, most - count)
    starts = [compare.key for compare in txn.compare]
    starts += [
        operation.key if isinstance(operation, Put) else operation.keys.start
        for operation in operations
        if not isinstance(operation, Txn)
    ]
    if not all(starts):
        raise Refused("etcdserver: key is not provided")


def _check_keys(branch: Iterable[Operation]) -> tuple[set[bytes], list[KeyRange]]:
    """The keys that a branch may put, and the ranges that it may delete."""
    operations = list(branch)
    deleted = [each.keys for each in operations if isinstance(each, Delete)]
    put: set[bytes] = set()

    def add(keys: Iterable[bytes], others: set[bytes]) -> None:
        for key in keys:
            if key in others or any(contains(gone, key) for gone in deleted):
                raise Refused("etcdserver: duplicate key given in txn request")
        put.update(keys)

    for nested in (each for each in operations if isinstance(each, Txn)):
        (puts, deletes), (other_puts, other_deletes) = (
            _check_keys(nested.success),
            _check_keys(nested.failure),
        )
        before = set(put)
        add(puts, before)
        add(other_puts, before)
        deleted += [*deletes, *other_deletes]
    for each in operations:
        if isinstance(each, Put):
            add([each.key], put)
    return put, deleted


def puts_anything(txn: Txn) -> bool:
    """Whether a branch, taken or not, has a put: without space etcd refuses such a transaction."""
    return any(
        isinstance(each, Put) or (isinstance(each, Txn) and puts_anything(each))
        for each in (*txn.success, *txn.failure)
    )


Branches: TypeAlias = tuple[bool, "list[Branches]"]
"""Whether the compares held, and the same of the transactions in the branch that is taken."""


def decide(keyspace: Keyspace, txn: Txn) -> Branches:
    """Choose all branches, by the state before the transaction."""
    holds = all(_holds(keyspace, compare) for compare in txn.compare)
    branch = txn.success if holds else txn.failure
    return holds, [decide(keyspace, each) for each in branch if isinstance(each, Txn)]


def leases_of(txn: Txn, branches: Branches) -> set[int]:
    """The leases that the branches taken put keys on."""
    holds, nested = branches
    following = iter(nested)
    leases: set[int] = set()
    for each in txn.success if holds else txn.failure:
        if isinstance(each, Txn):
            leases |= leases_of(each, next(following))
        elif isinstance(each, Put):
            leases.add(each.lease)
    return leases - {0}


def apply(
    txn: Txn,
    branches: Branches,
    keyspace: Keyspace,
    put: Callable[[Put], None],
    delete: Callable[[KeyRange], int],
) -> TxnResult:
    """Execute the chosen branches. Results have the revision 0; see :func:`stamped`."""
    holds, nested = branches
    following = iter(nested)
    responses: list[OperationResult] = []
    for each in txn.success if holds else txn.failure:
        match each:
            case Get(keys, limit, keys_only):
                responses.append(keyspace.range(keys, limit=limit, keys_only=keys_only))
            case Put():
                put(each)
                responses.append(PutResult(0))
            case Delete(keys):
                responses.append(DeleteResult(delete(keys), 0))
            case Txn():
                responses.append(apply(each, next(following), keyspace, put, delete))
    return TxnResult(holds, responses, 0)


def stamped(result: TxnResult, revision: int) -> TxnResult:
    """A result, and all in it, with the revision of the outermost transaction."""
    return TxnResult(
        result.succeeded,
        [
            stamped(each, revision)
            if isinstance(each, TxnResult)
            else each._replace(revision=revision)
            for each in result.responses
        ],
        revision,
    )


def _holds(keyspace: Keyspace, compare: Compare) -> bool:
    found: Sequence[KeyValue] = list(keyspace.find(KeyRange(compare.key, compare.range_end)))
    if not found:
        # No value equals that of a key that does not exist.
        if compare.target is CompareTarget.VALUE:
            return False
        found = [KeyValue(compare.key, b"", 0, 0, 0)]
    read, operand = _FIELDS[compare.target], compare.operand
    return all(_compares(compare.result, read(kv), operand) for kv in found)


def _compares(result: CompareResult, value: int | bytes, operand: int | bytes) -> bool:
    match result:
        case CompareResult.EQUAL:
            return value == operand
        case CompareResult.NOT_EQUAL:
            return value != operand
        case CompareResult.GREATER:
            # Both are numbers, or both are bytes, by the target.
            return value > operand  # type: ignore[operator]
        case CompareResult.LESS:
            return value < operand  # type: ignore[operator]
