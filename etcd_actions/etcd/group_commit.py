"""Group commit: many small transactions in one, each succeeding or failing by itself.

etcd spends most of a small transaction on its log. Transactions that wait while others are
being written go together, nested in an outer one without a guard: one entry of the log, one
sync of the disk. A group is formed when another may be in flight; there is no timer.

- **Members do not overlap.** All compares of a group, nested ones too, use the state before the
  group, and etcd refuses a group that puts one key twice. So no member of a group writes, compares
  or reads a key that another member writes; a member that overlaps one waits for the next group.
  Groups in flight at the same time may overlap: etcd does one transaction after the other. A task
  that waits for an answer before it sends the next transaction gets the answers in that order.
- **Reads are not proposals.** etcd writes each transaction that nests others to its log, also one
  that only reads. So transactions that only read, without a compare, have groups of their own: one
  transaction with all reads side by side, equal ones once, which etcd answers without its log. A
  transaction that compares and only reads is sent alone for the same reason.
- **One error, one member.** An error of the store (etcd is unavailable, or full) is raised for all
  members. Any other error may be caused by one member (an expired lease, a forbidden key). Nothing
  was written then, so the group is halved until that member is alone.
- **A failure stays inside.** An unexpected exception while a group is formed, sent or answered
  fails the members of that group, as of unknown outcome if it may have been sent, and nothing else.
  Any member may be the cause, so each is sent alone when it is retried.
- **The quota counts.** etcd does not count the puts of nested transactions, and would write beyond
  its quota. So a group with puts also has a put in the branch that is never taken, which etcd
  counts. If there is no space, the members that only delete are sent without the others.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Generic, TypeVar

import trio

from etcd_actions._internal.containment import Containment, describe
from etcd_actions._internal.histogram import Distribution, Histogram
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import EtcdError, NoSpace, OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import Etcd, Get, OperationResult, RangeResult, Txn, TxnResult
from etcd_actions.etcd.group_members import (
    Read,
    Touched,
    Waiting,
    Write,
    is_guarded_read,
    nested,
    reads_of,
)

_MOST_MEMBERS: Final = 100
_MOST_OPERATIONS: Final = 128 - _MOST_MEMBERS
"""The most operations of a member: etcd's --max-txn-ops is 128, for the operations of the group and
of its largest member together."""
_MOST_BYTES: Final = 1024 * 1024
"""The most bytes of a group: etcd's --max-request-bytes is 1.5 MiB."""
_MOST_ANSWERED: Final = 4 * 1024 * 1024
"""The most bytes of values in the answer to a group of reads, estimated by the last answer."""
_MOST_SET_ASIDE: Final = 100
"""The most overlapping members that are left for the next group while a group is filled."""
_IN_FLIGHT: Final = 2
"""Groups of writes in flight at a time; as many of reads."""
_MOST_SUSPECTS: Final = 1000
"""The most members of failed groups that are kept to be sent alone."""

_Any = TypeVar("_Any", Write, Read)


@dataclass(frozen=True, kw_only=True)
class GroupCommitStatistics:
    """The counts of transactions, reads among them.

    Attributes:
        members: Number of transactions that etcd answered.
        groups: Number of requests that carried them.
        sizes: Number of requests with 1 transaction, 2, 3 to 4, 5 to 8 and so on, by powers of two.
        largest: The most transactions in one request.
        halved: How often a group was refused and halved.
        waiting: Number of transactions that wait to be sent.
        times: How long these requests took, in seconds.
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
    """Write small transactions together; see the module docstring.

    Leaving the context sends the transactions that wait. After an exception or a cancellation the
    transactions in flight may have been applied, those that wait are not sent, and the tasks that
    wait for them get an error.

    Args:
        etcd: The connection.
        containment: Counts unexpected failures; by default one of its own.
    """
    group_commit = GroupCommit(etcd, containment or Containment())
    try:
        async with owned_tasks("the group commit") as nursery:
            for _ in range(_IN_FLIGHT):
                nursery.start_soon(group_commit.write)
                nursery.start_soon(group_commit.read)
            try:
                yield group_commit
            finally:
                group_commit.close()
    finally:
        group_commit.give_up()


class GroupCommit:
    """Sends transactions together; :func:`open_group_commit` makes it."""

    def __init__(self, etcd: Etcd, containment: Containment) -> None:
        self._etcd = etcd
        self._containment = containment
        # A key of each member of groups that failed unexpectedly: such a member is sent alone.
        self._suspects: OrderedDict[bytes, None] = OrderedDict()
        self._writes: _SendQueue[Write] = _SendQueue()
        self._reads: _SendQueue[Read] = _SendQueue()
        self._closed = False
        self._counts = _Counters()
        self._most_gets = _MOST_MEMBERS

    def statistics(self) -> GroupCommitStatistics:
        """The present counts; see :class:`GroupCommitStatistics`."""
        counts = self._counts
        return GroupCommitStatistics(
            members=counts.members,
            groups=counts.groups,
            sizes=tuple(counts.sizes),
            largest=counts.largest,
            halved=counts.halved,
            waiting=self._writes.count() + self._reads.count(),
            times=counts.times.read(),
        )

    async def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction, with others or alone; as :meth:`~etcd_actions.etcd.api.Etcd.txn`.

        A transaction that is cancelled before it is sent is not done; afterwards it may be applied.
        A cancellation does not affect the other members of the group.

        Raises:
            EtcdError: etcd refused it, or was not reached.
            trio.ClosedResourceError: The context was left; nothing was sent.
        """
        if self._closed:
            raise trio.ClosedResourceError("the group commit is closed")
        gets = reads_of(txn)
        if gets is not None:
            if len(gets) > _MOST_MEMBERS:
                return await self._etcd.txn(txn)
            read = Read(gets)
            return await self._answer(read, self._reads, txn)
        if is_guarded_read(txn):
            return await self._etcd.txn(txn)
        member = Write(txn)
        if member.size > _MOST_BYTES or member.operations > _MOST_OPERATIONS:
            return await self._etcd.txn(txn)
        return await self._answer(member, self._writes, txn)

    async def get(self, get: Get) -> RangeResult:
        """Read, with others or alone.

        Raises:
            EtcdError: etcd refused it, or was not reached.
            trio.ClosedResourceError: The context was left; nothing was sent.
        """
        (answer,) = (await self.txn(Txn((), (get,)))).responses
        assert isinstance(answer, RangeResult)
        return answer

    async def _answer(self, member: _Any, line: _SendQueue[_Any], txn: Txn) -> TxnResult:
        if self._suspects and member.name in self._suspects:
            result = await self._etcd.txn(txn)
            self._suspects.pop(member.name, None)
            return result
        line.add(member)
        return await member.answer()

    async def write(self) -> None:
        """Send the writes, until closed and none waits. A task of :func:`open_group_commit`."""
        await self._serve(self._writes, self._next_writes, self._commit)

    async def read(self) -> None:
        """Send the reads, until closed and none waits. A task of :func:`open_group_commit`."""
        await self._serve(self._reads, self._next_reads, self._fetch)

    async def _serve(
        self,
        line: _SendQueue[_Any],
        take: Callable[[list[_Any]], bool],
        send: Callable[[Sequence[_Any]], Awaitable[None]],
    ) -> None:
        while True:
            group: list[_Any] = []
            try:
                if not take(group):
                    if self._closed and not line.waiting:
                        return
                    await line.idle.park()
                    continue
                await send(group)
            except BaseException as error:
                failure = OutcomeUnknown(f"a group of transactions failed: {describe(error)}")
                self._suspect(group)
                _fail_all(group, failure)
                self._containment.caught("transaction_group", f"of {len(group)}", error)

    def close(self) -> None:
        """Accept no more transactions."""
        self._closed = True
        self._writes.idle.unpark_all()
        self._reads.idle.unpark_all()

    def give_up(self) -> None:
        """Fail the transactions that still wait."""
        for waiting in (self._writes.waiting, self._reads.waiting):
            while waiting:
                waiting.popleft().fail(Unavailable("the group commit was given up"))

    def _suspect(self, group: Iterable[Write | Read]) -> None:
        """Send the members of a group alone when they are retried."""
        for member in group:
            self._suspects[member.name] = None
        while len(self._suspects) > _MOST_SUSPECTS:
            self._suspects.popitem(last=False)

    def _next_writes(self, group: list[Write]) -> bool:
        """Move waiting members that do not overlap into ``group``, oldest first.

        Each is moved before it is examined, so that it fails with the group.

        Returns:
            Whether there is any.
        """
        aside: list[Write] = []
        try:
            self._fill(group, aside)
        finally:
            if aside:
                self._writes.waiting.extendleft(reversed(aside))
            if self._writes.waiting:
                self._writes.idle.unpark()
        return bool(group)

    def _fill(self, group: list[Write], aside: list[Write]) -> None:
        touched = Touched()
        size = 0
        waiting = self._writes.waiting
        while waiting and len(group) < _MOST_MEMBERS and len(aside) < _MOST_SET_ASIDE:
            member = waiting.popleft()
            if member.task is None:
                continue
            group.append(member)
            if (size and size + member.size > _MOST_BYTES) or not touched.add(member):
                aside.append(group.pop())
                continue
            size += member.size

    def _next_reads(self, group: list[Read]) -> bool:
        """Move waiting members into ``group``, as many as fit into one request.

        Returns:
            Whether it moved any.
        """
        waiting = self._reads.waiting
        gets: set[Get] = set()
        while waiting and len(group) < _MOST_MEMBERS:
            member = waiting[0]
            if member.task is not None:
                new = [get for get in member.gets if get not in gets]
                if group and len(gets) + len(new) > self._most_gets:
                    break
                gets.update(new)
                group.append(member)
            waiting.popleft()
        if waiting:
            self._reads.idle.unpark()
        return bool(group)

    async def _commit(self, group: Sequence[Write]) -> None:
        """Write a group, and answer its members."""
        began = perf_counter()
        try:
            if len(group) == 1:
                results = [await self._etcd.txn(group[0].txn)]
            else:
                answer = await self._etcd.txn(nested(group))
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
            await self._halve(group, error, self._commit)
        else:
            self._counts.add(len(group))
            self._counts.times.observe(perf_counter() - began)
            for member, result in zip(group, results, strict=True):
                member.succeed(result)

    async def _fetch(self, group: Sequence[Read]) -> None:
        """Read for a group, and answer its members."""
        # In the order of the requests, each once.
        gets = list(dict.fromkeys(get for member in group for get in member.gets))
        began = perf_counter()
        try:
            answers, revision = await self._get_all(gets)
        except Unavailable as error:
            # The answer may have been too large for the request timeout.
            self._most_gets = max(1, len(gets) // 2)
            # A read has no unknown outcome.
            lost = isinstance(error, OutcomeUnknown)
            _fail_all(group, Unavailable(str(error)) if lost else error)
        except EtcdError as error:
            await self._halve(group, error, self._fetch)
        else:
            self._counts.add(len(group))
            self._counts.times.observe(perf_counter() - began)
            size = sum(
                len(kv.value)
                for answer in answers.values()
                if isinstance(answer, RangeResult)
                for kv in answer.kvs
            )
            enough = _MOST_ANSWERED * len(gets) // max(size, 1)
            self._most_gets = max(1, min(enough, _MOST_MEMBERS))
            for member in group:
                member.take(answers, revision)

    async def _get_all(self, gets: Sequence[Get]) -> tuple[dict[Get, OperationResult], int]:
        """The answers to reads, at one revision."""
        if len(gets) == 1:
            # etcd 3.5.1 without space answers a plain read, but no transaction.
            ((keys, limit, keys_only),) = gets
            found = await self._etcd.range(keys, limit=limit, keys_only=keys_only)
            return {gets[0]: found}, found.revision
        result = await self._etcd.txn(Txn((), gets))
        return dict(zip(gets, result.responses, strict=True)), result.revision

    async def _halve(
        self,
        group: Sequence[_Any],
        error: EtcdError,
        send: Callable[[Sequence[_Any]], Awaitable[None]],
    ) -> None:
        """Send each half of a group that was refused; one member alone gets the error."""
        if len(group) == 1:
            group[0].fail(error)
            return
        self._counts.halved += 1
        middle = len(group) // 2
        await send(group[:middle])
        await send(group[middle:])


class _SendQueue(Generic[_Any]):
    """Members that wait to be sent, and the senders that wait for them."""

    def __init__(self) -> None:
        self.waiting: deque[_Any] = deque()
        self.idle = trio.lowlevel.ParkingLot()

    def add(self, member: _Any) -> None:
        self.waiting.append(member)
        self.idle.unpark()

    def count(self) -> int:
        return sum(member.task is not None for member in self.waiting)


class _Counters:
    """See :class:`GroupCommitStatistics`."""

    def __init__(self) -> None:
        self.members = 0
        self.groups = 0
        self.sizes = [0] * ((_MOST_MEMBERS - 1).bit_length() + 1)
        self.largest = 0
        self.halved = 0
        self.times = Histogram()

    def add(self, size: int) -> None:
        """Count an answered request with ``size`` members."""
        self.members += size
        self.groups += 1
        self.sizes[(size - 1).bit_length()] += 1
        self.largest = max(self.largest, size)


def _fail_all(members: Iterable[Waiting], error: EtcdError) -> None:
    for member in members:
        # Several tasks raise it: each copy has its own traceback.
        member.fail(_copy(error))


def _copy(error: EtcdError) -> EtcdError:
    try:
        return copy.copy(error)
    except Exception:
        # The class cannot be copied: all tasks raise the same object.
        return error
