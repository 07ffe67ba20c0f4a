"""A run service of one's own: the record of each action as a row of a SQLite database.

    python run_service.py HOST:PORT DATABASE PREFIX

It watches the actions below a prefix and writes each state into the table ``actions``. An
action that has ended is marked as recorded once its row is written. Interrupt it to end it.
"""

import contextlib
import sqlite3
import sys
from pathlib import Path

import structlog
import trio

from etcd_actions import (
    ActionObject,
    ActionUpdate,
    RunService,
    open_actions_client,
    open_etcd,
)
from etcd_actions.errors import RunServiceUnavailable

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

_TABLE = """
CREATE TABLE IF NOT EXISTS actions (
    key TEXT PRIMARY KEY, run TEXT, action TEXT, phase TEXT, attempts INTEGER, revision INTEGER
)
"""
# A call may be repeated, and a former leader may be late: an older revision changes nothing.
_UPSERT = """
INSERT INTO actions VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    phase = excluded.phase, attempts = excluded.attempts, revision = excluded.revision
    WHERE excluded.revision > revision
"""


class SqliteRunService(RunService):
    """Accepts a state by writing its row; what it raises is retried until it returns."""

    keeps_order = True  # by the condition on the revision

    def __init__(self, database: Path) -> None:
        self._database = database

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Make the row, before the first status of the action."""
        await self.update_action_status(update)

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Write the row."""
        action_id = update.action_id
        row = (update.key.decode(), action_id.run, action_id.name)
        state = (update.phase.name, update.attempts, update.revision)
        try:
            await trio.to_thread.run_sync(self._write, (*row, *state))
        except sqlite3.OperationalError as error:
            raise RunServiceUnavailable(f"the database: {error}") from error

    def _write(self, row: tuple[object, ...]) -> None:
        # `with connection` commits and does not close.
        with contextlib.closing(sqlite3.connect(self._database)) as connection, connection:
            connection.execute(_TABLE)
            connection.execute(_UPSERT, row)


async def main(endpoint: str, database: str, prefix: str) -> None:
    """Record until the process is interrupted."""
    run_service = SqliteRunService(Path(database))
    async with (
        open_etcd(endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix.encode(), run_service=run_service) as client,
        client.watching(),
    ):
        print("watching", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
    except* KeyboardInterrupt:
        pass
