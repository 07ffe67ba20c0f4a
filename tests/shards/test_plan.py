"""What each member does about each shard, by the view that it has."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.shards import Role, Shard, ShardTable, ShardView, make_plan, shard_states
from etcd_actions.shards.assignment import assign, ranked
from etcd_actions.shards.plan import Plan
from etcd_actions.shards.shard_range import initial_ranges, scope_of

TTL = 10
SCOPE = scope_of("flyte")
SHARDS = tuple(
    Shard(number, range_, 100 + number)
    for number, range_ in enumerate(initial_ranges(SCOPE, 4, []))
)
TABLE = ShardTable.of(SCOPE, SHARDS)
SINCE = datetime(2026, 11, 29, tzinfo=UTC)
ABC = ("a", "b", "c")
TARGET = assign(range(4), ABC)[0]
"""Of shard 0, among the members a, b and c."""
FALLBACKS = [member for member in ranked(0, ABC) if member != TARGET]


def view_of(members: Iterable[str] = ABC, **fields: object) -> ShardView:
    view = ShardView(TABLE, members=dict.fromkeys(members, SINCE))
    return replace(view, **fields)  # type: ignore[arg-type]


def plan_of(view: ShardView, me: str, *, leading: Iterable[int] = (), now: float = 0) -> Plan:
    plan = make_plan(view, me, leading=set(leading), now=now, ttl=TTL)
    assert plan is not None
    return plan


@given(st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_each_shard_is_watched_by_its_target_alone(members: set[str]) -> None:
    view = view_of(members)
    watched = [shard for member in members for shard in plan_of(view, member).duties]
    assert sorted(watched) == [0, 1, 2, 3]
    for member in members:
        for duty in plan_of(view, member).duties.values():
            assert (duty.role, duty.target, duty.reason) == (Role.TARGET, member, "the target")
            assert (duty.stands, duty.reports_ready, duty.hands_over) == (True, True, False)


def test_the_target_waits_while_another_member_owns_the_shard() -> None:
    duty = plan_of(view_of(owners={0: "old"}), TARGET).duties[0]
    assert (duty.role, duty.reason) == (Role.TARGET, "the target; the owner is old")
    assert duty.stands


@pytest.mark.parametrize("known", ["by the view", "by its election"])
def test_an_owner_keeps_a_shard_until_the_target_is_ready(known: str) -> None:
    owner = FALLBACKS[0]
    view, leading = view_of(), {0}
    if known == "by the view":
        view, leading = view_of(owners={0: owner}), set()
    duty = plan_of(view, owner, leading=leading).duties[0]
    assert (duty.role, duty.target) == (Role.KEEPING, TARGET)
    assert duty.reason == f"the owner, until {TARGET} is ready"
    assert not duty.hands_over
    others = replace(view, ready={0: frozenset({FALLBACKS[1]}), 1: frozenset({TARGET})})
    assert plan_of(others, owner, leading=leading).duties[0].role is Role.KEEPING
    ready = replace(view, ready={0: frozenset({TARGET})})
    duty = plan_of(ready, owner, leading=leading).duties[0]
    assert (duty.role, duty.reason) == (Role.HANDING_OVER, f"{TARGET} is ready")
    assert (duty.hands_over, duty.stands) == (True, False)


def test_a_member_that_leaves_hands_over() -> None:
    """Its key is deleted, so it is no target; it keeps each shard until the target is ready."""
    mine = {shard for shard, target in assign(range(4), ABC).items() if target == "a"}
    owners = dict.fromkeys(mine, "a")
    view = view_of("bc", owners=owners)
    plan = plan_of(view, "a", leading=mine)
    assert {shard: duty.role for shard, duty in plan.duties.items()} == dict.fromkeys(
        mine, Role.KEEPING
    )
    ready = {shard: frozenset({target}) for shard, target in assign(range(4), "bc").items()}
    plan = plan_of(replace(view, ready=ready), "a", leading=mine)
    assert {duty.role for duty in plan.duties.values()} == {Role.HANDING_OVER}
    # When it has resigned there is nothing left.
    assert plan_of(view_of("bc"), "a").duties == {}


def test_the_last_member_keeps_its_shards() -> None:
    plan = plan_of(view_of(""), "a", leading={0, 1})
    assert {duty.role for duty in plan.duties.values()} == {Role.KEEPING}
    assert set(plan.duties) == {0, 1}


@pytest.mark.parametrize("rank", [1, 2])
def test_a_fallback_stands_when_the_target_does_not(rank: int) -> None:
    me, since = FALLBACKS[rank - 1], 1000.0
    view = view_of(ownerless_since={0: since})
    due = since + rank * 2 * TTL
    early = plan_of(view, me, now=due - 0.1)
    assert 0 not in early.duties
    assert early.replan_at == due
    duty = plan_of(view, me, now=due).duties[0]
    assert (duty.role, duty.stands, duty.reports_ready) == (Role.FALLBACK, True, False)
    assert duty.reason == f"no owner for {rank * 20} s; rank {rank}"
    # It stops when there is an owner, and keeps the shard if that is itself.
    owners = dict(assign(range(4), ABC))
    owned = view_of(owners=owners)
    assert 0 not in plan_of(owned, me, now=due).duties
    assert plan_of(owned, me, now=due).replan_at == math.inf
    owned = view_of(owners=owners | {0: me})
    assert plan_of(owned, me, now=due).duties[0].role is Role.KEEPING


def test_a_process_that_is_no_member_is_no_fallback() -> None:
    view = view_of(ownerless_since={0: 0.0})
    assert plan_of(view, "x", now=1e6) == Plan({})


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (ShardTable.of(SCOPE, []), "there are no shards"),
        (ShardTable.of(SCOPE, SHARDS[:3]), "do not divide"),
        (ShardTable.of(SCOPE, SHARDS, undecodable={b"/x": "no range"}), "/x cannot be decoded: no"),
    ],
)
def test_nothing_changes_by_ranges_that_do_not_divide_the_scope(
    table: ShardTable, problem: str
) -> None:
    view = view_of(table=table, owners={0: "a"}, ready={0: frozenset("b")})
    assert make_plan(view, "a", leading={0}, now=0, ttl=TTL) is None
    assert problem in table.problem
    assert [state.target for state in shard_states(view, now=0, ttl=TTL)] == [""] * len(
        table.shards
    )


def test_a_replaced_shard_is_no_duty_any_more() -> None:
    """Its owner resigns: the plan does not have it."""
    table = ShardTable.of(SCOPE, [Shard(7, SCOPE, 200)])
    plan = plan_of(view_of("a", table=table), "a", leading={0, 1})
    assert list(plan.duties) == [7]


def test_the_states_of_the_shards() -> None:
    view = view_of(
        owners={0: TARGET, 1: "gone", 2: FALLBACKS[0]},
        ready={2: frozenset({"b", "a"})},
        ownerless_since={3: 100.0},
    )
    found = shard_states(view, now=130.0, ttl=TTL)
    assert [state.shard.id for state in found] == [0, 1, 2, 3]
    assert [state.owner for state in found] == [TARGET, "gone", FALLBACKS[0], ""]
    assert [state.target for state in found] == list(assign(range(4), ABC).values())
    assert [state.problem for state in found] == [
        "",
        "its owner gone is no member any more",
        "",
        "no owner for 30 s",
    ]
    assert found[2].ready == ("a", "b")
    assert found[3].ownerless == 30.0
    [first, *_] = shard_states(ShardView(TABLE), now=0, ttl=TTL)
    assert first.problem == "no owner, and there is no member"
