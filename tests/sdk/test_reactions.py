"""How Flyte's SDK reacts to what the service does: its own controller, on the real service."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase, errors, open_actions_client
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import ErrorState
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.web import Bind
from tests.sdk.service import PROGRAMS, free_port
from tests.support import flyte

pytestmark = pytest.mark.slow

ROOT = ActionId("p", "d", "r1", "a0", "o")
CHILD = ActionId("p", "d", "r1", "c1", "o")
DEADLINE = 60


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        await client.enqueue(flyte.task(ROOT))
        yield client


class Controller:
    """The SDK's controller, in a process of its own."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._data = b""

    async def row(self, kind: str) -> dict[str, Any]:
        """The first row of a type."""
        assert self._process.stdout is not None
        with trio.fail_after(DEADLINE):
            while True:
                for line in self._data.splitlines():
                    row: dict[str, Any] = json.loads(line)
                    if row["type"] == kind:
                        return row
                data = await self._process.stdout.receive_some()
                assert data, "the controller ended"
                self._data += data


@asynccontextmanager
async def controller(
    python: Path, server: ActionsServer, *, retries: int = 100
) -> AsyncIterator[Controller]:
    """Have the SDK submit the child, for as long as the context lasts.

    Args:
        python: The interpreter that has the SDK.
        server: The service.
        retries: How often it tries again what was refused; the default is the SDK's own.
    """
    process = await trio.lowlevel.open_process(
        [str(python), str(PROGRAMS / "controller.py"), str(server.address), "r1", "c1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"_F_MAX_RETRIES": str(retries)},
    )
    try:
        yield Controller(process)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


async def enqueued(client: ActionsClient) -> None:
    """Return once the child is there."""
    async with client.subscribe(ROOT, snapshot=True) as updates:
        with trio.fail_after(DEADLINE):
            async for update in updates:
                if getattr(update, "action_id", None) == CHILD:
                    return


SUCCEEDED = ActionStatus(Phase.SUCCEEDED)

# What the first enqueue meets, and what the SDK makes of it: it goes on and the action
# succeeds, or the action fails at once, with a word of its message.
ENQUEUES: dict[str, tuple[errors.EtcdActionsError, str | None]] = {
    "already-exists": (errors.AlreadyExists("it is there"), None),
    "unavailable": (errors.Unavailable("etcd is away"), None),
    "outcome-unknown": (errors.OutcomeUnknown("the answer was lost"), None),
    "no-space": (errors.NoSpace("etcd is full"), None),
    "failed-precondition": (errors.FailedPrecondition("not now"), None),
    "permission-denied": (errors.PermissionDenied("etcd refuses"), None),
    "undecodable": (errors.DecodeError("the parent"), None),
    "invalid-argument": (errors.InvalidArgument("action.input_uri", "it is empty"), "input_uri"),
    "too-large": (errors.RequestTooLarge("it is too large"), "too large"),
    "not-found": (errors.NotFound("there is no parent"), "no parent"),
    "aborted": (errors.Aborted("the parent is gone"), ""),
}


@pytest.mark.parametrize("case", ENQUEUES)
async def test_an_enqueue_that_fails(
    client: ActionsClient, sdk_python: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, word = ENQUEUES[case]
    enqueue = client.enqueue
    calls = 0

    async def fail_at_first(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return await enqueue(*args, **kwargs)
        if isinstance(error, errors.AlreadyExists):
            await enqueue(*args, **kwargs)
        raise error

    monkeypatch.setattr(client, "enqueue", fail_at_first)
    settings = ServerSettings(bind=Bind("127.0.0.1", 0))
    async with (
        open_actions_server(client, settings) as server,
        controller(sdk_python, server) as sdk,
    ):
        if word is None:
            await enqueued(client)
            await client.put_status(CHILD, 1, SUCCEEDED)
        done = await sdk.row("DONE")
    if word is None:
        assert (done["phase"], done["client_error"]) == (Phase.SUCCEEDED, None)
        assert calls == (1 if case == "already-exists" else 2)
    else:
        assert done["client_error"] is not None
        assert word in done["client_error"]
        assert calls == 1


ENDINGS: dict[str, tuple[ActionStatus, ErrorState | None]] = {
    "succeeded": (SUCCEEDED, None),
    "recovered": (ActionStatus(Phase.RECOVERED), None),
    "failed": (ActionStatus(Phase.FAILED), ErrorState(code="E", kind="USER", message="no")),
    "timed-out": (
        ActionStatus(Phase.TIMED_OUT),
        ErrorState(code="MAX_RUNTIME_EXCEEDED", kind="USER", message="too long"),
    ),
    "aborted": (ActionStatus(Phase.ABORTED), None),
}


@pytest.mark.parametrize("case", ENDINGS)
async def test_an_ending(client: ActionsClient, sdk_python: Path, case: str) -> None:
    status, error = ENDINGS[case]
    # Signs of life are many, and harm nobody.
    settings = ServerSettings(bind=Bind("127.0.0.1", 0), keepalive=0.05)
    async with (
        open_actions_server(client, settings) as server,
        controller(sdk_python, server) as sdk,
    ):
        await enqueued(client)
        await client.put_status(CHILD, 1, status, error=error)
        done = await sdk.row("DONE")
    assert done["phase"] == status.phase
    assert done["outputs"] == "file:///run/c1/1"
    assert done["code"] == (error.code if error else None)


async def test_an_action_whose_name_is_taken_fails_visibly(
    client: ActionsClient, sdk_python: Path
) -> None:
    """Told that it exists already the SDK would wait for it for ever.

    It tries again, a hundred times as a rule: the other action may go. Then it fails, with what
    it was told.
    """
    await client.enqueue(flyte.task(ActionId("q", "d", "r1", "c1", "o")))
    settings = ServerSettings(bind=Bind("127.0.0.1", 0))
    async with (
        open_actions_server(client, settings) as server,
        controller(sdk_python, server, retries=1) as sdk,
    ):
        done = await sdk.row("DONE")
    assert "holds task c1 of run q/d/r1" in done["client_error"]
    assert "retries 2 / 1 exhausted" in done["client_error"]


async def test_an_action_whose_name_becomes_free_is_enqueued(
    client: ActionsClient, etcd: Etcd, sdk_python: Path
) -> None:
    other = (await client.enqueue(flyte.task(ActionId("q", "d", "r1", "c1", "o")))).action
    settings = ServerSettings(bind=Bind("127.0.0.1", 0))
    enqueue = client.enqueue
    refused = trio.Event()

    async def note(*args: Any, **kwargs: Any) -> Any:
        try:
            return await enqueue(*args, **kwargs)
        except errors.NameTaken:
            refused.set()
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "enqueue", note)
        async with (
            open_actions_server(client, settings) as server,
            controller(sdk_python, server) as sdk,
        ):
            with trio.fail_after(DEADLINE):
                await refused.wait()
            await etcd.delete(KeyRange.of_key(other.key))
            await enqueued(client)
            await client.put_status(CHILD, 1, SUCCEEDED)
            done = await sdk.row("DONE")
    assert (done["phase"], done["client_error"]) == (Phase.SUCCEEDED, None)


async def crash() -> None:
    raise RuntimeError("a sibling")


@pytest.mark.parametrize("how", ["left", "crash", "cancelled"])
async def test_a_service_that_ends_is_waited_for(
    client: ActionsClient, sdk_python: Path, how: str
) -> None:
    """However it ends, the SDK comes back, and finds in the snapshot what it missed."""
    bind = Bind("127.0.0.1", free_port())
    settings = ServerSettings(bind=bind)
    async with trio.open_nursery() as outer:
        sdk: Controller | None = None
        try:
            async with trio.open_nursery() as nursery, open_actions_server(client, settings) as one:
                sdk = await outer.start(_keep, sdk_python, one)
                await enqueued(client)
                if how == "crash":
                    nursery.start_soon(crash)
                    await trio.sleep_forever()
                if how == "cancelled":
                    nursery.cancel_scope.cancel()
                    await trio.sleep_forever()
        except* RuntimeError:
            assert how == "crash"
        await client.put_status(CHILD, 1, SUCCEEDED)
        async with open_actions_server(client, settings):
            assert sdk is not None
            row = await sdk.row("DONE")
        assert row["phase"] == Phase.SUCCEEDED
        outer.cancel_scope.cancel()


async def _keep(
    python: Path, server: ActionsServer, *, task_status: trio.TaskStatus[Controller]
) -> None:
    async with controller(python, server) as sdk:
        task_status.started(sdk)
        await trio.sleep_forever()


async def test_a_rate_that_is_too_high_is_tried_again(
    client: ActionsClient, sdk_python: Path
) -> None:
    settings = ServerSettings(bind=Bind("127.0.0.1", 0), rate=0.5)
    async with (
        open_actions_server(client, settings) as server,
        controller(sdk_python, server) as sdk,
    ):
        await enqueued(client)
        await client.put_status(CHILD, 1, SUCCEEDED)
        done = await sdk.row("DONE")
        assert done["phase"] == Phase.SUCCEEDED
