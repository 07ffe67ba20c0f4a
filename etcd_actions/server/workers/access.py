"""The restricted etcd that the service offers to workers, as etcd's own gRPC methods.

A worker needs reads, transactions, leases, watches, and the version of etcd. Each request is
checked by :class:`~etcd_actions.server.workers.rights.WorkerRights`, and sent over a connection of
its name, so that neither its answers nor its streams delay those of the service and of others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Final

import structlog
import trio
from connectrpc.code import Code

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import (
    Compacted,
    EtcdActionsError,
    EtcdError,
    FutureRevision,
    InvalidRequest,
    LeaseNotFound,
    NotForWorkers,
    PermissionDenied,
    RequestTooLarge,
    Unauthenticated,
    Unavailable,
)
from etcd_actions.etcd.api import KeyRange, Lease, WatchCreate, WatchStream
from etcd_actions.etcd.client import EtcdClient
from etcd_actions.server.application import Calls
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.methods import guarded
from etcd_actions.server.streams import CONNECTION, Stream, Streams
from etcd_actions.server.tokens import Identity
from etcd_actions.server.workers import wire
from etcd_actions.server.workers.grpc_exchange import Response, messages
from etcd_actions.server.workers.leases import (
    MOST_LEASES,
    LeaseKind,
    LiveLeases,
    kind_of_lease,
    new_lease_id,
)
from etcd_actions.server.workers.rights import WorkerRights, check_lease
from etcd_actions.web import (
    ClientDisconnected,
    Message,
    Receive,
    Send,
    respond,
    take_endless_body,
)

LARGEST_ANSWER: Final = 16 * 1024 * 1024
"""Bytes of an answer of etcd: a list of larger pages gets smaller ones. The service needs several
times as much while it translates one."""
STREAM_WINDOW: Final = 1024 * 1024
"""Bytes of a watch stream that wait for a worker that does not read."""
MOST_CALLS: Final = 16
"""The most calls of one name at a time; others wait."""
MOST_LARGE_READS: Final = 2
"""The most reads of one name, in addition, that may return more than some keys."""
MOST_WAITING: Final = 1_000
"""The most calls of one name that wait."""
MOST_STREAMS: Final = 64
"""The most watch streams of one name."""
MOST_WATCHERS: Final = 16
"""The most watchers of one stream."""
LONGEST_STREAM: Final = 3600.0
"""Seconds: then a worker opens another stream, by which its token is checked again."""

_PATH: Final = "/etcdserverpb."
_LARGEST_REQUEST: Final = 2 * 1024 * 1024
"""Bytes of a request; of a message on a watch stream, the next one."""
_LARGEST_WATCH: Final = 64 * 1024
_MOST_KEYS: Final = 2_000
"""The most keys of one read: etcd collects them before it is known how large they are."""
_FEW_KEYS: Final = 16
"""A value may have 1.5 MiB, and etcd collects them for all calls."""
_LONGEST_LEASE: Final = 9_000_000_000
"""Seconds: the longest time to live that etcd accepts."""
_WITHIN: Final = 30.0
"""Seconds for a call with its answer, and for a worker to read some messages of a stream."""
_METHODS: Final = frozenset(
    {
        "KV/Range",
        "KV/Txn",
        "Lease/LeaseGrant",
        "Lease/LeaseKeepAlive",
        "Lease/LeaseRevoke",
        "Maintenance/Status",
        "Watch/Watch",
    }
)
_TOO_LARGE: Final = "an answer of more than"
_CODES: Final[tuple[tuple[type[EtcdError], Code], ...]] = (
    (NotForWorkers, Code.PERMISSION_DENIED),
    (LeaseNotFound, Code.NOT_FOUND),
    (Compacted, Code.OUT_OF_RANGE),
    (FutureRevision, Code.OUT_OF_RANGE),
    (RequestTooLarge, Code.INVALID_ARGUMENT),
    (InvalidRequest, Code.INVALID_ARGUMENT),
)

_log = structlog.get_logger(__name__)


class _Worker:
    """The calls in progress, the leases and the streams of all workers with one name.

    Their connection to etcd is their own: a call that etcd does not answer in time ends it with all
    its streams.
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
        """The kind of a lease of theirs; None for one of another client."""
        return kind_of_lease(self.name, lease)


class _Turn:
    """The place of one call among those of its worker, until its answer is sent."""

    def __init__(self, worker: _Worker) -> None:
        self.worker = worker
        self._held: trio.Semaphore | None = None

    async def __aenter__(self) -> _Turn:
        await self._take(self.worker.calls)
        return self

    async def reads(self, keys: int, large: trio.Semaphore) -> None:
        """Note that the call may read so many keys; a large one waits for other large ones.

        Meanwhile it is in the way of no other call, such as the renewal of a lease.

        Raises:
            Refusal: Too many wait.
        """
        if keys <= _FEW_KEYS or self._held is large:
            return
        if large.statistics().tasks_waiting >= MOST_CALLS:
            raise _busy(f"{MOST_CALLS} large reads of {self.worker.name} wait")
        self._leave()
        await self._take(large)

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    async def _take(self, semaphore: trio.Semaphore) -> None:
        await semaphore.acquire()
        self._held = semaphore

    def _leave(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()


class WorkerEtcd:
    """Implements the methods on an etcd.

    Args:
        etcd: A connection with the limits above; each name gets another one like it.
        rights: Checks each request.
    """

    def __init__(self, etcd: EtcdClient, rights: WorkerRights) -> None:
        self._etcd = etcd
        self._rights = rights
        self._workers: dict[str, _Worker] = {}
        self._unary: dict[str, Callable[[_Turn, bytes], Awaitable[bytes]]] = {
            "KV/Range": self._range,
            "KV/Txn": self._txn,
            "Lease/LeaseGrant": self._grant,
            "Lease/LeaseKeepAlive": self._keep_alive,
            "Lease/LeaseRevoke": self._revoke,
            "Maintenance/Status": self._status,
        }

    def worker(self, identity: Identity) -> _Worker:
        """The workers with the name of a token."""
        name = identity.subject
        if name not in self._workers:
            self._workers[name] = _Worker(name, identity.client, self._etcd.another())
        return self._workers[name]

    async def unary(self, method: str, turn: _Turn, body: bytes) -> bytes:
        """The answer to a request.

        Raises:
            NotForWorkers: There is no such method for workers, or it is not allowed.
            EtcdError: etcd refused it.
        """
        function = self._unary.get(method)
        if function is None:
            raise NotForWorkers(f"permission denied: workers have no {method}")
        return await function(turn, body)

    async def _range(self, turn: _Turn, body: bytes) -> bytes:
        request = wire.range_request(body)
        self._rights.check_read(request.keys)
        is_one = request.keys == KeyRange.of_key(request.keys.start)
        limit = 1 if is_one else min(request.limit or _MOST_KEYS, _MOST_KEYS)
        await turn.reads(limit, turn.worker.large_reads)
        while True:
            try:
                found = await turn.worker.etcd.range(
                    request.keys,
                    revision=request.revision,
                    limit=0 if request.count_only or is_one else limit,
                    keys_only=request.keys_only,
                    count_only=request.count_only,
                )
            except Unavailable as error:
                if _TOO_LARGE not in str(error) or limit == 1:
                    raise
                # A reader of pages accepts a shorter one.
                limit //= 2
            else:
                return wire.range_response(found).SerializeToString()

    async def _txn(self, turn: _Turn, body: bytes) -> bytes:
        request = wire.txn_request(body)
        reads = self._rights.check_txn(request, turn.worker.owned)
        await turn.reads(reads, turn.worker.large_txns)
        result = await turn.worker.etcd.txn(request)
        if wire.is_cut(result):
            # It was done, so this must not be a text of etcd's. One that reads alone gets more.
            raise Refusal(
                Code.RESOURCE_EXHAUSTED,
                f"a transaction reads at most {wire.MOST_IN_RANGES} keys of ranges",
            )
        return wire.txn_response(result).SerializeToString()

    async def _grant(self, turn: _Turn, body: bytes) -> bytes:
        ttl, worker = wire.grant_request(body), turn.worker
        if not 0 < ttl <= _LONGEST_LEASE:
            raise InvalidRequest(f"a lease of {ttl} seconds")
        if not worker.leases.has_space(trio.current_time()):
            raise _busy(f"{worker.name} has {MOST_LEASES} leases, the most allowed")
        lease_id = new_lease_id(worker.name, LeaseKind.of(ttl))
        lease = await worker.etcd.lease_grant(ttl, lease_id=lease_id)
        worker.leases.lives(lease.id, trio.current_time() + lease.ttl)
        return wire.grant_response(lease).SerializeToString()

    async def _keep_alive(self, turn: _Turn, body: bytes) -> bytes:
        lease_id, worker = wire.lease_request(body), turn.worker
        check_lease(lease_id, worker.owned)
        try:
            lease = await worker.etcd.lease_keep_alive(lease_id)
        except LeaseNotFound:
            worker.leases.ended(lease_id)
            lease = Lease(lease_id, 0)
        else:
            worker.leases.lives(lease_id, trio.current_time() + lease.ttl)
        return wire.keep_alive_response(lease).SerializeToString()

    async def _revoke(self, turn: _Turn, body: bytes) -> bytes:
        lease_id, worker = wire.lease_request(body), turn.worker
        check_lease(lease_id, worker.owned)
        await worker.etcd.lease_revoke(lease_id)
        worker.leases.ended(lease_id)
        return b""

    async def _status(self, turn: _Turn, _: bytes) -> bytes:
        return wire.status_response(await turn.worker.etcd.status()).SerializeToString()

    async def watch(
        self, worker: _Worker, stream: Stream, receive: Receive, response: Response, calls: Calls
    ) -> None:
        """Serve one watch stream, until either side ends it.

        Raises:
            Refusal: Why this side ended it.
            EtcdError: A request is not allowed, or etcd ended it.
            ClientDisconnected: The worker reads too slowly.
        """
        failure: list[Exception] = []

        async def read_requests(watch: WatchStream) -> None:
            live: set[int] = set()
            try:
                async with aclosing(messages(receive, _LARGEST_WATCH)) as requests:
                    async for body in requests:
                        calls.take(worker.client)
                        self._request(watch, live, body)
            except (Refusal, EtcdError) as error:
                failure.append(error)
                stream.end()

        async with worker.etcd.watch() as watch, owned_tasks("a worker's stream") as nursery:
            nursery.start_soon(read_requests, watch)
            await _send_responses(watch, stream, response)
            nursery.cancel_scope.cancel("the stream has ended")
        if failure:
            raise failure[0]
        if CONNECTION.get().is_lost:
            return
        raise Refusal(Code.UNAVAILABLE, "the stream ends here: open another one")

    def _request(self, watch: WatchStream, live: set[int], body: bytes) -> None:
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
    """Send etcd's responses to a worker, for :data:`LONGEST_STREAM` at most."""
    until = trio.current_time() + LONGEST_STREAM
    while (left := until - trio.current_time()) > 0:
        try:
            received = await stream.receive(watch, left)
        except trio.EndOfChannel:
            return
        if received is None:
            return
        with trio.move_on_after(_WITHIN) as scope:
            await response.messages(map(wire.watch_response, received))
        if scope.cancelled_caught:
            raise ClientDisconnected(f"it has not read some messages within {_WITHIN:g} s")


class WorkerAccess:
    """The route; see :class:`~etcd_actions.server.application.Route`.

    Args:
        etcd: The methods; None refuses all, with the reason.
        calls: Admits workers, and counts their calls by etcd's names.
        streams: The open streams.
        containment: The boundary of each call.
    """

    def __init__(
        self, etcd: WorkerEtcd | None, calls: Calls, streams: Streams, containment: Containment
    ) -> None:
        self._etcd = etcd
        self._calls = calls
        self._streams = streams
        self._containment = containment

    def answers(self, path: str) -> bool:
        """Whether a request for a path is answered here."""
        return path.startswith(_PATH)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["method"] != "POST" or scope["http_version"] != "2":
            await respond(
                send, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, b"this is gRPC: use HTTP/2\n"
            )
            return
        began, method = trio.current_time(), scope["path"].removeprefix(_PATH)
        response = Response(send)
        refusal: Refusal | None = None
        try:
            work = self._answer(method, scope, receive, response)
            await guarded(self._containment, method, work)
        except Refusal as error:
            refusal = error
        except EtcdActionsError as error:
            refusal = _refusal(error)
        except ClientDisconnected:
            self._calls.count(_name(method), Code.UNAVAILABLE.value, began)
            raise
        self._calls.count(_name(method), "ok" if refusal is None else refusal.code.value, began)
        await response.end(refusal)

    async def _answer(
        self, method: str, scope: Message, receive: Receive, response: Response
    ) -> None:
        if self._etcd is None:
            raise Refusal(
                Code.FAILED_PRECONDITION,
                "this service has no part of etcd for workers: start etcd-actions run with "
                "--worker-access",
            )
        try:
            identity = await self._calls.admit_worker(scope)
        except Refusal as error:
            if error.code is not Code.RESOURCE_EXHAUSTED:
                raise
            raise _busy(error.message) from None
        worker = self._etcd.worker(identity)
        if method == "Watch/Watch":
            take_endless_body(scope)
            with self._streams.open() as stream:
                _make_space(worker)
                worker.streams[stream] = None
                try:
                    await self._etcd.watch(worker, stream, receive, response, self._calls)
                finally:
                    worker.streams.pop(stream, None)
            return
        if worker.calls.statistics().tasks_waiting >= MOST_WAITING:
            raise _busy(f"{MOST_WAITING} calls of {worker.name} wait")
        with trio.move_on_after(_WITHIN) as limit:
            async with (
                _Turn(worker) as turn,
                aclosing(messages(receive, _LARGEST_REQUEST)) as bodies,
            ):
                body = await anext(bodies, None)
                if body is None:
                    raise ClientDisconnected("it left before its request was complete")
                await response.messages([await self._etcd.unary(method, turn, body)])
        if limit.cancelled_caught:
            raise Refusal(Code.UNAVAILABLE, "it took too long")


def _make_space(worker: _Worker) -> None:
    """End the oldest stream of a name that has the most allowed: its worker may be gone."""
    if len(worker.streams) >= MOST_STREAMS:
        oldest = next(iter(worker.streams))
        del worker.streams[oldest]
        oldest.end()
        _log.warning(
            "worker_stream_ended",
            name=worker.name,
            reason=f"it has {MOST_STREAMS} streams, the most allowed",
            remedy="give some of its workers a token with another name",
        )


def _name(method: str) -> str:
    """The name by which a call is counted: one of etcd's, or one for all others."""
    return method if method in _METHODS else "etcd"


def _busy(reason: str) -> Refusal:
    # By this text of etcd's a client knows that nothing was done.
    return Refusal(Code.RESOURCE_EXHAUSTED, f"etcdserver: too many requests: {reason}")


def _refusal(error: EtcdActionsError) -> Refusal:
    """The refusal that a worker gets for an error; its client recognises etcd's text in it."""
    # About the user of the service, and not about the worker: another service may have another one.
    if isinstance(error, Unauthenticated):
        return Refusal(Code.UNAVAILABLE, "etcd does not accept the user of the service")
    if isinstance(error, PermissionDenied) and not isinstance(error, NotForWorkers):
        lacks = str(error).rpartition("permission denied: ")[2]
        return Refusal(Code.UNAVAILABLE, f"the service lacks a permission in etcd: {lacks}")
    for kind, code in _CODES:
        if isinstance(error, kind):
            return Refusal(code, str(error))
    return Refusal(Code.UNAVAILABLE, str(error))
