"""Members of a group commit: the keys of each, and whether they overlap those of its group.

The check of a member takes a few look-ups by hash and by bisection, whatever the size of the group:
see :class:`Touched`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import Final

import trio

from etcd_actions.etcd.api import (
    Compare,
    Delete,
    Get,
    KeyRange,
    OperationResult,
    Put,
    Txn,
    TxnResult,
)

_OVERHEAD: Final = 32
"""About the size in bytes of an encoded operation or compare without its keys and value."""


class Waiting:
    """A task that waits for the answer to its transaction."""

    __slots__ = ("error", "result", "task")

    def __init__(self) -> None:
        self.result: TxnResult | None = None
        self.error: Exception | None = None
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()

    async def answer(self) -> TxnResult:
        """Wait for the answer. After a cancellation the transaction may be applied.

        Raises:
            Exception: The error of :meth:`fail`.
        """
        await trio.lowlevel.wait_task_rescheduled(self._abandon)
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def succeed(self, result: TxnResult) -> None:
        """Wake the task with its result."""
        if self.task is not None:
            self.result = result
            trio.lowlevel.reschedule(self.task)
            self.task = None

    def fail(self, error: Exception) -> None:
        """Wake the task with an error, unless it was woken before."""
        if self.task is not None:
            self.error = error
            trio.lowlevel.reschedule(self.task)
            self.task = None

    def _abandon(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """The task was cancelled."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Write(Waiting):
    """A transaction that may write, with the keys that it touches.

    Most are a compare-and-swap of one key: then ``key`` is the only key that it touches, and
    ``touches`` is None.
    """

    __slots__ = ("key", "operations", "puts", "size", "touches", "txn")

    def __init__(self, txn: Txn) -> None:
        super().__init__()
        self.txn = txn
        self.touches: Footprint | None = None
        self.key = _only_key(txn)
        if self.key:
            change = txn.success[0]
            self.puts = type(change) is Put
            self.operations = 1
            self.size = 128 + 3 * len(self.key)
            if type(change) is Put:
                self.size += len(change.value)
        else:
            self.touches = touches = Footprint()
            touches.add(txn)
            self.puts = touches.a_put is not None
            self.operations = _operations(txn)
            self.size = touches.size

    @property
    def name(self) -> bytes:
        """A key that identifies it, when it is retried."""
        if self.touches is None:
            return self.key
        return min(self.touches.written or self.touches.read, default=b"")

    @property
    def counted(self) -> Put | None:
        """A put that etcd counts for its quota; None for a transaction without puts."""
        if self.touches is None:
            return Put(self.key, b"") if self.puts else None
        put = self.touches.a_put
        return None if put is None else Put(put.key, b"")


class Read(Waiting):
    """A transaction that only reads, without a compare."""

    __slots__ = ("gets",)

    def __init__(self, gets: Sequence[Get]) -> None:
        super().__init__()
        self.gets = gets

    @property
    def name(self) -> bytes:
        """A key that identifies it, when it is retried."""
        return min((get.keys.start for get in self.gets), default=b"")

    def take(self, answers: dict[Get, OperationResult], revision: int) -> None:
        """Wake the task with its part of the answers to a group."""
        self.succeed(TxnResult(True, [answers[get] for get in self.gets], revision))


def reads_of(txn: Txn) -> Sequence[Get] | None:
    """The reads of a transaction that only reads, without a compare; None for any other."""
    compares, success, failure = txn
    if compares or failure or not success:
        return None
    for operation in success:
        if type(operation) is not Get:
            return None
    return success  # type: ignore[return-value]


def is_guarded_read(txn: Txn) -> bool:
    """Whether a transaction compares, and only reads on both branches."""
    return bool(txn.compare) and all(
        type(operation) is Get for operation in (*txn.success, *txn.failure)
    )


class Footprint:
    """The keys that a transaction may write, and those that it may read or compare.

    Attributes:
        written: Keys that it puts or deletes.
        written_ranges: Ranges that it deletes.
        read: Keys that it compares or reads.
        read_ranges: Ranges that it compares or reads.
        a_put: One of its puts; None if it has none.
        size: About the size of the encoded transaction, in bytes.
    """

    __slots__ = ("a_put", "read", "read_ranges", "size", "written", "written_ranges")

    def __init__(self) -> None:
        self.written: set[bytes] = set()
        self.written_ranges: set[KeyRange] = set()
        self.read: set[bytes] = set()
        self.read_ranges: set[KeyRange] = set()
        self.a_put: Put | None = None
        self.size = 0

    def add(self, txn: Txn) -> None:
        """Add all that a transaction may touch, on either branch."""
        self.size += 16
        for compare in txn.compare:
            self._look(_compared(compare))
            if isinstance(compare.operand, bytes):
                self.size += len(compare.operand)
        for branch in (txn.success, txn.failure):
            for operation in branch:
                match operation:
                    case Put(key, value):
                        self.written.add(key)
                        self.a_put = operation
                        self.size += _OVERHEAD + len(key) + len(value)
                    case Delete(keys):
                        if keys.is_one_key:
                            self.written.add(keys.start)
                        else:
                            self.written_ranges.add(keys)
                        self.size += _OVERHEAD + len(keys.start) + len(keys.end)
                    case Get(keys):
                        self._look(keys)
                    case Txn():
                        self.add(operation)

    def _look(self, keys: KeyRange) -> None:
        start, end = keys
        if keys.is_one_key:
            self.read.add(start)
        else:
            self.read_ranges.add(keys)
        self.size += _OVERHEAD + len(start) + len(end)


class Touched:
    """The keys that the members of a group write, and those that they read or compare.

    A key is found by its hash. A range is found among sorted keys, and a key or a range among
    sorted ranges that do not overlap, by bisection: n members need O(n log n) comparisons.
    """

    def __init__(self) -> None:
        self._written = _SortedKeys()
        self._read = _SortedKeys()
        self._written_spans = _Spans()
        self._read_spans = _Spans()

    def add(self, member: Write) -> bool:
        """Add the keys of a member unless they overlap those here; return whether it did."""
        touches = member.touches
        if touches is None:
            key = member.key
            if self._meets_written_key(key):
                return False
            self._written.add(key)
            return True
        if self._meets(touches):
            return False
        for key in touches.written:
            self._written.add(key)
        for key in touches.read:
            self._read.add(key)
        for keys in touches.written_ranges:
            self._written_spans.add(keys)
        for keys in touches.read_ranges:
            self._read_spans.add(keys)
        return True

    def _meets_written_key(self, key: bytes) -> bool:
        """Whether a key, which another member writes, is written or read here."""
        return (
            key in self._written.keys
            or key in self._read.keys
            or key in self._read_spans
            or key in self._written_spans
        )

    def _meets(self, other: Footprint) -> bool:
        """Whether one of the two writes a key that the other writes, reads or compares."""
        written, written_spans = self._written, self._written_spans
        return (
            any(map(self._meets_written_key, other.written))
            or any(key in written.keys or key in written_spans for key in other.read)
            or any(
                written.is_any_in(keys) or written_spans.is_any_in(keys)
                for keys in other.read_ranges
            )
            or any(
                part.is_any_in(keys)
                for keys in other.written_ranges
                for part in (written, self._read, written_spans, self._read_spans)
            )
        )


class _SortedKeys:
    """A set of keys that can be searched by ranges.

    Attributes:
        keys: The set.
    """

    __slots__ = ("_sorted", "keys")

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self._sorted: list[bytes] = []

    def add(self, key: bytes) -> None:
        if key not in self.keys:
            self.keys.add(key)
            insort(self._sorted, key)

    def is_any_in(self, keys: KeyRange) -> bool:
        at = bisect_left(self._sorted, keys.start)
        return at < len(self._sorted) and self._sorted[at] < keys.end


class _Spans:
    """A union of ranges: sorted, without overlaps."""

    __slots__ = ("_ends", "_known", "_starts")

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []
        self._known: set[KeyRange] = set()

    def add(self, keys: KeyRange) -> None:
        start, end = keys
        if keys in self._known or start >= end:
            return
        self._known.add(keys)
        # Merge it with the ranges that overlap or adjoin it.
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def __contains__(self, key: bytes) -> bool:
        at = bisect_right(self._starts, key)
        return at > 0 and key < self._ends[at - 1]

    def is_any_in(self, keys: KeyRange) -> bool:
        """Whether a range overlaps one of these."""
        start, end = keys
        at = bisect_left(self._starts, end)
        return at > 0 and start < end and start < self._ends[at - 1]


def nested(group: Sequence[Write]) -> Txn:
    """All members in one transaction, with a put that etcd counts for its quota."""
    counted = next((put for member in group if (put := member.counted) is not None), None)
    never = () if counted is None else (counted,)
    return Txn((), [member.txn for member in group], never)


def _only_key(txn: Txn) -> bytes:
    """The one key of a compare-and-swap or compare-and-delete; empty for any other."""
    compares, success, failure = txn
    if len(compares) != 1 or len(success) != 1 or len(failure) > 1:
        return b""
    compare, change = compares[0], success[0]
    key = compare.key
    if compare.range_end or type(compare.operand) is bytes:
        return b""
    if type(change) is Put:
        if change.key != key:
            return b""
    elif type(change) is not Delete or change.keys.start != key or not change.keys.is_one_key:
        return b""
    if failure:
        other = failure[0]
        if type(other) is not Get or other.keys.start != key or not other.keys.is_one_key:
            return b""
    return key


def _compared(compare: Compare) -> KeyRange:
    return KeyRange(compare.key, compare.range_end or compare.key + b"\0")


def _operations(txn: Txn) -> int:
    """The number of operations of a transaction, as etcd counts them for --max-txn-ops."""
    inner = max(
        (_operations(each) for each in (*txn.success, *txn.failure) if isinstance(each, Txn)),
        default=0,
    )
    return inner + max(len(txn.compare), len(txn.success), len(txn.failure))
