"""What the tests' own calls live through, and what they do not."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from etcd_actions.errors import Compacted, NoSpace, OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import KeyRange
from tests.support import oracle
from tests.support.patient import compact, patiently


class Failing:
    """Fails as it was told to, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.calls = 0

    async def compact(self, revision: int, *, physical: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        self.calls += 1
        if self._failures:
            raise self._failures.pop(0)


async def test_it_calls_until_etcd_answers(autojump_clock: trio.testing.MockClock) -> None:
    """An answer that was lost is asked for again."""
    etcd = Failing(Unavailable("no leader"), OutcomeUnknown("raft proposal dropped"))
    await patiently(etcd.compact, 5)
    assert etcd.calls == 3


async def test_it_gives_up_in_the_end(autojump_clock: trio.testing.MockClock) -> None:
    """A cluster that does not come back fails the test, with its own reason."""
    etcd = Failing(*[Unavailable("no leader")] * 10_000)
    with trio.fail_after(60), pytest.raises(Unavailable, match="no leader"):
        await patiently(etcd.compact, 5)
    assert 50 < etcd.calls < 10_000


async def test_a_refusal_is_not_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    """Only what is over by itself is waited for."""
    etcd = Failing(NoSpace("full"))
    with pytest.raises(NoSpace):
        await patiently(etcd.compact, 5)
    assert etcd.calls == 1


async def test_a_compaction_whose_answer_was_lost(autojump_clock: trio.testing.MockClock) -> None:
    """It was done by the try that was not answered; without one it is somebody else's."""
    await compact(Failing(OutcomeUnknown("lost"), Compacted("done")), 5)  # type: ignore[arg-type]
    with pytest.raises(Compacted):
        await compact(Failing(Compacted("by another")), 5)  # type: ignore[arg-type]


async def test_a_history_is_read_again(
    etcd: object, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence of the oracle is dropped by a leader that goes: nothing is read twice."""
    keys, lost = KeyRange.of_prefix(prefix), [OutcomeUnknown("raft proposal dropped")] * 2
    put = etcd.put  # type: ignore[attr-defined]

    async def unlucky(key: bytes, value: bytes) -> object:
        done = await put(key, value)
        if lost:
            raise lost.pop()
        return done

    written = [(await put(prefix + b"%d" % n, b"v")).revision for n in range(3)]
    monkeypatch.setattr(etcd, "put", unlucky)
    with trio.fail_after(20):
        history = await oracle.read_history(etcd, keys)  # type: ignore[arg-type]
    assert [entry.mod_revision for entry in history] == written
    assert not lost
