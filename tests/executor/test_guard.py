"""The guard of a worker kills the attempts whose claims may have expired, and no others."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from etcd_actions.executor.supervision import guard
from etcd_actions.executor.supervision.process_tree import Process


def test_an_attempt_that_starts_while_others_end_is_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has renewed its claims in that time."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = (str(tmp_path / "old"), Process(1, "1"))
    new = (str(tmp_path / "new"), Process(2, "2"))
    running = iter([[old]])
    sent: list[tuple[Process, int]] = []
    monkeypatch.setattr(guard, "_running", lambda _: iter(next(running, [old, new])))
    monkeypatch.setattr(guard, "send", lambda process, number: sent.append((process, number)))
    monkeypatch.setattr(guard, "_PATIENCE", 0.05)
    assert guard.end_all(str(tmp_path)) == 1
    assert {process for process, _ in sent} == {old[1]}
    # The old one does not end in time.
    assert sent[-1] == (old[1], signal.SIGKILL)
    assert [each.parent.name for each in tmp_path.glob("*/lost")] == ["old"]
