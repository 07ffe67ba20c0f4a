"""Shards and members, as ``shards list`` prints them."""

from __future__ import annotations

import msgspec


class ShardRow(msgspec.Struct, kw_only=True, frozen=True):
    """A shard.

    Attributes:
        scope: The namespace that the shards divide; ``*`` for all.
        start: The first suffix ``<namespace>/<name>`` of its range.
        end: The first suffix after its range; empty if the range has no end.
        owner: The member that records and marks its actions.
        target: The member that should own it.
        ready: The members whose watch of it has listed.
        actions: Number of its objects.
        checkpoint: The revision up to which each deletion was reported; 0 for none.
        behind: Revisions of etcd since the checkpoint, also those of other keys.
        problem: The problem; empty for none.
    """

    scope: str
    id: str
    start: str
    end: str
    owner: str
    target: str
    ready: tuple[str, ...]
    actions: int
    checkpoint: int
    behind: int
    problem: str

    @property
    def path(self) -> str:
        """Its id."""
        return self.id


class MemberRow(msgspec.Struct, kw_only=True, frozen=True):
    """A member: the process, since when it is one, and the number of shards that it owns."""

    scope: str
    name: str
    since: str
    shards: int


class ShardList(msgspec.Struct, frozen=True):
    """The output of ``shards list`` as one document."""

    shards: list[ShardRow]
    members: list[MemberRow]
    problems: list[str]
