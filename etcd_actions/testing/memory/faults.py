"""The faults between one client and the store, scripted by a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import trio

from etcd_actions.errors import EtcdError


class Call(NamedTuple):
    """A call of a client.

    Attributes:
        method: Its name in etcd's API, such as ``KV/Txn``.
        writes: Whether the outcome is unknown if the answer is lost.
        request: The method's argument: a ``Txn``, a ``Put``, a ``RangeRequest``, ...
    """

    method: str
    writes: bool
    request: object


Which: TypeAlias = Callable[[Call], bool]


def any_call(_: Call) -> bool:
    """Every call."""
    return True


def any_write(call: Call) -> bool:
    """Puts, deletes, transactions, compactions, and leases that are granted or revoked."""
    return call.writes


@dataclass
class Held:
    """A call that waits right before its effect; see :meth:`Faults.hold`.

    Attributes:
        reached: Set when the call waits.
        call: The call; None before that.
    """

    reached: trio.Event = field(default_factory=trio.Event)
    call: Call | None = None
    _released: trio.Event = field(default_factory=trio.Event)

    def release(self) -> None:
        """Let the call continue."""
        self._released.set()

    async def wait(self, call: Call) -> None:
        """Make ``call`` wait for :meth:`release`; the connection calls it."""
        self.call = call
        self.reached.set()
        await self._released.wait()


@dataclass
class Script:
    """The fault of the next calls of a kind: an error, a wait, or a lost answer."""

    which: Which
    times: int
    error: EtcdError | None = None
    held: Held | None = None
    applied: bool = False


class ConnectionBroken(Exception):
    """The connection of a call broke while it was in flight."""


class Faults:
    """The faults of all connections of one client.

    Attributes:
        latency: Seconds, on trio's clock, that each message takes each way.
        watch_refusal: etcd's text with which new watchers are refused, such as
            ``etcdserver: permission denied``; empty to accept them.
    """

    def __init__(self, store_stalls: Callable[[], bool]) -> None:
        self.latency: float = 0.0
        self.watch_refusal = ""
        self._store_stalls = store_stalls
        self._cut = False
        self._stalled = False
        self._epoch = 0
        self._scripts: list[Script] = []
        self._bell = trio.lowlevel.ParkingLot()
        self._rings: dict[Callable[[], None], None] = {}

    @property
    def is_cut(self) -> bool:
        """Whether the store cannot be reached."""
        return self._cut

    @property
    def is_stalled(self) -> bool:
        """Whether messages wait, both ways."""
        return self._stalled or self._store_stalls()

    @property
    def epoch(self) -> int:
        """How often the connections were broken: calls and streams of an earlier epoch fail."""
        return self._epoch

    def cut(self) -> None:
        """Break all connections, and refuse new ones until :meth:`heal`.

        Streams fail, and calls that are in flight: a write among them is an
        :class:`~etcd_actions.errors.OutcomeUnknown`, whether it was applied or not.
        """
        self._cut = True
        self.break_connections()

    def break_connections(self) -> None:
        """Break all connections; the next call opens another one."""
        self._epoch += 1
        self.ring()

    def heal(self) -> None:
        """End :meth:`cut` and :meth:`stall`."""
        self._cut = self._stalled = False
        self.ring()

    def stall(self) -> None:
        """Delay all messages, both ways, until :meth:`heal`: calls time out.

        Streams fail after the keep-alive time and timeout, as a silent connection does.
        """
        self._stalled = True
        self.ring()

    def lose_answer(self, *, applied: bool, which: Which = any_write, times: int = 1) -> None:
        """Lose the answers of the next calls: a write's outcome is unknown.

        Args:
            applied: Whether the calls take effect nevertheless.
            which: Selects the calls.
            times: The number of calls.
        """
        self._scripts.append(Script(which, times, applied=applied))

    def refuse(self, error: EtcdError, *, which: Which = any_call, times: int = 1) -> None:
        """Have the next ``times`` calls selected by ``which`` raise ``error``, without effect."""
        self._scripts.append(Script(which, times, error=error))

    @contextmanager
    def hold(self, which: Which = any_write) -> Iterator[Held]:
        """Hold the next call right before its effect, until it is released or the context is left.

        So a test can change keys between a task's read and its write.
        """
        script = Script(which, 1, held=Held())
        self._scripts.append(script)
        assert script.held is not None
        try:
            yield script.held
        finally:
            script.times = 0
            script.held.release()

    def next_script(self, call: Call) -> Script | None:
        """Take the script for a call; None if there is none."""
        found = next((each for each in self._scripts if each.times and each.which(call)), None)
        if found is not None:
            found.times -= 1
        self._scripts = [each for each in self._scripts if each.times]
        return found

    def ring(self) -> None:
        """Have all waiting calls and streams check the faults again."""
        self._bell.unpark_all()
        for ring in list(self._rings):
            ring()

    @contextmanager
    def ringing(self, ring: Callable[[], None]) -> Iterator[None]:
        """Call ``ring`` at each change of the faults, until the context ends."""
        self._rings[ring] = None
        try:
            yield
        finally:
            del self._rings[ring]

    async def travel(self, epoch: int) -> None:
        """Wait for the arrival of a message.

        Raises:
            ConnectionBroken: The connections were broken since ``epoch``.
        """
        arrives = trio.current_time() + self.latency
        while True:
            if self._epoch != epoch:
                raise ConnectionBroken
            if self.is_stalled:
                await self._bell.park()
            elif (left := arrives - trio.current_time()) > 0:
                with trio.move_on_after(left):
                    await self._bell.park()
            else:
                return
