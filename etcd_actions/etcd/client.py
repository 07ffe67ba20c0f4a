"""One client of a cluster, over any transport: failover, authentication, timeouts.

It uses one member at a time. A broken connection is *retired*: its streams fail, the next call goes
to the next member, and the last call on the old connection closes it. One call tries each member at
most once, and only while it is certain that nothing was written. The caller waits before it calls
again, by a back-off of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from etcd_actions._internal.containment import describe
from etcd_actions._internal.logger import get_logger
from etcd_actions.errors import (
    ConfigError,
    EtcdActionsError,
    LeaseNotFound,
    NotForWorkers,
    OutcomeUnknown,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from etcd_actions.etcd import permissions, rpc
from etcd_actions.etcd.api import (
    Alarm,
    Delete,
    DeleteResult,
    KeyRange,
    Lease,
    Member,
    Permission,
    Put,
    PutResult,
    RangeResult,
    Status,
    Txn,
    TxnResult,
    WatchCreate,
    WatchResponse,
)
from etcd_actions.etcd.auth import Authenticator
from etcd_actions.etcd.connection_settings import ConnectionSettings
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.etcd.rpc import Request, Result, Rpc
from etcd_actions.etcd.transport import Connection, TransportStream

_log = get_logger(__name__)


class _InUse:
    """A connection, its streams, and the number of its users: the last one closes it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.streams: set[TransportStream] = set()
        self.retired = False
        self._users = 0

    def __enter__(self) -> Connection:
        """Keep it open until the exit."""
        self._users += 1
        return self.connection

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        self._close_if_unused()

    def retire(self) -> None:
        """Fail the streams, and close the connection after its last use."""
        self.retired = True
        for stream in self.streams:
            stream.fail(
                Unavailable(f"watch at {self.connection.endpoint}: the connection was given up")
            )
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.retired and self._users == 0:
            try:
                self.connection.close()
            except Exception as error:
                # The last call has its answer: the failure concerns no caller.
                _log.warning("connection_not_closed", exc_info=error)


class EtcdClient:
    """Implements :class:`~etcd_actions.etcd.api.Etcd`, and the calls that operators need.

    :func:`~etcd_actions.etcd.open_connection` makes it. After :meth:`close` each method raises
    :class:`trio.ClosedResourceError`.

    Attributes:
        trouble: The start of the errors of unavailable calls, such as the loss of the quorum; empty
            for none. A monitor sets it.
    """

    def __init__(
        self, settings: ConnectionSettings, connect: Callable[[Endpoint], Connection]
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._next = 0
        self._current: _InUse | None = None
        self._closed = False
        self._failed = trio.Event()
        self._others: list[EtcdClient] = []
        self.trouble = ""
        self._authenticator = None if settings.user is None else Authenticator(settings.user)

    @property
    def settings(self) -> ConnectionSettings:
        """The settings of its connections."""
        return self._settings

    def another(self) -> EtcdClient:
        """A client of the same cluster with a connection of its own, which this one closes."""
        client = EtcdClient(self._settings, self._connect)
        self._others.append(client)
        if self._closed:
            client.close()
        return client

    async def wait_failure(self) -> None:
        """Wait until a call fails because etcd was unavailable, from now on."""
        self._failed = trio.Event()
        await self._failed.wait()

    async def range(
        self,
        keys: KeyRange,
        *,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
    ) -> RangeResult:
        """Read a range, linearizable."""
        request = rpc.RangeRequest(keys, revision, limit, keys_only, count_only)
        return await self._call(rpc.RANGE, request)

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> PutResult:
        """Write one key."""
        return await self._call(rpc.PUT, Put(key, value, lease))

    async def delete(self, keys: KeyRange) -> DeleteResult:
        """Delete a range."""
        return await self._call(rpc.DELETE, Delete(keys))

    async def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction."""
        return await self._call(rpc.TXN, txn)

    async def compact(self, revision: int, *, physical: bool = False) -> None:
        """Drop history below ``revision``."""
        await self._call(rpc.COMPACT, rpc.CompactRequest(revision, physical))

    async def lease_grant(self, ttl: int, *, lease_id: int = 0) -> Lease:
        """Grant a lease, with an id of the caller's unless that is 0."""
        return await self._call(rpc.LEASE_GRANT, rpc.GrantRequest(ttl, lease_id))

    async def lease_keep_alive(self, lease_id: int) -> Lease:
        """Renew a lease once."""
        lease = await self._call(rpc.LEASE_KEEP_ALIVE, lease_id)
        # etcd answers a renewal of an unknown lease with a TTL of 0 and no error.
        if lease.ttl <= 0:
            raise LeaseNotFound(f"lease {lease_id:x} has expired or never was")
        return lease

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease."""
        await self._call(rpc.LEASE_REVOKE, lease_id)

    async def status(self) -> Status:
        """Read the state of the member in use."""
        return await self._call(rpc.STATUS, None)

    async def alarms(self) -> tuple[Alarm, ...]:
        """The alarms of all members."""
        return await self._call(rpc.ALARMS, None)

    async def members(self) -> tuple[Member, ...]:
        """The members of the cluster."""
        return await self._call(rpc.MEMBERS, None)

    async def auth_enabled(self) -> bool:
        """Whether etcd requires a user.

        Raises:
            InvalidRequest: etcd is older than 3.5 and does not report it.
        """
        return await self._call(rpc.AUTH_STATUS, None)

    async def user_roles(self, name: str) -> tuple[str, ...]:
        """The roles of a user. Each user may read its own."""
        return await self._call(rpc.USER_ROLES, name)

    async def role_permissions(self, role: str) -> tuple[Permission, ...]:
        """The permissions of a role. Each user may read those of its own roles."""
        return await self._call(rpc.ROLE_PERMISSIONS, role)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[_Watch]:
        """Open a watch stream on the connection that the other calls use.

        If one of these calls finds the connection broken, the stream fails, too.
        """
        in_use = self._in_use()
        with in_use as connection:
            try:
                token = await self._token(connection, self._settings.request_timeout)
            except Unavailable:
                self._retire_if_broken(in_use)
                raise
            async with connection.watch(token=token) as stream:
                in_use.streams.add(stream)
                if in_use.retired:
                    stream.fail(Unavailable(f"watch at {connection.endpoint}: given up"))
                try:
                    yield _Watch(
                        stream,
                        self._who,
                        lambda: self._retire_if_broken(in_use),
                        lambda: self._reject(token),
                    )
                finally:
                    in_use.streams.discard(stream)

    async def _call(self, method: Rpc[Request, Result], request: Request) -> Result:
        give_up = trio.current_time() + self._settings.request_timeout
        tried = 0
        renewed = False
        while True:
            tried += 1
            in_use = self._in_use()
            with in_use as connection:
                try:
                    left = max(0.001, give_up - trio.current_time())
                    token = ""
                    if method.authenticated and self._authenticator is not None:
                        token = await self._token(connection, left)
                        left = max(0.001, give_up - trio.current_time())
                    try:
                        return await connection.call(method, request, token=token, within=left)
                    except Unauthenticated as error:
                        self._reject(token)
                        self._retire_if_broken(in_use)
                        if self._settings.token_file is not None:
                            raise Unauthenticated(f"{error}: {self._who}") from None
                        if renewed or self._authenticator is None:
                            raise
                        # etcd refused it before it was done, so it is sent again, once.
                        renewed = True
                        tried -= 1
                except PermissionDenied as error:
                    if self._settings.token_file is not None:
                        raise NotForWorkers(f"{error}: {self._who}") from None
                    needs = permissions.needed_for(method, request)
                    raise PermissionDenied(f"{error}: {self._who} needs {needs}") from None
                except EtcdActionsError as error:
                    if not isinstance(error, Unavailable):
                        self._retire_if_broken(in_use)
                        raise
                    self._failed.set()
                    self._retire_if_broken(in_use)
                    # A member that stays in use would get the same request again.
                    is_last = tried >= len(self._settings.endpoints)
                    is_last |= isinstance(error, OutcomeUnknown) or not in_use.retired
                    if is_last or trio.current_time() >= give_up:
                        if self.trouble:
                            raise type(error)(f"{self.trouble}; {error}") from error
                        raise
                except Exception as error:
                    # An exception of a library does not leave this package.
                    _log.error("etcd_call_failed", method=method.name, exc_info=error)
                    kind = OutcomeUnknown if method.writes else Unavailable
                    text = f"{method.name} at {connection.endpoint}: {describe(error)}"
                    raise kind(text) from error

    async def _token(self, connection: Connection, within: float) -> str:
        if self._authenticator is None:
            return ""

        async def authenticate(request: rpc.AuthenticateRequest, within: float) -> str:
            return await connection.call(rpc.AUTHENTICATE, request, token="", within=within)

        return await self._authenticator.token(authenticate, within)

    @property
    def _who(self) -> str:
        """The user that etcd checks for this client, as text."""
        if self._settings.token_file is not None:
            return f"the token in {self._settings.token_file}"
        if self._settings.user is None:
            return "the user of the client's certificate"
        return f"user {self._settings.user.name!r}"

    def _reject(self, token: str) -> None:
        if self._authenticator is not None:
            self._authenticator.reject(token)

    def _in_use(self) -> _InUse:
        if self._closed:
            raise trio.ClosedResourceError("the connection to etcd is closed")
        if self._current is None:
            endpoints = self._settings.endpoints
            endpoint = endpoints[self._next % len(endpoints)]
            try:
                self._current = _InUse(self._connect(endpoint))
            except (ConfigError, OSError) as error:
                # The files were good at the start: perhaps they are being replaced. Or the process
                # has no more descriptors.
                raise Unavailable(f"connecting to {endpoint}: {error}") from None
        return self._current

    def _retire_if_broken(self, in_use: _InUse) -> None:
        """Use the next member from the next call on, if the connection is broken."""
        if in_use.connection.broken:
            self._retire(in_use)

    def _retire(self, in_use: _InUse) -> None:
        if in_use.retired:
            return
        in_use.retire()
        if self._current is in_use:
            self._current = None
            self._next += 1

    def close(self) -> None:
        """Close the connection after its last use; calls that start afterwards raise."""
        self._closed = True
        for other in self._others:
            other.close()
        if self._current is not None:
            self._retire(self._current)


class _Watch:
    """A watch stream that reports a broken connection and a refused token to the client."""

    def __init__(
        self,
        stream: TransportStream,
        who: str,
        on_failure: Callable[[], None],
        on_bad_token: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._who = who
        self._ranges: dict[int, KeyRange] = {}
        self._on_failure = on_failure
        self._on_bad_token = on_bad_token

    def create(self, request: WatchCreate) -> None:
        """Request a watcher."""
        self._ranges[request.watch_id] = request.keys
        self._stream.create(request)

    def cancel(self, watch_id: int) -> None:
        """End a watcher."""
        self._stream.cancel(watch_id)

    def request_progress(self) -> None:
        """Request a progress notification."""
        self._stream.request_progress()

    async def receive(self) -> Sequence[WatchResponse]:
        """All messages that have arrived, at least one; see the protocol."""
        try:
            responses = await self._stream.receive()
        except Unauthenticated:
            self._on_bad_token()
            raise
        except Unavailable:
            self._on_failure()
            raise
        # etcd answers a refused token with `created` and `canceled` on a healthy stream.
        return [self._refused(each) if each.canceled else each for each in responses]

    def _refused(self, response: WatchResponse) -> WatchResponse:
        """Drop a refused token; add the missing permission to the reason of a cancellation."""
        kind = error_kind(response.cancel_reason)
        if kind is Unauthenticated:
            self._on_bad_token()
        if kind is not PermissionDenied:
            return response
        # Most versions of etcd refuse without the watcher's id.
        refused = self._ranges.get(response.watch_id)
        ranges = self._ranges.values() if refused is None else [refused]
        needs = permissions.needed_to_watch(ranges)
        return msgspec.structs.replace(
            response, cancel_reason=f"{response.cancel_reason}: {self._who} needs {needs}"
        )
