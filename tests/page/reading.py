"""Reads the page's own streams, line by line."""

from __future__ import annotations

import http.client
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from etcd_actions.server import ActionsServer

DEADLINE = 30


class Lines:
    """An open stream.

    Attributes:
        status: The status of the response.
    """

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}

    async def next(self) -> Any:
        """The next line; None for an empty one.

        Raises:
            EOFError: The stream has ended.
        """
        with trio.fail_after(DEADLINE):
            line = await trio.to_thread.run_sync(self._response.readline, abandon_on_cancel=True)
        if not line:
            raise EOFError
        return None if line == b"\n" else json.loads(line)


@asynccontextmanager
async def reading(server: ActionsServer, path: str, token: str = "") -> AsyncIterator[Lines]:
    """Open a stream for as long as the context lasts."""
    connection = http.client.HTTPConnection(str(server.address), timeout=DEADLINE)

    def request() -> http.client.HTTPResponse:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        connection.request("GET", path, headers=headers)
        return connection.getresponse()

    try:
        yield Lines(await trio.to_thread.run_sync(request))
    finally:
        connection.close()
