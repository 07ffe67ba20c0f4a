"""Arguments of the client's methods: a wrong one is named, and nothing is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase, open_actions_client
from etcd_actions.errors import InvalidArgument, WrongType
from etcd_actions.etcd.api import Etcd
from tests.support import flyte
from tests.support.everyday import first_everyday

ROOT = ActionId("p", "d", "r1", "a0")
CONDITION = ActionId("p", "d", "r1", "c1")
RUNNING = ActionStatus(Phase.RUNNING)


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


Call = Callable[[Any], Awaitable[object]]
WRONG: dict[str, Call] = {
    "action: None": lambda c: c.enqueue(None),
    "action: 'a0'": lambda c: c.enqueue("a0"),
    "run_spec: 1": lambda c: c.enqueue(flyte.task(ROOT), 1),
    "trace_error: 'no'": lambda c: c.enqueue(flyte.task(ROOT), trace_error="no"),
    "action_id: 'a0' is of type str: give ActionId or ActionIdentifier": lambda c: c.abort_action(
        "a0"
    ),
    "reason: 1": lambda c: c.abort_action(ROOT, 1),
    "aborted_by: None": lambda c: c.abort_action(ROOT, "", None),
    "incarnation: 3": lambda c: c.abort_action(ROOT, incarnation=3),
    "attempt: '1'": lambda c: c.put_status(ROOT, "1", RUNNING),
    "attempt: True": lambda c: c.put_status(ROOT, True, RUNNING),
    "status: None is of type NoneType: give ActionStatus": lambda c: c.put_status(ROOT, 1, None),
    "status.phase: 'RUNNING'": lambda c: c.put_status(ROOT, 1, ActionStatus("RUNNING")),  # type: ignore[arg-type]
    "status.attempts: '1'": lambda c: c.put_status(ROOT, 1, ActionStatus(attempts="1")),  # type: ignore[arg-type]
    "status.end_time: 5": lambda c: c.put_status(ROOT, 1, ActionStatus(end_time=5)),  # type: ignore[arg-type]
    "error: 'no'": lambda c: c.put_status(ROOT, 1, RUNNING, error="no"),
    "message: b'x'": lambda c: c.put_status(ROOT, 1, RUNNING, message=b"x"),
    "claim: True": lambda c: c.put_status(ROOT, 1, RUNNING, claim=True),
    "seen: 3": lambda c: c.put_status(ROOT, 1, RUNNING, seen=3),
    "value: None": lambda c: c.signal(ROOT, None),
    "signalled_by: 1": lambda c: c.signal(ROOT, True, 1),
    "run: 'r1'": lambda c: c.list_run_actions("r1"),
    "action_id: None": lambda c: c.list_child_actions(None),
    "action_id.run.domain: 7": lambda c: c.get_task_action(ActionId("p", 7, "r", "a")),  # type: ignore[arg-type]
    "dead_letter: 'x'": lambda c: c.retry_dead_letter("x"),
    "pending: None": lambda c: c.wait_dead_letter(None),
    "subscription: None": lambda c: c.unsubscribe(None),
    "grace: '1'": lambda c: c.stop_watching("1"),
    "ttl: '1' is of type str: give int": lambda c: c.open_claims(ttl="1"),
    "keep: None is of type NoneType: give float": lambda c: c.open_catalog(None),
    "action_id: 'x'": lambda c: c.namespace_of("x"),
    "action_id: 7": lambda c: c.key_of(7),
    "kv: b''": lambda c: c.note_read(ROOT, b""),
}


@pytest.mark.parametrize("reason", first_everyday(WRONG, 12))
async def test_an_argument_of_another_type_is_named(client: ActionsClient, reason: str) -> None:
    """It is a TypeError, and as an InvalidArgument an error of this package."""
    with pytest.raises(TypeError) as raised:
        await WRONG[reason](client)
    assert isinstance(raised.value, WrongType)
    assert str(raised.value).startswith(reason)
    assert client.containment.failures == {}


@pytest.mark.parametrize(
    ("attempt", "status", "field"),
    [
        (0, RUNNING, "attempt"),
        (2**32, RUNNING, "attempt"),
        (1, ActionStatus(Phase.RUNNING, attempts=2), "status.attempts"),
        (1, ActionStatus(99), "status.phase"),  # type: ignore[arg-type]
        (1, ActionStatus(Phase.RUNNING, cache_status=2**31), "status.cache_status"),
        (1, ActionStatus(Phase.FAILED, end_time=datetime(2026, 1, 1)), "status.end_time"),
    ],
)
async def test_a_value_out_of_range_is_named(
    client: ActionsClient, attempt: int, status: ActionStatus, field: str
) -> None:
    await client.enqueue(flyte.task(ROOT))
    with pytest.raises(InvalidArgument) as raised:
        await client.put_status(ROOT, attempt, status)
    assert raised.value.field == field


async def test_an_attempt_of_32_bits_is_stored(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    written = await client.put_status(ROOT, 2**31, RUNNING)
    assert (await client.get_task_action(ROOT)).status.attempts == written.status.attempts == 2**31


async def test_arguments_of_a_client_are_checked_when_it_is_opened(
    etcd: Etcd, prefix: bytes
) -> None:
    given: Any = {"prefix": prefix, "run_service": "127.0.0.1:8090"}
    with pytest.raises(WrongType, match=r"run_service: '127\.0\.0\.1:8090' is of type str"):
        async with open_actions_client(etcd, **given):
            raise AssertionError


@pytest.mark.parametrize("value", [True, -7, 2.5, "yes"])
async def test_a_signal_is_a_value(client: ActionsClient, value: bool | float | str) -> None:
    kind = {bool: 4, int: 1, float: 2, str: 3}[type(value)]
    await client.enqueue(flyte.task(ROOT))
    condition = flyte.condition(CONDITION, "a0")
    condition.condition.type.simple = kind
    await client.enqueue(condition)
    async with client.subscribe(CONDITION) as updates:
        await client.signal(CONDITION, value)
        update = await updates.receive()
    assert update.phase is Phase.SUCCEEDED
    assert (update.signal_value, type(update.signal_value)) == (value, type(value))
    assert update.ended_at is not None
    with pytest.raises(InvalidArgument, match="value: "):
        await client.signal(CONDITION, 2**64)
