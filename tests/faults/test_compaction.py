"""History is compacted away while the reflector is cut off."""

from __future__ import annotations

import pytest
import trio

from etcd_actions import ActionUpdate, open_etcd
from etcd_actions.etcd import paging
from etcd_actions.etcd.api import Etcd, KeyRange
from tests.support import oracle
from tests.support.etcd_server import EtcdServer
from tests.support.load import Load, make_run, root_of, with_uid
from tests.support.oracle import Entry, Skipped
from tests.support.proxy import open_proxy
from tests.support.recording import RecordingRunService, RecordingSink, eventually
from tests.support.scene import (
    UNHURRIED,
    is_settled,
    judge_delivery,
    processing,
    reflecting,
    subscribed,
)

pytestmark = pytest.mark.faults


def keys_of(prefix: bytes, count: int) -> list[bytes]:
    return [prefix + f"flyte/r{n:02}-a1".encode() for n in range(count)]


async def test_what_was_compacted_is_listed(own_etcd: EtcdServer, prefix: bytes) -> None:
    """Changes, deletes and a re-creation are compacted: one list a range, at that revision.

    What came after the compaction is given out from history, all of it.
    """
    sink = RecordingSink()
    keys = keys_of(prefix, 12)
    async with (
        open_proxy(own_etcd.port) as proxy,
        open_etcd(proxy.endpoint) as etcd,
        open_etcd(own_etcd.endpoint) as direct,
    ):
        for key in keys:
            await direct.put(key, b"0")
        with trio.fail_after(60):
            async with reflecting(etcd, prefix, sink, settings=UNHURRIED) as reflector:
                await direct.put(keys[0], b"1")
                await sink.bell.until(lambda: sink.last()[keys[0]].value == b"1")
                before = await oracle.read_history(direct, KeyRange.of_prefix(prefix))
                await proxy.go_down()
                await direct.put(keys[1], b"2")
                await direct.delete(KeyRange.of_key(keys[2]))
                await direct.delete(KeyRange.of_key(keys[3]))
                await direct.put(keys[3], b"again")
                await direct.put(prefix + b"flyte/rnew-a1", b"new")
                await direct.put(prefix + b"flyte/rshort-a1", b"born")
                await direct.delete(KeyRange.of_key(prefix + b"flyte/rshort-a1"))
                for n in range(5):
                    await direct.put(keys[4], b"%d" % n)
                compacted = (await direct.delete(KeyRange.of_key(keys[5]))).revision
                earlier = await oracle.read_history(direct, KeyRange.of_prefix(prefix))
                # What follows stays in history: it must come whole.
                for n in range(3):
                    await direct.put(keys[6], b"%d" % n)
                await direct.delete(KeyRange.of_key(keys[1]))
                await direct.put(keys[1], b"3")
                await direct.put(keys[2], b"back")
                await direct.compact(compacted, physical=True)
                await proxy.come_up()
                skipped = [Skipped(before[-1].mod_revision, compacted)]
                # Of a range without keys there is nothing to deliver: it comes when it comes.
                await eventually(
                    lambda: sum((s := reflector.statistics()).relists.values()) >= s.ranges
                )
                await judge_delivery(sink, direct, prefix, earlier=earlier, skipped=skipped)
                statistics = reflector.statistics()
    deletes = {c.key: c.mod_revision for c in sink.changes if c.synthesised}
    assert deletes == {
        keys[2]: compacted,
        keys[3]: next(e.create_revision for e in earlier if e.value == b"again") - 1,
        keys[5]: compacted,
    }
    assert statistics.relists == {"compacted": statistics.ranges}
    values = [c.value for c in sink.changes if c.key == keys[4] and c.mod_revision > skipped[0][0]]
    assert values == [b"4"]


async def test_a_compaction_at_the_resume_point_costs_nothing(
    own_etcd: EtcdServer, prefix: bytes
) -> None:
    """The last handled revision itself is compacted: history goes on right behind it."""
    sink = RecordingSink()
    keys = keys_of(prefix, 4)
    async with (
        open_proxy(own_etcd.port) as proxy,
        open_etcd(proxy.endpoint) as etcd,
        open_etcd(own_etcd.endpoint) as direct,
    ):
        for key in keys:
            await direct.put(key, b"0")
        done = (await direct.delete(KeyRange.of_key(keys[3]))).revision
        with trio.fail_after(60):
            async with reflecting(etcd, prefix, sink, settings=UNHURRIED) as reflector:
                await proxy.go_down()
                earlier = await oracle.read_history(direct, KeyRange.of_prefix(prefix))
                await direct.delete(KeyRange.of_key(keys[0]))
                await direct.put(keys[0], b"again")
                await direct.put(keys[1], b"1")
                await direct.compact(done, physical=True)
                await proxy.come_up()
                skipped = [Skipped(0, done)]
                await judge_delivery(sink, direct, prefix, earlier=earlier, skipped=skipped)
                assert reflector.statistics().relists == {}
    assert not any(change.synthesised for change in sink.changes)


class CompactingSink(RecordingSink):
    """Changes and compacts when a page of a list wants room, as often as it is armed."""

    def __init__(self, etcd: Etcd) -> None:
        super().__init__()
        self._etcd = etcd
        self.armed: list[bytes] = []
        self.compacted = 0
        self.compactions = 0
        self._one_at_a_time = trio.Lock()

    async def wait_list_capacity(self) -> None:
        if self.armed:
            key = self.armed.pop()
            # The next page may fail, and end the wait for room, before this is done.
            with trio.CancelScope(shield=True):
                async with self._one_at_a_time:
                    await self._etcd.delete(KeyRange.of_key(key))
                    self.compacted = (await self._etcd.put(key, b"compacted")).revision
                    await self._etcd.compact(self.compacted, physical=True)
                    self.compactions += 1


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("witness_changes", "reason"),
    [pytest.param(False, "compacted", id="ranges"), pytest.param(True, "unverifiable", id="all")],
)
async def test_a_compaction_between_the_pages_of_a_list(
    own_etcd: EtcdServer,
    prefix: bytes,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    witness_changes: bool,
    reason: str,
) -> None:
    """A list is overtaken by compactions: it begins again, and nothing is mixed up.

    So in the list of single ranges as in that of everything, which is made when the newest
    change that was given out was changed since and cannot be looked at any more.
    """
    for limit in ("_FIRST_LIMIT", "_LEAST_LIMIT", "_MOST_LIMIT"):
        monkeypatch.setattr(paging, limit, 2)
    keys = keys_of(prefix, 20)
    async with (
        open_proxy(own_etcd.port) as proxy,
        open_etcd(proxy.endpoint) as etcd,
        open_etcd(own_etcd.endpoint) as direct,
    ):
        sink = CompactingSink(direct)
        for key in keys:
            await direct.put(key, b"0")
        with trio.fail_after(60):
            async with (
                reflecting(etcd, prefix, sink, settings=UNHURRIED) as reflector,
                trio.open_nursery() as nursery,
            ):
                start = (await direct.put(keys[0], b"1")).revision
                await sink.bell.until(lambda: sink.last()[keys[0]].mod_revision == start)
                await proxy.go_down()
                seen = await oracle.read_history(direct, KeyRange.of_prefix(prefix))
                nursery.start_soon(keep_history, direct, prefix, seen)
                for key in keys[2::2]:
                    await direct.delete(KeyRange.of_key(key))
                for key in keys[4::4]:
                    await direct.put(key, b"again")
                if witness_changes:
                    await direct.put(keys[0], b"2")
                compacted = (await direct.put(keys[1], b"1")).revision
                await eventually(lambda: seen[-1].mod_revision == compacted)
                await direct.compact(compacted, physical=True)
                sink.armed = [keys[19], keys[17], keys[3]][:times]
                await proxy.come_up()
                await eventually(lambda: sink.compactions == times)
                last = (await direct.put(keys[5], b"last")).revision
                await eventually(lambda: seen[-1].mod_revision == last)
                await sink.bell.until(lambda: is_settled(sink, oracle.final_states(seen)))
                skipped = [Skipped(start, sink.compacted)]
                assert oracle.delivery_problems(sink.changes, seen, skipped=skipped) == []
                statistics = reflector.statistics()
                nursery.cancel_scope.cancel()
    assert statistics.relists.keys() == {reason}


async def keep_history(etcd: Etcd, prefix: bytes, seen: list[Entry]) -> None:
    """Read along, since compactions take history away from the oracle, too."""
    async with etcd.watch() as stream:
        stream.create(oracle.watch_all(seen[-1].mod_revision + 1))
        while True:
            for response in await stream.receive():
                assert not response.canceled
                seen.extend(oracle.entries_of(response, prefix))


async def test_a_processor_tells_of_what_vanished(own_etcd: EtcdServer, prefix: bytes) -> None:
    """Deletes in compacted history: subscribers and run service hear of an abort.

    An object made again meanwhile is told as ended, then as new, and marked.
    """
    actions = make_run(prefix, "rc1", 3)
    gone, again, stays = actions
    async with (
        open_proxy(own_etcd.port) as proxy,
        open_etcd(proxy.endpoint) as etcd,
        open_etcd(own_etcd.endpoint) as direct,
    ):
        run_service, load = RecordingRunService(direct), Load(direct)
        for action in actions:
            await load.write(action.key, action.states[4])
        with trio.fail_after(60):
            async with (
                processing(etcd, prefix, run_service) as processor,
                subscribed(processor, [root_of("rc1")]) as updates,
            ):
                await run_service.bell.until(lambda: len(run_service.told) == len(actions))
                await proxy.go_down()
                await load.delete_all([gone.key, again.key])
                await load.write(again.key, with_uid(again.ended, "uid-again"))
                await load.write(stays.key, stays.ended)
                history = await oracle.read_history(direct, KeyRange.of_prefix(prefix))
                await direct.compact(history[-1].mod_revision, physical=True)
                await proxy.come_up()
                await run_service.bell.until(lambda: len(run_service.told) == 7)
                keys = KeyRange.of_prefix(prefix)
                await eventually(lambda: processor.statistics().marks.get("marked") == 2)
                history += await oracle.read_history(
                    direct, keys, since=history[-1].mod_revision + 1
                )
                assert oracle.mark_problems(history, run_service.told) == []
                assert oracle.told_problems(run_service.told) == []
                await eventually(
                    lambda: (
                        not oracle.subscriber_problems(
                            updates, history, [action.key for action in actions]
                        )
                    )
                )
    assert [_brief(update) for update in updates if update.key == gone.key][-1] == ("ABORTED", True)
    # A subscriber may find only the newer object; the run service hears of both.
    assert [one.is_deleted for one in run_service.told if one.key == again.key] == [
        False,
        True,
        False,
    ]
    assert (again.key, "uid-again") in run_service.recorded


def _brief(update: ActionUpdate) -> tuple[str, bool]:
    return update.phase.name, update.is_deleted
