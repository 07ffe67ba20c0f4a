"""The open connections of one listener, and which of them makes room for a new one."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, IPv6Network

from etcd_actions.serving.bind import plain_address


class Slot:
    """The place of one connection.

    Attributes:
        peer: Where its client is.
        close: Closes it at once; must not wait.
    """

    def __init__(self, owner: Connections, peer: str, address: str) -> None:
        self._owner = owner
        self.peer = peer
        self.address = address
        self.close: Callable[[], None] = lambda: None
        self.was_busy = False

    def busy(self) -> None:
        """A request is under way."""
        self.was_busy = True
        self._owner.move(self, self._owner.busy)

    def idle(self) -> None:
        """No request is under way."""
        self._owner.move(self, self._owner.idle)


Order = OrderedDict[Slot, None]


class Connections:
    """A budget of connections.

    Args:
        most: How many there may be.
        most_per_address: How many of one address.
        replaces_busy: Whether one with a request may be replaced.

    Attributes:
        fresh: Those that have not had a request yet, the oldest first.
        idle: Those that have none now, the one idle for longest first.
        busy: Those that have one, the one busy for longest first.
    """

    def __init__(self, most: int, most_per_address: int, *, replaces_busy: bool) -> None:
        self.most = most
        self._most_per_address = most_per_address
        self._replaces_busy = replaces_busy
        self.fresh: Order = OrderedDict()
        self.idle: Order = OrderedDict()
        self.busy: Order = OrderedDict()
        self._of_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.fresh) + len(self.idle) + len(self.busy)

    def __iter__(self) -> Iterator[Slot]:
        for order in (self.fresh, self.idle, self.busy):
            yield from list(order)

    def room_for(self, address: str) -> tuple[str, Slot | None] | None:
        """Why there is no room for a connection, and which one may be replaced; None for room."""
        if self._of_address[_network(address)] >= self._most_per_address:
            return "address", self.replaceable(_network(address))
        if len(self) >= self.most:
            return "total", self.replaceable()
        return None

    def replaceable(self, network: str | None = None) -> Slot | None:
        """The connection that is missed least, of one address or of all."""
        orders = [self.fresh, self.idle]
        if self._replaces_busy:
            orders.append(self.busy)
        for order in orders:
            for slot in order:
                if network is None or slot.address == network:
                    return slot
        return None

    def add(self, peer: str, address: str) -> Slot:
        """Count a new connection."""
        slot = Slot(self, peer, _network(address))
        self.fresh[slot] = None
        self._of_address[slot.address] += 1
        return slot

    def move(self, slot: Slot, to: Order) -> None:
        """Note what a connection does now; one that is not counted any more stays so."""
        for order in (self.fresh, self.idle, self.busy):
            if slot in order:
                del order[slot]
                to[slot] = None
                return

    def remove(self, slot: Slot) -> bool:
        """Count a connection no more; returns whether it was counted."""
        for order in (self.fresh, self.idle, self.busy):
            if slot in order:
                del order[slot]
                self._of_address[slot.address] -= 1
                if not self._of_address[slot.address]:
                    del self._of_address[slot.address]
                return True
        return False


def _network(address: str) -> str:
    """What counts as one address."""
    if ":" not in address:
        return address
    plain = plain_address(address)
    if isinstance(plain, IPv6Address) and not plain.is_loopback:
        return str(IPv6Network((plain, 64), strict=False))
    return str(plain or address)
