"""A process that shares the work by shards, and tells a run service over gRPC.

``python -m tests.support.sharing_main ETCD PREFIX RUN_SERVICE SHARDS TTL``. It prints ``watching``
once it takes part, and ends at SIGTERM, after it handed its shards over.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import replace

import structlog
import trio

from etcd_actions import open_actions_client, open_etcd
from etcd_actions.run_service.grpc_run_service import open_run_service
from tests.support.leading import SETTINGS


async def main(etcd: str, prefix: bytes, target: str, shards: int, ttl: int) -> None:
    """Take part until SIGTERM."""
    settings = replace(SETTINGS, election_ttl=ttl, shards=shards, split_from=None)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with (
            open_etcd(etcd, request_timeout=1) as connection,
            open_run_service(target) as run_service,
            open_actions_client(
                connection, prefix=prefix, run_service=run_service, settings=settings
            ) as client,
        ):
            await client.start_watching()
            sys.stdout.write("watching\n")
            sys.stdout.flush()
            async for _ in signals:
                await client.stop_watching()
                return


if __name__ == "__main__":
    _, *where, count, seconds = sys.argv
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(main, where[0], where[1].encode(), where[2], int(count), int(seconds))
