"""What the run service refuses for good is known until it is accepted, whoever stops when."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionUpdate,
    DeadLetter,
    Phase,
    open_actions_client,
)
from etcd_actions._internal.containment import Containment
from etcd_actions.codecs.json import decode
from etcd_actions.dead_letters import DeadLetterStore
from etcd_actions.dead_letters.dead_letter import DeadLetterKeys
from etcd_actions.errors import (
    FailedPrecondition,
    NoSpace,
    PermissionDenied,
    RunServiceActionUnknown,
    RunServiceRejected,
    RunServiceUnavailable,
    Unavailable,
)
from etcd_actions.etcd.api import Etcd, KeyRange, Put, RangeResult, Txn, TxnResult
from etcd_actions.etcd.election import Leadership
from etcd_actions.model import Keyspace, build_action_update
from etcd_actions.storage.store import Store
from etcd_actions.watch import store_identity
from tests.record.test_outbox import ROOT, SETTINGS, Scripted, is_idle, named, tell, watching
from tests.support import flyte
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.memory

NO = RunServiceRejected("no", code=3)


def letters_of(client: ActionsClient) -> dict[tuple[str, str], DeadLetter]:
    """The open letters by action and call, as the elected process knows them."""
    letters = client.statistics().dead_letters
    return {(letter.action_id.name, letter.what): letter for letter in letters}


async def stored(client: ActionsClient) -> dict[tuple[str, str], DeadLetter]:
    """The same as they are in etcd."""
    letters = await client.dead_letters()
    return {(letter.action_id.name, letter.what): letter for letter in letters}


async def refuse_record(client: ActionsClient, service: Scripted) -> None:
    """The root's record is refused, its ending is accepted and marked."""
    service.failures["record", "a0"] = [NO]
    await client.enqueue(flyte.task(ROOT))
    await tell(client, "a0", [Phase.SUCCEEDED])
    await eventually(lambda: client.statistics().marks == {"marked": 1})


@pytest.mark.network
async def test_the_bugs_of_a_version_are_named_once_though_letters_are_watched_too(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_identity, "_logged", set())
    service = Scripted()
    with capture_logs() as logs:
        async with watching(etcd, prefix, service) as client:
            await refuse_record(client, service)
            assert len(await stored(client)) == 1
    bugs = [log for log in logs if log["event"] == "etcd_has_known_bugs"]
    assert len(bugs) <= 1


async def test_a_refused_record_is_known_after_a_restart(etcd: Etcd, prefix: bytes) -> None:
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        uid = (await client.get_task_action(ROOT)).metadata.uid
    async with watching(etcd, prefix, Scripted()) as client:
        await eventually(lambda: list(letters_of(client)) == [("a0", "record")])
        letter = letters_of(client)["a0", "record"]
        assert letter == (await stored(client))["a0", "record"]
    assert (letter.action_id, letter.uid, letter.key) == (
        ROOT,
        uid,
        Keyspace(prefix).task_action(ROOT),
    )
    # The ending, which the record is about by now; not the state that it was refused with.
    assert (letter.phase, letter.attempts) == (Phase.SUCCEEDED, 1)
    assert (letter.code, letter.error, letter.times) == (3, "no", 1)
    assert letter.first == letter.last != ""
    assert letter.keeps == "object"


async def test_a_letter_is_there_before_the_mark(etcd: Etcd, prefix: bytes) -> None:
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        letter = (await stored(client))["a0", "record"]
        marked = await client.get_task_action(ROOT)
    assert letter.dead_letter_revision < marked.revision


async def test_a_retry_tells_record_then_status(etcd: Etcd, prefix: bytes) -> None:
    """Of a marked ending too, in this order, and the letter is gone then."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        service.told.clear()
        (letter,) = await client.dead_letters()
        assert await client.retry_dead_letter(letter, wait=True) is None
        await eventually(lambda: is_idle(client))
        assert await client.dead_letters() == []
        assert client.statistics().dead_letters == ()
        # Once more is safe.
        assert await client.retry_dead_letter(letter, wait=True) is None
    assert service.told == [
        ("record", "a0", Phase.SUCCEEDED),
        ("status", "a0", Phase.SUCCEEDED),
    ]


class Holding(Scripted):
    """Holds the status of an ending until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = False
        self.came = trio.Event()
        self.go_on = trio.Event()

    async def update_action_status(self, update: ActionUpdate) -> None:
        if self.holds and update.phase.is_terminal:
            self.came.set()
            await self.go_on.wait()
        self._take("status", update)


async def test_a_request_that_comes_while_the_mark_deletes_the_object_is_met(
    etcd: Etcd, prefix: bytes
) -> None:
    """All letters of an action are retried one after the other: the first request has it told."""
    service = Holding()
    service.failures["record", "a0"] = [NO]
    service.failures["status", "a0"] = [NO]
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        key = Keyspace(prefix).task_action(ROOT)
        tree = json.loads((await etcd.range(KeyRange.of_key(key))).kvs[0].value)
        tree["metadata"]["deletionTimestamp"] = tree["metadata"]["creationTimestamp"]
        await etcd.put(key, json.dumps(tree).encode())
        await eventually_holds(lambda: has(client, ("a0", "record"), ("a0", "status")))
        assert not service.of("a0")
        letters = await stored(client)
        service.holds = True
        await client.retry_dead_letter(letters["a0", "record"])
        await service.came.wait()
        asked = await client.retry_dead_letter(letters["a0", "status"])
        assert asked is not None
        await eventually(lambda: letters_of(client)["a0", "status"].request is not None)
        service.go_on.set()
        with trio.fail_after(10):
            assert await client.wait_dead_letter(asked) is None
        assert await client.dead_letters() == []
        assert not (await etcd.range(KeyRange.of_key(key))).kvs


async def has(client: ActionsClient, *wanted: tuple[str, str]) -> bool:
    return set(wanted) <= set(await stored(client))


async def test_a_retry_that_is_refused_says_so(etcd: Etcd, prefix: bytes) -> None:
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        service.failures["record", "a0"] = [RunServiceRejected("still not", code=11)]
        (letter,) = await client.dead_letters()
        again = await client.retry_dead_letter(letter, wait=True)
        assert again is not None
        assert (again.code, again.error, again.times) == (11, "still not", 2)
        assert again.request is None
        assert again.first == letter.first
        # The status was told again nevertheless; the next try is accepted.
        assert await client.retry_dead_letter(again, wait=True) is None
        assert await client.dead_letters() == []


async def test_a_retry_waits_for_a_run_service_that_is_away(etcd: Etcd, prefix: bytes) -> None:
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        service.failures["record", "a0"] = [RunServiceUnavailable("away")] * 2
        service.failures["status", "a0"] = [RunServiceUnavailable("away")] * 2
        service.told.clear()
        (letter,) = await client.dead_letters()
        assert await client.retry_dead_letter(letter, wait=True) is None
        # Not before the status was told: a crash in between would lose it.
        assert [what for what, _, _ in service.told][-1] == "status"
        assert service.of("a0") == [Phase.SUCCEEDED]


async def test_a_request_is_met_by_the_next_leader(etcd: Etcd, prefix: bytes) -> None:
    """Asked while nobody runs, it stays; asked twice, it is one."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
    async with open_actions_client(etcd, prefix=prefix, settings=SETTINGS) as writer:
        assert not await writer.has_leader()
        (letter,) = await writer.dead_letters()
        asked = await writer.retry_dead_letter(letter)
        assert asked is not None
        assert asked.request is not None
        assert await writer.retry_dead_letter(letter) == asked
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        assert await client.has_leader()
        await eventually(lambda: [what for what, _, _ in service.told] == ["record", "status"])
        await eventually(lambda: client.statistics().dead_letters == ())
        assert await client.dead_letters() == []


async def test_a_refused_status_is_told_again_and_marked(etcd: Etcd, prefix: bytes) -> None:
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        service.failures["status", "a0"] = [NO]
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.FAILED])
        await eventually(lambda: list(letters_of(client)) == [("a0", "status")])
        await eventually(lambda: is_idle(client))
        assert client.statistics().marks == {}
        (letter,) = await client.dead_letters()
        assert await client.retry_dead_letter(letter, wait=True) is None
        await eventually(lambda: client.statistics().marks == {"marked": 1})
    assert service.of("a0") == [Phase.FAILED]


async def test_what_is_gone_is_told_from_the_letter(etcd: Etcd, prefix: bytes) -> None:
    """All of the record, and the ending that was accepted without one."""
    service = Scripted()
    records: list[object] = []
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))
        await eventually(lambda: is_idle(client))
        await eventually(lambda: client.statistics().checkpoint > 0)
    service = Scripted()

    async def record_action(update: object, action: object) -> None:
        records.append(action)
        service._take("record", update)  # type: ignore[arg-type]

    service.record_action = record_action  # type: ignore[method-assign]
    async with watching(etcd, prefix, service) as client:
        (letter,) = await client.dead_letters()
        assert await client.dead_letter_objects([letter]) == {}
        assert await client.retry_dead_letter(letter, wait=True) is None
    assert service.told == [
        ("record", "a0", Phase.SUCCEEDED),
        ("status", "a0", Phase.SUCCEEDED),
    ]
    (action,) = records
    assert action is not None
    assert action.action_id == ROOT  # type: ignore[attr-defined]


async def test_a_deletion_is_carried_by_the_letter(etcd: Etcd, prefix: bytes) -> None:
    """Refused while it ran, aborted by its deletion: the letter tells that end, once asked."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        service.failures["record", "a0"] = [NO]
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.RUNNING])
        await eventually(lambda: service.of("a0") == [Phase.RUNNING])
        await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))
        await eventually(lambda: service.of("a0") == [Phase.RUNNING, Phase.ABORTED])
        await eventually(lambda: letters_of(client)["a0", "record"].phase is Phase.ABORTED)
        letter = letters_of(client)["a0", "record"]
        assert (letter.is_deleted, letter.keeps) == (True, "object")
        service.told.clear()
        assert await client.retry_dead_letter(letter, wait=True) is None
    assert service.told == [("record", "a0", Phase.ABORTED), ("status", "a0", Phase.ABORTED)]


async def test_another_incarnation_takes_the_letter_over(etcd: Etcd, prefix: bytes) -> None:
    """Of the same action: its row is about the new one, so nothing of the old one is told."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))
        await eventually(lambda: is_idle(client))
        assert len(await client.dead_letters()) == 1
        await client.enqueue(flyte.task(ROOT))
        await eventually(lambda: client.statistics().dead_letters == ())
        assert await client.dead_letters() == []


async def test_actions_that_share_a_key_have_a_letter_each(etcd: Etcd, prefix: bytes) -> None:
    """Runs of one name in two projects, one after the other: the first row is still missing."""
    other = ActionId("q", "d", "r1", "a0")
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))
        await eventually(lambda: is_idle(client))
        await client.enqueue(flyte.task(other))
        await tell_of(client, other, Phase.SUCCEEDED)
        await eventually(lambda: client.statistics().marks == {"marked": 2})
        (letter,) = await client.dead_letters()
        assert letter.action_id == ROOT
        # Told from the letter, beside the present action of the key.
        service.updates.clear()
        assert await client.retry_dead_letter(letter, wait=True) is None
        assert await client.dead_letters() == []
    told = [(update.action_id.project, update.phase) for update in service.updates]
    assert told[-2:] == [("p", Phase.SUCCEEDED), ("p", Phase.SUCCEEDED)]
    assert set(told[:-2]) == {("q", Phase.SUCCEEDED)}


async def test_a_letter_in_the_place_of_another_is_answered(etcd: Etcd, prefix: bytes) -> None:
    """Copied there by somebody: nothing is told of it, and its request is not for ever."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        (letter,) = await client.dead_letters()
        (kv,) = (await etcd.range(KeyRange.of_key(letter.dead_letter_key))).kvs
        keys = Keyspace(prefix)
        for place, whose in ((ROOT, named("x")), (named("y"), named("y"))):
            key = DeadLetterKeys(keys).key(keys.task_action(place), whose, "record")
            await etcd.put(key, kv.value)
        await eventually(lambda: len(client.statistics().dead_letters) == 3)
        service.told.clear()
        for copy in await client.dead_letters():
            if copy.dead_letter_key != letter.dead_letter_key:
                answer = await client.retry_dead_letter(copy, wait=True)
                assert answer is not None
                assert "another action" in answer.note
        assert {name for _, name, _ in service.told} <= {"a0"}


async def tell_of(client: ActionsClient, action: ActionId, phase: Phase) -> None:
    await client.put_status(action, 1, flyte.status(phase, 1))


async def test_the_oldest_letters_make_room(etcd: Etcd, prefix: bytes) -> None:
    service = Scripted()
    names = [f"c{n}" for n in range(5)]
    for name in names:
        service.failures["record", name] = [NO]
    async with open_actions_client(
        etcd,
        prefix=prefix,
        run_service=service,
        settings=replace(SETTINGS, most_dead_letters=3),
    ) as client:
        await client.start_watching()
        await client.enqueue(flyte.task(ROOT))
        for name in names:
            await client.enqueue(flyte.task(named(name), "a0"))
            await eventually(lambda name=name: (name, "record") in letters_of(client))  # type: ignore[misc]
        await eventually(lambda: client.statistics().dropped_dead_letters == 2)
        assert [letter.action_id.name for letter in await client.dead_letters()] == names[2:]


async def test_a_letter_has_a_bounded_size(etcd: Etcd, prefix: bytes) -> None:
    """Whatever the run service and the object say."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        service.failures["record", "a0"] = [RunServiceRejected("\ud800" * 100_000, code=2**40)]
        task = flyte.task(ROOT)
        # What cannot be compressed.
        task.task.spec.task_template.custom["noise"] = "".join(
            f"{hash((n, 'x')) & 0xFFFFFFFFFFFF:x}" for n in range(20_000)
        )
        await client.enqueue(task)
        await eventually(lambda: list(letters_of(client)) == [("a0", "record")])
        letter = letters_of(client)["a0", "record"]
        assert letter.size < 48 * 1024
        assert letter.keeps == "state"
        assert await client.retry_dead_letter(letter, wait=True) is None


async def test_what_is_no_letter_hurts_nothing(etcd: Etcd, prefix: bytes) -> None:
    """Garbage among the letters, before and after the start: listed as such, and deleted."""
    keys = Keyspace(prefix)
    place = DeadLetterKeys(keys).key(keys.task_action(ROOT), ROOT, "record")
    garbage = {
        keys.dead_letters + b"\xff\xfe": b"",
        keys.dead_letters + b"actions/flyte/x/other/0": b"{}",
        DeadLetterKeys(keys).key(keys.task_action(named("c1")), named("c1"), "status"): b"["
        * 100_000,
        DeadLetterKeys(keys).key(
            keys.task_action(named("c2")), named("c2"), "status"
        ): b'{"times":0}',
    }
    for key, value in garbage.items():
        await etcd.put(key, value)
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await eventually(lambda: len(client.statistics().dead_letters) == 4)
        await etcd.put(place, b"\x00")
        await eventually(lambda: len(client.statistics().dead_letters) == 5)
        # The place of one is used where it is needed.
        await refuse_record(client, service)
        letters = await client.dead_letters()
        assert {letter.dead_letter_key for letter in letters if letter.unreadable} == set(garbage)
        assert [letter.what for letter in letters if not letter.unreadable] == ["record"]
        for letter in letters:
            if letter.unreadable:
                with pytest.raises(FailedPrecondition):
                    await client.retry_dead_letter(letter)
                assert await client.delete_dead_letter(letter)
        await eventually(lambda: len(client.statistics().dead_letters) == 1)
        assert client.statistics().elected
        assert client.containment.failures == {}


async def test_a_state_that_cannot_be_read_is_answered(etcd: Etcd, prefix: bytes) -> None:
    """The object is gone, and what the letter keeps is damaged: the request is not for ever."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))
        await eventually(lambda: is_idle(client))
        (letter,) = await client.dead_letters()
        (kv,) = (await etcd.range(KeyRange.of_key(letter.dead_letter_key))).kvs
        await etcd.put(kv.key, json.dumps({**json.loads(kv.value), "state": "AAAA"}).encode())
        answer = await client.retry_dead_letter(letter, wait=True)
        assert answer is not None
        assert "cannot be read" in answer.note


async def test_a_letter_that_changed_is_not_deleted(etcd: Etcd, prefix: bytes) -> None:
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse_record(client, service)
        (letter,) = await client.dead_letters()
        stale = replace_revision(letter)
        assert not await client.delete_dead_letter(stale)
        assert await client.delete_dead_letter(letter)
        assert not await client.delete_dead_letter(letter)
        await eventually(lambda: client.statistics().dead_letters == ())


def replace_revision(letter: DeadLetter) -> DeadLetter:
    return msgspec.structs.replace(letter, dead_letter_revision=letter.dead_letter_revision - 1)


# A status that is answered with: there is no such action.


async def test_not_found_means_record_first_then_status(etcd: Etcd, prefix: bytes) -> None:
    """The run service lost its database: the ending waits for a record, and is then marked."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await eventually(lambda: service.of("a0", "record") == [Phase.UNSPECIFIED])
        await eventually(lambda: is_idle(client))
        service.calls.clear()
        service.failures["status", "a0"] = [RunServiceActionUnknown("no row", code=5)]
        await tell(client, "a0", [Phase.SUCCEEDED])
        await eventually(lambda: client.statistics().marks == {"marked": 1})
        assert client.statistics().dead_letters == ()
    assert service.calls == [("status", "a0"), ("record", "a0"), ("status", "a0")]


async def test_not_found_is_tried_again_by_the_back_off(etcd: Etcd, prefix: bytes) -> None:
    """One record and one status a try; it never becomes a letter while records are accepted."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        service.failures["status", "a0"] = [RunServiceActionUnknown("no row", code=5)] * 4
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.SUCCEEDED])
        await eventually(lambda: client.statistics().marks == {"marked": 1})
        assert client.statistics().rejected == {}
        assert client.statistics().dead_letters == ()
    assert service.calls == [("record", "a0"), ("status", "a0")] * 5


async def test_not_found_with_a_refused_record_is_a_letter(etcd: Etcd, prefix: bytes) -> None:
    """Of both calls, and the ending is not marked; asked again, both are told, and it is."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        service.failures["record", "a0"] = [NO]
        await client.enqueue(flyte.task(ROOT))
        await eventually(lambda: list(letters_of(client)) == [("a0", "record")])
        await eventually(lambda: is_idle(client))
        service.failures["record", "a0"] = [NO]
        service.failures["status", "a0"] = [RunServiceActionUnknown("no row", code=5)]
        await tell(client, "a0", [Phase.SUCCEEDED])
        await eventually(lambda: len(letters_of(client)) == 2)
        await eventually(lambda: is_idle(client))
        assert client.statistics().marks == {}
        assert letters_of(client)["a0", "record"].times == 2
        assert letters_of(client)["a0", "status"].code == 5
        letter = letters_of(client)["a0", "status"]
        service.calls.clear()
        assert await client.retry_dead_letter(letter, wait=True) is None
        await eventually(lambda: client.statistics().marks == {"marked": 1})
        assert await client.dead_letters() == []
    assert service.calls == [("record", "a0"), ("status", "a0")]


# etcd does not take the letter.


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
    keys = Keyspace(prefix)
    book = DeadLetterStore(
        etcd,
        Store(etcd),
        keys,
        owns=lambda _key: True,
        settings=SETTINGS.reflector,
        containment=Containment(),
    )
    created = (await etcd.put(keys.election(None), b"mine")).revision
    leadership = Leadership(keys.election(None), created)
    update = build_action_update(
        decode(await stored_task(etcd, prefix)), key=keys.task_action(ROOT), revision=1
    )
    async with book.at_work(leadership.fence, lambda _key: None):
        await book.reject("record", update, None, code=3, error="no")
        await etcd.delete(KeyRange.of_key(keys.election(None)))
        await etcd.put(keys.election(None), b"another's")
        with pytest.raises(Unavailable, match="leads"):
            await book.reject("record", update, None, code=3, error="no")
        with pytest.raises(Unavailable, match="leads"):
            await book.accept("record", update)
        (letter,) = book.statistics().dead_letters
        assert letter.times == 1


async def stored_task(etcd: Etcd, prefix: bytes) -> bytes:
    async with open_actions_client(etcd, prefix=prefix, settings=SETTINGS) as writer:
        await writer.enqueue(flyte.task(ROOT))
    (kv,) = (await etcd.range(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))).kvs
    return kv.value
