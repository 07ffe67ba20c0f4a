"""``etcd-actions`` with short times: ``python -m tests.schedules.process_main run ...``.

The times for which there is no setting are made short, so that what takes a minute in earnest
takes some seconds here: leases, silences, deadlines and back-offs. Nothing else is changed.
"""

from __future__ import annotations

from functools import partial

from etcd_actions._internal.backoff import Backoff
from etcd_actions.app import app
from etcd_actions.cli import process_main
from etcd_actions.follow.workqueue import WorkQueueSettings
from etcd_actions.pipeline.watching_settings import WatchingSettings
from etcd_actions.run_service import grpc_run_service
from etcd_actions.watch import ReflectorSettings

ELECTION_TTL = 3
CALL_DEADLINE = 0.8
"""Of a call to the run service: well below the lease, as by default."""


def shorten() -> None:
    """Make the times short that have no setting."""
    settings = partial(
        WatchingSettings,
        election_ttl=ELECTION_TTL,
        save_every=0.3,
        reflector=ReflectorSettings(dead_after=1.5, backoff=Backoff(initial=0.05, cap=0.5)),
        queue=WorkQueueSettings(backoff=Backoff(initial=0.05, cap=1.0)),
    )
    vars(app)["WatchingSettings"] = settings
    vars(grpc_run_service)["open_run_service"] = partial(
        grpc_run_service.open_run_service, deadline=CALL_DEADLINE
    )


if __name__ == "__main__":
    shorten()
    process_main()
