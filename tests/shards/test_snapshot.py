"""The shards as commands and the doctor read them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from etcd_actions import open_actions_client
from etcd_actions.cli.commands.shards import list_shards, remove_shards
from etcd_actions.cli.options import CommonOptions
from etcd_actions.config import Config, Flags, resolve
from etcd_actions.config.settings import COMMON
from etcd_actions.errors import FailedPrecondition
from etcd_actions.etcd.api import Etcd, KeyRange, Lease
from etcd_actions.model import Keyspace
from etcd_actions.shards import ShardKeys, create_table, read_shards, shard_scopes
from etcd_actions.shards.shard_keys import encode_member, encode_ready
from etcd_actions.shards.shard_range import initial_ranges
from tests.doctor.illness import UNHURRIED, diagnose
from tests.support.etcd_server import EtcdServer

NAMESPACE = "flyte"


@pytest.fixture
def keyspace(prefix: bytes) -> Keyspace:
    return Keyspace(prefix, NAMESPACE)


@pytest.fixture
async def keys(etcd: Etcd, keyspace: Keyspace) -> ShardKeys:
    """Two shards, cut at ``flyte/ri``; their actions; nobody owns them."""
    keys = ShardKeys(keyspace, NAMESPACE)
    await create_table(etcd, keys, initial_ranges(keys.scope, 2, ()))
    for name in (b"ra-a0", b"rz-a0", b"rz-c1"):
        await etcd.put(keyspace.prefix + b"flyte/" + name, b"{}")
    return keys


def common(server: EtcdServer, prefix: bytes) -> CommonOptions:
    flags = {"endpoints": server.endpoint, "prefix": prefix.decode(), "namespace": NAMESPACE}
    values = resolve(COMMON, [Flags({each.name: flags.get(each.name) for each in COMMON})])
    return CommonOptions(Config(values, lambda _: ""))


async def join(etcd: Etcd, keys: ShardKeys, name: str) -> Lease:
    lease = await etcd.lease_grant(60)
    await etcd.put(keys.member(name), encode_member(datetime.now(UTC)), lease=lease.id)
    return lease


async def test_what_etcd_has_is_read_at_once(
    etcd: Etcd, keyspace: Keyspace, keys: ShardKeys
) -> None:
    lease = await join(etcd, keys, "h/1/x")
    await etcd.put(keys.owner(0), b"h/1/x", lease=lease.id)
    before = await read_shards(etcd, keyspace, NAMESPACE)
    shard = before.view.table.shards[1]
    await etcd.put(keys.ready_member(1, "h/1/x"), encode_ready(shard.revision), lease=lease.id)

    found = await read_shards(etcd, keyspace, NAMESPACE)
    first, second = found.shards
    assert (first.actions, first.state.owner, first.problem) == (1, "h/1/x", "")
    assert (second.actions, second.state.owner, second.problem) == (2, "", "no owner")
    assert second.state.ready == ("h/1/x",)
    assert second.state.target == "h/1/x"
    assert found.leader == ""
    async with open_actions_client(etcd, prefix=keyspace.prefix) as client:
        assert await client.has_leader()
        await etcd.delete(KeyRange.of_key(keys.owner(0)))
        assert not await client.has_leader()
    assert found.revision == before.revision + 1
    assert await shard_scopes(etcd, keyspace) == [NAMESPACE]
    assert await shard_scopes(etcd, keyspace, "other") == []


async def test_a_value_that_cannot_be_decoded_is_a_problem(
    etcd: Etcd, keyspace: Keyspace, keys: ShardKeys
) -> None:
    await etcd.put(keys.range(1), b"garbage")
    await etcd.put(keys.prefix + b"what/is/this", b"")
    found = await read_shards(etcd, keyspace, NAMESPACE)
    assert "range/0001 cannot be decoded" in found.view.table.problem
    assert len(found.view.undecodable) == 2


async def test_the_command_prints_shards_and_members_and_removes_them(
    etcd: Etcd,
    keyspace: Keyspace,
    keys: ShardKeys,
    shared_etcd: EtcdServer,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = common(shared_etcd, keyspace.prefix)
    lease = await join(etcd, keys, "h/1/x")
    await etcd.put(keys.owner(0), b"h/1/x", lease=lease.id)
    assert await list_shards(options, "json") == 0
    document = json.loads(capfd.readouterr().out)
    assert [(each["id"], each["owner"], each["actions"]) for each in document["shards"]] == [
        ("0000", "h/1/x", 1),
        ("0001", "", 2),
    ]
    assert [(each["name"], each["shards"]) for each in document["members"]] == [("h/1/x", 1)]
    assert document["problems"] == []

    assert await list_shards(options, "table") == 0
    out, err = capfd.readouterr()
    header, *rows = out.splitlines()
    assert header.split() == ["SHARD", "FROM", "TO", "OWNER", "ACTIONS", "BEHIND", "PROBLEM"]
    assert rows[0].split()[:2] == ["0000", "flyte/"]
    assert rows[1].endswith("no owner")
    assert "member h/1/x: 1 shards, since 2" in err

    with pytest.raises(FailedPrecondition, match="0000"):
        await remove_shards(options)
    await etcd.lease_revoke(lease.id)
    assert await remove_shards(options) == 0
    capfd.readouterr()
    assert await list_shards(options, "name") == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "there are no shards" in err


async def test_the_doctor_finds_shards_without_an_owner(
    etcd: Etcd, keys: ShardKeys, shared_etcd: EtcdServer, prefix: bytes
) -> None:
    lease = await join(etcd, keys, "h/1/x")
    for shard in (0, 1):
        await etcd.put(keys.owner(shard), b"h/1/x", lease=lease.id)
    diagnosis = await diagnose(shared_etcd.endpoint, prefix=prefix)
    assert diagnosis.one("shards").seen == "2, each with an owner; 1 members"

    await etcd.lease_revoke(lease.id)
    diagnosis = await diagnose(
        shared_etcd.endpoint, prefix=prefix, limits=replace(UNHURRIED, hand_over=0.0)
    )
    assert diagnosis.one("shards-unowned").seen == "2 of 2: 0000, 0001; 0 members"

    await etcd.put(keys.range(0), b"garbage")
    diagnosis = await diagnose(
        shared_etcd.endpoint, prefix=prefix, limits=replace(UNHURRIED, hand_over=0.0)
    )
    assert "cannot be decoded" in diagnosis.one("shards-unusable").seen


async def test_the_doctor_finds_a_leader_without_shards(
    etcd: Etcd, keyspace: Keyspace, shared_etcd: EtcdServer
) -> None:
    keys = ShardKeys(keyspace, NAMESPACE)
    lease = await join(etcd, keys, "h/1/x")
    await etcd.put(keys.single_election, b"h/2", lease=lease.id)
    diagnosis = await diagnose(shared_etcd.endpoint, prefix=keyspace.prefix)
    assert diagnosis.one("shards-mixed").seen == (
        "1 members with shards; the leader without shards is h/2"
    )
