"""The DevTools protocol over a pair of pipes: JSON objects, each ended by a NUL.

Over pipes a browser needs no port, no other process reaches it, and it ends with this process.
The protocol: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

DEADLINE: Final = 60.0
"""Seconds for one command. Machines that are shared stall."""

_PART: Final = 1 << 20

Listener = Callable[[str, dict[str, Any]], None]


class DevtoolsError(Exception):
    """The browser refused a command, or its pipe has ended."""


class DevtoolsPipe:
    """Both pipes of a browser, which outlive a run of trio.

    Args:
        reading: Our end of the pipe to which the browser writes; is closed by :meth:`close`.
        writing: Our end of the pipe from which it reads; the same.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self.reading = reading
        self.writing = writing
        # A run of trio may end in the middle of a message: the next one reads the rest.
        self.unread = bytearray()
        self.numbers = itertools.count(1)
        for each in (reading, writing):
            os.set_blocking(each, False)

    def close(self) -> None:
        """Close both ends, upon which the browser ends itself."""
        os.close(self.reading)
        os.close(self.writing)


class Devtools:
    """Sends commands and passes events on; made by :func:`open_devtools`."""

    def __init__(self, pipe: DevtoolsPipe) -> None:
        self._pipe = pipe
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._listeners: dict[str, Listener] = {}
        self._one_at_a_time = trio.Lock()
        self._ended = False

    def listen(self, session: str, listener: Listener) -> None:
        """Call ``listener`` with the name and the parameters of each event of a session."""
        self._listeners[session] = listener

    def forget(self, session: str) -> None:
        """Drop the events of a session from now on."""
        self._listeners.pop(session, None)

    async def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result.

        Raises:
            DevtoolsError: The browser refused it, or has ended.
            trio.TooSlowError: There was no answer in :data:`DEADLINE`.
        """
        if self._ended:
            raise DevtoolsError(f"{method}: the browser has ended")
        number = next(self._pipe.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self._waiting[number] = trio.Event()
        try:
            with trio.fail_after(DEADLINE):
                await self._write(json.dumps(message).encode() + b"\0")
                await self._waiting[number].wait()
        finally:
            del self._waiting[number]
        answer = self._answers.pop(number, None)
        if answer is None:
            raise DevtoolsError(f"{method}: the browser has ended")
        if "error" in answer:
            raise DevtoolsError(f"{method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    async def run(self) -> None:
        """Read until the browser closes its end."""
        pipe = self._pipe
        while True:
            *messages, rest = pipe.unread.split(b"\0")
            pipe.unread = bytearray(rest)
            for each in messages:
                self._take(json.loads(each))
            part = await self._read()
            if not part:
                break
            pipe.unread += part
        self._ended = True
        for event in self._waiting.values():
            event.set()

    async def _read(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._pipe.reading)
            try:
                return os.read(self._pipe.reading, _PART)
            except BlockingIOError:
                continue

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            # The answers to commands that were cancelled are dropped.
            if (waiting := self._waiting.get(message["id"])) is not None:
                self._answers[message["id"]] = message
                waiting.set()
        elif listener := self._listeners.get(message.get("sessionId", "")):
            listener(message["method"], message.get("params", {}))

    async def _write(self, data: bytes) -> None:
        async with self._one_at_a_time:
            # A part of a message would spoil all later ones.
            with trio.move_on_after(DEADLINE, shield=True) as patience:
                rest = memoryview(data)
                while rest:
                    try:
                        rest = rest[os.write(self._pipe.writing, rest) :]
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(self._pipe.writing)
                    except BrokenPipeError:
                        raise DevtoolsError("the browser has ended") from None
            if patience.cancelled_caught:
                raise DevtoolsError("the browser does not read")


@asynccontextmanager
async def open_devtools(pipe: DevtoolsPipe) -> AsyncIterator[Devtools]:
    """Talk to a browser for as long as the context lasts; one at a time may."""
    devtools = Devtools(pipe)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(devtools.run)
        yield devtools
        nursery.cancel_scope.cancel("the browser is not used any more")
