"""Reading actions: exactly one run's, at one revision."""

from __future__ import annotations

import pytest
import structlog

from etcd_actions.actions.listing import Lister
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.codecs import CODEC_NAMES, codec_named
from etcd_actions.errors import DecodeError, NotFound
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import (
    ANNOTATION_ORG,
    ActionId,
    ActionObject,
    Keyspace,
    ObjectMeta,
    RunId,
    TaskActionSpec,
)
from etcd_actions.storage.store import Store
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory

ROOT = ActionId("p", "d", "r1", "a0")


def stored(name: str, parent: str = "a0", *, of: ActionId = ROOT, kind: str = "") -> ActionObject:
    return ActionObject.new(
        ObjectMeta(
            f"{of.run}-{name}",
            "flyte",
            annotations={ANNOTATION_ORG: of.org} if of.org else {},
        ),
        TaskActionSpec(
            of.project, of.domain, of.run, name, parent_action_name=parent, action_type=kind
        ),
    )


async def put(etcd: Etcd, keys: Keyspace, action: ActionObject, codec: str = "json") -> int:
    key = keys.trace if action.spec.kind == "trace" else keys.task_action
    value = codec_named(codec).encode(action)
    return (await etcd.put(key(action.action_id), value)).revision


def names(actions: list[StoredAction]) -> list[str]:
    return [action.action_id.name for action in actions]


@pytest.mark.parametrize("codec", first_everyday(CODEC_NAMES))
async def test_a_run_and_nothing_else(etcd: Etcd, prefix: bytes, codec: str) -> None:
    """Run ``r1`` shows neither ``r1-x`` nor the ``r1`` of another project or domain."""
    keys = Keyspace(prefix)
    lister = Lister(Store(etcd), keys)
    last = 0
    for action in (
        stored("a0", ""),
        stored("c1"),
        stored("x-c2", of=ActionId("q", "d", "r1", "")),
        stored("x-c3", of=ActionId("p", "e", "r1", "")),
        stored("c1", of=ActionId("p", "d", "r1-x", "")),
        stored("t1", kind="trace"),
    ):
        last = await put(etcd, keys, action, codec)
    listing = await lister.list_run_actions(ROOT.run_id)
    assert names(listing.actions) == ["a0", "c1"]
    assert listing.revision >= last
    assert names((await lister.list_run_actions(ROOT.run_id, traces=True)).actions) == [
        "a0",
        "c1",
        "t1",
    ]


async def test_the_organisation_counts_where_both_know_it(etcd: Etcd, prefix: bytes) -> None:
    """It is no part of Flyte's stored form."""
    keys = Keyspace(prefix)
    lister = Lister(Store(etcd), keys)
    await put(etcd, keys, stored("a0", "", of=ActionId("p", "d", "r1", "", "o1")))
    await put(etcd, keys, stored("c1"))
    for org, expected in (("o1", ["a0", "c1"]), ("o2", ["c1"]), ("", ["a0", "c1"])):
        run = RunId("p", "d", "r1", org)
        assert names((await lister.list_run_actions(run)).actions) == expected


async def test_an_action_and_its_children(etcd: Etcd, prefix: bytes) -> None:
    """The parent itself is among them, as in Flyte's service; grandchildren are not."""
    keys = Keyspace(prefix)
    lister = Lister(Store(etcd), keys)
    for action in (
        stored("a0", ""),
        stored("c1"),
        stored("c2", "r1"),
        stored("g1", "c1"),
        stored("t1", "c1", kind="trace"),
    ):
        await put(etcd, keys, action)
    assert names((await lister.list_child_actions(ROOT)).actions) == ["a0", "c1", "c2"]
    c1 = ActionId("p", "d", "r1", "c1")
    assert names((await lister.list_child_actions(c1)).actions) == ["c1", "g1"]
    assert names((await lister.list_child_actions(c1, traces=True)).actions) == ["c1", "g1", "t1"]


async def test_each_object_tells_its_resource_version(etcd: Etcd, prefix: bytes) -> None:
    """It is the key's ``mod_revision``, which no stored value holds."""
    keys = Keyspace(prefix)
    lister = Lister(Store(etcd), keys)
    first = await put(etcd, keys, stored("a0", ""))
    second = await put(etcd, keys, stored("a0", ""))
    (action,) = (await lister.list_run_actions(ROOT.run_id)).actions
    assert action.resource_version == str(second)
    assert (action.create_revision, action.revision) == (first, second)
    assert action == await lister.get_task_action(ROOT)


async def test_get_finds_the_root_by_both_names_and_a_trace(etcd: Etcd, prefix: bytes) -> None:
    """Both spellings of the root are one object."""
    keys = Keyspace(prefix)
    lister = Lister(Store(etcd), keys)
    await put(etcd, keys, stored("a0", ""))
    await put(etcd, keys, stored("t1", kind="trace"))
    assert (await lister.get_task_action(ActionId("p", "d", "r1", "r1"))).action_id == ROOT
    trace = await lister.get_task_action(ActionId("p", "d", "r1", "t1"))
    assert trace.spec.kind == "trace"


async def test_what_is_not_there_is_not_found(etcd: Etcd, prefix: bytes) -> None:
    """An object of that name that is another action's is named."""
    keys = Keyspace(prefix)
    lister = Lister(Store(etcd), keys)
    with pytest.raises(NotFound, match="no action a0 of run p/d/r1"):
        await lister.get_task_action(ROOT)
    await put(etcd, keys, stored("a0", "", of=ActionId("q", "d", "r1", "")))
    with pytest.raises(NotFound, match="r1-a0 is action a0 of run q/d/r1"):
        await lister.get_task_action(ROOT)


async def test_a_bad_value_hides_only_itself(etcd: Etcd, prefix: bytes) -> None:
    """It is logged with its key; asked for by name it is an error."""
    keys = Keyspace(prefix)
    lister = Lister(Store(etcd), keys)
    await put(etcd, keys, stored("a0", ""))
    bad = ActionId("p", "d", "r1", "c1")
    await etcd.put(keys.task_action(bad), b"no object")
    with structlog.testing.capture_logs() as logs:
        assert names((await lister.list_run_actions(ROOT.run_id)).actions) == ["a0"]
    assert [log["event"] for log in logs] == ["value_undecodable"]
    with pytest.raises(DecodeError):
        await lister.get_task_action(bad)
