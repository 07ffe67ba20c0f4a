"""The service ``grpc.health.v1.Health``, which load balancers and grpcurl call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection

from connectrpc.code import Code

from etcd_actions.server._pb import grpc_health_pb2 as pb
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.streams import Streams

# Seconds between two checks of the state for a watch.
_CHECK_EVERY = 5.0


class Health:
    """Reports whether the service is usable.

    Args:
        services: Returns the full names of the services.
        is_serving: Whether it is usable.
        streams: The open streams; a watch is one.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["Health"]

    def __init__(
        self,
        services: Callable[[], Collection[str]],
        is_serving: Callable[[], bool],
        streams: Streams,
    ) -> None:
        self._services = services
        self._is_serving = is_serving
        self._streams = streams

    async def check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        """Report the state."""
        if request.service and request.service not in self._services():
            raise Refusal(Code.NOT_FOUND, f"service {request.service!r} is not served here")
        return pb.HealthCheckResponse(status=self._status())

    async def watch(self, request: pb.HealthCheckRequest) -> AsyncIterator[pb.HealthCheckResponse]:
        """Report the state, and each change of it."""
        with self._streams.open() as stream:
            if request.service and request.service not in self._services():
                yield pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVICE_UNKNOWN)
                await stream.wait(float("inf"))
                return
            reported = None
            while not stream.has_ended:
                if (status := self._status()) != reported:
                    reported = status
                    yield pb.HealthCheckResponse(status=status)
                await stream.wait(_CHECK_EVERY)

    def _status(self) -> pb.HealthCheckResponse.ServingStatus:
        if self._is_serving() and not self._streams.is_draining:
            return pb.HealthCheckResponse.SERVING
        return pb.HealthCheckResponse.NOT_SERVING
