"""Messages between the processes of a measurement: JSON lines over a separate socket.

Libraries may print to standard output and standard error; the driver stores both, and shows
them if the process fails.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator


class Channel:
    """A child's end of the socket to the driver."""

    def __init__(self, descriptor: int) -> None:
        """Use an inherited descriptor; this process's own children do not inherit it."""
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)

    def say(self, event: str, **fields: object) -> None:
        """Send one message."""
        self._socket.sendall(json.dumps({"event": event} | fields).encode() + b"\n")

    def commands(self) -> Iterator[list[str]]:
        """The driver's commands, in words; they end with the driver."""
        with self._socket.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                yield line.split()


def inherited() -> tuple[Channel, str]:
    """Return the channel and the argument that the driver gave on the command line."""
    return Channel(int(sys.argv[1])), sys.argv[2]


def serve(work: Callable[[Channel, str], None]) -> None:
    """Do a child's work; report a failure to the driver, and print its traceback."""
    channel, argument = inherited()
    try:
        work(channel, argument)
    except BaseException as error:
        traceback.print_exc()
        channel.say("failed", error=f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
