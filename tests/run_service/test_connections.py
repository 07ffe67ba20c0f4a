"""The connection to the run service: restarts, silence, bounds, addresses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from h2.settings import SettingCodes
from structlog.testing import capture_logs

from etcd_actions import Phase
from etcd_actions.errors import RunServiceUnavailable
from etcd_actions.http2 import Code, open_channel
from etcd_actions.http2.grpc_messages import framed
from etcd_actions.run_service.grpc_run_service import GrpcRunService, open_run_service
from etcd_actions.run_service.requests import update_action_status
from etcd_actions.run_service.status_codes import CallFailed
from etcd_actions.run_service.status_stream import StatusStream
from tests.run_service.test_grpc import UPDATE, at, connected
from tests.support.etcd_server import free_port
from tests.support.http2_server import Served, serving
from tests.support.proxy import open_proxy
from tests.support.run_service_server import Fault, RunServiceServer
from tests.support.waiting import eventually, until_done

_ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[True, False], ids=["stream", "unary"])
def has_stream(request: pytest.FixtureRequest) -> bool:
    assert isinstance(request.param, bool)
    return request.param


@pytest.fixture
def server(has_stream: bool) -> Iterator[RunServiceServer]:
    with RunServiceServer(has_stream=has_stream) as server:
        yield server


async def test_a_rolling_restart_behind_a_balancer(
    server: RunServiceServer, has_stream: bool
) -> None:
    """What is under way is answered, what comes next goes to the next server; nothing is lost.

    grpcio's server resets what arrives before its client has read that it drains; such a call is
    made again, as the outbox does.
    """
    told: list[str] = []
    with RunServiceServer(has_stream=has_stream) as successor, capture_logs() as logs:
        async with (
            open_proxy(server.port) as balancer,
            open_run_service(balancer.endpoint, deadline=30) as service,
            trio.open_nursery() as nursery,
        ):
            stopping = trio.Event()

            async def tell(worker: int) -> None:
                number = 0
                while not stopping.is_set() or number % 10:
                    name = f"w{worker}-{number}"
                    try:
                        await service.update_action_status(at(Phase.RUNNING, name))
                    except RunServiceUnavailable as error:
                        assert "CANCELLED" in str(error)  # noqa: PT017
                        continue
                    told.append(name)
                    number += 1

            for worker in range(8):
                nursery.start_soon(tell, worker)
            await eventually(lambda: len(told) > 100)
            balancer._target = successor.port
            # Until all that it has accepted is answered; it says so with GOAWAY.
            await trio.to_thread.run_sync(server.drain, 30)
            before = len(told)
            await eventually(lambda: len(told) > before + 100)
            stopping.set()
        assert balancer.accepted == 2
    assert sorted(server.names("status") + successor.names("status")) == sorted(told)
    assert successor.names("status")
    assert all(log["code"] == "CANCELLED" for log in logs if log["log_level"] == "warning")


async def test_a_stream_that_nothing_is_on_leaves_a_server_that_drains() -> None:
    """It would hold the server up until that gives it up by force."""
    with RunServiceServer() as server, capture_logs() as logs:
        async with connected(server) as service:
            await service.update_action_status(UPDATE)
            with trio.fail_after(20):
                await trio.to_thread.run_sync(server.drain, 60)
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == []


@pytest.mark.parametrize("way", ["refused", "never reached"])
async def test_what_the_server_did_nothing_with_is_settled(way: str) -> None:
    """Its ending is told once: nothing can land behind it."""

    def refuse(served: Served) -> None:
        for call in served.open_calls:
            served.peer.answered.add(call)
            served.peer.h2.reset_stream(call, 7)

    async with serving(refuse) as server:
        port = free_port() if way == "never reached" else server.target.port
        async with open_run_service(f"127.0.0.1:{port}", streaming=False, deadline=2) as service:
            with pytest.raises(RunServiceUnavailable, match=r"connecting failed|REFUSED_STREAM"):
                await service.update_action_status(UPDATE)
            assert service.unsettled_until(UPDATE.key) == float("-inf")
        assert len(server.connections) == (way == "refused")


async def test_no_more_streams_than_the_server_allows(has_stream: bool) -> None:
    """The others wait for their turn, within their deadline."""
    options = (("grpc.max_concurrent_streams", 3),)
    held = threading.Event()
    with RunServiceServer(has_stream=has_stream, options=options) as server:
        async with connected(server) as service, trio.open_nursery() as nursery:
            await service.update_action_status(UPDATE)
            server.script("record", *[Fault(hold=held)] * 20)
            for number in range(20):
                nursery.start_soon(service.record_action, at(Phase.RUNNING, f"c{number}"), None)
            await eventually(lambda: server.calls["record"] == 3 - has_stream)
            held.set()
    assert len(server.names("record")) == 20


async def test_a_server_that_is_full_fails_calls_within_their_deadline() -> None:
    options = (("grpc.max_concurrent_streams", 1),)
    held = threading.Event()
    with RunServiceServer(has_stream=False, options=options) as server:
        server.script("status", Fault(hold=held), name="c1")
        async with open_run_service(server.endpoint, deadline=2, streaming=False) as service:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(is_late, service, "c1")
                await eventually(lambda: server.calls["status"] == 1)
                service._deadline = 0.2
                await is_late(service, "c2")
            # One may have been done; the other certainly was not.
            assert service.unsettled_until(b"c1") > float("-inf")
            assert service.unsettled_until(b"c2") == float("-inf")
            held.set()


async def is_late(service: GrpcRunService, name: str) -> None:
    with pytest.raises(RunServiceUnavailable, match="DEADLINE_EXCEEDED"):
        await service.update_action_status(at(Phase.RUNNING, name))


async def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with RunServiceServer(host="[::1]") as server:
        async with open_run_service(f"http://[::1]:{server.port}") as service:
            await service.record_action(UPDATE, None)
            await service.update_action_status(UPDATE)
    assert [told.what for told in server.told] == ["record", "status"]


@asynccontextmanager
async def server_process() -> AsyncIterator[tuple[trio.Process, int]]:
    command = [sys.executable, "-m", "tests.support.run_service_server"]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT
    )
    try:
        assert process.stdout is not None
        yield process, int(await process.stdout.receive_some(100))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@pytest.mark.slow
async def test_a_server_that_is_stopped_is_found(has_stream: bool) -> None:
    """Long before the deadline of the calls, by the ping that it does not answer."""
    async with server_process() as (process, port):
        with trio.fail_after(120), capture_logs():
            async with open_run_service(
                f"127.0.0.1:{port}", deadline=50, streaming=has_stream, keepalive_timeout=1
            ) as service:
                # On a busy machine the process may need several attempts.
                await until_done(
                    lambda: service.update_action_status(UPDATE), despite=RunServiceUnavailable
                )
                os.kill(process.pid, signal.SIGSTOP)
                with pytest.raises(RunServiceUnavailable, match="silent"):
                    await service.update_action_status(at(Phase.RUNNING, "c2"))
                assert service.unsettled_until(b"c2") > trio.current_time()
                os.kill(process.pid, signal.SIGCONT)
                await until_done(
                    lambda: service.update_action_status(at(Phase.RUNNING, "c3")),
                    despite=RunServiceUnavailable,
                )


async def test_what_the_server_holds_back_is_not_queued_behind_it() -> None:
    """Nothing is sent once its deadline has passed, however long the window stays shut."""

    def shut(served: Served) -> None:
        served.peer.gives_back = False

    def got() -> int:
        calls = server.last.peer.requests if server.connections else {}
        return len(calls[1].body) if calls else 0

    async def ask(name: str) -> None:
        with pytest.raises(CallFailed) as raised:
            await stream.call(update_action_status(at(Phase.RUNNING, name)), 60)
        unsent[name] = raised.value.unsent

    unsent: dict[str, bool] = {}
    async with (
        serving(shut, settings={SettingCodes.INITIAL_WINDOW_SIZE: 10}) as server,
        open_channel(server.target) as channel,
        trio.open_nursery() as nursery,
    ):
        stream = StatusStream(channel, nursery, on_end=lambda _: None)
        for name in ("c1", "c2", "c3"):
            nursery.start_soon(ask, name)
            await trio.testing.wait_all_tasks_blocked()
            await eventually(lambda: got() == 10)
        assert list(stream._queue) == [2, 3]
        # As if the process had been stopped for longer than the second one may wait.
        stream._waiting[2].until = 0.0
        sent = [len(framed(stream._waiting[nonce].message)) for nonce in (1, 3)]
        server.last.peer.h2.increment_flow_control_window(10_000, 1)
        await server.last.send()
        await eventually(lambda: got() == sum(sent))
        await eventually(lambda: unsent == {"c2": True})
        stream.close(Code.UNAVAILABLE, "enough")
    assert unsent == {"c1": False, "c2": True, "c3": False}
