"""Dead letters: kept before the mark, and reported again on request, also by the next leader."""

from __future__ import annotations

import json

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionUpdate,
    Phase,
    open_actions_client,
)
from etcd_actions.dead_letters.dead_letter import DeadLetterKeys
from etcd_actions.errors import (
    RunServiceRejected,
    RunServiceUnavailable,
)
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from etcd_actions.watch import store_identity
from tests.record.letters import NO, letters_of, refuse_record, stored
from tests.record.test_outbox import ROOT, SETTINGS, Scripted, is_idle, named, tell, watching
from tests.support import flyte
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.memory


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
