"""The user's token: one task requests it for all, and again after etcd refused it.

A token expires after five minutes without use, at the end of the member that issued it, and, if it
is signed, whenever the permissions of any user change. So no token is renewed by time. A token that
etcd refuses is dropped, and the next call requests another one. A refused password is sent again
after a delay that grows, because each check costs etcd much CPU time. Another password is sent at
once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions.errors import ConfigError, EtcdError, InvalidRequest, Unauthenticated, Unavailable
from etcd_actions.etcd.connection_settings import User
from etcd_actions.etcd.password_file import read_password_file
from etcd_actions.etcd.rpc import AuthenticateRequest

_BACKOFF = Backoff(initial=1.0, cap=60.0)
_NOT_ENABLED = "authentication is not enabled"

Authenticate: TypeAlias = Callable[[AuthenticateRequest, float], Awaitable[str]]
"""Requests a token from etcd; the number is the limit in seconds."""


class Authenticator:
    """Keeps the token of one user."""

    def __init__(self, user: User, *, backoff: Backoff = _BACKOFF) -> None:
        self._user = user
        self._backoff = backoff
        self._token: str | None = None
        self._requesting = trio.Lock()
        self._refused: AuthenticateRequest | None = None
        self._refusal = ""
        self._refusals = 0
        self._not_before = 0.0

    async def token(self, authenticate: Authenticate, within: float) -> str:
        """Return the token; empty if etcd's authentication is off.

        Args:
            authenticate: Requests a token from etcd.
            within: Seconds that this may take, also while another task requests the token.

        Raises:
            Unauthenticated: etcd refuses the user or the password; the refusal may be some seconds
                old.
            Unavailable: etcd did not answer, or the file with the password cannot be read.
        """
        if self._token is not None:
            return self._token
        give_up = trio.current_time() + within
        # This limits the wait for other tasks only. A request that times out by itself detects a
        # broken connection; a cancelled one does not.
        with trio.move_on_after(within) as waiting:
            await self._requesting.acquire()
        if waiting.cancelled_caught:
            raise Unavailable("requesting a token: an earlier request got no answer in time")
        try:
            if self._token is None:
                left = max(0.001, give_up - trio.current_time())
                self._token = await self._request(authenticate, left)
            return self._token
        finally:
            self._requesting.release()

    def reject(self, token: str) -> None:
        """Drop a token that etcd refused, unless there is a newer one."""
        if self._token == token:
            self._token = None

    async def _request(self, authenticate: Authenticate, within: float) -> str:
        try:
            request = AuthenticateRequest(self._user.name, read_password(self._user))
        except ConfigError as error:
            # The file was good at the start: perhaps it is being replaced.
            raise Unavailable(str(error)) from None
        if request != self._refused:
            self._refusals = 0
        elif trio.current_time() < self._not_before:
            raise Unauthenticated(self._refusal)
        try:
            token = await authenticate(request, within)
        except Unavailable:
            raise
        except EtcdError as error:
            if isinstance(error, InvalidRequest) and _NOT_ENABLED in str(error):
                return ""
            self._refused = request
            self._refusal = f"{error} (user {self._user.name!r})"
            self._refusals += 1
            self._not_before = trio.current_time() + self._backoff.delay(self._refusals)
            raise Unauthenticated(self._refusal) from None
        self._refused, self._refusals = None, 0
        return token


def read_password(user: User) -> str:
    """The password, or the content of its file.

    Raises:
        ConfigError: The file cannot be read; the message names it.
    """
    if user.password is not None:
        return user.password
    assert user.password_file is not None
    try:
        return read_password_file(user.password_file)
    except ConfigError as error:
        raise ConfigError(f"password file {error}") from None
