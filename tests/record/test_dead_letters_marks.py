"""No mark without its dead letter: also where letters are refused, and the leader changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from etcd_actions import (
    ActionId,
    ActionsClient,
    Phase,
    open_actions_client,
)
from etcd_actions._internal.containment import Containment
from etcd_actions.codecs.json import decode
from etcd_actions.dead_letters import DeadLetterStore
from etcd_actions.errors import (
    NoSpace,
    PermissionDenied,
    Unavailable,
)
from etcd_actions.etcd.api import Etcd, KeyRange, Put, RangeResult, Txn, TxnResult
from etcd_actions.etcd.election import Leadership
from etcd_actions.model import Keyspace, build_action_update
from etcd_actions.storage.store import Fence, FencedStore, Store
from tests.record.letters import NO, letters_of, refuse_record, stored
from tests.record.test_outbox import ROOT, SETTINGS, Scripted, named, tell, watching
from tests.support import flyte
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.memory


async def until_recorded(client: ActionsClient, action: ActionId) -> None:
    async def is_recorded() -> bool:
        return (await client.get_task_action(action)).is_recorded

    await eventually_holds(is_recorded)


class Refusing:
    """An etcd that refuses transactions on letters' keys while it is told to."""

    def __init__(self, etcd: Etcd, letters: bytes, error: Exception) -> None:
        self._etcd = etcd
        self._letters = letters
        self._error = error
        self.refusing = True
        self.refused = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._etcd, name)

    async def txn(self, txn: Txn) -> TxnResult:
        if self.refusing and self._writes_letter(txn):
            self.refused += 1
            raise self._error
        return await self._etcd.txn(txn)

    def _writes_letter(self, txn: Txn) -> bool:
        return any(
            self._writes_letter(each)
            if isinstance(each, Txn)
            else isinstance(each, Put) and each.key.startswith(self._letters)
            for each in txn.success
        )


@pytest.mark.parametrize("error", [NoSpace("full"), Unavailable("away")])
async def test_no_mark_without_the_letter(etcd: Etcd, prefix: bytes, error: Exception) -> None:
    """While etcd does not take the letter, that ending waits; the others go on."""
    service = Scripted()
    faulty = Refusing(etcd, Keyspace(prefix).dead_letters, error)
    async with (
        watching(faulty, prefix, service) as client,  # type: ignore[arg-type]
        # What it writes goes in no group with a letter.
        open_actions_client(etcd, prefix=prefix, settings=SETTINGS) as writer,
    ):
        service.failures["record", "a0"] = [NO] * 1000
        await writer.enqueue(flyte.task(ROOT))
        await writer.enqueue(flyte.task(named("c1"), "a0"))
        await tell(writer, "a0", [Phase.SUCCEEDED])
        await eventually(lambda: faulty.refused > 2)
        await tell(writer, "c1", [Phase.SUCCEEDED])
        await eventually(lambda: service.of("c1") == [Phase.SUCCEEDED])
        await until_recorded(client, named("c1"))
        assert not (await client.get_task_action(ROOT)).is_recorded
        faulty.refusing = False
        await until_recorded(client, ROOT)
        assert list(await stored(client)) == [("a0", "record")]


class Forbidding:
    """An etcd whose user may not read letters while it is told to be."""

    def __init__(self, etcd: Etcd, letters: bytes) -> None:
        self._etcd = etcd
        self._letters = letters
        self.forbidding = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._etcd, name)

    async def range(self, keys: KeyRange, **how: object) -> RangeResult:
        if self.forbidding and keys.start.startswith(self._letters):
            raise PermissionDenied("etcdserver: permission denied")
        return await self._etcd.range(keys, **how)  # type: ignore[arg-type]


async def test_a_role_that_may_not_read_letters_hangs_no_run(etcd: Etcd, prefix: bytes) -> None:
    """It may be from before there were letters: only what is refused waits for the permission."""
    service = Scripted()
    forbidding = Forbidding(etcd, Keyspace(prefix).dead_letters)
    settings = replace(SETTINGS, outbox_workers=2)
    async with open_actions_client(
        forbidding,  # type: ignore[arg-type]
        prefix=prefix,
        run_service=service,
        settings=settings,
    ) as client:
        await client.start_watching()
        await eventually(lambda: client.statistics().elected)
        for name in ("a0", "c1", "c2"):
            service.failures["record", name] = [NO] * 1000
            await client.enqueue(flyte.task(named(name), "" if name == "a0" else "a0"))
        await client.enqueue(flyte.task(named("c3"), "a0"))
        await tell(client, "c3", [Phase.SUCCEEDED])
        await until_recorded(client, named("c3"))
        await tell(client, "c1", [Phase.SUCCEEDED])
        assert not (await client.get_task_action(named("c1"))).is_recorded
        forbidding.forbidding = False
        await until_recorded(client, named("c1"))
        await eventually(lambda: set(letters_of(client)) >= {("c1", "record")})


@asynccontextmanager
async def standing_by(etcd: Etcd, prefix: bytes, service: Scripted) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(
        etcd, prefix=prefix, run_service=service, settings=SETTINGS
    ) as client:
        await client.start_watching()
        yield client


async def test_who_takes_over_has_the_letters(etcd: Etcd, prefix: bytes) -> None:
    first, second = Scripted(), Scripted()
    async with watching(etcd, prefix, first) as leader, standing_by(etcd, prefix, second) as other:
        await refuse_record(leader, first)
        assert other.statistics().dead_letters == ()
        # Asked of the one that does not lead, it is done by the one that does.
        first.failures["record", "a0"] = [NO]
        (letter,) = await other.dead_letters()
        again = await other.retry_dead_letter(letter, wait=True)
        assert again is not None
        assert again.times == 2
        assert second.calls == []
        await leader.stop_watching()
        await eventually(lambda: other.statistics().elected)
        await eventually(lambda: list(letters_of(other)) == [("a0", "record")])
        assert leader.statistics().dead_letters == ()
        assert await leader.retry_dead_letter(letter, wait=True) is None
    assert second.told == [("record", "a0", Phase.SUCCEEDED), ("status", "a0", Phase.SUCCEEDED)]


async def test_one_that_is_deposed_writes_no_letter(etcd: Etcd, prefix: bytes) -> None:
    """The write compares who is elected: the turn fails, and with it the mark."""
    keys, fence = Keyspace(prefix), Fence()
    book = DeadLetterStore(
        etcd,
        FencedStore(Store(etcd), fence),
        keys,
        owns=lambda _key: True,
        settings=SETTINGS.reflector,
        containment=Containment(),
    )
    created = (await etcd.put(keys.election(None), b"mine")).revision
    fence.compare = Leadership(keys.election(None), created).fence
    update = build_action_update(
        decode(await stored_task(etcd, prefix)), key=keys.task_action(ROOT), revision=1
    )
    async with book.at_work(lambda _key: None):
        await book.reject("record", update, None, code=3, error="no")
        await etcd.delete(KeyRange.of_key(keys.election(None)))
        await etcd.put(keys.election(None), b"another's")
        with pytest.raises(Unavailable, match="not the leader"):
            await book.reject("record", update, None, code=3, error="no")
        with pytest.raises(Unavailable, match="not the leader"):
            await book.accept("record", update)
        (letter,) = book.statistics().dead_letters
        assert letter.times == 1


async def stored_task(etcd: Etcd, prefix: bytes) -> bytes:
    async with open_actions_client(etcd, prefix=prefix, settings=SETTINGS) as writer:
        await writer.enqueue(flyte.task(ROOT))
    (kv,) = (await etcd.range(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))).kvs
    return kv.value
