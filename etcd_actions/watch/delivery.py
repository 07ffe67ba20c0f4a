"""Delivers changes to a sink, and lets other tasks run in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import trio

from etcd_actions.watch.change import Change
from etcd_actions.watch.delivered import Sink
from etcd_actions.watch.store_identity import StoreIdentity

_TURN = 128
"""Changes that are delivered before other tasks run."""

Merge = Callable[[Sequence[Change]], Sequence[Change]]
"""Returns the changes of a batch without those that newer ones of the batch replace."""


class Delivery:
    """Delivers the changes of a reflector.

    Args:
        sink: Receives the changes.
        merge: See :class:`~etcd_actions.watch.reflector.Reflector`.
        identity: Keeps the newest changes as reference keys.

    Attributes:
        events: Number of changes that were delivered, before they were merged.
        turn: Number of changes that were delivered since other tasks ran.
        last_received: When etcd last sent something, on trio's clock.
    """

    def __init__(self, sink: Sink, merge: Merge | None, identity: StoreIdentity) -> None:
        self._sink = sink
        self._merge = merge
        self._identity = identity
        self.wait_list_capacity = sink.wait_list_capacity
        self.wait_stream_capacity = sink.wait_stream_capacity
        self.events = 0
        self.turn = 0
        self.last_received = -math.inf

    async def deliver(self, changes: Sequence[Change]) -> None:
        """Deliver changes; other tasks run in between.

        It cannot be cancelled. If the sink raises, the changes that it noted count as delivered.
        """
        self.events += len(changes)
        self._identity.remember(changes)
        if self._merge is not None and len(changes) > 1:
            changes = self._merge(changes)
        for start in range(0, len(changes), _TURN):
            part = changes if len(changes) <= _TURN else changes[start : start + _TURN]
            if self.turn >= _TURN:
                self.turn = 0
                await trio.lowlevel.cancel_shielded_checkpoint()
            self.turn += len(part)
            self._sink.dispatch(part)
