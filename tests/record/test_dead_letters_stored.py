"""Dead letters in etcd: bounded, unreadable, changed meanwhile; and those of NOT_FOUND."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest

from etcd_actions import (
    DeadLetter,
    Phase,
    open_actions_client,
)
from etcd_actions.dead_letters.dead_letter import DeadLetterKeys
from etcd_actions.errors import (
    FailedPrecondition,
    RunServiceActionUnknown,
    RunServiceRejected,
)
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from tests.record.letters import NO, letters_of, refuse_record
from tests.record.test_outbox import ROOT, SETTINGS, Scripted, is_idle, named, tell, watching
from tests.support import flyte
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory


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
