"""Each method of the complete service has the boundary, the time limit and the access check."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.method import StreamType
from flyteidl2.auth import identity_pb2

from etcd_actions import ActionsClient
from etcd_actions._internal.containment import Containment
from etcd_actions.blobs import open_blob_store
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.caller import CALLER, Caller
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.attempt_logs import LogSources
from etcd_actions.server.methods import Methods
from etcd_actions.server.project_access import WITHOUT_A_PROJECT, ProjectAccess
from tests.server.conftest import LOOPBACK
from tests.server.front.conftest import Lists

pytestmark = pytest.mark.memory(jumps=False)

TIMEOUT = 0.02


@pytest.fixture
async def methods(
    client: ActionsClient, lists: Lists, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Methods]:
    """The table of a service that has all its parts; each method waits without an end."""
    endpoint = Methods._endpoint
    monkeypatch.setattr(
        Methods, "_endpoint", lambda self, method, _: endpoint(self, method, function_of(method))
    )
    front = FrontDoor(
        client=client,
        keepalive=30,
        blobs=open_blob_store(tmp_path / "blobs"),
        index=lists.index,
        registry=lists.registry,
        logs=LogSources(client=client),
    )
    settings = ServerSettings(bind=LOOPBACK, request_timeout=TIMEOUT)
    async with open_actions_server(client, settings, front=front) as server:
        assert len(server.methods) >= 42
        yield server._methods


def function_of(method: Any) -> Any:
    """A function that fails if its request asks for that, and waits without an end otherwise."""

    async def unary(request: Any) -> Any:
        if request.FAILS:
            raise BaseExceptionGroup("several", [SystemExit(3), ValueError("secret")])
        await trio.sleep_forever()

    async def stream(request: Any) -> AsyncIterator[Any]:
        yield await unary(request)

    async def bidirectional(requests: Any) -> AsyncIterator[Any]:
        async for each in requests:
            yield await unary(each)

    return {StreamType.UNARY: unary, StreamType.SERVER_STREAM: stream}.get(
        method.stream_type, bidirectional
    )


async def call(methods: Methods, path: str, request: Any) -> None:
    """Call a method as connectrpc does; the error is the method's."""
    endpoint = methods.endpoints[path]
    if endpoint.method.stream_type is StreamType.UNARY:
        await endpoint.function(request, None)
        return
    async with AsyncExitStack() as stack:
        if endpoint.method.stream_type is StreamType.BIDI_STREAM:
            request = await stack.enter_async_context(aclosing(one(request)))
        responses = await stack.enter_async_context(aclosing(endpoint.function(request, None)))
        await anext(responses)


async def one(request: Any) -> AsyncGenerator[Any]:
    yield request


def request_of(methods: Methods, path: str, *, fails: bool) -> Any:
    """An empty request that also says what the function does."""
    kind = methods.endpoints[path].method.input

    class Request:
        FAILS = fails
        DESCRIPTOR = kind.DESCRIPTOR

        def HasField(self, name: str) -> bool:
            return False

        def __getattr__(self, name: str) -> Any:
            return getattr(kind(), name)

    return Request()


async def test_an_error_of_any_method_is_contained(methods: Methods, client: ActionsClient) -> None:
    CALLER.set(Caller("http://here"))
    for number, path in enumerate(methods.endpoints):
        with pytest.raises(ConnectError) as caught:
            await call(methods, path, request_of(methods, path, fails=True))
        assert caught.value.code is Code.INTERNAL, path
        assert "secret" not in caught.value.message
        assert client.containment.failures["request"] == number + 1, path


async def test_each_unary_method_has_the_time_limit(methods: Methods) -> None:
    CALLER.set(Caller("http://here"))
    for path, endpoint in methods.endpoints.items():
        if endpoint.method.stream_type is StreamType.UNARY:
            with (
                pytest.raises(
                    ConnectError, match=r"no response within .* s: see --request-timeout"
                ) as caught,
                trio.fail_after(9),
            ):
                await call(methods, path, request_of(methods, path, fails=False))
            assert caught.value.code is Code.UNAVAILABLE, path


async def test_each_unary_method_ends_when_the_service_ends(methods: Methods) -> None:
    CALLER.set(Caller("http://here"))
    methods._timeout = 60
    unary = [
        path
        for path, endpoint in methods.endpoints.items()
        if endpoint.method.stream_type is StreamType.UNARY
    ]
    ended = []

    async def run(path: str) -> None:
        with pytest.raises(ConnectError, match="the service is shutting down") as caught:
            await call(methods, path, request_of(methods, path, fails=False))
        assert caught.value.code is Code.UNAVAILABLE, path
        ended.append(path)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for path in unary:
                nursery.start_soon(run, path)
            await trio.testing.wait_all_tasks_blocked()
            methods.interrupt()
    assert sorted(ended) == sorted(unary)


async def test_each_method_checks_the_projects_of_a_token(methods: Methods) -> None:
    CALLER.set(Caller("http://here", subject="alice", projects=frozenset({"a"})))
    for path in methods.endpoints:
        if path.removeprefix("/") in WITHOUT_A_PROJECT:
            continue
        with pytest.raises(ConnectError, match=r"may (not )?use") as caught:
            await call(methods, path, request_of(methods, path, fails=True))
        assert caught.value.code is Code.PERMISSION_DENIED, path


def test_only_public_functions_are_methods() -> None:
    class Service:
        descriptor = identity_pb2.DESCRIPTOR.services_by_name["IdentityService"]

        async def _user_info(self, _: identity_pb2.UserInfoRequest) -> None:
            raise AssertionError("it is served")

    methods = Methods(1, Containment(), ProjectAccess())
    methods.add(Service())
    assert not methods.answered
