"""Which member should own which shard: rendezvous hashing with bounded loads.

Each shard ranks all members by a hash of member and shard. In the order of their ids the shards go
to their highest-ranked member that has fewer than ``ceil(shards / members)`` shards. So the loads
differ little, and few shards move when a member joins or leaves. All processes compute the same
assignment of the same members, so they need not agree on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b


def ranked(shard: int, members: Iterable[str]) -> list[str]:
    """The members in the order in which a shard prefers them."""
    return sorted(members, key=lambda member: (_weight(shard, member), member), reverse=True)


def assign(shards: Iterable[int], members: Iterable[str]) -> dict[int, str]:
    """The member that should own each shard; nothing without members."""
    in_order, names = sorted(shards), set(members)
    if not names:
        return {}
    most = -(-len(in_order) // len(names))
    loads: Counter[str] = Counter()
    targets: dict[int, str] = {}
    for shard in in_order:
        target = next(member for member in ranked(shard, names) if loads[member] < most)
        loads[target] += 1
        targets[shard] = target
    return targets


def _weight(shard: int, member: str) -> bytes:
    """A hash that is the same in all processes and versions, so that their assignments agree."""
    return blake2b(f"{shard:d} {member}".encode(), digest_size=8).digest()
