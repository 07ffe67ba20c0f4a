"""What the tests of dead letters share."""

from __future__ import annotations

from etcd_actions import (
    ActionsClient,
    DeadLetter,
    Phase,
)
from etcd_actions.errors import (
    RunServiceRejected,
)
from tests.record.test_outbox import ROOT, Scripted, tell
from tests.support import flyte
from tests.support.waiting import eventually

NO = RunServiceRejected("no", code=3)


def letters_of(client: ActionsClient) -> dict[tuple[str, str], DeadLetter]:
    """The open letters by action and call, as the elected process knows them."""
    letters = client.statistics().dead_letters
    return {(letter.action_id.name, letter.what): letter for letter in letters}


async def stored(client: ActionsClient) -> dict[tuple[str, str], DeadLetter]:
    """The same as they are in etcd."""
    letters = await client.dead_letters()
    return {(letter.action_id.name, letter.what): letter for letter in letters}


async def refuse_record(client: ActionsClient, service: Scripted) -> None:
    """The root's record is refused, its ending is accepted and marked."""
    service.failures["record", "a0"] = [NO]
    await client.enqueue(flyte.task(ROOT))
    await tell(client, "a0", [Phase.SUCCEEDED])
    await eventually(lambda: client.statistics().marks == {"marked": 1})
