"""A processor in a process of its own, which tells a run service over gRPC.

``python -m tests.support.leading ETCD PREFIX RUN_SERVICE stream|calls TTL``. It prints the name of
each event of its log, such as ``elected`` and ``deposed``, and works until it is ended.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import structlog
import trio

from etcd_actions import open_etcd
from etcd_actions._internal.backoff import Backoff
from etcd_actions.follow.workqueue import WorkQueueSettings
from etcd_actions.pipeline.processor import open_processor
from etcd_actions.run_service.grpc_run_service import open_run_service
from tests.support.scene import PROCESSOR

SETTINGS = replace(
    PROCESSOR,
    elect=True,
    save_every=0.1,
    # What waits for its retry is due when a process goes on that was stopped.
    queue=WorkQueueSettings(backoff=Backoff(0.1, 0.5)),
)


async def main(etcd: str, prefix: bytes, target: str, way: str, ttl: int) -> None:
    """Work until the process is ended."""
    async with (
        open_etcd(etcd, request_timeout=1) as connection,
        open_run_service(target, streaming=way == "stream") as run_service,
        open_processor(
            connection,
            prefix=prefix,
            run_service=run_service,
            settings=replace(SETTINGS, election_ttl=ttl),
        ) as processor,
    ):
        await processor.start_watching()
        await trio.sleep_forever()


def _only_the_name(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    return str(event["event"])


if __name__ == "__main__":
    _, *where, seconds = sys.argv
    structlog.configure(
        processors=[_only_the_name], logger_factory=structlog.PrintLoggerFactory(sys.stdout)
    )
    trio.run(main, where[0], where[1].encode(), where[2], where[3], int(seconds))
