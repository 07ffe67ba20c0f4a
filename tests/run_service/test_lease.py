"""Calls under a leader's lease: their deadline is within it, also on the stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio
from structlog.testing import capture_logs

from etcd_actions import Phase
from etcd_actions._internal.call_time import boot_time, call_until
from etcd_actions.errors import RunServiceUnavailable
from etcd_actions.run_service import grpc_run_service as grpc_module
from etcd_actions.run_service.grpc_run_service import GrpcRunService
from etcd_actions.run_service.status_stream import _Waiter
from tests.run_service.test_grpc import UPDATE, at, connected
from tests.support.run_service_server import Fault, RunServiceServer
from tests.support.waiting import eventually


@pytest.fixture(params=["stream", "calls"])
def server(request: pytest.FixtureRequest) -> Iterator[RunServiceServer]:
    with RunServiceServer(has_stream=request.param == "stream") as running:
        yield running


@pytest.fixture
def streaming() -> Iterator[RunServiceServer]:
    with RunServiceServer() as running:
        yield running


async def tell_within(service: GrpcRunService, seconds: float, phase: Phase) -> None:
    """Tell a state under a lease that is sure for so long."""
    until = trio.current_time() + seconds
    with call_until(lambda: until):
        await service.update_action_status(at(phase))


async def test_what_the_server_holds_at_the_end_of_the_lease_is_not_applied(
    server: RunServiceServer,
) -> None:
    """It is given the deadline; a stream has no deadline by itself."""
    held, over = threading.Event(), threading.Event()
    async with connected(server, deadline=60) as service:
        await tell_within(service, 60, Phase.QUEUED)
        server.script("status", Fault(hold=held, polite=True, over=over))
        with trio.move_on_after(10):
            try:
                await tell_within(service, 0.3, Phase.RUNNING)
            except RunServiceUnavailable as error:
                assert "DEADLINE" in str(error)  # noqa: PT017 - or it was cancelled
        # The server's own deadline, which began when it got the call, if it did.
        with trio.move_on_after(1):
            await eventually(over.is_set)
        held.set()
        await tell_within(service, 60, Phase.FAILED)
    assert server.told_phases("c1") == [Phase.QUEUED, Phase.FAILED]


async def test_nothing_is_sent_where_no_time_is_left(
    server: RunServiceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that is known: no ending has to be told twice for it."""
    async with connected(server) as service:
        await service.update_action_status(UPDATE)
        calls = server.calls["status"]
        with monkeypatch.context() as patch:
            patch.setattr(grpc_module, "time_left", lambda: 0.0)
            with pytest.raises(RunServiceUnavailable, match="no time is left"):
                await service.update_action_status(UPDATE)
            with pytest.raises(RunServiceUnavailable, match="no time is left"):
                await service.record_action(UPDATE, None)
        assert service.unsettled_until(UPDATE.key) < trio.current_time()
        await service.update_action_status(UPDATE)
    assert server.calls["status"] == calls + 1
    assert server.calls["record"] == 0


async def test_a_late_message_is_not_sent(streaming: RunServiceServer) -> None:
    """It waited in a stream that was stalled, or the process was stopped."""
    async with connected(streaming) as service:
        await service.update_action_status(UPDATE)
        assert service._streams is not None
        stream = service._streams.current()
        assert stream is not None
        stream._waiting[99] = _Waiter(b"late", trio.current_time(), boot_time() - 0.001)
        stream._queue.append(99)
        await service.update_action_status(at(Phase.RUNNING, "c2"))
    assert streaming.names("status") == ["c1", "c2"]


async def test_a_renewed_lease_gets_another_stream_without_a_word(
    streaming: RunServiceServer,
) -> None:
    """The one before ends with its answers; none is lost, and nothing breaks."""
    ends = trio.current_time() + 1

    def lease() -> float:
        return ends

    async with connected(streaming, deadline=1) as service:
        with capture_logs() as logs:
            for number in range(40):
                with call_until(lease):
                    await service.update_action_status(at(Phase.RUNNING, f"c{number}"))
                ends += 0.2
            await eventually(lambda: len(streaming._open_streams) == 1)
    assert [log for log in logs if log["log_level"] != "debug"] == []
    assert streaming.streams > 1
    assert streaming.names("status") == [f"c{number}" for number in range(40)]


async def test_a_stream_that_nothing_is_on_ends_with_the_lease_without_a_word(
    streaming: RunServiceServer,
) -> None:
    """Nobody had anything to tell for so long. The next state has a stream at once."""
    async with connected(streaming) as service:
        streams = service._streams
        assert streams is not None
        with capture_logs() as logs:
            for _ in range(2):
                await tell_within(service, 0.3, Phase.RUNNING)
                await eventually(lambda: streams._stream is None)
    assert [log for log in logs if log["log_level"] != "debug"] == []
    assert streaming.streams == 2
