"""Follow all actions of a run: first the present states, then each change.

    python subscribe.py HOST:PORT PROJECT/DOMAIN/RUN [PREFIX]

It ends when the root of the run has ended. It only reads: any number of processes can follow a
run, and none of them changes what the others receive.
"""

import sys

import structlog
import trio

from etcd_actions import RunId, SnapshotEnd, open_actions_client, open_etcd

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


async def main(endpoint: str, name: str, prefix: str) -> None:
    """Print a line for each state of each action."""
    project, domain, run = name.split("/")
    run_id = RunId(project, domain, run)
    async with (
        open_etcd(endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix.encode()) as client,
        client.subscribe_run(run_id) as updates,
    ):
        # A reader that is slow misses states in between, never the last state of an action.
        async for update in updates:
            if isinstance(update, SnapshotEnd):
                print(f"-- these were the states at revision {update.revision}")
                continue
            recorded = "recorded" if update.recorded else ""
            print(f"{update.action_id.name:10} {update.phase.name:12} {recorded}".rstrip())
            if not update.parent and update.phase.is_terminal:
                break


if __name__ == "__main__":
    where = sys.argv[3] if len(sys.argv) > 3 else "/registry/flyte.org/taskactions/"
    trio.run(main, sys.argv[1], sys.argv[2], where)
