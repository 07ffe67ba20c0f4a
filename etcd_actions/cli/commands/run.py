"""``etcd-actions run``: signals and logs around :class:`~etcd_actions.app.app.App`."""

from __future__ import annotations

import structlog

from etcd_actions._internal.containment import Containment
from etcd_actions.app.app import App
from etcd_actions.app.executor import forbid_reading
from etcd_actions.app.stop import LEAST_GRACE
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.log_output import count_failed_lines, lines_dropped
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.process_setup import has_terminal
from etcd_actions.cli.signals import open_stop
from etcd_actions.config.settings import DRAIN_DELAY, EXECUTOR, GRACE
from etcd_actions.web.descriptors import raise_limit

_log = structlog.get_logger(__name__)


async def run_until_signal(common: CommonOptions) -> int:
    """Run the process until a signal; raises the failure that ended it.

    After the signal it takes at most the sum of ``--drain-delay`` and ``--grace``.
    """
    raise_limit()
    config = common.config
    config.check_one_namespace()
    if config[EXECUTOR] != "none":
        forbid_reading()
    containment = Containment()
    count_failed_lines(containment)
    had_terminal = has_terminal()
    async with open_stop(config[DRAIN_DELAY] + max(config[GRACE], LEAST_GRACE)) as stop:
        app = App(config, stop, containment, lines_dropped)

        def hung_up() -> None:
            if had_terminal and not has_terminal():
                _log.info("stopping", signal="SIGHUP")
                stop.request()
            else:
                app.reload()

        stop.on_hangup = hung_up
        counts = await app.run()
        _log.info("stopped", **counts)
        stop.raise_failure()
    return ExitCode.OK
