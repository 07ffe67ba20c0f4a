"""Each method is a cancellation point, and raises the same once the client is closed."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.support import flyte

ROOT = ActionId("p", "d", "r1", "a0")
CONDITION = ActionId("p", "d", "r1", "c1")

Call = Callable[[ActionsClient], Awaitable[object]]
# In this order each succeeds.
CALLS: dict[str, Call] = {
    "enqueue": lambda c: c.enqueue(flyte.task(ROOT)),
    "put_status": lambda c: c.put_status(ROOT, 1, ActionStatus(Phase.RUNNING)),
    "list_run_actions": lambda c: c.list_run_actions(ROOT.run_id),
    "list_child_actions": lambda c: c.list_child_actions(ROOT),
    "get_task_action": lambda c: c.get_task_action(ROOT),
    "claimed_by": lambda c: c.claimed_by(ROOT),
    "start_watching": lambda c: c.start_watching(),
    "signal": lambda c: c.signal(CONDITION, True),
    "abort_action": lambda c: c.abort_action(ROOT),
    "dead_letters": lambda c: c.dead_letters(),
    "dead_letter_objects": lambda c: c.dead_letter_objects([]),
    "has_leader": lambda c: c.has_leader(),
    "stop_watching": lambda c: c.stop_watching(),
}
# These need a dead letter, or a subscription.
OTHERS = {"retry_dead_letter", "wait_dead_letter", "delete_dead_letter", "unsubscribe"}


def test_each_method_is_here() -> None:
    methods = {
        name
        for name, each in inspect.getmembers(ActionsClient, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert methods == {*CALLS} | OTHERS


async def test_each_method_is_a_cancellation_point(etcd: Etcd, prefix: bytes) -> None:
    async with open_actions_client(etcd, prefix=prefix) as client:
        for name, call in CALLS.items():
            if name == "signal":
                await client.enqueue(flyte.condition(CONDITION, "a0"))
            with trio.testing.assert_checkpoints():
                await call(client)
            # Once more there may be nothing to do.
            with trio.testing.assert_checkpoints():
                await call(client)
        async with client.subscribe(ROOT) as updates:
            with trio.testing.assert_checkpoints():
                await client.unsubscribe(updates)


async def test_each_method_of_claims_is_a_cancellation_point(etcd: Etcd, prefix: bytes) -> None:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(ROOT))
        incarnation = (await client.get_task_action(ROOT)).incarnation
        async with client.open_claims() as claims:
            claim = await claims.claim(ROOT, incarnation)
            assert claim is not None
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "claim": lambda: claims.claim(ROOT, incarnation),
                "claim_and_read": lambda: claims.claim_and_read(ROOT, incarnation),
                "reserve": lambda: claims.reserve(prefix + b"slot", "s"),
                "unreserve": lambda: claims.unreserve(prefix + b"slot", "s"),
                "reserved": lambda: claims.reserved(prefix + b"slot"),
                "taken": claims.taken,
                "release": lambda: claims.release(claim),
            }
            assert {*calls} == {
                name
                for name, _ in inspect.getmembers(claims, inspect.iscoroutinefunction)
                if not name.startswith("_")
            }
            for call in calls.values():
                for _ in range(2):
                    with trio.testing.assert_checkpoints():
                        await call()


async def test_a_closed_client_raises_the_same_from_each_method(etcd: Etcd, prefix: bytes) -> None:
    async with open_actions_client(etcd, prefix=prefix) as client:
        pass
    for name in {*CALLS} - {"stop_watching"}:
        with pytest.raises(trio.ClosedResourceError, match=r"^the client is closed$"):
            await CALLS[name](client)
    contexts: list[Callable[[], Any]] = [
        lambda: client.subscribe(ROOT),
        lambda: client.subscribe_run(ROOT.run_id),
        client.subscribe_all,
        client.open_claims,
        client.watching,
    ]
    for opened in contexts:
        with pytest.raises(trio.ClosedResourceError, match=r"^the client is closed$"):
            async with opened():
                raise AssertionError
    await client.stop_watching()
    assert client.containment.failures == {}
