"""A reader that has left is told nothing more, whatever its last stream still brings."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio
from flyteidl2.actions import actions_service_pb2 as pb

from tests.schedules import readers
from tests.schedules.readers import Reader


class _Late:
    """A client whose stream brings a state only when it is let, and cannot be closed."""

    began = threading.Event()
    may_go_on = threading.Event()
    ended = threading.Event()

    def __init__(self, _address: str, *, deadline: float) -> None:
        assert deadline

    def stream(self, _request: object) -> _Late:
        return self

    def __iter__(self) -> Iterator[pb.WatchForUpdatesResponse]:
        self.began.set()
        assert self.may_go_on.wait(30)
        response = pb.WatchForUpdatesResponse()
        response.action_update.action_id.name = "a0"
        try:
            yield response
        finally:
            self.ended.set()

    def close(self) -> None:
        """Nothing is let go."""


async def test_a_reader_that_left_is_told_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "ConnectClient", _Late)
    reader = Reader("0", "r0", "a0", "connect:0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.read, "nowhere")
        assert await trio.to_thread.run_sync(_Late.began.wait, 30)
        nursery.cancel_scope.cancel()
    _Late.may_go_on.set()
    # Its thread was left alone, and has handed its message over.
    assert await trio.to_thread.run_sync(_Late.ended.wait, 30)
    assert reader.streams == [[]]
