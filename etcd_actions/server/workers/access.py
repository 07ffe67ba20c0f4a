"""Serves a restricted etcd to workers, by the paths of etcd's own gRPC methods.

A worker has a token of the service, and no user of etcd.
:mod:`~etcd_actions.server.workers.etcd_methods` has the methods. This module admits the workers,
limits what those with one name do at a time, and translates errors.
"""

from __future__ import annotations

from contextlib import aclosing
from http import HTTPStatus
from typing import Final

import structlog
import trio
from connectrpc.code import Code

from etcd_actions._internal.containment import Containment
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
)
from etcd_actions.server.application import Calls
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.methods import guarded
from etcd_actions.server.streams import Streams
from etcd_actions.server.workers.etcd_methods import WITHIN, NamedWorkers, Turn, WorkerEtcd, busy
from etcd_actions.server.workers.grpc_exchange import Response, request_messages
from etcd_actions.web import (
    ClientDisconnected,
    Message,
    Receive,
    Send,
    respond,
    take_endless_body,
)

MOST_WAITING: Final = 1_000
"""The most calls of one name that wait."""
MOST_STREAMS: Final = 64
"""The most watch streams of one name."""

_PATH: Final = "/etcdserverpb."
# The most bytes of the request of a unary call.
_LARGEST_REQUEST: Final = 2 * 1024 * 1024
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
_CODES: Final[tuple[tuple[type[EtcdError], Code], ...]] = (
    (NotForWorkers, Code.PERMISSION_DENIED),
    (LeaseNotFound, Code.NOT_FOUND),
    (Compacted, Code.OUT_OF_RANGE),
    (FutureRevision, Code.OUT_OF_RANGE),
    (RequestTooLarge, Code.INVALID_ARGUMENT),
    (InvalidRequest, Code.INVALID_ARGUMENT),
)

_log = structlog.get_logger(__name__)


class WorkerAccess:
    """The route of etcd's methods; see :class:`~etcd_actions.server.application.Route`.

    Args:
        etcd: The methods; None refuses each call with the reason.
        calls: Admits workers, and counts their calls by etcd's names of the methods.
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
        self._named: dict[str, NamedWorkers] = {}

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
            self._calls.count(_counted_as(method), Code.UNAVAILABLE.value, began)
            raise
        code = "ok" if refusal is None else refusal.code.value
        self._calls.count(_counted_as(method), code, began)
        await response.end(refusal)

    async def _answer(
        self, method: str, scope: Message, receive: Receive, response: Response
    ) -> None:
        """Admit the worker, and serve its call or its watch stream within the limits of its name.

        Raises:
            Refusal: The worker is not admitted, or the call exceeds a limit.
            EtcdError: The request is not allowed, or etcd refused it.
            ClientDisconnected: The worker left, or reads too slowly.
        """
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
            raise busy(error.message) from None
        workers = self._named.get(identity.subject)
        if workers is None:
            workers = self._named[identity.subject] = self._etcd.named(identity)
        if method == "Watch/Watch":
            take_endless_body(scope)
            await self._watch(self._etcd, workers, receive, response)
        else:
            await self._call(self._etcd, method, workers, receive, response)

    async def _watch(
        self, etcd: WorkerEtcd, workers: NamedWorkers, receive: Receive, response: Response
    ) -> None:
        with self._streams.open() as stream:
            _end_oldest_stream(workers)
            workers.streams[stream] = None
            try:
                await etcd.watch(workers, stream, receive, response, self._calls)
            finally:
                workers.streams.pop(stream, None)

    async def _call(
        self,
        etcd: WorkerEtcd,
        method: str,
        workers: NamedWorkers,
        receive: Receive,
        response: Response,
    ) -> None:
        if workers.calls.statistics().tasks_waiting >= MOST_WAITING:
            raise busy(f"{MOST_WAITING} calls of {workers.name} wait")
        with trio.move_on_after(WITHIN) as limit:
            bodies = request_messages(receive, _LARGEST_REQUEST)
            async with Turn(workers) as turn, aclosing(bodies):
                body = await anext(bodies, None)
                if body is None:
                    raise ClientDisconnected("it left before its request was complete")
                await response.send_messages([await etcd.unary(method, turn, body)])
        if limit.cancelled_caught:
            raise Refusal(
                Code.UNAVAILABLE, f"no answer within {WITHIN:g} s: the request may have been done"
            )


def _end_oldest_stream(workers: NamedWorkers) -> None:
    """If a name has the most streams, end the oldest one: its worker may be gone."""
    if len(workers.streams) >= MOST_STREAMS:
        oldest = next(iter(workers.streams))
        del workers.streams[oldest]
        oldest.end()
        _log.warning(
            "worker_stream_ended",
            name=workers.name,
            reason=f"it has {MOST_STREAMS} streams, the most allowed",
            remedy="give some of its workers a token with another name",
        )


def _counted_as(method: str) -> str:
    """The name by which a call is counted: the method, or ``etcd`` for an unknown one."""
    return method if method in _METHODS else "etcd"


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
