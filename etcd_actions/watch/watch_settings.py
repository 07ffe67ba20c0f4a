"""The settings and the counts of a reflector."""

from __future__ import annotations

from dataclasses import dataclass

from etcd_actions._internal.argument_types import check_fields
from etcd_actions._internal.backoff import Backoff

_BACKOFF = Backoff(initial=0.05, cap=2.0)


@dataclass(frozen=True, kw_only=True)
class ReflectorSettings:
    """How a prefix is watched. Times are in seconds.

    Attributes:
        ranges: How many key ranges to watch side by side. One watcher alone falls behind,
            and slows etcd down, from a few thousand changes a second on.
        prev_kv: Whether to request the previous value with each change. It costs etcd a read for
            each event, and etcd does not have it after a compaction.
        dead_after: The longest silence, and unanswered read, before a stream counts
            as dead. Without changes, etcd itself sends nothing for ten minutes.
        stream_life: A stream is replaced after this time: boundaries follow the keys,
            and etcd checks permissions only when a watch is opened.
        backoff: Delays between failed attempts to list or to watch.
    """

    ranges: int = 4
    prev_kv: bool = False
    dead_after: float = 15.0
    stream_life: float = 1800.0
    backoff: Backoff = _BACKOFF

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def probe_interval(self) -> float:
        """Seconds between two checks of a stream; also the age from which on it counts as open."""
        return self.dead_after / 6


@dataclass(frozen=True, kw_only=True)
class ReflectorStatistics:
    """How far a reflector is, and its counts since its start.

    Attributes:
        synced: Whether the first list has been delivered.
        streaming: Whether a stream is open and all its ranges are watched.
        revision: Every change up to it has been delivered.
        reports_progress: Whether etcd's progress notifications advance the revision every few
            seconds, of idle ranges, too.
        ranges: Number of key ranges watched side by side.
        keys: Number of delivered keys that are not deleted.
        events: Number of changes delivered.
        reconnects: Streams lost, by the name of the error.
        relists: Lists after the first, by reason.
        failures: Attempts in a row that failed to list or to watch; 0 while a stream is open.
        failure: The last of these failures as text; empty without one.
        silence: Seconds since etcd last sent something; infinite before the first time.
    """

    synced: bool
    streaming: bool
    revision: int
    reports_progress: bool
    ranges: int
    keys: int
    events: int
    reconnects: dict[str, int]
    relists: dict[str, int]
    failures: int
    failure: str
    silence: float
