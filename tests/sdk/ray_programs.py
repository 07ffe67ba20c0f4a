"""Programs on a Ray cluster: their submission, and their end."""

from __future__ import annotations

from etcd_actions import ActionId, ActionsClient, StoredAction
from tests.sdk.service import Site
from tests.support.waiting import eventually_holds

RUN = "rmany"


def action(name: str) -> ActionId:
    """An action of the one run of a test."""
    return ActionId("flytesnacks", "development", RUN, name, "local")


async def submit(site: Site, program: str, task: str, *inputs: str) -> None:
    """Submit a program whose tasks note their starts."""
    await site.submit(program, task, *inputs, f"directory={site.notes}", run=RUN)


async def ended(client: ActionsClient) -> StoredAction:
    """The root, once it has ended."""
    found = None

    async def has_ended() -> bool:
        nonlocal found
        found = await client.get_task_action(action("a0"))
        return found.is_terminal

    await eventually_holds(has_ended, within=300)
    assert found is not None
    return found
