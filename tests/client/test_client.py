"""The ActionsClient as a whole, on a real etcd: what its methods do together."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionUpdate,
    Phase,
    RunId,
    SnapshotEnd,
    Subscription,
    WatchingSettings,
    open_actions_client,
    open_etcd,
)
from etcd_actions.codecs import CODEC_NAMES
from etcd_actions.errors import ConfigError, InvalidArgument, WrongType
from etcd_actions.etcd import TransportName
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from etcd_actions.pipeline.processor import Processor
from etcd_actions.watch import ReflectorSettings
from tests.record.test_outbox import Scripted
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


# An old etcd does not tell that nothing has changed: it is looked after so long.
SOON = WatchingSettings(save_every=0.05, reflector=ReflectorSettings(dead_after=0.6))


@asynccontextmanager
async def watching(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix, settings=SOON) as client:
        await client.start_watching()
        yield client


async def until(
    updates: Subscription[ActionUpdate], name: str, phase: Phase, *, recorded: bool = False
) -> list[ActionUpdate]:
    """Receive up to an update of an action in a phase."""
    got = []
    with trio.fail_after(20):
        async for update in updates:
            got.append(update)
            reached = (update.action_id.name, update.phase) == (name, phase)
            if reached and (update.recorded or not recorded):
                break
    return got


@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
async def test_a_run_from_its_start_to_its_mark(
    shared_etcd: EtcdServer, prefix: bytes, transport: TransportName, codec: str
) -> None:
    """Over each transport, in each stored form."""
    async with (
        open_etcd(shared_etcd.endpoint, transport=transport) as etcd,
        open_actions_client(etcd, prefix=prefix, codec=codec) as client,
    ):
        await client.start_watching()
        async with client.subscribe(ROOT) as updates:
            assert (await client.enqueue(flyte.task(ROOT))).created
            assert (await client.enqueue(flyte.task(CHILD, "a0"))).created
            await client.put_status(CHILD, 1, flyte.status(Phase.RUNNING))
            await until(updates, "c1", Phase.RUNNING)
            await client.put_status(CHILD, 1, flyte.status(Phase.SUCCEEDED))
            await client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
            await until(updates, "a0", Phase.SUCCEEDED, recorded=True)

        def marked() -> bool:
            return client.statistics().marks.get("marked", 0) == 2

        await eventually(marked)
        listing = await client.list_run_actions(ROOT.run_id)
        assert [each.is_recorded for each in listing.actions] == [True, True]
        # Our finalizer went with the mark.
        assert [each.metadata.finalizers for each in listing.actions] == [(), ()]


async def test_it_watches_for_as_long_as_the_context_lasts(etcd: Etcd, prefix: bytes) -> None:
    async with open_actions_client(etcd, prefix=prefix, settings=SOON) as client:
        async with client.watching():
            assert client.statistics().watching
            await client.enqueue(flyte.task(ROOT))
            await client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
            await eventually(lambda: client.statistics().marks.get("marked", 0) == 1)
        assert not client.statistics().watching
        with trio.CancelScope() as scope:
            async with client.watching(grace=math.inf):
                scope.cancel()
                await trio.sleep_forever()
        with pytest.raises(LookupError):
            async with client.watching(grace=math.inf):
                raise LookupError
        await eventually(lambda: not client.statistics().watching)


async def test_an_error_comes_out_of_a_watch_whose_end_is_cancelled(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline passes while it stops: the cancellation must not hide why."""
    async with open_actions_client(etcd, prefix=prefix, settings=SOON) as client:
        stop_watching = ActionsClient.stop_watching
        with pytest.raises(LookupError), trio.CancelScope() as scope:  # noqa: PT012

            async def cancelled(self: ActionsClient, grace: float | None = None) -> None:
                scope.cancel()
                await stop_watching(self, grace)

            monkeypatch.setattr(ActionsClient, "stop_watching", cancelled)
            async with client.watching():
                raise LookupError
        await eventually(lambda: not client.statistics().watching)


async def test_without_watching_a_subscriber_is_told(client: ActionsClient) -> None:
    """It watches the run for itself, and writes nothing."""
    await client.enqueue(flyte.task(ROOT))
    async with client.subscribe(ROOT) as updates:
        await client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
        (update,) = await until(updates, "a0", Phase.SUCCEEDED)
        assert not update.recorded
    assert not (await client.get_task_action(ROOT)).is_recorded
    assert not client.statistics().watching


async def test_those_that_subscribed_without_watching_hear_that_the_client_is_closed(
    etcd: Etcd, prefix: bytes
) -> None:
    ended = trio.Event()

    async def read(client: ActionsClient, *, task_status: trio.TaskStatus[None]) -> None:
        async with client.subscribe(ROOT) as updates:
            task_status.started()
            async for _ in updates:
                pass
        ended.set()

    async with trio.open_nursery() as nursery:
        async with open_actions_client(etcd, prefix=prefix) as client:
            await nursery.start(read, client)
        with trio.fail_after(10):
            await ended.wait()


async def test_subscriptions_of_a_client_that_does_not_watch_share_a_watch(
    client: ActionsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one run; the last that ends, ends it. One of another run has its own."""
    made: list[Processor] = []
    init = Processor.__init__

    def counted(processor: Processor, *arguments: object, **options: object) -> None:
        made.append(processor)
        init(processor, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Processor, "__init__", counted)
    other = ActionId("p", "d", "r2", "a0")
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.task(CHILD, "a0"))
    await client.enqueue(flyte.task(other))
    async with client.subscribe(ROOT) as first:
        async with client.subscribe(CHILD) as child, client.subscribe(ROOT) as root:
            assert len(made) == 1
            async with client.subscribe(other):
                assert len(made) == 2
            assert [each.watching for each in made] == [True, False]
            await client.put_status(CHILD, 1, flyte.status(Phase.SUCCEEDED))
            for updates in (child, root):
                await until(updates, "c1", Phase.SUCCEEDED)
        assert made[0].watching
        await until(first, "c1", Phase.SUCCEEDED)
    assert not made[0].watching
    assert len(client._subscribing.watches) == 0
    async with client.subscribe(ROOT) as again:
        assert len(made) == 3
        await client.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
        await until(again, "a0", Phase.SUCCEEDED)


@pytest.mark.parametrize("watches", [True, False], ids=["watching", "not-watching"])
async def test_a_snapshot_and_what_follows(etcd: Etcd, prefix: bytes, watches: bool) -> None:
    """Parent, children and traces at one revision, a marker, then only what is newer."""
    async with open_actions_client(etcd, prefix=prefix) as client:
        if watches:
            await client.start_watching()
        await client.enqueue(flyte.task(ROOT))
        await client.enqueue(flyte.task(CHILD, "a0"))
        await client.enqueue(flyte.trace(ActionId("p", "d", "r1", "t1"), "a0"))
        other = ActionId("p", "d", "r1-c1", "a0")
        await client.enqueue(flyte.task(other))
        async with client.subscribe(ROOT, snapshot=True) as updates:
            snapshot = [await updates.receive() for _ in range(4)]
            *states, marker = snapshot
            assert isinstance(marker, SnapshotEnd)
            told = {
                (each.action_id.name, each.phase): each.revision
                for each in states
                if isinstance(each, ActionUpdate)
            }
            assert set(told) == {
                ("a0", Phase.UNSPECIFIED),
                ("c1", Phase.UNSPECIFIED),
                ("t1", Phase.SUCCEEDED),
            }
            assert max(told.values()) <= marker.revision
            written = await client.put_status(CHILD, 1, flyte.status(Phase.RUNNING))
            newer: list[ActionUpdate] = []
            with trio.fail_after(20):
                while not newer or newer[-1].action_id != CHILD:
                    update = await updates.receive()
                    assert isinstance(update, ActionUpdate)
                    newer.append(update)
            assert newer[-1].revision == written.revision
            assert all(each.revision > marker.revision for each in newer)
            # The mark of the trace may come after the snapshot, and nothing else.
            assert all(each.recorded for each in newer[:-1])


async def test_unsubscribe(client: ActionsClient, etcd: Etcd, prefix: bytes) -> None:
    """It ends the reader; a handle of another client is an error."""
    await client.start_watching()
    async with client.subscribe(ROOT) as updates, trio.open_nursery() as nursery:
        received = []

        async def read() -> None:
            async for each in updates:
                received.append(each.phase)

        nursery.start_soon(read)
        await client.enqueue(flyte.task(ROOT))
        await eventually(lambda: bool(received))
        await client.unsubscribe(updates)
        await client.unsubscribe(updates)
        async with open_actions_client(etcd, prefix=prefix) as other:
            with pytest.raises(InvalidArgument, match="another client"):
                await other.unsubscribe(updates)
    await client.unsubscribe(updates)


async def test_identifiers_of_flyte(client: ActionsClient) -> None:
    """Each method takes them, too; what makes no key is refused by the field's name."""
    await client.enqueue(flyte.task(ROOT))
    identifier = flyte.identifier(ROOT)
    assert (await client.get_task_action(identifier)).action_id == ROOT
    assert len((await client.list_run_actions(identifier.run)).actions) == 1
    assert len((await client.list_child_actions(identifier)).actions) == 1
    for field, bad in (
        ("action_id.name", ActionId("p", "d", "r1", "")),
        ("action_id.name", ActionId("p", "d", "r1", "a/b")),
        ("action_id.run.project", ActionId("", "d", "r1", "a0")),
        ("action_id.run.name", ActionId("p", "d", "", "a0")),
    ):
        with pytest.raises(InvalidArgument) as raised:
            await client.get_task_action(bad)
        assert raised.value.field == field


async def test_a_run_and_an_action_have_an_identity_each(client: ActionsClient) -> None:
    """A run is listed by its own; as a parent, in our form or Flyte's, it has its root below it."""
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.task(CHILD, parent="a0"))
    assert len((await client.list_run_actions(ROOT.run_id)).actions) == 2
    nameless = ActionId("p", "d", "r1", "")
    for parent in (ROOT.run_id, flyte.identifier(nameless)):
        async with client.subscribe(parent, snapshot=True) as updates:
            first = await updates.receive()
            assert isinstance(first, ActionUpdate)
            assert first.action_id == ROOT
            assert isinstance(await updates.receive(), SnapshotEnd)
    with pytest.raises(InvalidArgument, match=r"^action_id\.name: "):
        client.subscribe(nameless)
    with pytest.raises(InvalidArgument, match=r"^run\.name: "):
        client.subscribe_run(RunId("p", "d", ""))
    with pytest.raises(WrongType, match=r"^run: .* give RunId or RunIdentifier$"):
        await client.list_run_actions(ROOT)


async def test_an_unknown_codec(etcd: Etcd) -> None:
    """It is refused at once."""
    with pytest.raises(ConfigError, match="yaml"):
        async with open_actions_client(etcd, codec="yaml"):
            raise AssertionError("it was opened")


async def test_a_second_process_takes_over(etcd: Etcd, prefix: bytes) -> None:
    """One records; when it goes the other does, beginning with what is unmarked."""
    async with watching(etcd, prefix) as second:
        async with watching(etcd, prefix) as first:
            both = (first, second)
            await eventually(lambda: sum(each.statistics().elected for each in both) == 1)
            await first.enqueue(flyte.task(ROOT))
            await first.put_status(ROOT, 1, flyte.status(Phase.SUCCEEDED))
            await eventually(
                lambda: sum(each.statistics().marks.get("marked", 0) for each in both) == 1
            )
        await eventually(lambda: second.statistics().elected)
        await second.enqueue(flyte.task(CHILD, "a0"))
        await second.put_status(CHILD, 1, flyte.status(Phase.FAILED))
        # What bears the mark already is in a snapshot, and what becomes of it is told.
        recorded: dict[str, Phase] = {}
        async with second.subscribe(ROOT, snapshot=True) as updates:
            with trio.fail_after(20):
                while len(recorded) < 2:
                    update = await updates.receive()
                    if isinstance(update, ActionUpdate) and update.recorded:
                        recorded[update.action_id.name] = update.phase
        assert recorded == {"a0": Phase.SUCCEEDED, "c1": Phase.FAILED}


async def test_a_delete_while_nobody_watched_is_reported(etcd: Etcd, prefix: bytes) -> None:
    """The position tells where to begin: the deletion is in the history since."""
    async with watching(etcd, prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        await client.put_status(ROOT, 1, flyte.status(Phase.RUNNING))
        await eventually(lambda: client.statistics().elected)
    assert client.statistics().checkpoint
    await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))
    service = Scripted()
    async with open_actions_client(
        etcd, prefix=prefix, run_service=service, settings=SOON
    ) as later:
        async with later.subscribe(ROOT, snapshot=True) as updates:
            assert isinstance(await updates.receive(), SnapshotEnd)
        await later.start_watching()
        await eventually(lambda: later.statistics().elected)
        await eventually(lambda: later.statistics().checkpoint > client.statistics().checkpoint)
        await eventually(lambda: service.of("a0")[-1:] == [Phase.ABORTED])
