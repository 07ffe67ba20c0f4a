"""Elects one of several processes as the leader, by a key attached to a lease.

A process that finds no key creates it, attached to a lease of its own, and renews that lease. The
key is deleted when its process resigns, or when the lease of a silent process expires. The other
processes watch the key, and have no lease.

Two processes never lead at the same time: a leader that could not renew its lease gives up before
the lease can expire. It counts on its own monotonic clock from the time at which the last renewal
was sent, with the time for which the machine was suspended. So :attr:`Election.is_leader` is false
at the first read after a stop of the process. A request that was sent before may still arrive after
the next election. A write that must not be applied then has the compare :attr:`Leadership.fence`.
A call to another server, which nothing fences, is made within :meth:`Term.sure_until`.

A guard, compares of other keys, limits when the key may be created. A process whose guard does not
hold is *refused*: it says so, and looks again from time to time. The guard is part of the
transaction that creates the key, and does not end a term.

Other clients may write the key. A leader that finds its key changed, and so perhaps detached from
the lease, writes it again. A key without a lease would stay; a candidate deletes it after it was
unchanged for the time to live of a lease. An unexpected failure ends the term, and the process
stands for election again; it never ends the election.

Only if a client deletes the key, or revokes the lease, of a working leader can two processes lead,
until the watch of the first one delivers that, some milliseconds later. The fence holds in that
case, too.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment, describe
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions._internal.retrying import retrying, seldom
from etcd_actions.errors import ConfigError, EtcdError, LeaseNotFound, Unavailable, first_error
from etcd_actions.etcd.api import (
    Compare,
    Delete,
    Etcd,
    Get,
    KeyRange,
    KeyValue,
    Put,
    RangeResult,
    Txn,
    WatchCreate,
)
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.etcd.session import Session, open_session
from etcd_actions.etcd.term import Leadership, Term

__all__ = ["Election", "ElectionStatistics", "Leadership", "Term", "open_election"]

LEAST_TTL = 2
"""Seconds; the least time to live that etcd grants by default."""

_BACKOFF = Backoff(initial=0.05, cap=2.0)
_AFTER_GIVING_UP = 1.0
"""Seconds in which only other processes stand for election, after this one gave up."""
_LONGEST_NAME = 200
"""Bytes of a leader's name that are reported."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ElectionStatistics:
    """The state of an election, and its counts.

    Attributes:
        is_leader: Whether this process is the leader.
        leader: The last known name of the leader; empty if there is none.
        terms: How often this process was elected.
        losses: How often it lost the leadership, by reason: ``not_renewed`` in time,
            ``lease_expired``, the key was ``deleted``, or the work ``failed``.
        failures: Number of requests that etcd did not answer, or refused.
        refused: Whether there is no leader, and the guard does not hold.
    """

    is_leader: bool
    leader: str
    terms: int
    losses: dict[str, int]
    failures: int
    refused: bool


@asynccontextmanager
async def open_election(
    etcd: Etcd,
    key: bytes,
    *,
    name: str | None = None,
    ttl: int = 10,
    guard: Sequence[Compare] = (),
    containment: Containment | None = None,
) -> AsyncIterator[Election]:
    """Stand for election until the context is left; leaving it resigns.

    While etcd is unavailable, or refuses, it retries without limit. Resigning takes at most two
    seconds, also after a cancellation. If etcd does not answer by then, the lease expires.

    Args:
        etcd: The connection; its request timeout should be at most half of ``ttl``.
        key: The key of the election: the process that creates it is the leader.
        name: The value of the key, for people; by default host and process.
        ttl: Seconds after which a silent leader is replaced; at least 2.
        guard: Compares of other keys, which have to hold when the key is created.
        containment: Counts unexpected failures; by default one of its own.

    Raises:
        ConfigError: ``ttl`` is too short.
    """
    if ttl < LEAST_TTL:
        raise ConfigError(f"ttl: {ttl} s is too short for a lease: give at least {LEAST_TTL}")
    election = Election(
        etcd,
        key,
        name=name or f"{socket.gethostname()}/{os.getpid()}",
        ttl=ttl,
        guard=guard,
        containment=containment or Containment(),
    )
    # This process leads until the body has ended, also while that is cancelled.
    scope = trio.CancelScope(shield=True)

    async def run() -> None:
        with scope:
            await election._run()

    async with owned_tasks("the election") as nursery:
        nursery.start_soon(run)
        try:
            yield election
        finally:
            scope.cancel("the election is left")


class Election:
    """The state of an election; :func:`open_election` makes it."""

    def __init__(
        self,
        etcd: Etcd,
        key: bytes,
        *,
        name: str,
        ttl: int,
        guard: Sequence[Compare],
        containment: Containment,
    ) -> None:
        self._containment = containment
        self._guard = guard
        self._is_refused = False
        self._identity = key.decode(errors="backslashreplace")
        # The key, when it was first read without a lease, and the time of that read.
        self._orphan: tuple[KeyValue, float] | None = None
        self._etcd = etcd
        self._key = key
        self._name = name
        self._ttl = ttl
        # The lease of an earlier attempt that could not be revoked.
        self._unrevoked = 0
        self._term: Term | None = None
        self._elected = trio.Event()
        self._leader = ""
        self._terms = 0
        self._losses: Counter[str] = Counter()
        self._failures = 0

    @property
    def is_leader(self) -> bool:
        """Whether this process is the leader at this moment, by its clock."""
        return self.term is not None

    @property
    def is_refused(self) -> bool:
        """Whether there is no leader, and the guard does not hold."""
        return self._is_refused

    @property
    def leader(self) -> str:
        """The last known name of the leader; empty if there is none."""
        return self._leader

    @property
    def term(self) -> Term | None:
        """The present term; None while this process does not lead."""
        return self._term if self._term is not None and self._term.lasts else None

    @property
    def leadership(self) -> Leadership | None:
        """The leadership of the present term; None while this process does not lead."""
        term = self.term
        return None if term is None else term.leadership

    @property
    def fence(self) -> Compare:
        """The fence of the present or last term; before the first one it never holds."""
        term = self._term
        return (term.leadership if term is not None else Leadership(self._key, -1)).fence

    def statistics(self) -> ElectionStatistics:
        """The present state and counts; see :class:`ElectionStatistics`."""
        return ElectionStatistics(
            is_leader=self.is_leader,
            leader=self._leader,
            terms=self._terms,
            losses=dict(self._losses),
            failures=self._failures,
            refused=self._is_refused,
        )

    async def wait_leader(self) -> Leadership:
        """Return once this process leads."""
        while True:
            await self._elected.wait()
            if (leadership := self.leadership) is not None:
                return leadership
            # The lease's time has passed, and the task that ends the term has not run yet.
            await self.wait_lost()

    async def wait_lost(self) -> None:
        """Return once the present term has ended; at once if there is none."""
        if self._term is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._term.over.wait()

    def give_up(self) -> None:
        """End the present term, if there is one; stand again after other processes could."""
        if self._term is not None and not self._term.over.is_set():
            self._term.given_up = True
            self._end_term()

    async def _run(self) -> None:
        """Stand for election, again after each term and each failure."""
        failures = 0
        while True:
            failure: EtcdError | None = None
            began = trio.current_time()
            try:
                failure = await self._try()
            except BaseException as error:
                self._end_term()
                contained = self._containment.caught("election", self._identity, error, parks=True)
                failure = Unavailable(describe(contained))
            else:
                self._containment.forget("election", self._identity)
            if failure is None:
                failures = 0
                continue
            failures = 1 if trio.current_time() - began > self._ttl else failures + 1
            delay = _BACKOFF.delay(failures)
            self._log_failure("election_failed", failure, failures, delay)
            await trio.sleep(delay)

    async def _try(self) -> EtcdError | None:
        try:
            await self._stand()
        except* EtcdError as group:
            failure = first_error(group)
        else:
            return None
        return failure

    async def _stand(self) -> None:
        """Wait until there is no leader; then create the key, and lead until the term ends."""
        await self._revoke()
        if self._term is not None and self._term.given_up:
            self._term = None
            await trio.sleep(_AFTER_GIVING_UP)
        found, revision, is_allowed = await self._find()
        if found is not None:
            self._is_refused = False
            self._leader = found.value[:_LONGEST_NAME].decode(errors="replace")
            if await self._delete_orphan(found) or not await self._wait_deleted(revision):
                return
            # The guard is compared when the key is created.
            is_allowed = True
        self._leader = ""
        self._orphan = None
        if not is_allowed:
            if not self._is_refused:
                _log.warning("election_refused", key=self._identity)
            self._is_refused = True
            await trio.sleep(self._ttl)
            return
        self._is_refused = False
        report = partial(self._log_failure, "election_not_renewed")
        async with open_session(
            self._etcd, self._ttl, report=report, unrevoked=self._not_resigned
        ) as session:
            await self._create(session)

    async def _find(self) -> tuple[KeyValue | None, int, bool]:
        """The key, the revision of the read, and whether the guard held."""
        get = Get(KeyRange.of_key(self._key))
        if not self._guard:
            found = await self._etcd.range(get.keys)
            return (found.kvs[0] if found.kvs else None), found.revision, True
        result = await self._etcd.txn(Txn(self._guard, [get], [get]))
        (answer,) = result.responses
        kvs = answer.kvs if isinstance(answer, RangeResult) else []
        return (kvs[0] if kvs else None), result.revision, result.succeeded

    def _not_resigned(self, lease_id: int, reason: str) -> None:
        self._unrevoked = lease_id
        _log.warning("not_resigned", error=reason)

    async def _create(self, session: Session) -> None:
        """Create the key; if that succeeded, lead until the term ends."""
        absent = Compare.incarnation(self._key, 0)
        create = Put(self._key, self._name.encode(), session.lease.id)
        created = await self._etcd.txn(Txn([absent, *self._guard], [create]))
        if created.succeeded:
            await self._lead(Leadership(self._key, created.revision), session)

    async def _delete_orphan(self, found: KeyValue) -> bool:
        """Delete a key without a lease after it was unchanged for the time to live of a lease.

        A working leader writes its key again within that time; a leader without a connection has
        stopped leading by then.

        Returns:
            Whether this process has tried to delete it.
        """
        if found.lease:
            self._orphan = None
            return False
        now = trio.current_time()
        if self._orphan is None or self._orphan[0] != found:
            self._orphan = (found, now)
            return False
        if now - self._orphan[1] < self._ttl:
            return False
        unchanged = Compare.unchanged(self._key, found.mod_revision)
        delete = Delete(KeyRange.of_key(self._key))
        result = await self._etcd.txn(Txn([unchanged], [delete]))
        _log.warning("election_key_without_lease", key=self._identity, deleted=result.succeeded)
        self._orphan = None
        return True

    async def _wait_deleted(self, revision: int, *, or_put: bool = False) -> bool:
        """Return once the key was deleted after ``revision``, or ``ttl`` seconds have passed.

        With ``or_put`` it returns after a put, too.

        Returns:
            Whether such a change was received.
        """
        with trio.move_on_after(self._ttl):
            async with self._etcd.watch() as stream:
                stream.create(WatchCreate(1, KeyRange.of_key(self._key), revision + 1))
                while True:
                    try:
                        responses = await stream.receive()
                    except trio.EndOfChannel:
                        return False
                    for response in responses:
                        if response.canceled and not response.compact_revision:
                            reason = response.cancel_reason or "etcd cancelled the watch"
                            raise (error_kind(reason) or Unavailable)(f"watch: {reason}")
                        if response.canceled:
                            return False
                        if any(or_put or event.is_delete for event in response.events):
                            return True
        return False

    async def _lead(self, leadership: Leadership, session: Session) -> None:
        """Lead until the term ends; count the reason."""
        key, revision, ttl = self._identity, leadership.create_revision, session.lease.ttl
        reason = "not_renewed"
        term = self._term = Term(leadership, session)
        self._terms += 1
        self._leader = self._name
        self._elected.set()
        _log.info("elected", key=key, revision=revision, ttl=ttl)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_at_term_end, session, nursery.cancel_scope)
                forget = self._containment.forget_later
                nursery.start_soon(forget, "election", self._identity, self._ttl)
                reason = await self._wait_ended(leadership, session.lease.id)
                nursery.cancel_scope.cancel(reason)
        finally:
            # A cancellation resigns, which is not counted as a loss.
            self._end_term()
        if term.given_up:
            reason = "failed"
        elif session.gone:
            reason = "lease_expired"
        self._losses[reason] += 1
        _log.warning("deposed", key=key, revision=revision, reason=reason)

    async def _cancel_at_term_end(self, session: Session, scope: trio.CancelScope) -> None:
        await session.over.wait()
        scope.cancel("the term has ended")

    async def _wait_ended(self, leadership: Leadership, lease_id: int) -> str:
        """Return once another client has deleted the key; returns the reason."""
        report = partial(self._log_failure, "election_not_watched")
        while True:
            async for attempt in retrying(_BACKOFF, on=EtcdError, report=report):
                with attempt:
                    found = await self._etcd.range(KeyRange.of_key(self._key))
                    if [kv.create_revision for kv in found.kvs] != [leadership.create_revision]:
                        return "deleted"
                    [kv] = found.kvs
                    if (kv.lease, kv.value) != (lease_id, self._name.encode()):
                        await self._write_again(kv, lease_id)
                    else:
                        await self._wait_deleted(found.revision, or_put=True)

    async def _write_again(self, found: KeyValue, lease_id: int) -> None:
        """Write the key of this term again after another client wrote it."""
        unchanged = Compare.unchanged(self._key, found.mod_revision)
        mine = Put(self._key, self._name.encode(), lease_id)
        result = await self._etcd.txn(Txn([unchanged], [mine]))
        _log.warning("election_key_overwritten", key=self._identity, written_again=result.succeeded)

    async def _revoke(self) -> None:
        """Revoke the lease of an earlier attempt, so that no process waits until it expires."""
        if self._unrevoked:
            with suppress(LeaseNotFound):
                await self._etcd.lease_revoke(self._unrevoked)
            self._unrevoked = 0

    def _end_term(self) -> None:
        if self._elected.is_set():
            self._elected = trio.Event()
        if self._term is not None:
            self._term.over.set()

    def _log_failure(self, event: str, failure: EtcdError, failures: int, delay: float) -> None:
        """Count a failure, and log the first, second, fourth ... in a row."""
        self._failures += 1
        seldom(_log, event)(failure, failures, delay)
