"""Etcd's gRPC methods for workers, each with its check.

A worker needs reads, transactions, leases, watches, and the version of etcd. Each request is
checked by :class:`~etcd_actions.server.workers.rights.WorkerRights`. It is sent over a connection
of its own, so that neither its answers nor its streams delay those of the service.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Final

import trio
from connectrpc.code import Code

from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import (
    EtcdError,
    InvalidRequest,
    LeaseNotFound,
    NotForWorkers,
    Unavailable,
)
from etcd_actions.etcd.api import Lease, WatchCreate, WatchStream
from etcd_actions.etcd.client import EtcdClient
from etcd_actions.server.application import Calls
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.streams import CONNECTION, Stream
from etcd_actions.server.workers import wire
from etcd_actions.server.workers.grpc_exchange import Response, request_messages
from etcd_actions.server.workers.leases import (
    MOST_LEASES,
    LeaseKind,
    LiveLeases,
    kind_of_lease,
    new_lease_id,
)
from etcd_actions.server.workers.rights import WorkerRights, check_lease
from etcd_actions.web import ClientDisconnected, Receive

LARGEST_ANSWER: Final = 16 * 1024 * 1024
"""The most bytes of an answer of etcd; a larger page of a list is read again, with fewer keys."""
STREAM_WINDOW: Final = 1024 * 1024
"""The most bytes of a watch stream that wait for a worker that does not read."""
MOST_CALLS: Final = 16
"""The most calls of one name at a time; others wait."""
MOST_LARGE_READS: Final = 4
"""The most calls of one name at a time that may read more than 100 keys."""
MOST_WATCHERS: Final = 16
"""The most watchers of one stream."""
LONGEST_STREAM: Final = 3600.0
"""Seconds after which a stream ends: the worker opens another, for which its token is checked."""
WITHIN: Final = 30.0
"""Seconds for a call with its answer, and for a worker to read some messages of a stream."""

# The most bytes of a message that a worker sends on a watch stream.
_LARGEST_WATCH_REQUEST: Final = 64 * 1024
# The most keys of one read: etcd collects them before it is known how large they are.
_MOST_KEYS: Final = 2_000
# The most keys of a read that waits for no other.
_FEW_KEYS: Final = 100
# Seconds: the longest time to live that etcd accepts.
_LONGEST_LEASE: Final = 9_000_000_000
# The beginning of the message about an answer above LARGEST_ANSWER, see etcd_actions.http2.
_TOO_LARGE: Final = "an answer of more than"


class NamedWorkers:
    """The calls in progress, the leases and the streams of all workers with one name.

    Attributes:
        name: The name in their tokens.
        client: The key by which the rate of their requests is counted.
        calls: Acquired by each call in progress.
        leases: Their live leases.
        streams: Their open watch streams, the oldest first.
    """

    def __init__(self, name: str, client: str) -> None:
        self.name = name
        self.client = client
        self.calls = trio.Semaphore(MOST_CALLS)
        self._large_reads = trio.Semaphore(MOST_LARGE_READS)
        self.leases = LiveLeases()
        self.streams: dict[Stream, None] = {}

    def owned(self, lease: int) -> LeaseKind | None:
        """The kind of a lease of this name; None for one of another client."""
        return kind_of_lease(self.name, lease)

    def reads_of(self, keys: int) -> AbstractAsyncContextManager[object]:
        """The context of a request that may read so many keys: large ones wait for each other."""
        return self._large_reads if keys > _FEW_KEYS else nullcontext()


class WorkerEtcd:
    """Etcd's methods for workers: each request is checked, and sent to etcd.

    Args:
        etcd: A connection with the limits :data:`LARGEST_ANSWER` and :data:`STREAM_WINDOW`.
        rights: Checks each request.
    """

    def __init__(self, etcd: EtcdClient, rights: WorkerRights) -> None:
        self._etcd = etcd
        self._rights = rights
        self._unary: dict[str, Callable[[NamedWorkers, bytes], Awaitable[bytes]]] = {
            "KV/Range": self._range,
            "KV/Txn": self._txn,
            "Lease/LeaseGrant": self._grant,
            "Lease/LeaseKeepAlive": self._keep_alive,
            "Lease/LeaseRevoke": self._revoke,
            "Maintenance/Status": self._status,
        }

    async def unary(self, method: str, workers: NamedWorkers, body: bytes) -> bytes:
        """Return the answer to a request, both as the bytes of etcd's message.

        Raises:
            NotForWorkers: Workers have no such method, or the request is not allowed.
            Refusal: The name has too many leases, or a transaction reads too much.
            EtcdError: etcd refused the request.
        """
        function = self._unary.get(method)
        if function is None:
            raise NotForWorkers(f"permission denied: workers have no {method}")
        return await function(workers, body)

    async def _range(self, workers: NamedWorkers, body: bytes) -> bytes:
        request = wire.range_request(body)
        self._rights.check_read(request.keys)
        limit = min(request.limit or _MOST_KEYS, _MOST_KEYS)
        while True:
            try:
                async with workers.reads_of(limit):
                    found = await self._etcd.range(
                        request.keys,
                        revision=request.revision,
                        limit=0 if request.count_only else limit,
                        keys_only=request.keys_only,
                        count_only=request.count_only,
                    )
            except Unavailable as error:
                if _TOO_LARGE not in str(error) or limit == 1:
                    raise
                # The caller reads pages, and accepts a shorter one.
                limit //= 2
            else:
                return wire.range_response(found).SerializeToString()

    async def _txn(self, workers: NamedWorkers, body: bytes) -> bytes:
        request = wire.txn_request(body)
        reads = self._rights.check_txn(request, workers.owned)
        async with workers.reads_of(reads):
            result = await self._etcd.txn(request)
        if wire.is_cut(result):
            # It was done, so this must not be a text of etcd's. A read outside of a transaction
            # gets all keys, in pages.
            raise Refusal(
                Code.RESOURCE_EXHAUSTED,
                f"a transaction reads at most {wire.MOST_IN_RANGES} keys of ranges",
            )
        return wire.txn_response(result).SerializeToString()

    async def _grant(self, workers: NamedWorkers, body: bytes) -> bytes:
        ttl = wire.grant_request(body)
        if not 0 < ttl <= _LONGEST_LEASE:
            raise InvalidRequest(f"TTL: {ttl} s: give from 1 to {_LONGEST_LEASE} s")
        if not workers.leases.has_space(trio.current_time()):
            raise busy(f"{workers.name} has {MOST_LEASES} leases, the most allowed")
        lease_id = new_lease_id(workers.name, LeaseKind.of(ttl))
        lease = await self._etcd.lease_grant(ttl, lease_id=lease_id)
        workers.leases.renewed(lease.id, trio.current_time() + lease.ttl)
        return wire.grant_response(lease).SerializeToString()

    async def _keep_alive(self, workers: NamedWorkers, body: bytes) -> bytes:
        lease_id = wire.lease_request(body)
        check_lease(lease_id, workers.owned)
        try:
            lease = await self._etcd.lease_keep_alive(lease_id)
        except LeaseNotFound:
            workers.leases.ended(lease_id)
            lease = Lease(lease_id, 0)
        else:
            workers.leases.renewed(lease_id, trio.current_time() + lease.ttl)
        return wire.keep_alive_response(lease).SerializeToString()

    async def _revoke(self, workers: NamedWorkers, body: bytes) -> bytes:
        lease_id = wire.lease_request(body)
        check_lease(lease_id, workers.owned)
        await self._etcd.lease_revoke(lease_id)
        workers.leases.ended(lease_id)
        return b""

    async def _status(self, _: NamedWorkers, __: bytes) -> bytes:
        return wire.status_response(await self._etcd.status()).SerializeToString()

    async def watch(
        self,
        workers: NamedWorkers,
        stream: Stream,
        receive: Receive,
        response: Response,
        calls: Calls,
    ) -> None:
        """Serve one watch stream, until the worker, this service or etcd ends it.

        Raises:
            Refusal: This service ends it.
            EtcdError: A request is not allowed, or etcd ended it.
            ClientDisconnected: The worker reads too slowly.
        """
        failure: list[Exception] = []

        async def read_requests(watch: WatchStream) -> None:
            live: set[int] = set()
            try:
                async with aclosing(request_messages(receive, _LARGEST_WATCH_REQUEST)) as requests:
                    async for body in requests:
                        calls.take(workers.client)
                        self._apply(watch, live, body)
            except (Refusal, EtcdError) as error:
                failure.append(error)
                stream.end()

        async with self._etcd.watch() as watch, owned_tasks("a worker's stream") as nursery:
            nursery.start_soon(read_requests, watch)
            await _send_responses(watch, stream, response)
            nursery.cancel_scope.cancel("the stream has ended")
        if failure:
            raise failure[0]
        if CONNECTION.get().is_lost:
            return
        raise Refusal(Code.UNAVAILABLE, "the stream ends here: open another one")

    def _apply(self, watch: WatchStream, live: set[int], body: bytes) -> None:
        """Do one request on a watch stream; ``live`` has the ids of its watchers."""
        request = wire.watch_request(body)
        if isinstance(request, WatchCreate):
            self._rights.check_read(request.keys)
            live.add(request.watch_id)
            if len(live) > MOST_WATCHERS:
                raise Refusal(
                    Code.RESOURCE_EXHAUSTED, f"a stream has at most {MOST_WATCHERS} watchers"
                )
            watch.create(request)
        elif request is None:
            watch.request_progress()
        else:
            live.discard(request)
            watch.cancel(request)


async def _send_responses(watch: WatchStream, stream: Stream, response: Response) -> None:
    """Send etcd's responses to a worker, for :data:`LONGEST_STREAM` at most.

    Raises:
        ClientDisconnected: The worker has not read some of them within :data:`WITHIN`.
    """
    until = trio.current_time() + LONGEST_STREAM
    while (left := until - trio.current_time()) > 0:
        try:
            received = await stream.receive(watch, left)
        except trio.EndOfChannel:
            return
        if received is None:
            return
        with trio.move_on_after(WITHIN) as scope:
            await response.send_messages(map(wire.watch_response, received))
        if scope.cancelled_caught:
            raise ClientDisconnected(f"it has not read some messages within {WITHIN:g} s")


def busy(reason: str) -> Refusal:
    """The refusal of a call that was not done, which a worker repeats after a back-off."""
    # By this text of etcd's a client knows that nothing was done.
    return Refusal(Code.RESOURCE_EXHAUSTED, f"etcdserver: too many requests: {reason}")
