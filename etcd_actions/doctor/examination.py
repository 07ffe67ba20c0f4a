"""All checks, side by side, each in bounded time and none stopped by another's failure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import structlog
import trio

from etcd_actions.doctor import (
    access,
    alarms,
    clock_skew,
    compaction,
    dead_letters,
    kept,
    members,
    objects,
    reach,
    response,
    storage,
)
from etcd_actions.doctor.access import Access, check_access
from etcd_actions.doctor.alarms import check_alarms
from etcd_actions.doctor.beside import KINDS as BESIDE_KINDS
from etcd_actions.doctor.beside import Beside
from etcd_actions.doctor.clock_skew import check_clocks
from etcd_actions.doctor.compaction import check_history
from etcd_actions.doctor.dead_letters import check_letters
from etcd_actions.doctor.findings import Finding, Kind, Severity, worst_first
from etcd_actions.doctor.kept import check_kept
from etcd_actions.doctor.members import MemberSeen, check_members, check_membership
from etcd_actions.doctor.objects import check_objects
from etcd_actions.doctor.reach import Reached, check_reach
from etcd_actions.doctor.response import check_response
from etcd_actions.doctor.storage import check_storage
from etcd_actions.doctor.subject import Subject
from etcd_actions.errors import EtcdError, first_error
from etcd_actions.etcd.endpoints import Endpoint

FAILED = Kind(
    id="check-failed",
    severity=Severity.WARNING,
    meaning="Of this part nothing is known.",
    remedy="run doctor again; --log-level debug says more",
)
TOO_SLOW = Kind(
    id="check-timed-out",
    severity=Severity.WARNING,
    meaning="Of this part nothing is known.",
    remedy="see why etcd is slow, and run doctor again",
)

KINDS: tuple[Kind, ...] = (
    *reach.KINDS,
    *members.KINDS,
    *access.KINDS,
    *alarms.KINDS,
    *storage.KINDS,
    *compaction.KINDS,
    *clock_skew.KINDS,
    *response.KINDS,
    *objects.KINDS,
    *dead_letters.KINDS,
    *kept.KINDS,
    *BESIDE_KINDS,
    FAILED,
    TOO_SLOW,
)
"""Every kind of finding that there is."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_Check = Callable[[], Awaitable[Sequence[Finding]]]


async def examine(subject: Subject) -> list[Finding]:
    """Examine an etcd without changing it.

    The endpoints are looked at one by one, then what is common to them, through those that
    work. No check takes longer than the limits say.

    Returns:
        The findings, the worst first.
    """
    examination = _Examination(subject)
    await examination.run()
    return worst_first(examination.findings)


class _Examination:
    def __init__(self, subject: Subject) -> None:
        self.findings: list[Finding] = []
        self._subject = subject

    async def run(self) -> None:
        """Look at the endpoints, at their members, then at what these hold."""
        subject = self._subject
        reached = await self._reach()
        self.findings += check_clocks(subject, reached)
        nobody: tuple[list[MemberSeen], list[Finding]] = ([], [])
        members, found = await self._bounded(
            "members", partial(check_members, subject, reached), nobody
        )
        self.findings += found
        checks: dict[str, _Check] = {
            f"storage of {member.endpoint}": partial(check_storage, subject, member)
            for member in members
        }
        usable = [member.endpoint for member in members if member.usable]
        if not usable:
            await self._side_by_side(checks)
            return
        check = partial(check_access, subject, usable)
        access = await self._bounded("access", check, Access())
        self.findings += access.findings
        beside = Beside()
        async with subject.connect(usable) as etcd:
            checks["membership"] = partial(check_membership, subject, etcd)
            checks["alarms"] = partial(check_alarms, etcd, access.revision)
            if access.reads:
                checks["history"] = partial(check_history, subject, etcd, access.revision)
                checks["values"] = partial(check_objects, subject, etcd, beside)
                checks["dead letters"] = partial(check_letters, subject, etcd)
                checks["what is kept"] = partial(check_kept, subject, etcd)
                for endpoint in usable:
                    checks[f"response of {endpoint}"] = partial(check_response, subject, endpoint)
            await self._side_by_side(checks)
            if access.reads:
                look = partial(beside.check, subject, etcd)
                self.findings += await self._bounded("an API server beside it", look, [])

    async def _reach(self) -> list[Reached]:
        """Connect to all endpoints; those that can be used."""
        answers: dict[Endpoint, Reached | None] = {}
        endpoints = self._subject.settings.endpoints
        found: dict[Endpoint, list[Finding]] = {}

        async def look(endpoint: Endpoint) -> None:
            check = partial(check_reach, self._subject, endpoint)
            none: tuple[Reached | None, list[Finding]] = (None, [])
            name = f"connection to {endpoint}"
            answers[endpoint], found[endpoint] = await self._bounded(name, check, none)

        async with trio.open_nursery() as nursery:
            for endpoint in endpoints:
                nursery.start_soon(look, endpoint)
        self.findings += [each for endpoint in endpoints for each in found[endpoint]]
        return [answer for endpoint in endpoints if (answer := answers[endpoint]) is not None]

    async def _side_by_side(self, checks: Mapping[str, _Check]) -> None:
        found: dict[str, Sequence[Finding]] = {}

        async def look(name: str, check: _Check) -> None:
            found[name] = await self._bounded(name, check, [])

        async with trio.open_nursery() as nursery:
            for name, check in checks.items():
                nursery.start_soon(look, name, check)
        self.findings += [each for name in checks for each in found[name]]

    async def _bounded(self, name: str, check: Callable[[], Awaitable[T]], default: T) -> T:
        """Do a check; what it could not find out is a finding, too."""
        failure: Exception | None = None
        with trio.move_on_after(self._subject.limits.check_seconds) as scope:
            try:
                return await check()
            except* EtcdError as group:
                failure = first_error(group)
            except* Exception as other:
                # A check meets whatever is stored: what it cannot deal with ends it alone.
                _log.error("check_failed", check=name, exc_info=other)
                failure = other.exceptions[0]
                name = f"{name}: unexpected {type(failure).__name__}"
        if scope.cancelled_caught:
            seen = f"{name}: not done after {self._subject.limits.check_seconds:g} s"
            self.findings.append(TOO_SLOW.found(seen))
        elif failure is not None:
            self.findings.append(FAILED.found(f"{name}: {failure}"))
        return default
