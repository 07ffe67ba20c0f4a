"""``etcd-actions worker``: signals and logs around :class:`~etcd_actions.app.worker.Worker`."""

from __future__ import annotations

import structlog

from etcd_actions._internal.containment import Containment
from etcd_actions.app.executor import forbid_reading
from etcd_actions.app.stop import LEAST_GRACE
from etcd_actions.app.worker import Worker
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.log_output import count_failed_lines, lines_dropped
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.signals import open_stop
from etcd_actions.config.settings import DRAIN_DELAY, GRACE, SERVICE
from etcd_actions.web.descriptors import raise_limit

_log = structlog.get_logger(__name__)


async def work_until_signal(common: CommonOptions) -> int:
    """Run actions until a signal; raises the failure that ended the worker."""
    raise_limit()
    config = common.config
    config.check_one_namespace()
    if config[SERVICE] is None:
        connection = config.connection(common.endpoints_to_use)
    else:
        connection = config.service_connection()
    forbid_reading()
    containment = Containment()
    count_failed_lines(containment)
    grace = config[DRAIN_DELAY] + max(config[GRACE], LEAST_GRACE) + Worker.ENDS_WITHIN
    async with open_stop(grace) as stop:
        worker = Worker(config, connection, stop, containment, lines_dropped)
        counts = await worker.run()
        _log.info("stopped", **counts)
        stop.raise_failure()
    return ExitCode.OK
