"""Records of runs for tests, and an index that is fed by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import ActionId, Keyspace
from etcd_actions.runs.run_index import RunIndex
from etcd_actions.runs.run_record import RunRecord, RunStatus, TaskName, encode
from etcd_actions.watch import Change, ChangeKind

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def record(
    name: str,
    *,
    at: float = 0,
    project: str = "p",
    domain: str = "d",
    task: str = "env.main",
    version: str = "v1",
    status: RunStatus | None = None,
    creator: str = "",
    labels: dict[str, str] | None = None,
) -> RunRecord:
    """A run that was created so many seconds after the beginning."""
    environment, _, short = task.rpartition(".")
    return RunRecord(
        org="o",
        project=project,
        domain=domain,
        name=name,
        run_spec=b"x" * 500,
        task=TaskName("o", project, domain, task, version),
        short_name=short,
        environment=environment,
        task_type="python",
        source=2,
        created=BEGIN + timedelta(seconds=at),
        creator=creator,
        labels=labels or {},
        input_uri=f"file:///blobs/{name}/inputs.pb",
        inputs_hash="hash",
        status=status,
    )


def status(phase: int, *, ended: float | None = None, attempts: int = 1) -> RunStatus:
    return RunStatus(
        create_revision=1,
        revision=2,
        phase=phase,
        attempts=attempts,
        started=BEGIN,
        ended=None if ended is None else BEGIN + timedelta(seconds=ended),
    )


def key_of(keys: Keyspace, run: RunRecord) -> bytes:
    return keys.run_record(ActionId(run.project, run.domain, run.name, "a0", run.org))


class FedIndex(RunIndex):
    """An index that no etcd feeds."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = Keyspace(b"/t/")
        self.revision = 0

    def put(self, run: RunRecord, *, listed: bool = False) -> None:
        self.revision += 1
        kind = ChangeKind.ADDED
        key = key_of(self.keys, run)
        kv = KeyValue(key, encode(run), self.revision, self.revision, 1)
        self.take(Change(kind, kv, listed=listed))

    def delete(self, run: RunRecord) -> None:
        self.revision += 1
        key = key_of(self.keys, run)
        self.take(Change.deletion(key, self.revision))
