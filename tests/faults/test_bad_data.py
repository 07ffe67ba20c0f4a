"""Values that are no TaskActions, keys that belong to nobody, and a store that is full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from etcd_actions import ActionUpdate, open_etcd
from etcd_actions.codecs import json
from etcd_actions.errors import NoSpace
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue
from etcd_actions.pipeline.processor import Processor
from tests.support.etcd_server import EtcdServer
from tests.support.load import Load, make_run, root_of
from tests.support.recording import RecordingRunService, eventually, until_stored
from tests.support.scene import processing, subscribed

pytestmark = pytest.mark.faults

GARBAGE = [
    b"",
    b"\x00\xff garbage",
    b"{",
    b"null",
    b"[]",
    b'{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"}}',
    b"k8s\x00protobuf",
    b"[" * 100_000,
    b'{"apiVersion":"flyte.org/v1","kind":"TaskAction"}',
    b'{"apiVersion":"flyte.org/v1","kind":"TaskAction","metadata":{"name":7},"spec":{}}',
    b"k8s:enc:aescbc:v1:key1:\x8b",
    b"\xd9\xd9\xf7\xa4",
    b"\xffPB\x01",
    b"\xffPB\x01\x02\x0a\x00",
    b"\xffPB\x02\x00",
    b"\xffMP\x01\x80",
    b"\xffMP\x01" + b"\x91" * 100_000,
    b"\xffMP\x02\x80",
]


async def test_garbage_is_set_aside_and_healed(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """Each undecodable value is counted once and listed; others flow; a good write heals."""
    bad = make_run(prefix, "rb1", len(GARBAGE))
    good = make_run(prefix, "rb2", 3)
    run_service, load = RecordingRunService(etcd), Load(etcd)
    # Half of it is there at the start, the other half comes while it is watched.
    for action, value in list(zip(bad, GARBAGE, strict=True))[::2]:
        await etcd.put(action.key, value)
    with trio.fail_after(60):
        async with (
            open_etcd(shared_etcd.endpoint) as connection,
            processing(connection, prefix, run_service) as processor,
            subscribed(processor, [root_of("rb1")]) as updates,
        ):
            for action, value in list(zip(bad, GARBAGE, strict=True))[1::2]:
                await etcd.put(action.key, value)
            for action in good:
                await load.write(action.key, action.ended)
            await eventually(lambda: processor.statistics().marks == {"marked": len(good)})
            await eventually(lambda: len(processor.statistics().undecodable) == len(bad))
            assert set(processor.statistics().undecodable) == {action.key for action in bad}
            assert processor.statistics().decode_errors == len(bad)
            assert not {action.key for action in bad} & {one.key for one in run_service.told}
            router = processor.statistics().handlers
            assert router is not None
            assert router.failing == ()
            for action in bad:
                await etcd.put(action.key, action.ended)
            total = len(good) + len(bad)
            await eventually(lambda: processor.statistics().marks == {"marked": total})
            assert processor.statistics().undecodable == {}
            await eventually(lambda: {each.key for each in updates} == {each.key for each in bad})


@pytest.mark.parametrize("value", ["garbage", "good"])
@pytest.mark.parametrize("name", [b"", b"flyte", b"flyte/a/b", b"/", b"flyte/\xff\xfe"], ids=repr)
async def test_a_key_that_is_nobodys_harms_nobody(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, name: bytes, value: str
) -> None:
    """A key that is no namespace and name, with any value, set and deleted: others flow."""
    (action,) = make_run(prefix, "rb3", 1)
    run_service = RecordingRunService(etcd)
    stored = action.states[4] if value == "good" else b"garbage"
    with trio.fail_after(60):
        async with (
            open_etcd(shared_etcd.endpoint) as connection,
            processing(connection, prefix, run_service) as processor,
        ):
            await etcd.put(prefix + name, stored)
            await etcd.delete(KeyRange.of_key(prefix + name))
            await etcd.put(prefix + name, stored)
            await etcd.put(action.key, action.ended)
            await eventually(lambda: processor.statistics().marks == {"marked": 1})
            router, outbox = processor.statistics().handlers, processor.statistics().outbox
            assert router is not None
            assert outbox is not None
            assert router.failing == ()
            assert outbox.failing == ()
            await etcd.delete(KeyRange.of_key(prefix + name))


@pytest.fixture
def small_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd that is full after a few writes."""
    server = EtcdServer(tmp_path, flags=["--quota-backend-bytes=2000000"])
    server.start()
    yield server
    server.stop()


async def fill(etcd: Etcd) -> None:
    """Write until etcd refuses; it looks at its size every 100 ms or so."""
    for n in range(100):
        await etcd.put(b"/filler/%d" % n, bytes(500_000))


async def test_marks_wait_while_etcd_is_full(small_etcd: EtcdServer, prefix: bytes) -> None:
    """NOSPACE: marks are parked, the watch goes on; after the alarm is off they are made."""
    actions = make_run(prefix, "rf1", 3)
    doomed = make_run(prefix, "rf2", 1)[0]
    keys = KeyRange.of_prefix(prefix)
    with trio.fail_after(90):
        async with (
            open_etcd(small_etcd.endpoint) as etcd,
            open_etcd(small_etcd.endpoint) as direct,
        ):
            run_service = _Local(direct)
            run_service.hang = lambda _: True
            for action in [*actions, doomed]:
                await direct.put(action.key, action.ended)
            async with (
                processing(etcd, prefix, run_service) as processor,
                subscribed(processor, [root_of("rf2")]) as updates,
            ):
                await eventually(lambda: run_service.calls == 4)
                with pytest.raises(NoSpace):
                    await fill(direct)
                run_service.hang = lambda _: False
                run_service.bell.ring()
                await eventually(lambda: _failures(processor) >= 4)
                assert len(run_service.accepted) == 4
                await direct.delete(KeyRange.of_key(doomed.key))
                await eventually(lambda: any(update.is_deleted for update in updates))
                assert processor.statistics().marks.keys() <= {"gone"}
                await direct.delete(KeyRange.of_prefix(b"/filler/"))
                revision = (await direct.range(keys)).revision
                await direct.compact(revision, physical=True)
                await trio.to_thread.run_sync(small_etcd.etcdctl, "defrag")
                await trio.to_thread.run_sync(small_etcd.etcdctl, "alarm", "disarm")
                stored = await until_stored(direct, keys, _recorded)
                assert stored.keys() == {action.key for action in actions}
                await eventually(lambda: processor.statistics().marks["marked"] == 3)
                # After the acceptance only the mark was tried again.
                assert sorted(set(run_service.accepted)) == sorted(run_service.accepted)


class _Local(RecordingRunService):
    """Accepts without a write to etcd."""

    def __init__(self, etcd: Etcd) -> None:
        super().__init__(etcd)
        self.accepted: list[tuple[bytes, bool]] = []

    async def update_action_status(self, update: ActionUpdate) -> None:
        await self._obstruct(update)
        self.accepted.append((update.key, update.is_deleted))


def _failures(processor: Processor) -> int:
    outbox = processor.statistics().outbox
    return outbox.failures if outbox is not None else 0


def _recorded(stored: dict[bytes, KeyValue]) -> bool:
    return all(json.decode(kv.value).is_recorded for kv in stored.values())
