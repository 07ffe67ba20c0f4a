"""HTTP/1.1 to one member: etcd3-py's client, on connections that another thread can end.

The library requests blocks, and cannot cancel a request. So each request has an :class:`Exchange`,
which has the socket from the attempt to connect on. Shutting the socket down ends each wait of the
thread: for the connection, the handshake or the answer.

The session, the headers and the API prefix are etcd3-py's. Its encoding and decoding, which take
milliseconds, and its errors are not used.
"""

from __future__ import annotations

import http
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from typing import Any

import etcd3
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.gateway.errors import ConnectFailed
from etcd_actions.etcd.tls import client_context

FAILURES = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    HTTPException,
    OSError,
    UnicodeError,
)
"""The exceptions of a request."""

_API_PREFIX = "/v3"
"""The prefix of etcd 3.4 and all later versions."""

_GREETING = "/version"
_LONGEST_GREETING = 64 * 1024
_AWAY = (502, 503, 504)
"""The statuses of a proxy whose etcd cannot be reached."""

_IDLE_LIMIT = 5.0
"""Seconds after which a connection is not used again: its other end may be closing it."""


class Exchange:
    """One request and its answer.

    Attributes:
        dialled: Whether it tried to connect.
        sent: Whether any of it may have left this machine. It does not change after :meth:`cut`.

    Args:
        silence: The longest silence of the other side, in seconds.
    """

    def __init__(self, silence: float) -> None:
        self.dialled = False
        self.sent = False
        self.silence = silence
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._cut = threading.Event()
        self._descriptor = -1

    def cut(self) -> None:
        """End it at once, from any thread; a thread that waits for its socket gets an error."""
        with self._lock:
            self._cut.set()
            if self._descriptor >= 0:
                _shut_down(self._descriptor)

    def finish(self) -> None:
        """Release the socket, which another exchange may use now."""
        with self._lock:
            self._release()

    def wait_cut(self, seconds: float) -> bool:
        """Wait for at most ``seconds`` until it is cut; returns whether it is."""
        return self._cut.wait(seconds)

    def bound_silence(self, seconds: float) -> None:
        """Limit the silence of the other side from now on. For the thread that reads."""
        if self._socket is not None:
            self._socket.settimeout(seconds)

    def dial(self, connecting: socket.socket) -> None:
        """Note the socket that is about to connect."""
        with self._lock:
            self._check()
            self.dialled = True
            self._hold(connecting)

    def send(self, connected: socket.socket) -> None:
        """Note the socket that is about to send."""
        with self._lock:
            self._check()
            self.sent = True
            if self._descriptor < 0:
                self._hold(connected)
            if self._socket is not connected:
                self._socket = connected
                # Before the answer urllib3 applies the timeout of connecting.
                connected.settimeout(self.silence)

    def _check(self) -> None:
        if self._cut.is_set():
            raise ConnectionAbortedError("given up")

    def _hold(self, held: socket.socket) -> None:
        # A duplicate, because a handshake moves the descriptor to another object, and a connection
        # that is closed while its answer is read drops it.
        self._release()
        self._descriptor = os.dup(held.fileno())

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._socket = None


class _Current(threading.local):
    """The present exchange of a thread."""

    exchange: Exchange | None = None


_current = _Current()


class _Tracked(HTTPConnection):
    """A connection that reports its socket to the present exchange."""

    _used = 0.0
    _give_up = 0.0

    def connect(self) -> None:
        """Connect, and receive an answer before the first request is sent."""
        self._give_up = time.monotonic() + _seconds(self.timeout)
        try:
            self._establish()
            if not self._greet():
                self.close()
                self._establish()
        except (ConnectionResetError, BrokenPipeError):
            raise ConnectFailed(self._when_reset) from None

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None and time.monotonic() - self._used > _IDLE_LIMIT:
            self.close()
        if self.sock is None:
            # Here, because http.client would connect while it sends.
            self.connect()
        super().request(*args, **kwargs)
        self._used = time.monotonic()

    def send(self, data: Any) -> None:
        if _current.exchange is not None:
            _current.exchange.send(self.sock)
        super().send(data)

    def _establish(self) -> None:
        super().connect()
        # The context decides about verification; this avoids a warning at each connection.
        self.is_verified = True

    def _new_conn(self) -> socket.socket:
        """As urllib3's, but the timeout is for all addresses, and the exchange can be cut."""
        failure: OSError = ConnectFailed("the host has no address")
        addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in addresses:
            connecting = socket.socket(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    connecting.setsockopt(*option)
                connecting.settimeout(self._remaining())
                if _current.exchange is not None:
                    _current.exchange.dial(connecting)
                connecting.connect(address)
            except OSError as error:
                connecting.close()
                failure = error
            else:
                return connecting
        raise failure

    def _greet(self) -> bool:
        """Read the server's version; returns False if the answer ends the connection.

        Any answer is accepted. The request detects a listener that accepts connections and sends
        nothing, and a certificate that is refused after the handshake. So no write, whose outcome
        would be unknown, is sent to such a server.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.sock.settimeout(self._remaining())
        self.sock.sendall(f"GET {_GREETING} HTTP/1.1\r\nHost: {host}:{self.port}\r\n\r\n".encode())
        answer = HTTPResponse(self.sock, method="GET")
        try:
            answer.begin()
            text = answer.read(_LONGEST_GREETING)
            if answer.status in _AWAY:
                raise ConnectFailed(f"a proxy says HTTP {answer.status} {answer.reason}")
            if answer.status == http.HTTPStatus.BAD_REQUEST and b"HTTPS" in text:
                raise ConnectFailed("the server does not speak plain HTTP; does it require TLS?")
            return answer.isclosed() and not answer.will_close
        except (RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            raise ConnectFailed(self._when_closed) from None
        finally:
            answer.close()

    def _remaining(self) -> float:
        return max(0.001, self._give_up - time.monotonic())

    _when_reset = "the server reset the connection"
    _when_closed = "the server closed the connection at once; does it require TLS?"


class _TrackedTls(_Tracked, HTTPSConnection):
    """The same, encrypted."""

    _when_reset = "reset in the handshake; does it use TLS?"
    _when_closed = (
        "the server closed the connection after the handshake; "
        "perhaps it requires a client certificate, or another one"
    )


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Tracked


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TrackedTls


class _Adapter(HTTPAdapter):
    """Makes the library use the connections above, and the context instead of file names."""

    def __init__(self, connections: int, **of_connections: Any) -> None:
        self._of_connections = of_connections
        super().__init__(pool_connections=1, pool_maxsize=connections, max_retries=0)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs, **self._of_connections)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """The context verifies."""


class _Client(etcd3.Client):  # type: ignore[misc] # etcd3-py has no types
    """etcd3-py's client, without the request at its creation, and without its errors."""

    def _retrieve_version(self) -> None:
        """Send no request."""

    def _verify_version(self) -> None:
        """Check no version."""

    def _get_prefix(self) -> None:
        self.api_prefix = _API_PREFIX

    @staticmethod
    def _raise_for_status(resp: requests.Response) -> None:
        """Do not raise: the transport examines the status with the answer."""

    def _post(self, url: str, **kwargs: Any) -> requests.Response:
        # Many proxies refuse a header with an underscore.
        kwargs["headers"].pop("user_agent", None)
        response: requests.Response = super()._post(url, **kwargs)
        return response

    def adopt(self, adapter: HTTPAdapter) -> None:
        """Use this adapter, and no settings of the environment: no proxy, no netrc."""
        self._session.close()
        self._session.trust_env = False
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        self._session.headers.update(
            {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        )


class Body:
    """A request's body that comes in two parts.

    Args:
        first: Sent at once.
        second: Sent after ``pause`` seconds.
        pause: Seconds; it ends early when the exchange is cut.
        exchange: The exchange of the request.
    """

    def __init__(self, first: bytes, second: bytes, pause: float, exchange: Exchange) -> None:
        self._first = first
        self._second = second
        self._pause = pause
        self._exchange = exchange

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        self._exchange.wait_cut(self._pause)
        yield self._second


class HttpSession:
    """Sends requests to one member. Its methods block: call them in threads.

    Args:
        endpoint: The member.
        settings: How to reach it. The files are read at once.
        connections: How many connections to keep for the next requests.

    Raises:
        ConfigError: A file cannot be used; the message names it.
    """

    def __init__(self, endpoint: Endpoint, settings: ConnectionSettings, connections: int) -> None:
        self._dial_timeout = settings.dial_timeout
        options: dict[str, Any] = {"socket_options": _socket_options(settings)}
        tls = settings.tls_for(endpoint)
        if tls is not None:
            context = client_context(tls)
            context.set_alpn_protocols(["http/1.1"])
            options["ssl_context"] = context
            options["server_hostname"] = tls.server_name or endpoint.host
        self._client = _Client(
            host=f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host,
            port=endpoint.port,
            protocol="http" if tls is None else "https",
            verify=tls is not None and not tls.skip_verify,
        )
        self._client.adopt(_Adapter(connections, **options))

    def post(
        self,
        exchange: Exchange,
        path: str,
        body: bytes | Body,
        *,
        headers: Mapping[str, str],
    ) -> requests.Response:
        """Send a request and wait for the head of the answer.

        Args:
            exchange: The exchange of the request. The caller finishes it after reading the answer.
            path: The path below the API prefix.
            body: The JSON.
            headers: Further headers.

        Raises:
            FAILURES: The request was not sent, or no answer arrived.
        """
        _current.exchange = exchange
        try:
            response: requests.Response = self._client.call_rpc(
                path,
                data=body,
                stream=True,
                raw=True,
                timeout=(min(self._dial_timeout, exchange.silence), exchange.silence),
                headers=dict(headers),
                # A redirect would send the token to another server.
                allow_redirects=False,
            )
        finally:
            _current.exchange = None
        return response

    def close(self) -> None:
        """Close the unused connections; each of the others is closed after its use."""
        self._client.close()


def call_headers(token: str, *, leader: bool) -> dict[str, str]:
    """The headers that become gRPC's metadata."""
    headers = {"Grpc-Metadata-hasleader": "true"} if leader else {}
    if token:
        headers["Authorization"] = token
    return headers


def _seconds(timeout: object) -> float:
    return float(timeout) if isinstance(timeout, (int, float)) else math.inf


def _shut_down(descriptor: int) -> None:
    shared = socket.socket(fileno=descriptor)
    try:
        shared.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It is not connected.
        return
    finally:
        shared.detach()


def _socket_options(settings: ConnectionSettings) -> list[tuple[int, int, int]]:
    """The options by which the system detects a broken network path, as far as it has them."""
    probes = 3
    idle = max(1, round(settings.keepalive_time))
    pause = max(1, round(settings.keepalive_timeout / probes))
    all_of_it = round((settings.keepalive_time + settings.keepalive_timeout) * 1000)
    options = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    for name, value in (
        ("TCP_KEEPIDLE", idle),
        ("TCP_KEEPINTVL", pause),
        ("TCP_KEEPCNT", probes),
        ("TCP_USER_TIMEOUT", all_of_it),
    ):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
