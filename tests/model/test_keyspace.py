"""The keys of Flyte's objects, and our own beside them."""

from __future__ import annotations

import pytest

from etcd_actions.model import ActionId, Keyspace

ROOT = ActionId("p", "d", "r1", "a0")


def test_keys() -> None:
    """Ours are under a prefix that no API server reads."""
    keys = Keyspace()
    assert keys.task_action(ROOT) == b"/registry/flyte.org/taskactions/flyte/r1-a0"
    side = b"/etcd-actions/registry/flyte.org/taskactions/"
    assert keys.trace(ROOT) == side + b"traces/flyte/r1-a0"
    assert keys.abort(ROOT) == side + b"aborts/flyte/r1-a0"
    assert keys.checkpoint(None) == side + b"position/*"
    assert keys.checkpoint("flyte") == side + b"position/flyte"
    assert keys.election("flyte") == side + b"election/flyte"
    assert not side.startswith(keys.prefix)


def test_keys_of_a_run() -> None:
    """All of a run's keys begin with them."""
    keys = Keyspace(b"/x/", "n")
    objects, traces, aborts = keys.run_prefixes("r1")
    assert keys.task_action(ROOT).startswith(objects)
    assert keys.trace(ROOT).startswith(traces)
    assert keys.abort(ROOT).startswith(aborts)


def test_a_slash_would_be_another_key() -> None:
    """A name that holds one is refused, whoever asks."""
    with pytest.raises(ValueError, match="r/1"):
        Keyspace().task_action(ActionId("p", "d", "r/1", "a"))
    with pytest.raises(ValueError, match="r/1"):
        Keyspace().run_prefixes("r/1")
