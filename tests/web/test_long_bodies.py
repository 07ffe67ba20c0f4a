"""A body that the application wants may take long, while it makes progress."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from etcd_actions.web import HttpLimits
from etcd_actions.web.asgi import Headers
from etcd_actions.web.request import Body
from tests.web.listeners import connect, h2_client, parsed, request, rest, served

LIMITS = HttpLimits(body_timeout=10, long_body_bytes=100)


class _Nowhere:
    """A reply that nobody gets."""

    has_trailers = False

    def request_body(self) -> None:
        """It comes unasked."""

    def consumed(self, count: int) -> None:
        """Nobody counts it."""

    def start(self, status: int, headers: Headers) -> None:
        raise AssertionError("there is no answer")

    def body(self, data: bytes) -> bool:
        raise AssertionError("there is no answer")

    def end(self, data: bytes, trailers: Headers | None) -> bool:
        raise AssertionError("there is no answer")

    async def wait(self) -> None:
        raise AssertionError("there is no answer")

    def break_off(self) -> None:
        raise AssertionError("there is no answer")


async def _arrives(size: int, *, is_long: bool, pause: float = 6.0, own: float = 0.0) -> int:
    """How many parts of a body arrive, of twenty; there are seconds before each."""
    body = Body(_Nowhere(), LIMITS)
    if is_long:
        body.take_long()
    arrived = 0
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            for number in range(20):
                await trio.sleep(pause)  # The pace of the sender, on a clock that jumps.
                body.put(b"x" * size)
                if number == 19:
                    body.end()

        while (message := await body.receive())["type"] != "http.disconnect":
            arrived += len(message["body"])
            await trio.sleep(own)
            if not message["more_body"]:
                break
        nursery.cancel_scope.cancel()
    return arrived // size


async def test_progress_is_what_counts(autojump_clock: trio.testing.MockClock) -> None:
    # A hundred bytes in each ten seconds.
    assert await _arrives(100, is_long=True) == 20
    assert await _arrives(50, is_long=True, pause=4.0) == 20
    assert await _arrives(50, is_long=True, pause=6.0) == 1
    # It is a bound for all of a body that nobody takes as a long one.
    assert await _arrives(100, is_long=False) == 1


async def test_the_time_of_the_application_does_not_count(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert await _arrives(10, is_long=True, pause=0.5, own=60.0) == 20


@pytest.mark.parametrize("kind", ["http/1.1", "h2"])
async def test_a_long_body_that_stalls_is_given_up(kind: str) -> None:
    async with served(limits=HttpLimits(body_timeout=0.2)) as server:
        if kind == "h2":
            async with h2_client(server.address) as client:
                number = await client.ask("/long", method="POST", end=False)
                client.connection.send_data(number, b"x")
                await client.flush()
                assert await client.is_answered(number) == 400
        else:
            async with await connect(server.address) as stream:
                await stream.send_all(request("/long", "content-length: 100", method="POST"))
                assert parsed(await rest(stream))[0] == 400
        await server.is_well()
