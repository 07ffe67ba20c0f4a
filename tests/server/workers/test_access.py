"""The part of etcd that the service offers to workers, by the connection that a worker has."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_actions import ActionsClient, Phase
from etcd_actions.errors import (
    EtcdError,
    InvalidRequest,
    LeaseNotFound,
    NotForWorkers,
    OutcomeUnknown,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from etcd_actions.etcd import ConnectionSettings, EtcdClient, open_connection
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    DeleteResult,
    Event,
    Get,
    KeyRange,
    Put,
    RangeResult,
    Status,
    Txn,
    WatchCreate,
    WatchStream,
)
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.etcd.group_commit import open_group_commit
from etcd_actions.http2 import CallFailed, Channel, Code, Exchange, Target, open_channel
from etcd_actions.http2.grpc_messages import framed
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.workers import access, etcd_methods, wire
from etcd_actions.server.workers.etcd_methods import WorkerEtcd
from etcd_actions.server.workers.rights import WorkerRights
from etcd_actions.storage.claims import LONGEST_TTL
from etcd_actions.storage.store import Store
from etcd_actions.testing import EtcdServer
from tests.executor.fakes import Bench
from tests.executor.tasks import ROOT, until
from tests.executor.workers import fake_worker
from tests.server.workers.conftest import Connect, Site
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually

TOKEN = (("authorization", "Bearer worker-token"),)


async def test_a_worker_runs_an_action(
    site: Site, client: ActionsClient, prefix: bytes, tmp_path: Path
) -> None:
    async with (
        site.connect(site.server) as etcd,
        fake_worker(etcd, prefix, tmp_path / "w") as worker,
    ):
        await Bench(client, tmp_path).enqueue(ROOT)
        await eventually(lambda: worker.attempts.begun == ["r1-a0"])
        worker.attempts.finish("r1-a0")
        await until(client, ROOT, Phase.SUCCEEDED)
    calls = site.server.statistics().calls
    assert calls["KV/Txn", "ok"] >= 4
    assert {method for method, _ in calls} >= {"KV/Range", "Lease/LeaseGrant", "Watch/Watch"}


async def test_the_methods_answer_as_etcd_does(site: Site) -> None:
    key = site.keys.prefix + b"flyte/k"
    one = KeyRange.of_key(key)
    async with site.connect(site.server) as etcd:
        assert (await etcd.status()).version == (await site.etcd.status()).version
        made = await etcd.txn(Txn([Compare.incarnation(key, 0)], [Put(key, b"v")], [Get(one)]))
        assert made.succeeded
        again = Txn(
            [Compare.incarnation(key, 0)], [Put(key, b"w")], [Get(one), Txn((), [Get(one)])]
        )
        assert await etcd.txn(again) == await site.etcd.txn(again)
        assert await etcd.range(one) == await site.etcd.range(one)
        for options in ({"keys_only": True}, {"count_only": True}, {"revision": made.revision}):
            assert await etcd.range(one, **options) == await site.etcd.range(one, **options)
        with pytest.raises(EtcdError, match="future revision"):
            await etcd.range(one, revision=made.revision + 1_000_000)

        claim = site.keys.claims + b"flyte/k"
        lease = await etcd.lease_grant(60)
        put = Txn([Compare.incarnation(claim, 0)], [Put(claim, b"", lease.id)])
        await etcd.txn(put)
        assert (await etcd.lease_keep_alive(lease.id)).ttl == 60
        deleted = await etcd.txn(Txn([_has(claim, lease.id)], [Delete(KeyRange.of_key(claim))]))
        assert deleted.responses == [DeleteResult(1, deleted.revision)]
        await etcd.lease_revoke(lease.id)
        with pytest.raises(LeaseNotFound):
            await etcd.lease_keep_alive(lease.id)
        with pytest.raises(LeaseNotFound):
            await etcd.txn(put)


async def test_a_stream_has_the_events_of_its_watchers(site: Site) -> None:
    key = site.keys.prefix + b"flyte/k"
    keys = KeyRange.of_prefix(site.keys.prefix)
    first = (await site.etcd.put(key, b"1")).revision
    async with site.connect(site.server) as etcd, etcd.watch() as stream:
        stream.create(WatchCreate(1, keys, first, prev_kv=True))
        await site.etcd.put(key, b"2")
        await site.etcd.delete(KeyRange.of_key(key))
        seen: list[Event] = []
        with trio.fail_after(20):
            while len(seen) < 3:
                for response in await stream.receive():
                    seen += response.events
            assert [(each.value, each.is_delete) for each in seen] == [
                (b"1", False),
                (b"2", False),
                (b"", True),
            ]
            assert seen[1].prev_kv is not None
            assert seen[1].prev_kv.value == b"1"
            stream.request_progress()
            responses = await stream.receive()
            assert responses[-1].revision >= seen[-1].mod_revision
            stream.cancel(1)
            while not any(each.canceled for each in await stream.receive()):
                pass


async def test_leases_of_another_name_are_out_of_reach(site: Site) -> None:
    async with (
        site.connect(site.server) as etcd,
        site.connect(site.server, token="other-worker-token") as other,
    ):
        lease = await etcd.lease_grant(60)
        claim = site.keys.claims + b"flyte/k"
        absent, put = Compare.incarnation(claim, 0), Put(claim, b"", lease.id)
        for work in (
            lambda: other.lease_revoke(lease.id),
            lambda: other.lease_keep_alive(lease.id),
            lambda: other.txn(Txn([absent], [put])),
        ):
            with pytest.raises(NotForWorkers, match="permission denied"):
                await work()
        assert (await etcd.lease_keep_alive(lease.id)).ttl == 60
        assert (await etcd.txn(Txn([absent], [put]))).succeeded


async def test_a_claim_of_another_name_stays(site: Site) -> None:
    claim = site.keys.claims + b"flyte/k"
    absent, delete = Compare.incarnation(claim, 0), Delete(KeyRange.of_key(claim))
    async with (
        site.connect(site.server) as etcd,
        site.connect(site.server, token="other-worker-token") as other,
    ):
        lease, of_other = await etcd.lease_grant(60), await other.lease_grant(60)
        assert (await etcd.txn(Txn([absent], [Put(claim, b"1", lease.id)]))).succeeded
        take = Put(claim, b"2", of_other.id)
        (kv,) = (await other.range(KeyRange.of_key(claim))).kvs
        unchanged = Compare.unchanged(claim, kv.mod_revision)
        for txn in (
            Txn([unchanged], [delete]),
            Txn([unchanged, _has(claim, lease.id)], [delete]),
            Txn((), [delete]),
            Txn([unchanged], [take]),
            Txn((), [take]),
        ):
            with pytest.raises(NotForWorkers, match=r"the key .* of a worker"):
                await other.txn(txn)
        # What passes the check does nothing, since the claim is there.
        for txn in (Txn([absent], [take]), Txn([_has(claim, of_other.id)], [delete])):
            assert not (await other.txn(txn)).succeeded
        assert (await etcd.range(KeyRange.of_key(claim))).kvs == [kv]


async def test_a_claim_does_not_outlive_its_worker_for_long(site: Site) -> None:
    claim, entry = site.keys.claims + b"flyte/k", site.keys.catalog + b"entries/k"
    absent = Compare.incarnation(claim, 0)
    async with site.connect(site.server) as etcd:
        lasting = await etcd.lease_grant(LONGEST_TTL + 1)
        with pytest.raises(NotForWorkers, match="a lease of an hour at most"):
            await etcd.txn(Txn([absent], [Put(claim, b"", lasting.id)]))
        await etcd.txn(Txn((), [Put(entry, b"", lasting.id)]))
        short = await etcd.lease_grant(LONGEST_TTL)
        assert (await etcd.txn(Txn([absent], [Put(claim, b"", short.id)]))).succeeded


async def test_claims_made_together_go_in_one_transaction(site: Site) -> None:
    """Group commit adds a put that is never done: it is none that a worker may not do."""
    async with site.connect(site.server) as etcd, open_group_commit(etcd) as group_commit:
        lease = await etcd.lease_grant(60)

        async def claim(number: int) -> None:
            key = site.keys.claims + b"flyte/r%d-a0" % number
            put = Put(key, b"", lease.id)
            result = await group_commit.txn(Txn([Compare.incarnation(key, 0)], [put]))
            assert result.succeeded

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(claim, number)
        statistics = group_commit.statistics()
        assert statistics.halved == 0
        assert statistics.largest > 10


async def test_a_transaction_whose_ranges_have_too_many_keys_is_not_cut(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A marker that is not seen would let an action begin below an aborted one."""
    monkeypatch.setattr(wire, "MOST_IN_RANGES", 8)
    markers = KeyRange.of_prefix(site.keys.aborts + b"flyte/r1-")
    for number in range(5):
        await site.etcd.put(markers.start + b"%d" % number, b"")
    async with site.connect(site.server) as etcd:
        with pytest.raises(Unavailable, match="at most 8 keys"):
            await etcd.txn(Txn((), [Get(markers), Get(markers)]))
        (found,) = (await etcd.txn(Txn((), [Get(markers)]))).responses
        assert isinstance(found, RangeResult)
        assert len(found.kvs) == 5


async def test_other_keys_and_methods_are_refused(site: Site) -> None:
    elsewhere = KeyRange.of_key(site.keys.signing + b"key")
    everything = KeyRange(b"\0", b"\0")
    async with site.connect(site.server) as etcd:
        for keys in (elsewhere, everything, KeyRange.of_prefix(site.keys.own)):
            with pytest.raises(PermissionDenied, match="a worker may not read"):
                await etcd.range(keys)
            async with etcd.watch() as stream:
                stream.create(WatchCreate(1, keys, 0))
                with pytest.raises(PermissionDenied, match="a worker may not read"):
                    await _to_its_end(stream)
        for call in (
            lambda: etcd.put(site.keys.prefix + b"flyte/k", b""),
            lambda: etcd.delete(KeyRange.of_prefix(site.keys.prefix)),
            lambda: etcd.compact(1),
            etcd.members,
            etcd.alarms,
            lambda: etcd.user_roles("root"),
        ):
            with pytest.raises(PermissionDenied, match="workers have no"):
                await call()


@pytest.mark.parametrize(
    ("token", "kind", "text"),
    [
        ("client-token", Unauthenticated, r"add name=NAME role=worker to its line.*token-client"),
        ("wrong", Unauthenticated, "the token is not accepted.*the token in .*token-wrong"),
    ],
)
async def test_another_token_is_refused(
    site: Site, token: str, kind: type[EtcdError], text: str
) -> None:
    async with site.connect(site.server, token=token) as etcd:
        with pytest.raises(kind, match=text):
            await etcd.range(KeyRange.of_prefix(site.keys.prefix))
        async with etcd.watch() as stream:
            with pytest.raises(kind):
                await stream.receive()


async def test_a_new_token_in_the_file_is_used(site: Site, tmp_path: Path) -> None:
    one = KeyRange.of_key(site.keys.prefix)
    async with site.connect(site.server, token="wrong") as etcd:
        with pytest.raises(Unauthenticated):
            await etcd.range(one)
        (tmp_path / "token-wrong").write_text("worker-token\n")
        assert (await etcd.range(one)).kvs == []


async def test_without_the_flag_all_is_refused(
    client: ActionsClient, settings: ServerSettings, connect: Connect
) -> None:
    async with open_actions_server(client, settings) as server, connect(server) as etcd:
        with pytest.raises(InvalidRequest, match="--worker-access"):
            await etcd.range(KeyRange.of_prefix(client.keys.prefix))


async def test_a_token_of_workers_calls_no_other_method(site: Site) -> None:
    async with open_channel(_target(site.server)) as channel:
        for method in ("Abort", "WatchForUpdates"):
            with pytest.raises(CallFailed, match=r"PERMISSION_DENIED: .*role=worker"):
                await channel.unary(
                    f"/flyteidl2.actions.ActionsService/{method}", b"", within=5, metadata=TOKEN
                )


@pytest.mark.parametrize(
    "method",
    first_everyday(
        ["KV/Range", "KV/Txn", "Lease/LeaseGrant", "Lease/LeaseRevoke", "Watch/Watch"], 2
    ),
)
async def test_a_bad_body_is_refused_and_ends_nothing(site: Site, method: str) -> None:
    async with open_channel(_target(site.server)) as channel:
        path = f"/etcdserverpb.{method}"
        for body in (b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f"):
            assert await _refused(channel, path, framed(body)) is Code.INVALID_ARGUMENT
        for raw in (b"\1\0\0\0\1x", b"\0\xff\xff\xff\xff" + b"x" * 100):
            assert await _refused(channel, path, raw) is Code.INVALID_ARGUMENT
    async with site.connect(site.server) as etcd:
        await etcd.range(KeyRange.of_key(site.keys.prefix))
    assert site.server.connections().open_connections <= 2


async def test_a_page_that_is_too_large_is_cut(
    client: ActionsClient,
    shared_etcd: EtcdServer,
    behind: EtcdClient,
    settings: ServerSettings,
    connect: Connect,
) -> None:
    prefix = client.keys.prefix + b"flyte/k"
    for number in range(30):
        await behind.put(prefix + b"%02d" % number, bytes(20_000))
    small = ConnectionSettings(
        endpoints=parse_endpoints(shared_etcd.endpoint), largest_answer=100_000
    )
    async with (
        open_connection(small) as narrow,
        open_actions_server(
            client, settings, workers=WorkerEtcd(narrow, WorkerRights(client.keys, None))
        ) as server,
        connect(server) as etcd,
    ):
        page = await etcd.range(KeyRange.of_prefix(prefix), limit=30)
        assert page.more
        assert 1 <= len(page.kvs) < 10
        kvs, _ = await Store(etcd).read(KeyRange.of_prefix(prefix))
        assert len(kvs) == 30


async def test_many_calls_of_one_name_wait_for_each_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_calls = most = 0
    original = WorkerEtcd.unary

    async def counted(self: WorkerEtcd, *arguments: Any) -> bytes:
        nonlocal open_calls, most
        open_calls += 1
        most = max(most, open_calls)
        try:
            return await original(self, *arguments)
        finally:
            open_calls -= 1

    monkeypatch.setattr(WorkerEtcd, "unary", counted)
    one = KeyRange.of_key(site.keys.prefix)
    async with site.connect(site.server) as etcd, trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(etcd.range, one)
    assert most == etcd_methods.MOST_CALLS
    assert site.server.statistics().calls["KV/Range", "ok"] == 200


async def test_the_connection_of_a_name_is_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call without an answer ends it: the streams of other names continue."""
    used: list[EtcdClient] = []
    original = EtcdClient.status

    async def noted(self: EtcdClient) -> Status:
        used.append(self)
        return await original(self)

    async with (
        site.connect(site.server) as etcd,
        site.connect(site.server, token="other-worker-token") as other,
        other.watch() as stream,
    ):
        stream.create(WatchCreate(1, KeyRange.of_prefix(site.keys.prefix), 0))
        assert (await stream.receive())[0].created
        monkeypatch.setattr(EtcdClient, "status", noted)
        await etcd.status()
        # A call may be made again.
        _, behind = dict.fromkeys(used)
        assert behind._current is not None
        behind._retire(behind._current)
        await site.etcd.put(site.keys.prefix + b"flyte/k", b"")
        with trio.fail_after(10):
            assert (await stream.receive())[0].events
        await etcd.status()


async def test_large_reads_wait_for_each_other_and_delay_no_renewal(
    site: Site, limited: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service holds the answers of few at a time, whatever a worker asks for."""
    go = trio.Event()
    began = 0
    original = EtcdClient.range

    async def slow(self: EtcdClient, keys: KeyRange, **options: Any) -> RangeResult:
        nonlocal began
        if self.settings is limited.settings:
            began += 1
            await go.wait()
        return await original(self, keys, **options)

    monkeypatch.setattr(EtcdClient, "range", slow)
    everything = KeyRange.of_prefix(site.keys.prefix)
    refused: list[Unavailable] = []

    async def read(etcd: EtcdClient) -> None:
        try:
            await etcd.range(everything)
        except Unavailable as error:
            refused.append(error)

    async with site.connect(site.server, request_timeout=60) as etcd:
        lease = await etcd.lease_grant(60)
        async with trio.open_nursery() as nursery:
            for _ in range(etcd_methods.MOST_LARGE_READS + etcd_methods.MOST_CALLS + 1):
                nursery.start_soon(read, etcd)
            await eventually(lambda: bool(refused))
            assert (await etcd.lease_keep_alive(lease.id)).ttl == 60
            assert began == etcd_methods.MOST_LARGE_READS
            go.set()
    assert began == etcd_methods.MOST_LARGE_READS + etcd_methods.MOST_CALLS
    assert "too many requests" in str(refused[0])


async def test_calls_above_the_rate_are_refused_before_they_are_done(
    client: ActionsClient, limited: EtcdClient, settings: ServerSettings, connect: Connect
) -> None:
    workers = WorkerEtcd(limited, WorkerRights(client.keys, None))
    async with (
        open_actions_server(client, replace(settings, rate=1.0), workers=workers) as server,
        connect(server) as etcd,
    ):
        key = client.keys.prefix + b"flyte/k"
        txn = Txn((), [Put(key, b"")])
        await etcd.txn(txn)
        await etcd.txn(txn)
        with pytest.raises(Unavailable, match="too many requests") as raised:
            await etcd.txn(txn)
        assert not isinstance(raised.value, OutcomeUnknown)


async def test_the_oldest_stream_makes_space(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MOST_STREAMS", 2)
    watched = WatchCreate(1, KeyRange.of_prefix(site.keys.prefix), 0)
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(3):
            etcd = await stack.enter_async_context(site.connect(site.server))
            stream = await stack.enter_async_context(etcd.watch())
            stream.create(watched)
            assert (await stream.receive())[0].created
            streams.append(stream)
        with pytest.raises(Unavailable, match="open another one"):
            await _to_its_end(streams[0])
        for stream in streams[1:]:
            stream.request_progress()
            assert await stream.receive()


async def test_a_stream_that_is_never_read_ends(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_methods, "WITHIN", 0.5)
    watched = WatchCreate(1, KeyRange.of_prefix(site.keys.prefix), 0)
    key = site.keys.prefix + b"flyte/k"
    async with site.connect(site.server) as etcd, etcd.watch() as stream:
        stream.create(watched)
        assert (await stream.receive())[0].created
        with trio.fail_after(60):
            while site.server.statistics().open_streams:
                # The client's own window takes 16 MiB.
                await site.etcd.put(key, bytes(1_000_000))
    assert site.server.statistics().calls["Watch/Watch", "unavailable"] == 1


async def test_watchers_of_a_stream_are_limited(site: Site) -> None:
    async with site.connect(site.server) as etcd, etcd.watch() as stream:
        for number in range(1, etcd_methods.MOST_WATCHERS + 2):
            stream.create(WatchCreate(number, KeyRange.of_prefix(site.keys.prefix), 0))
        with pytest.raises(Unavailable, match="at most 16 watchers"):
            await _to_its_end(stream)


def _has(key: bytes, lease: int) -> Compare:
    return Compare(key, CompareTarget.LEASE, CompareResult.EQUAL, lease)


async def _to_its_end(stream: WatchStream | Exchange) -> None:
    with trio.fail_after(10):
        while True:
            await stream.receive()


def _target(server: ActionsServer) -> Target:
    (endpoint,) = parse_endpoints(str(server.address))
    return Target(host=endpoint.host, port=endpoint.port)


async def _refused(channel: Channel, path: str, raw: bytes) -> Code:
    exchange = await channel.open_stream(path, metadata=TOKEN)
    try:
        exchange._live.connection.sending.send(exchange._stream, raw, end=False)
        exchange._live.flush()
        with pytest.raises(CallFailed) as raised:
            await _to_its_end(exchange)
        return raised.value.code
    finally:
        exchange.close()
