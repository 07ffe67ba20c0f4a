"""The store: one etcd of one member, which all its clients share."""

from __future__ import annotations

from etcd_actions._internal.argument_types import checks_types
from etcd_actions.etcd.api import AlarmType
from etcd_actions.etcd.connection_settings import (
    DEFAULT_REQUEST_TIMEOUT,
    ConnectionSettings,
)
from etcd_actions.etcd.endpoints import Endpoint, parse_endpoints
from etcd_actions.etcd.versions import EtcdVersion
from etcd_actions.testing.memory.connection import MemoryClient, MemoryConnection
from etcd_actions.testing.memory.engine import Engine, Order
from etcd_actions.testing.memory.faults import Faults


class MemoryStore:
    """An etcd in memory, of one member, without a network: for tests.

    All methods of :class:`~etcd_actions.etcd.api.Etcd` behave as those of the etcd with
    :attr:`version`: the conformance suite of this package runs on it, too. It owns no task, and
    needs no close. Leases expire on trio's clock, so a store belongs to one ``trio.run``, and with
    trio's autojump clock no test waits for them.

    Two things differ from etcd: there are no users and no TLS, and a watch that was created in time
    gets all events, also those that were compacted before its reader took them.

    Args:
        order: The order of the answer to a write and its event at a waiting stream: always
            ``answers_first`` or ``events_first``, or ``any``, at random.
        seed: Of the random order.
        least_ttl: The shortest time to live of a lease, in seconds; etcd's, with its default
            timing, is 2.
    """

    @checks_types
    def __init__(self, *, order: Order = "any", seed: int = 0, least_ttl: int = 2) -> None:
        self._engine = Engine(order=order, seed=seed, least_ttl=least_ttl)
        self._clients: list[Faults] = []

    @property
    def endpoint(self) -> str:
        """Its address for clients; connections to any other endpoint are refused."""
        return self._engine.endpoint

    @property
    def version(self) -> EtcdVersion:
        """The version of etcd whose behaviour it has."""
        return self._engine.version

    @property
    def alarms(self) -> set[AlarmType]:
        """The raised alarms; a test may change the set. With NOSPACE writes are refused."""
        return self._engine.alarms

    @checks_types
    def client(
        self, *, endpoints: str = "", request_timeout: float = DEFAULT_REQUEST_TIMEOUT
    ) -> MemoryClient:
        """A client, with faults of its own. Its ``close`` is optional.

        Args:
            endpoints: As in :func:`~etcd_actions.etcd.open_etcd`; :attr:`endpoint` by default.
            request_timeout: Seconds after which a call raises
                :class:`~etcd_actions.errors.Unavailable`.
        """
        settings = ConnectionSettings(
            endpoints=parse_endpoints(endpoints or self.endpoint), request_timeout=request_timeout
        )
        faults = Faults(lambda: self._engine.suspended)
        self._clients.append(faults)

        def connect(endpoint: Endpoint) -> MemoryConnection:
            return MemoryConnection(self._engine, endpoint, faults, settings)

        return MemoryClient(settings, connect, faults)

    def suspend(self) -> None:
        """Answer no client until :meth:`resume`, as after SIGSTOP."""
        self._engine.suspended = True
        self._ring()

    def resume(self) -> None:
        """End :meth:`suspend`: the waiting calls and streams continue."""
        self._engine.suspended = False
        self._ring()

    def _ring(self) -> None:
        for faults in self._clients:
            faults.ring()
