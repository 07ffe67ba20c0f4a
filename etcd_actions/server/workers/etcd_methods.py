"""Etcd's gRPC methods for workers, each with its check.

A worker needs reads, transactions, leases, watches, and the version of etcd. Each request is
checked by :class:`~etcd_actions.server.workers.rights.WorkerRights`. It is sent over a connection
of its name, so that neither its answers nor its streams delay those of the service and of others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
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
from etcd_actions.server.tokens import Identity
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
MOST_LARGE_READS: Final = 2
"""The most reads of one name at a time that may return more than 16 keys."""
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
# The most keys of a call that waits for no large one. A value may have 1.5 MiB, and etcd and the
# service hold the answers to all calls.
_FEW_KEYS: Final = 16
# Seconds: the longest time to live that etcd accepts.
_LONGEST_LEASE: Final = 9_000_000_000
# The beginning of the message about an answer above LARGEST_ANSWER, see etcd_actions.http2.
_TOO_LARGE: Final = "an answer of more than"


class NamedWorkers:
    """The calls in progress, the leases and the streams of all workers with one name.

    Attributes:
        name: The name in their tokens.
        client: The key by which the rate of their requests is counted.
        etcd: Their connection: a read that etcd does not answer in time ends it with its streams.
        calls: Acquired by each call in progress, except for large ones.
        large_reads: Acquired by each large read.
        large_txns: Acquired by each transaction that reads much.
        leases: Their live leases.
        streams: Their open watch streams, the oldest first.
    """

    def __init__(self, name: str, client: str, etcd: EtcdClient) -> None:
        self.name = name
        self.client = client
        self.etcd = etcd
        self.calls = trio.Semaphore(MOST_CALLS)
        self.large_reads = trio.Semaphore(MOST_LARGE_READS)
        self.large_txns = trio.Semaphore(1)
        self.leases = LiveLeases()
        self.streams: dict[Stream, None] = {}

    def owned(self, lease: int) -> LeaseKind | None:
        """The kind of a lease of this name; None for one of another client."""
        return kind_of_lease(self.name, lease)


class Turn:
    """The place of one call among those of its name, until its answer is sent."""

    def __init__(self, workers: NamedWorkers) -> None:
        self.workers = workers
        self._held: trio.Semaphore | None = None

    async def __aenter__(self) -> Turn:
        await self._take(self.workers.calls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    async def reads(self, keys: int, large: trio.Semaphore) -> None:
        """Note that the call may read so many keys: a large one waits for others.

        While it waits it delays no small one, such as the renewal of a lease.

        Args:
            keys: The most keys.
            large: Acquired by large calls of this kind.

        Raises:
            Refusal: Too many wait.
        """
        if keys <= _FEW_KEYS:
            return
        if large.statistics().tasks_waiting >= MOST_CALLS:
            raise busy(f"{MOST_CALLS} large reads of {self.workers.name} wait")
        self._leave()
        await self._take(large)

    async def _take(self, semaphore: trio.Semaphore) -> None:
        await semaphore.acquire()
        self._held = semaphore

    def _leave(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()


class WorkerEtcd:
    """Etcd's methods for workers: each request is checked, and sent to etcd.

    Args:
        etcd: A connection with the limits :data:`LARGEST_ANSWER` and :data:`STREAM_WINDOW`; each
            name gets another one like it.
        rights: Checks each request.
    """

    def __init__(self, etcd: EtcdClient, rights: WorkerRights) -> None:
        self._etcd = etcd
        self._rights = rights
        self._unary: dict[str, Callable[[Turn, bytes], Awaitable[bytes]]] = {
            "KV/Range": self._range,
            "KV/Txn": self._txn,
            "Lease/LeaseGrant": self._grant,
            "Lease/LeaseKeepAlive": self._keep_alive,
            "Lease/LeaseRevoke": self._revoke,
            "Maintenance/Status": self._status,
        }

    def named(self, identity: Identity) -> NamedWorkers:
        """The workers with the name of a token, before their first call."""
        return NamedWorkers(identity.subject, identity.client, self._etcd.another())

    async def unary(self, method: str, turn: Turn, body: bytes) -> bytes:
        """Return the answer to a request, both as the bytes of etcd's message.

        Raises:
            NotForWorkers: Workers have no such method, or the request is not allowed.
            Refusal: The name has too many leases, or a transaction reads too much.
            EtcdError: etcd refused the request.
        """
        function = self._unary.get(method)
        if function is None:
            raise NotForWorkers(f"permission denied: workers have no {method}")
        return await function(turn, body)

    async def _range(self, turn: Turn, body: bytes) -> bytes:
        request = wire.range_request(body)
        self._rights.check_read(request.keys)
        limit = 1 if request.keys.is_one_key else min(request.limit or _MOST_KEYS, _MOST_KEYS)
        await turn.reads(limit, turn.workers.large_reads)
        while True:
            try:
                found = await turn.workers.etcd.range(
                    request.keys,
                    revision=request.revision,
                    limit=0 if request.count_only or request.keys.is_one_key else limit,
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

    async def _txn(self, turn: Turn, body: bytes) -> bytes:
        request, workers = wire.txn_request(body), turn.workers
        await turn.reads(self._rights.check_txn(request, workers.owned), workers.large_txns)
        result = await workers.etcd.txn(request)
        if wire.is_cut(result):
            # It was done, so this must not be a text of etcd's. A read outside of a transaction
            # gets all keys, in pages.
            raise Refusal(
                Code.RESOURCE_EXHAUSTED,
                f"a transaction reads at most {wire.MOST_IN_RANGES} keys of ranges",
            )
        return wire.txn_response(result).SerializeToString()

    async def _grant(self, turn: Turn, body: bytes) -> bytes:
        ttl, workers = wire.grant_request(body), turn.workers
        if not 0 < ttl <= _LONGEST_LEASE:
            raise InvalidRequest(f"TTL: {ttl} s: give from 1 to {_LONGEST_LEASE} s")
        if not workers.leases.has_space(trio.current_time()):
            raise busy(f"{workers.name} has {MOST_LEASES} leases, the most allowed")
        lease_id = new_lease_id(workers.name, LeaseKind.of(ttl))
        lease = await workers.etcd.lease_grant(ttl, lease_id=lease_id)
        workers.leases.renewed(lease.id, trio.current_time() + lease.ttl)
        return wire.grant_response(lease).SerializeToString()

    async def _keep_alive(self, turn: Turn, body: bytes) -> bytes:
        lease_id, workers = wire.lease_request(body), turn.workers
        check_lease(lease_id, workers.owned)
        try:
            lease = await workers.etcd.lease_keep_alive(lease_id)
        except LeaseNotFound:
            workers.leases.ended(lease_id)
            lease = Lease(lease_id, 0)
        else:
            workers.leases.renewed(lease_id, trio.current_time() + lease.ttl)
        return wire.keep_alive_response(lease).SerializeToString()

    async def _revoke(self, turn: Turn, body: bytes) -> bytes:
        lease_id, workers = wire.lease_request(body), turn.workers
        check_lease(lease_id, workers.owned)
        await workers.etcd.lease_revoke(lease_id)
        workers.leases.ended(lease_id)
        return b""

    async def _status(self, turn: Turn, _: bytes) -> bytes:
        return wire.status_response(await turn.workers.etcd.status()).SerializeToString()

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

        async with workers.etcd.watch() as watch, owned_tasks("a worker's stream") as nursery:
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
