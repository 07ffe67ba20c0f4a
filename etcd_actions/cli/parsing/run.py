"""The flags of ``run``."""

from __future__ import annotations

from etcd_actions.cli.flags import command
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import RUN


@command(example="etcd-actions run --endpoints 10.0.0.5:2379 --executor local")
@with_settings(RUN)
def run(common: CommonOptions) -> int:
    """Watch actions and mark each terminal one, until a signal.

    Without --endpoints or ETCDCTL_ENDPOINTS it starts an etcd of its own on this machine.
    It waits for an unavailable etcd.
    """
    from etcd_actions.cli.commands.run import run_until_signal  # noqa: PLC0415

    return run_async(run_until_signal, common)
