"""What the doctor says of dead letters."""

from __future__ import annotations

from dataclasses import replace

from etcd_actions import Phase
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.errors import RunServiceRejected
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from tests.doctor.illness import UNHURRIED, diagnose
from tests.record.test_outbox import ROOT, Scripted, named, tell, watching
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually


async def test_dead_letters_are_found(etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes) -> None:
    service = Scripted()
    for name in ("a0", "c1"):
        service.failures["record", name] = [RunServiceRejected(f"no {name}", code=3)]
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await eventually(lambda: len(client.statistics().dead_letters) == 1)
        await client.enqueue(flyte.task(named("c1"), "a0"))
        for name in ("c1", "a0"):
            await tell(client, name, [Phase.SUCCEEDED])
        await eventually(lambda: client.statistics().marks == {"marked": 2})
        oldest, _ = await client.dead_letters()
    diagnosis = await diagnose(
        shared_etcd.endpoint, prefix=prefix, limits=replace(UNHURRIED, examples=1)
    )
    assert diagnosis.ill == {"dead-letters"}
    seen = diagnosis.one("dead-letters").seen
    assert seen == (
        f"2, the oldest since {oldest.first}: the record of flyte/r1-a0 (no a0); and 1 more"
    )
    assert diagnosis.code is ExitCode.WARNINGS


async def test_what_is_no_letter_is_found(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes
) -> None:
    await etcd.put(Keyspace(prefix).dead_letters + b"it's\x00", b"garbage")
    diagnosis = await diagnose(shared_etcd.endpoint, prefix=prefix)
    assert diagnosis.ill == {"dead-letters-unreadable"}
    assert "dead-letters delete '/etcd-actions" in diagnosis.one("dead-letters-unreadable").remedy
