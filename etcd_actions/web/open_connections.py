"""The budget of a listener's connections, and the choice of the one that a new one replaces."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from typing import Final

import trio

from etcd_actions.web.bind import plain_address

# Seconds that a client may need between its connection and its request, and between two requests.
_YOUNG: Final = 1.0


class Slot:
    """The slot of one connection.

    Attributes:
        peer: The client's address.
        close: Closes its socket at once; must not wait.
        since: When it became fresh, idle or busy.
        is_replaced: Whether another connection has its slot; its socket is closed.
    """

    def __init__(self, peer: str, group: _Group, close: Callable[[], None]) -> None:
        self.peer = peer
        self.close = close
        self.since = trio.current_time()
        self.is_replaced = False
        self._group = group
        self._order: Order | None = group.fresh
        group.fresh[self] = None

    def busy(self) -> None:
        """Note that a request is in progress."""
        self._move(self._group.busy)

    def idle(self) -> None:
        """Note that no request is in progress."""
        self._move(self._group.idle)

    def release(self) -> bool:
        """Release the slot; returns False if it was released before."""
        if self._order is None:
            return False
        del self._order[self]
        self._order = None
        self._group.on_release()
        return True

    def replace(self) -> None:
        """Release the slot, and close the socket: each open one is counted."""
        if self.release():
            self.is_replaced = True
            self.close()

    def _move(self, to: Order) -> None:
        if self._order is None:
            # A released slot stays released.
            return
        del self._order[self]
        self._order = to
        to[self] = None
        self.since = trio.current_time()


Order = OrderedDict[Slot, None]


class _Group:
    """The connections of one address by state, each with the oldest first.

    Attributes:
        fresh: Those without a request so far.
        idle: Those without a request now.
        busy: Those with a request.
    """

    def __init__(self, on_release: Callable[[], None]) -> None:
        self.fresh: Order = OrderedDict()
        self.idle: Order = OrderedDict()
        self.busy: Order = OrderedDict()
        self.on_release = on_release

    def __len__(self) -> int:
        return len(self.fresh) + len(self.idle) + len(self.busy)

    def unused(self) -> Slot | None:
        """The oldest connection that had time for a request, and sent none."""
        return _oldest(self.fresh, trio.current_time() - _YOUNG)

    def replaceable(self, *, also_busy: bool) -> Slot | None:
        """The connection to replace first."""
        old = trio.current_time() - _YOUNG
        slot = self.unused() or _oldest(self.idle, old) or _oldest(self.fresh)
        slot = slot or _oldest(self.idle)
        return _oldest(self.busy) if slot is None and also_busy else slot


class Connections:
    """A budget of connections.

    Args:
        most: The most connections.
        most_per_address: The most connections of one address.
        replaces_busy: Whether a connection with a request may be replaced.
    """

    def __init__(self, most: int, most_per_address: int, *, replaces_busy: bool) -> None:
        self.most = most
        self._most_per_address = most_per_address
        self._replaces_busy = replaces_busy
        self._groups: dict[str, _Group] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def busy(self) -> int:
        """The number of connections with a request."""
        return sum(len(group.busy) for group in self._groups.values())

    def limit_for(self, address: str) -> tuple[str, Slot | None] | None:
        """The limit that a new connection exceeds, and the connection that it may replace."""
        group = self._groups.get(_network(address))
        if group is not None and len(group) >= self._most_per_address:
            return "address", group.replaceable(also_busy=self._replaces_busy)
        if self._count >= self.most:
            return "total", self.replaceable(address)
        return None

    def replaceable(self, address: str | None = None) -> Slot | None:
        """The connection that a new one may replace.

        It belongs to the address with most connections. A new connection of an address that has
        more connections than another one can replace only unused connections of that other one.

        Args:
            address: The address of the new connection; None if it is not known.
        """
        own = None if address is None else self._groups.get(_network(address))
        least = 0 if own is None else len(own)
        most = 0
        found: Slot | None = None
        for group in self._groups.values():
            if len(group) <= most:
                continue
            if len(group) >= least:
                slot = group.replaceable(also_busy=self._replaces_busy)
            else:
                slot = group.unused()
            if slot is not None:
                most, found = len(group), slot
        return found

    def add(self, peer: str, address: str, close: Callable[[], None]) -> Slot:
        """Count a new connection."""
        network = _network(address)

        def on_release() -> None:
            self._count -= 1
            if not group:
                del self._groups[network]

        group = self._groups.get(network)
        if group is None:
            group = self._groups[network] = _Group(on_release)
        self._count += 1
        return Slot(peer, group, close)


def _oldest(order: Order, before: float = float("inf")) -> Slot | None:
    slot = next(iter(order), None)
    return slot if slot is not None and slot.since <= before else None


def _network(address: str) -> str:
    """The network that counts as one address."""
    if ":" not in address:
        return address
    plain = plain_address(address)
    if isinstance(plain, IPv6Address) and not plain.is_loopback:
        return str(IPv6Network((plain, 64), strict=False))
    return str(plain or address)
