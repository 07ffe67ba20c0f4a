"""The user's token: requested once, by one task for all, and again when etcd refuses it.

etcd's tokens end by themselves (five minutes unused), with the member that gave them, and,
where they are signed, whenever the permissions of any user change. So none is renewed by the
clock; one that etcd refuses is dropped, and the next call requests another. A refused
password is not offered again before a delay that grows: each check is made costly on
purpose, and would keep etcd busy. Another password is offered at once.
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
"""Requests a token from etcd, in at most so many seconds."""


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
        """The token to use; empty if etcd's authentication is off.

        Args:
            authenticate: Requests one from etcd.
            within: Seconds, for the request of another task and for its own.

        Raises:
            Unauthenticated: etcd refuses the user or the password, or has refused it a
                short while ago.
            Unavailable: etcd did not answer, or the file with the password cannot be read.
        """
        if self._token is not None:
            return self._token
        give_up = trio.current_time() + within
        # The wait for others only: a call of one's own that is cancelled finds no broken
        # connection, one that times out does.
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
        """Drop a token that etcd refuses, unless there is a newer one already."""
        if self._token == token:
            self._token = None

    async def _request(self, authenticate: Authenticate, within: float) -> str:
        try:
            request = AuthenticateRequest(self._user.name, read_password(self._user))
        except ConfigError as error:
            # It was good at the start; it is being replaced, perhaps.
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
    """The password, from its file where there is one.

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
