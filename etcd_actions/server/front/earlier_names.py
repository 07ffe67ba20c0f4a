"""Methods by the names under which earlier versions of the SDK call them.

Data and logs of actions were of RunService and RunLogsService before DataProxyService had them. The
messages have the same fields with the same numbers, so what is asked and answered is that one's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from flyteidl2.dataproxy import dataproxy_service_pb2 as data_pb
from flyteidl2.workflow import run_logs_service_pb2 as logs_pb
from flyteidl2.workflow import run_service_pb2 as runs_pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from etcd_actions.server.methods import Methods

RUNS: Final = "flyteidl2.workflow.RunService"
RUN_LOGS: Final = "flyteidl2.workflow.RunLogsService"

GetData = Callable[[data_pb.GetActionDataRequest], Awaitable[data_pb.GetActionDataResponse]]
TailLogs = Callable[[data_pb.TailLogsRequest], "AsyncGenerator[data_pb.TailLogsResponse]"]


class EarlierData:
    """RunService's GetActionData.

    Args:
        get: Answers DataProxyService's.
    """

    def __init__(self, get: GetData) -> None:
        self._get = get

    def add_to(self, methods: Methods) -> None:
        """Add its method to those that are served."""
        methods.unary(
            RUNS,
            "GetActionData",
            runs_pb.GetActionDataRequest,
            runs_pb.GetActionDataResponse,
            self.get_action_data,
        )

    async def get_action_data(
        self, request: runs_pb.GetActionDataRequest
    ) -> runs_pb.GetActionDataResponse:
        """Inputs and outputs of an action, without where they are."""
        answer = await self._get(data_pb.GetActionDataRequest(action_id=request.action_id))
        return runs_pb.GetActionDataResponse(inputs=answer.inputs, outputs=answer.outputs)


class EarlierLogs:
    """RunLogsService's TailLogs.

    Args:
        tail: Answers DataProxyService's.
    """

    def __init__(self, tail: TailLogs) -> None:
        self._tail = tail

    def add_to(self, methods: Methods) -> None:
        """Add its method to those that are served."""
        methods.server_stream(
            RUN_LOGS, "TailLogs", logs_pb.TailLogsRequest, logs_pb.TailLogsResponse, self.tail_logs
        )

    async def tail_logs(
        self, request: logs_pb.TailLogsRequest
    ) -> AsyncIterator[logs_pb.TailLogsResponse]:
        """The lines of an attempt's log, as DataProxyService gives them."""
        asked = data_pb.TailLogsRequest(action_id=request.action_id, attempt=request.attempt)
        async with aclosing(self._tail(asked)) as answers:
            async for answer in answers:
                yield logs_pb.TailLogsResponse(
                    logs=[logs_pb.TailLogsResponse.Logs(lines=each.lines) for each in answer.logs]
                )
