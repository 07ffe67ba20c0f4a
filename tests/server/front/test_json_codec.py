"""Responses that JSON cannot express."""

from __future__ import annotations

import http.client
import json
import math
import struct

import trio

from etcd_actions import ActionId, ActionsClient
from etcd_actions.server import ActionsServer
from tests.server.clients import DEADLINE
from tests.support import flyte


async def test_a_task_that_json_cannot_express_is_refused_and_is_no_failure(
    client: ActionsClient, front_server: ActionsServer
) -> None:
    action = flyte.task(ActionId("p", "d", "r", "a0"))
    action.task.spec.task_template.custom.fields["x"].number_value = math.nan
    await client.enqueue(action)
    named = {"actionId": {"run": {"project": "p", "domain": "d", "name": "r"}, "name": "a0"}}
    body = json.dumps(named).encode()

    def post(method: str, body: bytes, kind: str) -> bytes:
        connection = http.client.HTTPConnection(str(front_server.address), timeout=DEADLINE)
        headers = {"content-type": kind, "connect-protocol-version": "1"}
        connection.request("POST", f"/flyteidl2.workflow.RunService/{method}", body, headers)
        data = connection.getresponse().read()
        connection.close()
        return data

    for method, sent, kind in (
        ("GetActionDetails", body, "application/json"),
        (
            "WatchActionDetails",
            struct.pack(">BI", 0, len(body)) + body,
            "application/connect+json",
        ),
    ):
        answer = await trio.to_thread.run_sync(post, method, sent, kind)
        assert b'"data_loss"' in answer, method
        assert b"NaN" in answer, method
    assert client.containment.failures == {}
