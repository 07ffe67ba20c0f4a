"""Our own process is killed around a refusal, its letter and the mark."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from etcd_actions import Phase, open_actions_client, open_etcd
from etcd_actions.codecs import json
from etcd_actions.errors import NoSpace, RunServiceRejected, RunServiceUnavailable
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from tests.record.test_outbox import ROOT, Scripted, named, tell, watching
from tests.support import flyte, oracle
from tests.support.crashing_letters import POINTS
from tests.support.etcd_server import EtcdServer
from tests.support.load import make_run
from tests.support.waiting import eventually

pytestmark = pytest.mark.faults

_ROOT = Path(__file__).parents[2]


async def run_processor(server: EtcdServer, prefix: bytes, when: str) -> int:
    """Run one in a process of its own; returns how that ended."""
    command = [sys.executable, "-m", "tests.support.crashing_letters"]
    done = await trio.run_process(
        [*command, server.endpoint, prefix.decode(), when], cwd=_ROOT, check=False
    )
    return done.returncode


async def marked_without_letter(etcd: Etcd, prefix: bytes) -> list[bytes]:
    """Endings whose mark was ever in etcd without a letter that has the ending, by history."""
    letters = Keyspace(prefix).dead_letters + b"actions/"
    history = await oracle.read_history(etcd, KeyRange.of_prefix(prefix))
    written = await oracle.read_history(etcd, KeyRange.of_prefix(letters))
    ends: dict[bytes, int] = {}
    for entry in written:
        (name, what) = entry.key.removeprefix(letters).rsplit(b"/", 2)[:2]
        if what == b"record" and b'"phase":"SUCCEEDED"' in entry.value:
            ends.setdefault(prefix + name, entry.mod_revision)
    return [
        entry.key
        for entry in history
        if not entry.is_delete
        and json.decode(entry.value).is_recorded
        and not ends.get(entry.key, 2**63) < entry.mod_revision
    ]


@pytest.fixture
def small_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd that is full after a few writes."""
    server = EtcdServer(tmp_path, flags=["--quota-backend-bytes=2000000"])
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("when", POINTS)
async def test_no_crash_leaves_a_mark_without_record_or_letter(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, when: str
) -> None:
    """The record is refused, the ending accepted; killed anywhere, and started again."""
    actions = make_run(prefix, "rx1", 2)
    for action in actions:
        await etcd.put(action.key, action.ended)
    with trio.fail_after(90):
        assert await run_processor(shared_etcd, prefix, when) == -signal.SIGKILL
        assert await marked_without_letter(etcd, prefix) == []
        assert await run_processor(shared_etcd, prefix, "never") == 0
        assert await marked_without_letter(etcd, prefix) == []
    async with open_actions_client(etcd, prefix=prefix) as client:
        letters = await client.dead_letters()
    assert sorted(letter.key for letter in letters) == sorted(action.key for action in actions)
    assert {letter.what for letter in letters} == {"record"}


async def fill(etcd: Etcd) -> None:
    """Write until etcd refuses; it looks at its size every 100 ms or so."""
    for n in range(100):
        await etcd.put(b"/filler/%d" % n, bytes(500_000))


async def test_while_etcd_is_full_a_refused_record_is_not_marked(
    small_etcd: EtcdServer, prefix: bytes
) -> None:
    """NOSPACE: neither letter nor mark; both once there is room. An accepted one goes meanwhile."""
    service = Scripted()
    no = RunServiceRejected("no", code=3)
    with trio.fail_after(90):
        async with (
            open_etcd(small_etcd.endpoint) as etcd,
            watching(etcd, prefix, service) as client,
        ):
            service.failures["record", "a0"] = [RunServiceUnavailable("away")] * 1000
            service.failures["status", "c1"] = [no]
            await client.enqueue(flyte.task(ROOT))
            await client.enqueue(flyte.task(named("c1"), "a0"))
            await tell(client, "c1", [Phase.RUNNING])
            await tell(client, "a0", [Phase.SUCCEEDED])
            await eventually(lambda: len(client.statistics().dead_letters) == 1)
            (letter,) = await client.dead_letters()
            with pytest.raises(NoSpace):
                await fill(etcd)
            # Nothing can be asked for: that is a write. To give one up is none.
            with pytest.raises(NoSpace):
                await client.retry_dead_letter(letter)
            assert await client.delete_dead_letter(letter)
            await eventually(lambda: client.statistics().dead_letters == ())
            service.failures["record", "a0"] = [no] * 1000

            def waits() -> bool:
                outbox = client.statistics().outbox
                return outbox is not None and any("space" in key.error for key in outbox.failing)

            await eventually(waits)
            assert service.of("a0") == []
            assert client.statistics().marks == {}
            await etcd.delete(KeyRange.of_prefix(b"/filler/"))
            revision = (await etcd.range(KeyRange.of_key(prefix))).revision
            await etcd.compact(revision, physical=True)
            await trio.to_thread.run_sync(small_etcd.etcdctl, "defrag")
            await trio.to_thread.run_sync(small_etcd.etcdctl, "alarm", "disarm")
            await eventually(lambda: client.statistics().marks.get("marked") == 1)
            (letter,) = await client.dead_letters()
            assert (letter.what, letter.phase) == ("record", Phase.SUCCEEDED)
