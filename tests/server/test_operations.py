"""The service's own methods next to Flyte's."""

from __future__ import annotations

import re

import pytest

from etcd_actions import ActionsClient
from etcd_actions.errors import InvalidArgument
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb
from etcd_actions.server.operations import OperatedDeadLetters


@pytest.mark.memory
async def test_an_unknown_change_of_a_dead_letter_is_refused(client: ActionsClient) -> None:
    """A newer command may know more changes: none of them is taken for "do nothing"."""
    operations = OperatedDeadLetters(client)

    with pytest.raises(InvalidArgument, match=re.escape("change: 77 is neither")):
        await operations.change_dead_letter(pb.ChangeDeadLetterRequest(key=b"k", change=77))  # type: ignore[arg-type]
