"""Ray's job interface, over HTTP: submit, look, stop, logs. It needs no package of Ray.

Calls run in threads, by the standard library. Each has a limit of time and of bytes, so that a
server that hangs, trickles or floods costs one call.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from etcd_actions._internal.no_redirects import open_without_redirects
from etcd_actions._internal.untrusted_files import UnusableFile, read_regular
from etcd_actions.executor.launchers.launcher import LauncherUnavailable

_JOBS: Final = "/api/jobs/"
# The most calls at a time, each in a thread.
_AT_ONCE: Final = 16
# Bytes of an answer.
_MOST: Final = 4 * 1024 * 1024
# Bytes of one read.
_PART: Final = 64 * 1024
# Bytes of the token's file.
_MOST_TOKEN: Final = 16 * 1024
# Characters of Ray's reason in a message.
_MOST_TEXT: Final = 2000
_OK: Final = 200
_NOT_FOUND: Final = 404
# A proxy answers so while Ray's head is not available.
_AWAY: Final = (502, 503, 504)


class RayJob(msgspec.Struct, frozen=True):
    """The state of a job, as Ray reports it. Times are in milliseconds since 1970."""

    status: str
    message: str | None = None
    error_type: str | None = None
    end_time: int | None = None
    driver_exit_code: int | None = None


class RayRefused(Exception):
    """Ray answered with an error.

    Attributes:
        status: The status of HTTP.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"Ray answers {status}: {text}")
        self.status = status


class _Logs(msgspec.Struct, frozen=True):
    logs: str | None = None


class RayJobs:
    """The jobs of one Ray cluster. Each method raises :class:`LauncherUnavailable`.

    Args:
        address: The URL of the head, such as ``http://head:8265``.
        token_file: A file with a token for Ray's authentication; it is read for each call.
        within: Seconds that a call may take.
    """

    def __init__(self, address: str, token_file: Path | None, within: float) -> None:
        self.address = address
        self._token_file = token_file
        self._within = within
        self._threads = trio.CapacityLimiter(_AT_ONCE)

    async def submit(self, request: dict[str, Any]) -> None:
        """Submit a job.

        Raises:
            RayRefused: It was not accepted, or there is one of this name.
        """
        status, data = await self._call("POST", "", msgspec.json.encode(request), _MOST)
        if status != _OK:
            raise RayRefused(status, _last_line(data))

    async def look(self, name: str) -> RayJob | None:
        """The state of a job; None if Ray does not know it."""
        status, data = await self._call("GET", name, None, _MOST)
        if status == _NOT_FOUND and b"does not exist" in data:
            return None
        if status != _OK:
            raise LauncherUnavailable(f"{self.address} answers {status}: {_last_line(data)}")
        try:
            return msgspec.json.decode(data, type=RayJob)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise LauncherUnavailable(f"{self.address} gives no state of a job: {error}") from None

    async def stop(self, name: str) -> bool:
        """Request the end of a job; returns whether it was accepted."""
        status, _ = await self._call("POST", f"{name}/stop", b"", _MOST)
        return status == _OK

    async def logs(self, name: str, most: int) -> bytes | None:
        """The log of a job; None if Ray cannot read it, or it is larger than ``most`` bytes."""
        status, data = await self._call("GET", f"{name}/logs", None, most)
        try:
            text = msgspec.json.decode(data, type=_Logs).logs if status == _OK else None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return None if text is None else text.encode(errors="replace")

    async def _call(
        self, method: str, path: str, body: bytes | None, most: int
    ) -> tuple[int, bytes]:
        url = f"{self.address}{_JOBS}{path}"
        with trio.move_on_after(self._within):
            return await trio.to_thread.run_sync(
                self._send, method, url, body, most, abandon_on_cancel=True, limiter=self._threads
            )
        raise LauncherUnavailable(f"{self.address} did not answer within {self._within:g} s")

    def _send(self, method: str, url: str, body: bytes | None, most: int) -> tuple[int, bytes]:
        until = time.monotonic() + self._within
        headers = {"accept": "application/json", "content-type": "application/json"}
        try:
            if self._token_file is not None:
                token = read_regular(self._token_file, limit=_MOST_TOKEN).decode().strip()
                headers["authorization"] = f"Bearer {token}"
            request = urllib.request.Request(url, body, headers, method=method)
            try:
                with open_without_redirects(request, self._within) as response:
                    return response.status, _read(response, most, until)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in _AWAY:
                        raise OSError(f"it answers {error.code}") from None
                    return error.code, _read(error, _MOST, until)
        except (OSError, HTTPException, ValueError, UnusableFile) as error:
            reason = getattr(error, "reason", None) or error
            raise LauncherUnavailable(f"{self.address}: {reason}") from None


def _read(response: Any, most: int, until: float) -> bytes:
    found = bytearray()
    while part := response.read1(_PART):
        found += part
        if len(found) > most:
            raise OSError(f"it gives more than {most} bytes")
        if time.monotonic() > until:
            raise TimeoutError("it did not end its answer in time")
    return bytes(found)


def _last_line(data: bytes) -> str:
    """The last line of an answer: of a traceback, the error."""
    lines = data.decode(errors="replace").splitlines()
    found = (each for each in reversed(lines) if any(map(str.isalnum, each)))
    return next(found, "without a reason")[:_MOST_TEXT]
