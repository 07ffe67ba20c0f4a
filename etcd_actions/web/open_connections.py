"""The open connections of one listener, and which of them makes room for a new one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from typing import Final

import trio

from etcd_actions.web.bind import plain_address

# A client needs some time between its connection and its request, and between two requests.
_YOUNG: Final = 1.0


class Slot:
    """The place of one connection.

    Attributes:
        peer: Where its client is.
        close: Closes its socket at once; must not wait.
        since: When it began to be what it is: fresh, idle or busy.
        is_replaced: Whether another connection has its place; its socket is closed.
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
        """A request is under way."""
        self._move(self._group.busy)

    def idle(self) -> None:
        """No request is under way."""
        self._move(self._group.idle)

    def leave(self) -> bool:
        """Give the place up; returns whether it was held until now."""
        if self._order is None:
            return False
        del self._order[self]
        self._order = None
        self._group.let_go()
        return True

    def replace(self) -> None:
        """Give the place up, and close the socket: nothing is open that is not counted."""
        if self.leave():
            self.is_replaced = True
            self.close()

    def _move(self, to: Order) -> None:
        if self._order is None:
            # One that is not counted any more stays so.
            return
        del self._order[self]
        self._order = to
        to[self] = None
        self.since = trio.current_time()


Order = OrderedDict[Slot, None]


class _Group:
    """The connections of one address, by what they do; in each order the oldest is first.

    Attributes:
        fresh: Those that have not had a request yet.
        idle: Those that have none now.
        busy: Those that have one.
    """

    def __init__(self, let_go: Callable[[], None]) -> None:
        self.fresh: Order = OrderedDict()
        self.idle: Order = OrderedDict()
        self.busy: Order = OrderedDict()
        self.let_go = let_go

    def __len__(self) -> int:
        return len(self.fresh) + len(self.idle) + len(self.busy)

    def unused(self) -> Slot | None:
        """The oldest that has had time for a request and has sent none."""
        return _oldest(self.fresh, trio.current_time() - _YOUNG)

    def replaceable(self, *, also_busy: bool) -> Slot | None:
        """The connection that is missed least."""
        old = trio.current_time() - _YOUNG
        slot = self.unused() or _oldest(self.idle, old) or _oldest(self.fresh)
        slot = slot or _oldest(self.idle)
        return _oldest(self.busy) if slot is None and also_busy else slot


class Connections:
    """A budget of connections.

    Args:
        most: How many there may be.
        most_per_address: How many of one address.
        replaces_busy: Whether one with a request may be replaced.
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
        """How many have a request."""
        return sum(len(group.busy) for group in self._groups.values())

    def room_for(self, address: str) -> tuple[str, Slot | None] | None:
        """Why there is no room for a connection, and which one may be replaced; None for room."""
        group = self._groups.get(_network(address))
        if group is not None and len(group) >= self._most_per_address:
            return "address", group.replaceable(also_busy=self._replaces_busy)
        if self._count >= self.most:
            return "total", self.replaceable(address)
        return None

    def replaceable(self, address: str | None = None) -> Slot | None:
        """The connection that makes room for one of an address, or of an unknown one.

        It is one of the address that has most of them. An address takes nothing from those
        that have fewer than itself, except what is not in use.
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

        def let_go() -> None:
            self._count -= 1
            if not group:
                del self._groups[network]

        group = self._groups.get(network)
        if group is None:
            group = self._groups[network] = _Group(let_go)
        self._count += 1
        return Slot(peer, group, close)


def _oldest(order: Order, before: float = float("inf")) -> Slot | None:
    slot = next(iter(order), None)
    return slot if slot is not None and slot.since <= before else None


def _network(address: str) -> str:
    """What counts as one address."""
    if ":" not in address:
        return address
    plain = plain_address(address)
    if isinstance(plain, IPv6Address) and not plain.is_loopback:
        return str(IPv6Network((plain, 64), strict=False))
    return str(plain or address)
