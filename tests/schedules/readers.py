"""Those who subscribe: by gRPC and by Connect; they come, lose their stream, and come again."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import trio
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId, Phase
from tests.schedules.plan import Step
from tests.schedules.writers import DOMAIN, PROJECT
from tests.server.clients import ConnectClient, Failed, GrpcClient
from tests.support import flyte

STREAM = 90.0
"""Seconds after which a stream would be over."""
_PAUSE = 0.1


class State(NamedTuple):
    """What a reader was told of an action."""

    run: str
    name: str
    phase: Phase
    output: str

    @property
    def action(self) -> tuple[str, str]:
        """Which action it is about."""
        return self.run, self.name

    def __str__(self) -> str:
        """Short, for messages."""
        return f"{self.name}:{self.phase.name}:{self.output.rpartition('/')[2]}"


@dataclass
class Reader:
    """One reader, and what it was told over each of its streams.

    Attributes:
        number: Which one.
        run: Of the action that it subscribed to.
        name: Of the action that it subscribed to.
        via: ``grpc:0``: how, and to which process.
        streams: What came, a list a stream.
        is_there: Whether it is subscribed now, with its snapshot complete.
        errors: How streams ended.
    """

    number: str
    run: str
    name: str
    via: str
    streams: list[list[State]] = field(default_factory=list)
    is_there: bool = False
    errors: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, step: Step) -> Reader:
        """The reader that a step says."""
        args = step.args
        return cls(args["reader"], args["run"], args["name"], args["via"])

    async def read(self, address: str) -> None:
        """Subscribe again and again, for ever."""
        while True:
            await self._read_once(address)
            await trio.sleep(_PAUSE)

    async def _read_once(self, address: str) -> None:
        made = GrpcClient if self.via.startswith("grpc") else ConnectClient
        client = made(address, deadline=STREAM)
        parent = ActionId(PROJECT, DOMAIN, self.run, self.name)
        request = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(parent))
        states: list[State] = []
        opened: list[Any] = []
        left = trio.Event()
        self.streams.append(states)

        def take(message: Any) -> bool:
            # A thread that is left alone may go on reading beside the reader's next stream.
            if not left.is_set():
                self._take(states, message)
            return left.is_set()

        def read() -> None:
            stream = client.stream(request)
            opened.append(stream)
            for message in stream:
                if trio.from_thread.run_sync(take, message):
                    return

        try:
            await _in_thread(read)
        except Failed as error:
            self.errors.append(error.code)
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            # Closed under its hands, or cut.
            self.errors.append(type(error).__name__)
        finally:
            left.set()
            self.is_there = False
            for stream in opened:
                with suppress(OSError):
                    stream.close()
            client.close()

    def _take(self, states: list[State], message: Any) -> None:
        if message.WhichOneof("message") == "control_message":
            self.is_there = True
            return
        update = message.action_update
        identifier = update.action_id
        states.append(
            State(identifier.run.name, identifier.name, Phase(update.phase), update.output_uri)
        )


async def _in_thread(read: Callable[[], None]) -> None:
    """Run it in a thread that is left alone when it is cancelled."""
    # Each has a thread for as long as it reads.
    limiter = trio.CapacityLimiter(1)
    await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=limiter)
