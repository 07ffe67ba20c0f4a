"""Calls to the run service about one action: its record, its status, and rejected reports.

A call that the run service rejects for good becomes a dead letter, which is written to etcd before
the mark. Every other failure is raised, and the outbox repeats the call after a back-off. The
record of an action is reported once for each incarnation, before its first status.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter

import msgspec
import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.histogram import Histogram
from etcd_actions._internal.tracing import span
from etcd_actions.codecs import codec_of
from etcd_actions.dead_letters import DeadLetterStore
from etcd_actions.errors import RunServiceActionUnknown, RunServiceRejected
from etcd_actions.etcd.term import Term
from etcd_actions.model import (
    ACTION_TYPE_TRACE,
    ActionObject,
    ActionUpdate,
    Incarnation,
    Keyspace,
    Phase,
    task_action_name,
)
from etcd_actions.record.leader_calls import LeaderCalls, LeaseTooShort
from etcd_actions.run_service import RunService
from etcd_actions.run_service.protocol import MarkCompanions, NullRunService

BEFORE_RUNNING = (
    Phase.UNSPECIFIED,
    Phase.QUEUED,
    Phase.WAITING_FOR_RESOURCES,
    Phase.INITIALIZING,
)
"""The phases of an action that is reported as RUNNING if it has a child."""

_log = structlog.get_logger(__name__)


class CallCounts:
    """The counts of calls to the run service, each by ``record`` and ``status``.

    Attributes:
        has_run_service: Whether there is a run service; without one no call leaves the process.
        reported: Number of calls that it accepted.
        rejected: Number of calls that it rejected for good.
        failed: Number of calls that failed and are repeated.
        interrupted: Number of calls that ended with the time of the lease, and are repeated.
        times: How long calls took, in seconds, whatever their outcome.
        lag: From the delivery of a state until it was reported, in seconds.
    """

    def __init__(self, *, has_run_service: bool = False) -> None:
        self.has_run_service = has_run_service
        self.reported: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.interrupted: Counter[str] = Counter()
        self.times: dict[str, Histogram] = {"record": Histogram(), "status": Histogram()}
        self.lag: Histogram = Histogram()


class Reporter:
    """Calls the run service. Several tasks may report at a time, each another action.

    Args:
        run_service: Receives the reports.
        dead_letters: Stores rejected reports.
        keys: The keyspace of the objects.
        containment: Counts unexpected failures.

    Attributes:
        calls: Makes each call within the leader's lease.
        counts: The counts of the calls.
        dead_letters: The argument.
    """

    def __init__(
        self,
        run_service: RunService,
        dead_letters: DeadLetterStore,
        keys: Keyspace,
        containment: Containment,
    ) -> None:
        self.calls: LeaderCalls = LeaderCalls()
        self.counts: CallCounts = CallCounts(
            has_run_service=not isinstance(run_service, NullRunService)
        )
        self.dead_letters = dead_letters
        self._run_service = run_service
        self._prefix = keys.prefix
        self._containment = containment
        # By key, the incarnation whose record was reported.
        self._introduced: dict[bytes, Incarnation] = {}
        # The keys of actions that are reported as RUNNING because they have a child.
        self._with_children: set[bytes] = set()

    def start(self, term: Term | None, hold_until: float) -> None:
        """Make calls in this term from now on; see :meth:`LeaderCalls.start`."""
        if self._run_service.keeps_order:
            # A late call changes nothing, so calls need no lease, and wait for no earlier ones.
            term, hold_until = None, -math.inf
        self.calls.start(term, hold_until)

    def uncertain_until(self, key: bytes) -> float:
        """The time, on trio's clock, until which an earlier call about an action may arrive."""
        return max(self.calls.hold_until, self._run_service.unsettled_until(key))

    def is_reportable(self, phase: Phase, deleted: bool) -> bool:
        """Whether the run service accepts a state; True if its own check raises an exception."""
        try:
            return self._run_service.accepts(phase, deleted)
        except BaseException as error:
            self._containment.caught("run_service", "accepts", error)
            return True

    def incarnation(self, update: ActionUpdate) -> Incarnation:
        """The incarnation of an update; the equal object that is kept here, if there is one."""
        known = self._introduced.get(update.key)
        return known if known == update.incarnation else update.incarnation

    def is_first(self, update: ActionUpdate) -> bool:
        """Whether no record of this incarnation was reported."""
        return self._introduced.get(update.key) != update.incarnation

    def repeat_record(self, key: bytes) -> None:
        """Have the record reported again before the next status of an action."""
        self._introduced.pop(key, None)

    def forget(self, key: bytes) -> None:
        """Forget an action that is deleted."""
        self._introduced.pop(key, None)
        self._with_children.discard(key)

    def parent_key(self, child: ActionUpdate) -> bytes:
        """The key of the parent's object."""
        name = task_action_name(child.action_id.run, child.parent)
        return self._prefix + f"{child.namespace}/{name}".encode(errors="replace")

    def add_child(self, parent: bytes) -> bool:
        """Have an action with a child reported as RUNNING in the phases before RUNNING.

        Returns:
            False if it was added before.
        """
        known = parent in self._with_children
        self._with_children.add(parent)
        return not known

    async def mark_companions(
        self, update: ActionUpdate, action: ActionObject
    ) -> MarkCompanions | None:
        """The keys that the run service writes in the transaction of the mark.

        None if it writes none, if it rejects the state, or if there is a dead letter about the
        action. Then the state is reported by a call.
        """
        try:
            companions = self._run_service.mark_companions(update, action)
        except RunServiceRejected:
            return None
        if companions is None or await self.dead_letters.has(update):
            return None
        return companions

    async def report(
        self,
        update: ActionUpdate,
        action: ActionObject | None,
        value: bytes | None,
        companions: MarkCompanions | None = None,
    ) -> bool:
        """Report a state, and the record before the first state.

        Args:
            update: The state.
            action: The stored object; None if it is deleted.
            value: Its bytes; None if it is deleted.
            companions: Our own run service's part of the report, to be written with the mark. If
                another run service does not accept the state, it is written at once.

        Returns:
            Whether the state was accepted; False if it was rejected for good.

        Raises:
            RunServiceError: A call failed; the report has to be repeated.
            EtcdError: A dead letter or the companions could not be written.
        """
        if companions is None:
            return await self._report(update, action, value, self._run_service)
        try:
            accepted = await self._report(update, action, value, companions.others)
        except Exception:
            await companions.write()
            raise
        if not accepted:
            await companions.write()
        return accepted

    async def _report(
        self,
        update: ActionUpdate,
        action: ActionObject | None,
        value: bytes | None,
        run_service: RunService | None,
    ) -> bool:
        key, accepted, recorded = update.key, True, None
        if run_service is None:
            self._introduced[key] = update.incarnation
        elif update.action_type == ACTION_TYPE_TRACE:
            # Each state of a trace is a record. Flyte's run service takes every recorded trace for
            # one that succeeded, so another phase needs a status, too.
            accepted = await self._record(update, action, value)
            if not accepted or update.phase is Phase.SUCCEEDED:
                return accepted
            call = partial(run_service.update_action_state, update, action)
            return await self._call("status", call, update, value)
        else:
            if self.is_first(update):
                recorded = await self._record(update, action, value)
                self._introduced[key] = update.incarnation
            if key in self._with_children and update.phase in BEFORE_RUNNING:
                update = msgspec.structs.replace(update, phase=Phase.RUNNING)
            if update.phase is not Phase.UNSPECIFIED:
                accepted = await self._status(update, action, value, run_service, recorded)
        if update.phase.is_terminal or update.is_deleted:
            self._with_children.discard(key)
        return accepted

    async def _status(
        self,
        update: ActionUpdate,
        action: ActionObject | None,
        value: bytes | None,
        run_service: RunService,
        recorded: bool | None,
    ) -> bool:
        """Report a status; if the run service does not know the action, the record first.

        The record is reported at most once in a call: the back-off decides when the next attempt
        is. If the run service rejects the record, it rejects the status for good. ``recorded`` is
        whether it accepted a record just now; None if none was reported.
        """
        call = partial(run_service.update_action_state, update, action)
        try:
            return await self._call("status", call, update, value)
        except RunServiceActionUnknown as error:
            # The next attempt starts with the record.
            self.repeat_record(update.key)
            if recorded:
                raise
            if recorded is None and await self._record(update, action, value):
                return await self._call("status", call, update, value)
            self._introduced[update.key] = update.incarnation
            await self.reject("status", update, value, error)
            return False

    async def report_dead_letters(self, key: bytes, requests: frozenset[str]) -> None:
        """Repeat the reports of dead letters about an object that is deleted or replaced."""
        introduced = self._introduced.pop(key, None)
        for last in await self.dead_letters.last_reports(key, requests):
            action = (
                None if last.value is None else codec_of(last.value).decode(last.value, key=key)
            )
            await self.report(last.update, action, last.value)
            self.repeat_record(key)
            await self.dead_letters.settle(last.update, requests)
        if introduced is not None:
            self._introduced[key] = introduced

    async def _record(
        self, update: ActionUpdate, action: ActionObject | None, value: bytes | None
    ) -> bool:
        call = partial(self._run_service.record_action, update, action)
        return await self._call("record", call, update, value)

    async def _call(
        self,
        what: str,
        call: Callable[[], Awaitable[None]],
        update: ActionUpdate,
        value: bytes | None,
    ) -> bool:
        """Make a call; returns whether it was accepted. A rejected one becomes a dead letter."""
        try:
            attributes = {"action": update.name, "phase": update.phase.name}
            with self.counted(what), span(f"run_service.{what}", attributes):
                await self.calls.make(call)
        except RunServiceRejected as error:
            await self.reject(what, update, value, error)
            return False
        await self.dead_letters.accept(what, update)
        return True

    @contextmanager
    def counted(self, what: str) -> Iterator[None]:
        """Count the body as a call, with its duration and outcome."""
        counts, started = self.counts, perf_counter()
        try:
            yield
        except (RunServiceRejected, trio.Cancelled):
            raise
        except LeaseTooShort:
            counts.interrupted[what] += 1
            raise
        except BaseException:
            counts.failed[what] += 1
            raise
        else:
            counts.reported[what] += 1
        finally:
            counts.times[what].observe(perf_counter() - started)

    async def reject(
        self,
        what: str,
        update: ActionUpdate,
        value: bytes | None,
        error: RunServiceRejected | RunServiceActionUnknown,
    ) -> None:
        """Count a call that was rejected for good, and write the dead letter."""
        self.counts.rejected[what] += 1
        _log.error(
            "run_service_rejected",
            what=what,
            key=update.key.decode(errors="backslashreplace"),
            revision=update.revision,
            code=error.code,
            error=str(error),
        )
        await self.dead_letters.reject(what, update, value, code=error.code, error=str(error))
