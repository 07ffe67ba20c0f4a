"""Serves an ASGI application over HTTP/1.1 and HTTP/2.

A listener always ends in order. First the application is notified, so that its streams return. Then
requests in progress may finish. After the grace the rest is cancelled. A cancellation around the
listener, as after a crash of a sibling task, does not cancel requests before that.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import ConfigError
from etcd_actions.web import descriptors
from etcd_actions.web.answering import Answering, ListenerStatistics
from etcd_actions.web.asgi import Application
from etcd_actions.web.bind import Bind, is_loopback_address
from etcd_actions.web.hosts import Hosts
from etcd_actions.web.http_limits import HttpLimits
from etcd_actions.web.log_limits import LogLimits
from etcd_actions.web.open_connections import Connections
from etcd_actions.web.peers import open_peers
from etcd_actions.web.server_tls import ServerTls

if TYPE_CHECKING:
    from etcd_actions.web.accepting import Acceptor

_BACKLOG = 1024
# Seconds of silence after which the system probes the connection.
_SILENCE = 60
# Seconds before the end of the grace at which ``on_late`` is called.
_LATE = 0.5


class Listener:
    """A listener that serves an application; :func:`open_listener` makes it.

    Attributes:
        address: The address that it listens on, with the port that the system chose.
        reload: Reads the files of TLS again, for new connections. It raises ConfigError if they
            are unusable; the files that were read before stay in use.
    """

    def __init__(
        self,
        address: Bind,
        counts: ListenerStatistics,
        connections: Connections,
        reload: Callable[[], None],
    ) -> None:
        self.address = address
        self._counts = counts
        self._connections = connections
        self.reload = reload

    def statistics(self) -> ListenerStatistics:
        """The present counts; see :class:`ListenerStatistics`."""
        counts = self._counts
        return replace(
            counts,
            open_connections=len(self._connections),
            busy_connections=self._connections.busy,
            refused=counts.refused.copy(),
            closed=counts.closed.copy(),
            refused_requests=counts.refused_requests.copy(),
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
    """Serve an application until the context is left.

    An error in a connection ends that connection, an error in a request ends that request.

    Args:
        application: Answers the requests.
        bind: The address to listen on.
        flag: The name of the setting, for messages.
        tls: The certificate and key; None for plain text.
        limits: See :class:`HttpLimits`.
        allowed_hosts: Names that a request's Host and Origin may have in addition to the names
            of this machine, if it listens on the loopback address. On another address every name
            is allowed.
        users: The user ids of this machine that may connect; None for all, from any machine.
        containment: Counts unexpected failures; by default one of its own.
        grace: Seconds that requests may take after the context was left.
        on_leave: Called first when the context is left; must not wait.
        on_late: Called half a second before the end of the grace, or in its middle if that is
            later, if requests are still in progress; must not wait.

    Raises:
        ConfigError: The address, a limit or a file of TLS cannot be used, h11 or h2
            is missing, or the system does not report which user a connection comes from.
    """
    limits = limits or HttpLimits()
    try:
        from etcd_actions.web.accepting import Acceptor, Admission  # noqa: PLC0415
        from etcd_actions.web.connection import Shared  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{flag}: nothing can be served ({error}): pip install etcd-actions[server]"
        ) from error
    most = descriptors.most_connections(limits, flag)
    per_address = limits.connections_per_address or max(1, most // 2)
    connections = Connections(most, per_address, replaces_busy=limits.replaces_busy)
    counts = ListenerStatistics()
    with ExitStack() as stack:
        context = None if tls is None else tls.context()

        def reload() -> None:
            if tls is not None and context is not None:
                # Load them into another context first: an incomplete pair must not replace the old.
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
            LogLimits(flag),
        )
        shared = Shared(answering, context)
        acceptor = Acceptor(listening, shared, connections, admission, flag)
        async with owned_tasks("the listener") as nursery:
            # A cancellation from outside does not reach the requests.
            scope = trio.CancelScope(shield=True)
            lateness = trio.CancelScope(shield=True)
            nursery.start_soon(_run, acceptor, scope, lateness)
            try:
                yield Listener(Bind(host, port), counts, connections, reload)
            finally:
                on_leave()
                scope.deadline = trio.current_time() + grace
                nursery.start_soon(_notify_when_late, lateness, grace, on_late)
                acceptor.leave()


async def _run(acceptor: Acceptor, scope: trio.CancelScope, lateness: trio.CancelScope) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_abort_at_last, acceptor)
            async with trio.open_nursery() as connections:
                await acceptor.run(connections)
            nursery.cancel_scope.cancel("all requests are done")
    lateness.cancel("all requests are done")


async def _abort_at_last(acceptor: Acceptor) -> None:
    """Close all connections: a cancellation does not interrupt a task that sends."""
    try:
        await trio.sleep_forever()
    finally:
        acceptor.abort()


async def _notify_when_late(
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
            # Accepted sockets inherit these: a client whose machine is down is detected.
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
        # An invalid name, such as one with an empty part, is a UnicodeError.
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{flag}: cannot listen on {bind}: {reason}: give another address"
        ) from None
    return listening
