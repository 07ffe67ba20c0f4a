"""The keys of one processor, and the keys by which its leader is elected."""

from __future__ import annotations

from dataclasses import dataclass

from etcd_actions.etcd.api import Compare, KeyRange
from etcd_actions.model import Keyspace
from etcd_actions.storage.watched_keys import watched_keys


@dataclass(frozen=True, kw_only=True)
class WatchedScope:
    """See the module's text. A run is in one scope, with all that belongs to it.

    Attributes:
        keyspace: The keyspace.
        objects: The range of the objects.
        traces: The range of the traces.
        markers: The range of the markers of aborts.
        dead_letters: The ranges of the dead letters.
        likely_prefix: The start of most keys of objects.
        election: The key of the election.
        checkpoint: The key of the checkpoint.
        guard: Compares that have to hold when a process becomes the leader.
        part: The name of the scope, if the process has several.
        member: The name under which this process stands for election once the leader's part is
            requested to, as for a shard. None to stand from the start, under host and process.
    """

    keyspace: Keyspace
    objects: KeyRange
    traces: KeyRange
    markers: KeyRange
    dead_letters: tuple[KeyRange, ...]
    likely_prefix: bytes
    election: bytes
    checkpoint: bytes
    guard: tuple[Compare, ...] = ()
    part: str = ""
    member: str | None = None

    @property
    def watched(self) -> tuple[KeyRange, KeyRange]:
        """The ranges to watch."""
        return self.objects, self.traces


def scope_of(
    keys: Keyspace, namespace: str | None, *, guard: tuple[Compare, ...] = ()
) -> WatchedScope:
    """The scope of one namespace, or of all (None)."""
    objects, likely_prefix = watched_keys(keys.prefix, namespace)
    return WatchedScope(
        keyspace=keys,
        objects=objects,
        traces=watched_keys(keys.traces, namespace)[0],
        markers=watched_keys(keys.aborts, namespace)[0],
        dead_letters=(KeyRange.of_prefix(keys.dead_letters),),
        likely_prefix=likely_prefix,
        election=keys.election(namespace),
        checkpoint=keys.checkpoint(namespace),
        guard=guard,
    )


def scope_of_run(keys: Keyspace, run: str) -> WatchedScope:
    """The scope of the runs whose name is ``run``, or begins with it and a dash.

    It is for a processor that does not record.
    """
    objects, traces, markers = map(KeyRange.of_prefix, keys.run_prefixes(run))
    return WatchedScope(
        keyspace=keys,
        objects=objects,
        traces=traces,
        markers=markers,
        dead_letters=(),
        likely_prefix=objects.start,
        election=keys.election(keys.namespace),
        checkpoint=keys.checkpoint(keys.namespace),
    )
