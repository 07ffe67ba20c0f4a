"""What the doctor says of what is kept beside actions."""

from __future__ import annotations

from datetime import UTC, datetime

from etcd_actions.etcd.api import Etcd
from etcd_actions.model import ActionId, Keyspace
from etcd_actions.runs.run_record import ActionHistory, RunRecord, encode
from tests.doctor.illness import diagnose
from tests.support.etcd_server import EtcdServer


async def test_what_is_kept_is_measured_and_read(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes
) -> None:
    keys = Keyspace(prefix)
    for run in ("r", "q"):
        root = ActionId("p", "d", run, "a0")
        history = ActionHistory(project="p", domain="d", run=run, name="a0")
        await etcd.put(keys.history(root), encode(history))
    record = RunRecord(project="p", domain="d", name="r", created=datetime.now(UTC))
    await etcd.put(keys.run_record(ActionId("p", "d", "r", "a0")), encode(record))
    diagnosis = await diagnose(shared_etcd.endpoint, prefix=prefix)
    assert diagnosis.ill == {"orphaned-histories"}
    orphaned = diagnosis.one("orphaned-histories")
    assert orphaned.seen == f"1 of 1 runs, such as {keys.histories.decode()}flyte/q-a0"
    seen = diagnosis.one("kept").seen
    assert "history " in seen
    assert " in 2" in seen
    assert "runs " in seen

    for key in (
        keys.runs + b"flyte/q",
        keys.catalog + b"entries/k",
        keys.tasks + b"x",
        keys.projects + b"p",
    ):
        await etcd.put(key, b"garbage")
    await etcd.put(keys.signing + b"key", b"secret")
    diagnosis = await diagnose(shared_etcd.endpoint, prefix=prefix)
    assert diagnosis.ill == {"orphaned-histories", "kept-undecodable"}
    undecodable = diagnosis.one("kept-undecodable")
    assert undecodable.seen.startswith(f"4: {keys.catalog.decode()}entries/k (revision ")
    assert not any("secret" in each.seen for each in diagnosis.findings)
