"""An etcd in memory, on trio's clock, with faults on demand; the conformance suite runs on it."""

from __future__ import annotations

from etcd_actions.testing.memory.connection import MemoryClient
from etcd_actions.testing.memory.engine import Order
from etcd_actions.testing.memory.faults import Call, Faults, Held, any_call, any_write
from etcd_actions.testing.memory.store import MemoryStore

__all__ = [
    "Call",
    "Faults",
    "Held",
    "MemoryClient",
    "MemoryStore",
    "Order",
    "any_call",
    "any_write",
]
