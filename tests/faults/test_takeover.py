"""A leader that was stopped, or cut off, revives nothing of what its successor ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_actions import Phase, open_etcd
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from etcd_actions.run_service.grpc_run_service import open_run_service
from etcd_actions.testing import EtcdServer
from tests.support.leading import SETTINGS
from tests.support.load import Action, make_run
from tests.support.proxy import open_proxy
from tests.support.recording import until_stored
from tests.support.run_service_server import RunServiceServer
from tests.support.scene import all_marked, processing
from tests.support.waiting import eventually

pytestmark = [pytest.mark.faults, pytest.mark.slow]

_ROOT = Path(__file__).parents[2]
ACTIONS = 20
TTL = 2


class Leader:
    """A process of its own that leads, or stands by; see ``tests.support.leading``."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.events: list[str] = []

    async def read(self) -> None:
        """Keep the names of what it logs."""
        assert self.process.stdout is not None
        rest = b""
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            self.events += [line.decode() for line in lines]


@asynccontextmanager
async def leading(
    etcd: EtcdServer, prefix: bytes, server: RunServiceServer, way: str
) -> AsyncIterator[Leader]:
    command = [sys.executable, "-m", "tests.support.leading", etcd.endpoint, prefix.decode()]
    process = await trio.lowlevel.open_process(
        [*command, str(server.endpoint), way, str(TTL)], cwd=_ROOT, stdout=subprocess.PIPE
    )
    leader = Leader(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leader.read)
            yield leader
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def running(what: str, request: Any) -> bool:
    return what == "status" and request.status.phase == Phase.RUNNING


def failed(action: Action) -> bytes:
    """The last state of an action whose captured one did not succeed, or made to be that."""
    return action.ended.replace(b'"type":"Succeeded"', b'"type":"Failed"').replace(
        b'"reason":"Completed"', b'"reason":"PermanentFailure"'
    )


async def begin(etcd: Etcd, actions: list[Action]) -> None:
    for action in actions:
        await etcd.put(action.key, running_state(action))


def running_state(action: Action) -> bytes:
    return next(state for state in action.states if b'"reason":"Executing"' in state)


async def end(etcd: Etcd, actions: list[Action]) -> None:
    for action in actions:
        await etcd.put(action.key, failed(action))


@pytest.mark.parametrize("way", ["stream", "calls"])
async def test_a_leader_that_was_stopped_revives_nothing(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, way: str
) -> None:
    """Its RUNNING calls wait for their retry; another one tells FAILED and marks; it goes on."""
    actions = make_run(prefix, "rx1", ACTIONS)
    keys = KeyRange.of_prefix(prefix)
    with RunServiceServer(has_stream=way == "stream") as server, trio.fail_after(120):
        server.refuses = running
        async with leading(shared_etcd, prefix, server, way) as first:
            await eventually(lambda: "elected" in first.events)
            await begin(etcd, actions)
            await eventually(lambda: server.calls["status"] >= 3 * ACTIONS)
            async with leading(shared_etcd, prefix, server, way) as second:
                await eventually(lambda: bool(second.process.pid))
                first.process.send_signal(signal.SIGSTOP)
                await end(etcd, actions)
                await eventually(lambda: "elected" in second.events)
                await until_stored(etcd, keys, all_marked)
                assert set(server.phases.values()) == {Phase.FAILED}
                server.refuses = lambda _what, _request: False
                first.process.send_signal(signal.SIGCONT)
                await eventually(lambda: "deposed" in first.events)
                # Ended in order, it has nothing more under way.
                first.process.terminate()
                await first.process.wait()
    assert server.revived == []
    assert len(server.phases) == ACTIONS
    assert set(server.phases.values()) == {Phase.FAILED}


async def test_a_leader_that_was_cut_off_revives_nothing_for_good(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """Its lease was revoked, which it cannot learn: what it still tells lands before the mark."""
    ttl = 4
    actions = make_run(prefix, "rx1", ACTIONS)
    keys = KeyRange.of_prefix(prefix)
    settings = replace(SETTINGS, election_ttl=ttl)
    ended = threading.Event()
    with RunServiceServer() as server, trio.fail_after(120):
        # Of the first one nothing is accepted before the second has told the endings.
        server.refuses = lambda what, request: running(what, request) and not ended.is_set()
        async with (
            open_proxy(int(shared_etcd.endpoint.rpartition(":")[2])) as proxy,
            open_etcd(proxy.endpoint, request_timeout=1) as behind,
            open_run_service(server.endpoint) as tells,
            processing(behind, prefix, tells, settings=settings) as first,
        ):
            await eventually(lambda: first.statistics().elected)
            await begin(etcd, actions)
            await eventually(lambda: server.calls["status"] >= 3 * ACTIONS)
            async with (
                open_run_service(server.endpoint) as tells_too,
                processing(etcd, prefix, tells_too, settings=settings) as second,
            ):
                proxy.stall()
                [kv] = (await etcd.range(KeyRange.of_key(Keyspace(prefix).election(None)))).kvs
                await etcd.lease_revoke(kv.lease)
                await end(etcd, actions)
                await eventually(lambda: list(server.phases.values()).count(6) == ACTIONS)
                assert first.statistics().elected
                ended.set()
                await eventually(lambda: len(server.revived) == ACTIONS)
                assert second.statistics().deferred
                await until_stored(etcd, keys, all_marked)
                assert set(server.phases.values()) == {Phase.FAILED}
                proxy.unstall()
                await eventually(lambda: not first.statistics().elected)
    assert len(server.phases) == ACTIONS
    assert set(server.phases.values()) == {Phase.FAILED}
