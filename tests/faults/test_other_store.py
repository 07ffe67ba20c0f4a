"""The store behind the address is another one, or an older one, or not there yet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from etcd_actions import ActionId, ActionsClient, open_actions_client, open_etcd
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.watch import Reflector, ReflectorStatistics
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.load import Load, make_action, make_run, with_uid
from tests.support.patient import patiently
from tests.support.proxy import Proxy, open_proxy
from tests.support.recording import RecordingRunService, RecordingSink, eventually
from tests.support.scene import UNHURRIED, judge_delivery, judge_marks, processing, reflecting

pytestmark = pytest.mark.faults


@asynccontextmanager
async def cut_off(
    server: EtcdServer, prefix: bytes, sink: RecordingSink, keys: int
) -> AsyncIterator[tuple[Proxy, Reflector, Etcd]]:
    """A reflector that knows some keys and was then cut off."""
    async with (
        open_proxy(server.port) as proxy,
        open_etcd(proxy.endpoint) as etcd,
        open_etcd(server.endpoint, request_timeout=2) as direct,
    ):
        for n in range(keys):
            await patiently(direct.put, prefix + b"flyte/r%d" % n, b"old")
        async with reflecting(etcd, prefix, sink, settings=UNHURRIED) as reflector:
            await patiently(direct.put, prefix + b"flyte/r0", b"older")
            await sink.bell.until(lambda: len(sink.changes) == keys + 1)
            yield proxy, reflector, direct


async def agree(sink: RecordingSink, direct: Etcd, prefix: bytes) -> None:
    """Wait until what was given out last is what is stored."""
    found = await patiently(direct.range, KeyRange.of_prefix(prefix))
    stored = {kv.key: (kv.mod_revision, kv.value) for kv in found.kvs}
    await sink.bell.until(
        lambda: (
            {k: (c.mod_revision, c.value) for k, c in sink.last().items() if not c.is_delete}
            == stored
        )
    )


async def write_nothing(etcd: Etcd, prefix: bytes) -> None:
    """The new store stays empty."""


async def write_little(etcd: Etcd, prefix: bytes) -> None:
    """The new store has less than the old one."""
    await patiently(etcd.put, prefix + b"flyte/r1", b"new")


async def write_more(etcd: Etcd, prefix: bytes) -> None:
    """The new store's revision is beyond the old one's."""
    for n in range(12):
        await patiently(etcd.put, prefix + b"flyte/r%d" % (n % 3), b"new%d" % n)


@pytest.mark.parametrize("write", [write_nothing, write_little, write_more])
async def test_a_wiped_store_is_noticed(
    own_etcd: EtcdServer, prefix: bytes, write: Callable[[Etcd, bytes], Awaitable[None]]
) -> None:
    """The data directory is emptied: everything is listed again, what is gone gets its end."""
    sink = RecordingSink()
    with trio.fail_after(60):
        async with cut_off(own_etcd, prefix, sink, 5) as (proxy, reflector, direct):
            await proxy.go_down()
            own_etcd.stop()
            own_etcd.wipe()
            own_etcd.start()
            await write(direct, prefix)
            await proxy.come_up()
            await agree(sink, direct, prefix)
            await patiently(direct.put, prefix + b"flyte/r9", b"later")
            await agree(sink, direct, prefix)
            assert reflector.statistics().relists.keys() <= {"went_back", "replaced"}
            assert sum(reflector.statistics().relists.values()) == 1


async def restored(
    own_etcd: EtcdServer,
    prefix: bytes,
    sink: RecordingSink,
    seen: Callable[[Etcd], Awaitable[None]],
    unseen: Callable[[Etcd], Awaitable[None]],
) -> ReflectorStatistics:
    """Save the data, let ``seen`` happen, restore, let ``unseen`` happen, reconnect."""
    with trio.fail_after(60):
        async with cut_off(own_etcd, prefix, sink, 5) as (proxy, reflector, direct):
            await proxy.go_down()
            own_etcd.stop()
            own_etcd.save("backup")
            own_etcd.start()
            await proxy.come_up()
            await seen(direct)
            newest = (await patiently(direct.range, KeyRange.of_prefix(prefix))).revision
            await eventually(lambda: sink.changes[-1].mod_revision == newest)
            await proxy.go_down()
            own_etcd.stop()
            own_etcd.restore("backup")
            own_etcd.start()
            await unseen(direct)
            await proxy.come_up()
            await eventually(lambda: reflector.statistics().streaming)
            await patiently(direct.put, prefix + b"flyte/r9", b"later")
            with trio.move_on_after(20):
                await agree(sink, direct, prefix)
                return reflector.statistics()
            found = await patiently(direct.range, KeyRange.of_prefix(prefix))
            pytest.fail(f"{sink.last()} is not {found.kvs}")


async def test_a_restored_backup_is_noticed_by_its_revision(
    own_etcd: EtcdServer, prefix: bytes
) -> None:
    """An older copy of the data comes back: the revision is lower than what was handled."""

    async def seen(direct: Etcd) -> None:
        await patiently(direct.put, prefix + b"flyte/r1", b"lost")
        await patiently(direct.put, prefix + b"flyte/r7", b"lost")
        await patiently(direct.delete, KeyRange.of_key(prefix + b"flyte/r2"))

    async def unseen(direct: Etcd) -> None:
        pass

    statistics = await restored(own_etcd, prefix, RecordingSink(), seen, unseen)
    assert statistics.relists == {"went_back": 1}


async def test_a_restored_backup_is_noticed_by_its_witness(
    own_etcd: EtcdServer, prefix: bytes
) -> None:
    """The restored store is beyond what was handled, but has another state there."""

    async def seen(direct: Etcd) -> None:
        await patiently(direct.put, prefix + b"flyte/r1", b"lost")

    async def unseen(direct: Etcd) -> None:
        for n in range(5):
            await patiently(direct.put, prefix + b"flyte/r2", b"%d" % n)

    statistics = await restored(own_etcd, prefix, RecordingSink(), seen, unseen)
    assert statistics.relists == {"replaced": 1}


async def test_a_restored_backup_is_noticed_after_deletes_only(
    own_etcd: EtcdServer, prefix: bytes
) -> None:
    """All that was handled since the backup were deletes: they are no less a witness."""

    async def seen(direct: Etcd) -> None:
        await patiently(direct.delete, KeyRange.of_key(prefix + b"flyte/r1"))
        await patiently(direct.delete, KeyRange.of_key(prefix + b"flyte/r2"))

    async def unseen(direct: Etcd) -> None:
        for n in range(5):
            await patiently(direct.put, prefix + b"flyte/r3", b"%d" % n)

    statistics = await restored(own_etcd, prefix, RecordingSink(), seen, unseen)
    assert statistics.relists == {"replaced": 1}


async def test_the_same_key_and_revision_in_another_store_is_introduced(
    own_etcd: EtcdServer, prefix: bytes
) -> None:
    """After a wipe an action is made again, at the same revision: it is recorded anew."""
    action = make_action(prefix, "rw1", "a1")
    with trio.fail_after(60):
        async with (
            open_etcd(own_etcd.endpoint, request_timeout=1) as etcd,
            open_etcd(own_etcd.endpoint, request_timeout=2) as direct,
        ):
            run_service, load = RecordingRunService(direct), Load(direct)
            await load.write(action.key, action.states[3])
            async with processing(etcd, prefix, run_service):
                await run_service.bell.until(lambda: len(run_service.told) == 1)
                await load.write(action.key, action.states[4])
                await run_service.bell.until(lambda: len(run_service.told) == 2)
                own_etcd.stop()
                own_etcd.wipe()
                own_etcd.start()
                await load.write(action.key, with_uid(action.states[3], "uid-new"))
                # Who looks while the new store is empty tells first that the old action is gone.
                await run_service.bell.until(lambda: run_service.told[-1].ending.uid == "uid-new")
    assert run_service.recorded == [(action.key, "uid-rw1-a1"), (action.key, "uid-new")]


async def test_another_value_at_the_same_revision_is_noticed(
    own_etcd: EtcdServer, prefix: bytes
) -> None:
    """A wiped store got the same writes again, with other values: only they tell it apart."""
    sink = RecordingSink()
    key = prefix + b"flyte/r1"
    with trio.fail_after(60):
        async with (
            open_etcd(own_etcd.endpoint, request_timeout=1) as etcd,
            open_etcd(own_etcd.endpoint, request_timeout=2) as direct,
        ):
            await patiently(direct.put, key, b"old")
            async with reflecting(etcd, prefix, sink) as reflector:
                await eventually(lambda: reflector.statistics().streaming)
                own_etcd.stop()
                own_etcd.wipe()
                own_etcd.start()
                await patiently(direct.put, key, b"new")
                await eventually(lambda: reflector.statistics().streaming)
                later = (await patiently(direct.put, prefix + b"flyte/r2", b"later")).revision
                await sink.bell.until(lambda: sink.changes[-1].mod_revision == later)
    assert sink.last()[key].value == b"new"


async def test_a_restored_backup_is_noticed_after_a_list_only(
    own_etcd: EtcdServer, prefix: bytes
) -> None:
    """A list is in the order of keys: its newest put, not its last one, is the witness."""
    sink = RecordingSink()
    with trio.fail_after(60):
        async with (
            open_etcd(own_etcd.endpoint, request_timeout=1) as etcd,
            open_etcd(own_etcd.endpoint, request_timeout=2) as direct,
        ):
            await patiently(direct.put, prefix + b"flyte/r2", b"saved")
            own_etcd.stop()
            own_etcd.save("backup")
            own_etcd.start()
            await patiently(direct.put, prefix + b"flyte/r1", b"lost")
            async with reflecting(etcd, prefix, sink) as reflector:
                await eventually(lambda: reflector.statistics().streaming)
                own_etcd.stop()
                own_etcd.restore("backup")
                own_etcd.start()
                for key, value in [
                    (prefix + b"flyte/r1", b"restored"),
                    *[(b"/elsewhere", b"")] * 4,
                ]:
                    await patiently(direct.put, key, value)
                await agree(sink, direct, prefix)
    assert sink.last()[prefix + b"flyte/r1"].value == b"restored"


async def test_an_etcd_that_comes_late_is_waited_for(own_etcd: EtcdServer, prefix: bytes) -> None:
    """Started while etcd is away, a processor waits, and then does all its work."""
    own_etcd.stop()
    runs = [make_run(prefix, "rlate", 3)]
    with trio.fail_after(60):
        async with (
            open_etcd(own_etcd.endpoint, request_timeout=0.5) as etcd,
            open_etcd(own_etcd.endpoint, request_timeout=2) as direct,
        ):
            run_service = RecordingRunService(direct)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(start_late, own_etcd, etcd)
                async with processing(etcd, prefix, run_service) as processor:
                    assert processor.statistics().watching
                    await Load(direct).play(runs)
                    await judge_marks([processor], [run_service], direct, prefix)


async def start_late(server: EtcdServer, etcd: Etcd) -> None:
    """Start the server when it has certainly been missed."""
    for _ in range(3):
        with pytest.raises(Unavailable):
            await etcd.status()
    await trio.to_thread.run_sync(server.start)


async def test_a_reflector_lists_when_etcd_comes(own_etcd: EtcdServer, prefix: bytes) -> None:
    """Started while etcd is away, a reflector lists what there is once it can."""
    sink = RecordingSink()
    with trio.fail_after(60):
        async with open_etcd(own_etcd.endpoint, request_timeout=1) as direct:
            await patiently(direct.put, prefix + b"flyte/r1", b"1")
            own_etcd.stop()
            async with open_etcd(own_etcd.endpoint, request_timeout=0.5) as etcd:
                reflector = Reflector(etcd, KeyRange.of_prefix(prefix), sink)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reflector.run)
                    await eventually(lambda: sum(reflector.statistics().reconnects.values()) > 2)
                    assert not reflector.statistics().synced
                    await trio.to_thread.run_sync(own_etcd.start)
                    await judge_delivery(sink, direct, prefix)
                    nursery.cancel_scope.cancel("the test is over")


def watched(client: ActionsClient) -> ReflectorStatistics:
    reflector = client.statistics().reflector
    assert reflector is not None
    return reflector


async def test_what_a_client_has_seen_of_the_old_store_leads_to_no_guess(
    own_etcd: EtcdServer, prefix: bytes
) -> None:
    """It made no call meanwhile, so nothing but the watch tells it."""
    with trio.fail_after(60):
        async with (
            open_proxy(own_etcd.port) as proxy,
            open_etcd(proxy.endpoint) as etcd,
            open_actions_client(etcd, prefix=prefix) as client,
        ):
            await client.start_watching()
            await client.enqueue(flyte.task(ActionId("p", "d", "r1", "a0")))
            assert len(client._cache) == 1
            await eventually(lambda: watched(client).events > 0)
            await proxy.go_down()
            own_etcd.stop()
            own_etcd.wipe()
            own_etcd.start()
            await proxy.come_up()
            await eventually(lambda: len(client._cache) == 0)
