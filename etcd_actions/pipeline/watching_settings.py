"""The settings and the counts of a processor."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from etcd_actions._internal.argument_types import check_fields
from etcd_actions._internal.clock import Clock
from etcd_actions._internal.histogram import Distribution
from etcd_actions.dead_letters import DeadLetter
from etcd_actions.errors import ConfigError
from etcd_actions.follow.workqueue import WorkQueueSettings, WorkQueueStatistics
from etcd_actions.watch import ReflectorSettings, ReflectorStatistics


@dataclass(frozen=True, kw_only=True)
class WatchingSettings:
    """The settings of a processor. Times are in seconds.

    Attributes:
        record: Whether to report to the run service, and to mark. Without it a processor serves
            subscribers only, and writes nothing.
        elect: Whether to record only as the leader of all processes on this prefix. Without it
            this process always records, and has no checkpoint.
        shards: The number of ranges of runs into which the actions are divided, and which the
            processes share; with 0 one process leads for all. The number is used only to create
            the shards: later they are split and merged by their sizes.
        split_from: The least number of keys of a shard that is split because it has more than
            twice the mean; None never to split or merge shards.
        executes: With shards, whether this process runs actions. If each process does, each runs
            those of its own shards, and follows no others; see ``ActionsClient.work``.
        collect_orphans: Whether to end and delete orphans. Choose False next to a Kubernetes
            cluster, whose garbage collector does that. An action without an owner reference that
            names a missing parent is collected in any case, because Kubernetes never does it.
        finalizer: Whether our finalizer keeps objects until their terminal state is recorded.
        election_ttl: How long the leader may be silent before another process takes over.
        save_every: How often the leader saves the checkpoint.
        outbox_workers: The most actions that are reported or marked at a time.
        most_dead_letters: The most dead letters that are kept; the oldest are deleted.
        retain_terminal: How long recorded actions are kept before they expire; None to keep them.
            When an action expires, all actions below it are deleted, also those that still run:
            choose a time longer than a run.
        grace: How long stopping may take to finish the accepted changes.
        reflector: How the prefix is watched.
        queue: Limits of the outbox, and of the keys that are put off.
        clock: The clock of the timeouts of conditions.
    """

    record: bool = True
    elect: bool = True
    shards: int = 0
    split_from: int | None = 10_000
    executes: bool = False
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

    def __post_init__(self) -> None:
        check_fields(self)
        if self.shards < 0:
            raise ConfigError(f"shards: {self.shards} is no number of shards: give 0 or more")


@dataclass(frozen=True, kw_only=True)
class ShardStatistics:
    """One shard, as this process knows it.

    Attributes:
        id: Its number.
        start: The lowest end of its keys, ``<namespace>/<name>``; empty without a bound.
        end: The end of its keys, which is not part of it; empty without a bound.
        owner: The name of the member that owns it; empty if it has none.
        target: The member that should own it; empty if there is none.
        ready: The members whose watch of it has listed.
        ownerless: Seconds without an owner; 0 with one.
        problem: Why nothing is recorded there, or may not be soon; empty if all is well.
        duty: Why this process watches it; empty if it does not.
        owned: Whether this process owns it.
        since: Seconds for which this process has watched it; 0 if it does not.
        keys: Number of its keys; None if this process does not watch it.
        revision: Every change up to it was delivered to this process; 0 for none.
        silence: Seconds since etcd last sent something about it; None if it is not watched.
        pending: Number of its changes that are queued for a report.
        subscriptions: Number of subscriptions that its watch serves.
    """

    id: int
    start: str
    end: str
    owner: str
    target: str
    ready: tuple[str, ...]
    ownerless: float
    problem: str
    duty: str = ""
    owned: bool = False
    since: float = 0.0
    keys: int | None = None
    revision: int = 0
    silence: float | None = None
    pending: int = 0
    subscriptions: int = 0


@dataclass(frozen=True, kw_only=True)
class WatchingStatistics:
    """The contents of a processor, and its counts since it was made.

    Attributes:
        watching: Whether the first list was delivered, and the watch has not ended.
        reflector: The watch; None before the first start.
        handlers: The handler; its pending changes are those of keys that are put off. None before
            the first start.
        outbox: The queue of reports; None while another process leads.
        reported: Number of calls that the run service accepted, by ``record`` and ``status``.
        rejected: Number of calls that it rejected for good, by the same names.
        failed: Number of calls that failed and are repeated, by the same names.
        interrupted: Number of calls that ended with the time of the leader's lease, by the same
            names.
        call_times: How long these calls took, in seconds, by the same names.
        has_run_service: Whether there is a run service; without one no call leaves the process.
        report_lag: From the delivery of a state, or deletion, by the watch until it was reported;
            a terminal one until it was marked, or deferred.
        deferred: Number of terminal states that are reported again, after a takeover, before they
            are marked.
        dead_letters: The dead letters in etcd, by action and call, also those that cannot be
            decoded; empty while another process leads.
        dropped_dead_letters: Number of dead letters that were deleted for newer ones.
        marks: Number of marks by result, see :class:`~etcd_actions.record.recorder.MarkResult`.
        elected: Whether this process is the leader; with shards, whether it owns any.
        collects: Whether this process is the one that collects old runs and uploads: the leader;
            with shards, the owner of the first one.
        refused: Why this process may not lead; empty if it may.
        member: The name of this process among those that share the work; empty without shards.
        members: The name of each of these processes, and since when it takes part.
        shards: The shards, in the order of their keys; empty without shards.
        queued: Number of actions that are not started, by pool; the empty name is the default.
            Actions whose leader is another process are not counted.
        checkpoint: Every deletion up to this revision is reported, as last saved or read.
        subscriptions: Number of open subscriptions.
        undelivered: Number of updates that their readers have yet to receive.
        decode_errors: Number of values that could not be decoded.
        undecodable: The keys that have such a value now, and why it cannot be decoded.
        undecodable_since: When the oldest of these was found, in seconds since 1970; None
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
    has_run_service: bool
    report_lag: Distribution
    deferred: int
    dead_letters: tuple[DeadLetter, ...]
    dropped_dead_letters: int
    marks: dict[str, int]
    elected: bool
    collects: bool
    refused: str
    queued: dict[str, int]
    checkpoint: int
    subscriptions: int
    undelivered: int
    decode_errors: int
    undecodable: dict[bytes, str]
    undecodable_since: float | None
    member: str = ""
    members: tuple[tuple[str, datetime], ...] = ()
    shards: tuple[ShardStatistics, ...] = ()
