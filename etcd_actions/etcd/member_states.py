"""The members of a cluster, each with its own view of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import trio

from etcd_actions.errors import (
    ConfigError,
    EtcdError,
    InvalidRequest,
    PermissionDenied,
    Unauthenticated,
)
from etcd_actions.etcd.api import Member, Status
from etcd_actions.etcd.connecting import open_connection
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import parse_endpoints

_WITHIN: Final = 2.0
"""Seconds for all members together: they are called at the same time."""


class MemberState(NamedTuple):
    """A member; ``status`` is None if it did not answer, or its status is for other users.

    Attributes:
        member: Its name and addresses.
        is_up: Whether it answers.
        status: Its view of the cluster.
    """

    member: Member
    is_up: bool
    status: Status | None


async def member_states(
    settings: ConnectionSettings, members: Sequence[Member]
) -> list[MemberState]:
    """The state of each member, in 2 s at most; raises nothing.

    It calls without a user: authentication needs a quorum, and a status does not.
    """
    states = {each.id: MemberState(each, False, None) for each in members}
    with trio.move_on_after(_WITHIN):
        async with trio.open_nursery() as nursery:
            for each in members:
                nursery.start_soon(_read, settings, each, states)
    return list(states.values())


async def _read(
    settings: ConnectionSettings, member: Member, states: dict[int, MemberState]
) -> None:
    if not member.client_urls:
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
    except (EtcdError, ConfigError):
        # It is not up, or not at that address: both are the state to report.
        return
