"""The protocol of shards: members with old views, pauses, lost answers, in any order of steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.shards.protocol import (
    RUNS,
    TTL,
    Drop,
    Member,
    Single,
    Step,
    StillClock,
    World,
    attempt,
)
from tests.support.everyday import examples

PICKS = st.integers(0, 2**16)
"""Choose one of the steps that are possible at that moment."""


class Protocol(RuleBasedStateMachine):
    """Processes make steps; each has its own, old, view of the store."""

    drop: Drop | None = None

    def __init__(self) -> None:
        super().__init__()
        self.clock = StillClock()
        self.world = World(type(self).drop)

    def run(self, main: Callable[[], Awaitable[object]]) -> None:
        trio.run(main, clock=self.clock)

    @initialize(members=st.integers(1, 3), rounds=st.integers(0, 2))
    def start(self, members: int, rounds: int) -> None:
        self.run(self.world.start)
        for _ in range(members):
            self.world.join()
        for each in range(rounds * members):
            self.settle(each)

    @precondition(lambda self: self.world.members)
    @rule(who=PICKS)
    def settle(self, who: int) -> None:
        """A process does all that its plan says, by a new view."""

        async def main() -> None:
            member = self.world.members[who % len(self.world.members)]
            if not isinstance(member, Single) and not member.leaving:
                await attempt(member.settle)
                await self.world.check()

        self.run(main)

    @precondition(lambda self: len(self.world.members) < 5)
    @rule(single=st.booleans())
    def join(self, single: bool) -> None:
        self.world.join(single=single)

    @precondition(lambda self: self.world.members)
    @rule(picks=st.lists(PICKS, min_size=2, max_size=12))
    def steps(self, picks: Sequence[int]) -> None:
        """Some steps, of one process each."""

        async def main() -> None:
            for pick in picks:
                if (step := await self.chosen(pick)) is not None:
                    await attempt(step)
                    await self.world.check()

        self.run(main)

    @precondition(lambda self: self.world.members)
    @rule(who=PICKS, picks=st.lists(PICKS, min_size=2, max_size=8))
    def turns(self, who: int, picks: Sequence[int]) -> None:
        """Steps of one process, first of all with a new view."""

        async def main() -> None:
            member = self.world.members[who % len(self.world.members)]
            if not isinstance(member, Single):
                await attempt(member.refresh)
            for pick in picks:
                options = await member.options()
                await attempt(options[pick % len(options)])
                await self.world.check()

        self.run(main)

    @precondition(lambda self: self.world.members)
    @rule(pick=PICKS, between=st.lists(PICKS, min_size=1, max_size=6), expires=st.booleans())
    def paused(self, pick: int, between: Sequence[int], expires: bool) -> None:
        """A process is stopped right before a write, continues after steps of others."""
        self.run(partial(self._paused, pick, between, expires))

    async def _paused(self, pick: int, between: Sequence[int], expires: bool) -> None:
        member = self.world.members[pick % len(self.world.members)]
        options = await member.options()
        step = options[(pick // 8) % len(options)]
        with member.client.faults.hold() as held:
            async with trio.open_nursery() as nursery:
                done = trio.Event()

                async def run() -> None:
                    await attempt(step)
                    done.set()
                    held.reached.set()

                nursery.start_soon(run)
                await held.reached.wait()
                if expires:
                    await self.world.expire(member.leases())
                for each in [] if done.is_set() else between:
                    await self._in_between(each, member)
                    await self.world.check()
                held.release()

    async def _in_between(self, pick: int, paused: Member) -> None:
        """What happens while a process is stopped."""
        others = [member for member in self.world.members if member is not paused]
        if pick % 4 == 0:
            await attempt(partial(self.world.operate, pick // 4))
        elif others:
            other = others[pick // 4 % len(others)]
            if pick % 4 == 1:
                await self.world.expire(other.leases())
            elif pick % 4 == 2 and not isinstance(other, Single):
                await attempt(other.settle)
            elif (step := await self.chosen(pick // 4, besides=paused)) is not None:
                await attempt(step)

    async def chosen(self, pick: int, besides: object = None) -> Step | None:
        members = [member for member in self.world.members if member is not besides]
        if not members:
            return None
        options = await members[pick % len(members)].options()
        return options[(pick // 8) % len(options)]

    @rule(run=st.sampled_from(RUNS))
    def delete(self, run: str) -> None:
        self.run(partial(self.world.delete_run, run))

    @precondition(lambda self: self.world.members)
    @rule(pick=PICKS, kills=st.booleans())
    def expire(self, pick: int, kills: bool) -> None:
        """The leases of a process end; it continues, or it was killed."""
        member = self.world.members[pick % len(self.world.members)]
        leases = member.leases()
        if kills:
            self.world.kill(member)
        self.run(partial(self.world.expire, leases))

    @precondition(lambda self: self.world.members)
    @rule(pick=PICKS)
    def kill(self, pick: int) -> None:
        """Its leases live on for a while."""
        self.world.kill(self.world.members[pick % len(self.world.members)])

    @rule()
    def expire_killed(self) -> None:
        self.run(partial(self.world.expire, self.world.left))
        self.world.left = []

    @precondition(lambda self: self.world.members)
    @rule(pick=PICKS, applied=st.booleans())
    def lose_answer(self, pick: int, applied: bool) -> None:
        member = self.world.members[pick % len(self.world.members)]
        member.client.faults.lose_answer(applied=applied)

    @rule(times=st.integers(1, 4))
    def wait(self, times: int) -> None:
        self.clock.now += times * 2 * TTL

    @rule(pick=PICKS)
    def operate(self, pick: int) -> None:
        async def main() -> None:
            await attempt(partial(self.world.operate, pick))
            await self.world.check()

        self.run(main)

    def teardown(self) -> None:
        if self.world.joined:
            self.run(self.world.calm)


def run_protocol(drop: Drop | None, *, max_examples: int, steps: int = 30) -> None:
    machine = type("Mutated", (Protocol,), {"drop": staticmethod(drop) if drop else None})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            # A failure of a mutant is not shown, so it need not be small.
            phases=[Phase.generate] if drop else list(Phase),
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_any_steps() -> None:
    run_protocol(None, max_examples=examples(300), steps=40)


def test_some_steps() -> None:
    run_protocol(None, max_examples=examples(25))
