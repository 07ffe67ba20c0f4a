"""A processor in a process of its own that kills itself at a chosen point.

``python -m tests.support.crashing ENDPOINT PREFIX WHEN`` with WHEN one of ``before`` (the run
service gets the first ending, and has not accepted it), ``between`` (it has accepted, the
mark is not written) and ``never`` (ends by itself once all is marked). How to connect to
ENDPOINT, encrypted or as whom, is told by the command's variables.
"""

from __future__ import annotations

import os
import signal
import sys

import trio

from etcd_actions import ActionUpdate
from etcd_actions.config import SETTINGS, Config, Environment, resolve
from etcd_actions.etcd import open_connection
from etcd_actions.etcd.api import Etcd, KeyRange
from tests.support.recording import RecordingRunService, until_stored
from tests.support.scene import all_marked, processing


class CrashingRunService(RecordingRunService):
    """Kills the process with the first ending."""

    def __init__(self, etcd: Etcd, when: str) -> None:
        super().__init__(etcd)
        self._when = when

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Accept it, or die before or after."""
        crash = update.phase.is_terminal and self._when != "never"
        if crash and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        await super().update_action_status(update)
        if crash:
            os.kill(os.getpid(), signal.SIGKILL)


async def main(endpoint: str, prefix: bytes, when: str) -> None:
    """Work until everything that is over is marked."""
    variables = Environment({**os.environ, "ETCDCTL_ENDPOINTS": endpoint})
    connection = Config(resolve(SETTINGS, [variables]), None).connection(endpoint)
    with trio.fail_after(60):
        async with (
            open_connection(connection) as etcd,
            open_connection(connection) as direct,
            processing(etcd, prefix, CrashingRunService(direct, when)),
        ):
            await until_stored(direct, KeyRange.of_prefix(prefix), all_marked)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2].encode(), sys.argv[3])
