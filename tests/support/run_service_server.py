"""Flyte's run service, as a real gRPC server that does what a test tells it to.

As a process of its own, for benchmarks: ``python -m tests.support.run_service_server`` prints
its port and serves until its standard input ends.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from flyteidl2.workflow import internal_run_service_pb2 as pb

from etcd_actions.etcd.endpoints import Endpoint

SERVICE = "flyteidl2.workflow.InternalRunService"
_FAILED, _TIMED_OUT, _PAUSED = 6, 8, 9


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    Attributes:
        code: The in-band code of the answer.
        rpc: The code that the call ends with instead of an answer; it ends a whole stream.
        applied: Whether it is applied nevertheless, where there is no accepting answer.
        hold: Answered only when this is set; applied then, if the client is still there or not.
    """

    code: int = 0
    rpc: grpc.StatusCode | None = None
    applied: bool = False
    hold: threading.Event | None = None


@dataclass
class Told:
    """One request that was applied."""

    what: str
    name: str
    request: Any
    at: float = field(default_factory=time.monotonic)


class RunServiceServer:
    """Serves while its context is open.

    Attributes:
        told: What was applied, in order.
        phases: By action, what Flyte's database would hold: its guard lets an ending go back.
        calls: Number of requests by ``record`` and ``status``, refused ones too.
    """

    def __init__(self, *, has_stream: bool = True, threads: int = 16) -> None:
        self.told: list[Told] = []
        self.phases: dict[str, int] = {}
        self.calls: dict[str, int] = defaultdict(int)
        self.streams = 0
        self._faults: dict[tuple[str, str], deque[Fault]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(threads))
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
        if has_stream:
            handlers["UpdateActionStatusStream"] = grpc.stream_stream_rpc_method_handler(
                self._stream,
                request_deserializer=pb.UpdateActionStatusStreamRequest.FromString,
                response_serializer=pb.UpdateActionStatusStreamResponse.SerializeToString,
            )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint("127.0.0.1", self.port)

    def __enter__(self) -> RunServiceServer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    def script(self, what: str, *faults: Fault, name: str = "") -> None:
        """Have the next requests, of one action or of any, meet faults."""
        self._faults[what, name].extend(faults)

    def names(self, what: str) -> list[str]:
        """The actions whose requests were applied, in order."""
        return [told.name for told in self.told if told.what == what]

    def told_phases(self, name: str) -> list[int]:
        """The phases of an action that were applied, in order."""
        return [t.request.status.phase for t in self.told if (t.what, t.name) == ("status", name)]

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
            if what == "status":
                new, old = request.status.phase, self.phases.get(name, 0)
                guard = old <= new or old in (_FAILED, _TIMED_OUT) or (old == _PAUSED and new > 4)
                if guard:
                    self.phases[name] = new

    def _serve(self, what: str, request: Any, context: grpc.ServicerContext) -> int:
        """Apply a request as scripted; the in-band code."""
        name = request.action_id.name
        fault = self._fault(what, name)
        if fault.hold is not None:
            fault.hold.wait()
        accepted = fault.code in (0, 6) and fault.rpc is None
        if accepted or fault.applied:
            self._apply(what, name, request)
        if fault.rpc is not None:
            context.abort(fault.rpc, "scripted")
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
        for each in requests:
            yield pb.UpdateActionStatusStreamResponse(
                response=self._update(each.request, context), nonce=each.nonce
            )


def main() -> None:
    with RunServiceServer() as server:
        print(server.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
