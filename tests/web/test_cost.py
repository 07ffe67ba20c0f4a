"""What a request costs the event loop, and that what arrives together goes on together."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from etcd_actions.web import Message, Receive, Send, on_disconnect
from tests.support.waiting import eventually
from tests.web.listeners import answer, connect, h2_client, request, served, whole

CALLS = 20


class Counting(trio.abc.Instrument):
    """Counts the steps of the server's tasks, and the tasks that it begins."""

    def __init__(self) -> None:
        self.steps = 0
        self.tasks = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += any(part in task.name for part in ("etcd_actions.web", "etcd_actions.server"))

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.tasks += any(
            part in task.name for part in ("etcd_actions.web", "etcd_actions.server", "connectrpc")
        )


@pytest.mark.parametrize(("kind", "most"), [("http/1.1", 2), ("h2", 3)])
async def test_a_request_costs_few_steps_and_one_task(kind: str, most: int) -> None:
    async with served() as server, h2_client(server.address) as client:
        stream = await connect(server.address)
        counting = Counting()
        await client.is_answered(await client.ask("/ok"))
        await trio.testing.wait_all_tasks_blocked(0.02)
        trio.lowlevel.add_instrument(counting)
        for _ in range(CALLS):
            if kind == "h2":
                assert await client.is_answered(await client.ask("/ok")) == 200
            else:
                await stream.send_all(request("/ok"))
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        trio.lowlevel.remove_instrument(counting)
        await stream.aclose()
    assert counting.tasks == CALLS
    # The reader's, the request's, and for HTTP/2 the sender's.
    assert counting.steps <= most * CALLS + 5


async def test_requests_that_arrive_together_go_on_together() -> None:
    """They are more than is parsed at once, and as much as the system takes at once."""
    together = 64
    begun = 0
    seen: list[int] = []

    async def first_turn(_scope: Message, receive: Receive, send: Send) -> None:
        nonlocal begun
        assert len(await whole(receive) or b"") == 800
        begun += 1
        await trio.lowlevel.checkpoint()
        seen.append(begun)
        await answer(send, 200, b"")

    async with served(first_turn) as server, h2_client(server.address) as client:
        # Until the server's windows have come.
        await client.until(lambda: client.connection.outbound_flow_control_window > 2**16)
        numbers = []
        for _ in range(together):
            number = client.connection.get_next_available_stream_id()
            head = [(":method", "POST"), (":path", "/"), (":scheme", "http")]
            client.connection.send_headers(number, [*head, (":authority", "localhost")])
            client.connection.send_data(number, b"x" * 800, end_stream=True)
            numbers.append(number)
        sock = client.stream.socket
        data = client.connection.data_to_send()
        # All of it is in the system's hands before the server's next turn.
        sent = await sock.send(data)
        assert sent == len(data)
        await client.until(lambda: client.ended.issuperset(numbers))
    assert seen == [together] * together


async def test_a_loss_is_reported_without_a_task_and_after_what_was_read() -> None:
    order: list[str] = []

    async def watch(scope: Message, receive: Receive, _send: Send) -> None:
        on_disconnect(scope, lambda: order.append("lost"))
        order.append("begun")
        await trio.sleep_forever()
        await receive()

    async with served(watch, grace=0.1) as server, h2_client(server.address) as client:
        number = await client.ask("/")
        await eventually(lambda: order == ["begun"])
        client.connection.reset_stream(number)
        await client.flush()
        await trio.testing.wait_all_tasks_blocked(0.05)
        # The end of the body was never read: receive() would say that first.
        assert order == ["begun"]


async def test_a_loss_is_reported_at_once_where_it_was_before() -> None:
    lost = trio.Event()
    go = trio.Event()

    async def late(scope: Message, receive: Receive, _send: Send) -> None:
        await whole(receive)
        await go.wait()
        on_disconnect(scope, lost.set)

    async with served(late) as server, h2_client(server.address) as client:
        number = await client.ask("/")
        await trio.testing.wait_all_tasks_blocked(0.05)
        client.connection.reset_stream(number)
        await client.flush()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not lost.is_set()
        go.set()
        with trio.fail_after(10):
            await lost.wait()
