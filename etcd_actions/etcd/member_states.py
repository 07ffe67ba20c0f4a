"""The members of a cluster, each with its own view of itself."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final, NamedTuple

import trio

from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import (
    ConfigError,
    EtcdError,
    InvalidRequest,
    PermissionDenied,
    Unauthenticated,
)
from etcd_actions.etcd.api import Member, Status
from etcd_actions.etcd.client import EtcdClient
from etcd_actions.etcd.connecting import open_connection
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import Endpoint, parse_endpoints

_WITHIN: Final = 2.0
"""Seconds for all members together: they are called at the same time."""
_EVERY: Final = 10.0
"""Seconds for which :class:`MemberStates` calls no member again."""


class MemberState(NamedTuple):
    """A member; ``status`` is None if it did not answer, or its status is for other users.

    Attributes:
        member: Its name and addresses.
        is_up: Whether it answers.
        status: Its view of the cluster.
        reason: Why it does not answer.
    """

    member: Member
    is_up: bool
    status: Status | None
    reason: str = ""

    @property
    def is_healthy(self) -> bool:
        """Whether it answers, has a leader and no alarm, and has a vote, as far as is known."""
        status = self.status
        if status is None:
            return self.is_up
        return status.leader != 0 and not status.errors and not status.is_learner


class MemberStates:
    """The states of all members, for readers that share them; made by :func:`open_member_states`.

    Args:
        etcd: The connection.
    """

    def __init__(self, etcd: EtcdClient) -> None:
        self._etcd = etcd
        self._members: Sequence[Member] = ()
        self._states: Sequence[MemberState] = ()
        self._called_at = -math.inf
        self._requested = trio.Event()
        self._has_called = trio.Event()

    async def read(self) -> Sequence[MemberState]:
        """The last states; raises nothing.

        Members are called again if these are older than 10 s, and only the first reader waits for
        the answers: a member that does not answer delays no other.
        """
        if trio.current_time() - self._called_at >= _EVERY:
            self._requested.set()
        with trio.move_on_after(2 * _WITHIN):
            await self._has_called.wait()
        return self._states

    async def keep(self) -> None:
        """Call the members when readers need that, until cancelled."""
        while True:
            await self._requested.wait()
            await self._call()
            self._called_at = trio.current_time()
            self._requested = trio.Event()
            self._has_called.set()

    async def _call(self) -> None:
        """Call all members.

        While etcd does not list them the last list counts, and without one the endpoints of the
        settings do.
        """
        with trio.move_on_after(_WITHIN):
            # Users other than root may not read it, and without a quorum no user may.
            with suppress(EtcdError):
                self._members = await self._etcd.members()
        settings = self._etcd.settings
        members = self._members or _named(settings.endpoints)
        self._states = await member_states(settings, members)


@asynccontextmanager
async def open_member_states(etcd: EtcdClient) -> AsyncIterator[MemberStates]:
    """The states of all members, as long as the context is open."""
    states = MemberStates(etcd)
    async with owned_tasks("the states of members") as nursery:
        nursery.start_soon(states.keep)
        try:
            yield states
        finally:
            nursery.cancel_scope.cancel("no states are read any more")


def _named(endpoints: Sequence[Endpoint]) -> list[Member]:
    """A member for each endpoint, with its address as the name."""
    schemes = {None: "", False: "http://", True: "https://"}
    return [
        Member(number, str(each), (f"{schemes[each.encrypted]}{each}",), is_learner=False)
        for number, each in enumerate(endpoints)
    ]


async def member_states(
    settings: ConnectionSettings, members: Sequence[Member]
) -> list[MemberState]:
    """The state of each member, in 2 s at most; raises nothing.

    It calls without a user: authentication needs a quorum, and a status does not.
    """
    late = f"no answer within {_WITHIN:g} s"
    states = {each.id: MemberState(each, False, None, late) for each in members}
    with trio.move_on_after(_WITHIN):
        async with trio.open_nursery() as nursery:
            for each in members:
                nursery.start_soon(_read, settings, each, states)
    return list(states.values())


async def _read(
    settings: ConnectionSettings, member: Member, states: dict[int, MemberState]
) -> None:
    if not member.client_urls:
        states[member.id] = MemberState(member, False, None, "it has not been started yet")
        return
    try:
        endpoint = parse_endpoints(member.client_urls[0])[0]
        one = replace(settings, endpoints=(endpoint,), user=None, request_timeout=_WITHIN)
        async with open_connection(one) as etcd:
            try:
                status = await etcd.status()
            except (Unauthenticated, PermissionDenied, InvalidRequest):
                states[member.id] = MemberState(member, True, None)
            else:
                states[member.id] = MemberState(member, True, status)
    except (EtcdError, ConfigError) as error:
        # It is not up, or not at that address: both are the state to report.
        states[member.id] = MemberState(member, False, None, str(error))
