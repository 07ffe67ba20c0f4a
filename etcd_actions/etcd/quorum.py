"""Whether an unavailable cluster has lost its quorum, in the words of every message about that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, TypeVar

import structlog
import trio

from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import (
    ConfigError,
    EtcdError,
    InvalidRequest,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from etcd_actions.etcd.client import EtcdClient
from etcd_actions.etcd.connecting import open_connection
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import Endpoint, parse_endpoints

_WITHIN = 2.0
"""Seconds for all endpoints together: they are called at the same time."""
_ELECTION = 2.0
"""Seconds that the members have to elect a leader before its lack is reported."""

_WORDS: Final = "quorum lost"

_log = structlog.get_logger(__name__)

UnavailableT = TypeVar("UnavailableT", bound=Unavailable)


class _Answers:
    """The members that answered, by id where that is readable, and how many there are."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self.called: set[tuple[str, int]] = set()
        self.up: dict[int | str, str] = {}
        self.has_leader = False
        self.members = len(settings.endpoints)


async def quorum_loss(settings: ConnectionSettings) -> str:
    """Why the cluster answers no request, as ``quorum lost: 1 of 3 members up (10.0.0.5:2379)``.

    It reads the status of each endpoint, and of the members that these name, without a user:
    authentication needs a quorum. It takes 2 s at most, and raises nothing. Cancelled, nothing is
    left behind.

    Returns:
        The words; empty if some member has a leader, if no member answers, or if the answers leave
        it open.
    """
    answers = _Answers(settings)
    with trio.move_on_after(_WITHIN):
        async with trio.open_nursery() as nursery:
            for endpoint in settings.endpoints:
                _start(settings, endpoint, answers, nursery)
    up, members = len(answers.up), answers.members
    if answers.has_leader or not up:
        return ""
    counted = f"{up} of {members} members up ({', '.join(answers.up.values())})"
    if up * 2 <= members:
        return f"{_WORDS}: {counted}"
    if all(isinstance(each, str) for each in answers.up):
        # No status was readable, so there may be a leader.
        return ""
    return f"{_WORDS}: {counted}, and none has a leader: can they reach each other?"


async def explained(error: UnavailableT, settings: ConnectionSettings) -> UnavailableT:
    """The same error, with the loss of the quorum before its text if that is the cause."""
    if _WORDS in str(error):
        return error
    words = await quorum_loss(settings)
    return type(error)(f"{words}; {error}") if words else error


class QuorumMonitor:
    """Made by :func:`open_quorum_monitor`.

    Attributes:
        loss: The words of :func:`quorum_loss`; empty while there is a quorum.
    """

    loss = ""


@asynccontextmanager
async def open_quorum_monitor(etcd: EtcdClient) -> AsyncIterator[QuorumMonitor]:
    """Detect and log the loss of the quorum while the context is open.

    It is idle until a call of the connection fails. Errors of the connection begin with the loss.
    """
    monitor = QuorumMonitor()
    async with owned_tasks("the monitor of the quorum") as nursery:
        nursery.start_soon(_monitor, etcd, monitor)
        try:
            yield monitor
        finally:
            nursery.cancel_scope.cancel("the monitor is closed")


async def _monitor(etcd: EtcdClient, monitor: QuorumMonitor) -> None:
    while True:
        if not monitor.loss:
            await etcd.wait_failure()
        await trio.sleep(_ELECTION)
        loss = await quorum_loss(etcd.settings)
        if loss and not monitor.loss:
            _log.error("quorum_lost", reason=loss, see="etcd-actions doctor")
        elif monitor.loss and not loss:
            _log.info("quorum_regained")
        monitor.loss = etcd.trouble = loss


def _start(
    settings: ConnectionSettings, endpoint: Endpoint, answers: _Answers, nursery: trio.Nursery
) -> None:
    address = endpoint.host, endpoint.port
    if address not in answers.called:
        answers.called.add(address)
        nursery.start_soon(_call, settings, endpoint, answers, nursery)


async def _call(
    settings: ConnectionSettings, endpoint: Endpoint, answers: _Answers, nursery: trio.Nursery
) -> None:
    one = replace(settings, endpoints=(endpoint,), user=None, request_timeout=_WITHIN)
    try:
        async with open_connection(one) as etcd:
            try:
                status = await etcd.status()
            except (Unauthenticated, PermissionDenied, InvalidRequest):
                # It is up, and its status is for other users.
                answers.up[str(endpoint)] = str(endpoint)
            else:
                answers.up[status.member_id] = str(endpoint)
                answers.has_leader |= status.leader != 0
            members = [each for each in await etcd.members() if not each.is_learner]
            answers.members = max(answers.members, len(members))
            for member in members:
                if member.client_urls:
                    _start(settings, parse_endpoints(member.client_urls[0])[0], answers, nursery)
    except (EtcdError, ConfigError):
        # A request without an answer leaves this member, or the list of the others, unknown.
        return
