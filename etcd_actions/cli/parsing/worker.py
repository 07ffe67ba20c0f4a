"""The flags of ``worker``."""

from __future__ import annotations

from etcd_actions.cli.flags import command
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import WORKER


@command(example="etcd-actions worker --endpoints 10.0.0.5:2379 --blob-dir /mnt/runs --gpus 1")
@with_settings(WORKER)
def worker(common: CommonOptions) -> int:
    """Run actions, here or on Ray, next to other workers, until a signal.

    It needs etcd, and the files of runs under the same paths as the service and the other
    workers; the service, etcd-actions run, need not run here. It runs only actions that fit its
    offer: slots, CPUs, memory, GPUs, pools and labels. Each worker has a state directory of its
    own. A signal ends it after the grace: attempts that still run then are run again by another.
    Jobs of Ray (--executor ray) continue, and another such worker follows them.
    """
    from etcd_actions.cli.commands.worker import work_until_signal  # noqa: PLC0415

    return run_async(work_until_signal, common)
