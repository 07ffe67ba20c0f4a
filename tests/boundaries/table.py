"""The boundaries of the line from etcd to the mark, and of the client.

docs/architecture.md has the same table; the tests beside this file throw into each.
"""

from __future__ import annotations

from typing import NamedTuple


class Boundary(NamedTuple):
    """A unit of work that comes from outside.

    Attributes:
        unit: Its kind, as the metric and the log have it.
        where: What catches.
        outcome: What becomes of the unit.
        seen: What the operator sees, besides ``unit_failed`` in the log and
            ``etcd_actions_contained_failures_total{unit}``.
    """

    unit: str
    where: str
    outcome: str
    seen: str


BOUNDARIES = (
    Boundary(
        "watch",
        "Reflector.run",
        "the stream ends; the prefix is listed again, compared with what was surely delivered, "
        "and watched on",
        "watch_lost, listing_again (failed), etcd_actions_watch_relists_total{reason=failed}; "
        "readiness when it lasts",
    ),
    Boundary(
        "change",
        "Handler.dispatch",
        "that key is tried again after a back-off, for ever; all others go on",
        "handler_failed, etcd_actions_queue_failing_keys{queue=handlers}; /readyz handlers after "
        "60 s",
    ),
    Boundary(
        "value",
        "Handler.handle_watch_event, and each codec",
        "set aside until the next good write; looked at again each minute where the decoder "
        "failed for want of something else",
        "value_undecodable, etcd_actions_undecodable_keys",
    ),
    Boundary(
        "delivery",
        "WorkQueue.worker of the outbox",
        "that action is told and marked again after a back-off, for ever",
        "handler_failed, etcd_actions_queue_failing_keys{queue=outbox}; /readyz handlers after "
        "60 s",
    ),
    Boundary(
        "run_service",
        "Reporter.is_reportable",
        "a state of which the run service cannot say whether it wants it is told",
        "nothing else",
    ),
    Boundary(
        "subscription",
        "Subscriptions.notify",
        "it ends alone; its reader gets Unavailable, and subscribes again",
        "nothing else",
    ),
    Boundary(
        "transaction_group",
        "GroupCommit.write",
        "its members fail as of unknown outcome, and are sent alone when tried again",
        "handler_failed where the callers are handlers",
    ),
    Boundary(
        "election",
        "Election._run",
        "the term ends, and the process stands for election again",
        "election_failed, deposed; readiness when it lasts",
    ),
    Boundary(
        "abort",
        "Aborter.resume",
        "the other aborts are finished; this one is tried again",
        "clean_up_failed; readiness when it lasts",
    ),
    Boundary(
        "orphan",
        "OrphanCollector",
        "the other orphans are collected; this one is tried again",
        "clean_up_failed; readiness when it lasts",
    ),
    Boundary(
        "task",
        "Containment.keep around each loop of the processor, and the leader's work",
        "it is run again after a back-off; the leader's work gives the leadership up first",
        "deposed (failed) for the leader's work; readiness when it lasts",
    ),
    Boundary(
        "request",
        "each method of ActionsClient",
        "its caller gets UnexpectedFailure; others go on",
        "nothing else",
    ),
    Boundary(
        "check",
        "Health",
        "that check has failed, and says so; the others are made",
        "/readyz: the check failed",
    ),
    Boundary(
        "metric",
        "Metrics",
        "it is missing; all others are there",
        "a gap in that metric",
    ),
    Boundary(
        "log_line",
        "Containment, WorkQueue, Processor",
        "it is not written",
        "the metric only",
    ),
)
