"""A namespace for each project and domain: one name in several of them, all on one etcd."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionStatus,
    ActionUpdate,
    Phase,
    SnapshotEnd,
    WatchingSettings,
    errors,
    open_actions_client,
)
from etcd_actions.codecs import codec_of
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace, NamespaceTemplate
from etcd_actions.storage.store import Store
from tests.support import flyte
from tests.support.waiting import eventually_holds

pytestmark = pytest.mark.memory

TEMPLATE = "{project}-{domain}"
ONE = ActionId("one", "d", "r1", "a0", "o")
TWO = ActionId("two", "d", "r1", "a0", "o")
BOTH = (ONE, TWO)


def below(root: ActionId, name: str) -> ActionId:
    return ActionId(root.project, root.domain, root.run, name, root.org)


@pytest.fixture
def keys(prefix: bytes) -> Keyspace:
    return Keyspace(prefix, template=NamespaceTemplate(TEMPLATE))


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix, namespace_template=TEMPLATE) as client:
        yield client


async def trees(client: ActionsClient) -> None:
    """A run of one name in each project: root, child, condition and trace."""
    for root in BOTH:
        await client.enqueue(flyte.task(root))
        await client.enqueue(flyte.task(below(root, "c1"), "a0"))
        await client.enqueue(flyte.condition(below(root, "w1"), "a0"))
        await client.enqueue(flyte.trace(below(root, "t1"), "a0"))


async def test_runs_of_one_name_in_two_projects_are_kept_apart(
    client: ActionsClient, etcd: Etcd, keys: Keyspace
) -> None:
    """By each method: what is done to the one does nothing to the other."""
    await trees(client)
    first = await client.get_task_action(ONE)
    assert first.key == keys.prefix + b"one-d/r1-a0"
    assert first.metadata.namespace == "one-d"
    await client.put_status(below(ONE, "c1"), 1, ActionStatus(Phase.RUNNING))
    await client.signal(below(ONE, "w1"), flyte.boolean(True))
    assert (await client.get_task_action(below(ONE, "t1"))).spec.kind == "trace"
    phases = {}
    for root in BOTH:
        listed = await client.list_run_actions(root.run_id, traces=True)
        assert {each.action_id.project for each in listed.actions} == {root.project}
        phases[root.project] = {each.action_id.name: each.phase for each in listed.actions}
    unset = Phase.UNSPECIFIED
    assert phases == {
        "one": {"a0": unset, "c1": Phase.RUNNING, "w1": Phase.SUCCEEDED, "t1": Phase.SUCCEEDED},
        "two": {"a0": unset, "c1": unset, "w1": unset, "t1": Phase.SUCCEEDED},
    }
    assert set((await client.abort_action(ONE)).aborted) == {"a0", "c1"}
    assert await Store(etcd).get(keys.abort(ONE)) is not None
    assert (await client.get_task_action(TWO)).phase is Phase.UNSPECIFIED
    # An abort is of one namespace: the other run goes on, and grows.
    assert (await client.enqueue(flyte.task(below(TWO, "c2"), "a0"))).created
    with pytest.raises(errors.Aborted):
        await client.enqueue(flyte.task(below(ONE, "c2"), "a0"))


@pytest.mark.parametrize("watches", [True, False], ids=["watching", "not-watching"])
async def test_subscribers_hear_of_their_own_run(client: ActionsClient, watches: bool) -> None:
    await trees(client)
    if watches:
        await client.start_watching()
    async with (
        client.subscribe(TWO, snapshot=True) as two,
        client.subscribe_run(TWO.run_id) as run,
        client.subscribe_all() as everything,
    ):
        assert await snapshot(two) == {"two/a0", "two/c1", "two/w1", "two/t1"}
        assert await snapshot(run) == {"two/a0", "two/c1", "two/w1", "two/t1"}
        assert await snapshot(everything) == {
            f"{project}/{name}"
            for project, name in itertools.product(("one", "two"), ("a0", "c1", "w1", "t1"))
        }
        await client.put_status(below(ONE, "c1"), 1, ActionStatus(Phase.RUNNING))
        await client.put_status(below(TWO, "c1"), 1, ActionStatus(Phase.RUNNING))
        for each in (two, run):
            assert (await running(each)).project == "two"
        assert [(await running(everything)).project for _ in BOTH] == ["one", "two"]


async def snapshot(updates: Any) -> set[str]:
    found = set()
    with trio.fail_after(20):
        while not isinstance(item := await updates.receive(), SnapshotEnd):
            found.add(f"{item.action_id.project}/{item.action_id.name}")
    return found


async def running(updates: Any) -> ActionId:
    """The action of the next update that says RUNNING."""
    with trio.fail_after(20):
        while True:
            item = await updates.receive()
            if isinstance(item, ActionUpdate) and item.phase is Phase.RUNNING:
                return item.action_id


async def test_one_process_of_all_records_and_marks_in_every_namespace(
    etcd: Etcd, prefix: bytes
) -> None:
    """There is one election, and one position, for the whole prefix."""
    async with (
        open_actions_client(etcd, prefix=prefix, namespace_template=TEMPLATE) as one,
        open_actions_client(etcd, prefix=prefix, namespace_template=TEMPLATE) as two,
    ):
        await one.start_watching()
        await two.start_watching()
        await trees(two)
        for root in BOTH:
            await two.put_status(root, 1, ActionStatus(Phase.SUCCEEDED))

        async def marked() -> bool:
            return all([(await two.get_task_action(root)).is_recorded for root in BOTH])

        await eventually_holds(marked, within=20)
        assert [one.statistics().elected, two.statistics().elected].count(True) == 1
    elections = await etcd.range(KeyRange.of_prefix(Keyspace(prefix).own), keys_only=True)
    positions = [kv.key for kv in elections.kvs if b"/position/" in kv.key]
    assert positions == [Keyspace(prefix).checkpoint(None)]


async def test_orphans_and_aborts_are_looked_for_in_every_namespace(
    etcd: Etcd, prefix: bytes, keys: Keyspace
) -> None:
    """What lost its parent, and an abort that was cut off, while nobody watched."""
    async with open_actions_client(etcd, prefix=prefix, namespace_template=TEMPLATE) as client:
        await trees(client)
        child = below(TWO, "c1")
        kv = await Store(etcd).get(keys.task_action(child))
        assert kv is not None
        await client.abort_action(TWO)
        # Cut off before it came to the child; and the other root is deleted.
        await etcd.put(kv.key, kv.value)
        await etcd.delete(KeyRange.of_key(keys.task_action(ONE)))
    async with open_actions_client(
        etcd,
        prefix=prefix,
        namespace_template=TEMPLATE,
        settings=WatchingSettings(retain_terminal=None),
    ) as client:
        await client.start_watching()

        async def settled() -> bool:
            try:
                await client.get_task_action(below(ONE, "c1"))
            except errors.NotFound:
                return (await client.get_task_action(child)).phase is Phase.ABORTED
            return False

        await eventually_holds(settled, within=20)


async def test_claims_are_of_one_namespace_each(client: ActionsClient) -> None:
    await trees(client)
    async with client.open_claims() as claims:
        for root in BOTH:
            stored = await client.get_task_action(root)
            claim = await claims.claim(root, stored.incarnation)
            assert claim is not None
        assert await claims.taken() == {"one-d/r1-a0", "two-d/r1-a0"}


async def test_projects_that_make_one_namespace_conflict_visibly(client: ActionsClient) -> None:
    """``a-b`` with ``c`` and ``a`` with ``b-c``: the template says the same of both."""
    await client.enqueue(flyte.task(ActionId("a-b", "c", "r1", "a0")))
    with pytest.raises(errors.NameTaken, match="holds task a0 of run a-b/c/r1") as caught:
        await client.enqueue(flyte.task(ActionId("a", "b-c", "r1", "a0")))
    # They have it already.
    assert "--namespace-template" not in str(caught.value)
    with pytest.raises(errors.NotFound):
        await client.get_task_action(ActionId("a", "b-c", "r1", "a0"))


async def test_a_project_that_makes_no_namespace_is_an_invalid_argument(
    client: ActionsClient,
) -> None:
    """It names the field, for every method, before anything is written."""
    bad = ActionId("My_Project", "d", "r1", "a0")
    for ask in (
        lambda: client.enqueue(flyte.task(bad)),
        lambda: client.get_task_action(bad),
        lambda: client.abort_action(bad),
        lambda: client.signal(bad, flyte.boolean(True)),
        lambda: client.put_status(bad, 1, ActionStatus(Phase.RUNNING)),
        lambda: client.list_run_actions(bad.run_id),
    ):
        with pytest.raises(errors.InvalidArgument) as caught:
            await ask()
        assert caught.value.field == "action_id.run.project"
    with pytest.raises(errors.InvalidArgument):
        async with client.subscribe(bad):
            pass


@pytest.mark.parametrize("template", ["flyte", "{org}", "{project}/{domain}"])
async def test_a_template_that_makes_no_namespaces_is_refused(etcd: Etcd, template: str) -> None:
    with pytest.raises(errors.ConfigError, match="namespace_template"):
        async with open_actions_client(etcd, namespace_template=template):
            pass


async def test_what_was_there_before_the_switch_is_still_watched_and_marked(
    etcd: Etcd, prefix: bytes
) -> None:
    """In the one namespace of before; by its name a client without a template finds it."""
    async with (
        open_actions_client(etcd, prefix=prefix) as before,
        open_actions_client(etcd, prefix=prefix, namespace_template=TEMPLATE) as client,
    ):
        await before.enqueue(flyte.task(ONE))
        await before.put_status(ONE, 1, ActionStatus(Phase.SUCCEEDED))
        await client.start_watching()

        async def marked() -> bool:
            return (await before.get_task_action(ONE)).is_recorded

        await eventually_holds(marked, within=20)
        # Nobody is told that it is gone: where it was looked for is said.
        with pytest.raises(errors.NotFound, match="in namespace one-d"):
            await client.get_task_action(ONE)
        with pytest.raises(errors.Aborted, match="in namespace one-d"):
            await client.enqueue(flyte.task(below(ONE, "c1"), "a0"))
        # The same run again is another object, in the namespace of its project.
        assert (await client.enqueue(flyte.task(ONE))).created
        async with client.subscribe_all() as everything:
            with trio.fail_after(20):
                found = [await everything.receive() for _ in range(2)]
        namespaces = {each.namespace for each in found if isinstance(each, ActionUpdate)}
        assert namespaces == {"flyte", "one-d"}


async def test_a_whole_prefix_has_one_key_for_each_object(
    client: ActionsClient, etcd: Etcd, prefix: bytes
) -> None:
    """What is stored says the namespace that its key has."""
    await trees(client)
    kvs = (await etcd.range(KeyRange.of_prefix(prefix))).kvs
    for kv in kvs:
        tree = codec_of(kv.value).decode_tree(kv.value)
        namespace, name = kv.key[len(prefix) :].decode().split("/")
        assert (tree["metadata"]["namespace"], tree["metadata"]["name"]) == (namespace, name)
    assert len(kvs) == 6
