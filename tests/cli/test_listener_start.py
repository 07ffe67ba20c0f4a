"""A start that is cancelled ends, whatever has been started by then."""

import trio

from etcd_actions.web import Bind, Message, Receive, Send, open_listener


async def nothing(scope: Message, receive: Receive, send: Send) -> None:
    raise AssertionError("nobody asks")


async def test_a_listener_whose_start_is_cancelled_ends() -> None:
    with trio.fail_after(20), trio.CancelScope() as scope:
        scope.cancel("as a signal does")
        async with open_listener(nothing, Bind("127.0.0.1", 0), flag="--listen", grace=1):
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_listener_that_is_cancelled_at_any_step_of_its_start_ends() -> None:
    for steps in range(30):
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    async with open_listener(
                        nothing, Bind("127.0.0.1", 0), flag="--listen", grace=1
                    ):
                        await trio.sleep_forever()

                nursery.start_soon(serve)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel("as a signal does")
