"""Runs all checks in parallel. Each has limited time, and its failure does not stop another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import structlog
import trio

from etcd_actions.doctor import (
    access,
    alarms,
    api_server,
    clock_skew,
    compaction,
    dead_letters,
    kept,
    members,
    needs,
    objects,
    reach,
    response,
    shards,
    storage,
)
from etcd_actions.doctor.api_server import ApiServer
from etcd_actions.doctor.findings import Finding, Kind, once, worst_first
from etcd_actions.doctor.members import MemberSeen
from etcd_actions.doctor.reach import Reached
from etcd_actions.doctor.scan import side_by_side
from etcd_actions.doctor.subject import Subject
from etcd_actions.errors import EtcdError, first_error
from etcd_actions.etcd.endpoints import Endpoint

FAILED = Kind.warning(
    "check-failed",
    "This part was not examined.",
    "run doctor again, with --log-level debug for details",
)
TOO_SLOW = Kind.warning(
    "check-timed-out",
    "This part was not examined.",
    "find out why etcd is slow, and run doctor again",
)

_MODULES = (
    reach,
    members,
    access,
    needs,
    alarms,
    storage,
    compaction,
    clock_skew,
    response,
    objects,
    dead_letters,
    kept,
    shards,
    api_server,
)
KINDS: tuple[Kind, ...] = (
    *(each for module in _MODULES for each in vars(module).values() if isinstance(each, Kind)),
    FAILED,
    TOO_SLOW,
)
"""Every kind of finding, in the order of docs/doctor.md."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_Check = Callable[[], Awaitable[Sequence[Finding]]]


async def examine(subject: Subject) -> list[Finding]:
    """Examine an etcd without changing it.

    The endpoints are examined first, then their cluster, through those that work. No check takes
    longer than the limits allow. A cancellation leaves nothing behind.

    Returns:
        The findings, the worst first.
    """
    examination = _Examination(subject)
    await examination.run()
    return once(worst_first(examination.findings))


class _Examination:
    def __init__(self, subject: Subject) -> None:
        self.findings: list[Finding] = []
        self._subject = subject

    async def run(self) -> None:
        """Examine the endpoints, their members, then the data."""
        subject = self._subject
        connected = await side_by_side(self._connect, subject.settings.endpoints)
        self.findings += [each for _, findings in connected for each in findings]
        reached = [each for each, _ in connected if each is not None]
        self.findings += clock_skew.check_clocks(subject, reached)
        none: tuple[list[MemberSeen], list[Finding]] = ([], [])
        seen, found = await self._bounded(
            "members", partial(members.check_members, subject, reached), none
        )
        self.findings += found
        checks: dict[str, _Check] = {
            f"storage of {member.endpoint}": partial(storage.check_storage, subject, member)
            for member in seen
        }
        usable = [member.endpoint for member in seen if member.usable]
        if not usable:
            await self._run_all(checks)
            return
        check = partial(access.check_access, subject, usable)
        allowed = await self._bounded("access", check, access.Access())
        self.findings += allowed.findings
        server = ApiServer()
        async with subject.connect(usable) as etcd:
            revision = allowed.revision
            named = {each.status.member_id: each.endpoint for each in seen if each.status}
            checks["membership"] = partial(members.check_membership, subject, etcd)
            checks["alarms"] = partial(alarms.check_alarms, etcd, revision, named)
            if allowed.reads:
                checks["history"] = partial(compaction.check_history, subject, etcd, revision)
                checks["values"] = partial(objects.check_objects, subject, etcd, server)
                checks["dead letters"] = partial(dead_letters.check_dead_letters, subject, etcd)
                checks["own keys"] = partial(kept.check_kept, subject, etcd)
                checks["shards"] = partial(shards.check_shards, subject, etcd)
                for endpoint in usable:
                    check_response = partial(response.check_response, subject, endpoint)
                    checks[f"response of {endpoint}"] = check_response
            await self._run_all(checks)
            if allowed.reads:
                await self._run_all({"the API server": partial(server.check, subject, etcd)})

    async def _connect(self, endpoint: Endpoint) -> tuple[Reached | None, list[Finding]]:
        none: tuple[Reached | None, list[Finding]] = (None, [])
        check = partial(reach.check_reach, self._subject, endpoint)
        return await self._bounded(f"connection to {endpoint}", check, none)

    async def _run_all(self, checks: Mapping[str, _Check]) -> None:
        async def run(name: str) -> Sequence[Finding]:
            return await self._bounded(name, checks[name], [])

        self.findings += [each for found in await side_by_side(run, checks) for each in found]

    async def _bounded(self, name: str, check: Callable[[], Awaitable[T]], default: T) -> T:
        """Make a check; its failure is a finding, too."""
        failure: Exception | None = None
        with trio.move_on_after(self._subject.limits.check_seconds) as scope:
            try:
                return await check()
            except* EtcdError as group:
                failure = first_error(group)
            except* Exception as other:
                # Stored data can be anything: an error that it causes ends this check alone.
                _log.error("check_failed", check=name, exc_info=other)
                failure = other.exceptions[0]
                name = f"{name}: unexpected {type(failure).__name__}"
        if scope.cancelled_caught:
            seen = f"{name}: not done after {self._subject.limits.check_seconds:g} s"
            self.findings.append(TOO_SLOW.found(seen))
        elif failure is not None:
            self.findings.append(FAILED.found(f"{name}: {failure}"))
        return default
