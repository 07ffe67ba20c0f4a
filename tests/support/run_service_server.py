"""Flyte's run service, as a real gRPC server that does what a test tells it to.

In a test::

    with RunServiceServer() as server:
        server.script("status", Fault(code=14), Fault(hold=event), name="c1")
        async with open_run_service(server.endpoint) as service:
            ...
    assert server.told_phases("c1") == [...]
    assert server.revived == []

As a process of its own, for benchmarks::

    python -m tests.support.run_service_server [--no-stream] [--delay SECONDS] [--threads N]

It prints its port, serves until its standard input ends, and then prints what it counted, as
JSON: ``record``, ``status``, ``streams``, ``revived``, ``cpu_seconds``.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from flyteidl2.workflow import internal_run_service_pb2 as pb

from etcd_actions.etcd.endpoints import Endpoint

SERVICE = "flyteidl2.workflow.InternalRunService"
_ACCEPTING = (0, 6)
_SUCCEEDED, _FAILED, _ABORTED, _TIMED_OUT, _PAUSED, _RECOVERED = 5, 6, 7, 8, 9, 10
_TERMINAL = (_SUCCEEDED, _FAILED, _ABORTED, _TIMED_OUT, _RECOVERED)


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    Attributes:
        code: The in-band code of the answer.
        rpc: The code that the call ends with instead of an answer; it ends a whole stream.
        details: The words with ``rpc``.
        applied: Whether it is applied nevertheless, where there is no accepting answer: the
            answer is lost.
        delay: Seconds before it is applied and answered.
        hold: Applied and answered only when this is set, even if the client has gone: a late
            write. The end of the server sets it.
        polite: With ``delay`` or ``hold``: not applied when the client has gone meanwhile.
        over: Set when the call is over, also by its deadline.
    """

    code: int = 0
    rpc: grpc.StatusCode | None = None
    details: str = "scripted"
    applied: bool = False
    delay: float = 0.0
    hold: threading.Event | None = None
    polite: bool = False
    over: threading.Event | None = None


@dataclass
class Told:
    """One request that was applied; ``at`` is in ``time.monotonic``'s seconds."""

    what: str
    name: str
    request: Any
    at: float = field(default_factory=time.monotonic)


class RunServiceServer:
    """Serves while its context is open; :meth:`stop` and :meth:`start` make outages.

    ``what`` is ``record`` or ``status`` everywhere; a status that came over the stream counts
    as any other.

    Args:
        has_stream: Whether it knows ``UpdateActionStatusStream``.
        threads: How many requests are handled at once, an open stream being one of them.
        delay: Seconds that each request takes, as a database would.
        credentials: For TLS.
        host: Where it listens.
        options: More of grpcio's.

    Attributes:
        told: What was applied, in order.
        phases: By action, what Flyte's database would hold: its guard lets an ending go back.
        revived: Actions that went from FAILED or TIMED_OUT to something else, in order.
        unrecorded: Actions that were told of before they were recorded, in order: Flyte's
            database would have changed no row, and said nothing.
        calls: Number of requests by ``record`` and ``status``, refused ones too.
        most_at_once: The most requests that were handled at once.
        streams: Number of streams that were opened.
        nonces_lie: Answer on streams with nonces that nobody sent.
        name_of: Returns the name of an action in all of these; by default its own in its run.
        refuses: By ``what`` and request, what is answered with UNAVAILABLE, and not applied.
    """

    def __init__(
        self,
        *,
        has_stream: bool = True,
        threads: int = 16,
        delay: float = 0.0,
        credentials: grpc.ServerCredentials | None = None,
        host: str = "127.0.0.1",
        options: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self.told: list[Told] = []
        self.phases: dict[str, int] = {}
        self.revived: list[str] = []
        self.unrecorded: list[str] = []
        self.calls: dict[str, int] = defaultdict(int)
        self.most_at_once = 0
        self.streams = 0
        self.nonces_lie = False
        self.refuses: Callable[[str, Any], bool] = lambda _what, _request: False
        self.name_of: Callable[[Any], str] = lambda action_id: str(action_id.name)
        self._has_stream = has_stream
        self._threads = threads
        self._delay = delay
        self._credentials = credentials
        self._host = host
        self._options = options
        self._at_once = 0
        self._recorded: set[str] = set()
        self._faults: dict[tuple[str, str], deque[Fault]] = defaultdict(deque)
        self._holds: list[threading.Event] = []
        self._open_streams: set[grpc.ServicerContext] = set()
        self._lock = threading.Lock()
        self.port = 0
        self._server = self._bind()

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint("127.0.0.1", self.port)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away; all that is under way ends, and what is held is let go."""
        stopped = self._server.stop(0)
        for hold in self._holds:
            hold.set()
        stopped.wait()

    def drain(self, seconds: float) -> None:
        """Take nothing new, and go away when all is answered, or after some time."""
        self._server.stop(seconds).wait()

    def start(self) -> None:
        """Come back on the same port after :meth:`stop`."""
        self._server = self._bind()
        self._server.start()

    def script(self, what: str, *faults: Fault, name: str = "") -> None:
        """Have the next requests, of one action or of any, meet faults."""
        with self._lock:
            self._faults[what, name].extend(faults)
            self._holds += [fault.hold for fault in faults if fault.hold is not None]

    def cut_streams(self) -> None:
        """End the open streams without a word; requests in them get no answer."""
        with self._lock:
            contexts = list(self._open_streams)
        for context in contexts:
            context.cancel()

    def names(self, what: str) -> list[str]:
        """The actions whose requests were applied, in order."""
        return [told.name for told in self.told if told.what == what]

    def told_phases(self, name: str) -> list[int]:
        """The phases of an action that were applied, in order."""
        return [t.request.status.phase for t in self.told if (t.what, t.name) == ("status", name)]

    def _bind(self) -> grpc.Server:
        # Several servers on one port would share its connections.
        options = (("grpc.so_reuseport", 0), *self._options)
        server = grpc.server(ThreadPoolExecutor(self._threads), options=options)
        handlers = {
            "RecordAction": grpc.unary_unary_rpc_method_handler(
                self._record,
                request_deserializer=pb.RecordActionRequest.FromString,
                response_serializer=pb.RecordActionResponse.SerializeToString,
            ),
            "UpdateActionStatus": grpc.unary_unary_rpc_method_handler(
                self._update,
                request_deserializer=pb.UpdateActionStatusRequest.FromString,
                response_serializer=pb.UpdateActionStatusResponse.SerializeToString,
            ),
        }
        if self._has_stream:
            handlers["UpdateActionStatusStream"] = grpc.stream_stream_rpc_method_handler(
                self._stream,
                request_deserializer=pb.UpdateActionStatusStreamRequest.FromString,
                response_serializer=pb.UpdateActionStatusStreamResponse.SerializeToString,
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = f"{self._host}:{self.port}"
        if self._credentials is None:
            self.port = server.add_insecure_port(address)
        else:
            self.port = server.add_secure_port(address, self._credentials)
        return server

    def _fault(self, what: str, name: str) -> Fault:
        with self._lock:
            self.calls[what] += 1
            for key in ((what, name), (what, "")):
                if self._faults[key]:
                    return self._faults[key].popleft()
        return Fault()

    def _apply(self, what: str, name: str, request: Any) -> None:
        with self._lock:
            self.told.append(Told(what, name, request))
            if what == "record":
                self._recorded.add(name)
                return
            if name not in self._recorded:
                self.unrecorded.append(name)
            new, old = request.status.phase, self.phases.get(name, 0)
            ends_pause = old == _PAUSED and new in _TERMINAL
            if old <= new or old in (_FAILED, _TIMED_OUT) or ends_pause:
                self.phases[name] = new
                if old in (_FAILED, _TIMED_OUT) and new != old:
                    self.revived.append(name)

    def _serve(self, what: str, request: Any, context: grpc.ServicerContext) -> int:
        """Apply a request as scripted; the in-band code."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self._serve_scripted(what, request, context)
        finally:
            with self._lock:
                self._at_once -= 1

    def _serve_scripted(self, what: str, request: Any, context: grpc.ServicerContext) -> int:
        name = self.name_of(request.action_id)
        fault = self._fault(what, name)
        if self.refuses(what, request):
            fault = Fault(code=14)
        if fault.over is not None and not context.add_callback(fault.over.set):
            fault.over.set()
        if delay := fault.delay or self._delay:
            time.sleep(delay)
        if fault.hold is not None:
            fault.hold.wait()
        accepted = fault.code in _ACCEPTING and fault.rpc is None
        if (accepted or fault.applied) and (context.is_active() or not fault.polite):
            self._apply(what, name, request)
        if fault.rpc is not None:
            context.abort(fault.rpc, fault.details)
        return fault.code

    def _record(
        self, request: pb.RecordActionRequest, context: grpc.ServicerContext
    ) -> pb.RecordActionResponse:
        code = self._serve("record", request, context)
        response = pb.RecordActionResponse(action_id=request.action_id)
        response.status.code = code
        return response

    def _update(
        self, request: pb.UpdateActionStatusRequest, context: grpc.ServicerContext
    ) -> pb.UpdateActionStatusResponse:
        code = self._serve("status", request, context)
        response = pb.UpdateActionStatusResponse(action_id=request.action_id)
        response.status.code = code
        return response

    def _stream(
        self,
        requests: Iterator[pb.UpdateActionStatusStreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.UpdateActionStatusStreamResponse]:
        with self._lock:
            self.streams += 1
            self._open_streams.add(context)
        try:
            for each in requests:
                response = self._update(each.request, context)
                nonce = each.nonce + 1_000_000 if self.nonces_lie else each.nonce
                yield pb.UpdateActionStatusStreamResponse(response=response, nonce=nonce)
        finally:
            with self._lock:
                self._open_streams.discard(context)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-stream", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=16)
    arguments = parser.parse_args()
    with RunServiceServer(
        has_stream=not arguments.no_stream, threads=arguments.threads, delay=arguments.delay
    ) as server:
        print(server.port, flush=True)
        sys.stdin.read()
    counts = {
        "record": server.calls["record"],
        "status": server.calls["status"],
        "streams": server.streams,
        "revived": len(server.revived),
        "cpu_seconds": round(time.process_time(), 3),
    }
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
