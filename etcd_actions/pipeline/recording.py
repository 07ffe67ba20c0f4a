"""The parts that a processor has only if it records: the outbox, the leader and their parts."""

from __future__ import annotations

from typing import Final

from etcd_actions._internal.containment import Containment
from etcd_actions.actions.abort import Aborter
from etcd_actions.actions.condition_timeouts import ConditionTimeouts
from etcd_actions.actions.orphans import OrphanCollector
from etcd_actions.dead_letters import DeadLetterStore
from etcd_actions.etcd.api import Etcd
from etcd_actions.follow import Index, SetAside
from etcd_actions.pipeline.watched_scope import WatchedScope
from etcd_actions.pipeline.watching_settings import WatchingSettings
from etcd_actions.record.checkpoint import Checkpoint
from etcd_actions.record.deferred_reports import DeferredReports
from etcd_actions.record.deletions import Deletions
from etcd_actions.record.leader import Leader, LeaderTasks
from etcd_actions.record.outbox import Outbox
from etcd_actions.record.recorder import Recorder
from etcd_actions.record.reporter import Reporter
from etcd_actions.run_service import RunService
from etcd_actions.storage.retention import Retention
from etcd_actions.storage.store import Fence, FencedStore, Store

_IDLE: Final = 12
"""The multiple of the time between two checkpoints, for a shard without changes."""


class Recording:
    """Holds the parts of a processor that records.

    Attributes:
        recorder: Writes marks.
        timeouts: Ends the conditions that wait too long.
        outbox: Reports to the run service.
        leader: Stands for election, and works while this process is the leader.
    """

    def __init__(
        self,
        etcd: Etcd,
        store: Store,
        leases: Retention | None,
        index: Index,
        set_aside: SetAside,
        scope: WatchedScope,
        *,
        run_service: RunService,
        settings: WatchingSettings,
        containment: Containment,
    ) -> None:
        fence, keyspace = Fence(), scope.keyspace
        store = FencedStore(store, fence)
        self.recorder = Recorder(store, leases)
        self.timeouts = ConditionTimeouts(store, clock=settings.clock, containment=containment)
        aborter = Aborter(store, keyspace, finalizer=settings.finalizer, containment=containment)
        orphans = OrphanCollector(
            store,
            keyspace,
            unowned_only=not settings.collect_orphans,
            finalizer=settings.finalizer,
            containment=containment,
        )
        dead_letters = DeadLetterStore(
            etcd,
            store,
            keyspace,
            owns=lambda key: key in scope.objects or key in scope.traces,
            settings=settings.reflector,
            containment=containment,
            ranges=scope.dead_letters,
            most=settings.most_dead_letters,
        )
        reporter = Reporter(run_service, dead_letters, keyspace, containment)
        deferred = DeferredReports()
        deletions = Deletions(
            index,
            store,
            keyspace,
            aborter=aborter,
            orphans=orphans,
            reporter=reporter,
            deferred=deferred,
        )
        self.outbox = Outbox(
            index,
            store,
            reporter=reporter,
            recorder=self.recorder,
            deletions=deletions,
            deferred=deferred,
            set_aside=set_aside,
            workers=settings.outbox_workers,
            settings=settings.queue,
            containment=containment,
        )
        self.leader = Leader(
            etcd,
            scope.election,
            Checkpoint(etcd, scope.checkpoint),
            self.outbox,
            index,
            LeaderTasks(aborter, orphans, self.timeouts, scope.markers, scope.watched),
            fence=fence,
            name=scope.member,
            stands=scope.member is None,
            guard=scope.guard,
            ttl=settings.election_ttl if settings.elect else None,
            save_every=settings.save_every,
            # Each write of a checkpoint is a new revision, which all other shards would save.
            save_idle=settings.save_every * (_IDLE if scope.part else 1),
            containment=containment,
        )
