"""Deletions that are told late say nothing false of what has, or had, the key since."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from etcd_actions import Phase, open_actions_client
from etcd_actions.errors import RunServiceRejected, RunServiceUnavailable
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from tests.record.test_outbox import LONG, ROOT, SETTINGS, Scripted, is_idle, tell, watching
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

NEVER = 1_000.0


async def delete(etcd: Etcd, prefix: bytes) -> int:
    """Delete the root; the revision of that."""
    return (await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))).revision


@pytest.mark.parametrize(
    ("standby", "gone"),
    first_everyday(
        [
            pytest.param(True, False, id="there-standby"),
            pytest.param(False, False, id="there-restart"),
            pytest.param(True, True, id="gone-standby"),
            pytest.param(False, True, id="gone-restart"),
        ]
    ),
)
async def test_a_late_deletion_is_not_the_last_word_on_a_newer_incarnation(
    etcd: Etcd, prefix: bytes, *, standby: bool, gone: bool
) -> None:
    """A leader told a deletion, and the ending of what came next, and is killed before it saves.

    Whoever leads next has the deletion still to do, and nothing to do about what came next.
    """
    service = Scripted()
    quiet = replace(SETTINGS, save_every=NEVER)
    # A leader that is elected before its first list has nothing to save yet, and saves never.
    async with watching(etcd, prefix, service) as client:
        await eventually(lambda: client.statistics().checkpoint > 0)
    async with open_actions_client(
        etcd, prefix=prefix, run_service=service, settings=SETTINGS
    ) as second:
        with trio.CancelScope() as killed:
            async with open_actions_client(
                etcd, prefix=prefix, run_service=service, settings=quiet
            ) as first:
                await first.start_watching()
                await eventually(lambda: first.statistics().elected)
                await eventually(lambda: first.statistics().checkpoint > 0)
                if standby:
                    await second.start_watching()
                await first.enqueue(flyte.task(ROOT))
                await tell(first, "a0", [Phase.RUNNING])
                await eventually(lambda: service.of("a0")[-1:] == [Phase.RUNNING])
                await delete(etcd, prefix)
                await eventually(lambda: service.of("a0")[-1:] == [Phase.ABORTED])
                await first.enqueue(flyte.task(ROOT))
                await tell(first, "a0", [Phase.SUCCEEDED])
                await eventually(lambda: first.statistics().marks == {"marked": 1})
                if gone:
                    await delete(etcd, prefix)
                await eventually(lambda: is_idle(first))
                killed.cancel()
        told = len(service.of("a0"))
        newest = (await etcd.range(KeyRange.of_key(b"x"))).revision
        await second.start_watching()
        await eventually(lambda: second.statistics().elected)
        # All is done with: also what is held.
        await eventually(lambda: second.statistics().checkpoint >= newest)
    assert service.of("a0")[-1] is Phase.SUCCEEDED
    if not gone:
        assert service.of("a0")[told:] == []


@pytest.mark.slow
async def test_a_retry_of_a_letter_lets_no_held_deletion_go(etcd: Etcd, prefix: bytes) -> None:
    """It is told again, and done with: else the position would stand still for ever."""
    service = Scripted()
    service.failures["record", "a0"] = [RunServiceRejected("no", code=3)]
    with trio.CancelScope() as killed:
        async with watching(etcd, prefix, service, LONG) as client:
            await client.enqueue(flyte.task(ROOT))
            await tell(client, "a0", [Phase.RUNNING])
            await eventually(lambda: service.of("a0")[-1:] == [Phase.RUNNING])
            killed.cancel()
    service.failures["record", "a0"] = [RunServiceRejected("no", code=3)]
    async with watching(etcd, prefix, service) as client:
        revision = await delete(etcd, prefix)
        await eventually(lambda: client.statistics().deferred == 1)
        (letter,) = await client.dead_letters()
        assert await client.retry_dead_letter(letter, wait=True) is None
        assert client.statistics().deferred == 1
        await eventually(lambda: client.statistics().checkpoint >= revision)
    assert service.of("a0")[-3:] == [Phase.ABORTED] * 3


async def test_deletions_that_nobody_could_be_told_of_are_done_with(
    etcd: Etcd, prefix: bytes
) -> None:
    """A key that changes faster than it is told loses its oldest deletions, never the position."""
    service = Scripted()
    key = Keyspace(prefix).task_action(ROOT)
    async with watching(etcd, prefix, service) as client:
        service.failures["record", "a0"] = [RunServiceUnavailable("scripted")] * 100_000
        await client.enqueue(flyte.task(ROOT))
        (stored,) = (await etcd.range(KeyRange.of_key(key))).kvs
        await eventually(lambda: bool(service.calls))
        for _ in range(20):
            revision = await delete(etcd, prefix)
            await etcd.put(key, stored.value)
        await eventually(
            lambda: (
                (reflector := client.statistics().reflector) is not None
                and reflector.revision > revision
            )
        )
        service.failures.clear()
        await eventually(lambda: is_idle(client))
        await eventually(lambda: client.statistics().checkpoint >= revision)


async def test_a_deletion_that_was_only_concluded_is_found_by_who_starts_anew(
    etcd: Etcd, prefix: bytes
) -> None:
    """The list that shows it is newer than the deletion: the position stays before both."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.RUNNING])
        await eventually(lambda: service.of("a0")[-1:] == [Phase.RUNNING])
        await client.stop_watching()
        deleted = await delete(etcd, prefix)
        await etcd.put(prefix + b"unrelated", b"")
        service.failures["status", "a0"] = [RunServiceUnavailable("scripted")] * 100_000
        await client.start_watching()
        await eventually(lambda: client.statistics().failed.get("status", 0) > 0)
        await client.stop_watching(grace=0.01)
        assert client.statistics().checkpoint < deleted
    service.failures.clear()
    async with watching(etcd, prefix, service):
        await eventually(lambda: service.of("a0")[-1:] == [Phase.ABORTED])
