"""The user's token: asked for once, by one task for all, and again when etcd refuses it.

etcd's tokens end by themselves (five minutes unused), with the member that gave them, and,
where they are signed, whenever anybody's permissions change. So none is renewed by the
clock; one that etcd refuses is dropped, and the next call asks for another. A refused
password is not offered again before a delay that grows: each check is made costly on
purpose, and would keep etcd busy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from etcd_actions.backoff import Backoff
from etcd_actions.errors import ConfigError, EtcdError, InvalidRequest, Unauthenticated, Unavailable
from etcd_actions.etcd.connection import User
from etcd_actions.etcd.rpc import AuthenticateRequest

_BACKOFF = Backoff(initial=1.0, cap=60.0)
_NOT_ENABLED = "authentication is not enabled"


class Authenticator:
    """Keeps the token of one user."""

    def __init__(self, user: User, *, backoff: Backoff = _BACKOFF) -> None:
        self._user = user
        self._backoff = backoff
        self._token: str | None = None
        self._asking = trio.Lock()
        self._refusal: EtcdError | None = None
        self._refusals = 0
        self._not_before = 0.0

    async def token(self, authenticate: Callable[[AuthenticateRequest], Awaitable[str]]) -> str:
        """The token to use; empty where etcd's authentication is off.

        Args:
            authenticate: Asks etcd for one.

        Raises:
            Unauthenticated: etcd refuses the user or the password, or has refused it a
                short while ago; or the file with the password cannot be read.
            Unavailable: etcd could not be asked.
        """
        if self._token is not None:
            return self._token
        async with self._asking:
            if self._token is None:
                self._token = await self._ask(authenticate)
            return self._token

    def reject(self, token: str) -> None:
        """Drop a token that etcd refuses, unless there is a newer one already."""
        if self._token == token:
            self._token = None

    async def _ask(self, authenticate: Callable[[AuthenticateRequest], Awaitable[str]]) -> str:
        if self._refusal is not None and trio.current_time() < self._not_before:
            raise Unauthenticated(str(self._refusal)) from None
        try:
            request = AuthenticateRequest(self._user.name, read_password(self._user))
        except ConfigError as error:
            # It was good at the start; it is being replaced, perhaps.
            raise Unauthenticated(str(error)) from None
        try:
            token = await authenticate(request)
        except Unavailable:
            raise
        except EtcdError as error:
            if isinstance(error, InvalidRequest) and _NOT_ENABLED in str(error):
                return ""
            self._refusals += 1
            self._refusal = error
            self._not_before = trio.current_time() + self._backoff.delay(self._refusals)
            raise Unauthenticated(f"{error} (user {self._user.name!r})") from None
        self._refusal, self._refusals = None, 0
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
        text = user.password_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"password file {user.password_file}: {reason}") from None
    return text.removesuffix("\n").removesuffix("\r")
