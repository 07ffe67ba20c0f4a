"""Methods that only earlier versions of the SDK call.

These versions call RunService for the data of actions, and RunLogsService for their logs. Later
versions call DataProxyService for both, with the same fields. So its methods answer these calls.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from flyteidl2.dataproxy import dataproxy_service_pb2 as data_pb
from flyteidl2.workflow import run_logs_service_pb2 as logs_pb
from flyteidl2.workflow import run_service_pb2 as runs_pb

GetData = Callable[[data_pb.GetActionDataRequest], Awaitable[data_pb.GetActionDataResponse]]
TailLogs = Callable[[data_pb.TailLogsRequest], AsyncGenerator[data_pb.TailLogsResponse]]


class LegacyDataProxy:
    """RunService's GetActionData, by DataProxyService's."""

    descriptor = runs_pb.DESCRIPTOR.services_by_name["RunService"]

    def __init__(self, get: GetData) -> None:
        self._get = get

    async def get_action_data(
        self, request: runs_pb.GetActionDataRequest
    ) -> runs_pb.GetActionDataResponse:
        """Inputs and outputs of an action, without their URIs."""
        data = await self._get(data_pb.GetActionDataRequest(action_id=request.action_id))
        return runs_pb.GetActionDataResponse(inputs=data.inputs, outputs=data.outputs)


class LegacyLogs:
    """RunLogsService's TailLogs, by DataProxyService's."""

    descriptor = logs_pb.DESCRIPTOR.services_by_name["RunLogsService"]

    def __init__(self, tail: TailLogs) -> None:
        self._tail = tail

    async def tail_logs(
        self, request: logs_pb.TailLogsRequest
    ) -> AsyncIterator[logs_pb.TailLogsResponse]:
        """The lines of an attempt's log."""
        current = data_pb.TailLogsRequest(action_id=request.action_id, attempt=request.attempt)
        async with aclosing(self._tail(current)) as responses:
            async for each in responses:
                yield logs_pb.TailLogsResponse(
                    logs=[logs_pb.TailLogsResponse.Logs(lines=log.lines) for log in each.logs]
                )
