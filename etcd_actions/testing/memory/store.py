"""The store: one etcd of one member, which all its clients share."""

from __future__ import annotations

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

    It behaves as the version that it names in all that :class:`~etcd_actions.etcd.api.Etcd`
    offers: the conformance suite of this package also runs on it. It owns no task,
    and nothing has to be closed. Leases expire on trio's clock, so a store serves one
    ``trio.run``, and with trio's autojump clock no test waits for them.

    A client of it does not know users and TLS. It keeps no history for readers that stall: a
    watch that was created in time gets all events, also those that were compacted since.

    Args:
        order: Which arrives first, the answer to a write or its event at a stream that waits:
            ``answers_first`` or ``events_first`` always, or ``any``.
        seed: Which of both it is each time in the order ``any``.
        least_ttl: Seconds that each lease is granted at least; etcd's, with its usual timing, is 2.
    """

    def __init__(self, *, order: Order = "any", seed: int = 0, least_ttl: int = 2) -> None:
        self._engine = Engine(order=order, seed=seed, least_ttl=least_ttl)
        self._clients: list[Faults] = []

    @property
    def endpoint(self) -> str:
        """Where clients find it; at any other endpoint connections are refused."""
        return self._engine.endpoint

    @property
    def version(self) -> EtcdVersion:
        """The version of etcd that it behaves as."""
        return self._engine.version

    @property
    def alarms(self) -> set[AlarmType]:
        """The alarms that are raised, to be changed. With NOSPACE writes are refused."""
        return self._engine.alarms

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
        """Answer no client until :meth:`resume`, as a process that is stopped."""
        self._engine.suspended = True
        self._ring()

    def resume(self) -> None:
        """End :meth:`suspend`: the calls and streams that wait continue."""
        self._engine.suspended = False
        self._ring()

    def _ring(self) -> None:
        for faults in self._clients:
            faults.ring()
