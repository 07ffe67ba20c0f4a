"""The logs of attempts, as a client of Flyte's data proxy reads them."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.dataproxy import dataproxy_service_pb2 as pb
from flyteidl2.logs.dataplane.payload_pb2 import LogLine, LogLineOriginator

from etcd_actions import ActionId, ActionsClient, Phase, StoredAction, open_actions_client
from etcd_actions.actions.status import ActionStatus
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.attempt_log import LocalLogs
from etcd_actions.model import Keyspace
from etcd_actions.runs.own_run_service import OwnRunService
from etcd_actions.runs.reading import history_of_action
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.attempt_logs import LONGEST_LINE, LogSources
from etcd_actions.storage.store import Store
from etcd_actions.web import Bind
from tests.executor.tasks import ROOT, Machine, named, until
from tests.runs.test_own_run_service import update_of
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.memory(jumps=False)

METHOD = "/flyteidl2.dataproxy.DataProxyService/TailLogs"
# Its messages have the same fields, as far as these go.
EARLIER = "/flyteidl2.workflow.RunLogsService/TailLogs"


class Tail:
    """A stream of lines, read by a thread."""

    def __init__(
        self, address: str, action_id: ActionId, attempt: int, method: str = METHOD
    ) -> None:
        self._channel = grpc.insecure_channel(address)
        stub = self._channel.unary_stream(
            method,
            request_serializer=pb.TailLogsRequest.SerializeToString,
            response_deserializer=pb.TailLogsResponse.FromString,
        )
        request = pb.TailLogsRequest(action_id=flyte.identifier(action_id), attempt=attempt)
        self._call = stub(request, timeout=60)
        self.lines: list[LogLine] = []
        self.responses = 0
        self.ended = trio.Event()
        self.failure: grpc.RpcError | None = None

    def _read(self) -> None:
        try:
            for answer in self._call:
                self.responses += 1
                for logs in answer.logs:
                    self.lines += logs.lines
        except grpc.RpcError as error:
            self.failure = error

    async def run(self) -> None:
        await trio.to_thread.run_sync(self._read)
        self.ended.set()

    def close(self) -> None:
        self._call.cancel()
        self._channel.close()

    @property
    def text(self) -> str:
        return "".join(line.message for line in self.lines)

    async def until(self, text: str) -> None:
        await eventually(lambda: text in self.text)

    def refused(self) -> tuple[grpc.StatusCode, str]:
        assert self.failure is not None
        return self.failure.code(), self.failure.details()


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end_all()


@pytest.fixture
async def server(
    client: ActionsClient, machine: Machine, etcd: Etcd, prefix: bytes
) -> AsyncIterator[ActionsServer]:
    keys = Keyspace(prefix)
    logs = LogSources(
        client=client,
        source=LocalLogs(machine.state_dir),
        history=lambda action_id: history_of_action(Store(etcd), keys, action_id),
        most_open=3,
    )
    settings = ServerSettings(bind=Bind("127.0.0.1", 0))
    front = FrontDoor(client=client, keepalive=0.2, logs=logs)
    async with open_actions_server(client, settings, front=front) as server:
        yield server


@asynccontextmanager
async def tailing(
    server: ActionsServer, action_id: ActionId, attempt: int = 1, method: str = METHOD
) -> AsyncIterator[Tail]:
    async with trio.open_nursery() as nursery:
        tail = Tail(str(server.address), action_id, attempt, method)
        nursery.start_soon(tail.run)
        try:
            with trio.fail_after(30):
                yield tail
        finally:
            tail.close()


async def read(
    server: ActionsServer, action_id: ActionId, attempt: int = 1, method: str = METHOD
) -> Tail:
    async with tailing(server, action_id, attempt, method) as tail:
        await tail.ended.wait()
        return tail


async def started(client: ActionsClient, machine: Machine, phase: Phase) -> AttemptDirectory:
    """An action with a directory, whose log a test writes."""
    await client.enqueue(flyte.task(ROOT))
    action = await client.put_status(ROOT, 1, ActionStatus(phase))
    place = AttemptDirectory(machine.state_dir, action.incarnation, 1)
    place.make()
    return place


@pytest.mark.slow
async def test_a_task_is_followed_until_it_has_ended_and_each_attempt_can_be_read(
    client: ActionsClient, machine: Machine, server: ActionsServer
) -> None:
    script = """
    echo "hello of $FLYTE_ATTEMPT_NUMBER"
    while [ ! -e "$RUNS/go" ]; do sleep 0.02; done
    echo "Grüße" >&2
    printf 'no end of a line'
    test "$FLYTE_ATTEMPT_NUMBER" = 1
    """

    def retried(action: Action) -> None:
        action.task.spec.task_template.metadata.retries.retries = 1

    await client.enqueue(machine.task(ROOT, script, change=retried))
    async with tailing(server, ROOT) as tail, machine.executor(client):
        await tail.until("hello of 0\n")
        assert not tail.ended.is_set()
        (machine.runs / "go").touch()
        await tail.ended.wait()
        assert tail.failure is None
        await until(client, ROOT)
    assert tail.text == "hello of 0\nGrüße\nno end of a line\n"
    assert {line.originator for line in tail.lines} == {LogLineOriginator.USER}
    assert all(line.timestamp.seconds > 1_700_000_000 for line in tail.lines)
    second = await read(server, ROOT, 2)
    assert second.text.splitlines()[0] == "hello of 1"
    assert (await read(server, ROOT, 0)).text == second.text
    code, text = (await read(server, ROOT, 3)).refused()
    assert code is grpc.StatusCode.NOT_FOUND
    assert "it ended in attempt 2" in text


async def test_a_stream_ends_with_its_action_where_its_supervisor_left_nothing(
    client: ActionsClient, machine: Machine, server: ActionsServer
) -> None:
    place = await started(client, machine, Phase.RUNNING)
    with (place.path / "log").open("wb", buffering=0) as log:
        log.write(b"one\n")
        async with tailing(server, ROOT) as tail:
            await tail.until("one\n")
            log.write(b"two\n")
            await tail.until("two\n")
            await client.put_status(ROOT, 1, ActionStatus(Phase.FAILED))
            await tail.ended.wait()
    assert (tail.text, tail.failure) == ("one\ntwo\n", None)
    earlier = await read(server, ROOT, method=EARLIER)
    assert (earlier.text, earlier.failure) == (tail.text, None)


@pytest.mark.parametrize(
    ("contents", "lengths"),
    first_everyday(
        [
            (b"", []),
            (b"\n\n", [1, 1]),
            (b"\x00\xff\xfe\x80binary", [11]),
            (b"x" * (3 * LONGEST_LINE + 5), [LONGEST_LINE + 1] * 3 + [6]),
            ("ä".encode() * LONGEST_LINE, [LONGEST_LINE // 2 + 1] * 2),
            (b"x" + "€".encode() * LONGEST_LINE, [5463, 5462, 5462, 2]),
            (b"\xed\xa0\x80\r\x1b[2J\n", [9]),
        ],
        2,
    ),
)
async def test_whatever_is_in_it_comes_as_lines_of_bounded_length(
    client: ActionsClient,
    machine: Machine,
    server: ActionsServer,
    contents: bytes,
    lengths: list[int],
) -> None:
    place = await started(client, machine, Phase.SUCCEEDED)
    (place.path / "log").write_bytes(contents)
    tail = await read(server, ROOT)
    assert tail.failure is None
    assert [len(line.message) for line in tail.lines] == lengths
    assert tail.text.replace("\n", "") == contents.decode(errors="replace").replace("\n", "")


async def test_more_logs_than_there_are_descriptors_for_are_refused(
    client: ActionsClient, machine: Machine, server: ActionsServer
) -> None:
    place = await started(client, machine, Phase.RUNNING)
    (place.path / "log").write_bytes(b"one\n")
    async with AsyncExitStack() as stack:
        tails = [await stack.enter_async_context(tailing(server, ROOT)) for _ in range(3)]
        for tail in tails:
            await tail.until("one\n")
        code, text = (await read(server, ROOT)).refused()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "3 logs are being read" in text
        tails[0].close()
        await tails[0].ended.wait()

        async def is_free() -> bool:
            async with tailing(server, ROOT) as again:
                await eventually(lambda: bool(again.text) or again.ended.is_set())
                return again.text == "one\n"

        await eventually_holds(is_free)


async def test_what_is_no_log_is_refused(
    client: ActionsClient, machine: Machine, server: ActionsServer
) -> None:
    place = await started(client, machine, Phase.SUCCEEDED)
    os.mkfifo(place.path / "log")
    code, text = (await read(server, ROOT)).refused()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "is a FIFO" in text
    (place.path / "log").unlink()
    (place.path / "log").symlink_to("/etc/passwd")
    code, text = (await read(server, ROOT)).refused()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "is a symbolic link" in text


async def test_a_log_that_is_elsewhere_says_where(
    client: ActionsClient, server: ActionsServer
) -> None:
    await client.enqueue(flyte.task(ROOT))
    action = await client.put_status(ROOT, 1, ActionStatus(Phase.RUNNING))
    async with client.open_claims() as claims:
        claims._owner = "other-machine/17"
        assert await claims.claim(ROOT, action.incarnation) is not None
        code, text = (await read(server, ROOT)).refused()
    assert code is grpc.StatusCode.NOT_FOUND
    assert "other-machine/17 runs it: read it from the service there" in text
    await client.put_status(ROOT, 1, ActionStatus(Phase.SUCCEEDED))
    code, text = (await read(server, ROOT)).refused()
    assert code is grpc.StatusCode.NOT_FOUND
    assert f"is not on {socket.gethostname()}: it is in the state directory" in text


async def test_what_has_no_log_says_so(client: ActionsClient, server: ActionsServer) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.enqueue(flyte.condition(named("c1"), "a0"))
    code, text = (await read(server, named("c1"))).refused()
    assert code is grpc.StatusCode.NOT_FOUND
    assert "is not a task" in text
    code, text = (await read(server, ROOT, 7)).refused()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "attempt: 7" in text
    code, text = (await read(server, named("c2"))).refused()
    assert code is grpc.StatusCode.NOT_FOUND
    assert "there is no action c2" in text


@pytest.mark.slow
async def test_a_stream_for_an_attempt_that_never_starts_ends_when_its_action_is_deleted(
    client: ActionsClient, server: ActionsServer, etcd: Etcd, prefix: bytes
) -> None:
    await client.enqueue(flyte.task(ROOT))
    await client.put_status(ROOT, 1, ActionStatus(Phase.RUNNING))
    async with tailing(server, ROOT, 2) as tail:
        await eventually(lambda: tail.responses > 0)
        await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(ROOT)))
        await tail.ended.wait()
    code, text = tail.refused()
    assert code is grpc.StatusCode.NOT_FOUND
    assert "it ended in attempt 1" in text


async def test_the_log_of_what_has_expired_is_found_by_its_history(
    client: ActionsClient, machine: Machine, server: ActionsServer, etcd: Etcd, prefix: bytes
) -> None:
    place = await started(client, machine, Phase.SUCCEEDED)
    (place.path / "log").write_bytes(b"here\n")
    store, keys = Store(etcd), Keyspace(prefix)
    action: StoredAction = await client.get_task_action(ROOT)
    await OwnRunService(store, keys).update_action_state(update_of(action), action)
    seen = await store.get(keys.task_action(ROOT))
    while seen is not None:
        seen = (await store.compare_and_delete(seen)).current
    assert (await read(server, ROOT)).text == "here\n"


async def test_a_quiet_stream_shows_signs_of_life_and_ends_with_its_client(
    client: ActionsClient, machine: Machine, server: ActionsServer
) -> None:
    """The SDK takes a stream that is quiet for 30 s for one that is over."""
    place = await started(client, machine, Phase.RUNNING)
    (place.path / "log").touch()
    channel = grpc.insecure_channel(str(server.address))
    stub = channel.unary_stream(
        METHOD,
        request_serializer=pb.TailLogsRequest.SerializeToString,
        response_deserializer=pb.TailLogsResponse.FromString,
    )
    call = stub(pb.TailLogsRequest(action_id=flyte.identifier(ROOT), attempt=1), timeout=20)
    with trio.fail_after(20):
        for _ in range(2):
            assert await trio.to_thread.run_sync(next, call) == pb.TailLogsResponse()
        assert server.statistics().open_streams == 1
        call.cancel()
        channel.close()
        await eventually(lambda: server.statistics().open_streams == 0)
