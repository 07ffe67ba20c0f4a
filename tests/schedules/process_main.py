"""``etcd-actions`` with short times: ``python -m tests.schedules.process_main run ...``.

The times for which there is no setting are made short, so that what takes a minute in earnest
takes some seconds here: leases, silences, deadlines and back-offs. Nothing else is changed.
"""

from __future__ import annotations

from functools import partial

from etcd_actions.backoff import Backoff
from etcd_actions.cli import process_main, run
from etcd_actions.processor_settings import ProcessorSettings
from etcd_actions.run_service import grpc
from etcd_actions.watch import ReflectorSettings
from etcd_actions.workqueue import WorkQueueSettings

ELECTION_TTL = 3
CALL_DEADLINE = 0.8
"""Of a call to the run service: well below the lease, as by default."""


def shorten() -> None:
    """Make the times short that have no setting."""
    settings = partial(
        ProcessorSettings,
        election_ttl=ELECTION_TTL,
        save_every=0.3,
        reflector=ReflectorSettings(dead_after=1.5, backoff=Backoff(initial=0.05, cap=0.5)),
        queue=WorkQueueSettings(backoff=Backoff(initial=0.05, cap=1.0)),
    )
    vars(run)["ProcessorSettings"] = settings
    vars(grpc)["open_run_service"] = partial(grpc.open_run_service, deadline=CALL_DEADLINE)


if __name__ == "__main__":
    shorten()
    process_main()
