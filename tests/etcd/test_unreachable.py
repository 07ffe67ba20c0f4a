"""Where nobody listens."""

from __future__ import annotations

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.errors import OutcomeUnknown, Unavailable
from etcd_actions.etcd import TransportName
from etcd_actions.etcd.api import KeyRange, WatchCreate
from tests.support.etcd_server import free_port


async def test_nobody_listening_is_unavailable_and_nothing_was_written(
    transport: TransportName,
) -> None:
    """Not OutcomeUnknown: the write never left this machine."""
    async with open_etcd(f"127.0.0.1:{free_port()}", transport=transport) as etcd:
        with pytest.raises(Unavailable) as caught:
            await etcd.put(b"k", b"")
        assert not isinstance(caught.value, OutcomeUnknown)
        async with etcd.watch() as stream:
            stream.create(WatchCreate(1, KeyRange.of_key(b"k"), 1))
            with pytest.raises(Unavailable):
                with trio.fail_after(60):
                    await stream.receive()
