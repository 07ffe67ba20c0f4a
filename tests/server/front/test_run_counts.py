"""The stream of the numbers of actions, for the page's list of runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionStatus,
    Phase,
    open_actions_client,
)
from etcd_actions.etcd.api import Etcd
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb
from etcd_actions.server.front import FrontDoor
from tests.server.clients import Failed
from tests.server.conftest import LOOPBACK
from tests.server.front.calling import Caller, Reading
from tests.server.front.conftest import Lists
from tests.support import flyte
from tests.support.everyday import first_everyday
from tests.support.runs import record, status
from tests.support.waiting import eventually

OPERATIONS = "etcd_actions.operations.Operations"
ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")


def names(*runs: str) -> pb.WatchCountsRequest:
    return pb.WatchCountsRequest(
        runs=[pb.RunName(project="p", domain="d", run=run) for run in runs]
    )


class Counts:
    """The last counts of a stream."""

    def __init__(self, reading: Reading[pb.WatchCountsResponse]) -> None:
        self._reading = reading
        self.now: dict[str, tuple[int, int]] = {}

    async def next(self) -> pb.WatchCountsResponse:
        message = await self._reading.next()
        assert message is not None, self.now
        self.now |= {each.run.run: (each.ended, each.actions) for each in message.runs}
        return message

    async def become(self, **expected: tuple[int, int]) -> None:
        """Return once the counts are these: the watch may be some changes behind."""
        while self.now != expected:
            await self.next()


@contextmanager
def counting(caller: Caller, *runs: str) -> Iterator[Counts]:
    with caller.stream(OPERATIONS, "WatchCounts", names(*runs), pb.WatchCountsResponse) as reading:
        yield Counts(reading)


async def test_the_counts_of_runs_follow_their_actions(
    client: ActionsClient, caller: Caller
) -> None:
    await client.enqueue(flyte.task(ROOT))
    with counting(caller, "r1", "r2") as counts:
        await counts.become(r1=(0, 1), r2=(0, 0))
        await client.enqueue(flyte.task(CHILD, parent="a0"))
        await counts.become(r1=(0, 2), r2=(0, 0))
        await client.put_status(CHILD, 1, ActionStatus(Phase.FAILED))
        await counts.become(r1=(1, 2), r2=(0, 0))
        await client.enqueue(flyte.task(ActionId("p", "d", "r2", "a0")))
        await counts.become(r1=(1, 2), r2=(0, 1))


async def test_a_silent_stream_is_sent_an_empty_message(caller: Caller) -> None:
    with counting(caller, "r1") as counts:
        assert len((await counts.next()).runs) == 1
        assert len((await counts.next()).runs) == 0


@pytest.mark.parametrize(
    ("request_", "field"),
    first_everyday(
        [
            (pb.WatchCountsRequest(), "runs"),
            (names(*(f"r{number}" for number in range(201))), "runs"),
            (names("r1", ""), r"runs\[1\]\.run"),
            (names("r1/a0"), r"runs\[0\]\.run"),
        ],
        2,
    ),
)
async def test_a_request_that_names_no_runs_is_refused(
    caller: Caller, request_: pb.WatchCountsRequest, field: str
) -> None:
    with (
        caller.stream(OPERATIONS, "WatchCounts", request_, pb.WatchCountsResponse) as it,
        pytest.raises(Failed, match=field) as refused,
    ):
        await it.next()
    assert refused.value.code == "invalid_argument"


async def test_a_run_that_the_process_does_not_watch_is_listed(
    etcd: Etcd, prefix: bytes, client: ActionsClient, lists: Lists
) -> None:
    await client.enqueue(flyte.task(ROOT))
    await lists.put(record("r1"))
    async with open_actions_client(etcd, prefix=prefix) as other:
        front = FrontDoor(client=other, keepalive=0.05, index=lists.index)
        server_settings = ServerSettings(bind=LOOPBACK, keepalive=0.05)
        async with open_actions_server(other, server_settings, front=front) as server:
            caller = Caller(str(server.address))
            with counting(caller, "r1") as counts:
                await counts.become(r1=(0, 1))
                await client.put_status(ROOT, 1, ActionStatus(Phase.SUCCEEDED))
                await lists.put(record("r1", status=status(Phase.SUCCEEDED)))
                await counts.become(r1=(1, 1))
            caller.close()


async def test_nothing_is_counted_without_a_reader(
    client: ActionsClient, front_server: ActionsServer, caller: Caller
) -> None:
    processor = client._processor.serving(ROOT)
    assert processor is not None
    with counting(caller, "r1") as counts:
        await counts.next()
        assert processor.index._run_counts
    await eventually(lambda: front_server.statistics().open_streams == 0)
    assert not processor.index._run_counts
