"""Serves an ASGI application over HTTP/1.1 and HTTP/2, by hypercorn on trio.

Leaving a listener is orderly however it comes about: what the application is told first is that
no more requests are taken, so that it can return its streams; then the requests under way may
finish; only what is left after the grace is cut off. A cancellation of whoever holds the
listener, by the crash of a sibling for instance, reaches no request before that.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import structlog
import trio

from etcd_actions.errors import ConfigError

if TYPE_CHECKING:
    from hypercorn.config import Config, Sockets

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
"""An ASGI application."""

# hypercorn's default ends a long-lived gRPC connection with an error at its 1,001st request.
_NO_LIMIT = 1_000_000_000
_BACKLOG = 1024

_log = structlog.get_logger(__name__)


class Bind(NamedTuple):
    """Where to listen; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """How a listener encrypts. Files are in PEM.

    Attributes:
        cert: Its certificate, with what is needed up to the authority.
        key: The key of that, without a passphrase.
        client_ca: The authorities one of which must vouch for a client's certificate; None
            asks clients for none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Load the files.

        Raises:
            ConfigError: One of them is unusable.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"])
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Load the files into a context, which uses them for each new connection.

        Raises:
            ConfigError: One of them is unusable.
        """
        try:
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"TLS of the listener: {self.cert} with {self.key} cannot be used: {error}"
            ) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"TLS of the listener: {self.client_ca} cannot be used: {error}"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """What a listener takes from its clients.

    Attributes:
        header_bytes: The headers of a request, at most.
        streams_per_connection: Requests at once on one HTTP/2 connection, at most.
        idle_timeout: After so many seconds without a request a connection is closed.
        stall_timeout: A client that takes nothing for so many seconds is cut off.
        handshake_timeout: How many seconds the TLS handshake may take.
    """

    header_bytes: int = 64 * 1024
    streams_per_connection: int = 10_000
    idle_timeout: float = 75.0
    stall_timeout: float = 30.0
    handshake_timeout: float = 10.0


class Listener:
    """An application that is served; made by :func:`open_listener`.

    Attributes:
        address: Where it listens, with the port that the system chose.
    """

    def __init__(
        self, address: Bind, errors: Counter[str], reload: Callable[[], None] = lambda: None
    ) -> None:
        self.address = address
        self._errors = errors
        self._reload = reload

    def reload(self) -> None:
        """Read the files of TLS anew, for the connections that come.

        Raises:
            ConfigError: They are unusable; those that were read before go on to count.
        """
        self._reload()

    @property
    def protocol_errors(self) -> int:
        """How often a client left, or broke the protocol, in the middle of a request."""
        return self._errors["protocol"]


@asynccontextmanager
async def open_listener(
    application: Application,
    bind: Bind,
    *,
    flag: str,
    tls: ServerTls | None = None,
    limits: HttpLimits | None = None,
    grace: float = 5.0,
    on_leave: Callable[[], None] = lambda: None,
    on_late: Callable[[], None] = lambda: None,
) -> AsyncIterator[Listener]:
    """Serve an application for as long as the context lasts.

    Args:
        application: Who answers.
        bind: Where to listen.
        flag: What the errors call the place.
        tls: How to encrypt; None for not at all.
        limits: See :class:`HttpLimits`.
        grace: For how many seconds requests may go on after the context was left.
        on_leave: Called first when the context is left; must not wait.
        on_late: Called when most of the grace is over and requests still go on; likewise.

    Raises:
        ConfigError: The address or a file of TLS cannot be used, or hypercorn is missing.
    """
    limits = limits or HttpLimits()
    try:
        from hypercorn.trio import serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{flag}: nothing can be served ({error}): pip install etcd-actions[server]"
        ) from error
    errors: Counter[str] = Counter()
    context = None if tls is None else tls.context()

    def reload() -> None:
        if tls is not None and context is not None:
            # First into another one: half of a new pair is worse than the old one.
            tls.context()
            tls.load_into(context)

    listening = _listening_socket(bind, flag, limits)
    config = _config(listening, context, limits, grace, errors)
    stopping = trio.Event()
    # The requests' own: a cancellation from outside stops at it.
    scope = trio.CancelScope(shield=True)
    lateness = trio.CancelScope(shield=True)

    async def run(*, task_status: trio.TaskStatus[list[str]]) -> None:
        with scope:
            await serve(
                _with_lifespan(application),  # type: ignore[arg-type]
                config,
                shutdown_trigger=stopping.wait,
                task_status=task_status,
                mode="asgi",
            )
        lateness.cancel("all requests are done")

    async def tell_when_late() -> None:
        with lateness:
            await trio.sleep(grace * 0.9)
            on_late()

    with listening:
        host, port = listening.getsockname()[:2]
        async with trio.open_nursery() as nursery:
            try:
                # A cancellation would wait for ever: what starts is shielded, and is told to
                # stop only below. It waits for nobody, so this does not last.
                with trio.CancelScope(shield=True):
                    await nursery.start(run)
                yield Listener(Bind(host, port), errors, reload)
            finally:
                on_leave()
                stopping.set()
                scope.deadline = trio.current_time() + grace + 1
                nursery.start_soon(tell_when_late)


def _with_lifespan(application: Application) -> Application:
    """Answer what the server asks of an application's life; only requests get through."""

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    return answer


def _listening_socket(bind: Bind, flag: str, limits: HttpLimits) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # What is accepted inherits it. It is the only bound on a write of hypercorn's,
                # which nothing else can end.
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


def _config(
    listening: socket.socket,
    context: ssl.SSLContext | None,
    limits: HttpLimits,
    grace: float,
    errors: Counter[str],
) -> Config:
    from hypercorn.config import Config, Sockets  # noqa: PLC0415

    class Given(Config):
        """What cannot be said by hypercorn's settings."""

        def create_sockets(self) -> Sockets:
            sockets = [listening.dup()]
            return Sockets(sockets, [], []) if context else Sockets([], sockets, [])

        def create_ssl_context(self) -> ssl.SSLContext | None:
            return context

    config = Given()
    config.errorlog = _logger(errors)
    config.accesslog = None
    config.backlog = _BACKLOG
    config.include_server_header = False
    config.graceful_timeout = grace
    config.keep_alive_timeout = limits.idle_timeout
    config.keep_alive_max_requests = _NO_LIMIT
    config.ssl_handshake_timeout = limits.handshake_timeout
    config.h11_max_incomplete_size = limits.header_bytes
    config.h2_max_header_list_size = limits.header_bytes
    config.h2_max_concurrent_streams = limits.streams_per_connection
    return config


def _logger(errors: Counter[str]) -> logging.Logger:
    """Hypercorn's log, turned into ours."""
    # Not by getLogger: each listener has one, and nothing is to keep it.
    logger = logging.Logger("etcd_actions.serving", logging.WARNING)
    logger.addHandler(_Handler(errors))
    return logger


class _Handler(logging.Handler):
    """Counts what clients broke, and logs what the application did."""

    def __init__(self, errors: Counter[str]) -> None:
        super().__init__()
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and _is_protocol_error(error):
            self._errors["protocol"] += 1
            _log.debug("client_left", error=str(error))
            return
        _log.error("request_failed", message=record.getMessage(), exc_info=error)


def _is_protocol_error(error: BaseException) -> bool:
    """Whether somebody left in the middle, or sent what is no HTTP."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_protocol_error(each) for each in error.exceptions)
    module = type(error).__module__.partition(".")[0]
    return module in ("h11", "h2", "wsproto") or isinstance(
        error,
        (
            ConnectionError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.TooSlowError,
        ),
    )
