"""How a processor works, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass, field

from etcd_actions._internal.clock import Clock
from etcd_actions._internal.histogram import Distribution
from etcd_actions.dead_letters import DeadLetter
from etcd_actions.follow.workqueue import WorkQueueSettings, WorkQueueStatistics
from etcd_actions.watch import ReflectorSettings, ReflectorStatistics


@dataclass(frozen=True, kw_only=True)
class WatchingSettings:
    """How a processor works. Times are in seconds.

    Attributes:
        record: Whether to report to the run service, and to mark, at all; without it a processor
            serves subscribers only, and writes nothing.
        elect: Whether to do that only as the leader of all processes on this prefix. Without it
            this process always does, and has no checkpoint.
        collect_orphans: Whether to end and delete orphans, as Kubernetes' garbage collector does
            where there is one. An action that runs without an owner reference, and names a parent
            that does not exist, is collected in any case: nothing else does it.
        finalizer: Whether our finalizer holds objects until their end is recorded.
        election_ttl: How long the leader may be silent before another process takes over.
        save_every: How often the leader saves the checkpoint.
        outbox_workers: How many calls to the run service, and marks, are in flight at once.
        most_dead_letters: How many dead letters are kept; the oldest are deleted.
        retain_terminal: How long recorded actions are kept before they expire; None without
            limit, where something else collects them. An action that expires takes along what is
            below it, also what still runs: choose longer than that may last.
        grace: How long stopping may take to finish the work in progress.
        reflector: How the prefix is watched.
        queue: Limits of the outbox, and of the keys whose handling failed.
        clock: Counts the timeouts of conditions.
    """

    record: bool = True
    elect: bool = True
    collect_orphans: bool = True
    finalizer: bool = True
    election_ttl: int = 10
    save_every: float = 5.0
    outbox_workers: int = 256
    most_dead_letters: int = 10_000
    retain_terminal: float | None = None
    grace: float = 10.0
    reflector: ReflectorSettings = field(default_factory=ReflectorSettings)
    queue: WorkQueueSettings = field(default_factory=WorkQueueSettings)
    clock: Clock = field(default_factory=Clock)


@dataclass(frozen=True, kw_only=True)
class WatchingStatistics:
    """What a processor has and has done since it was started.

    Attributes:
        watching: Whether it is started.
        reflector: The watch; None before the first start.
        handlers: Changes that were handled; those that wait are handled again. None before the
            first start.
        outbox: The queue of reports; None while another process leads.
        reported: Number of calls that the run service accepted, by ``record`` and ``status``.
        rejected: Number of calls that it never will accept, likewise.
        failed: Number of calls that failed and are repeated, likewise.
        interrupted: Number of calls that ended with the time of the leader's lease, likewise.
        call_times: How long these calls took, likewise.
        deferred: Number of terminal states that are reported again, after a takeover, before they
            are marked.
        dead_letters: The dead letters in etcd, by action and call, and what is no dead letter
            among them; empty while another process leads.
        dropped_dead_letters: Number of these that were deleted for newer ones.
        marks: Number of marks by result, see :class:`~etcd_actions.record.recorder.MarkResult`.
        elected: Whether this process is the leader, which records and marks.
        checkpoint: Every deletion up to this revision is reported, as last saved or read.
        subscriptions: Number of open subscriptions.
        undelivered: Number of updates that their readers have yet to receive.
        decode_errors: Number of values that could not be decoded.
        undecodable: The keys that have such a value now, and why it cannot be decoded.
        undecodable_since: When the first of these was found, in seconds since 1970; None
            without one.
    """

    watching: bool
    reflector: ReflectorStatistics | None
    handlers: WorkQueueStatistics | None
    outbox: WorkQueueStatistics | None
    reported: dict[str, int]
    rejected: dict[str, int]
    failed: dict[str, int]
    interrupted: dict[str, int]
    call_times: dict[str, Distribution]
    deferred: int
    dead_letters: tuple[DeadLetter, ...]
    dropped_dead_letters: int
    marks: dict[str, int]
    elected: bool
    checkpoint: int
    subscriptions: int
    undelivered: int
    decode_errors: int
    undecodable: dict[bytes, str]
    undecodable_since: float | None
