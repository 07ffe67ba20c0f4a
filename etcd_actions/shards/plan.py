"""Which shards a member watches, and why: a pure function of the view that the member watches.

Every member computes the same targets (:mod:`etcd_actions.shards.assignment`). No two members need
the same view: ownership is decided by the election of each shard alone, and a plan by an old view
only delays that.

- The *target* of a shard watches it, stands for its election, and reports when it has listed.
- An *owner* that is not the target keeps the shard until the target is ready. Then it hands over.
- A *fallback* stands, too, when a shard had no owner for long: the member of rank 1 after twice
  the time to live of the election's lease, that of rank 2 after four times, and so on.
- All other members do not watch the shard.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from etcd_actions.shards.assignment import assign, ranked
from etcd_actions.shards.shard_table import Shard
from etcd_actions.shards.shard_view import ShardView

FALLBACK_AFTER: Final = 2
"""A fallback of rank n stands once a shard had no owner for n times this multiple of the time to
live of the election's lease."""


class Role(enum.Enum):
    """Why a member watches a shard. In each role it stands for election, or stays the owner."""

    TARGET = "target"
    """It should own the shard, or does."""
    FALLBACK = "fallback"
    """The shard had no owner for long."""
    KEEPING = "keeping"
    """It owns the shard, and the target is not ready."""
    HANDING_OVER = "handing over"
    """It owns the shard, and the target is ready."""


class Duty(NamedTuple):
    """A shard that a member watches, and why.

    Attributes:
        shard: The shard. If its range or revision is another one than before, it is another shard.
        role: Why the member watches it.
        target: The member that should own the shard; empty if there is no member.
        reason: The role in words, for logs and tables.
    """

    shard: Shard
    role: Role
    target: str
    reason: str

    @property
    def hands_over(self) -> bool:
        """Whether the member hands over: drains, saves the checkpoint, closes its term, resigns."""
        return self.role is Role.HANDING_OVER

    @property
    def stands(self) -> bool:
        """Whether the member stands for election if it does not own the shard."""
        return self.role in (Role.TARGET, Role.FALLBACK)

    @property
    def reports_ready(self) -> bool:
        """Whether the member reports when its watch has listed."""
        return self.role is Role.TARGET


@dataclass(frozen=True)
class Plan:
    """The duties of a member.

    Attributes:
        duties: The shards to watch, by id. The member stops watching all others. If it owns one of
            those, the shard was replaced: the member resigns first.
        replan_at: When a fallback is due, so that the plan changes without a change of the view,
            on trio's clock; infinite if none is.
    """

    duties: Mapping[int, Duty]
    replan_at: float = math.inf


def make_plan(
    view: ShardView, member: str, *, leading: Collection[int], now: float, ttl: float
) -> Plan | None:
    """The duties of a member.

    Args:
        view: The watched view.
        member: The member's name. If it is not in the view, it is leaving, or its lease was lost.
        leading: The ids of the shards whose elections this member has won, also if the view does
            not show that yet.
        now: The present time, on trio's clock.
        ttl: Seconds; the time to live of the elections' leases.

    Returns:
        The plan; None if the ranges do not divide the scope: then nothing changes.
    """
    if view.table.problem:
        return None
    targets = assign((shard.id for shard in view.table.shards), view.members)
    duties: dict[int, Duty] = {}
    replan_at = math.inf
    for shard in view.table.shards:
        target = targets.get(shard.id, "")
        owner = view.owners.get(shard.id)
        if target == member:
            is_taken = owner not in (None, member)
            reason = f"the target; the owner is {owner}" if is_taken else "the target"
            duties[shard.id] = Duty(shard, Role.TARGET, target, reason)
        elif owner == member or shard.id in leading:
            duties[shard.id] = _duty_of_owner(view, shard, target)
        elif owner is None and (rank := _fallback_rank(shard, target, view, member)):
            since = view.ownerless_since.get(shard.id, now)
            due = since + rank * FALLBACK_AFTER * ttl
            if now >= due:
                reason = f"no owner for {now - since:.0f} s; rank {rank}"
                duties[shard.id] = Duty(shard, Role.FALLBACK, target, reason)
            else:
                replan_at = min(replan_at, due)
    return Plan(duties, replan_at)


def _duty_of_owner(view: ShardView, shard: Shard, target: str) -> Duty:
    """The duty of an owner that is not the target."""
    if not target:
        return Duty(shard, Role.KEEPING, target, "the owner; there is no other member")
    if target in view.ready.get(shard.id, ()):
        return Duty(shard, Role.HANDING_OVER, target, f"{target} is ready")
    return Duty(shard, Role.KEEPING, target, f"the owner, until {target} is ready")


def _fallback_rank(shard: Shard, target: str, view: ShardView, member: str) -> int:
    """The rank of a member among the fallbacks of a shard, from 1 on; 0 if it is none."""
    others = [each for each in ranked(shard.id, view.members) if each != target]
    return others.index(member) + 1 if member in others else 0


class ShardState(NamedTuple):
    """The state of one shard, for tables and metrics.

    Attributes:
        shard: The shard.
        owner: The name of its owner; empty if it has none.
        target: The member that should own it; empty if there is no member, or no valid table.
        ready: The members whose watch of it has listed, by name.
        ownerless: Seconds without an owner; 0 with one.
        problem: Why the shard is not recorded, or by no member; empty if a member owns it, or one
            is about to.
    """

    shard: Shard
    owner: str
    target: str
    ready: tuple[str, ...]
    ownerless: float
    problem: str


def shard_states(view: ShardView, *, now: float, ttl: float) -> list[ShardState]:
    """The states of all shards, by range.

    Args:
        view: The watched view.
        now: The present time, on trio's clock.
        ttl: Seconds; the time to live of the elections' leases.
    """
    table = view.table
    targets = {} if table.problem else assign((shard.id for shard in table.shards), view.members)
    found = []
    for shard in table.shards:
        owner, target = view.owners.get(shard.id, ""), targets.get(shard.id, "")
        ownerless = 0.0 if owner else now - view.ownerless_since.get(shard.id, now)
        problem = ""
        if not owner and not view.members:
            problem = "no owner, and there is no member"
        elif ownerless > FALLBACK_AFTER * ttl:
            problem = f"no owner for {ownerless:.0f} s"
        elif owner and owner not in view.members and target:
            problem = f"its owner {owner} is no member any more"
        ready = tuple(sorted(view.ready.get(shard.id, ())))
        found.append(ShardState(shard, owner, target, ready, ownerless, problem))
    return found
