"""Shards and members, as ``shards list`` prints them."""

from __future__ import annotations

import msgspec


class ShardRow(msgspec.Struct, kw_only=True, frozen=True):
    """A shard.

    Attributes:
        scope: The namespace that the shards divide; ``*`` for all.
        start: The first suffix ``<namespace>/<name>`` of its keys.
        end: The first suffix behind it; empty for no end.
        owner: The member that records and marks its actions.
        target: The member that should own it.
        ready: The members whose watch of it has listed.
        actions: Number of its objects.
        checkpoint: Each deletion up to this revision was reported.
        behind: Revisions of etcd since the checkpoint, also those of other keys.
        problem: What is wrong; empty if nothing is.
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
    """A process that takes part, since when, and how many shards it owns."""

    scope: str
    name: str
    since: str
    shards: int


class ShardList(msgspec.Struct, frozen=True):
    """The JSON output."""

    shards: list[ShardRow]
    members: list[MemberRow]
    problems: list[str]
