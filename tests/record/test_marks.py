"""A mark counts for the ending that it was written for, and for no other state.

Others write what they like over a recorded ending, whole objects as a rule, and keep the label.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import hypothesis
import pytest
import trio
from hypothesis import strategies as st

from etcd_actions import ActionsClient, ActionUpdate, Phase, open_actions_client, open_etcd
from etcd_actions.codecs import Codec, codec_of
from etcd_actions.errors import FailedPrecondition
from etcd_actions.etcd.api import Etcd, KeyRange, KeyValue
from etcd_actions.model import (
    ANNOTATION_RECORDED,
    FINALIZER_PLUGIN,
    LABEL_TERMINAL_STATUS_RECORDED,
    ActionObject,
    Keyspace,
    build_action_update,
)
from etcd_actions.model.conditions import write_phase
from etcd_actions.record.recorder import TerminalState
from etcd_actions.run_service import RunService
from tests.codecs.strategies import CODECS
from tests.record.test_outbox import ROOT, SETTINGS, Scripted, is_idle, tell, watching
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.memory

NOW = datetime(2026, 11, 28, tzinfo=UTC)
ALONE = replace(SETTINGS, elect=False)
SEQUENCES = int(os.environ.get("ETCD_ACTIONS_TEST_SEQUENCES", "50"))
each_codec = pytest.mark.parametrize("codec", first_everyday(CODECS), ids=lambda codec: codec.name)
_numbers = itertools.count()

Edit = Callable[[dict[str, Any]], object]


def key_of(prefix: bytes) -> bytes:
    return Keyspace(prefix).task_action(ROOT)


async def stored(etcd: Etcd, prefix: bytes) -> KeyValue:
    (kv,) = (await etcd.range(KeyRange.of_key(key_of(prefix)))).kvs
    return kv


async def edit(etcd: Etcd, prefix: bytes, change: Edit) -> None:
    """Write the whole object with a change, whatever it has become meanwhile."""
    kv = await stored(etcd, prefix)
    codec = codec_of(kv.value)
    tree = codec.decode_tree(kv.value)
    change(tree)
    await etcd.put(kv.key, codec.encode_tree(tree))


def in_phase(phase: Phase, attempts: int | None = None) -> Edit:
    return lambda tree: write_phase(tree, phase, now=NOW, attempts=attempts)


def read(kv: KeyValue) -> ActionUpdate:
    return build_action_update(
        codec_of(kv.value).decode(kv.value),
        key=kv.key,
        revision=kv.mod_revision,
        create_revision=kv.create_revision,
    )


def annotation(kv: KeyValue) -> str | None:
    return codec_of(kv.value).decode(kv.value).metadata.annotations.get(ANNOTATION_RECORDED)


def assert_mark_fits(kv: KeyValue, phase: Phase, attempt: int = 1) -> None:
    update = read(kv)
    assert (update.phase, update.recorded) == (phase, True)
    assert annotation(kv) == TerminalState.of(update).mark(kv.create_revision)
    assert (annotation(kv) or "").startswith(f"{phase.name}/{attempt} {kv.create_revision} ")


@asynccontextmanager
async def watched(client: ActionsClient) -> AsyncIterator[list[ActionUpdate]]:
    """Watch, and give what a subscriber gets."""
    seen: list[ActionUpdate] = []
    await client.start_watching()
    async with client.subscribe(ROOT) as updates, trio.open_nursery() as nursery:

        async def follow() -> None:
            async for update in updates:
                seen.append(update)

        nursery.start_soon(follow)
        yield seen
        nursery.cancel_scope.cancel()


def marked(client: ActionsClient, times: int) -> Callable[[], bool]:
    return lambda: client.statistics().marks.get("marked") == times and is_idle(client)


@asynccontextmanager
async def aborted(
    etcd: Etcd, prefix: bytes, codec: Codec
) -> AsyncIterator[tuple[ActionsClient, Scripted, list[ActionUpdate]]]:
    """A root that ran, was aborted, and is recorded."""
    service = Scripted()
    async with (
        open_actions_client(
            etcd, prefix=prefix, run_service=service, settings=SETTINGS, codec=codec.name
        ) as client,
        watched(client) as seen,
    ):
        await eventually(lambda: client.statistics().elected)
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.RUNNING])
        await eventually(lambda: service.of("a0")[-1:] == [Phase.RUNNING])
        await client.abort_action(ROOT, "enough", "me")
        await eventually(marked(client, 1))
        assert service.of("a0") == [Phase.RUNNING, Phase.ABORTED]
        assert_mark_fits(await stored(etcd, prefix), Phase.ABORTED)
        yield client, service, seen


# --- what others write over it ------------------------------------------------------------


@each_codec
async def test_an_older_status_over_a_recorded_ending_is_told_to_nobody(
    etcd: Etcd, prefix: bytes, codec: Codec
) -> None:
    """Everybody goes on to see ABORTED, a late subscriber too, and `put_status` keeps it."""
    async with aborted(etcd, prefix, codec) as (client, service, seen):
        before = await stored(etcd, prefix)
        await edit(etcd, prefix, in_phase(Phase.RUNNING))
        after = await stored(etcd, prefix)
        await eventually(lambda: seen[-1].revision == after.mod_revision)
        await eventually(lambda: is_idle(client))
        assert annotation(after) == annotation(before)
        assert service.of("a0") == [Phase.RUNNING, Phase.ABORTED]
        assert (seen[-1].phase, seen[-1].recorded, seen[-1].partial) == (Phase.ABORTED, True, True)
        assert seen[-1].abort_reason == "enough"
        found = await client.get_task_action(ROOT)
        assert (found.phase, found.attempts, found.is_recorded) == (Phase.ABORTED, 1, True)
        for phase, attempt in ((Phase.SUCCEEDED, 1), (Phase.RUNNING, 2), (Phase.ABORTED, 1)):
            with pytest.raises(FailedPrecondition, match="ABORTED"):
                await tell(client, "a0", [phase], attempt)
        assert (await client.abort_action(ROOT)).ended is Phase.ABORTED
        assert await stored(etcd, prefix) == after


@each_codec
async def test_another_ending_over_a_recorded_one_is_told_and_marked_anew(
    etcd: Etcd, prefix: bytes, codec: Codec
) -> None:
    """The schedule of a foreign executor: an older status, labels kept, then SUCCEEDED."""
    async with aborted(etcd, prefix, codec) as (client, service, seen):
        await edit(etcd, prefix, in_phase(Phase.RUNNING))
        await edit(etcd, prefix, in_phase(Phase.SUCCEEDED))
        await eventually(marked(client, 2))
        assert service.of("a0") == [Phase.RUNNING, Phase.ABORTED, Phase.SUCCEEDED]
        await eventually(lambda: (seen[-1].phase, seen[-1].recorded) == (Phase.SUCCEEDED, True))
        kv = await stored(etcd, prefix)
        assert_mark_fits(kv, Phase.SUCCEEDED)
        assert codec_of(kv.value) is codec


async def test_a_newer_attempt_over_a_recorded_ending_is_told(etcd: Etcd, prefix: bytes) -> None:
    async with aborted(etcd, prefix, CODECS[0]) as (client, service, _):
        await edit(etcd, prefix, in_phase(Phase.RUNNING, 2))
        await eventually(lambda: service.of("a0")[-1] is Phase.RUNNING)
        assert service.updates[-1].attempts == 2
        await edit(etcd, prefix, in_phase(Phase.RUNNING, 1))
        await edit(etcd, prefix, in_phase(Phase.FAILED, 2))
        await eventually(marked(client, 2))
        assert_mark_fits(await stored(etcd, prefix), Phase.FAILED, 2)
    assert service.of("a0")[-1] is Phase.FAILED


async def test_another_error_of_the_same_ending_is_told_anew(etcd: Etcd, prefix: bytes) -> None:
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.FAILED])
        await eventually(marked(client, 1))
        await edit(
            etcd,
            prefix,
            lambda tree: tree["status"].update(errorState={"code": "OOM", "message": "why"}),
        )
        await eventually(marked(client, 2))
        assert_mark_fits(await stored(etcd, prefix), Phase.FAILED)
    assert service.of("a0") == [Phase.FAILED] * 2
    assert service.updates[-1].error is not None


async def test_a_copy_of_the_object_from_before_is_told_as_what_it_is(
    etcd: Etcd, prefix: bytes
) -> None:
    """It brings the mark of an ending that was told, but not last."""
    async with aborted(etcd, prefix, CODECS[0]) as (client, service, _):
        copy = (await stored(etcd, prefix)).value
        await edit(etcd, prefix, in_phase(Phase.SUCCEEDED))
        await eventually(marked(client, 2))
        await etcd.put(key_of(prefix), copy)
        await eventually(lambda: service.of("a0")[-1] is Phase.ABORTED)
        await eventually(lambda: is_idle(client))
        assert_mark_fits(await stored(etcd, prefix), Phase.ABORTED)
    assert service.of("a0")[1:] == [Phase.ABORTED, Phase.SUCCEEDED, Phase.ABORTED]


async def test_an_object_made_again_from_a_copy_is_another_one(etcd: Etcd, prefix: bytes) -> None:
    """With label, annotation and uid of the old one, which its key's revision gives away."""
    async with aborted(etcd, prefix, CODECS[0]) as (client, service, _):
        copy = (await stored(etcd, prefix)).value
        await etcd.delete(KeyRange.of_key(key_of(prefix)))
        await etcd.put(key_of(prefix), copy)
        await eventually(marked(client, 2))
        assert_mark_fits(await stored(etcd, prefix), Phase.ABORTED)
    assert service.of("a0") == [Phase.RUNNING, Phase.ABORTED, Phase.ABORTED]
    assert len(service.of("a0", "record")) == 2


# --- labels without a mark ----------------------------------------------------------------


def labelled(tree: dict[str, Any]) -> None:
    tree["metadata"].setdefault("labels", {})[LABEL_TERMINAL_STATUS_RECORDED] = "true"


@each_codec
async def test_a_label_on_what_goes_on_hides_no_ending(
    etcd: Etcd, prefix: bytes, codec: Codec
) -> None:
    """Set by hand, or passed on by a parent that was over: it is noted to be about nothing."""
    service = Scripted()
    async with open_actions_client(
        etcd, prefix=prefix, run_service=service, settings=SETTINGS, codec=codec.name
    ) as client:
        await client.start_watching()
        await client.enqueue(flyte.task(ROOT))
        await edit(etcd, prefix, labelled)
        await tell(client, "a0", [Phase.RUNNING])
        await eventually(lambda: service.of("a0") == [Phase.RUNNING])
        await eventually(lambda: is_idle(client))
        assert annotation(await stored(etcd, prefix)) == "none"
        await tell(client, "a0", [Phase.SUCCEEDED])
        await eventually(marked(client, 1))
        assert_mark_fits(await stored(etcd, prefix), Phase.SUCCEEDED)
    assert service.of("a0") == [Phase.RUNNING, Phase.SUCCEEDED]


async def test_an_ending_that_another_service_marked_is_not_told_again(
    etcd: Etcd, prefix: bytes
) -> None:
    """Flyte's own leaves no annotation: its label counts on any ending, as it always has."""
    async with open_actions_client(etcd, prefix=prefix) as writer:
        await writer.enqueue(flyte.task(ROOT))
        await tell(writer, "a0", [Phase.SUCCEEDED])
    await edit(etcd, prefix, labelled)
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await eventually(lambda: is_idle(client))
        assert (await client.get_task_action(ROOT)).is_recorded
        assert annotation(await stored(etcd, prefix)) is None
    assert service.told == []


# --- deletions ----------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True], ids=["watching", "after a restart"])
@pytest.mark.parametrize("older", [False, True], ids=["as recorded", "an older status over it"])
async def test_an_abort_whose_foreign_finalizer_goes_by_a_plain_put_is_finished(
    etcd: Etcd, prefix: bytes, restart: bool, older: bool
) -> None:
    """An API server would delete the object with that write; on bare etcd the leader does."""

    def let_go(tree: dict[str, Any]) -> None:
        assert tree["metadata"].pop("finalizers") == [FINALIZER_PLUGIN]
        if older:
            write_phase(tree, Phase.RUNNING, now=NOW)

    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await edit(
            etcd, prefix, lambda tree: tree["metadata"]["finalizers"].append(FINALIZER_PLUGIN)
        )
        await client.abort_action(ROOT, "enough", "me")
        await eventually(marked(client, 1))
        assert_mark_fits(await stored(etcd, prefix), Phase.ABORTED)
        if restart:
            await client.stop_watching()
        await edit(etcd, prefix, let_go)
        if restart:
            await client.start_watching()
        await _gone(etcd, KeyRange.of_key(key_of(prefix)))
        await _gone(etcd, KeyRange.of_prefix(Keyspace(prefix).aborts))
    assert service.of("a0") == [Phase.ABORTED]


async def test_the_deletion_of_what_ended_before_an_older_status_is_not_told(
    etcd: Etcd, prefix: bytes
) -> None:
    """It ended, and that is recorded: its deletion aborts nothing."""
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        await tell(client, "a0", [Phase.SUCCEEDED])
        await eventually(marked(client, 1))
        await edit(etcd, prefix, in_phase(Phase.RUNNING))
        await etcd.delete(KeyRange.of_key(key_of(prefix)))
        await eventually(lambda: client.statistics().handlers is not None and is_idle(client))
    assert service.of("a0") == [Phase.SUCCEEDED]


async def _gone(etcd: Etcd, keys: KeyRange) -> None:
    async def are_gone() -> bool:
        return not (await etcd.range(keys)).kvs

    await eventually_holds(are_gone, within=30)


# --- any of it ----------------------------------------------------------------------------


class Ledger(RunService):
    """A run service's row of one action: what it accepted last."""

    def __init__(self) -> None:
        self.told: list[ActionUpdate] = []

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        return True

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        await trio.lowlevel.checkpoint()

    async def update_action_status(self, update: ActionUpdate) -> None:
        self.told.append(update)
        await trio.lowlevel.checkpoint()


_phases = st.sampled_from([phase for phase in Phase if phase is not Phase.UNSPECIFIED])
_steps = st.one_of(
    st.tuples(st.just("status"), _phases, st.sampled_from([None, 1, 2])),
    st.tuples(st.just("error"), st.sampled_from(["a", "b"])),
    # A writer with a copy of the object as it was so many versions ago.
    st.tuples(st.just("copy"), st.integers(0, 8)),
    st.tuples(st.just("unlabel")),
    st.tuples(st.just("again"), st.booleans()),
    # Let the processor do what it does, or not.
    st.tuples(st.just("settle")),
)


@pytest.mark.slow
@hypothesis.settings(max_examples=max(5, SEQUENCES // 3), deadline=None)
@hypothesis.given(st.sampled_from(CODECS), st.lists(_steps, min_size=2, max_size=12))
def test_whatever_is_written_the_last_ending_is_told_last_and_marked(
    shared_etcd: EtcdServer, codec: Codec, steps: list[tuple[Any, ...]]
) -> None:
    """The run service, the object, its mark and subscribers agree in the end."""
    trio.run(_play, shared_etcd.endpoint, codec, steps)


async def _play(endpoint: str, codec: Codec, steps: list[tuple[Any, ...]]) -> None:
    prefix = f"/marks-{os.getpid()}-{next(_numbers)}/".encode()
    ledger = Ledger()
    async with (
        open_etcd(endpoint) as etcd,
        open_actions_client(
            etcd, prefix=prefix, run_service=ledger, settings=ALONE, codec=codec.name
        ) as client,
        watched(client) as seen,
    ):
        await client.enqueue(flyte.task(ROOT))

        async def settle() -> None:
            await _settled(etcd, prefix, client, seen)

        for step in (*steps, ("status", Phase.FAILED, None)):
            await _step(etcd, prefix, step, settle)
        await settle()
        kv = await stored(etcd, prefix)
        update = read(kv)
        assert update.recorded
        assert ledger.told[-1].phase is update.phase
        assert max(ledger.told[-1].attempts, 1) == max(update.attempts, 1)
        assert (annotation(kv) or "").startswith(f"{update.phase.name}/{max(update.attempts, 1)} ")
        assert (seen[-1].phase, seen[-1].recorded) == (update.phase, True)


async def _step(
    etcd: Etcd, prefix: bytes, step: tuple[Any, ...], settle: Callable[[], Awaitable[None]]
) -> None:
    match step:
        case "status", phase, attempts:
            await edit(etcd, prefix, in_phase(phase, attempts))
        case "error", text:
            error = {"code": text, "kind": "USER", "message": text}
            await edit(
                etcd, prefix, lambda tree: tree.setdefault("status", {}).update(errorState=error)
            )
        case "copy", back:
            kv = await stored(etcd, prefix)
            versions = [kv]
            while len(versions) <= back and versions[-1].version > 1:
                before = await etcd.range(
                    KeyRange.of_key(kv.key), revision=versions[-1].mod_revision - 1
                )
                versions += before.kvs
            await etcd.put(kv.key, versions[-1].value)
        case ("unlabel",):
            await edit(
                etcd,
                prefix,
                lambda tree: tree["metadata"]["labels"].pop(LABEL_TERMINAL_STATUS_RECORDED, None),
            )
        case "again", keep:
            kv = await stored(etcd, prefix)
            await etcd.delete(KeyRange.of_key(kv.key))
            if not keep:
                await settle()
            await etcd.put(kv.key, kv.value)
        case _:
            await settle()


async def _settled(
    etcd: Etcd, prefix: bytes, client: ActionsClient, seen: list[ActionUpdate]
) -> None:
    """Wait until all that was written was seen, and nothing is left to be done."""

    async def newest() -> int:
        kvs = (await etcd.range(KeyRange.of_key(key_of(prefix)))).kvs
        return kvs[0].mod_revision if kvs else 0

    async def are_settled() -> bool:
        revision = await newest()
        caught_up = not revision or (bool(seen) and seen[-1].revision >= revision)
        if not (caught_up and is_idle(client)):
            return False
        return await newest() == revision and is_idle(client)

    await eventually_holds(are_settled)
