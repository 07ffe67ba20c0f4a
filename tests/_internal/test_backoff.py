"""The delays before work is started again."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from etcd_actions._internal.backoff import Backoff, Restarts

BACKOFF = Backoff(initial=1.0, cap=8.0)


async def test_the_delay_grows_until_the_work_lasted_longer_than_the_cap(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda _least, most: most)
    restarts = Restarts(BACKOFF)
    delays = []
    for lasts in (0.0, 1.0, 8.0, 0.0, 0.0, 8.1, 0.0):
        restarts.begin()
        await trio.sleep(lasts)
        delays.append(restarts.delay())
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0, 1.0, 2.0]
