"""The deadline of a client, wherever it passes, is no failure of the service's."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from etcd_actions._internal.containment import Containment
from etcd_actions.server.application import Application, Calls
from etcd_actions.server.authentication import Authentication
from etcd_actions.server.grpc_health import Health
from etcd_actions.server.methods import Methods
from etcd_actions.server.project_access import ProjectAccess
from etcd_actions.server.rate_limit import RateLimit
from etcd_actions.server.streams import Streams
from etcd_actions.web import ClientDisconnected, Message
from etcd_actions.web.asgi import ON_DISCONNECT

pytestmark = pytest.mark.memory(jumps=False)


@pytest.fixture
def application() -> Application:
    containment = Containment()
    methods = Methods(60, containment, ProjectAccess())
    methods.add(Health(lambda: methods.services, lambda: True, Streams(1)))
    calls = Calls(Authentication(None, None), RateLimit(0), containment)
    return Application(methods, calls, message_bytes=1024)


def scope_of(milliseconds: bytes) -> Message:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/grpc.health.v1.Health/Check",
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"x"),
            (b"content-type", b"application/json"),
            (b"connect-timeout-ms", milliseconds),
        ],
        "extensions": {ON_DISCONNECT: lambda _: None},
    }


async def receive() -> Message:
    await trio.lowlevel.checkpoint()
    return {"type": "http.request", "body": b"{}", "more_body": False}


async def test_a_deadline_that_passes_while_the_answer_is_sent_is_the_clients(
    application: Application, autojump_clock: trio.testing.MockClock
) -> None:
    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.body":
            await trio.sleep_forever()

    with pytest.raises(ClientDisconnected, match="deadline"):
        await application(scope_of(b"50"), receive, send)


async def test_a_deadline_that_has_passed_is_answered(
    application: Application, autojump_clock: trio.testing.MockClock
) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await application(scope_of(b"0"), receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    assert json.loads(body)["code"] == "deadline_exceeded"
