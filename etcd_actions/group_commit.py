"""Group commit: many small transactions in one, each succeeding or failing by itself.

etcd spends most of a small transaction on its log. Transactions that wait while others are
being written go together, nested in an outer one without a guard: one entry of the log, one
sync of the disk. A group is formed when there is room for one in flight; there is no timer.

- **Members do not meet.** All compares of a group, nested ones too, see the state before it,
  and etcd refuses a group that puts one key twice. So what one member writes, no other of its
  group writes, compares or reads; a member that meets another waits for the next group.
  Groups in flight side by side need no such care: each is a transaction of etcd, one is done
  after the other, whichever comes first, as if their members had been sent on their own.
  Who waits for an answer before asking for the next transaction gets them in that order.
- **One error, one member.** What is true of all (etcd is away, or full) is told to all. Any
  other error may be one member's doing (a lease that is gone, a forbidden key): nothing was
  written, so the group is halved until the culprit is alone.
- **A failure stays inside.** What is raised unexpectedly while a group is formed, sent or
  answered fails the members of that group, as of unknown outcome where it may have been sent,
  and nothing else. One of them may be the cause, and it is not known which: each is sent alone
  when it is tried again, so it fails alone from then on.
- **The quota counts.** etcd does not count what nested transactions put, and would write
  beyond its quota. So a group that puts has a put in the branch that is never taken, which is
  counted. When there is no space those that only delete are sent without the others.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import trio

from etcd_actions.containment import Containment, describe
from etcd_actions.errors import EtcdError, NoSpace, OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import Compare, Delete, Etcd, Get, KeyRange, Put, Txn, TxnResult
from etcd_actions.histogram import Distribution, Histogram

_MOST_MEMBERS: Final = 100
_MOST_OPERATIONS: Final = 128 - _MOST_MEMBERS
"""Of a member: etcd's --max-txn-ops counts the group's own and its largest member's together."""
_MOST_BYTES: Final = 1024 * 1024
"""Of a group: etcd's --max-request-bytes is 1.5 MiB."""
_MOST_SET_ASIDE: Final = 100
"""How many that meet others are passed over in search of more for a group."""
_IN_FLIGHT: Final = 2
_MOST_SUSPECTS: Final = 1000


@dataclass(frozen=True, kw_only=True)
class GroupCommitStatistics:
    """What was written so far.

    Attributes:
        members: Number of transactions that etcd answered.
        groups: Number of requests that they went in.
        sizes: How many of these had 1 transaction, 2, 3 to 4, 5 to 8 and so on, by powers of two.
        largest: The most transactions in one request.
        halved: How often a group was refused and halved.
        waiting: Number of transactions that wait to be sent.
        times: How long these requests took.
    """

    members: int
    groups: int
    sizes: tuple[int, ...]
    largest: int
    halved: int
    waiting: int
    times: Distribution


@asynccontextmanager
async def open_group_commit(
    etcd: Etcd, containment: Containment | None = None
) -> AsyncIterator[GroupCommit]:
    """Write small transactions together; see the module's text.

    Leaving the context finishes what waits. An exception or a cancellation gives it up: what
    was sent may have been applied, what waits is not done, and whoever still waits is told
    so.

    Args:
        etcd: The connection.
        containment: Where unexpected failures are counted; by default one of its own.
    """
    group_commit = GroupCommit(etcd, containment or Containment())
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(_IN_FLIGHT):
                nursery.start_soon(group_commit.write)
            try:
                yield group_commit
            finally:
                group_commit.close()
    finally:
        group_commit.give_up()


class GroupCommit:
    """Made by :func:`open_group_commit`."""

    def __init__(self, etcd: Etcd, containment: Containment) -> None:
        self._etcd = etcd
        self._containment = containment
        # What was in a group that failed unexpectedly, by a key of it: it is sent alone.
        self._suspects: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: deque[_Member] = deque()
        self._idle = trio.lowlevel.ParkingLot()
        self._closed = False
        self._members = 0
        self._groups = 0
        self._sizes = [0] * ((_MOST_MEMBERS - 1).bit_length() + 1)
        self._largest = 0
        self._halved = 0
        self._times = Histogram()

    def statistics(self) -> GroupCommitStatistics:
        """See :class:`GroupCommitStatistics`."""
        return GroupCommitStatistics(
            members=self._members,
            groups=self._groups,
            sizes=tuple(self._sizes),
            largest=self._largest,
            halved=self._halved,
            waiting=sum(member.task is not None for member in self._waiting),
            times=self._times.read(),
        )

    async def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction, with others or alone; as :meth:`~etcd_actions.etcd.api.Etcd.txn`.

        One that is cancelled before it was sent is not done; after that it may have been
        applied. The others of its group are not touched by that.

        Raises:
            EtcdError: etcd did not do it.
            trio.ClosedResourceError: The context was left; nothing was sent.
        """
        if self._closed:
            raise trio.ClosedResourceError("the group commit is closed")
        member = _Member(txn)
        if member.size > _MOST_BYTES or member.operations > _MOST_OPERATIONS:
            return await self._etcd.txn(txn)
        if self._suspects and member.name in self._suspects:
            result = await self._etcd.txn(txn)
            self._suspects.pop(member.name, None)
            return result
        self._waiting.append(member)
        self._idle.unpark()
        await trio.lowlevel.wait_task_rescheduled(member.abandon)
        if member.error is not None:
            raise member.error
        assert member.result is not None
        return member.result

    async def write(self) -> None:
        """Send groups, until closed and nothing waits. Run by :func:`open_group_commit`."""
        while True:
            group: list[_Member] = []
            try:
                if not self._next_group(group):
                    if self._closed and not self._waiting:
                        return
                    await self._idle.park()
                    continue
                await self._commit(group)
            except BaseException as error:
                failure = OutcomeUnknown(f"a group of transactions failed: {describe(error)}")
                self._suspect(group)
                _fail_all(group, failure)
                self._containment.caught("transaction_group", f"of {len(group)}", error)

    def close(self) -> None:
        """Take no more transactions."""
        self._closed = True
        self._idle.unpark_all()

    def give_up(self) -> None:
        """Tell those that still wait that nothing will come of it."""
        while self._waiting:
            self._waiting.popleft().fail(Unavailable("the group commit was given up"))

    def _suspect(self, group: Iterable[_Member]) -> None:
        """Send the members of a group alone when they are tried again."""
        for member in group:
            self._suspects[member.name] = None
        while len(self._suspects) > _MOST_SUSPECTS:
            self._suspects.popitem(last=False)

    def _next_group(self, group: list[_Member]) -> bool:
        """Take from those that wait, oldest first, what goes together; whether there is any.

        Each goes into ``group`` before it is looked at, so that it is told if that fails.
        """
        aside: list[_Member] = []
        try:
            self._fill(group, aside)
        finally:
            if aside:
                self._waiting.extendleft(reversed(aside))
            if self._waiting:
                self._idle.unpark()
        return bool(group)

    def _fill(self, group: list[_Member], aside: list[_Member]) -> None:
        keys = _Keys()
        size = 0
        waiting = self._waiting
        while waiting and len(group) < _MOST_MEMBERS and len(aside) < _MOST_SET_ASIDE:
            member = waiting.popleft()
            if member.task is None:
                continue
            group.append(member)
            if (size and size + member.size > _MOST_BYTES) or not keys.add(member):
                aside.append(group.pop())
                continue
            size += member.size

    async def _commit(self, group: Sequence[_Member]) -> None:
        """Write a group, and tell its members."""
        began = perf_counter()
        try:
            if len(group) == 1:
                results = [await self._etcd.txn(group[0].txn)]
            else:
                answer = await self._etcd.txn(_grouped(group))
                results = [each for each in answer.responses if isinstance(each, TxnResult)]
                if len(results) != len(group):
                    raise OutcomeUnknown(
                        f"etcd answered {len(results)} of {len(group)} transactions of a group"
                    )
        except NoSpace as error:
            put = [member for member in group if member.puts]
            _fail_all(put or group, error)
            if put and len(put) < len(group):
                await self._commit([member for member in group if not member.puts])
        except Unavailable as error:
            _fail_all(group, error)
        except EtcdError as error:
            if len(group) == 1:
                group[0].fail(error)
                return
            self._halved += 1
            middle = len(group) // 2
            await self._commit(group[:middle])
            await self._commit(group[middle:])
        else:
            self._times.observe(perf_counter() - began)
            self._members += len(group)
            self._groups += 1
            self._sizes[(len(group) - 1).bit_length()] += 1
            self._largest = max(self._largest, len(group))
            for member, result in zip(group, results, strict=True):
                member.succeed(result)


class _Member:
    """A transaction, who waits for it, and what matters of it to a group.

    Most are a compare-and-swap of one key: that ``key`` is all they write and look at.
    """

    __slots__ = (
        "error",
        "key",
        "keys",
        "operations",
        "puts",
        "result",
        "size",
        "task",
        "txn",
    )

    def __init__(self, txn: Txn) -> None:
        self.txn = txn
        self.result: TxnResult | None = None
        self.error: Exception | None = None
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        self.keys: _Keys | None = None
        self.key = _only_key(txn)
        if self.key:
            change = txn.success[0]
            self.puts = type(change) is Put
            self.operations = 1
            self.size = 128 + 3 * len(self.key)
            if type(change) is Put:
                self.size += len(change.value)
        else:
            self.keys = keys = _Keys()
            keys.add_txn(txn)
            self.puts = keys.a_put is not None
            self.operations = _operations(txn)
            self.size = keys.size

    @property
    def name(self) -> bytes:
        """A key that it is known by, when it is tried again."""
        if self.keys is None:
            return self.key
        keys = self.keys
        return min(keys.written or keys.read, default=b"")

    def succeed(self, result: TxnResult) -> None:
        """Wake who waits."""
        if self.task is not None:
            self.result = result
            trio.lowlevel.reschedule(self.task)
            self.task = None

    def fail(self, error: Exception) -> None:
        """Wake who waits; once only."""
        if self.task is not None:
            self.error = error
            trio.lowlevel.reschedule(self.task)
            self.task = None

    def abandon(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """Nobody waits any more."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class _Keys:
    """The keys that transactions write, and those that they look at."""

    __slots__ = ("a_put", "read", "read_ranges", "size", "written", "written_ranges")

    def __init__(self) -> None:
        self.written: set[bytes] = set()
        self.written_ranges: list[KeyRange] = []
        self.read: set[bytes] = set()
        self.read_ranges: list[KeyRange] = []
        self.a_put: Put | None = None
        self.size = 0
        """About what the transactions have on the wire."""

    def add(self, member: _Member) -> bool:
        """Add a member's keys, unless it meets those that are here; whether it was added."""
        key, keys = member.key, member.keys
        if keys is not None:
            if self._hit_by(keys) or keys._hit_by(self):
                return False
            self.written |= keys.written
            self.written_ranges += keys.written_ranges
            self.read |= keys.read
            self.read_ranges += keys.read_ranges
            return True
        if key in self.written or key in self.read:
            return False
        ranges = (*self.written_ranges, *self.read_ranges)
        if ranges and any(key in each for each in ranges):
            return False
        self.written.add(key)
        return True

    def _hit_by(self, other: _Keys) -> bool:
        """Whether the other writes what is read or written here."""
        if not other.written.isdisjoint(self.written) or not other.written.isdisjoint(self.read):
            return True
        ranges = (*self.written_ranges, *self.read_ranges)
        if ranges and any(key in each for each in ranges for key in other.written):
            return True
        for written in other.written_ranges:
            if any(key in written for key in self.written) or any(
                key in written for key in self.read
            ):
                return True
            if any(written.start < each.end and each.start < written.end for each in ranges):
                return True
        return False

    def add_txn(self, txn: Txn) -> None:
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
                        self.size += 32 + len(key) + len(value)
                    case Delete(keys):
                        if _is_one_key(keys):
                            self.written.add(keys.start)
                        else:
                            self.written_ranges.append(keys)
                        self.size += 32 + len(keys.start) + len(keys.end)
                    case Get(keys):
                        self._look(keys)
                    case Txn():
                        self.add_txn(operation)

    def _look(self, keys: KeyRange) -> None:
        if _is_one_key(keys):
            self.read.add(keys.start)
        else:
            self.read_ranges.append(keys)
        self.size += 32 + len(keys.start) + len(keys.end)


def _fail_all(members: Iterable[_Member], error: EtcdError) -> None:
    for member in members:
        # Raised in several tasks, each copy gets the traceback of its own.
        member.fail(_copy(error))


def _copy(error: EtcdError) -> EtcdError:
    try:
        return copy.copy(error)
    except Exception:
        # An error whose constructor does not take its own arguments: it has to do for all.
        return error


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
    elif type(change) is not Delete or change.keys.start != key or not _is_one_key(change.keys):
        return b""
    if failure:
        other = failure[0]
        if type(other) is not Get or other.keys.start != key or not _is_one_key(other.keys):
            return b""
    return key


def _is_one_key(keys: KeyRange) -> bool:
    return len(keys.end) == len(keys.start) + 1 and keys.end == keys.start + b"\0"


def _compared(compare: Compare) -> KeyRange:
    return KeyRange(compare.key, compare.range_end or compare.key + b"\0")


def _operations(txn: Txn) -> int:
    """How much of etcd's budget of operations a transaction takes, as etcd counts."""
    inner = max(
        (_operations(each) for each in (*txn.success, *txn.failure) if isinstance(each, Txn)),
        default=0,
    )
    return inner + max(len(txn.compare), len(txn.success), len(txn.failure))


def _grouped(group: Sequence[_Member]) -> Txn:
    """The members in one transaction, with something for the quota to count."""
    put = next((member for member in group if member.puts), None)
    if put is None:
        counted: tuple[Put, ...] = ()
    elif put.keys is None:
        counted = (Put(put.key, b""),)
    else:
        assert put.keys.a_put is not None
        counted = (Put(put.keys.a_put.key, b""),)
    return Txn((), [member.txn for member in group], counted)
