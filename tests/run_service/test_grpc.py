"""Flyte's run service over gRPC: a real server that refuses, hangs and lies as told."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import msgspec
import pytest
import trio
import trio.testing

from etcd_actions.errors import RunServiceRejected, RunServiceUnavailable
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.model import ActionId, ActionUpdate, Phase
from etcd_actions.run_service.grpc import GrpcRunService, open_run_service
from tests.support.etcd_server import free_port
from tests.support.run_service_server import Fault, RunServiceServer
from tests.support.waiting import eventually

UPDATE = ActionUpdate(
    key=b"/p/flyte/r1-c1",
    namespace="flyte",
    name="r1-c1",
    action_id=ActionId("p", "d", "r1", "c1"),
    parent="a0",
    phase=Phase.RUNNING,
    attempts=2,
    cache_status=3,
    output_uri="",
    uid="u",
    create_revision=1,
    revision=2,
    recorded=False,
    creation_timestamp="2026-11-23T16:00:00Z",
)


def at(phase: Phase, name: str = "c1") -> ActionUpdate:
    return msgspec.structs.replace(
        UPDATE, phase=phase, key=name.encode(), action_id=ActionId("p", "d", "r1", name)
    )


@pytest.fixture(params=[True, False], ids=["stream", "unary"])
def server(request: pytest.FixtureRequest) -> Iterator[RunServiceServer]:
    with RunServiceServer(has_stream=request.param) as server:
        yield server


@asynccontextmanager
async def connected(
    server: RunServiceServer, *, deadline: float = 30.0, concurrency: int = 128
) -> AsyncIterator[GrpcRunService]:
    async with open_run_service(
        server.endpoint, deadline=deadline, concurrency=concurrency
    ) as service:
        yield service


async def test_what_is_told_arrives(server: RunServiceServer) -> None:
    """Over the stream where there is one, else by a call each."""
    async with connected(server) as service, trio.open_nursery() as nursery:
        await service.record_action(UPDATE, None)
        for number in range(50):
            nursery.start_soon(service.update_action_status, at(Phase.RUNNING, f"c{number}"))
    assert server.names("record") == ["c1"]
    assert sorted(server.names("status")) == sorted(f"c{number}" for number in range(50))
    (told,) = [each for each in server.told if each.name == "c7"]
    status = told.request.status
    assert (status.phase, status.attempts, status.cache_status) == (4, 2, 3)
    assert status.start_time.ToJsonString() == "2026-11-23T16:00:00Z"
    assert server.streams <= 1


@pytest.mark.parametrize("code", [1, 2, 4, 5, 7, 8, 9, 10, 13, 14, 15, 16, 99])
async def test_codes_that_pass(server: RunServiceServer, code: int) -> None:
    """In doubt it is told again."""
    server.script("status", Fault(code=code))
    server.script("record", Fault(code=code))
    async with connected(server) as service:
        with pytest.raises(RunServiceUnavailable):
            await service.record_action(UPDATE, None)
        with pytest.raises(RunServiceUnavailable):
            await service.update_action_status(UPDATE)
        await service.record_action(UPDATE, None)
        await service.update_action_status(UPDATE)
    assert len(server.told) == 2


@pytest.mark.parametrize("code", [3, 11, 12])
async def test_codes_that_stay(server: RunServiceServer, code: int) -> None:
    """They are told by their number."""
    server.script("status", Fault(code=code))
    server.script("record", Fault(code=code))
    async with connected(server) as service:
        for call in (service.record_action(UPDATE, None), service.update_action_status(UPDATE)):
            with pytest.raises(RunServiceRejected) as raised:
                await call
            assert raised.value.code == code
    assert server.told == []


async def test_already_exists_is_accepted(server: RunServiceServer) -> None:
    """It was told before, and the answer was lost."""
    server.script("record", Fault(code=6))
    async with connected(server) as service:
        await service.record_action(UPDATE, None)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_a_call_that_fails(server: RunServiceServer, code: grpc.StatusCode) -> None:
    """No error of gRPC's comes out; the next call goes through, on another stream."""
    server.script("status", Fault(rpc=code))
    server.script("record", Fault(rpc=code))
    async with connected(server) as service:
        with pytest.raises(RunServiceUnavailable, match=code.name):
            await service.record_action(UPDATE, None)
        with pytest.raises(RunServiceUnavailable, match=code.name):
            await service.update_action_status(UPDATE)
        await service.record_action(UPDATE, None)
        await service.update_action_status(UPDATE)
    assert [each.what for each in server.told] == ["record", "status"]


async def test_nobody_listens() -> None:
    """It need not be there when the connection is opened."""
    async with open_run_service(Endpoint("127.0.0.1", free_port()), deadline=0.3) as service:
        with pytest.raises(RunServiceUnavailable):
            await service.record_action(UPDATE, None)
        with pytest.raises(RunServiceUnavailable):
            await service.update_action_status(UPDATE)


async def test_a_late_state_does_not_revive_what_ended(server: RunServiceServer) -> None:
    """RUNNING lands after FAILED was accepted; FAILED is told again behind it, before the mark.

    Flyte's database lets FAILED go back, so the run would look alive for ever.
    """
    late = threading.Event()
    server.script("status", Fault(hold=late, applied=True))
    async with connected(server, deadline=0.3) as service:
        with pytest.raises(RunServiceUnavailable):
            await service.update_action_status(at(Phase.RUNNING))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.update_action_status, at(Phase.FAILED))
            await eventually(lambda: server.phases.get("c1") == Phase.FAILED)
            late.set()
            await eventually(lambda: Phase.RUNNING in server.told_phases("c1"))
    assert server.told_phases("c1")[-1] == Phase.FAILED
    assert server.phases["c1"] == Phase.FAILED
    before = len(server.told)
    async with connected(server) as service:
        await service.update_action_status(at(Phase.FAILED))
    assert len(server.told) == before + 1


async def test_one_that_hangs_holds_up_nobody_for_ever(server: RunServiceServer) -> None:
    """Answers on a stream come in order: those behind it fail with it, and are told again."""
    never = threading.Event()
    server.script("status", Fault(hold=never), name="c1")
    async with connected(server, deadline=0.5) as service:
        async with trio.open_nursery() as nursery:

            async def hang() -> None:
                with pytest.raises(RunServiceUnavailable):
                    await service.update_action_status(at(Phase.RUNNING))

            nursery.start_soon(hang)
        await service.update_action_status(at(Phase.RUNNING, "c2"))
        never.set()
    assert "c2" in server.names("status")


async def test_no_more_calls_than_allowed(server: RunServiceServer) -> None:
    """The others wait for their turn."""
    held = threading.Event()
    server.script("record", *[Fault(hold=held)] * 6)
    async with connected(server, concurrency=3) as service, trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(service.record_action, at(Phase.RUNNING, f"c{number}"), None)
        await eventually(lambda: server.calls["record"] == 3)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert server.calls["record"] == 3
        held.set()
    assert server.calls["record"] == 6


async def test_a_cancelled_call_leaves_nothing(server: RunServiceServer) -> None:
    """The next one goes through."""
    held = threading.Event()
    server.script("status", Fault(hold=held))
    server.script("record", Fault(hold=held))
    async with connected(server) as service:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.update_action_status, UPDATE)
            nursery.start_soon(service.record_action, UPDATE, None)
            await eventually(lambda: sum(server.calls.values()) == 2)
            nursery.cancel_scope.cancel()
        held.set()
        await service.update_action_status(at(Phase.RUNNING, "c2"))
        await service.record_action(at(Phase.RUNNING, "c2"), None)
    assert server.names("record")[-1] == "c2"
