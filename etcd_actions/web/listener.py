"""Serves an ASGI application over HTTP/1.1 and HTTP/2.

Leaving a listener is orderly however it comes about: what the application is told first is that
no more requests are taken, so that it can return its streams; then the requests under way may
finish; only what is left after the grace is cut off. A cancellation of the holder of the
listener, by the crash of a sibling for instance, reaches no request before that.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import ConfigError
from etcd_actions.web import descriptors
from etcd_actions.web.answering import Answering, Counts
from etcd_actions.web.asgi import Application
from etcd_actions.web.bind import Bind, is_loopback_address
from etcd_actions.web.floods import Floods
from etcd_actions.web.hosts import Hosts
from etcd_actions.web.http_limits import HttpLimits
from etcd_actions.web.open_connections import Connections
from etcd_actions.web.peers import open_peers
from etcd_actions.web.server_tls import ServerTls

if TYPE_CHECKING:
    from etcd_actions.web.accepting import Door

_BACKLOG = 1024
# Seconds after which the system asks whether a client is there.
_SILENCE = 60
# Seconds at the end of the grace, for the answers of those who are told that it ends.
_LATE = 0.5


@dataclass(frozen=True, kw_only=True)
class ListenerStatistics:
    """What a listener has done.

    Attributes:
        open_connections: Number of open connections.
        busy_connections: Of these, those that have a request.
        accepted: Number of connections that were let in.
        refused: Number of connections that were not, by reason: ``total`` and ``address`` (the
            most allowed are open), ``descriptors`` (the process has too few left), ``user``
            (it is another user's of this machine).
        closed: Number of connections that were closed from here, by reason: ``replaced`` (by
            a new one), ``header_timeout``, ``idle``, ``stalled``, ``handshake``.
        refused_requests: Number of requests that were refused by their ``host`` or ``origin``.
        protocol_errors: How often a client left in the middle, or sent what is no HTTP.
    """

    open_connections: int = 0
    busy_connections: int = 0
    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)
    refused_requests: dict[str, int] = field(default_factory=dict)
    protocol_errors: int = 0


class Listener:
    """An application that is served; made by :func:`open_listener`.

    Attributes:
        address: Where it listens, with the port that the system chose.
    """

    def __init__(
        self,
        address: Bind,
        counts: Counts,
        connections: Connections,
        reload: Callable[[], None],
    ) -> None:
        self.address = address
        self._counts = counts
        self._connections = connections
        self._reload = reload

    def reload(self) -> None:
        """Read the files of TLS anew, for the connections that come.

        Raises:
            ConfigError: They are unusable; the files that were read before stay in use.
        """
        self._reload()

    def statistics(self) -> ListenerStatistics:
        """See :class:`ListenerStatistics`."""
        return ListenerStatistics(
            open_connections=len(self._connections),
            busy_connections=self._connections.busy,
            accepted=self._counts.accepted,
            refused=dict(self._counts.refused),
            closed=dict(self._counts.closed),
            refused_requests=dict(self._counts.refused_requests),
            protocol_errors=self._counts.protocol_errors,
        )


@asynccontextmanager
async def open_listener(
    application: Application,
    bind: Bind,
    *,
    flag: str,
    tls: ServerTls | None = None,
    limits: HttpLimits | None = None,
    allowed_hosts: Collection[str] = (),
    users: Collection[int] | None = None,
    containment: Containment | None = None,
    grace: float = 5.0,
    on_leave: Callable[[], None] = lambda: None,
    on_late: Callable[[], None] = lambda: None,
) -> AsyncIterator[Listener]:
    """Serve an application for as long as the context lasts.

    What goes wrong in a connection ends that connection, and what goes wrong in a request ends
    that request.

    Args:
        application: Who answers.
        bind: Where to listen.
        flag: What the errors call the place.
        tls: How to encrypt; None for not at all.
        limits: See :class:`HttpLimits`.
        allowed_hosts: The names that a request's Host and Origin may have besides the names
            of this machine to itself, where it listens on the loopback address. Elsewhere
            every name is allowed.
        users: The user ids of this machine that may connect, and nobody else; None for
            everybody.
        containment: What counts failures; None for one of its own.
        grace: For how many seconds requests may go on after the context was left.
        on_leave: Called first when the context is left; must not wait.
        on_late: Called half a second before the grace is over, or in its middle if that is
            later, when requests still go on; likewise.

    Raises:
        ConfigError: The address, a limit or a file of TLS cannot be used, h11 or h2
            is missing, or the system does not tell which user a connection comes from.
    """
    limits = limits or HttpLimits()
    try:
        from etcd_actions.web.accepting import Admission, Door  # noqa: PLC0415
        from etcd_actions.web.connection import Shared  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{flag}: nothing can be served ({error}): pip install etcd-actions[server]"
        ) from error
    most = descriptors.most_connections(limits, flag)
    per_address = limits.connections_per_address or max(1, most // 2)
    connections = Connections(most, per_address, replaces_busy=limits.replaces_busy)
    counts = Counts()
    with ExitStack() as stack:
        context = None if tls is None else tls.context()

        def reload() -> None:
            if tls is not None and context is not None:
                # First into another one: half of a new pair is worse than the old one.
                tls.context()
                tls.load_into(context)

        admission = None
        if users is not None:
            admission = Admission(stack.enter_context(open_peers(flag)), frozenset(users))
        listening = stack.enter_context(_listening_socket(bind, flag, limits))
        host, port = listening.getsockname()[:2]
        answering = Answering(
            application,
            Hosts(allowed_hosts) if is_loopback_address(host) else None,
            limits,
            Containment() if containment is None else containment,
            counts,
            Floods(flag),
        )
        shared = Shared(answering, context)
        door = Door(listening, shared, connections, admission, flag)
        async with owned_tasks("the listener") as nursery:
            # The requests' own: a cancellation from outside stops at it.
            scope = trio.CancelScope(shield=True)
            lateness = trio.CancelScope(shield=True)
            nursery.start_soon(_run, door, scope, lateness)
            try:
                yield Listener(Bind(host, port), counts, connections, reload)
            finally:
                on_leave()
                scope.deadline = trio.current_time() + grace
                nursery.start_soon(_tell_when_late, lateness, grace, on_late)
                door.leave()


async def _run(door: Door, scope: trio.CancelScope, lateness: trio.CancelScope) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_abort_at_last, door)
            async with trio.open_nursery() as connections:
                await door.run(connections)
            nursery.cancel_scope.cancel("all requests are done")
    lateness.cancel("all requests are done")


async def _abort_at_last(door: Door) -> None:
    """Close what is left: what is being sent is out of a cancellation's reach."""
    try:
        await trio.sleep_forever()
    finally:
        door.abort()


async def _tell_when_late(
    lateness: trio.CancelScope, grace: float, on_late: Callable[[], None]
) -> None:
    with lateness:
        await trio.sleep(grace - min(grace / 2, _LATE))
        on_late()


def _listening_socket(bind: Bind, flag: str, limits: HttpLimits) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # What is accepted inherits these: a client whose machine is gone is noticed.
            if hasattr(socket, "TCP_KEEPIDLE"):
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE)
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _SILENCE // 4)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                milliseconds = round(limits.stall_timeout * 1000)
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            listening.bind(address)
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except BaseException:
            listening.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        # A name that no name can be, such as one with an empty part, is a UnicodeError.
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{flag}: cannot listen on {bind}: {reason}: give another address"
        ) from None
    return listening
