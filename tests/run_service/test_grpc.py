"""Flyte's run service over gRPC: a real server that refuses, hangs and lies as told."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import msgspec
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from etcd_actions.errors import (
    ConfigError,
    RunServiceActionUnknown,
    RunServiceRejected,
    RunServiceUnavailable,
)
from etcd_actions.etcd import Tls
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.model import ActionId, ActionUpdate, Phase
from etcd_actions.run_service.grpc_run_service import GrpcRunService, open_run_service
from tests.support.cluster import Certificates
from tests.support.etcd_server import free_port
from tests.support.everyday import first_everyday
from tests.support.run_service_server import Fault, RunServiceServer
from tests.support.waiting import eventually, until_done

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


@pytest.fixture
def streaming() -> Iterator[RunServiceServer]:
    with RunServiceServer() as server:
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


@pytest.mark.parametrize("code", first_everyday([1, 2, 4, 5, 7, 8, 9, 10, 13, 14, 15, 16, 99], 3))
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


@pytest.mark.parametrize("fault", [Fault(code=5), Fault(rpc=grpc.StatusCode.NOT_FOUND)])
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_status_without_a_record(
    server: RunServiceServer, fault: Fault, streaming: bool
) -> None:
    """NOT_FOUND says that the record is missing: of a status, in-band or of its own call.

    The end of a stream is that of all that was on it, and says nothing of one action.
    """
    server.script("status", fault)
    server.script("record", fault)
    async with open_run_service(server.endpoint, streaming=streaming) as service:
        with pytest.raises(RunServiceUnavailable) as raised:
            await service.record_action(UPDATE, None)
        assert not isinstance(raised.value, RunServiceActionUnknown)
        with pytest.raises(RunServiceUnavailable) as raised:
            await service.update_action_status(UPDATE)
        by_stream = streaming and server.streams > 0
        unknown = fault.rpc is None or not by_stream
        assert isinstance(raised.value, RunServiceActionUnknown) is unknown


async def test_nobody_listens() -> None:
    """It need not be there when the connection is opened."""
    async with open_run_service(Endpoint("127.0.0.1", free_port()), deadline=0.3) as service:
        with pytest.raises(RunServiceUnavailable):
            await service.record_action(UPDATE, None)
        with pytest.raises(RunServiceUnavailable):
            await service.update_action_status(UPDATE)


async def tell_ending(service: GrpcRunService, update: ActionUpdate) -> None:
    """Tell it as the outbox does before it marks: again, when nothing can land behind it."""
    while True:
        began = trio.current_time()
        await service.update_action_status(update)
        if began >= (until := service.unsettled_until(update.key)):
            return
        await trio.sleep_until(until)


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
            nursery.start_soon(tell_ending, service, at(Phase.FAILED))
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


async def is_refused(service: GrpcRunService, update: ActionUpdate) -> None:
    with pytest.raises(RunServiceUnavailable):
        await service.update_action_status(update)


@pytest.mark.parametrize("what", ["record", "status"])
async def test_calls_end_with_codes_too(what: str) -> None:
    """A server that does not answer in-band means the same, where no proxy could say it."""
    with RunServiceServer(has_stream=False) as server:
        server.script(
            what,
            Fault(rpc=grpc.StatusCode.ALREADY_EXISTS),
            Fault(rpc=grpc.StatusCode.INVALID_ARGUMENT),
            Fault(rpc=grpc.StatusCode.RESOURCE_EXHAUSTED, details="larger than max (9 vs. 4)"),
            Fault(rpc=grpc.StatusCode.UNIMPLEMENTED),
        )
        async with connected(server) as service:

            async def tell() -> None:
                if what == "record":
                    await service.record_action(UPDATE, None)
                else:
                    await service.update_action_status(UPDATE)

            await tell()
            for code in (3, 8):
                with pytest.raises(RunServiceRejected) as raised:
                    await tell()
                assert raised.value.code == code
            with pytest.raises(RunServiceUnavailable, match="UNIMPLEMENTED: "):
                await tell()
            await tell()
        assert server.calls[what] == 5


async def test_a_server_without_the_stream_is_asked_once() -> None:
    """The update that finds it out is not lost, nor told twice."""
    with RunServiceServer(has_stream=False) as server, capture_logs() as logs:
        async with connected(server) as service:
            for number in range(5):
                await service.update_action_status(at(Phase.RUNNING, f"c{number}"))
        assert server.names("status") == [f"c{number}" for number in range(5)]
        assert server.streams == 0
    assert [log["event"] for log in logs] == ["run_service_has_no_stream"]


async def test_no_stream_on_request(streaming: RunServiceServer) -> None:
    async with open_run_service(streaming.endpoint, streaming=False) as service:
        await service.update_action_status(UPDATE)
    assert streaming.names("status") == ["c1"]
    assert streaming.streams == 0


async def test_all_share_one_stream(streaming: RunServiceServer) -> None:
    """Once it has answered; and order is kept for who waits for each answer."""
    async with connected(streaming) as service:
        for phase in (Phase.QUEUED, Phase.INITIALIZING, Phase.RUNNING, Phase.SUCCEEDED):
            await service.update_action_status(at(phase))
    assert streaming.told_phases("c1") == [1, 3, 4, 5]
    assert streaming.streams == 1


async def test_a_cut_stream(streaming: RunServiceServer) -> None:
    """Who waits on it is told; calls take over at once, and a stream is opened again."""
    held = threading.Event()
    async with connected(streaming) as service:
        await service.update_action_status(UPDATE)
        streaming.script("status", Fault(hold=held))
        with capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(is_refused, service, at(Phase.RUNNING, f"c{number}"))
                await eventually(lambda: streaming.calls["status"] == 2)
                streaming.cut_streams()
        (log,) = logs
        assert log["event"] == "run_service_stream_broken"
        await service.update_action_status(at(Phase.RUNNING, "c7"))
        assert "c7" in streaming.names("status")
        assert streaming.streams == 1
        held.set()
        with trio.fail_after(60):
            while streaming.streams == 1:
                await service.update_action_status(at(Phase.RUNNING, "c8"))


async def test_a_late_state_of_a_cut_stream(streaming: RunServiceServer) -> None:
    """A stream has no deadline at the server: what it held is applied after the cut."""
    late = threading.Event()
    streaming.script("status", Fault(hold=late))
    async with connected(streaming, deadline=0.5) as service:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_refused, service, at(Phase.RUNNING))
            await eventually(lambda: streaming.calls["status"] == 1)
            streaming.cut_streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell_ending, service, at(Phase.FAILED))
            await eventually(lambda: streaming.phases.get("c1") == Phase.FAILED)
            late.set()
            await eventually(lambda: streaming.revived == ["c1"])
    assert streaming.told_phases("c1") == [Phase.FAILED, Phase.RUNNING, Phase.FAILED]
    assert streaming.phases["c1"] == Phase.FAILED


async def test_a_late_state_of_a_cancelled_call(server: RunServiceServer) -> None:
    """Who was cancelled may have told it."""
    late = threading.Event()
    server.script("status", Fault(hold=late))
    async with connected(server, deadline=0.5) as service:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.update_action_status, at(Phase.RUNNING))
            await eventually(lambda: server.calls["status"] == 1)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_told_or_refused, service, at(Phase.FAILED))
            late.set()
        await tell_ending(service, at(Phase.FAILED))
    assert server.phases["c1"] == Phase.FAILED


async def is_told_or_refused(service: GrpcRunService, update: ActionUpdate) -> None:
    try:
        await service.update_action_status(update)
    except RunServiceUnavailable as error:
        assert "no answer" in str(error)  # noqa: PT017 - on a stream it waits behind the late one


async def test_an_ending_is_told_once_when_nothing_is_open(server: RunServiceServer) -> None:
    """An answer, any, settles a call; so does a connection that was never made."""
    with trio.fail_after(30):
        async with connected(server, deadline=60) as service:
            server.script("status", Fault(code=14))
            await is_refused(service, at(Phase.RUNNING))
            await tell_ending(service, at(Phase.FAILED))
            server.stop()
            await is_refused(service, at(Phase.RUNNING, "c2"))
            with capture_logs():
                await until_unsent(service, at(Phase.RUNNING, "c3"))
            server.start()
            await until_told(service, at(Phase.FAILED, "c3"))
    assert server.told_phases("c1") == [Phase.FAILED]
    assert server.told_phases("c3") == [Phase.FAILED]


async def until_unsent(service: GrpcRunService, update: ActionUpdate) -> None:
    """Have the client notice that nobody listens, then tell in vain."""
    while True:
        with pytest.raises(RunServiceUnavailable) as raised:
            await service.record_action(update, None)
        if "connecting failed" in str(raised.value):
            break
    await is_refused(service, update)


async def until_told(service: GrpcRunService, update: ActionUpdate) -> None:
    await until_done(lambda: service.update_action_status(update), despite=RunServiceUnavailable)


async def test_an_ending_of_unknown_outcome_is_not_waited_for(server: RunServiceServer) -> None:
    """Landing twice it says the same."""
    server.script("status", Fault(rpc=grpc.StatusCode.UNAVAILABLE, applied=True))
    async with connected(server, deadline=60) as service:
        await is_refused(service, at(Phase.FAILED))
        with trio.fail_after(30):
            await service.update_action_status(at(Phase.FAILED))
    assert server.told_phases("c1") == [Phase.FAILED, Phase.FAILED]


async def test_an_outage(server: RunServiceServer) -> None:
    """It goes on by itself when the run service is back."""
    async with connected(server) as service:
        await service.record_action(UPDATE, None)
        await service.update_action_status(UPDATE)
        server.stop()
        await is_refused(service, UPDATE)
        server.start()
        with trio.fail_after(60):
            await until_told(service, at(Phase.SUCCEEDED, "c2"))
    assert server.phases["c2"] == Phase.SUCCEEDED


async def test_a_slow_stream_is_not_waited_for(streaming: RunServiceServer) -> None:
    """It gets what it answers in a moment; the rest goes side by side."""
    slow = Fault(delay=0.05)
    async with connected(streaming) as service:
        streaming.script("status", *[slow] * 4)
        for _ in range(4):
            await service.update_action_status(UPDATE)
        streaming.script("status", *[slow] * 60)
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(service.update_action_status, at(Phase.RUNNING, f"c{number}"))
    assert streaming.streams == 1
    # A stream alone would have one at a time.
    assert streaming.most_at_once > 3


async def test_a_stream_that_swallows_holds_up_only_one(streaming: RunServiceServer) -> None:
    """As behind a proxy that waits for the end of a request before it passes it on."""
    never = threading.Event()
    streaming.script("status", Fault(hold=never), name="c1")
    async with connected(streaming, deadline=60) as service, trio.open_nursery() as nursery:
        nursery.start_soon(service.update_action_status, UPDATE)
        await eventually(lambda: streaming.calls["status"] == 1)
        with trio.fail_after(30):
            for number in range(2, 10):
                await service.update_action_status(at(Phase.RUNNING, f"c{number}"))
        nursery.cancel_scope.cancel()
    assert len(streaming.names("status")) == 8


async def test_a_stream_that_nobody_waits_for_is_left_too(streaming: RunServiceServer) -> None:
    """Its callers were cancelled: no deadline of theirs ends it."""
    never = threading.Event()
    async with connected(streaming, deadline=0.3) as service:
        await service.update_action_status(UPDATE)
        streaming.script("status", Fault(hold=never), name="c2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.update_action_status, at(Phase.RUNNING, "c2"))
            await eventually(lambda: streaming.calls["status"] == 2)
            nursery.cancel_scope.cancel()
        await trio.sleep(0.35)  # What is meant: the answer is late by then, on the real clock.
        with capture_logs() as logs:
            await service.update_action_status(at(Phase.RUNNING, "c3"))
    assert [log["event"] for log in logs] == ["run_service_stream_broken"]
    assert streaming.names("status") == ["c1", "c3"]


async def test_answers_that_nobody_asked_for(streaming: RunServiceServer) -> None:
    """They accept nothing."""
    streaming.nonces_lie = True
    async with connected(streaming, deadline=0.3) as service:
        with pytest.raises(RunServiceUnavailable, match="no answer in"):
            await service.update_action_status(UPDATE)
        await service.update_action_status(UPDATE)
    assert len(streaming.names("status")) == 2


async def test_nothing_is_left_running(server: RunServiceServer) -> None:
    """Also when it is left in the middle of calls: no task, no connection."""
    held = threading.Event()
    server.script("status", Fault(hold=held))
    server.script("record", Fault(hold=held))
    before = trio.lowlevel.current_statistics()
    with trio.CancelScope() as scope:
        async with connected(server) as service, trio.open_nursery() as nursery:
            nursery.start_soon(service.update_action_status, UPDATE)
            nursery.start_soon(service.record_action, UPDATE, None)
            await eventually(lambda: sum(server.calls.values()) == 2)
            scope.cancel()
    assert scope.cancelled_caught
    after = trio.lowlevel.current_statistics()
    assert after.tasks_living == before.tasks_living
    # They compare by identity.
    assert repr(after.io_statistics) == repr(before.io_statistics)
    held.set()


async def test_tls(tmp_path: Path) -> None:
    """With an authority of one's own, and a certificate of the client's."""
    certificates = Certificates(tmp_path)
    theirs, ours = certificates.issue("server", "127.0.0.1"), certificates.issue("client", "us")
    credentials = grpc.ssl_server_credentials(
        [(theirs.key.read_bytes(), theirs.cert.read_bytes())],
        root_certificates=certificates.ca.read_bytes(),
        require_client_auth=True,
    )
    tls = Tls(ca=certificates.ca, cert=ours.cert, key=ours.key)
    with RunServiceServer(credentials=credentials) as server:
        target = f"https://127.0.0.1:{server.port}"
        async with open_run_service(target, tls=tls) as service:
            await service.record_action(UPDATE, None)
            await service.update_action_status(UPDATE)
        strangers = Certificates(tmp_path / "strangers")
        async with open_run_service(target, tls=Tls(ca=strangers.ca)) as service:
            with pytest.raises(RunServiceUnavailable, match="certificate verification failed"):
                await service.record_action(UPDATE, None)
    assert [told.what for told in server.told] == ["record", "status"]


@pytest.mark.parametrize(
    ("target", "arguments", "problem"),
    [
        ("localhost", {}, "use host:port"),
        ("localhost:1", {"deadline": 0}, "deadline: 0 is too small"),
        ("localhost:1", {"concurrency": 0}, "concurrency: 0 is too small"),
        ("localhost:1", {"keepalive_timeout": -1}, "keepalive_timeout: -1 is too small"),
        ("http://localhost:1", {"tls": Tls()}, "not encrypted, but TLS is configured"),
        ("localhost:1", {"tls": Tls(skip_verify=True)}, "skip_verify"),
        ("localhost:1", {"tls": Tls(ca=Path("/nowhere/ca.pem"))}, "tls ca /nowhere/ca.pem"),
    ],
)
async def test_unusable_arguments(target: str, arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        async with open_run_service(target, **arguments):  # type: ignore[arg-type]
            raise AssertionError("it was opened")
